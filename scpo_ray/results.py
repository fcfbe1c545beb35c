"""The nouns of what came out: estimates, a run's result, methods side by side."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from scpo_ray.records import CultureCounts, HeldOut, OpinionExample

RESULT_FORMAT: Final = 2
"""Raised when what a result says comes to mean something else: those of before are refused."""

Verdict = Literal["better", "worse", "not distinguishable", "unknown"]
"""What a difference shows, by its interval alone: see `intervals.verdict`."""


Standing = Literal["best", "behind", "not distinguishable", "unknown"]
"""Beside the best of several: see `intervals.standing`."""


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
    set gives p <= 0.05 (of several models: its interval's level) in 80 % of cases, were the two to
    differ as unevenly as these. None where undefined, and where it would be above 1.
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
class Calibration:
    """How far win probabilities can be taken at their word, on one culture's test pairs.

    By predictor: "model" and "global" say sigmoid(margin), "model_fitted" and "global_fitted"
    sigmoid(margin / T), T the culture's temperature of that model.

    Attributes:
        temperatures: "model_fitted", "global_fitted" -> T, reward units; a predictor without one is
            absent here and below.
        fitted_on: the culture's dev pairs, its training pairs where nobody is held out for choices,
            or the model's folder, which had them saved.
        brier: mean squared distance of the win probability from what was preferred; 0.25 of a coin.
        brier_minus_global: paired; below 0 is better. `p_holm` is over the cultures.
        error: expected calibration error over bins of equal numbers of pairs; chance raises it.
        error_debiased: root mean square of the same gaps, less what chance makes of it.
        overconfidence: mean probability of the side the model is for, minus how often it is right.
        vote_distance: mean distance of the win probability from the share of people's votes; empty
            where scores are no votes.
    """

    temperatures: dict[str, float]
    fitted_on: Literal["dev", "train", "saved"]
    brier: dict[str, Estimate]
    brier_minus_global: dict[str, Difference]
    error: dict[str, float | None]
    error_debiased: dict[str, Estimate]
    overconfidence: dict[str, Difference]
    vote_distance: dict[str, Estimate]


@dataclass(frozen=True)
class BestOfN:
    """What a model's picks among the scored responses of each prompt are worth, on one culture.

    Attributes:
        num_prompts: with two responses or more; mean_responses: how many each has.
        regret: "model", "global", "random" -> the best response's score minus the pick's, in points
            of human score, mean over the prompts; 0 is best.
        regret_sd: the same in standard deviations of all scores of that user (or question).
        regret_minus_global, regret_sd_minus_global: paired, below 0 is better; None without a
            global model. Not corrected over the cultures.
        win_rate: how often the model's pick has the higher score, equal scores counting half:
            "random" against another response of the prompt, "global" against the global model's
            pick (the same pick is equal).
    """

    num_prompts: int
    mean_responses: float
    regret: dict[str, Estimate]
    regret_sd: dict[str, Estimate]
    regret_minus_global: Difference | None
    regret_sd_minus_global: Difference | None
    win_rate: dict[str, Estimate]


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
            culture's training questions. beside: "model_fitted" minus two that need no model.
    """

    options: Literal["all", "drop_refusal"]
    base: Literal["e", "2"]
    cultures: dict[str, dict[str, Estimate]]
    macro: dict[str, Estimate]
    micro: dict[str, Estimate]
    difference: dict[str, dict[str, Difference]]
    macro_difference: dict[str, Difference]
    temperatures: dict[str, dict[str, float]]
    beside: dict[str, dict[str, Difference]] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightLook:
    """What one beta would do: the mean weight, and Kish's number of equally weighted pairs."""

    mean: float
    effective_pairs: float


@dataclass(frozen=True)
class MarginLook:
    """What tau and beta would do to one culture's training pairs.

    Attributes:
        quantiles: share -> of the sizes of the global model's margins, reward units.
        kept: tau -> share of the pairs below it; thresholds: share -> the tau for it, or None.
        num_kept: pairs that the tau of the settings keeps; weights: beta -> over these.
        warnings: where a value of the settings does next to nothing.
    """

    quantiles: dict[float, float]
    kept: dict[float, float]
    thresholds: dict[float, float | None]
    num_kept: int
    weights: dict[float, WeightLook]
    warnings: list[str]


@dataclass(frozen=True)
class TriedSelection:
    """A tau (None: no filter) and a beta (None: no weights) and the accuracy, on left-out training
    users, of heads on frozen features that were trained so; of several cultures the mean."""

    filter_threshold: float | None
    weight_temperature: float | None
    accuracy: float


