"""Reward models: load, low-rank adapters, export."""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scpo_ray.models.rendering import Renderer, load_renderer, quiet_transformers, reasons
from scpo_ray.records import InputError
from scpo_ray.settings.model import LoraConfig, ModelConfig
from scpo_ray.storage.disk import MANIFEST, check_folder

log = logging.getLogger(__name__)

MODEL_FILE = "scpo_model.json"


@dataclass(frozen=True)
class RewardModel:
    """A network with one score per text, and the renderer that belongs to it.

    `batch_tokens`: padded tokens per forward pass without gradient.
    """

    network: nn.Module
    renderer: Renderer
    device: str
    batch_tokens: int


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The torch device a setting names. Raises: InputError if "cuda" is asked for in vain."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = cuda: this machine has no CUDA device")
    return device


def resolve_model_dir(config: ModelConfig) -> Path:
    """The folder with the model's files; a hub model is downloaded (or found in the hub's cache).

    Raises: InputError if there is no such model or its weights are not safetensors.
    """
    # Absolute, since saved adapters name their base model by it.
    folder = Path(config.path).absolute()
    if not folder.is_dir():
        folder = _download(config)
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise InputError(f"model.path = {config.path}: no config.json in it")
    if (folder / MODEL_FILE).is_file() and (folder / MANIFEST).exists():
        remedy = f"export or train it again; delete its {MANIFEST} if you changed it on purpose"
        check_folder(folder, remedy)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        found = (
            f"only pickle files ({', '.join(pickles)}), which can run code" if pickles else "none"
        )
        raise InputError(
            f"model.path = {config.path}: weights must be safetensors, found {found}",
            ["convert them, or name a model.revision that has *.safetensors"],
        )
    return folder


def _download(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision,
                allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model.path = {config.path}: neither a folder nor a hub model that can be fetched",
            [reason],
        ) from None


def model_fingerprint(folder: Path, config: ModelConfig) -> str:
    """Hash of what decides the rewards besides the renderer: weight files, config, layers kept."""
    digest = hashlib.sha256(f"num_layers={config.num_layers}".encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        if path.name == "tokenizer_config.json":
            continue
        state = path.stat()
        digest.update(path.name.encode() + _file_digest(path, state.st_size, state.st_mtime_ns))
    if (folder / "adapter_config.json").is_file():
        base = _adapter_base(folder, config)
        digest.update(model_fingerprint(resolve_model_dir(base), base).encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, modified_ns: int) -> bytes:
    """SHA-256 of a file; read once in this process while its size and time stay."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load_reward_model(
    folder: Path, config: ModelConfig, renderer: Renderer, *, device: str, seed: int
) -> RewardModel:
    """The network in `folder` with its score head, in float32, in evaluation mode.

    With `config.lora` the adapters and the score head are what can be trained. `seed` decides a
    new head's and new adapters' first weights.

    Raises: InputError if the model has no single-score head and `config.new_head` is off, if
    weights are missing, of another shape or unreadable.
    """
    torch.manual_seed(seed)  # transformers and peft draw first weights from the global stream
    adapter = folder / "adapter_config.json"
    missing: list[str] = []
    if adapter.is_file():
        network = _load_adapter(folder, config)
    else:
        network, missing = _load_network(folder, config, head_follows=False)
    _check_positions(network, config)
    network.config.pad_token_id = renderer.pad_id
    if config.lora is not None:
        if adapter.is_file():
            raise InputError(
                f"model.path = {config.path}: has adapters already; export it merged first"
            )
        network = _add_adapters(network, config.lora, missing)
    network.eval()
    return RewardModel(network.to(device), renderer, device, config.inference_batch_tokens)


def _load_network(
    folder: Path, config: ModelConfig, *, head_follows: bool
) -> tuple[Any, list[str]]:
    """The network, and the names of the weights that are drawn and not read.

    `head_follows`: the head is in the adapters that are loaded next.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    quiet_transformers()
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise InputError(
            f"model.path = {config.path}: config.json cannot be used", reasons(error)
        ) from None
    if not head_follows:
        _check_head(settings, config)
    settings.num_labels = 1
    # Otherwise inference pipelines put a sigmoid over the reward.
    settings.problem_type = "regression"
    if config.num_layers is not None:
        if config.num_layers > settings.num_hidden_layers:
            raise InputError(
                f"model.num_layers = {config.num_layers}: {config.path} has "
                f"{settings.num_hidden_layers} layers"
            )
        settings.num_hidden_layers = config.num_layers
    try:
        network, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(
            f"model.path = {config.path}: the weights cannot be loaded", reasons(error)
        ) from None
    missing = sorted(info["missing_keys"])
    if missing and not config.new_head and not head_follows:
        raise InputError(
            f"model.path = {config.path}: weights are missing from the files",
            [", ".join(missing[:5]) + (f" (+{len(missing) - 5} more)" if missing[5:] else "")],
        )
    body = [name for name in missing if not re.match(r"(score|classifier|pooler)\b", name)]
    body = [name for name in body if ".pooler." not in name]
    if body:
        raise InputError(
            f"model.path = {config.path}: more than the score head is missing from the files",
            [", ".join(body[:5])],
        )
    return network, missing


def _check_positions(network: nn.Module, config: ModelConfig) -> None:
    """A model with learned positions cannot read beyond the last one."""
    for name, module in network.named_modules():
        if name.endswith(("position_embeddings", "wpe")) and isinstance(module, nn.Embedding):
            # Position tables with a padding entry (RoBERTa's) count from behind it.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            if config.max_length > module.num_embeddings - unused:
                raise InputError(
                    f"model.max_length = {config.max_length}: {config.path} reads at most "
                    f"{module.num_embeddings - unused} tokens"
                )


def _check_head(settings: Any, config: ModelConfig) -> None:
    architectures = settings.architectures or ["unknown"]
    has_head = any(name.endswith("ForSequenceClassification") for name in architectures)
    if not has_head and not config.new_head:
        raise InputError(
            f"model.path = {config.path}: {architectures[0]} has no score head, so it is not a "
            "reward model",
            ["set model.new_head to true to train a new head on it (method finetune)"],
        )
    if has_head and config.new_head and settings.num_labels == 1:
        raise InputError(
            f"model.new_head = true: {config.path} has a score head already",
            ["leave model.new_head out to start from it"],
        )
    if has_head and settings.num_labels != 1 and not config.new_head:
        raise InputError(
            f"model.path = {config.path}: a reward model has 1 score, this one has "
            f"{settings.num_labels}"
        )


def _add_adapters(network: Any, config: LoraConfig, missing: Sequence[str]) -> Any:
    import peft

    # What was drawn must be trained and saved whole, or a reload would draw it anew. The library
    # sees to heads named "classifier" and "score".
    drawn_pooler = any("pooler" in name.split(".") for name in missing)
    settings = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        modules_to_save=["pooler"] if drawn_pooler else None,
        exclude_modules=r".*pooler.*" if drawn_pooler else None,
    )
    try:
        with _quiet_peft():
            network = peft.get_peft_model(network, settings)
    except ValueError as error:
        raise InputError(
            f"model.lora.target_modules = {config.target_modules}", reasons(error)
        ) from None
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    log.info("adapters: %d of %d weights are trained", trained, total)
    return network


