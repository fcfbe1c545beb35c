"""Low-rank adapters: put on a network, read whole, and folded into its weights."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from scpo_ray.models.files import ADAPTER_CONFIG, adapter_settings, weight_shapes
from scpo_ray.models.rendering import reasons
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError
from scpo_ray.settings.model import LoraConfig, ModelConfig

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."
DEFAULT = "default"
"""What the library calls the adapters of a network that has one model's."""


def add_adapters(network: Any, config: LoraConfig, missing: Sequence[str]) -> Any:
    """New adapters on a network; they and its head are what can be trained.

    Args:
        missing: weights that were drawn: they must be trained and saved whole, or a reload would
            draw them anew.

    Raises: InputError if the network has none of the layers that get adapters.
    """
    import peft

    # The library sees to heads named "classifier" and "score" by itself.
    drawn = sorted({_drawn_module(name) for name in missing} - {"classifier", "score"})
    settings = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        modules_to_save=drawn or None,
        exclude_modules=rf"(.*\.)?({'|'.join(map(re.escape, drawn))})(\..*)?" if drawn else None,
    )
    try:
        with _quiet_peft():
            network = peft.get_peft_model(network, settings)
    except ValueError as error:
        raise InputError(
            f"model.lora.target_modules = {config.target_modules}", reasons(error)
        ) from None
    log.info("adapters: %d of %d weights are trained", *network.get_nb_trainable_parameters())
    return network


def _drawn_module(name: str) -> str:
    """The part of the head, or the pooler in the backbone, that a drawn weight belongs to."""
    parts = name.split(".")
    return "pooler" if "pooler" in parts else parts[0]


def brought_weights(folder: Path) -> set[str]:
    """Names of the network's own weights that saved adapters bring whole, as a trained head."""
    return {name.removeprefix(_PREFIX) for name in weight_shapes(folder)}


def check_adapters(folder: Path, config: ModelConfig) -> None:
    """Raises: InputError if adapters are of a kind whose reward cannot be read here."""
    if config.lora is not None or config.new_head:
        setting = "model.new_head = true" if config.new_head else "model.lora"
        raise InputError(f"{setting}: {config.path} has adapters already; export it merged first")
    kind = str(adapter_settings(folder).get("peft_type"))
    if "PROMPT" in kind or kind in {"PREFIX_TUNING", "P_TUNING", "CPT"}:
        raise InputError(
            f"model.path = {config.path}: adapters of kind {kind} put tokens before the text, "
            "which is not supported",
            ["adapters that change weights are (LORA and its kin)"],
        )


def load_adapters(
    network: Any,
    folder: Path,
    config: ModelConfig,
    final: str,
    name: str = DEFAULT,
    *,
    converted: bool,
) -> Any:
    """The network under saved adapters, the adapters and the head trainable.

    Args:
        name: what the adapters are called in the network, which may have others already.
        converted: the network's own weights are read from what was made of pickles. Adapters that
            are saved from it name that copy, which loads without reading a pickle again.

    Raises: InputError if some adapters are missing from the file or more are there.
    """
    import peft

    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.task_type = peft.TaskType.SEQ_CLS
        settings.inference_mode = False
        if converted:
            settings.base_model_name_or_path = network.name_or_path
            settings.revision = None
        with _quiet_peft():
            if isinstance(network, peft.PeftModel):
                network.add_adapter(name, settings)
                network.load_adapter(folder, name, is_trainable=True)
            else:
                network = peft.PeftModel.from_pretrained(
                    network, folder, name, config=settings, is_trainable=True
                )
            expected = peft.get_peft_model_state_dict(
                network, adapter_name=name, save_embedding_layers=False
            )
    except Exception as error:  # the library raises whatever its parsers raise
        raise InputError(
            f"model.path = {config.path}: the adapters cannot be loaded", reasons(error)
        ) from None
    _check_all_there(network, folder, config, expected, name, final)
    return network


def _check_all_there(
    network: Any, folder: Path, config: ModelConfig, expected: Any, name: str, final: str
) -> None:
    """Raises: InputError if the adapters called `name` are not all in the file, or more are."""
    found = set(weight_shapes(folder))
    # A head that the base model has and the adapters leave as it is.
    part = f"{_PREFIX}{final.partition('.')[0]}."
    missing = [n for n in expected if n not in found and not n.startswith(part)]
    if config.num_layers is not None:
        found = {name for name in found if not _is_above(name, config.num_layers)}
    inserted = rf"\.({name}|modules_to_save)\b"
    known = {re.sub(inserted, "", weight) for weight in network.state_dict()}
    known |= {weight.replace(".base_layer.", ".") for weight in known}
    more = [weight for weight in found if weight not in expected and weight not in known]
    for names, said in ((missing, "are missing from"), (more, "fit no layer of the model, in")):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (
                f" (+{len(names) - 5} more)" if names[5:] else ""
            )
            raise InputError(
                f"model.path = {config.path}: adapters {said} {folder.name}",
                [shown, f"{ADAPTER_CONFIG} says which layers have adapters"],
            )


def _is_above(name: str, num_layers: int) -> bool:
    number = re.search(r"\.(\d+)\.", name)
    return number is not None and int(number[1]) >= num_layers


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a name that is going away; nothing a user can mend.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # GPT-2's layers are turned about; the library sees to it.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        # Here an error, with the names.
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        yield


def merged_adapters(model: RewardModel) -> RewardModel:
    """The same rewards without adapters: folded into the weights, those in 4 bits into what these
    are computed with. Raises: InputError if none."""
    network: Any = model.network
    if not hasattr(network, "merge_and_unload"):
        raise InputError("the model has no adapters to merge")
    if model.dtype_name == "nf4":
        network = _over_whole_weights(network)
    return replace(model, network=network.merge_and_unload().eval())


def _over_whole_weights(network: Any) -> Any:
    """The network's adapters over its base, no longer in 4 bits: to fold into 4 bits would round
    what was learned away."""
    import peft

    settings = network.peft_config[DEFAULT]
    weights = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    with _quiet_peft():
        network = peft.get_peft_model(network.unload().dequantize(), settings)
        peft.set_peft_model_state_dict(network, weights)
    return network
