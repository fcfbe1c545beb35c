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

    `together`: how one forward pass computes texts of several models, the base model's share of
    it once for all: in one row without padding, or else padded. None where layers know no texts
    (DeBERTa projects its relative positions, mixtures of experts see single tokens) or the head is
    more than one layer: there each model has passes of its own.
    """

    model: RewardModel
    names: Mapping[str, str]
    together: RewardModel | None

    def rewards(
        self, tokens: Tokens, text_ids: NDArray[np.int64], models: Sequence[str]
    ) -> NDArray[np.float32]:
        """(R,) float32 rewards, each of the text in `text_ids` (R,) by the model named beside it.

        Raises: InputError as `RewardModel.check_tokens`.
        """
        adapters = np.array([self.names[model] for model in models])
        rewards = np.zeros(len(text_ids), dtype=np.float32)
        mixed, batches = self._passes(tokens.lengths[text_ids], adapters)
        if mixed is None:
            for name in dict.fromkeys(adapters.tolist()):
                mine = np.flatnonzero(adapters == name)
                use_adapters(self.model.network, name)
                rewards[mine] = score_tokens(self.model, tokens, text_ids=text_ids[mine])
            return rewards
        mixed.check_tokens(tokens)
        for batch in batches:
            # A model's texts stand side by side: its adapters multiply them all at once.
            rows = batch[np.argsort(adapters[batch], kind="stable")]
            texts = text_ids[rows]
            by_row = adapters_by_row(
                mixed.network, adapters[rows].tolist(), tokens.lengths[texts].tolist()
            )
            with torch.no_grad(), by_row:
                rewards[rows] = mixed.rewards(mixed.batch(tokens, texts)).cpu().numpy()
        return rewards

    def _passes(
        self, lengths: NDArray[np.int64], adapters: NDArray[np.str_]
    ) -> tuple[RewardModel | None, list[NDArray[np.int64]]]:
        """What computes texts of several models together, and the texts of each pass; None where
        each model has passes of its own."""
        mixed = self.together
        if mixed is None or len(set(adapters.tolist())) == 1:
            return None, []
        batches = list(length_batches(lengths, mixed.batch_tokens, in_rows=mixed.in_rows))
        # Padded, several passes are as many alone: there is nothing to share.
        return (None, []) if len(batches) > 1 and not mixed.in_rows else (mixed, batches)


def load_adapted(
    saved: Mapping[str, SavedAdapters], base: ModelConfig, renderer: Renderer, *, device: str
) -> AdaptedModels:
    """The models on one base. Raises: InputError as `load_adapted_models`."""
    # The library's names are parts of weights' names, where a culture's name may not stand.
    names = {model: f"adapters{number:04d}" for number, model in enumerate(saved)}
    by_name = {names[model]: adapters for model, adapters in saved.items()}
    model = load_adapted_models(by_name, base, renderer, device=device)
    return AdaptedModels(model, names, _together(model, list(by_name)))


def use_adapters(network: Any, name: str) -> None:
    """Every row of the next forward passes is that model's."""
    network.set_adapter(name, inference_mode=True)


@contextmanager
def adapters_by_row(
    network: nn.Module, names: Sequence[str], lengths: Sequence[int]
) -> Iterator[None]:
    """Within, text r of a batch is computed with the adapters (and head) called `names[r]`.

    Args:
        lengths: tokens of each text, for layers that get the texts in one row without padding;
            in such a batch texts of one name stand side by side.

    A layer that cannot do so raises ValueError in the pass.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    spans, row = _spans(names, lengths), (1, sum(lengths))

    def inject(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        in_row = args[0].shape[:2] == row
        return args, {**kwargs, "adapter_names": ["__base__"] if in_row else list(names)}

    def add(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        if args[0].shape[:2] == row:
            _add_adapters(layer, args[0], output, spans)

    layers = [m for m in network.modules() if isinstance(m, (LoraLayer, AuxiliaryTrainingWrapper))]
    hooks = [layer.register_forward_pre_hook(inject, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(add, with_kwargs=True) for layer in layers]
    # The library's own way to do this leaves them there after an error.
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _spans(names: Sequence[str], lengths: Sequence[int]) -> list[tuple[str, slice]]:
    """Which tokens of a row are computed with whose adapters, neighbours of one name together."""
    spans: list[tuple[str, slice]] = []
    end = 0
    for name, length in zip(names, lengths, strict=True):
        begin, end = end, end + length
        if spans and spans[-1][0] == name:
            begin = spans.pop()[1].start
        spans.append((name, slice(begin, end)))
    return spans


def _add_adapters(
    layer: Any, states: Tensor, output: Tensor, spans: Sequence[tuple[str, slice]]
) -> None:
    """Adds to a base layer's (1, N, out) output of a row what its tokens' adapters add.

    Raises: ValueError if the layer's adapters are not plain low-rank ones of a linear layer.
    """
    from peft.tuners.lora import Linear

    if not isinstance(layer, Linear) or layer.lora_variant:
        raise ValueError(f"{type(layer).__name__}: adapters that know no row without padding")
    for name, span in spans:
        if name in layer.lora_A:
            down, up = layer.lora_A[name], layer.lora_B[name]
            added = up(down(states[:, span].to(down.weight.dtype))) * layer.scaling[name]
            output[:, span] += added.to(output.dtype)


def _together(model: RewardModel, names: Sequence[str]) -> RewardModel | None:
    """The first of the ways to compute texts of several models in one pass that gives each what
    its model gives alone."""
    if len(names) < 2:
        return None
    # Which model a token is of, layers are told by where it stands among all.
    model = replace(model, only_read=False)
    padded = replace(model, in_rows=False)
    ways = [model, padded] if model.in_rows else [padded]
    return next((way for way in ways if _mixes(way, names)), None)


@torch.no_grad()
def _mixes(model: RewardModel, names: Sequence[str]) -> bool:
    """Whether texts of several adapters in one pass get the rewards that each gets alone."""
    plain = model.scored.plain
    tokens = two_short_texts(plain)
    if tokens is None:
        return False
    texts = np.array([0, 1, 0, 1])
    padded = pad_texts(tokens, texts, filler_id(plain), model.device)
    alone: list[Tensor] = []
    for name in (names[0], names[-1]):
        use_adapters(model.network, name)
        alone.append(model.rewards(padded)[:2])
    by_row = adapters_by_row(
        model.network,
        [names[0], names[0], names[-1], names[-1]],
        tokens.lengths[texts].tolist(),
    )
    try:
        with by_row:
            together = model.rewards(model.batch(tokens, texts))
    except (TypeError, ValueError, RuntimeError):
        return False
    expected = torch.cat(alone)
    return bool((together - expected).abs().max() <= allowed_error(expected, model.dtype))
