"""Results as one HTML page and as pictures. Formats numbers and computes none."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scpo_ray.records import LAYERS, CultureCounts, InputError
from scpo_ray.report import pictures
from scpo_ray.report.cells import (
    NONE,
    Cell,
    Row,
    Table,
    cell_of,
    percent,
    points,
    run_name,
    scaled,
    selection_cell,
    shortened,
    size_of,
    unit_of,
)
from scpo_ray.report.confidence import best_of_n_tables, confidence_tables
from scpo_ray.report.findings import lead
from scpo_ray.report.pictures import controls, in_order, label, trained_on
from scpo_ray.results import (
    ComparisonResult,
    Difference,
    Estimate,
    ExamplePair,
    MethodSummary,
    OpinionScores,
    RunResult,
    SelectionSummary,
)
from scpo_ray.settings.documents import write_yaml
from scpo_ray.settings.methods import method_order
from scpo_ray.storage.disk import whole_file

log = logging.getLogger(__name__)


Pick = Callable[[Any], Mapping[str, Estimate | Difference]]
"""Which numbers, by layer, of a MethodSummary or a CultureEvaluation."""


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
    return save_pictures(pictures.draw(in_order(results), comparison), folder)


def save_pictures(drawn: Sequence[pictures.Picture], folder: Path) -> list[Path]:
    """Figures as PNG files in `folder`, by their names."""
    paths = []
    for picture in drawn:
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
    environment.filters |= {"yaml": write_yaml}
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
    legend = pictures.legend_figure([*sorted(methods, key=method_order), *controls(results)])
    data_cultures = {culture for result in results for culture in result.evaluation}
    return render(
        "report.html.jinja",
        pictures.draw(results, comparison),
        title=comparison.experiment if comparison else results[0].experiment,
        lead=lead(results, comparison),
        results=results,
        comparison=comparison,
        tables=_comparison_tables(results, comparison) if comparison else _run_tables(results),
        opinions=_opinion_tables(results, comparison),
        confidence=confidence_tables(results, unit_of(results)),
        best_of_n=best_of_n_tables(results, unit_of(results)),
        selection=_selection_table(results),
        legend=Markup(pictures.to_svg(legend, title="Legend", key="legend")),
        examples=_examples(results),
        data=_data(results),
        warnings=list(dict.fromkeys(w for r in results for w in r.warnings)),
        told=[(run_name(r), sentence) for r in results for sentence in r.told],
        unit=unit_of(results),
        num_cultures=max(len(data_cultures), len(comparison.cultures) if comparison else 0),
        max_cultures=pictures.MAX_CULTURES,
    )


def _comparison_tables(
    results: Sequence[RunResult], comparison: ComparisonResult
) -> dict[str, list[Table]]:
    """Section -> its tables; rows are cultures, the macro mean first, columns the methods."""
    unit = unit_of(results)
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
    others = [m for m in trained if m != "finetune"] if "finetune" in trained else []
    found: dict[str, list[Table]] = {"accuracy": [], "differences": []}
    found["overbias"] = _overbias_tables(
        "method, macro mean",
        [_macro_overbias(s, unit) for s in macro if s.minus_noise],
        [("other cultures", "all, minus global, points")],
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


def _macro_overbias(s: MethodSummary, unit: str) -> Row:
    others, scale = s.others_minus_global, scaled(s.scale)
    return _overbias_row(s.method, scale, s.minus_global, s.noise, s.minus_noise, unit, others)


def _run_tables(results: Sequence[RunResult]) -> dict[str, list[Table]]:
    """Section -> its tables; rows are runs, columns the cultures they were tested on."""
    unit = unit_of(results)
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
            f"{run_name(r)}, tested on {label(culture, 40)}",
            f"{r.run_id}{scaled(r.evaluation[culture].scale, ', ')}",
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
            rows.append(row(run_name(r), r.run_id, "", r, lambda e: e.after, layer))
            changes.append(row(run_name(r), r.run_id, "", r, lambda e: e.difference, layer))
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
                name = f"{run_name(r)}, {_temperature(predictor)}"
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
    methods = sorted({r.method for r in results if r.selection}, key=method_order)
    found: dict[tuple[str, str], SelectionSummary] = {}
    for r in results:
        for culture, summary in r.selection.items():
            found.setdefault((culture, r.method), summary)
    rows = [
        Row(culture, "", "", [selection_cell(found.get((culture, m))) for m in methods])
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
