"""Several models of one kind as one: the weighted sum of their weights."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scpo_ray.models.export import load_exported, save_reward_model
from scpo_ray.models.files import ADAPTER_CONFIG, MODEL_FILE, adapter_settings, weight_files
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError

Weighted = Sequence[tuple[Path, float]]
"""Models' folders, and how much each counts; the weights sum to 1."""

# Of a kind whose sum is not the sum of what they add to the weights, or not by one factor.
_NEITHER = {
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "layer_replication": None,
}
_DOWN, _UP = re.compile(r"\.lora_(embedding_)?A\b"), re.compile(r"\.lora_(embedding_)?B\b")


def merge_models(models: Weighted, folder: Path) -> None:
    """Writes the model whose weights are the weighted sum of the models' weights.

    Adapters on one base model stay adapters, of the sum of their ranks: what they add to the base
    is exactly the weighted sum of what each adds. Heads are summed too. A scale or a temperature
    is each model's own, and the merged one has none.

    Args:
        models: whole models of one architecture, or adapters of one base model (which is not
            checked here).

    Raises: InputError if some are whole and some are adapters, or their weights do not match.
    """
    adapted = [(path / ADAPTER_CONFIG).is_file() for path, _ in models]
    if len(set(adapted)) > 1:
        kinds = zip(models, adapted, strict=True)
        said = [f"{path}: {'adapters' if is_it else 'whole'}" for (path, _), is_it in kinds]
        said.append("scpo export --merge folds adapters into whole weights")
        raise InputError("whole models and adapters have no common weights", said)
    if adapted[0]:
        _merge_adapters(models, folder)
    else:
        _merge_whole(models, folder)


def summed(parts: Sequence[tuple[Mapping[str, Tensor], float]]) -> dict[str, Tensor]:
    """Weighted sums, in float32, by name. Raises: ValueError if names or shapes differ."""
    first = parts[0][0]
    for tensors, _ in parts[1:]:
        _check_alike(first, tensors)
    return {
        name: torch.stack([weight * tensors[name].float() for tensors, weight in parts]).sum(dim=0)
        for name in first
    }


def joined(parts: Sequence[tuple[Mapping[str, Tensor], float]]) -> dict[str, Tensor]:
    """One set of low-rank adapters of scale 1 that adds what the given ones add, weighted.

    B_1 A_1 w_1 + B_2 A_2 w_2 is the product of [B_1 B_2] and [w_1 A_1; w_2 A_2].

    Args:
        parts: of each model its A (rank, in) and B (out, rank), and its weight times its scale.

    Raises: ValueError if names differ.
    """
    names = [tensors.keys() for tensors, _ in parts]
    if any(each != names[0] for each in names):
        raise ValueError("adapters of different layers")
    return {
        name: torch.cat([weight * t[name].float() for t, weight in parts])
        if _DOWN.search(name)
        else torch.cat([t[name].float() for t, _ in parts], dim=1)
        for name in names[0]
    }


@torch.no_grad()
def summed_model(models: Iterable[tuple[RewardModel, float]]) -> RewardModel:
    """The first model with the weighted sum of all models' weights; two are in memory at a time.

    Raises: ValueError if weights differ in name or shape.
    """
    first: RewardModel | None = None
    total: dict[str, Tensor] = {}
    for model, weight in models:
        weights = {name: weight * w.double() for name, w in model.network.state_dict().items()}
        if first is None:
            first, total = model, weights
            continue
        _check_alike(total, weights)
        for name, part in weights.items():
            total[name] += part
    if first is None:
        raise ValueError("no model to sum")
    own = first.network.state_dict()
    for name, weights_of_all in total.items():
        # What is counted and not weighed (places of tokens) is the same in all.
        if own[name].is_floating_point():
            own[name].copy_(weights_of_all.to(own[name].dtype))
    return first


def _check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    differing = one.keys() ^ other.keys()
    differing |= {n for n in one.keys() & other.keys() if one[n].shape != other[n].shape}
    if differing:
        raise ValueError(f"weights differ in name or shape: {', '.join(sorted(differing)[:3])}")


def _merge_whole(models: Weighted, folder: Path) -> None:
    loaded = ((load_exported(path, device="cpu"), weight) for path, weight in models)
    try:
        merged = summed_model(loaded)
    except ValueError as error:
        raise _not_alike(models, error) from None
    save_reward_model(merged, folder)


def _merge_adapters(models: Weighted, folder: Path) -> None:
    settings = [adapter_settings(path) for path, _ in models]
    for (path, _), each in zip(models, settings, strict=True):
        _check_kind(path, each)
    read = [load_file(weight_files(path)[0]) for path, _ in models]
    low_rank = [{n for n in tensors if _DOWN.search(n) or _UP.search(n)} for tensors in read]
    scales = [each["lora_alpha"] / each["r"] for each in settings]
    try:
        merged = joined(
            [
                ({n: tensors[n] for n in names}, weight * scale)
                for tensors, names, (_, weight), scale in zip(
                    read, low_rank, models, scales, strict=True
                )
            ]
        ) | summed(
            [
                ({n: t for n, t in tensors.items() if n not in names}, weight)
                for tensors, names, (_, weight) in zip(read, low_rank, models, strict=True)
            ]
        )
    except ValueError as error:
        raise _not_alike(models, error) from None
    first, rank = models[0][0], sum(each["r"] for each in settings)
    # What says how texts are read, and no scale.
    for file in (first / MODEL_FILE, *first.glob("*token*"), *first.glob("*.jinja")):
        shutil.copy(file, folder)
    document = settings[0] | {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(document, indent=2) + "\n")
    contiguous = {name: tensor.contiguous() for name, tensor in merged.items()}
    save_file(contiguous, folder / weight_files(first)[0].name, metadata={"format": "pt"})


def _check_kind(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises: InputError for adapters that are not plain low-rank ones of one scale."""
    kind = settings.get("peft_type")
    odd = [n for n, plain in _NEITHER.items() if (settings.get(n) or plain) != plain]
    if kind != "LORA" or odd:
        said = f"{kind}" if kind != "LORA" else ", ".join(odd)
        raise InputError(
            f"{path}: adapters that cannot be merged by weight ({said})",
            ["scpo export --merge folds them into whole weights"],
        )


def _not_alike(models: Weighted, error: ValueError) -> InputError:
    paths = " and ".join(str(path) for path, _ in models)
    return InputError(f"{paths}: cannot be merged", [str(error)])
