"""From a model's folder to a reward model."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scpo_ray.models.adapters import add_adapters, quiet_peft
from scpo_ray.models.files import adapter_base, resolve_model_dir
from scpo_ray.models.heads import check_head
from scpo_ray.models.rendering import Renderer, quiet_transformers, reasons
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig


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
    if config.lora is not None:
        if adapter.is_file():
            raise InputError(
                f"model.path = {config.path}: has adapters already; export it merged first"
            )
        network = add_adapters(network, config.lora, missing)
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
        check_head(settings, config)
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


def _load_adapter(folder: Path, config: ModelConfig) -> Any:
    """A base model under saved adapters, the adapters and the head trainable."""
    import peft

    base = adapter_base(folder, config)
    base_network, _ = _load_network(resolve_model_dir(base), base, head_follows=True)
    with quiet_peft():
        return peft.PeftModel.from_pretrained(base_network, folder, is_trainable=True)


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
