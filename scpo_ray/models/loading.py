"""From a model's folder to a reward model: what is read, what is drawn, and what is refused."""

import math
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scpo_ray.models.adapters import (
    DEFAULT,
    add_adapters,
    brought_weights,
    check_adapters,
    load_adapters,
)
from scpo_ray.models.files import (
    ADAPTER_CONFIG,
    resolve_model_dir,
    resolved_base,
    weight_shapes,
)
from scpo_ray.models.heads import (
    check_all_read,
    check_head,
    draw_head,
    has_head,
    head_of,
    renamed_head,
)
from scpo_ray.models.packing import fit_for_rows, fit_to_read_alone
from scpo_ray.models.pickles import conversion_record
from scpo_ray.models.precision import (
    DTYPES,
    check_can_compute,
    in_4_bits,
    keep_exact,
    keep_gradients,
    num_in_4_bits,
    stored_bytes,
    with_dtype,
)
from scpo_ray.models.reading import check_reading
from scpo_ray.models.rendering import Renderer, quiet_transformers, reasons
from scpo_ray.models.reward_model import RewardModel, free_bytes
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig

Divided = Mapping[str, Any] | None
"""DeepSpeed's settings with ZeRO 3 where it divides weights as they are read."""

SavedAdapters = tuple[Path, ModelConfig]
"""A model's folder of adapters and its section of the settings."""


def load_reward_model(
    folder: Path,
    config: ModelConfig,
    renderer: Renderer,
    *,
    device: str,
    seed: int,
    divided: Divided = None,
    cache: Path | None = None,
) -> RewardModel:
    """The network in `folder` with its score head, in evaluation mode.

    Its weights are of `config.dtype`, adapters and the score head float32. With `config.lora`
    these two are what can be trained. `seed` decides a new head's and new adapters' first
    weights; torch's own random stream is left as it was.
    `cache` is as in `resolve_model_dir`, for the model that saved adapters belong to.

    Args:
        divided: DeepSpeed's settings with ZeRO 3, whose workers are already joined and all call
            this alike: each weight is divided among them as it is read, so that nobody holds the
            network whole. It computes nothing before DeepSpeed has been started on it: what it
            computes is left to `check_computes`.

    Raises: InputError if the device or the model lacks the dtype or the attention asked for, if
    the model has no single-score head and `config.new_head` is off, if weights are missing, left
    over, of another shape or unreadable, or if padding would change a reward.
    """
    config = with_dtype(config, device)
    _check_device(config, device)
    with drawn_by(seed):
        missing: list[str] = []
        if (folder / ADAPTER_CONFIG).is_file():
            base_dir, base = resolved_base(folder, config, cache)
            adapters = {DEFAULT: (folder, config)}
            network = _load_with_adapters(adapters, base_dir, base, device, divided)
        else:
            outline = _outline(folder, config)
            network, missing = _load_network(folder, config, outline, device, divided)
        _check_positions(network, config)
        if config.lora is not None:
            network = add_adapters(network, config.lora, missing)
    if divided is not None:
        return _on_device(network, config, renderer, device)
    return _checked(network, config, renderer, device)


def load_adapted_models(
    saved: Mapping[str, SavedAdapters], base: ModelConfig, renderer: Renderer, *, device: str
) -> RewardModel:
    """One network with the adapters of several models on one base model; the first is active.

    Args:
        saved: what adapters are called in the network -> where they are.
        base: the base model's section, with the layers and the maximum length of all.

    Raises: InputError as `load_reward_model`, of each of them.
    """
    base = with_dtype(base, device)
    _check_device(base, device)
    with drawn_by(0):
        network = _load_with_adapters(saved, resolve_model_dir(base), base, device, None)
    _check_positions(network, base)
    return _checked(network, base, renderer, device)


def _checked(network: Any, config: ModelConfig, renderer: Renderer, device: str) -> RewardModel:
    model = _on_device(network, config, renderer, device)
    check_computes(model, config)
    in_rows = fit_for_rows(model.scored)
    only_read = fit_to_read_alone(model.scored, in_rows=in_rows)
    return replace(model, in_rows=in_rows, only_read=only_read)


def _on_device(network: Any, config: ModelConfig, renderer: Renderer, device: str) -> RewardModel:
    return RewardModel(network.eval().to(device), renderer, device, config.batch_tokens(device))


