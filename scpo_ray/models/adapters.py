"""Low-rank adapters: put on a network, and folded into its weights."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from scpo_ray.models.rendering import reasons
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.records import InputError
from scpo_ray.settings.model import LoraConfig

log = logging.getLogger(__name__)


def add_adapters(network: Any, config: LoraConfig, missing: Sequence[str]) -> Any:
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
        with quiet_peft():
            network = peft.get_peft_model(network, settings)
    except ValueError as error:
        raise InputError(
            f"model.lora.target_modules = {config.target_modules}", reasons(error)
        ) from None
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    log.info("adapters: %d of %d weights are trained", trained, total)
    return network


@contextmanager
def quiet_peft() -> Iterator[None]:
    # peft 0.21 asks transformers 5.23 by a name that is going away; nothing a user can mend.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def merged_adapters(model: RewardModel) -> RewardModel:
    """The same rewards without adapters: folded into the weights. Raises: InputError if none."""
    merge: Callable[[], nn.Module] | None = getattr(model.network, "merge_and_unload", None)
    if merge is None:
        raise InputError("the model has no adapters to merge")
    return replace(model, network=merge().eval())
