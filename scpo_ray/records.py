"""The nouns: what the chapters of a run hand to each other. Frozen, and without behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Layer = Literal["all", "distinctive", "agreed"]
LAYERS: tuple[Layer, ...] = ("all", "distinctive", "agreed")
HeldOut = Literal["dev", "test"]
"""Who is not trained on: users that choices are made on, and those that are looked at once."""


class InputError(Exception):
    """The user's input (a setting, a file, a model folder, the disk) is at fault.

    Every problem is one line that names the place, the rule and the value. The command line
    prints them all and exits with 2; it never shows a traceback for them.
    """

    def __init__(self, title: str, problems: Sequence[str] = ()) -> None:
        self.title = title
        self.problems = tuple(problems)
        super().__init__("\n  ".join([title, *self.problems]))


@dataclass(frozen=True, slots=True)
class Interaction:
    """One prompt, its K >= 2 responses and one person's (or country's) scores for them.

    `history`: the (role, text) turns before the prompt; empty in the paper's setting.
    `user` is None where the data names no person; `question` groups such interactions.
    `split` is what the source says ("train", "test") or None where a split is to be drawn.
    Where the responses are a survey question's options: `option_numbers`, the place of each in
    the source's list, and `refusals`, whether it is a refusal to answer; else both are empty.
    """

    interaction_id: str
    culture: str
    user: str | None
    question: str | None
    prompt: str
    responses: tuple[str, ...]
    human_scores: tuple[float, ...]
    history: tuple[tuple[str, str], ...] = ()
    split: Literal["train", "test"] | None = None
    option_numbers: tuple[int, ...] = ()
    refusals: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """What the renderer turns into tokens: one response under its prompt."""

    history: tuple[tuple[str, str], ...]
    prompt: str
    response: str


@dataclass(frozen=True)
class Pairs:
    """P preference pairs in columns: indices, never copied texts.

    Attributes:
        interactions: (P,) int64, row of the interaction in its table.
        chosen, rejected: (P,) int64, which text of `PreferenceData.texts`.
        chosen_responses, rejected_responses: (P,) int16, which response of the interaction.
        chosen_scores, rejected_scores: (P,) float32, the person's (or country's) scores of them;
            the first is the higher, in float32 too.
        culture_codes: (P,) int32, index into `cultures`.
        cluster_codes: (P,) int64, the user (or question) the pair is resampled with.
        cultures: names, in the order of the codes.
    """

    interactions: NDArray[np.int64]
    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    chosen_responses: NDArray[np.int16]
    rejected_responses: NDArray[np.int16]
    chosen_scores: NDArray[np.float32]
    rejected_scores: NDArray[np.float32]
    culture_codes: NDArray[np.int32]
    cluster_codes: NDArray[np.int64]
    cultures: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.interactions)

    def take(self, rows: NDArray[Any]) -> "Pairs":
        """The pairs at `rows` (indices or a mask), in that order."""
        return Pairs(
            interactions=self.interactions[rows],
            chosen=self.chosen[rows],
            rejected=self.rejected[rows],
            chosen_responses=self.chosen_responses[rows],
            rejected_responses=self.rejected_responses[rows],
            chosen_scores=self.chosen_scores[rows],
            rejected_scores=self.rejected_scores[rows],
            culture_codes=self.culture_codes[rows],
            cluster_codes=self.cluster_codes[rows],
            cultures=self.cultures,
        )


def joined(several: Sequence[Pairs]) -> Pairs:
    """Pairs of the same data, one after the other."""
    columns = [f.name for f in fields(Pairs) if f.name != "cultures"]
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(p, name) for p in several]) for name in columns
    }
    return replace(several[0], **whole)


@dataclass(frozen=True)
class CultureCounts:
    """What the data of one culture holds; what was left out is counted, never silent."""

    users: int
    """People; questions (or else interactions) where the data names no person."""
    train_users: int
    dev_users: int
    test_users: int
    interactions: int
    responses: int
    train_pairs: int
    dev_pairs: int
    test_pairs: int
    ties: int
    """Response pairs with equal scores (opinions: within `min_share_gap`): they make no pair."""
    equal_texts: int
    """Response pairs with equal texts: they make no pair."""
    longer_chosen_share: float | None
    """Share of all pairs whose chosen response has more characters; None without pairs."""
    train_test_texts: int
    """Distinct texts (prompt and response) that stand in both train and test pairs."""
    format_differences: dict[str, float]
    """Format mark (brackets, quotes, list) -> share of chosen minus share of rejected with it."""
    skipped: dict[str, int]
    """Reason -> rows left out."""
    same_tokens_train: int = 0
    """Training pairs whose two sides become the same tokens: left out, so not in `train_pairs`,
    `train_users` and `train_test_texts`."""
    same_tokens_dev: int = 0
    """The same, of dev pairs."""
    same_tokens_test: int = 0
    """The same, of test pairs."""


class TextSource(Sequence[Text]):
    """T distinct texts, read from disk when asked for. `hashes`: (T,) uint64, of the contents."""

    hashes: NDArray[np.uint64]

    def place(self, index: int) -> str:
        """Where the text was read, for messages: "rows.jsonl, line 8" where a file is known."""
        return f"text {index}"


@dataclass(frozen=True)
class Opinions:
    """N answer distributions, one for each question, country and order of its options.

    Attributes:
        offsets: (N + 1,) int64; distribution n has the options offsets[n] to offsets[n + 1].
        texts: (R,) int64, the text of `PreferenceData.texts` that stands for the option.
        shares: (R,) float64 in [0, 1]; those of a distribution sum to 1.
        option_numbers: (R,) int64, the option's place in the source's list.
        refusals: (R,) bool, whether it is a refusal to answer.
        culture_codes: (N,) int32, index into `cultures`.
        question_codes: (N,) int64, what is resampled and split.
        groups: (N,) int64, ascending from 0; the same where only the order of the options differs.
        is_train, is_test: (N,) bool; neither: held out for choices.
        cultures: names, in the order of the codes.
    """

    offsets: NDArray[np.int64]
    texts: NDArray[np.int64]
    shares: NDArray[np.float64]
    option_numbers: NDArray[np.int64]
    refusals: NDArray[np.bool_]
    culture_codes: NDArray[np.int32]
    question_codes: NDArray[np.int64]
    groups: NDArray[np.int64]
    is_train: NDArray[np.bool_]
    is_test: NDArray[np.bool_]
    cultures: tuple[str, ...]


@dataclass(frozen=True)
class OpinionExample:
    """A test question as text, with the shares of the country and the model at its fitted
    temperature; `similarity`: 1 - Jensen-Shannon distance, base e."""

    culture: str
    question: str
    options: list[str]
    country: list[float]
    model: list[float]
    similarity: float


@dataclass(frozen=True)
class PreferenceData:
    """All a run needs to know of its data. `interaction_ids` is indexed by `Pairs.interactions`.

    `opinions` is None where the data holds no distributions; all their texts are in `texts`.
    `scores_are_votes`: whether scores count people (or are shares of them) who prefer a response.
    `refusals`: why nothing can be trained on it; data to train on has none.
    """

    train: Pairs
    dev: Pairs
    """Of the users (or questions) held out for choices; none where `data.split.dev_size` is 0."""
    test: Pairs
    texts: TextSource
    interaction_ids: Sequence[str]
    cultures: tuple[str, ...]
    counts: dict[str, CultureCounts]
    warnings: tuple[str, ...]
    fingerprint: str
    """Hash of the pairs, the texts and the opinions: the same data, the same value anywhere."""
    opinions: Opinions | None = None
    scores_are_votes: bool = False
    refusals: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[Pairs, Pairs, Pairs]:
        """Train, dev, test."""
        return self.train, self.dev, self.test

    @property
    def choice_pairs(self) -> Pairs:
        """What choices are made on: dev pairs; test pairs where nobody was held out for them."""
        return self.dev if len(self.dev) else self.test


@dataclass(frozen=True)
class Tokens:
    """T texts as token ids, one after the other.

    Attributes:
        input_ids: (sum of lengths,) int32.
        token_type_ids: the same shape int8, or None where the model takes none.
        offsets: (T + 1,) int64; text t is `input_ids[offsets[t]:offsets[t + 1]]`.
        truncated: (T,) bool, whether tokens were cut at the maximum length.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int8] | None
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    # Read from the first token to the last: once, not with every part that is scored.
    @cached_property
    def largest_id(self) -> int:
        return int(self.input_ids.max(initial=0))

    @cached_property
    def largest_type(self) -> int:
        return 0 if self.token_type_ids is None else int(self.token_type_ids.max(initial=0))


@dataclass(frozen=True)
class Worker:
    """Who computes: settled once by the launcher. `device` is a torch device's name."""

    rank: int
    world_size: int
    device: str


ALONE = Worker(rank=0, world_size=1, device="cpu")
"""For what one process does by itself."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one worker needs on its device, and beside it.

    Attributes:
        weights: what stays of them on this worker.
        gradients, optimizer: as far as they stay between two passes.
        buffers: weights gathered for a pass, gradients on their way to other workers.
        activations: what the widest pass keeps; None where only real texts would tell.
        host: the CPU's memory of a worker on a GPU, without libraries and data; on a CPU 0.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int | None
    host: int

    @property
    def total(self) -> int:
        """On the device, at the peak. Activations are gone when the last gradients are sent."""
        stays = self.weights + self.gradients + self.optimizer
        return stays + max(self.buffers, self.activations or 0)
