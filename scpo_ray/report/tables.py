"""Results as tables for a terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from scpo_ray.evaluation.champion import Judgement, rule
from scpo_ray.records import LAYERS
from scpo_ray.report.terminal import add_row, p_value, points, titled
from scpo_ray.results import (
    ComparisonResult,
    CultureEvaluation,
    Difference,
    Estimate,
    OpinionScores,
    OpinionSummary,
)
from scpo_ray.settings.shown import percent
from scpo_ray.statistics.intervals import standing
from scpo_ray.sweep.records import SweepResult


def evaluation_table(evaluation: Mapping[str, CultureEvaluation]) -> Table:
    """Cultures x layers, in percent with 95 % intervals, and the difference to the global model.

    "can show": the smallest such difference that these test pairs show in 80 % of cases.
    """
    table = titled(
        "share of test pairs ranked right, %",
        "culture",
        "pairs",
        "users or\nquestions",
        *LAYERS,
        "all, minus global",
        "p (Holm)",
        "can show",
    )
    for culture, e in evaluation.items():
        whole = e.after["all"]
        change = e.difference.get("all")
        add_row(
            table,
            culture,
            str(whole.num_pairs),
            str(whole.num_clusters),
            *(percent(e.after.get(layer)) for layer in LAYERS),
            percent(change, signed=True),
            p_value(change.p_holm if change else None),
            points(change.detectable if change else None),
        )
    return table


def opinion_tables(opinions: Sequence[OpinionScores]) -> list[Table]:
    """Countries x predictors, one for each choice of options, to base e; none without opinions."""
    tables = []
    for scores in opinions:
        if scores.base != "e":
            continue
        table = titled(
            f"1 - Jensen-Shannon distance to the country's answers, x 100 (options: "
            f"{scores.options}, base {scores.base})",
            "country",
            "distri-\nbutions",
            "questions",
            *(name.replace("_", "\n", 1) for name in scores.macro),
            "model fitted,\nminus global",
            "fitted T",
        )
        rows = [
            *scores.cultures.items(),
            ("macro mean", scores.macro),
            ("micro mean", scores.micro),
        ]
        differences = scores.difference | {"macro mean": scores.macro_difference}
        for name, found in rows:
            change = differences.get(name, {}).get("model_fitted")
            temperature = scores.temperatures.get(name, {}).get("model_fitted")
            add_row(
                table,
                name,
                str(found["model"].num_pairs),
                str(found["model"].num_clusters),
                *(percent(found[predictor]) for predictor in scores.macro),
                percent(change, signed=True),
                "–" if temperature is None else f"{temperature:.3g}",
            )
        tables.append(table)
    return tables


def opinion_comparison_tables(summaries: Sequence[OpinionSummary]) -> list[Table]:
    """Methods' macro means, a row for each, to base e; none without opinions."""
    rows = [s for s in summaries if not s.culture and s.base == "e"]
    if not rows:
        return []
    table = titled(
        "1 - Jensen-Shannon distance to the countries' answers, x 100 (macro mean, base e)",
        "method",
        "options",
        "temperature",
        "similarity",
        "minus global",
        "p",
    )
    for s in rows:
        change = s.minus_global
        add_row(
            table,
            s.method,
            s.options,
            "fitted" if s.predictor == "model_fitted" else "1",
            percent(s.similarity),
            percent(change, signed=True),
            p_value(change.p_value if change else None),
        )
    return [table]


def comparison_table(summary: ComparisonResult) -> Table:
    """Methods x layers as macro means over the cultures, beside the global model and the best."""
    table = titled(
        f"macro mean, % (cultures: {len(summary.cultures)}, seeds: {len(summary.seeds)})",
        "method",
        *LAYERS,
        "all, minus global",
        "p",
        "can show",
        "all,\nminus best",
        "minus noise on\ndistinctive",
        "pairs kept",
    )
    for s in summary.summaries:
        if s.culture:
            continue
        change = s.minus_global.get("all")
        add_row(
            table,
            s.method,
            *(percent(s.accuracy.get(layer)) for layer in LAYERS),
            percent(change, signed=True),
            p_value(change.p_value if change else None),
            points(change.detectable if change else None),
            _behind(s.accuracy.get("all"), s.minus_best),
            percent(s.minus_noise.get("distinctive"), signed=True),
            f"{100 * s.kept_share:.0f} %",
        )
    return table


def sweep_table(result: SweepResult) -> Table:
    """The best 20 settings: the objective, and its macro layers, in percent."""
    objective = f"{result.objective['metric']}, {result.objective['culture']}"
    table = titled(
        f"settings, best first ({objective}, on {result.measured_on}; cultures: "
        f"{len(result.cultures)}, seeds: {len(result.seeds)})",
        "setting",
        "objective, %",
        "minus best",
        *LAYERS,
        "trials\nfailed",
    )
    for summary in result.settings[:20]:
        macro = summary.accuracy.get("", {})
        add_row(
            table,
            summary.setting.label,
            percent(summary.objective),
            _behind(summary.objective, summary.minus_best),
            *(percent(macro.get(layer)) for layer in LAYERS),
            f"{summary.num_finished + summary.num_stopped}\n{summary.num_failed}",
        )
    honest = result.chosen_honestly
    if honest is not None:
        who = "test" if result.measured_on == "dev" else "the other half of the"
        table.caption = f"the best, chosen so, on {who} users (or questions): {percent(honest)} %"
        table.caption_justify = "left"
    return table


def efficiency_table(result: SweepResult) -> Table:
    """The objective by share of the training users, a line for each point of each curve."""
    objective = f"{result.objective['metric']}, {result.objective['culture']}"
    table = titled(
        f"{objective}, by share of the training users (cultures: {len(result.cultures)}, "
        f"seeds: {len(result.seeds)})",
        "method",
        "share of\nusers",
        "pairs selected,\nmean per run",
        "objective, %",
    )
    for curve in result.efficiency:
        for point in curve.points:
            add_row(
                table,
                curve.name,
                f"{point.fraction:g}",
                f"{point.num_pairs:,.0f}",
                percent(point.objective),
            )
    return table


def judgement_table(judgement: Judgement) -> Table:
    """Two models on the same pairs, and what the rule for a champion asks of them."""
    table = titled(
        f"{judgement.model} against {judgement.champion}, % of {judgement.side} pairs ranked right",
        f"{judgement.side} pairs",
        "pairs",
        "users or\nquestions",
        judgement.model,
        "the other",
        "difference",
        "p",
        "rule",
        words=("rule",),
    )
    for c in judgement.contests:
        asked = rule(c, judgement.margin)
        of = f"\nagainst {judgement.first}" if c.against == "first champion" else ""
        add_row(
            table,
            f"{c.test_pairs}{of}",
            str(c.difference.num_pairs),
            str(c.difference.num_clusters),
            *("–" if a is None else f"{100 * a:.1f}" for a in (c.accuracy, c.champion_accuracy)),
            percent(c.difference, signed=True),
            p_value(c.difference.p_value),
            "–" if c.holds is None else f"{asked}: {'yes' if c.holds else 'no'}",
        )
    return table


def _behind(reached: Estimate | None, minus_best: Difference | None) -> str:
    """Beside the best of several: "best", or the difference, its interval and what it shows."""
    found = standing(reached, minus_best)
    if minus_best is None:
        return "best" if found == "best" else "–"
    return f"{percent(minus_best, signed=True)}\n{found}"
