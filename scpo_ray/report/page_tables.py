"""The tables of a report's topics: a comparison's, single runs', opinions', selection's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scpo_ray.evaluation.layers import control_on_others
from scpo_ray.records import LAYERS
from scpo_ray.report.cells import (
    Cell,
    Row,
    Table,
    cell_of,
    run_name,
    scaled,
    selection_cell,
    size_of,
    unit_of,
)
from scpo_ray.report.order import control_evaluations, controls
from scpo_ray.report.pictures import label
from scpo_ray.results import (
    ComparisonResult,
    Difference,
    Estimate,
    MethodSummary,
    OpinionScores,
    RunResult,
    SelectionSummary,
)
from scpo_ray.settings.methods import method_order

Pick = Callable[[Any], Mapping[str, Estimate | Difference]]
"""Which numbers, by layer, of a MethodSummary or a CultureEvaluation."""
Beside = Callable[[str, str], Estimate | None]
"""A culture ("" for the macro mean) and a control's name -> what the control reaches there."""


def comparison_tables(
    results: Sequence[RunResult], comparison: ComparisonResult
) -> dict[str, list[Table]]:
    """Section -> its tables; rows are cultures, the macro mean first, columns the methods."""
    tables = _Compared(results, comparison)
    table, summaries, unit = tables.table, tables.summaries, tables.unit
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
            table(title, comparison.methods, lambda s: s.accuracy, layer, tables.of_layer(layer))
        )
        for methods, pick, against in (
            (others, lambda s: s.minus_finetune, "finetune"),
            (trained, lambda s: s.minus_global, "the global model"),
            (trained, lambda s: s.minus_noise, "the global model plus noise of the same size"),
        ):
            if methods:
                title = f"{layer}: minus {against}, in points"
                found["differences"].append(table(title, methods, pick, layer))
    if trained:
        title = "all: % of the other cultures' test pairs ranked right"
        found["others"] = [table(title, trained, _on_other_cultures, "all", tables.on_others)]
    return found


class _Compared:
    """A comparison's tables share their rows (cultures), sizes and controls."""

    def __init__(self, results: Sequence[RunResult], comparison: ComparisonResult) -> None:
        self.unit = unit_of(results)
        self.summaries = {(s.method, s.culture): s for s in comparison.summaries}
        self._tested = control_evaluations(results)
        self._controls = controls(results)
        self._cultures = ("", *comparison.cultures)

    def of_layer(self, layer: str) -> Beside:
        return lambda culture, name: (
            self._tested[culture].controls.get(name, {}).get(layer)
            if culture in self._tested
            else None
        )

    def on_others(self, culture: str, name: str) -> Estimate | None:
        return control_on_others(self._tested, name, culture)

    def table(
        self,
        title: str,
        methods: Sequence[str],
        pick: Pick,
        layer: str,
        beside: Beside | None = None,
    ) -> Table:
        """Args: beside: the controls' numbers, which have columns of their own."""
        rows = []
        for culture in self._cultures:
            found = [self.summaries.get((m, culture)) for m in methods]
            picked = [pick(s).get(layer) if s else None for s in found]
            # What the seeds' deviation is of: a method's accuracy on its own culture.
            with_sd = beside is not None and pick is not _on_other_cultures
            cells = [
                cell_of(p, self.unit, s.seed_sd.get(layer) if s and with_sd else None)
                for p, s in zip(picked, found, strict=True)
            ]
            if beside is not None:
                cells += [cell_of(beside(culture, name), self.unit) for name in self._controls]
            size = next((size_of(p, self.unit) for p in picked if p and p.num_pairs), "")
            rows.append(Row(culture or "Macro mean", size, "" if culture else "macro", cells))
        columns = [(m, "") for m in methods]
        columns += [(name, "control") for name in self._controls] if beside is not None else []
        return Table(title, f"culture (pairs, {self.unit})", columns, rows)


def _on_other_cultures(summary: MethodSummary) -> dict[str, Estimate | Difference]:
    return {"all": summary.other_cultures}


def _macro_overbias(s: MethodSummary, unit: str) -> Row:
    others, scale = s.others_minus_global, scaled(s.scale)
    return _overbias_row(s.method, scale, s.minus_global, s.noise, s.minus_noise, unit, others)


def run_tables(results: Sequence[RunResult]) -> dict[str, list[Table]]:
    """Section -> its tables; rows are runs, columns the cultures they were tested on."""
    unit = unit_of(results)
    tested = control_evaluations(results)
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


def opinion_tables(
    results: Sequence[RunResult], comparison: ComparisonResult | None
) -> dict[str, list[Table]]:
    """What a fold is called -> its tables, those for the reader first; {} without opinions."""
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
        fold = _fold(scores[0].options, scores[0].base, "model_fitted")
        found.setdefault(fold, []).append(Table(title, "predictor", columns, rows))
    return {fold: tables for fold, tables in sorted(found.items(), key=lambda f: f[0] != READ)}


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
        fold = _fold(options, base, predictor)
        found.setdefault(fold, []).append(Table(title, "country", columns, rows))
    return {fold: tables for fold, tables in sorted(found.items(), key=lambda f: f[0] != READ)}


def _fold(options: str, base: str, predictor: str) -> str:
    """What a fold of answer shares is called; `READ` is the one for the reader."""
    if base != "e":
        return f"Base {base}: the same with the other logarithm"
    what = "All options" if options == "all" else "Without refusals"
    return f"{what}, {_temperature(predictor)}"


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


READ = "All options, fitted temperature"


def _opinion_title(options: str, base: str) -> str:
    what = "all options" if options == "all" else "without refusals"
    return f"{what}, base {base}: 100 × (1 − Jensen-Shannon distance)"


def _temperature(predictor: str) -> str:
    return "fitted temperature" if predictor == "model_fitted" else "temperature 1"


def selection_table(results: Sequence[RunResult]) -> Table:
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


def _control(name: str) -> Pick:
    return lambda evaluation: evaluation.controls.get(name, {})