@contextmanager
def _dividing(settings: Mapping[str, Any], config: ModelConfig) -> Iterator[None]:
    """Within, transformers divides by DeepSpeed's ZeRO 3 what it reads."""
    from transformers.integrations import HfDeepSpeedConfig

    halved = {"enabled": config.dtype == "bfloat16"}
    # The library holds it weakly: it ends with this block.
    in_force = HfDeepSpeedConfig({**settings, "bf16": halved})
    try:
        yield
    finally:
        del in_force


def check_computes(model: RewardModel, config: ModelConfig) -> None:
    """Raises: InputError if padding would change a reward, or the dtype is none for this model."""
    was_training = model.network.training
    model.network.eval()
    try:
        check_reading(model.scored)
    except InputError as error:
        raise InputError(f"model.path = {config.path}: {error.title}", error.problems) from None
    except RuntimeError as error:
        if config.dtype == "float32" or isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"model.dtype = {config.dtype}: {config.path} cannot compute in it", reasons(error)
        ) from None
    finally:
        model.network.train(was_training)


def _check_device(config: ModelConfig, device: str) -> None:
    """Raises: InputError if the device lacks the dtype, or what the attention needs."""
    check_can_compute(config, device)
    if config.attention.startswith("flash") and (device == "cpu" or config.dtype == "float32"):
        raise InputError(
            f"model.attention = {config.attention}: needs a GPU and model.dtype = bfloat16, got "
            f"{device} and {config.dtype}"
        )


def check_recomputes(folder: Path, config: ModelConfig, cache: Path | None = None) -> None:
    """Raises: InputError if the model cannot compute activations again in the backward pass."""
    if (folder / ADAPTER_CONFIG).is_file():
        folder, config = resolved_base(folder, config, cache)
    outline = _outline(folder, config)
    try:
        outline.activation_checkpointing_enable()
    except ValueError as error:
        raise InputError(
            f"train.gradient_checkpointing = true: the model of {config.path} cannot",
            reasons(error),
        ) from None


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """What transformers and peft draw from torch's global stream comes from `seed`; the stream
    goes on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _outline(folder: Path, config: ModelConfig) -> Any:
    """The network that config.json describes, with one score and without weights."""
    from transformers import AutoConfig

    quiet_transformers()
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        settings.num_labels = 1
        # Otherwise inference pipelines put a sigmoid over the reward.
        settings.problem_type = "regression"
        num_layers = settings.get_text_config().num_hidden_layers
        network = _without_weights(settings, config)
    except Exception as error:  # the library raises whatever its parsers raise
        raise InputError(
            f"model.path = {config.path}: config.json cannot be used", reasons(error)
        ) from None
    if config.num_layers is not None and config.num_layers > num_layers:
        raise InputError(
            f"model.num_layers = {config.num_layers}: {config.path} has {num_layers} layers"
        )
    if config.attention != "auto":
        try:
            network = _without_weights(settings, config, attn_implementation=config.attention)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"model.attention = {config.attention}: {config.path} cannot use it here",
                reasons(error),
            ) from None
    return network


def _without_weights(settings: Any, config: ModelConfig, **how: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(
            settings, trust_remote_code=config.trust_remote_code, **how
        )


def network_without_weights(folder: Path, config: ModelConfig, cache: Path | None = None) -> Any:
    """The network as it would be loaded and trained, on torch's meta device: sizes and no values.

    `cache` is as in `resolve_model_dir`, for the model that saved adapters belong to.

    Raises: InputError if config.json or the attention cannot be used.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        base_dir, base = resolved_base(folder, config, cache)
        network = network_without_weights(base_dir, base)
        final, converted = head_of(network).final, bool(conversion_record(base_dir))
        return load_adapters(network, folder, config, final, DEFAULT, converted=converted)
    settings = _outline(folder, config).config
    if config.num_layers is not None:
        settings.get_text_config().num_hidden_layers = config.num_layers
    how = {"dtype": DTYPES[config.dtype], "attn_implementation": settings._attn_implementation}
    network = _without_weights(settings, config, **how)
    return network if config.lora is None else add_adapters(network, config.lora, [])


