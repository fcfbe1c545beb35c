"""The methods, and what each has to set."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from scpo_ray.settings.countries import country_names
from scpo_ray.settings.section import Section

MethodName = Literal[
    "global",
    "finetune",
    "filter",
    "weight",
    "inverse",
    "scpo",
    "pooled",
    "group_dro",
    "shared_offset",
    "lore",
    "gpo",
]


METHOD_VERSION = 1
"""Raised when the same settings come to give another model: earlier runs are then other runs."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method as a point of settings: SCPO's own (paper, ablations), then its rivals.

    Attributes:
        trains: the network's weights, by the plan's steps.
        filters, weighting: which pairs, and how much each counts.
        pools: one model for all cultures: in a comparison or a sweep, theirs is one run.
        reweights: cultures count as group DRO says, from step to step.
        heads: what is learned from all cultures' pairs on the frozen network's features, in place
            of its weights; None: nothing.
        few_shot: answer shares are predicted from the frozen features of a country's few known
            answers; for opinions alone.
    """

    trains: bool
    filters: bool
    weighting: Literal["none", "agreement", "inverse"]
    pools: bool = False
    reweights: bool = False
    heads: Literal["offset", "low-rank"] | None = None
    few_shot: bool = False

    @property
    def on_features(self) -> bool:
        """Whether it learns from all cultures on the network's features, and not its weights."""
        return self.heads is not None or self.few_shot

    @property
    def needs_global_model(self) -> bool:
        return self.filters or self.weighting != "none" or self.on_features

    @property
    def needs_cultures(self) -> bool:
        """Whether it learns from several cultures at once, and one alone makes no sense."""
        return self.pools or self.on_features


METHODS: dict[MethodName, Method] = {
    "global": Method(trains=False, filters=False, weighting="none"),
    "finetune": Method(trains=True, filters=False, weighting="none"),
    "filter": Method(trains=True, filters=True, weighting="none"),
    "weight": Method(trains=True, filters=False, weighting="agreement"),
    "inverse": Method(trains=True, filters=False, weighting="inverse"),
    "scpo": Method(trains=True, filters=True, weighting="agreement"),
    "pooled": Method(trains=True, filters=False, weighting="none", pools=True),
    "group_dro": Method(trains=True, filters=False, weighting="none", pools=True, reweights=True),
    "shared_offset": Method(trains=False, filters=False, weighting="none", heads="offset"),
    "lore": Method(trains=False, filters=False, weighting="none", heads="low-rank"),
    "gpo": Method(trains=False, filters=False, weighting="none", few_shot=True),
}


OWN_METHODS: tuple[MethodName, ...] = (
    "global",
    "finetune",
    "filter",
    "weight",
    "inverse",
    "scpo",
)
"""The paper's, which a comparison runs where its space names none; the others are rivals."""


class SelectionConfig(Section):
    filter_threshold: float | None = Field(0.7, gt=0, le=1)
    """Keep a training pair where the global model's win probability is below it (tau), in the
    methods that filter; null: no filter."""

    weight_temperature: float = Field(1.10, gt=0)
    """Reward units; lower weighs disagreement down more sharply (beta). The inverse ablation
    has none (the paper's formula)."""

    normalize_weights: bool = False
    """Divide a step's loss by the sum of its pairs' weights instead of their number, so that
    weighting does not shrink the step."""


class GroupDroConfig(Section):
    step_size: float = Field(0.01, gt=0)
    """How fast the cultures' weights follow their losses (eta_q in the paper)."""


class SharedOffsetConfig(Section):
    shared_ridge: float = Field(1e-4, gt=0)
    """Penalty on what all cultures share, as half of it times the squared length, in units of the
    loss; pairs' features are scaled to a mean squared length of 1."""

    offset_ridge: float = Field(1e-4, gt=0)
    """The same for what a culture has of its own: higher keeps the cultures closer together."""

    max_iterations: int = Field(1_000, ge=1, le=1_000_000)
    """Iterations of the solver at most; it ends before where the gradient vanishes."""


class LoreConfig(Section):
    rank: int | None = Field(None, ge=1)
    """Shared heads of which each culture is a mixture, at most as many as there are cultures;
    null: one for every two cultures, at least 2."""

    ridge: float = Field(1e-5, gt=0)
    """Penalty on each shared head's distance from the global model's, as for shared_offset."""

    max_iterations: int = Field(1_000, ge=1, le=1_000_000)
    """Iterations of the solver at most; it ends before where the gradient vanishes."""


class GpoConfig(Section):
    num_learning_countries: int = Field(5, ge=1)
    """Countries to learn from, drawn by the run's seed; a run's own country is never among them."""

    learning_countries: list[str] | None = Field(None, min_length=1)
    """The countries to learn from, in place of drawn ones."""

    num_context_questions: int = Field(20, ge=1, le=1_000_000)
    """Training questions whose answers are known of the country that is predicted."""

    num_steps: int = Field(2_000, ge=1, le=10**7)
    """Steps of the predictor; every learning country is in each. The paper makes 200,000."""

    learning_rate: float = Field(3e-4, gt=0)
    """Adam's, falling to zero in a cosine."""

    min_questions: int = Field(10, ge=1, le=1_000_000)
    """Questions that a learning country shows in a step, and that are asked of it, at least."""

    max_questions: int = Field(100, ge=1, le=1_000_000)
    """The same at most."""

    @field_validator("learning_countries")
    @classmethod
    def countries_have_one_name(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else country_names(value, "learning_countries")

    @model_validator(mode="after")
    def settings_agree(self) -> Self:
        if self.max_questions < self.min_questions:
            raise ValueError(
                f"max_questions {self.max_questions} must not be below min_questions "
                f"{self.min_questions}"
            )
        return self


class RivalsConfig(Section):
    """Each method reads the section of its own name."""

    group_dro: GroupDroConfig = GroupDroConfig()
    """One model for all cultures, the worst of which counts most."""

    shared_offset: SharedOffsetConfig = SharedOffsetConfig()
    """A score head for all cultures and an offset for each, on frozen features."""

    lore: LoreConfig = LoreConfig()
    """A few shared score heads, mixed for each culture, on frozen features."""

    gpo: GpoConfig = GpoConfig()
    """A country's answer shares, predicted from its answers to a few questions."""
