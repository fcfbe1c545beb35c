"""What was run and what came out, in plain sentences."""

from collections.abc import Iterator, Mapping, Sequence

from scpo_ray.report.cells import (
    change_over,
    counted,
    interval,
    isolated,
    model_and_data,
    percent,
    points,
    run_name,
    size_of,
    unit_of,
)
from scpo_ray.results import ComparisonResult, Difference, Estimate, MethodSummary, RunResult
from scpo_ray.statistics.intervals import standing, verdict


def lead(results: Sequence[RunResult], comparison: ComparisonResult | None) -> list[str]:
    """What was run and what came out, in plain sentences."""
    unit = unit_of(results)
    sources = "; ".join(dict.fromkeys(model_and_data(r.config) for r in results))
    if comparison is None:
        said = [f"{counted(len(results), 'run')}, nothing averaged over runs: {sources}."]
        return said + [s for r in results[:6] for s in _run_finding(r, unit)]
    said = [
        f"{counted(len(comparison.run_ids), 'finished run')}: "
        f"{counted(len(comparison.methods), 'method')} ({', '.join(comparison.methods)}) on "
        f"{counted(len(comparison.cultures), 'culture')}, "
        f"{counted(len(comparison.seeds), 'seed')} ({', '.join(map(str, comparison.seeds))}); "
        f"{sources or 'no run finished'}."
    ]
    macro = {s.method: s for s in comparison.summaries if s.culture == ""}
    trained = [m for m in comparison.methods if m != "global"]
    main = "scpo" if "scpo" in trained else next(reversed(trained), "global")
    if main in macro:
        said += _macro_finding(macro[main], comparison, unit)
        changes = [s.minus_global for s in comparison.summaries if s.method == main]
        said += _what_can_be_shown(macro[main].minus_global, changes[1:], unit)
    said += _best_finding(list(macro.values()))
    for method in trained:
        if method in macro:
            s = macro[method]
            said += _noise_findings(method, s.accuracy, s.noise, s.minus_noise, s.scale)
    return said


def _best_finding(macro: Sequence[MethodSummary]) -> list[str]:
    """Which method has the best macro mean, and what is known of the others beside it."""
    by_standing: dict[str, list[str]] = {}
    for s in macro:
        behind = s.minus_best
        found = standing(s.accuracy.get("all"), behind)
        shown = "" if behind is None else f" ({points(behind.value)} {interval(behind)})"
        by_standing.setdefault(found, []).append(f"{s.method}{shown}")
    if "best" not in by_standing or len(macro) == 1:
        return []
    said = [
        f"{standing}: {', '.join(by_standing[standing])}"
        for standing in ("not distinguishable", "behind", "unknown")
        if standing in by_standing
    ]
    return [
        f"Over all pairs {by_standing['best'][0]} has the best macro mean. Beside it (points, "
        f"paired, 95 % intervals that hold for all at once), {'; '.join(said)}."
    ]


def _macro_finding(macro: MethodSummary, comparison: ComparisonResult, unit: str) -> list[str]:
    estimate = macro.accuracy.get("all")
    if estimate is None or estimate.value is None:
        return [f"{macro.method} has no macro mean: there was nothing to average."]
    main = (
        f"{macro.method}: {percent(estimate.value)} % {interval(estimate)} of all test pairs "
        f"ranked right, macro mean of {counted(len(comparison.cultures), 'culture')} "
        f"({size_of(estimate, unit)})"
        f"{change_over(macro.minus_global.get('all'), 'over the global model')}"
        f"{change_over(macro.minus_finetune.get('all'), 'against finetune')}."
    )
    layers = [
        f"{percent(e.value)} % {interval(e)} {where}"
        for e, where in (
            (macro.accuracy.get("distinctive"), "where the global model is wrong (distinctive)"),
            (macro.accuracy.get("agreed"), "where it is right (agreed)"),
            (macro.other_cultures, "on the other cultures' pairs"),
        )
        if e is not None and e.value is not None
    ]
    kept = f"It trained on {percent(macro.kept_share)} % of the training pairs."
    return [main, f"{kept} It ranks right {', '.join(layers)}."]