def _load_adapter(folder: Path, config: ModelConfig) -> Any:
    """A base model under saved adapters, the adapters and the head trainable."""
    import peft

    base = _adapter_base(folder, config)
    base_network, _ = _load_network(resolve_model_dir(base), base, head_follows=True)
    with _quiet_peft():
        return peft.PeftModel.from_pretrained(base_network, folder, is_trainable=True)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    # peft 0.21 asks transformers 5.23 by a name that is going away; nothing a user can mend.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def _adapter_base(folder: Path, config: ModelConfig) -> ModelConfig:
    try:
        document = json.loads((folder / "adapter_config.json").read_text())
        path = str(document["base_model_name_or_path"])
    except (ValueError, KeyError):
        raise InputError(f"{folder / 'adapter_config.json'}: names no base model") from None
    return config.model_copy(update={"path": path, "lora": None})


def save_reward_model(
    model: RewardModel, folder: Path, *, weights: dict[str, Tensor] | None = None
) -> None:
    """Writes a Hugging Face folder: safetensors weights (or adapters), tokenizer, renderer.

    Args:
        weights: all the network's weights by name, where the network itself holds but a part.
    """
    model.network.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    model.renderer.tokenizer.save_pretrained(folder)
    settings: Any = model.network.config
    document = {
        "renderer": model.renderer.style,
        "max_length": model.renderer.max_length,
        "num_layers": settings.num_hidden_layers,
    }
    (folder / MODEL_FILE).write_text(json.dumps(document) + "\n")


def exported_config(folder: Path) -> ModelConfig:
    """The model section that loads an exported folder with the renderer it was trained with.

    Raises: InputError if the folder was not written by `save_reward_model`.
    """
    try:
        document = json.loads((folder / MODEL_FILE).read_text())
        return ModelConfig(path=str(folder), **document)
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder}: not a model saved here: no readable {MODEL_FILE}") from None


def load_exported(folder: Path | str, *, device: str) -> RewardModel:
    """A reward model that `save_reward_model` wrote, ready to score."""
    config = exported_config(Path(folder))
    model_dir = resolve_model_dir(config)
    renderer = load_renderer(model_dir, config)
    return load_reward_model(model_dir, config, renderer, device=device, seed=0)


def merged_adapters(model: RewardModel) -> RewardModel:
    """The same rewards without adapters: folded into the weights. Raises: InputError if none."""
    merge: Callable[[], nn.Module] | None = getattr(model.network, "merge_and_unload", None)
    if merge is None:
        raise InputError("the model has no adapters to merge")
    return replace(model, network=merge().eval())


def without_head(model: RewardModel) -> RewardModel:
    """The model with its score head taken out: its output are the features the head would read.

    Changes `model`'s own network. Raises: as `score_head`.
    """
    name, _ = score_head(model)
    above, _, last = name.rpartition(".")
    setattr(model.network.get_submodule(above), last, nn.Identity())
    return model


def score_head(model: RewardModel) -> tuple[str, nn.Linear]:
    """The last layer, and its name: what turns features into one score.

    Raises: InputError if the network has no such layer, or several.
    """
    layers = [
        (name, module)
        for name, module in model.network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1
    ]
    if len(layers) != 1:
        names = ", ".join(name for name, _ in layers) or "none"
        raise InputError(
            "the global model has no single linear score head, which heads on frozen features need",
            [f"layers with one output: {names}", "export a model with adapters merged first"],
        )
    return layers[0]


def turn_off_dropout(network: nn.Module) -> None:
    """Sets every dropout rate of the network to 0, in layers and in attention functions."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
