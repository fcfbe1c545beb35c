"""Which method to use for whom, and how sure that is: one rule, from what was compared.

The best of the methods with a number on a culture's own test pairs is the one that ranks most of
them right; of ties, the first in the order of methods. It is recommended if it is shown to be
better than what it would replace, the global model. Else the global model is: it needs no training
and loses nothing elsewhere. Without a global model the best is recommended in any case.

What is shown comes from the differences to the best alone, whose intervals hold for all methods at
once (so that the luckiest of several is not taken for better), in the words of
`intervals.standing`:

- "clear": the best is shown to be better than the global model; where that is the best itself, or
  where there is none, than every other method.
- "not distinguishable": the interval of such a difference holds 0.
- "too few users": there is no interval, for fewer than two users (or questions) were tested.
- "unknown": there is nothing to compare with.

A method that cannot be told apart from the best may be as good: take the cheaper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scpo_ray.results import (
    ComparisonResult,
    Difference,
    Estimate,
    MethodSummary,
    RunResult,
    Standing,
)
from scpo_ray.statistics.intervals import clusters_needed, reversed_difference, standing
from scpo_ray.statistics.joint_scores import Mode, ranking

Certainty = Literal["clear", "not distinguishable", "too few users", "unknown"]

WORTH_SHOWING = 0.05
"""Accuracy, 5 points: the gain that a test set should be able to show."""


@dataclass(frozen=True)
class Candidate:
    """One of several that were measured on the same pairs.

    `minus_best`: its difference from the best of them; None for the best, or where there is none.
    """

    name: str
    reached: Estimate | None
    minus_best: Difference | None


@dataclass(frozen=True)
class Recommendation:
    """What to use for a culture ("" for the macro mean over all), and how sure that is.

    Attributes:
        name: the recommended one; "" where none has a number.
        best: the one that ranks most pairs right. reached: its accuracy on `all` of the culture's
            own test pairs.
        over_global, over_finetune: the best minus that one; None where that is the best itself, or
            was not compared.
        as_good: those that cannot be told apart from the best. unknown: those of which nothing
            says.
        agreed: the best minus the global model where the global model is right.
        others: the best minus the global model on the other cultures' test pairs.
        users_needed: users (or questions) that would show `WORTH_SHOWING` in 80 % of cases; None
            where nothing says.
    """

    culture: str
    name: str
    best: str
    reached: Estimate | None
    over_global: Difference | None
    over_finetune: Difference | None
    as_good: tuple[str, ...]
    unknown: tuple[str, ...]
    agreed: Difference | None
    others: Difference | None
    certainty: Certainty
    users_needed: int | None


def recommend(
    culture: str, candidates: Sequence[Candidate], *, mode: Mode = "max"
) -> Recommendation:
    """By the rule above.

    Args:
        candidates: in the order in which ties are resolved.
        mode: "min" where the lowest number is the best.

    Returns: without `agreed` and `others`, which are the method's own.
    """
    values = [c.reached.value if c.reached else None for c in candidates]
    places = ranking(values, mode=mode)
    if not places or values[places[0]] is None:
        nothing: tuple[None, None, None] = (None, None, None)
        return Recommendation(culture, "", "", *nothing, (), (), None, None, "unknown", None)
    best = candidates[places[0]]
    rest = [candidates[place] for place in places[1:] if values[place] is not None]
    # Of two without a difference from the best one is the best, and of the other nothing is known.
    stand: dict[str, Standing] = {
        c.name: standing(c.reached, c.minus_best) if c.minus_best else "unknown" for c in rest
    }
    replaced = [c for c in rest if c.name == "global"] or rest
    over = {c.name: reversed_difference(c.minus_best) for c in rest if c.minus_best}
    certainty = _certainty([(stand[c.name], c.minus_best) for c in replaced])
    names = [c.name for c in candidates]
    has_global = any(c.name == "global" for c in rest)
    return Recommendation(
        culture=culture,
        name="global" if has_global and certainty != "clear" else best.name,
        best=best.name,
        reached=best.reached,
        over_global=over.get("global"),
        over_finetune=over.get("finetune"),
        as_good=tuple(n for n in names if stand.get(n) == "not distinguishable"),
        unknown=tuple(n for n in names if stand.get(n) == "unknown"),
        agreed=None,
        others=None,
        certainty=certainty,
        users_needed=_users_needed([over[c.name] for c in replaced if c.name in over]),
    )


def recommendations(comparison: ComparisonResult) -> list[Recommendation]:
    """The macro mean's, then each culture's, in the comparison's order."""
    rows: dict[str, list[MethodSummary]] = {c: [] for c in ("", *comparison.cultures)}
    for summary in comparison.summaries:
        rows[summary.culture].append(summary)
    return [of_methods(culture, summaries) for culture, summaries in rows.items()]


def of_methods(culture: str, summaries: Sequence[MethodSummary]) -> Recommendation:
    """Args: summaries: every method's row of that culture."""
    found = recommend(
        culture, [Candidate(s.method, s.accuracy.get("all"), s.minus_best) for s in summaries]
    )
    best = next((s for s in summaries if s.method == found.best), None)
    if best is None or best.method == "global":
        return found
    return _with_costs(found, best.minus_global, best.others_minus_global)


def of_run(result: RunResult) -> list[Recommendation]:
    """A run against the global model it started from, for each culture that it was trained for.

    What it costs the other cultures is in the comparison of several runs, not in one.
    """
    found = []
    for culture, weight in result.culture_weights.items():
        tested = result.evaluation.get(culture)
        if not weight or tested is None or result.method == "global":
            continue
        change = tested.difference.get("all")
        ours = Candidate(result.method, tested.after.get("all"), None)
        candidates = [ours]
        if change is not None and change.value is not None:
            rival = Candidate("global", tested.before.get("all"), None)
            if change.value >= 0:
                rival = replace(rival, minus_best=reversed_difference(change))
            else:
                ours = replace(ours, minus_best=change)
            candidates = [ours, rival]
        chosen = recommend(culture, candidates)
        if chosen.best == result.method:
            chosen = _with_costs(chosen, tested.difference, None)
        found.append(chosen)
    return found


def _with_costs(
    found: Recommendation, minus_global: Mapping[str, Difference], others: Difference | None
) -> Recommendation:
    return replace(found, agreed=minus_global.get("agreed"), others=others)


def _certainty(replaced: Sequence[tuple[Standing, Difference | None]]) -> Certainty:
    """What all that would be replaced show together, by how they stand to the recommended one."""
    if all(found is None or found.value is None for _, found in replaced):
        return "unknown"
    shown = [word for word, _ in replaced]
    if all(word == "behind" for word in shown):
        return "clear"
    # One that cannot be told apart is reason enough, whatever is unknown of the others.
    return "not distinguishable" if "not distinguishable" in shown else "too few users"


def _users_needed(differences: Sequence[Difference]) -> int | None:
    needed = [clusters_needed(found, WORTH_SHOWING) for found in differences]
    known = [number for number in needed if number is not None]
    return max(known) if known and len(known) == len(needed) else None
