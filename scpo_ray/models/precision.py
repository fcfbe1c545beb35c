"""What a model's weights are kept in and computed with, and the head that is never rounded."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from scpo_ray.models.files import ADAPTER_CONFIG, weight_files
from scpo_ray.models.heads import Head
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "nf4": torch.bfloat16}
"""Of `model.dtype`, what is computed in."""

_NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: with the scale of its 64, a byte, and of their 256, four."""


def with_dtype(config: ModelConfig, device: str) -> ModelConfig:
    """The settings with `dtype` decided for the device.

    "auto" is bfloat16 for a base that stays as it is under adapters on a GPU that has it. On a
    CPU it is float32, whatever the processor: what is stored there serves every other one.

    Args:
        device: as in settings or in torch.
    """
    if config.dtype != "auto":
        return config
    has_gpu = device != "cpu" and torch.cuda.is_available()
    halved = config.lora is not None and has_gpu and _gpu_without_bfloat16() is None
    return config.model_copy(update={"dtype": "bfloat16" if halved else "float32"})


def check_bfloat16(device: str, setting: str) -> None:
    """Raises: InputError if the device is a GPU that cannot compute in bfloat16."""
    lacking = _gpu_without_bfloat16() if device.startswith("cuda") else None
    if lacking is not None:
        raise InputError(
            f"{setting}: {lacking} has no bf16", ["use float32 (train.precision fp32)"]
        )


def check_can_compute(config: ModelConfig, device: str) -> None:
    """Raises: InputError if the device, or what is installed, lacks the decided dtype."""
    if config.dtype == "float32":
        return
    setting = f"model.dtype = {config.dtype}"
    check_bfloat16(device, setting)
    if config.dtype != "nf4":
        return
    lacking = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if lacking:
        raise InputError(
            f"{setting}: {' and '.join(lacking)} not installed", ['pip install -e ".[nf4]"']
        )
    from bitsandbytes import supported_torch_devices

    kind = device.partition(":")[0]
    if kind not in supported_torch_devices:
        raise InputError(f"{setting}: bitsandbytes cannot compute on {kind} here")


def _gpu_without_bfloat16() -> str | None:
    """The name of this process's GPU if it is one that computes no bfloat16."""
    if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return torch.cuda.get_device_name()


def check_dtype(folder: Path, config: ModelConfig, device: str) -> None:
    """Whether a network can be trained in the dtype asked for, on this device.

    Raises: InputError as `check_can_compute`, or if weights that are trained would be kept in
    bfloat16 or less: its 8 bits lose an update of a thousandth of a weight.
    """
    decided = with_dtype(config, device)
    check_can_compute(decided, device)
    if decided.dtype == "float32":
        return
    if config.lora is None and not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"model.dtype = {decided.dtype}: all weights are trained, and small updates would be "
            "lost",
            ["set model.lora; or train.precision = bf16, which computes in bf16 alone"],
        )


def exact_parts(network: nn.Module, head: Head) -> list[str]:
    """What is never rounded: all that stands above the backbone, and poolers within it."""
    poolers = (n for n, _ in network.named_modules() if n.rpartition(".")[2] == "pooler")
    return list(dict.fromkeys([*head.parts, *poolers]))


def in_4_bits(network: nn.Module, head: Head, device: str) -> dict[str, Any]:
    """What transformers is told to read a network's linear layers in 4 bits, on the device.

    Args:
        network: without weights.
    """
    from transformers import BitsAndBytesConfig

    exact = [f"(?:{re.escape(part)})" for part in exact_parts(network, head)]
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES["nf4"],
        llm_int8_skip_modules=exact,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def keep_gradients(network: nn.Module) -> None:
    """Linear layers in 4 bits stay laid out as they are read: on CPUs with bf16 of their own
    bitsandbytes turns them about when a network is scored, and no gradient passes after that."""
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def num_in_4_bits(network: nn.Module, head: Head) -> int:
    """How many of a network's weights `in_4_bits` is about."""
    exact = tuple(f"{part}." for part in exact_parts(network, head))
    return sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and not f"{name}.".startswith(exact)
    )


def stored_bytes(num_weights: int, num_quantizable: int, config: ModelConfig) -> int:
    """Bytes of so many weights in the decided dtype, some of which can be in 4 bits."""
    in_few = num_quantizable if config.dtype == "nf4" else 0
    return round((num_weights - in_few) * DTYPES[config.dtype].itemsize + in_few * _NF4_BYTES)


class ExactLinear(nn.Linear):
    """A linear layer that computes in float32 whatever comes in, within autocast too.

    Rewards are large and margins small: in bfloat16 a quarter of close pairs would be ties.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


@torch.no_grad()
def keep_exact(network: nn.Module, head: Head, folder: Path, renames: Mapping[str, str]) -> None:
    """Makes all that stands above a network's backbone, and poolers, compute in float32.

    The weights are those in the files of `folder`, unrounded; what these lack becomes float32 as
    it is. Weights that are divided among workers are whole on each of them afterwards.

    Args:
        renames: pattern of names in the files -> name in the network.
    """
    rounded: dict[str, tuple[nn.Module, str]] = {}
    for part in exact_parts(network, head):
        for path, module in network.get_submodule(part).named_modules(prefix=part):
            if type(module) is nn.Linear:
                module.__class__ = ExactLinear
            for name, weight in module.named_parameters(recurse=False):
                if weight.dtype != torch.float32 or hasattr(weight, "ds_id"):
                    rounded[f"{path}.{name}"] = (module, name)
    files = _weights_in(folder, renames) if rounded else {}
    for full_name, (module, name) in rounded.items():
        old: Any = getattr(module, name)
        whole = _whole(old)
        file = files.get(full_name) or files.get(full_name.removeprefix(f"{head.backbone}."))
        if file is not None:
            with safe_open(file[0], framework="pt") as opened:
                found = opened.get_tensor(file[1])
            # A head that is replaced may have more rows.
            whole = found if found.shape == whole.shape else whole
        setattr(module, name, nn.Parameter(whole.float().to(old.device), old.requires_grad))


def _whole(weight: Any) -> Tensor:
    """A weight's values, gathered where it is divided among workers."""
    if not hasattr(weight, "ds_id"):
        return weight.detach()  # type: ignore[no-any-return]
    weight.all_gather()
    whole: Tensor = weight.detach().clone()
    weight.partition()
    return whole


def _weights_in(folder: Path, renames: Mapping[str, str]) -> dict[str, tuple[Path, str]]:
    """Name in the network -> file and name in it."""
    weights = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                name = key
                for pattern, new in renames.items():
                    name = re.sub(pattern, new, name)
                weights[name] = (path, key)
    return weights
