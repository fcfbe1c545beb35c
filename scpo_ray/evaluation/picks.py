"""Which of several candidates each judge would pick, and where judges part. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Values = Mapping[str, Sequence[float]]
"""Judge -> what each of a prompt's K candidates is worth to it."""


def picks_of(values: Values) -> dict[str, int]:
    """Judge -> the place of its best candidate, the first of equal ones."""
    return {judge: int(np.argmax(np.asarray(worth))) for judge, worth in values.items()}


def loss_to_others(values: Values) -> float:
    """How far the judges part: what a judge loses when another one picks for it, in standard
    deviations of its own values of these candidates; mean over ordered pairs of judges.

    0 where all pick alike, and with one judge.
    """
    picks = list(picks_of(values).values())
    losses: list[float] = []
    for number, worth in enumerate(values.values()):
        own: NDArray[np.float64] = np.asarray(worth, np.float64)
        spread = float(own.std())
        others = own[[pick for place, pick in enumerate(picks) if place != number]]
        losses += [0.0] * len(others) if spread == 0 else ((own.max() - others) / spread).tolist()
    return float(np.mean(losses)) if losses else 0.0


def agreement(picks: Sequence[Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Judge -> judge -> the share of prompts for which both pick the same candidate.

    Args:
        picks: of each of N > 0 prompts, as `picks_of`.
    """
    judges = list(picks[0])
    table = np.array([[each[judge] for judge in judges] for each in picks])
    shares = (table[:, :, None] == table[:, None, :]).mean(axis=0)
    return {
        judge: dict(zip(judges, row, strict=True))
        for judge, row in zip(judges, shares.tolist(), strict=True)
    }
