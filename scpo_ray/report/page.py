"""Results as one HTML page and as pictures. Formats numbers and computes none."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scpo_ray.records import (
    LAYERS,
    ComparisonResult,
    CultureCounts,
    Difference,
    Estimate,
    ExamplePair,
    InputError,
    MethodSummary,
    OpinionScores,
    RunResult,
    SelectionSummary,
    Verdict,
)
from scpo_ray.report import pictures
from scpo_ray.report.pictures import controls, in_order, label, order, trained_on
from scpo_ray.statistics.intervals import standing, verdict
from scpo_ray.storage.disk import whole_file

log = logging.getLogger(__name__)

NONE = "–"
MAX_CHARACTERS = 700

TONES: dict[Verdict, str] = {
    "better": "up",
    "worse": "down",
    "not distinguishable": "noise",
    "unknown": "noise",
}
"""How a difference's cell reads."""
UNSHOWN = ("not distinguishable", "unknown")
"""The verdicts that a cell says in words; the others are its colour and its sign."""

Pick = Callable[[Any], Mapping[str, Estimate | Difference]]
"""Which numbers, by layer, of a MethodSummary or a CultureEvaluation."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as text, what stands below it, how it reads and what hovering over it says."""

    main: str
    lines: tuple[str, ...] = ()
    tone: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    size: str
    kind: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """`columns`: (name, its size)."""

    title: str
    corner: str
    columns: list[tuple[str, str]]
    rows: list[Row]

    @property
    def is_empty(self) -> bool:
        return all(cell.main == NONE for row in self.rows for cell in row.cells)


def write_report(
    results: Sequence[RunResult], comparison: ComparisonResult | None, path: Path
) -> Path:
    """One self-contained HTML file: no script, no reference to anything outside it.

    Args:
        results: runs, in any order; those of `comparison` where there is one.
        comparison: methods side by side; None shows each run as a row of its own.

    Returns: `path`; the file is there whole or not at all.
    Raises: InputError if there is nothing to show or `path` cannot be written.
    """
    if not results and comparison is None:
        raise InputError(f"{path}: nothing to report", ["results: must hold a run, got none"])
    page = _page(in_order(results), comparison)
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")
    log.info("%s: report of %d runs, %.1f MB", path, len(results), len(page) / 1e6)
    return path


def write_pictures(
    results: Sequence[RunResult], comparison: ComparisonResult | None, folder: Path
) -> list[Path]:
    """The page's figures as PNG files in `folder`.

    Returns: the files in the page's order; the same runs give the same names.
    Raises: InputError if `folder` cannot be written.
    """
    paths = []
    for picture in pictures.draw(in_order(results), comparison):
        paths.append(folder / f"{picture.name}.png")
        with whole_file(paths[-1]) as part:
            pictures.save_png(picture.figure, part)
    return paths


