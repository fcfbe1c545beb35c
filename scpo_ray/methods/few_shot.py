"""Answer shares predicted from a country's few known answers: the way to fit that GPO shows.

A small transformer reads the context, points of (features of a question with one option, share),
and says what the shares of other questions' options are. It learns that on some countries and is
then shown twenty questions of another one.

Source: Zhao, Dang and Grover, Group Preference Optimization (ICLR 2024, arXiv 2310.11523), and its
authors' code; docs/method.md says where this differs.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scpo_ray.methods.task import FitContext, Fitted, PreparedRun
from scpo_ray.models.loading import drawn_by
from scpo_ray.records import Opinions
from scpo_ray.results import TrainingCurve
from scpo_ray.training.loop import TrainingSummary
from scpo_ray.workers import from_first

log = logging.getLogger(__name__)

_WIDTH, _EMBEDDING_LAYERS, _LAYERS, _ATTENTION_HEADS = 128, 4, 6, 4


class FewShotSettings(Protocol):
    """What is set: `methods/gpo.py` says what each means."""

    @property
    def num_learning_countries(self) -> int: ...
    @property
    def learning_countries(self) -> list[str] | None: ...
    @property
    def num_context_questions(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def min_questions(self) -> int: ...
    @property
    def max_questions(self) -> int: ...


@dataclass(frozen=True)
class Answer:
    """A country's answer to one question: (K,) the texts of its options, and (K,) their shares."""

    texts: NDArray[np.int64]
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class FewShot:
    """Who learns from whom: training questions alone, on both sides.

    `learning`: country -> its answers; `context`: the target country's answers that are shown.
    """

    learning: dict[str, list[Answer]]
    context: list[Answer]


def few_shot(opinions: Opinions, target: str, config: FewShotSettings, *, seed: int) -> FewShot:
    """The countries to learn from, and the questions that are shown of the target.

    The countries are the same for every target but for those that are a target themselves: in
    their place comes the next one of one order, drawn by `seed`.

    Raises: ValueError if there are too few countries, or questions of one.
    """
    rng = np.random.default_rng(seed)
    names = list(config.learning_countries or rng.permutation(sorted(opinions.cultures)))
    learning = [str(name) for name in names if name != target]
    if config.learning_countries is None:
        learning = learning[: config.num_learning_countries]
        if len(learning) < config.num_learning_countries:
            raise ValueError(
                f"num_learning_countries {config.num_learning_countries} beside {target}: "
                f"the data has {len(opinions.cultures)} countries"
            )
    elif target in config.learning_countries:
        raise ValueError(f"learning_countries: {target} cannot be learned from and predicted too")
    unknown = sorted(set(learning) - set(opinions.cultures))
    if unknown:
        raise ValueError(f"learning_countries: not in the data: {', '.join(unknown)}")
    answers = {name: training_answers(opinions, name) for name in learning}
    needed = 2 * config.min_questions
    for name, found in answers.items():
        if len(found) < needed:
            raise ValueError(
                f"{name}: {len(found)} training questions, and twice min_questions {needed} "
                "are needed to learn from it"
            )
    known = training_answers(opinions, target)
    if len(known) < config.num_context_questions:
        raise ValueError(
            f"{target}: {len(known)} training questions are fewer than "
            f"num_context_questions {config.num_context_questions}"
        )
    shown = rng.choice(len(known), config.num_context_questions, replace=False)
    return FewShot(answers, [known[number] for number in shown])


def training_answers(opinions: Opinions, country: str) -> list[Answer]:
    """The country's answers to training questions, each in the first order of its options."""
    _, firsts = np.unique(opinions.groups, return_index=True)
    code = opinions.cultures.index(country)
    mine = firsts[(opinions.culture_codes[firsts] == code) & opinions.is_train[firsts]]
    places = [slice(opinions.offsets[n], opinions.offsets[n + 1]) for n in mine]
    return [Answer(opinions.texts[place], opinions.shares[place]) for place in places]