@dataclass(frozen=True)
class ChosenSelection:
    """What stood for "auto", chosen by `num_folds`-fold cross-validation; `tried`: best first."""

    filter_threshold: float | None
    weight_temperature: float | None
    num_folds: int
    tried: list[TriedSelection]


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
    ref_rewards: tuple[float, float] | None = None
    human_scores: tuple[float, float] | None = None
    """The global model's and the person's, of chosen and rejected; None in older results."""


@dataclass(frozen=True)
class TrainingCurve:
    """One value per logged step. `grad_norm` is before clipping; `lr` that of the step."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Passes:
    """How texts were computed: at most so many tokens at once while training and without gradient
    (more where one pair or text is longer), and whether `in_rows`, without padding."""

    train_tokens: int
    inference_tokens: int
    in_rows: bool


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
    passes: Passes | None = None
    """None where no network is trained."""


@dataclass(frozen=True)
class Scale:
    """What one model's rewards mean beside another's: `scpo_scale.json` in its folder.

    Of its rewards of the reference texts, which are the same for the models of one data set:

    Attributes:
        mean, spread: in reward units; the spread is their standard deviation, above 0.
        quantiles: ascending, from the lowest reward to the highest, in equal steps of probability.
        num_texts: how many reference texts there were.
        references: fingerprint of their set.
    """

    mean: float
    spread: float
    quantiles: list[float]
    num_texts: int
    references: str


@dataclass(frozen=True)
class RunResult:
    """What one run found: `result.json`. Reports and trackers read it and compute nothing."""

    format: Literal[2]
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
    """On test users, by culture."""
    dev: dict[str, CultureEvaluation]
    """On the users (or questions) held out for choices; empty where nobody is."""
    model_dir: str
    device: str
    versions: dict[str, str]
    num_workers: int = 1
    """Workers that brought the run to its end."""
    engine: str = "torch"
    """"torch", or "deepspeed ZeRO <stage>"."""
    passes: Passes | None = None
    """None where no network is trained."""
    opinions: list[OpinionScores] = field(default_factory=list)
    """One for each choice of options and base; none where the data holds no distributions."""
    told: list[str] = field(default_factory=list)
    """What the method says of this fit, a sentence each."""
    opinion_examples: list[OpinionExample] = field(default_factory=list)
    chosen_selection: ChosenSelection | None = None
    """What was chosen for "auto" in `selection`; None where nothing was."""
    calibration: dict[str, Calibration] = field(default_factory=dict)
    """Culture -> on its test pairs."""
    best_of_n: dict[str, BestOfN] = field(default_factory=dict)
    """Culture -> on its test prompts."""

    @property
    def chosen_on(self) -> HeldOut:
        """The side that choices among runs are made on."""
        return "dev" if self.dev else "test"


@dataclass(frozen=True)
class MethodSummary:
    """One method on one culture (or the macro mean over cultures), averaged over seeds.

    `accuracy`, `minus_global`, `minus_finetune`: by layer; the differences are paired and their
    `p_holm` is corrected over the cultures of the comparison. `minus_finetune` is empty where
    finetune was not run, and for itself. `seed_sd`: layer -> standard deviation over seeds of the
    accuracy, None with one seed. `kept_share`: mean share of the training pairs selected. `noise`,
    `minus_noise`: the global model plus noise as large as each seed's change, and the method
    minus that; empty for "global" and without a global model. `others_minus_global`: on the pairs
    of `other_cultures`, None without a global model. `minus_best`: paired with the best method of
    the row on `all`, without a p-value, its interval holding for all methods at once; None for the
    best itself (`intervals.standing` has the word for it).
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
class ScoreComparison:
    """Two models' files of scores of the same responses, of anybody: the first minus the second.

    Attributes:
        evaluation: culture -> `before` is the second, `after` the first; "distinctive" are the
            pairs that the second ranks wrong, "agreed" those that it ranks right.
        macro: layer -> mean over cultures. best_of_n: "model" is the first, "global" the second.
        left_out: reason -> rows of people's scores that are in no number.
        clusters: what intervals take whole: of "users", "questions", "prompts" those there are.
    """

    first: str
    second: str
    evaluation: dict[str, CultureEvaluation]
    macro: dict[str, Difference]
    best_of_n: dict[str, BestOfN]
    left_out: dict[str, int]
    clusters: tuple[str, ...]


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
    minus_constant: Difference | None = None
    minus_others: Difference | None = None


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
