"""Several models that are adapters on one base model: one network gives the rewards of all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scpo_ray.models.loading import SavedAdapters, load_adapted_models
from scpo_ray.models.reading import allowed_error, filler_id, pad_texts, two_short_texts
from scpo_ray.models.rendering import Renderer
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.scoring import length_batches, score_tokens
from scpo_ray.records import Tokens
from scpo_ray.settings.model import ModelConfig


@dataclass(frozen=True)
class AdaptedModels:
    """The models' shared network, and what each one's adapters are called in it.

    `in_one_pass`: whether the rows of one forward pass may be of several models. Some layers know
    no rows (DeBERTa projects its relative positions, mixtures of experts see single tokens), and
    some heads are more than one layer: there each model has passes of its own. So has it where
    one pass cannot hold all rows: they are then no more than its share of several.
    """

    model: RewardModel
    names: Mapping[str, str]
    in_one_pass: bool

    def rewards(
        self, tokens: Tokens, text_ids: NDArray[np.int64], models: Sequence[str]
    ) -> NDArray[np.float32]:
        """(R,) float32 rewards, each of the text in `text_ids` (R,) by the model named beside it.

        Raises: InputError as `RewardModel.check_tokens`.
        """
        adapters = np.array([self.names[model] for model in models])
        rewards = np.zeros(len(text_ids), dtype=np.float32)
        # Rows of several adapters are padded: those of a row without padding have no place of
        # their own in a layer's input.
        together = replace(self.model, in_rows=False)
        (rows, *more) = length_batches(
            tokens.lengths[text_ids], together.batch_tokens, in_rows=False
        )
        if more or not self.in_one_pass:
            for name in dict.fromkeys(adapters.tolist()):
                mine = np.flatnonzero(adapters == name)
                use_adapters(self.model.network, name)
                rewards[mine] = score_tokens(self.model, tokens, text_ids=text_ids[mine])
            return rewards
        together.check_tokens(tokens)
        batch = together.batch(tokens, text_ids[rows])
        with torch.no_grad(), adapters_by_row(together.network, adapters[rows].tolist()):
            rewards[rows] = together.rewards(batch).cpu().numpy()
        return rewards


def load_adapted(
    saved: Mapping[str, SavedAdapters], base: ModelConfig, renderer: Renderer, *, device: str
) -> AdaptedModels:
    """The models on one base. Raises: InputError as `load_adapted_models`."""
    # The library's names are parts of weights' names, where a culture's name may not stand.
    names = {model: f"adapters{number:04d}" for number, model in enumerate(saved)}
    by_name = {names[model]: adapters for model, adapters in saved.items()}
    model = load_adapted_models(by_name, base, renderer, device=device)
    return AdaptedModels(model, names, _mixes(model, list(by_name)))


def use_adapters(network: Any, name: str) -> None:
    """Every row of the next forward passes is that model's."""
    network.set_adapter(name, inference_mode=True)


@contextmanager
def adapters_by_row(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within, row r of a batch is computed with the adapters (and head) called `names[r]`."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    def inject(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": list(names)}

    layers = [m for m in network.modules() if isinstance(m, (LoraLayer, AuxiliaryTrainingWrapper))]
    hooks = [layer.register_forward_pre_hook(inject, with_kwargs=True) for layer in layers]
    # The library's own way to do this leaves them there after an error.
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _mixes(model: RewardModel, names: Sequence[str]) -> bool:
    """Whether rows of several adapters in one pass get the rewards that each gets alone."""
    model = replace(model, in_rows=False)
    plain = model.scored.plain
    tokens = two_short_texts(plain)
    if tokens is None or len(names) < 2:
        return False
    batch = pad_texts(tokens, np.array([0, 1, 0, 1]), filler_id(plain), model.device)
    alone: list[Tensor] = []
    for name in (names[0], names[-1]):
        use_adapters(model.network, name)
        alone.append(model.rewards(batch)[:2])
    try:
        with adapters_by_row(model.network, [names[0], names[0], names[-1], names[-1]]):
            together = model.rewards(batch)
    except (TypeError, ValueError, RuntimeError):
        return False
    expected = torch.cat(alone)
    return bool((together - expected).abs().max() <= allowed_error(expected))
