"""What a worker needs of memory at the peak of a step: a pure function of sizes and settings."""

from collections.abc import Mapping
from typing import Any

from scpo_ray.models.shapes import NetworkShape
from scpo_ray.records import InputError, MemoryEstimate
from scpo_ray.settings.train import TrainConfig
from scpo_ray.training.deepspeed_settings import deepspeed_settings

_MASTER, _MOMENTS = 4, 8
"""Bytes of a trained weight's float32 value, and of AdamW's two moments of it."""

# DeepSpeed's own, where the user's JSON says nothing: weights in a bucket of gradients, gathered
# weights that may stay, and those that are gathered ahead at once.
_BUCKET, _LIVE, _AHEAD = 500_000_000, 1_000_000_000, 50_000_000


def estimate_memory(
    shape: NetworkShape, config: TrainConfig, *, num_workers: int, device: str
) -> MemoryEstimate:
    """The memory of each of `num_workers` workers that train a network of this shape.

    Raises: InputError if the user's DeepSpeed JSON cannot be used.
    """
    stage, workers = config.zero_stage, num_workers
    # Adapters and the score head over a frozen base are float32 whatever it is.
    trained_bytes = shape.weight_bytes if shape.frozen == 0 else _MASTER
    trained = shape.trained * trained_bytes
    weights = shape.frozen_bytes + trained
    master = _MASTER * shape.trained
    optimizer = _MOMENTS * shape.trained
    gradients, buffers, gathered = trained, 0, 0
    if config.engine == "deepspeed":
        zero = deepspeed_settings(config)["zero_optimization"]
        bucket = min(trained, trained_bytes * _number(zero, "reduce_bucket_size", _BUCKET))
        buffers = bucket
        if stage:
            optimizer = (master + optimizer) // workers
            gradients = {1: trained + master // workers, 2: 2 * master // workers}.get(
                stage, master // workers
            )
        if stage == 2:
            buffers = 2 * bucket
        if stage == 3:
            live = shape.weight_bytes * _number(zero, "stage3_max_live_parameters", _LIVE)
            buffers = min(weights, live) + 3 * bucket
            # What is gathered ahead lies in one piece until each weight has been copied out of it.
            ahead = shape.weight_bytes * _number(zero, "stage3_prefetch_bucket_size", _AHEAD)
            gathered = min(weights, live) + min(weights, ahead)
            weights //= workers
    elif device != "cpu":
        # AdamW makes its new values for all weights at once.
        buffers = trained
    activations = _activations(shape, config)
    if activations is not None:
        activations += gathered
    offloaded = optimizer if config.offload_optimizer else 0
    on_gpu = device != "cpu"
    loading = _MASTER * shape.largest if stage == 3 else weights
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer - offloaded if on_gpu else optimizer,
        buffers=buffers,
        activations=activations,
        host=loading + offloaded if on_gpu else 0,
    )


def check_room(estimate: MemoryEstimate, free: int, device: str) -> None:
    """Raises: InputError if what stays between passes is more than there is on the device."""
    needed = estimate.weights + estimate.gradients + estimate.optimizer
    if needed <= free:
        return
    parts = (
        ("weights", estimate.weights),
        ("gradients", estimate.gradients),
        ("optimizer", estimate.optimizer),
    )
    raise InputError(
        f"the model cannot be trained here: a worker needs {needed / 10**9:.1f} GB, and {device} "
        f"has {free / 10**9:.1f} GB free",
        [
            ", ".join(f"{name} {size / 10**9:.1f} GB" for name, size in parts)
            + ", activations beside them",
            "model.lora and model.dtype = bfloat16 need less; train.engine = deepspeed with "
            "train.zero_stage divides among train.num_workers",
        ],
    )


def _activations(shape: NetworkShape, config: TrainConfig) -> int | None:
    if shape.kept_bytes is None or not config.gradient_checkpointing:
        return shape.kept_bytes
    # What passes between layers, and one layer's own while it is computed again.
    return shape.between_bytes + shape.kept_bytes // shape.num_layers


def _number(zero: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = zero.get(name, otherwise)
    return int(value) if isinstance(value, int | float) else otherwise
