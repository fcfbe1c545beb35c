"""PRISM-shaped interactions from known tastes, so that the best possible accuracy is known.

A response is a handful of words. A taste word says one of NUM_FEATURES things (warm, formal, ...)
with or against it; a response's features are its counts of words for minus words against. A
culture's taste is a direction among the features, a person's taste the culture's with their own
noise, and a score grows with taste . features: what a word-level model can learn.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from scpo_ray.data.rows import InteractionSource, Notes, Place
from scpo_ray.records import Interaction
from scpo_ray.settings.data import DataSection, Source
from scpo_ray.settings.spelling import keys_spelled_once

TASTE_WORDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("kind", "warm", "gentle", "caring"), ("cold", "harsh", "blunt", "distant")),
    (("formal", "polite", "proper", "courteous"), ("casual", "chatty", "slangy", "loose")),
    (("detailed", "thorough", "complete", "exact"), ("brief", "short", "rough", "sketchy")),
    (("careful", "cautious", "safe", "modest"), ("bold", "daring", "risky", "proud")),
    (("funny", "playful", "witty", "cheerful"), ("serious", "grave", "solemn", "dry")),
    (("traditional", "old", "local", "familiar"), ("modern", "new", "foreign", "strange")),
)
"""Feature -> words for it, words against it."""

FILLERS = ("this", "is", "a", "very", "rather", "and", "with", "answer", "it", "quite")
TOPICS = ("food", "work", "school", "music", "family", "travel", "health", "money", "sport", "art")
OPENINGS = (
    ("please", "tell", "me", "about"),
    ("what", "do", "you", "think", "of"),
    ("how", "should", "one", "talk", "about"),
)
CLOSINGS = (("today",), ("at", "home"), ("in", "general"))

NUM_FEATURES = len(TASTE_WORDS)
MIN_WORDS, MAX_WORDS = 6, 12
TASTE_WORD_SHARE = 0.75
MAX_SYNTHETIC_RESPONSES = 100_000_000
SCORE_MEAN, SCORE_SPREAD = 50.5, 16.0


class SyntheticConfig(DataSection):
    licence: ClassVar[str] = "none needed: its texts are generated"

    source: Literal["synthetic"]
    """Generated PRISM-shaped interactions whose best possible accuracy is known."""

    users: dict[str, Annotated[int, Field(le=MAX_SYNTHETIC_RESPONSES)]] = {
        "Majority": 120,
        "North": 40,
        "South": 40,
        "East": 40,
    }
    """Culture -> number of users. The first is the majority; the others' tastes leave it."""

    interactions_per_user: int = Field(12, ge=1, le=MAX_SYNTHETIC_RESPONSES)
    """Prompts each user answers."""

    responses_per_interaction: int = Field(3, ge=2, le=8)
    """Responses each prompt gets."""

    taste_distance: float = Field(1.0, ge=0, le=2)
    """How far a culture's taste lies from the majority's: 0 the same, 1 unrelated, 2 opposed."""

    person_noise: float = Field(0.3, ge=0, le=1_000)
    """Standard deviation of a person's own noise, in units of taste."""

    outlier_share: float = Field(0.1, ge=0, lt=1)
    """Share of a culture's people whose taste is drawn at random instead."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the generated data."""

    language: Literal["first", "second"] = "first"
    """second: the same people say the same, but each word for or against something is said with
    one that means another thing in the first language."""

    @field_validator("users")
    @classmethod
    def cultures_are_named_once_with_users(cls, users: dict[str, int]) -> dict[str, int]:
        if not users or min(users.values()) < 1:
            raise ValueError(f"must name cultures with at least 1 user, got {users}")
        return keys_spelled_once(users, "users")

    @model_validator(mode="after")
    def fits_a_machine(self) -> Self:
        num = self.interactions_per_user * self.responses_per_interaction * sum(self.users.values())
        if num > MAX_SYNTHETIC_RESPONSES:
            raise ValueError(
                f"users x interactions_per_user x responses_per_interaction must be at most "
                f"{MAX_SYNTHETIC_RESPONSES} responses, got {num:.3g}"
            )
        return self