class Predictor(nn.Module):
    """GPO's transformer: every point attends to the context alone, so no target sees another."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        widths = [num_features + 1, *[_WIDTH] * _EMBEDDING_LAYERS]
        layers: list[nn.Module] = []
        for width, next_width in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width, next_width), nn.ReLU()]
        self.embed = nn.Sequential(*layers[:-1])
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _ATTENTION_HEADS, _WIDTH, dropout=0.0, batch_first=True
        )
        self.encode = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.predict = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 2))

    def forward(self, context: Tensor, shares: Tensor, targets: Tensor) -> Tensor:
        """(Q, 2) logit and logarithm of the spread of each target.

        Args:
            context, targets: (C, D), (Q, D) features; shares: (C,).
        """
        unknown = torch.zeros(len(targets), device=shares.device)
        points = torch.cat([context, targets])
        known = torch.cat([shares, unknown])[:, None]
        size = len(points)
        hidden = torch.ones(size, size, dtype=torch.bool, device=shares.device)
        hidden[:, : len(context)] = False
        encoded = self.encode(self.embed(torch.cat([points, known], dim=1))[None], mask=hidden)
        predicted: Tensor = self.predict(encoded[0, len(context) :])
        return predicted


def learn_predictor(
    countries: Sequence[Sequence[Answer]],
    features: NDArray[np.float32],
    config: FewShotSettings,
    *,
    seed: int,
    device: str,
) -> tuple[Predictor, float]:
    """The predictor after `config.num_steps` steps, and the last step's loss.

    In each step every country shows some of its questions, drawn anew, and others are predicted:
    minus the log likelihood of their shares, normal around the softmax over a question's options.

    Args:
        countries: answers of each; features: (T, D), of all their texts.
    """
    rng = np.random.default_rng((seed, 1))
    with drawn_by(seed):
        predictor = Predictor(features.shape[1])
    predictor.to(device)
    rows = torch.from_numpy(features).to(device)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    loss = float("nan")
    for _ in range(config.num_steps):
        optimizer.zero_grad()
        loss = 0.0
        for answers in countries:
            shown, asked = _drawn(answers, config, rng)
            part = _task_loss(predictor, shown, asked, rows) / len(countries)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        optimizer.step()
        schedule.step()
    return predictor.eval(), loss


def predictor_of(
    weights: Mapping[str, NDArray[np.float32]], *, num_features: int, device: str
) -> Predictor:
    """A predictor with these weights, by their names in its state."""
    with drawn_by(0):
        predictor = Predictor(num_features)
    predictor.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    return predictor.to(device).eval()


def predictor_key(
    countries: Sequence[Sequence[Answer]],
    features: NDArray[np.float32],
    config: FewShotSettings,
    *,
    seed: int,
    version: int,
) -> str:
    """A hash of all that `learn_predictor`'s weights follow from: every target country that has
    the same ones to learn from has the same predictor."""
    settings = [config.num_steps, config.learning_rate, config.min_questions, config.max_questions]
    digest = hashlib.sha256(json.dumps([version, seed, *settings]).encode())
    for answers in countries:
        for answer in answers:
            digest.update(json.dumps([len(answers), len(answer.texts)]).encode())
            digest.update(np.ascontiguousarray(features[answer.texts], np.float32).tobytes())
            digest.update(answer.shares.astype(np.float64).tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def predicted_logits(
    predictor: Predictor, context: Sequence[Answer], features: NDArray[np.float32], *, device: str
) -> NDArray[np.float32]:
    """(T,) of every text; the softmax over a question's options are the predicted shares."""
    rows = torch.from_numpy(features).to(device)
    texts, shares = _points(context, device)
    parts = [predictor(rows[texts], shares, part)[:, 0] for part in torch.split(rows, 512)]
    logits: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
    return logits


def standardized(features: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(T, D) with mean 0 and mean square 1 in each column, over `rows`."""
    mean, spread = features[rows].mean(axis=0), features[rows].std(axis=0)
    return np.asarray((features - mean) / np.maximum(spread, 1e-6), dtype=np.float32)


def fit_few_shot(prepared: PreparedRun, context: FitContext) -> Fitted:
    """Learns the predictor, or takes it from where it was kept; the rewards are predicted logits.

    There is no model: no reward of another text can be had.
    """
    task = prepared.task
    kept = task.base.features(task.data.texts)

    def predicted() -> tuple[NDArray[np.float32], TrainingSummary]:
        if kept is None or task.data.opinions is None:
            raise ValueError("this needs the global model's features, and opinions")
        # Whole: each step draws from all of them, and a survey's options are few.
        features = kept[np.arange(len(kept))]
        settings, seed = task.settings, task.config.seed
        few = few_shot(task.data.opinions, task.trained_cultures[0], settings, seed=seed)
        log.info("learning from %s", ", ".join(few.learning))
        started = time.monotonic()
        countries, device = list(few.learning.values()), task.worker.device
        learned = [answer for answers in countries for answer in answers]
        texts = np.unique(np.concatenate([answer.texts for answer in learned]))
        scaled = standardized(features, texts)

        def learn() -> dict[str, NDArray[np.float32]]:
            predictor, loss = learn_predictor(countries, scaled, settings, seed=seed, device=device)
            log.info("%d steps, loss %.4f", settings.num_steps, loss)
            return {name: weight.cpu().numpy() for name, weight in predictor.state_dict().items()}

        version = task.config.how.version
        key = predictor_key(countries, scaled, settings, seed=seed, version=version)
        weights = context.run_dir.stores.predictors.get_or_learn(key, learn)
        predictor = predictor_of(weights, num_features=scaled.shape[1], device=device)
        rewards = predicted_logits(predictor, few.context, scaled, device=device)
        seconds = time.monotonic() - started
        return rewards, TrainingSummary(settings.num_steps, 0, seconds, TrainingCurve())

    rewards, summary = from_first(predicted, task.worker)
    return Fitted(lambda texts: rewards[texts], summary, makes_model=False)


def _drawn(
    answers: Sequence[Answer], config: FewShotSettings, rng: np.random.Generator
) -> tuple[list[Answer], list[Answer]]:
    """Questions that are shown, and others that are asked."""
    low = config.min_questions
    num_shown = int(rng.integers(low, min(config.max_questions, len(answers) - low) + 1))
    num_asked = int(rng.integers(low, min(config.max_questions, len(answers) - num_shown) + 1))
    order = rng.permutation(len(answers))[: num_shown + num_asked]
    drawn = [answers[number] for number in order]
    return drawn[:num_shown], drawn[num_shown:]


def _task_loss(
    predictor: Predictor, shown: Sequence[Answer], asked: Sequence[Answer], rows: Tensor
) -> Tensor:
    device = str(rows.device)
    (texts, shares), (asked_texts, aims) = _points(shown, device), _points(asked, device)
    logits, log_spread = predictor(rows[texts], shares, rows[asked_texts]).unbind(dim=1)
    sizes = [len(answer.texts) for answer in asked]
    means = torch.cat([part.softmax(dim=0) for part in logits.split(sizes)])
    return -torch.distributions.Normal(means, log_spread.exp()).log_prob(aims).mean()  # type: ignore[no-untyped-call, no-any-return]


def _points(answers: Sequence[Answer], device: str) -> tuple[Tensor, Tensor]:
    texts = torch.from_numpy(np.concatenate([answer.texts for answer in answers]))
    shares = torch.from_numpy(np.concatenate([answer.shares for answer in answers]))
    return texts.to(device), shares.float().to(device)
