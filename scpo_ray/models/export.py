"""A trained model as a Hugging Face folder, and back."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from scpo_ray.models.compatible import padding_of, write_compatible
from scpo_ray.models.files import (
    ADAPTER_CONFIG,
    BASE_FINGERPRINT,
    CALIBRATION_FILE,
    MODEL_FILE,
    adapter_base,
    base_fingerprint,
    resolve_model_dir,
)
from scpo_ray.models.loading import load_reward_model
from scpo_ray.models.rendering import load_renderer
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError
from scpo_ray.results import Calibration
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.disk import put_into

SHARD_BYTES = 2 * 10**9


def save_reward_model(
    model: RewardModel, folder: Path, *, weights: dict[str, Tensor] | None = None
) -> None:
    """Writes a Hugging Face folder: safetensors weights (or adapters), tokenizer, renderer.

    Other tools read the same reward from it; see `compatible`.

    Args:
        weights: the weights to write, by name, where the network itself holds but a part; empty
            where `write_weights` has put them there.
    """
    if model.dtype_name == "nf4" and not hasattr(model.network, "peft_config"):
        # Whole weights are saved as what they are computed with, which every tool reads.
        model.network.dequantize()  # type: ignore[operator]
    if weights is None or weights:
        model.network.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    # Of the template's two places the older one is read by every version.
    model.renderer.tokenizer.save_pretrained(folder, save_jinja_files=False)
    write_compatible(folder, model.renderer, padding_of(model.renderer, model.scored.plain))
    settings: Any = model.network.config
    document = {
        "renderer": model.renderer.style,
        "max_length": model.renderer.max_length,
        "num_layers": settings.get_text_config().num_hidden_layers,
        "dtype": model.dtype_name,
    }
    if (folder / ADAPTER_CONFIG).is_file():
        document[BASE_FINGERPRINT] = base_fingerprint(adapter_base(folder, ModelConfig()))
    (folder / MODEL_FILE).write_text(json.dumps(document) + "\n")


def write_weights(
    network: Any,
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a network's settings, and weights as they come: of these no more than a file is held.

    A model of one file has no index, as transformers writes it.
    """
    # First: transformers clears a folder of weight files that it has not written itself.
    network.save_pretrained(folder, state_dict={})
    held: dict[str, Tensor] = {}
    parts: list[list[str]] = []
    size = total = 0

    def write() -> None:
        save_file(held, folder / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append(list(held))
        held.clear()

    for name, weight in weights:
        if held and size + weight.nbytes > shard_bytes:
            write()
            size = 0
        held[name] = weight.contiguous()
        size += weight.nbytes
        total += weight.nbytes
    write()
    names: dict[str, str] = {}
    for number, inside in enumerate(parts):
        name = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        if len(parts) == 1:
            name = "model.safetensors"
        (folder / f"part-{number}").rename(folder / name)
        names |= dict.fromkeys(inside, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        text = json.dumps(index, indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n")


def save_temperatures(folder: Path, calibration: Mapping[str, Calibration]) -> None:
    """Adds to a saved model's folder, and to what it is signed with, what its margins are divided
    by to be a win probability: culture -> reward units."""
    found = {culture: of.temperatures.get("model_fitted") for culture, of in calibration.items()}
    document = {"win_temperatures": {c: t for c, t in found.items() if t is not None}}
    put_into(folder, CALIBRATION_FILE, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def saved_temperatures(folder: Path) -> dict[str, float] | None:
    """What `save_temperatures` wrote; None where there is nothing.

    Raises: InputError if it cannot be read.
    """
    file = folder / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["win_temperatures"]
        temperatures = {str(culture): float(value) for culture, value in found.items()}
        broken = {c: t for c, t in temperatures.items() if not 0 < t < float("inf")}
    except (
        OSError,
        ValueError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise InputError(f"{file}: cannot be read", [str(error)]) from None
    if broken:
        rule = "win_temperatures must be above 0 and finite"
        raise InputError(f"{file}: {rule}", [f"{c}: {t}" for c, t in broken.items()])
    return temperatures


def exported_config(folder: Path) -> ModelConfig:
    """The model section that loads an exported folder with the renderer it was trained with.

    Raises: InputError if the folder was not written by `save_reward_model`.
    """
    try:
        document = json.loads((folder / MODEL_FILE).read_text())
        document.pop(BASE_FINGERPRINT, None)
        return ModelConfig(path=str(folder), **document)
    except (OSError, ValueError, RecursionError, TypeError):
        raise InputError(f"{folder}: not a model saved here: no readable {MODEL_FILE}") from None


def model_section(model: Path, config: ModelConfig) -> ModelConfig:
    """The model section for a reward model that is not the config's own.

    One that was saved here says how it was trained, but not what it may do on this machine: that is
    the config's word. Any other (a folder, or a model on the hub) is read with the config's length
    and style.
    """
    if (model / MODEL_FILE).is_file():
        machine = ("trust_remote_code", "convert_pickle", "attention", "inference_batch_tokens")
        kept = {name: getattr(config, name) for name in machine}
        return exported_config(model).model_copy(update=kept)
    other = {"path": str(model), "revision": None, "num_layers": None}
    return config.model_copy(update={**other, "new_head": False, "lora": None})


def load_exported(
    folder: Path | str, *, device: str, config: ModelConfig | None = None
) -> RewardModel:
    """A reward model that `save_reward_model` wrote, ready to score.

    Args:
        config: the model section of the run that loads it; see `model_section`.
    """
    path = Path(folder)
    section = exported_config(path) if config is None else model_section(path, config)
    model_dir = resolve_model_dir(section)
    renderer = load_renderer(model_dir, section)
    return load_reward_model(model_dir, section, renderer, device=device, seed=0)