class Answers(NamedTuple):
    """One person's n interactions with K responses each.

    `words`: (n, K, MAX_WORDS) numbers into `_response_words()`, -1 beyond the response's end.
    `features`: (n, K, NUM_FEATURES), what tastes judge. `scores`: (n, K) by the person's, 1 to 100.
    """

    prompts: list[str]
    words: NDArray[np.int64]
    features: NDArray[np.float64]
    scores: NDArray[np.float64]


def vocabulary() -> list[str]:
    """Every word of every prompt and response, sorted."""
    prompt_words = [word for part in (*OPENINGS, *CLOSINGS) for word in part]
    return sorted({*_response_words(), *prompt_words, *TOPICS})


class TrueMargins(NamedTuple):
    """What the tastes behind P pairs say of them: (P,) utility of chosen minus rejected.

    `culture`: by the taste of the pair's culture; `majority`: by the first culture's.
    """

    culture: NDArray[np.float64]
    majority: NDArray[np.float64]


def best_accuracy(config: SyntheticConfig) -> dict[str, float]:
    """Culture -> the share of its pairs that its true taste ranks right.

    Counted over all generated pairs (train and test together). No model that gives a culture one
    score per text does better but by chance: what it misses is the people's own noise and the
    outliers. NaN where a culture has no pair.
    """
    margins = {culture: margins_of_culture(config, culture) for culture in config.users}
    return {
        culture: float((found.culture > 0).mean()) if len(found.culture) else float("nan")
        for culture, found in margins.items()
    }


def margins_of_culture(config: SyntheticConfig, culture: str) -> TrueMargins:
    """The true margins of all generated pairs of a culture, people one after the other."""
    tastes, number = culture_tastes(config), list(config.users).index(culture)
    both = tastes[[number, 0]]
    margins = [np.empty((0, 2))]
    for person in range(config.users[culture]):
        answers = _answers(config, tastes[number], number, person)
        turns, chosen, rejected = np.nonzero(
            answers.scores[:, :, None] > answers.scores[:, None, :]
        )
        features = answers.features[turns, chosen] - answers.features[turns, rejected]
        margins.append(features @ both.T)
    return TrueMargins(*np.concatenate(margins).T)


def margins_of_pairs(config: SyntheticConfig, pair_ids: Sequence[str]) -> TrueMargins:
    """The true margins of pairs of this source, by their ids ("North-0003-002:1>0").

    Raises: ValueError for an id that the source has not made.
    """
    tastes, numbers = culture_tastes(config), {c: i for i, c in enumerate(config.users)}
    known: dict[tuple[int, int], Answers] = {}
    margins = np.empty((len(pair_ids), 2))
    for row, pair_id in enumerate(pair_ids):
        found = re.fullmatch(r"(.+)-(\d{4,})-(\d{3,}):(\d+)>(\d+)", pair_id, flags=re.DOTALL)
        if found is None or found[1] not in numbers:
            raise ValueError(f"{pair_id!r} is no pair of this synthetic source")
        number = numbers[found[1]]
        person, turn, chosen, rejected = map(int, found.groups()[1:])
        if (number, person) not in known:
            known[number, person] = _answers(config, tastes[number], number, person)
        features = known[number, person].features[turn]
        margins[row] = tastes[[number, 0]] @ (features[chosen] - features[rejected])
    return TrueMargins(*margins.T)


def culture_tastes(config: SyntheticConfig) -> NDArray[np.float64]:
    """(cultures, NUM_FEATURES) unit vectors; the others' cosine with the first is
    1 - taste_distance, each towards its own direction."""
    rng = np.random.default_rng([config.seed, 0])
    majority = _unit(rng.standard_normal(NUM_FEATURES))
    cosine = 1 - config.taste_distance
    tastes = [majority]
    for _ in range(len(config.users) - 1):
        direction = rng.standard_normal(NUM_FEATURES)
        across = _unit(direction - (direction @ majority) * majority)
        tastes.append(cosine * majority + np.sqrt(1 - cosine**2) * across)
    return np.stack(tastes)


