"""Whether a new model may take the champion's place: compared on the same test pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparison import (
    CulturePairs,
    PairOutcomes,
    culture_pairs,
    pairs_difference,
    right,
)
from scpo_ray.records import Difference, Layer
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.statistics.intervals import macro_difference, stream

MARGIN = 0.02
"""Accuracy, 2 points: so much a new champion may at worst lose on what is not to be traded away.

The lower end of the difference's interval must lie above minus this. Smaller, and few test sets
have the users (or questions) to show that anything is no worse; larger, and a culture's gain
could be paid for with a loss that people notice.
"""

TestPairs = Literal["all", "distinctive", "agreed", "other cultures"]


@dataclass(frozen=True)
class Contest:
    """Two models on some of the test pairs: the new one and the champion.

    `test_pairs`: a layer of the trained culture (of several, their macro mean), or the macro mean
    over the cultures that the new model was not trained for. `difference`: new minus champion.
    `holds`: whether what the rule asks of it is so; None where it asks nothing or there is none.
    """

    test_pairs: TestPairs
    accuracy: float | None
    champion_accuracy: float | None
    difference: Difference
    holds: bool | None


@dataclass(frozen=True)
class Verdict:
    """Whether a model is to be champion, why, and the numbers it rests on.

    `contests` is empty where there was nothing to compare. `model` and `champion` are named as in
    "scpo-Mexico:3"; "" where only outcomes were judged, or where there was no champion.
    """

    is_champion: bool
    reason: str
    margin: float
    contests: list[Contest]
    model: str = ""
    champion: str = ""


def judge(
    new: PairOutcomes,
    champion: PairOutcomes,
    cultures: Sequence[str],
    *,
    distinctive_threshold: float,
    samples: int,
    seed: int,
    margin: float,
) -> Verdict:
    """Whether `new` is not worse than `champion` on the same test pairs.

    On all pairs of the cultures it was trained for its accuracy is not below the champion's; on
    the agreed ones, and on all pairs of the other cultures, the lower end of the difference's
    95 % interval is above -margin. Where there are no such pairs that condition is left out, and
    the reason says so. Where there is no interval (one user or question) it does not hold.

    Args:
        cultures: those the new model was trained for, usually one.
        distinctive_threshold, samples: as in the new model's evaluation.
        seed: of the intervals and p-values.
        margin: accuracy, in [0, 1].

    Returns: not champion, and no contests, if the two were tested on other pairs or with another
        global model, or the new one on none of a trained culture.
    Raises: ValueError if a margin of `PairOutcomes` is NaN or infinite, or a setting is out of
        its range.
    """
    if not 0 <= margin <= 1:
        raise ValueError(f"margin must be in [0, 1], got {margin}")
    difference = pairs_difference(champion, new)
    if difference is not None:
        reason = f"it cannot be compared: the two differ in {difference}"
        return Verdict(False, reason, margin, [])
    settings = EvaluationConfig(distinctive_threshold=distinctive_threshold)
    tested = culture_pairs(new, settings)
    untested = [culture for culture in cultures if culture not in tested]
    if untested:
        reason = f"it cannot be compared: it was not tested on {', '.join(untested)}"
        return Verdict(False, reason, margin, [])
    trained = [tested[culture] for culture in cultures]
    others = [pairs for culture, pairs in tested.items() if culture not in cultures]
    asked: list[tuple[TestPairs, Layer, Sequence[CulturePairs]]] = [
        *((layer, layer, trained) for layer in trained[0].masks),
        ("other cultures", "all", others),
    ]
    contests = [
        _contest(
            test_pairs,
            [pairs.rows[pairs.masks[layer]] for pairs in of],
            new,
            champion,
            samples=samples,
            rng=stream(seed, "champion", test_pairs),
            margin=margin,
        )
        for test_pairs, layer, of in asked
    ]
    return Verdict(
        is_champion=all(contest.holds is not False for contest in contests),
        reason=_reason(contests, margin),
        margin=margin,
        contests=contests,
    )


def in_points(contest: Contest) -> str:
    """The difference and its interval in hundredths, as "+1.20 [-0.40, +2.80]"."""
    difference = contest.difference
    if difference.value is None:
        return "none"
    value = f"{100 * difference.value:+.2f}"
    if difference.low is None or difference.high is None:
        return value
    return f"{value} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def _contest(
    test_pairs: TestPairs,
    rows_by_culture: Sequence[NDArray[np.int64]],
    new: PairOutcomes,
    champion: PairOutcomes,
    *,
    samples: int,
    rng: np.random.Generator,
    margin: float,
) -> Contest:
    # Both models have the same pairs, so the mean over the cultures that have any is one number.
    some = [rows for rows in rows_by_culture if len(rows)]
    ours, theirs = ([right(side.margin[rows]) for rows in some] for side in (new, champion))
    difference = macro_difference(
        ours, theirs, [new.cluster[rows] for rows in some], samples=samples, rng=rng
    )
    holds = None
    if difference.value is not None and test_pairs == "all":
        holds = difference.value >= 0
    elif difference.value is not None and test_pairs != "distinctive":
        holds = difference.low is not None and difference.low > -margin
    return Contest(test_pairs, _mean(ours), _mean(theirs), difference, holds)


def _mean(outcomes: Sequence[NDArray[Any]]) -> float | None:
    return float(np.mean([outcome.mean() for outcome in outcomes])) if outcomes else None


def _reason(contests: Sequence[Contest], margin: float) -> str:
    """One sentence: what fails, or else what holds; then what was not checked."""
    failed = [c for c in contests if c.holds is False]
    shown = failed or [c for c in contests if c.holds]
    parts = [f"{c.test_pairs} {in_points(c)}{_rule(c, margin) if failed else ''}" for c in shown]
    checked = {c.test_pairs for c in contests if c.holds is not None}
    if "agreed" not in checked:
        parts.append("agreed not checked: no such test pair")
    if "other cultures" not in checked:
        parts.append("other cultures not checked: no test pair of theirs")
    how = "it may be worse" if failed else "it is not worse"
    return f"{how}, in points: {'; '.join(parts)}"


def _rule(contest: Contest, margin: float) -> str:
    if contest.test_pairs == "all":
        return ", must not be below 0"
    if contest.difference.low is None:
        return " without an interval (one user or question), which must be above " + (
            f"{-100 * margin:+.2f}"
        )
    return f", whose lower end must be above {-100 * margin:+.2f}"
