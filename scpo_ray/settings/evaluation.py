"""Layers, intervals, examples."""

from pydantic import Field

from scpo_ray.settings.section import Section


class EvaluationConfig(Section):
    distinctive_threshold: float = Field(0.5, gt=0, le=1)
    """A test pair is distinctive where the global model's win probability is below it."""

    bootstrap_samples: int = Field(10_000, ge=100, le=1_000_000)
    """Joint resamples of the users (or questions) behind comparisons with the best of several."""

    num_examples: int = Field(4, ge=0, le=1_000)
    """Pairs shown as text per culture and kind (kept, dropped, down-weighted)."""