def open_synthetic(config: SyntheticConfig) -> InteractionSource:
    """The generated interactions; the culture's people one after the other."""
    fields = (
        "users",
        "interactions_per_user",
        "responses_per_interaction",
        "taste_distance",
        "person_noise",
        "outlier_share",
        "seed",
        "language",
    )
    settings = {name: getattr(config, name) for name in fields}
    # The order of the cultures decides which is the majority; a sorted mapping would lose it.
    settings["users"] = list(config.users.items())
    return InteractionSource((), settings, partial(_read, config))


def _read(config: SyntheticConfig, notes: Notes) -> Iterator[tuple[Place, Interaction]]:
    tastes = culture_tastes(config)
    words = [*_response_words(config.language), ""]
    number = 0
    for culture_number, (culture, num_users) in enumerate(config.users.items()):
        for person in range(num_users):
            answers = _answers(config, tastes[culture_number], culture_number, person)
            user = f"{culture}-{person:04d}"
            for turn, prompt in enumerate(answers.prompts):
                number += 1
                responses = [
                    " ".join(words[w] for w in row if w >= 0)
                    for row in answers.words[turn].tolist()
                ]
                yield (
                    Place("synthetic", number, "interaction"),
                    Interaction(
                        interaction_id=f"{user}-{turn:03d}",
                        culture=culture,
                        user=user,
                        question=None,
                        prompt=prompt,
                        responses=tuple(responses),
                        human_scores=tuple(answers.scores[turn].tolist()),
                    ),
                )


def _answers(
    config: SyntheticConfig, taste: NDArray[np.float64], culture_number: int, person: int
) -> Answers:
    # A stream for each person: more people or another culture's do not change this one's.
    rng = np.random.default_rng([config.seed, 1, culture_number, person])
    shape = (config.interactions_per_user, config.responses_per_interaction)
    own = rng.standard_normal(NUM_FEATURES)
    if rng.random() < config.outlier_share:
        person_taste = _unit(own)
    else:
        person_taste = taste + config.person_noise * own / np.sqrt(NUM_FEATURES)
    words, features = _draw_responses(rng, shape)
    scores = np.rint(SCORE_MEAN + SCORE_SPREAD * (features @ person_taste))
    prompts = [_draw_prompt(rng) for _ in range(shape[0])]
    return Answers(prompts, words, features, np.clip(scores, 1, 100))


def _draw_responses(
    rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Words (*shape, MAX_WORDS), and features (*shape, NUM_FEATURES) scaled so that along any
    unit vector their variance is about 1."""
    per_feature = 2 * len(TASTE_WORDS[0][0])
    num_taste_words = NUM_FEATURES * per_feature
    lengths = rng.integers(MIN_WORDS, MAX_WORDS + 1, size=shape)
    slots = (*shape, MAX_WORDS)
    has_taste = rng.random(slots) < TASTE_WORD_SHARE
    taste_words = rng.integers(num_taste_words, size=slots)
    fillers = num_taste_words + rng.integers(len(FILLERS), size=slots)
    words = np.where(has_taste, taste_words, fillers)
    words[np.arange(MAX_WORDS) >= lengths[..., None]] = -1

    said = has_taste & (words >= 0)
    signs = np.where(taste_words % per_feature < per_feature // 2, 1.0, -1.0) * said
    subjects = taste_words // per_feature
    features = np.stack(
        [(signs * (subjects == feature)).sum(-1) for feature in range(NUM_FEATURES)], axis=-1
    )
    mean_taste_words = TASTE_WORD_SHARE * (MIN_WORDS + MAX_WORDS) / 2
    return words, features / np.sqrt(mean_taste_words / NUM_FEATURES)


def _draw_prompt(rng: np.random.Generator) -> str:
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    closing = CLOSINGS[rng.integers(len(CLOSINGS))]
    return " ".join([*opening, TOPICS[rng.integers(len(TOPICS))], *closing])


def _response_words(language: Literal["first", "second"] = "first") -> list[str]:
    # The second language's words are the first's, those of the next feature: a model knows them
    # all, and what it has learned of the first says nothing of the second.
    shift = 0 if language == "first" else 1
    features = [*TASTE_WORDS[shift:], *TASTE_WORDS[:shift]]
    return [*(word for sides in features for side in sides for word in side), *FILLERS]


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


SOURCE = Source("synthetic", version=1, settings=SyntheticConfig, open=open_synthetic)
