"""Whether a new model may take the champion's place: compared on the same held-out pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparable import (
    CulturePairs,
    PairOutcomes,
    culture_pairs,
    pairs_difference,
    right,
)
from scpo_ray.records import HeldOut, Layer
from scpo_ray.results import Difference
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.statistics.intervals import macro_difference

MARGIN = 0.02
"""Accuracy, 2 points: so much a new champion may at worst lose on what is not to be traded away.

The lower end of the difference's interval must lie above minus this, against the champion and
against the first of its line: what is lost step by step adds up to no more. Smaller, and few test
sets have the users (or questions) to show that anything is no worse; larger, and a culture's gain
could be paid for with a loss that people notice.
"""
MIN_CLUSTERS = 8
"""Users (or questions) that a condition must rest on: fewer are no sample of people."""

TestPairs = Literal["all", "distinctive", "agreed", "other cultures"]
Against = Literal["champion", "first champion"]


@dataclass(frozen=True)
class Contest:
    """Two models on some of the pairs: the new one and the champion, or the first of its line.

    `test_pairs`: a layer of the trained culture (of several, their macro mean), or the macro mean
    over the cultures that the new model was not trained for. `difference`: new minus champion.
    `holds`: whether what the rule asks of it is so; None where it asks nothing or there is none.
    """

    test_pairs: TestPairs
    accuracy: float | None
    champion_accuracy: float | None
    difference: Difference
    holds: bool | None
    against: Against = "champion"


@dataclass(frozen=True)
class Judgement:
    """Whether a model is to be champion, why, and the numbers it rests on.

    `contests` is empty where there was nothing to compare. `model`, `champion` and `first` (of the
    champion's line) are named as in "scpo-Mexico:3"; "" where only outcomes were judged, or where
    there was no champion. `side`: whose pairs they were compared on: dev, so that test users have
    no part in what is used; test where nobody is held out for choices.
    """

    is_champion: bool
    reason: str
    margin: float
    contests: list[Contest]
    model: str = ""
    champion: str = ""
    first: str = ""
    side: HeldOut = "test"


def judge(
    new: PairOutcomes,
    champion: PairOutcomes,
    cultures: Sequence[str],
    *,
    first: PairOutcomes | None = None,
    distinctive_threshold: float,
    margin: float,
) -> Judgement:
    """Whether `new` is better than `champion` on the same pairs, and loses nowhere else.

    On all pairs of the cultures it was trained for its accuracy is above the champion's, and the
    lower end of the difference's 95 % interval above -margin. On the agreed ones, and on all pairs
    of the other cultures, the lower end is above -margin. Against the first champion of the line
    all three are: each step alone would allow the margin anew. Each condition rests on at least 8
    users (or questions). Where there are no such pairs a condition is left out, and the reason
    says so.

    Args:
        cultures: those the new model was trained for, usually one.
        first: the first champion of the line, if neither `champion` nor `new` is it.
        distinctive_threshold: as in the new model's evaluation.
        margin: accuracy, in [0, 1].

    Returns: not champion, and no contests, if two were tested on other pairs or with another
        global model, or the new one on none of a trained culture.
    Raises: ValueError if a margin is NaN or infinite, no culture is named, or a setting is out of
        its range.
    """
    if not 0 <= margin <= 1:
        raise ValueError(f"margin must be in [0, 1], got {margin}")
    if not cultures:
        raise ValueError("cultures must name one at least, got none")
    rivals: dict[Against, PairOutcomes] = {"champion": champion}
    if first is not None and not _is_same_model(first, new):
        rivals["first champion"] = first
    tested = culture_pairs(new, EvaluationConfig(distinctive_threshold=distinctive_threshold))
    obstacle = _obstacle(new, rivals, [c for c in cultures if c not in tested])
    if obstacle is not None:
        return Judgement(False, f"it cannot be compared: {obstacle}", margin, [])
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
            *(new, rival),
            against=against,
            margin=margin,
        )
        for against, rival in rivals.items()
        for test_pairs, layer, of in asked
        if against == "champion" or test_pairs != "distinctive"
    ]
    holds = all(contest.holds is not False for contest in contests)
    return Judgement(holds, _reason(contests, margin), margin, contests)


def _obstacle(
    new: PairOutcomes, rivals: Mapping[Against, PairOutcomes], untested: Sequence[str]
) -> str | None:
    """Why two models cannot be compared; None if they can."""
    for against, rival in rivals.items():
        difference = pairs_difference(rival, new)
        if difference is not None:
            of = "the two" if against == "champion" else "it and the first champion"
            return f"{of} differ in {difference}"
    return f"it was not tested on {', '.join(untested)}" if untested else None


def _is_same_model(one: PairOutcomes, other: PairOutcomes) -> bool:
    """Whether a first champion has come back: it is no rival of itself."""
    return pairs_difference(one, other) is None and np.array_equal(one.margin, other.margin)


def in_points(contest: Contest) -> str:
    """The difference and its interval in hundredths, as "+1.20 [-0.40, +2.80]"."""
    difference = contest.difference
    if difference.value is None:
        return "none"
    value = f"{100 * difference.value:+.2f}"
    if difference.low is None or difference.high is None:
        return value
    return f"{value} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def rule(contest: Contest, margin: float) -> str:
    """What is asked of a contest, for people; "" where nothing is."""
    if contest.test_pairs == "distinctive":
        return ""
    low = f"low end > {-100 * margin:.1f}"
    if contest.test_pairs == "all" and contest.against == "champion":
        return f"above 0, {low}"
    return low


def _contest(
    test_pairs: TestPairs,
    rows_by_culture: Sequence[NDArray[np.int64]],
    new: PairOutcomes,
    rival: PairOutcomes,
    *,
    against: Against,
    margin: float,
) -> Contest:
    # Both models have the same pairs, so the mean over the cultures that have any is one number.
    some = [rows for rows in rows_by_culture if len(rows)]
    ours, theirs = ([right(side.margin[rows]) for rows in some] for side in (new, rival))
    difference = macro_difference(ours, theirs, [new.cluster[rows] for rows in some])
    holds = None
    if difference.value is not None and test_pairs != "distinctive":
        holds = (
            difference.low is not None
            and difference.low > -margin
            and difference.num_clusters >= MIN_CLUSTERS
        )
        if test_pairs == "all" and against == "champion":
            holds = holds and difference.value > 0
    return Contest(test_pairs, _mean(ours), _mean(theirs), difference, holds, against)


def _mean(outcomes: Sequence[NDArray[Any]]) -> float | None:
    return float(np.mean([outcome.mean() for outcome in outcomes])) if outcomes else None


def _reason(contests: Sequence[Contest], margin: float) -> str:
    """One sentence: what fails, or else what holds; then what was not checked."""
    failed = [c for c in contests if c.holds is False]
    shown = failed or [c for c in contests if c.holds]
    parts = [f"{_named(c)} {in_points(c)}{_asked(c, margin) if failed else ''}" for c in shown]
    checked = {c.test_pairs for c in contests if c.holds is not None}
    if "agreed" not in checked:
        parts.append("agreed not checked: no such pair")
    if "other cultures" not in checked:
        parts.append("other cultures not checked: no pair of theirs")
    how = "it is not shown to be as good" if failed else "it is better and loses nowhere else"
    return f"{how}, in points: {'; '.join(parts)}"


def _named(contest: Contest) -> str:
    of = " against the first champion" if contest.against == "first champion" else ""
    return f"{contest.test_pairs}{of}"


def _asked(contest: Contest, margin: float) -> str:
    found = contest.difference
    if found.num_clusters < MIN_CLUSTERS:
        return f" from {found.num_clusters} users (or questions), must be from {MIN_CLUSTERS}"
    if found.low is None:
        return " without an interval: each culture has one user (or question)"
    asked = [f", whose lower end must be above {-100 * margin:+.2f}"] * (found.low <= -margin)
    if contest.test_pairs == "all" and contest.against == "champion" and (found.value or 0) <= 0:
        asked.append(", must be above 0")
    return "".join(asked)
