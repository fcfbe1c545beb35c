"""The nouns: what the chapters of a run hand to each other. Frozen, and without behaviour."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Layer = Literal["all", "distinctive", "agreed"]
LAYERS: tuple[Layer, ...] = ("all", "distinctive", "agreed")


Verdict = Literal["better", "worse", "not distinguishable", "unknown"]
"""What a difference shows, by its interval alone: see `intervals.verdict`."""
Standing = Literal["best", "behind", "not distinguishable", "unknown"]
"""Beside the best of several: see `intervals.standing`."""


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
        culture_codes: (P,) int32, index into `cultures`.
        cluster_codes: (P,) int64, the user (or question) the pair is resampled with.
        cultures: names, in the order of the codes.
    """

    interactions: NDArray[np.int64]
    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    chosen_responses: NDArray[np.int16]
    rejected_responses: NDArray[np.int16]
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
            culture_codes=self.culture_codes[rows],
            cluster_codes=self.cluster_codes[rows],
            cultures=self.cultures,
        )


@dataclass(frozen=True)
class CultureCounts:
    """What the data of one culture holds; what was left out is counted, never silent."""

    users: int
    """People; questions (or else interactions) where the data names no person."""
    train_users: int
    test_users: int
    interactions: int
    responses: int
    train_pairs: int
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
        is_test: (N,) bool.
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
    is_test: NDArray[np.bool_]
    cultures: tuple[str, ...]


@dataclass(frozen=True)
class PreferenceData:
    """All a run needs to know of its data. `interaction_ids` is indexed by `Pairs.interactions`.

    `opinions` is None where the data holds no distributions; all their texts are in `texts`.
    `refusals`: why nothing can be trained on it; data to train on has none.
    """

    train: Pairs
    test: Pairs
    texts: TextSource
    interaction_ids: Sequence[str]
    cultures: tuple[str, ...]
    counts: dict[str, CultureCounts]
    warnings: tuple[str, ...]
    fingerprint: str
    """Hash of the pairs, the texts and the opinions: the same data, the same value anywhere."""
    opinions: Opinions | None = None
    refusals: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Worker:
    """Who computes: settled once by the launcher. `device` is a torch device's name."""

    rank: int
    world_size: int
    device: str


ALONE = Worker(rank=0, world_size=1, device="cpu")
"""For what one process does by itself."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over users (or questions) and, of several, seeds.

    `value` is None where there is nothing to average, the interval is None with one cluster.
    `num_pairs` counts what was averaged: pairs, or answer distributions of opinions.
    """

    value: float | None
    low: float | None
    high: float | None
    num_pairs: int
    num_clusters: int


@dataclass(frozen=True)
class Difference:
    """A paired difference on the same pairs (this model minus another), in accuracy, or in
    similarity on the same answer distributions.

    `p_value`: two-sided, of the interval's own procedure; `p_holm`: after Holm's correction over
    the cultures it was computed with. `detectable`: the smallest difference for which such a test
    set gives p <= 0.05 (not corrected) in 80 % of cases, were the two models to differ as unevenly
    as these. None where undefined, and where it would be above 1.
    """

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    num_pairs: int
    num_clusters: int
    detectable: float | None = None


@dataclass(frozen=True)
class CultureEvaluation:
    """One model on one culture's test pairs, by layer.

    `before`: the global model; `after`: the trained one; `difference`: after minus before.
    Without a global model (`model.new_head`) only the layer "all" of `after` is there.
    `controls`: name -> layer -> estimate: "random", "longer", "global_noise". `minus_noise`:
    `after` minus "global_noise", paired; empty where nothing changed.
    """

    before: dict[str, Estimate]
    after: dict[str, Estimate]
    difference: dict[str, Difference]
    controls: dict[str, dict[str, Estimate]]
    minus_noise: dict[str, Difference] = field(default_factory=dict)
    scale: float | None = None
    """How many times as large as the global model's the margins are, by least squares."""


@dataclass(frozen=True)
class OpinionScores:
    """How near predicted answer shares come to each country's, on its test questions.

    The number is the mean of 1 - Jensen-Shannon distance over answer distributions. Predictors:
    "model" and "global" (softmax of their rewards), "model_fitted" and "global_fitted" (rewards
    over the country's temperature), "uniform", "training_countries", "other_countries" and
    "best_constant"; see `opinions.evaluate_opinions`.

    Attributes:
        options: what a distribution is over: all options, or those that are no refusal.
        base: of the logarithms.
        cultures: culture -> predictor -> estimate.
        macro: predictor -> mean over the cultures; micro: over the distributions of all cultures.
        difference: culture -> "model" and "model_fitted" minus the global model at the same kind
            of temperature; `p_holm` over the cultures. macro_difference: as `macro`.
        temperatures: culture -> "model_fitted", "global_fitted" -> in reward units, fitted on the
            culture's training questions.
    """

    options: Literal["all", "drop_refusal"]
    base: Literal["e", "2"]
    cultures: dict[str, dict[str, Estimate]]
    macro: dict[str, Estimate]
    micro: dict[str, Estimate]
    difference: dict[str, dict[str, Difference]]
    macro_difference: dict[str, Difference]
    temperatures: dict[str, dict[str, float]]


@dataclass(frozen=True)
class SelectionSummary:
    """What selection did to one culture's training pairs."""

    num_pairs: int
    num_selected: int
    kept_share: float
    mean_weight: float
    """Over the selected pairs, before the culture's weight."""
    histogram_edges: list[float]
    histogram_counts: list[int]
    """Selected pairs per weight bin; len(edges) - 1 of them."""


