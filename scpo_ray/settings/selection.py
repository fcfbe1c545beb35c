"""Which pairs are kept and how much each counts."""

from pydantic import Field

from scpo_ray.settings.section import Section


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
