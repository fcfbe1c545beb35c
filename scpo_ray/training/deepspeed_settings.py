"""DeepSpeed's configuration: what follows from a run's settings, and what a user's JSON may add."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scpo_ray.records import InputError
from scpo_ray.settings.documents import MAX_CHARACTERS
from scpo_ray.settings.shown import without_secrets
from scpo_ray.settings.train import TrainConfig

_NEVER = 10**9
_ABSENT = object()


def deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's own configuration: what follows from ours, then the user's JSON.

    The JSON may say anything our settings do not, may repeat them, and may leave a value "auto".

    Raises: InputError if the file cannot be read, is not JSON or contradicts a setting.
    """
    ours = _following(config)
    defaults: dict[str, Any] = {
        # Otherwise its own kernels, which are compiled for minutes when a run starts.
        "optimizer.params.torch_adam": True,
        "zero_force_ds_cpu_optimizer": False,
        # Otherwise gradients are summed in bf16, and weights saved as ZeRO 3 has gathered them.
        "torch_autocast.lower_precision_safe_modules": [],
        "steps_per_print": _NEVER,
    }
    theirs: dict[str, Any] = {}
    if config.deepspeed_config is not None:
        theirs = dict(_flattened(_read_json(config.deepspeed_config), ""))
        _check_agreement(config.deepspeed_config, theirs, ours, defaults)
        theirs = {k: v for k, v in theirs.items() if v not in ("auto", {})}
    plain = {key: value for key, (value, _) in ours.items() if value is not _ABSENT}
    return _nested({**defaults, **theirs, **plain})


def _following(config: TrainConfig) -> dict[str, tuple[Any, str]]:
    """DeepSpeed's key -> its value (or `_ABSENT`: the key has no place here) and our setting."""
    bf16 = config.precision == "bf16"
    offload = "cpu" if config.offload_optimizer else "none"
    return {
        # Micro-batches are the plan's: the boundary of a step is set by hand.
        "train_batch_size": (_ABSENT, "train.batch_size"),
        "train_micro_batch_size_per_gpu": (1, "train.micro_batch_tokens"),
        "gradient_accumulation_steps": (1, "train.micro_batch_tokens"),
        "gradient_clipping": (config.max_grad_norm, "train.max_grad_norm"),
        "optimizer.type": ("AdamW", "the optimizer, which is always AdamW"),
        "optimizer.params.lr": (config.learning_rate, "train.learning_rate"),
        "optimizer.params.weight_decay": (config.weight_decay, "train.weight_decay"),
        "optimizer.params.betas": ([0.9, 0.999], "the optimizer's betas, 0.9 and 0.999"),
        "optimizer.params.eps": (1e-8, "the optimizer's eps, 1e-8"),
        "scheduler": (_ABSENT, "train.schedule"),
        "zero_optimization.stage": (config.zero_stage, "train.zero_stage"),
        "zero_optimization.offload_optimizer.device": (offload, "train.offload_optimizer"),
        "bf16.enabled": (False, "train.precision (bf16 is autocast here)"),
        "fp16.enabled": (False, "train.precision"),
        "torch_autocast.enabled": (bf16, "train.precision"),
        "torch_autocast.dtype": ("bfloat16", "train.precision"),
    }


def _check_agreement(
    path: Path,
    theirs: Mapping[str, Any],
    ours: Mapping[str, tuple[Any, str]],
    defaults: Mapping[str, Any],
) -> None:
    plain = [*defaults, *(k for k, (value, _) in ours.items() if value is not _ABSENT)]
    problems = []
    for key, value in theirs.items():
        if value in ("auto", {}):
            continue
        found = f"{key} = {json.dumps(value)}"
        if any(k.startswith(f"{key}.") for k in plain):
            problems.append(f"{found}: must be an object of settings")
            continue
        whole = next((k for k in plain if key.startswith(f"{k}.")), None)
        if whole is not None:
            problems.append(f"{found}: there are no settings below {whole}")
            continue
        ruled = next((k for k in ours if key == k or key.startswith(f"{k}.")), None)
        if ruled is None:
            continue
        expected, setting = ours[ruled]
        if expected is _ABSENT or value != expected:
            said = "is set" if expected is _ABSENT else f"is {json.dumps(expected)}"
            problems.append(f"{found}: contradicts {setting}; there it {said}")
    if problems:
        raise InputError(f"{path}: {len(problems)} keys contradict the run's settings", problems)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
        document = json.loads(text)
    except OSError as error:
        raise InputError(
            f"train.deepspeed_config = {path}: cannot be read", [error.strerror or str(error)]
        ) from None
    except RecursionError:
        raise InputError(f"train.deepspeed_config = {path}: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"train.deepspeed_config = {path}: not JSON", [str(error)]) from None
    if not isinstance(document, dict):
        raise InputError(f"train.deepspeed_config = {path}: must be an object of settings")
    if without_secrets(document) != document:
        hidden = [key for key, value in _flattened(without_secrets(document), "") if value == "***"]
        raise InputError(
            f"train.deepspeed_config = {path}: holds what looks like a secret",
            [f"{key}: DeepSpeed logs its settings; give it by the environment" for key in hidden],
        )
    return document


def _flattened(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        below = document
        for section in sections:
            below = below.setdefault(section, {})
        below[name] = value
    return document