@dataclass(frozen=True)
class ExamplePair:
    """A pair shown as text: what selection did with it (the paper's Tables 13 and 14)."""

    culture: str
    kind: Literal["kept", "dropped", "down-weighted"]
    pair_id: str
    prompt: str
    chosen: str
    rejected: str
    ref_margin: float
    win_probability: float
    weight: float


@dataclass(frozen=True)
class TrainingCurve:
    """One value per logged step. `grad_norm` is before clipping; `lr` that of the step."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingRecord:
    """What a fit left besides its model: `training.json`. `seconds` of all attempts that led to
    its end; `told`: the method's sentences for the report; `device`, `num_workers`, `engine`
    ("torch", or "deepspeed ZeRO <stage>") and `versions` are those that brought it to its end.
    """

    num_steps: int
    num_pairs_seen: int
    """Pairs computed over all steps, repeats counted."""
    seconds: float
    curve: TrainingCurve
    told: list[str]
    makes_model: bool
    device: str
    num_workers: int
    engine: str
    versions: dict[str, str]


@dataclass(frozen=True)
class RunResult:
    """What one run found: `result.json`. Reports and trackers read it and compute nothing."""

    run_id: str
    """Hash of what decides the model."""
    evaluation_id: str
    """Hash of that and of what decides the numbers it gets here, the data's contents aside."""
    experiment: str
    method: str
    seed: int
    culture_weights: dict[str, float]
    config: dict[str, Any]
    fingerprints: dict[str, str]
    """"data", "model" (the weights started from), "scores" (the score store's key); of weights that
    were pickles the hash of the "pickle" and of the "safetensors" made of it."""
    data: dict[str, CultureCounts]
    warnings: list[str]
    truncated_texts: dict[str, int]
    """Culture -> distinct texts cut at the maximum length."""
    selection: dict[str, SelectionSummary]
    examples: list[ExamplePair]
    num_steps: int
    num_pairs_seen: int
    """Pairs computed over all steps, repeats counted."""
    train_seconds: float
    curve: TrainingCurve
    evaluation: dict[str, CultureEvaluation]
    model_dir: str
    device: str
    versions: dict[str, str]
    num_workers: int = 1
    """Workers that brought the run to its end."""
    engine: str = "torch"
    """"torch", or "deepspeed ZeRO <stage>"."""
    opinions: list[OpinionScores] = field(default_factory=list)
    """One for each choice of options and base; none where the data holds no distributions."""
    told: list[str] = field(default_factory=list)
    """What the method says of this fit, a sentence each."""


@dataclass(frozen=True)
class MethodSummary:
    """One method on one culture (or the macro mean over cultures), averaged over seeds.

    `accuracy`, `minus_global`, `minus_finetune`: by layer; the differences are paired and their
    `p_holm` is corrected over the cultures of the comparison. `minus_finetune` is empty where
    finetune was not run, and for itself. `seed_sd`: layer -> standard deviation over seeds of the
    accuracy, None with one seed. `kept_share`: mean share of the training pairs selected. `noise`,
    `minus_noise`: the global model plus noise as large as each seed's change, and the method
    minus that; empty for "global" and without a global model. `others_minus_global`: on the pairs
    of `other_cultures`, None without a global model. `minus_best`: paired with the best macro mean
    on `all`, without a p-value, its interval holding for all methods at once; None for the best
    itself and for single cultures (`intervals.standing` has the word for it).
    """

    method: str
    culture: str
    """A culture's name, or "" for the macro mean."""
    accuracy: dict[str, Estimate]
    minus_global: dict[str, Difference]
    minus_finetune: dict[str, Difference]
    seed_sd: dict[str, float | None]
    kept_share: float
    other_cultures: Estimate
    """Accuracy on `all` of the *other* cultures' test pairs: what the model costs them."""
    noise: dict[str, Estimate] = field(default_factory=dict)
    minus_noise: dict[str, Difference] = field(default_factory=dict)
    others_minus_global: Difference | None = None
    minus_best: Difference | None = None
    scale: float | None = None
    """How many times as large as the global model's the margins are: mean over seeds (and in the
    macro row over cultures); None for "global" and without a global model."""


@dataclass(frozen=True)
class OpinionSummary:
    """One method's answer shares against one country's (or the macro mean), averaged over seeds.

    `similarity` is that of `OpinionScores`, of the models trained for the country; differences
    are paired, `p_holm` is over the countries. None where there is no such rival, or for itself.
    """

    method: str
    culture: str
    """A culture's name, or "" for the macro mean."""
    options: Literal["all", "drop_refusal"]
    base: Literal["e", "2"]
    predictor: Literal["model", "model_fitted"]
    similarity: Estimate
    minus_global: Difference | None
    minus_finetune: Difference | None


@dataclass(frozen=True)
class ComparisonResult:
    """Methods side by side: `comparison.json` beside the runs it was made from."""

    experiment: str
    methods: list[str]
    cultures: list[str]
    seeds: list[int]
    run_ids: list[str]
    failures: dict[str, str]
    """Run name -> what went wrong; such runs are in no number here."""
    summaries: list[MethodSummary]
    opinions: list[OpinionSummary] = field(default_factory=list)
    """Empty where the data holds no distributions."""
