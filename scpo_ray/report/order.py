"""Which runs come first on a page, and which evaluation stands for several."""

from collections.abc import Sequence

from scpo_ray.results import CultureEvaluation, RunResult
from scpo_ray.settings.methods import method_order


def in_order(results: Sequence[RunResult], cultures: Sequence[str] = ()) -> list[RunResult]:
    """By method, what was trained on (`cultures` first, as they stand, then by name), and seed."""
    place = {culture: number for number, culture in enumerate(cultures)}

    def key(run: RunResult) -> tuple[int, int, str, int, str]:
        name = trained_on(run)
        return method_order(run.method), place.get(name, len(place)), name, run.seed, run.run_id

    return sorted(results, key=key)


def trained_on(result: RunResult) -> str:
    """The culture, or the mixture with its weights."""
    weights = {culture: w for culture, w in result.culture_weights.items() if w}
    if len(weights) == 1:
        return next(iter(weights))
    if len(weights) > 4 and len(set(weights.values())) == 1:
        return f"{len(weights)} cultures pooled"
    return " + ".join(f"{culture} x {weight:g}" for culture, weight in weights.items())


def control_evaluations(results: Sequence[RunResult]) -> dict[str, CultureEvaluation]:
    """Culture -> the evaluation whose controls stand beside the methods.

    That of scpo trained on the culture, lowest seed, where it was run: then "global_noise" is as
    large as scpo's change. Else that of another trained run, else of any.
    """

    def rank(run: RunResult, culture: str) -> tuple[bool, bool, bool, int]:
        untaught = not run.culture_weights.get(culture)
        return untaught, run.method != "scpo", run.method == "global", run.seed

    tested = dict.fromkeys(c for r in results for c in r.evaluation)
    cultures = [c for c in dict.fromkeys([*_trained(results), *tested]) if c in tested]
    return {
        culture: min(
            (r for r in results if culture in r.evaluation), key=lambda r: rank(r, culture)
        ).evaluation[culture]
        for culture in cultures
    }


def _trained(results: Sequence[RunResult]) -> list[str]:
    """What single-culture runs were trained for, in the order of the runs."""
    return list(dict.fromkeys(c for r in results for c, w in r.culture_weights.items() if w))


def controls(results: Sequence[RunResult]) -> list[str]:
    """Names of the controls that stand beside the methods."""
    return list(
        dict.fromkeys(name for e in control_evaluations(results).values() for name in e.controls)
    )