def check_weights_fit(
    shapes: Mapping[str, tuple[int, ...]], num_quantizable: int, config: ModelConfig, free: int
) -> None:
    """Raises: InputError if weights of these shapes are more than the `free` bytes there are."""
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    needed = stored_bytes(num_weights, num_quantizable, config)
    if needed > free:
        raise InputError(
            f"model.path = {config.path}: its weights need {needed / 10**9:.1f} GB in "
            f"{config.dtype}, and {free / 10**9:.1f} GB are free",
            ["model.dtype = bfloat16 halves float32; ZeRO 3 divides a model that is trained"],
        )


def _load_network(
    folder: Path,
    config: ModelConfig,
    outline: Any,
    device: str,
    divided: Divided,
    brought: Set[str] = frozenset(),
) -> tuple[Any, list[str]]:
    """The network, and the names of the weights that are drawn and not read.

    `brought`: weights that come with the adapters that are loaded next.
    """
    head, settings = head_of(outline), outline.config
    architecture = (settings.architectures or ["it"])[0]
    shapes = weight_shapes(folder)
    if divided is None:
        check_weights_fit(shapes, num_in_4_bits(outline, head), config, free_bytes(device))
    check_head(head, shapes, architecture, config, head_follows=f"{head.final}.weight" in brought)
    renames = renamed_head(head, shapes)
    if config.num_layers is not None:
        settings.get_text_config().num_hidden_layers = config.num_layers
    how = in_4_bits(outline, head, device) if config.dtype == "nf4" else {}
    network, info = _read(folder, config, settings, renames, divided, how)
    check_all_read(head, info, config, brought=brought)
    if renames:
        # Or the library would save the weights under their old names.
        network._weight_conversions = None
    keep_gradients(network)
    keep_exact(network, head, folder, renames)
    drawn = set(info["missing_keys"])
    if config.new_head:
        drawn |= set(draw_head(network, head))
    return network, sorted(drawn)


def _read(
    folder: Path,
    config: ModelConfig,
    settings: Any,
    renames: dict[str, str],
    divided: Divided,
    how: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The network as transformers reads it, `how` beside the rest, and what it tells of it."""
    from transformers import AutoModelForSequenceClassification

    def read(**more: Any) -> tuple[Any, dict[str, Any]]:
        network, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=settings,
            dtype=DTYPES[config.dtype],
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            key_mapping=renames or None,
            attn_implementation=settings._attn_implementation,
            # They are told with their names, and a head that is replaced may have more rows.
            ignore_mismatched_sizes=True,
            **how,
            **more,
        )
        return network, info

    try:
        if divided is None:
            return read()
        # Of a reading that divides, the library does not tell what was left over.
        _, info = read(device_map="meta")
        with _dividing(divided, config):
            return read()[0], info
    except Exception as error:
        raise InputError(
            f"model.path = {config.path}: the weights cannot be loaded", reasons(error)
        ) from None


def _load_with_adapters(
    saved: Mapping[str, SavedAdapters],
    base_dir: Path,
    base: ModelConfig,
    device: str,
    divided: Divided,
) -> Any:
    """A base model under saved adapters, the adapters and the head trainable.

    Args:
        saved: what adapters are called in the network -> where they are.
    """
    for adapters in saved.values():
        check_adapters(*adapters)
    outline = _outline(base_dir, base)
    final = head_of(outline).final
    # What one of them does not bring is the base model's, and must be in its files.
    brought = set.intersection(*(brought_weights(folder) for folder, _ in saved.values()))
    if f"{final}.weight" not in brought and not has_head(weight_shapes(base_dir), final):
        paths = ", ".join(config.path for _, config in saved.values())
        raise InputError(
            f"model.path = {paths}: no score head, neither in the adapters nor in their base "
            f"model {base.path}, so it is not a reward model",
            ["merge the adapters into the base model; model.new_head trains a new head on that"],
        )
    network, _ = _load_network(base_dir, base, outline, device, divided, brought)
    converted = bool(conversion_record(base_dir))
    for name, (folder, config) in saved.items():
        network = load_adapters(network, folder, config, final, name, converted=converted)
    return network


def check_max_length(folder: Path, config: ModelConfig) -> None:
    """Raises: InputError if the network that config.json describes reads fewer tokens than
    `config.max_length`, or if config.json cannot be used; of adapters nothing is said, whose base
    model may be on the hub."""
    if not (folder / ADAPTER_CONFIG).is_file():
        _check_positions(_outline(folder, config), config)


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