def render(template: str, drawn: Sequence[pictures.Picture], **values: Any) -> str:
    """A page of this package: `template` with its figures and `values`, which are escaped."""
    environment = Environment(
        loader=PackageLoader("scpo_ray.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"label": label, "percent": percent, "points": points}
    environment.filters |= {"shortened": shortened, "trained_on": trained_on}
    environment.filters |= {"yaml": yaml.safe_dump}
    page = environment.get_template(template).render(
        figures=[
            (p.section, Markup(pictures.to_svg(p.figure, title=p.title, key=p.name))) for p in drawn
        ],
        inks=pictures.INKS,
        **values,
    )
    # HTML has no control characters and no lone surrogates; the texts of a data set may.
    return re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", page)


def _page(results: Sequence[RunResult], comparison: ComparisonResult | None) -> str:
    methods = comparison.methods if comparison else {"global", *(r.method for r in results)}
    data_cultures = {culture for result in results for culture in result.evaluation}
    legend = pictures.legend_figure([*sorted(methods, key=order), *controls(results)])
    return render(
        "report.html.jinja",
        pictures.draw(results, comparison),
        title=comparison.experiment if comparison else results[0].experiment,
        lead=_lead(results, comparison),
        results=results,
        comparison=comparison,
        tables=_comparison_tables(results, comparison) if comparison else _run_tables(results),
        opinions=_opinion_tables(results, comparison),
        selection=_selection_table(results),
        legend=Markup(pictures.to_svg(legend, title="Legend", key="legend")),
        examples=_examples(results),
        data=_data(results),
        warnings=list(dict.fromkeys(w for r in results for w in r.warnings)),
        unit=_unit(results),
        num_cultures=max(len(data_cultures), len(comparison.cultures) if comparison else 0),
        max_cultures=pictures.MAX_CULTURES,
    )


def _lead(results: Sequence[RunResult], comparison: ComparisonResult | None) -> list[str]:
    """What was run and what came out, in plain sentences."""
    unit = _unit(results)
    sources = "; ".join(dict.fromkeys(_model_and_data(r.config) for r in results))
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
            f"{_run_name(result)}: {percent(estimate.value)} % {interval(estimate)} of the test "
            f"pairs of {isolated(culture)} ranked right ({size_of(estimate, unit)})"
            f"{change_over(change, 'over the global model')}."
        )
        if change is not None and change.detectable is not None:
            yield (
                f"With these {unit}, a difference of {100 * change.detectable:.1f} points would be "
                "found in 80 % of cases (p ≤ 0.05); a smaller one may be there and not show."
            )
        noise = tested.controls.get("global_noise", {})
        name = _run_name(result)
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


def _comparison_tables(
    results: Sequence[RunResult], comparison: ComparisonResult
) -> dict[str, list[Table]]:
    """Section -> its tables; rows are cultures, the macro mean first, columns the methods."""
    unit = _unit(results)
    summaries = {(s.method, s.culture): s for s in comparison.summaries}
    tested = pictures.control_evaluations(results)

    def table(
        title: str, methods: Sequence[str], pick: Pick, layer: str, beside: Sequence[str] = ()
    ) -> Table:
        rows = []
        for culture in ("", *comparison.cultures):
            found = [summaries.get((m, culture)) for m in methods]
            picked = [pick(s).get(layer) if s else None for s in found]
            cells = [
                cell_of(p, unit, s.seed_sd.get(layer) if s and beside else None)
                for p, s in zip(picked, found, strict=True)
            ]
            of_controls = tested[culture].controls if culture in tested else {}
            cells += [cell_of(of_controls.get(name, {}).get(layer), unit) for name in beside]
            size = next((size_of(p, unit) for p in picked if p and p.num_pairs), "")
            rows.append(Row(culture or "Macro mean", size, "" if culture else "macro", cells))
        columns = [(m, "") for m in methods] + [(name, "control") for name in beside]
        return Table(title, f"culture (pairs, {unit})", columns, rows)

    trained = [m for m in comparison.methods if m != "global"]
    macro = [summaries[m, ""] for m in trained if (m, "") in summaries]
    overbias = [
        _overbias_row(
            s.method,
            _scaled(s.scale),
            s.minus_global,
            s.noise,
            s.minus_noise,
            unit,
            s.others_minus_global,
        )
        for s in macro
        if s.minus_noise
    ]
    others = [m for m in trained if m != "finetune"] if "finetune" in trained else []
    found: dict[str, list[Table]] = {"accuracy": [], "differences": []}
    found["overbias"] = _overbias_tables(
        "method, macro mean", overbias, [("other cultures", "all, minus global, points")]
    )
    for layer in LAYERS:
        title = f"{layer}: % of test pairs ranked right"
        found["accuracy"].append(
            table(title, comparison.methods, lambda s: s.accuracy, layer, controls(results))
        )
        for methods, pick, against in (
            (trained, lambda s: s.minus_global, "the global model"),
            (others, lambda s: s.minus_finetune, "finetune"),
            (trained, lambda s: s.minus_noise, "the global model plus noise of the same size"),
        ):
            if methods:
                title = f"{layer}: minus {against}, in points"
                found["differences"].append(table(title, methods, pick, layer))
    if trained:
        title = "all: % of the other cultures' test pairs ranked right"
        found["others"] = [table(title, trained, lambda s: {"all": s.other_cultures}, "all")]
    return found


def _run_tables(results: Sequence[RunResult]) -> dict[str, list[Table]]:
    """Section -> its tables; rows are runs, columns the cultures they were tested on."""
    unit = _unit(results)
    tested = pictures.control_evaluations(results)
    cultures = list(tested)

    def row(name: str, size: str, kind: str, r: RunResult, pick: Pick, layer: str) -> Row:
        picked = [pick(r.evaluation[c]).get(layer) if c in r.evaluation else None for c in cultures]
        return Row(name, size, kind, [cell_of(p, unit) for p in picked])

    # The global model and the controls are the same where the model and the data are.
    first: dict[tuple[str | None, str | None], RunResult] = {}
    for r in results:
        first.setdefault((r.fingerprints.get("model"), r.fingerprints.get("data")), r)
    found: dict[str, list[Table]] = {"accuracy": [], "differences": []}
    overbias = [
        _overbias_row(
            f"{_run_name(r)}, tested on {label(culture, 40)}",
            f"{r.run_id}{_scaled(r.evaluation[culture].scale, ', ')}",
            r.evaluation[culture].difference,
            r.evaluation[culture].controls.get("global_noise", {}),
            r.evaluation[culture].minus_noise,
            unit,
        )
        for r in results
        for culture in r.culture_weights
        if culture in r.evaluation and r.evaluation[culture].minus_noise
    ]
    # What a run costs the other cultures is in the matrix, culture by culture.
    found["overbias"] = _overbias_tables("run", overbias, [])
    for layer in LAYERS:
        rows = []
        for (model, _), r in first.items():
            name = f"global ({model})" if len(first) > 1 else "global"
            rows.append(row(name, "before", "macro", r, lambda e: e.before, layer))
            for c in controls([r]):
                rows.append(row(c, "control", "control", r, _control(c), layer))
        changes = []
        for r in results:
            rows.append(row(_run_name(r), r.run_id, "", r, lambda e: e.after, layer))
            changes.append(row(_run_name(r), r.run_id, "", r, lambda e: e.difference, layer))
        columns = [(c, size_of(tested[c].after.get(layer), unit)) for c in cultures]
        title = f"{layer}: % of test pairs ranked right"
        found["accuracy"].append(Table(title, "run", columns, rows))
        title = f"{layer}: minus the global model, in points"
        found["differences"].append(Table(title, "run", columns, changes))
    return found


def _overbias_tables(
    corner: str, rows: list[Row], more_columns: Sequence[tuple[str, str]]
) -> list[Table]:
    """What was gained where the global model is wrong, what it cost, and what noise would do."""
    columns = [
        (layer, size) if size != "control" else (f"noise on {layer}", size)
        for layer in ("distinctive", "agreed")
        for size in ("minus global, points", "control", "minus noise, points")
    ]
    title = "Gained on distinctive, and what it cost, beside noise as large as the change"
    return [Table(title, corner, [*columns, *more_columns], rows)] if rows else []


def _scaled(scale: float | None, before: str = "") -> str:
    """How much surer a model is of what the global one says, too."""
    return "" if scale is None else f"{before}margins × {scale:.2f}"


def _overbias_row(
    name: str,
    size: str,
    minus_global: Mapping[str, Difference],
    noise: Mapping[str, Estimate],
    minus_noise: Mapping[str, Difference],
    unit: str,
    *more: Difference | None,
) -> Row:
    cells = [
        cell_of(of.get(layer), unit)
        for layer in ("distinctive", "agreed")
        for of in (minus_global, noise, minus_noise)
    ]
    return Row(name, size, "", [*cells, *(cell_of(found, unit) for found in more)])


def _opinion_tables(
    results: Sequence[RunResult], comparison: ComparisonResult | None
) -> dict[str, list[Table]]:
    """Base of the logarithms -> tables; empty where no run has opinions."""
    scored = [r for r in results if r.opinions]
    if comparison is not None:
        return _compared_opinions(scored, comparison) if comparison.opinions else {}
    found: dict[str, list[Table]] = {}
    cultures = list(dict.fromkeys(c for r in scored for c in r.opinions[0].cultures))
    for place in range(max((len(r.opinions) for r in scored), default=0)):
        scores = [r.opinions[place] for r in scored]
        rows = []
        first: dict[tuple[str | None, str | None], RunResult] = {}
        for r in scored:
            key = r.fingerprints.get("model"), r.fingerprints.get("data")
            if first.setdefault(key, r) is r:
                others = [p for p in r.opinions[place].macro if not p.startswith("model")]
                rows += [_opinion_row(p, "control", r.opinions[place], p, cultures) for p in others]
        for r in scored:
            for predictor in ("model", "model_fitted"):
                name = f"{_run_name(r)}, {_temperature(predictor)}"
                rows.append(_opinion_row(name, "", r.opinions[place], predictor, cultures))
        columns = [("macro mean", ""), ("micro mean", ""), *((c, "") for c in cultures)]
        title = f"{_opinion_title(scores[0].options, scores[0].base)}"
        found.setdefault(scores[0].base, []).append(Table(title, "predictor", columns, rows))
    return found


def _compared_opinions(
    results: Sequence[RunResult], comparison: ComparisonResult
) -> dict[str, list[Table]]:
    """Rows are countries, the macro mean first, columns the methods, then what needs no model."""
    summaries = {
        (s.options, s.base, s.predictor, s.method, s.culture): s for s in comparison.opinions
    }
    beside = {(o.options, o.base): o for r in results for o in r.opinions}
    found: dict[str, list[Table]] = {}
    for options, base, predictor in dict.fromkeys(key[:3] for key in summaries):
        controls_of = beside.get((options, base))
        names = ("other_countries", "best_constant", "uniform") if controls_of else ()
        rows = []
        for culture in ("", *comparison.cultures):
            keys = [(options, base, predictor, m, culture) for m in comparison.methods]
            cells = []
            for summary in map(summaries.get, keys):
                similarity = summary.similarity if summary else None
                cells.append(_opinion_cell(similarity, summary.minus_global if summary else None))
            if controls_of is not None:
                # Their macro mean is over all countries of the data, not over those compared.
                whole = set(controls_of.cultures) == set(comparison.cultures)
                macro = controls_of.macro if whole else {}
                of_controls = controls_of.cultures.get(culture, {}) if culture else macro
                cells += [_opinion_cell(of_controls.get(name)) for name in names]
            rows.append(Row(culture or "Macro mean", "", "" if culture else "macro", cells))
        columns = [(m, "") for m in comparison.methods] + [(name, "control") for name in names]
        title = f"{_opinion_title(options, base)}, {_temperature(predictor)}"
        found.setdefault(base, []).append(Table(title, "country", columns, rows))
    return found


def _opinion_row(
    name: str, kind: str, scores: OpinionScores, predictor: str, cultures: Sequence[str]
) -> Row:
    changes = [scores.macro_difference, {}, *(scores.difference.get(c, {}) for c in cultures)]
    estimates = [scores.macro, scores.micro, *(scores.cultures.get(c, {}) for c in cultures)]
    cells = [
        _opinion_cell(of_predictors.get(predictor), of_models.get(predictor))
        for of_predictors, of_models in zip(estimates, changes, strict=True)
    ]
    return Row(name, "", kind, cells)


def _opinion_cell(found: Estimate | None, change: Difference | None = None) -> Cell:
    cell = cell_of(found, "questions")
    if found is None or found.value is None:
        return cell
    hint = f"{found.num_pairs:,} distributions, {found.num_clusters:,} questions"
    if change is None or change.value is None:
        return replace(cell, hint=hint)
    changed = cell_of(change, "questions")
    lines = (*cell.lines, f"{changed.main} over global", *changed.lines)
    return Cell(cell.main, lines, changed.tone, hint)


def _opinion_title(options: str, base: str) -> str:
    what = "all options" if options == "all" else "without refusals"
    return f"{what}, base {base}: 100 × (1 − Jensen-Shannon distance)"


def _temperature(predictor: str) -> str:
    return "fitted temperature" if predictor == "model_fitted" else "temperature 1"


def _selection_table(results: Sequence[RunResult]) -> Table:
    """Rows: cultures trained on; columns: methods. Of several seeds, the lowest one's."""
    methods = sorted({r.method for r in results if r.selection}, key=order)
    found: dict[tuple[str, str], SelectionSummary] = {}
    for r in results:
        for culture, summary in r.selection.items():
            found.setdefault((culture, r.method), summary)
    rows = [
        Row(culture, "", "", [_selection_cell(found.get((culture, m))) for m in methods])
        for culture in dict.fromkeys(c for c, _ in found)
    ]
    return Table("% of training pairs kept", "trained on", [(m, "") for m in methods], rows)


def _examples(results: Sequence[RunResult]) -> dict[str, list[ExamplePair]]:
    """Culture -> its pairs; each kind from the first run that has it, scpo's before others'."""
    source: dict[tuple[str, str], str] = {}
    found: dict[str, list[ExamplePair]] = {}
    for r in sorted(results, key=lambda r: r.method != "scpo"):
        for example in r.examples:
            if source.setdefault((example.culture, example.kind), r.run_id) == r.run_id:
                found.setdefault(example.culture, []).append(example)
    return found


def _data(results: Sequence[RunResult]) -> dict[tuple[str, str], tuple[CultureCounts, int | None]]:
    """(data fingerprint, culture) -> counts and truncated texts, each said once."""
    return {
        (r.fingerprints.get("data", NONE), culture): (counts, r.truncated_texts.get(culture))
        for r in reversed(results)
        for culture, counts in sorted(r.data.items(), reverse=True)
    }


def _control(name: str) -> Pick:
    return lambda evaluation: evaluation.controls.get(name, {})


def cell_of(found: Estimate | Difference | None, unit: str, seed_sd: float | None = None) -> Cell:
    if found is None or found.value is None:
        return Cell(NONE)
    hint = size_of(found, unit)
    if isinstance(found, Estimate):
        sd = () if seed_sd is None else (f"sd {100 * seed_sd:.1f}",)
        return Cell(percent(found.value), (interval(found), *sd), "", hint)
    shown = verdict(found)
    below = (interval(found), _p_value(found), *([shown] if shown in UNSHOWN else []))
    if found.detectable is not None:
        hint += f"; shows {100 * found.detectable:.1f} points in 80 % of cases"
    return Cell(points(found.value), below, TONES[shown], hint)


def _selection_cell(found: SelectionSummary | None) -> Cell:
    if found is None:
        return Cell(NONE)
    kept = f"{found.num_selected:,} of {found.num_pairs:,}"
    return Cell(percent(found.kept_share), (kept, f"mean weight {found.mean_weight:.2f}"))


def change_over(change: Difference | None, against: str) -> str:
    if change is None or change.value is None:
        return ""
    # Settings of a sweep are told apart by their intervals alone.
    said = [] if change.p_value is None else [_p_value(change)]
    said += [shown] if (shown := verdict(change)) in UNSHOWN else []
    in_brackets = f" ({', '.join(said)})" if said else ""
    return f"; {points(change.value)} points {interval(change)} {against}{in_brackets}"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def points(change: float | None) -> str:
    return NONE if change is None else f"{100 * change:+z.1f}".replace("-", "\N{MINUS SIGN}")


def interval(found: Estimate | Difference) -> str:
    if found.low is None or found.high is None:
        return "[no interval]"
    shown = points if isinstance(found, Difference) else percent
    return f"[{shown(found.low)}, {shown(found.high)}]"


def _p_value(change: Difference) -> str:
    """The p-value, which goes with the interval, and beside it that after Holm's correction."""
    p, corrected = change.p_value, change.p_holm
    if p is None:
        return f"p {NONE}"
    holm = "" if corrected is None or corrected == p else f", Holm {_shown_p(corrected)}"
    return f"p {_shown_p(p)}{holm}"


def _shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def size_of(found: Estimate | Difference | None, unit: str) -> str:
    return "" if found is None else f"{found.num_pairs:,} pairs, {found.num_clusters:,} {unit}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _unit(results: Sequence[RunResult]) -> str:
    """What intervals resample, by the data's settings."""
    if any(r.config.get("data", {}).get("source") == "opinions" for r in results):
        return "questions"
    columns = [r.config.get("data", {}).get("columns") for r in results]
    if any(c is None or c.get("user") for c in columns):
        return "users"
    return "questions" if any(c.get("question") for c in columns) else "interactions"


def shortened(text: str) -> str:
    more = len(text) - MAX_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_CHARACTERS]} … ({more:,} more characters)"


def isolated(name: str, longest: int = 40) -> str:
    """A name inside a sentence, safe for writing that runs the other way."""
    return f"\N{FIRST STRONG ISOLATE}{label(name, longest)}\N{POP DIRECTIONAL ISOLATE}"


def _run_name(result: RunResult) -> str:
    return f"{result.method}, {label(trained_on(result), 40)}, seed {result.seed}"


def _model_and_data(config: Mapping[str, Any]) -> str:
    model, data = config.get("model", {}), config.get("data", {})
    source = data.get("path") or data.get("hub") or data.get("source", NONE)
    return f"global model {model.get('path', NONE)}, data {source}"