def _run_finding(result: RunResult, unit: str) -> Iterator[str]:
    for culture in result.culture_weights:
        tested = result.evaluation.get(culture)
        estimate = tested.after.get("all") if tested else None
        if tested is None or estimate is None or estimate.value is None:
            continue
        change = tested.difference.get("all")
        yield (
            f"{run_name(result)}: {percent(estimate.value)} % {interval(estimate)} of the test "
            f"pairs of {isolated(culture)} ranked right ({size_of(estimate, unit)})"
            f"{change_over(change, 'over the global model')}."
        )
        if change is not None and change.detectable is not None:
            yield (
                f"With these {unit}, a difference of {100 * change.detectable:.1f} points would be "
                "found in 80 % of cases (p ≤ 0.05); a smaller one may be there and not show."
            )
        noise = tested.controls.get("global_noise", {})
        name = run_name(result)
        yield from _noise_findings(name, tested.after, noise, tested.minus_noise, tested.scale)


def _what_can_be_shown(
    macro: Mapping[str, Difference], by_culture: Sequence[Mapping[str, Difference]], unit: str
) -> list[str]:
    """How large a difference must be for these test sets to show it."""
    change = macro.get("all")
    if change is None or change.detectable is None:
        return []
    found = [c["all"].detectable for c in by_culture if "all" in c]
    alone = sorted(detectable for detectable in found if detectable is not None)
    ends = " to ".join(dict.fromkeys(f"{100 * end:.1f}" for end in (alone[:1] + alone[-1:])))
    return [
        f"With these {unit}, a macro difference from the global model of "
        f"{100 * change.detectable:.1f} points would be found in 80 % of cases (p ≤ 0.05)"
        f"{f'; in one culture alone it would take {ends} points' if alone else ''}. "
        "A smaller one may be there and not show."
    ]


def _noise_findings(
    name: str,
    accuracy: Mapping[str, Estimate],
    noise: Mapping[str, Estimate],
    minus_noise: Mapping[str, Difference],
    scale: float | None,
) -> Iterator[str]:
    """Warnings where a change is not shown to do better than noise as large as it."""
    gained, kept, whole = (minus_noise.get(layer) for layer in ("distinctive", "agreed", "all"))
    if gained is not None and gained.value is not None and verdict(gained) != "better":
        than = {
            "worse": "is less than noise of the same size would give",
            "not distinguishable": "is not distinguishable from that of noise of the same size",
            "unknown": "cannot be told from that of noise of the same size: there is no interval",
        }
        over_all = {
            "better": f"over all pairs it is better than that noise{_by(whole)}",
            "worse": f"over all pairs it is worse than that noise{_by(whole)}",
            "not distinguishable": (
                "over all pairs, too, it is not distinguishable from that noise"
                f"{_by(whole)}: it does not show that a taste was learned"
            ),
            "unknown": "over all pairs there is no interval to tell by",
        }
        yield (
            f"{name}: the gain on distinctive {than[verdict(gained)]}"
            f"{_against(accuracy, noise, 'distinctive')}{_by(gained)}; {over_all[verdict(whole)]}."
        )
    if kept is not None and kept.value is not None and verdict(kept) == "worse":
        yield (
            f"{name}: more of agreed is lost than to noise of the same size"
            f"{_against(accuracy, noise, 'agreed')}{_by(kept)}: it contradicts the global model."
        )
    if scale is not None and not 0.5 <= scale <= 2:
        yield (
            f"{name}: its margins are {scale:.2f} times the global model's, which alone turns no "
            "pair; the noise is as large as what else changed."
        )


def _against(accuracy: Mapping[str, Estimate], noise: Mapping[str, Estimate], layer: str) -> str:
    ours, theirs = (percent(of[layer].value) for of in (accuracy, noise))
    return f" ({ours} % against {theirs} %)"


def _by(change: Difference | None) -> str:
    return "" if change is None else f", {points(change.value)} points {interval(change)}"
