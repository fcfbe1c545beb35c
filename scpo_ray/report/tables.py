"""Results as tables for a terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from scpo_ray.evaluation.champion import Judgement, rule
from scpo_ray.records import LAYERS, CultureCounts
from scpo_ray.report.overviews import DataHealth, GlobalScores, PlannedRun, SweepCost
from scpo_ray.results import (
    ComparisonResult,
    CultureEvaluation,
    Difference,
    Estimate,
    OpinionScores,
    OpinionSummary,
)
from scpo_ray.settings.shown import plain
from scpo_ray.statistics.intervals import standing
from scpo_ray.sweep.records import SweepResult
from scpo_ray.tracking.trackers import RegisteredModel


def data_tables(health: DataHealth) -> list[Table]:
    """Counts, then what was skipped, then the warnings; the last two only if there are any."""
    counts = _table(
        "preferences per culture",
        "culture",
        "users or\nquestions",
        "inter-\nactions",
        "responses",
        "train\npairs",
        "test\npairs",
        "ties",
        "equal\ntexts",
        "same\ntokens",
        f"cut at\n{health.max_length}",
        "longer\nchosen",
        "texts in\nboth sides",
        "can show,\npoints",
    )
    cut = health.truncated_texts
    for culture, c in health.counts.items():
        _add_row(
            counts,
            culture,
            f"{c.users}\n({c.train_users} + {c.test_users})",
            str(c.interactions),
            str(c.responses),
            str(c.train_pairs),
            str(c.test_pairs),
            str(c.ties),
            str(c.equal_texts),
            _same_tokens(c),
            "–" if cut is None else str(cut.get(culture, 0)),
            "–" if c.longer_chosen_share is None else f"{100 * c.longer_chosen_share:.1f} %",
            str(c.train_test_texts),
            _points(health.detectable.get(culture)),
        )
    counts.caption = (
        "can show: the smallest difference of accuracy between two models that the test "
        "pairs show in 80 % of cases (p <= 0.05), if the two differ on 20 % of the pairs"
    )
    counts.caption_justify = "left"
    tables = [counts]
    skipped = _table("rows left out", "culture", "reason", "rows", words=("reason",))
    for culture, c in health.counts.items():
        for reason, rows in c.skipped.items():
            _add_row(skipped, culture, reason, str(rows))
    if skipped.row_count:
        tables.append(skipped)
    if health.warnings:
        warnings = Table(title="warnings", title_justify="left", box=box.SIMPLE, show_header=False)
        for warning in health.warnings:
            _add_row(warnings, warning)
        tables.append(warnings)
    return tables


def score_table(scores: GlobalScores) -> Table:
    threshold = scores.filter_threshold
    table = _table(
        f"the global model on the training pairs ({scores.num_texts} texts)",
        "culture",
        "pairs",
        "ranked right",
        "mean margin",
        "kept" if threshold is None else f"kept below {threshold:g}",
    )
    for culture, s in scores.cultures.items():
        _add_row(
            table,
            culture,
            str(s.num_pairs),
            f"{100 * s.accuracy:.1f} %",
            f"{s.mean_margin:+.3f}",
            f"{100 * s.kept_share:.1f} %",
        )
    return table


def evaluation_table(evaluation: Mapping[str, CultureEvaluation]) -> Table:
    """Cultures x layers, in percent with 95 % intervals, and the difference to the global model.

    "can show": the smallest such difference that these test pairs show in 80 % of cases.
    """
    table = _table(
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
        _add_row(
            table,
            culture,
            str(whole.num_pairs),
            str(whole.num_clusters),
            *(_percent(e.after.get(layer)) for layer in LAYERS),
            _percent(change, signed=True),
            _p_value(change.p_holm if change else None),
            _points(change.detectable if change else None),
        )
    return table


def opinion_tables(opinions: Sequence[OpinionScores]) -> list[Table]:
    """Countries x predictors, one for each choice of options, to base e; none without opinions."""
    tables = []
    for scores in opinions:
        if scores.base != "e":
            continue
        table = _table(
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
            _add_row(
                table,
                name,
                str(found["model"].num_pairs),
                str(found["model"].num_clusters),
                *(_percent(found[predictor]) for predictor in scores.macro),
                _percent(change, signed=True),
                "–" if temperature is None else f"{temperature:.3g}",
            )
        tables.append(table)
    return tables


def opinion_comparison_tables(summaries: Sequence[OpinionSummary]) -> list[Table]:
    """Methods' macro means, a row for each, to base e; none without opinions."""
    rows = [s for s in summaries if not s.culture and s.base == "e"]
    if not rows:
        return []
    table = _table(
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
        _add_row(
            table,
            s.method,
            s.options,
            "fitted" if s.predictor == "model_fitted" else "1",
            _percent(s.similarity),
            _percent(change, signed=True),
            _p_value(change.p_value if change else None),
        )
    return [table]


def comparison_table(summary: ComparisonResult) -> Table:
    """Methods x layers as macro means over the cultures, beside the global model and the best."""
    table = _table(
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
        _add_row(
            table,
            s.method,
            *(_percent(s.accuracy.get(layer)) for layer in LAYERS),
            _percent(change, signed=True),
            _p_value(change.p_value if change else None),
            _points(change.detectable if change else None),
            _behind(s.accuracy.get("all"), s.minus_best),
            _percent(s.minus_noise.get("distinctive"), signed=True),
            f"{100 * s.kept_share:.0f} %",
        )
    return table


def plan_table(plans: Sequence[PlannedRun]) -> Table:
    total = _duration(sum(plan.seconds for plan in plans))
    runs = "1 run" if len(plans) == 1 else f"{len(plans)} runs"
    table = _table(
        f"{runs}, about {total} of training on this machine",
        "run",
        "training pairs",
        "kept",
        "steps",
        "epochs",
        "tokens",
        "time",
    )
    for plan in plans:
        _add_row(
            table,
            plan.name,
            str(plan.num_train_pairs),
            str(plan.num_selected),
            str(plan.num_steps),
            f"{plan.epochs:.1f}",
            f"{plan.num_tokens:,}",
            _duration(plan.seconds),
        )
    return table


def sweep_cost_table(cost: SweepCost) -> Table:
    """What a sweep would run, in lines."""
    table = Table(title=plain(f"sweep {cost.name}"), title_justify="left", box=box.SIMPLE)
    table.add_column("what")
    table.add_column("number", justify="right")
    for axis, num_values in cost.axes.items():
        _add_row(table, f"values of {axis}", str(num_values))
    _add_row(table, "settings", str(cost.num_settings))
    _add_row(table, "trials", str(cost.num_trials))
    _add_row(table, "of these ended already", str(cost.num_ended))
    if cost.seconds is not None:
        one_by_one = f"training, one by one (from {cost.num_sampled} of them)"
        _add_row(table, one_by_one, f"about {_duration(cost.seconds)}")
    return table


def sweep_table(result: SweepResult) -> Table:
    """The best 20 settings: the objective, and its macro layers, in percent."""
    objective = f"{result.objective['metric']}, {result.objective['culture']}"
    table = _table(
        f"settings, best first ({objective}; cultures: {len(result.cultures)}, "
        f"seeds: {len(result.seeds)})",
        "setting",
        "objective, %",
        "minus best",
        *LAYERS,
        "trials\nfailed",
    )
    for summary in result.settings[:20]:
        macro = summary.accuracy.get("", {})
        _add_row(
            table,
            summary.setting.label,
            _percent(summary.objective),
            _behind(summary.objective, summary.minus_best),
            *(_percent(macro.get(layer)) for layer in LAYERS),
            f"{summary.num_finished + summary.num_stopped}\n{summary.num_failed}",
        )
    return table


def efficiency_table(result: SweepResult) -> Table:
    """The objective by share of the training users, a line for each point of each curve."""
    objective = f"{result.objective['metric']}, {result.objective['culture']}"
    table = _table(
        f"{objective}, by share of the training users (cultures: {len(result.cultures)}, "
        f"seeds: {len(result.seeds)})",
        "method",
        "share of\nusers",
        "pairs selected,\nmean per run",
        "objective, %",
    )
    for curve in result.efficiency:
        for point in curve.points:
            _add_row(
                table,
                curve.name,
                f"{point.fraction:g}",
                f"{point.num_pairs:,.0f}",
                _percent(point.objective),
            )
    return table


def model_table(models: Sequence[RegisteredModel]) -> Table:
    words = ("alias", "culture", "method")
    table = _table("registered models", "name", "version", *words, *LAYERS, words=words)
    for m in models:
        _add_row(
            table,
            m.name,
            str(m.version),
            ", ".join(m.aliases),
            m.culture,
            m.method,
            *(
                "–" if (a := (m.accuracy or {}).get(layer)) is None else f"{100 * a:.1f}"
                for layer in LAYERS
            ),
        )
    return table


def judgement_table(judgement: Judgement) -> Table:
    """Two models on the same test pairs, and what the rule for a champion asks of them."""
    table = _table(
        f"{judgement.model} against {judgement.champion}, % of test pairs ranked right",
        "test pairs",
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
        _add_row(
            table,
            f"{c.test_pairs}{of}",
            str(c.difference.num_pairs),
            str(c.difference.num_clusters),
            *("–" if a is None else f"{100 * a:.1f}" for a in (c.accuracy, c.champion_accuracy)),
            _percent(c.difference, signed=True),
            _p_value(c.difference.p_value),
            "–" if c.holds is None else f"{asked}: {'yes' if c.holds else 'no'}",
        )
    return table


def _table(title: str, first: str, *others: str, words: Sequence[str] = ()) -> Table:
    """Columns of numbers, which stay whole on every terminal, but for those named in `words`."""
    table = Table(title=plain(title), title_justify="left", box=box.SIMPLE)
    table.add_column(first)
    for name in others:
        table.add_column(plain(name), justify="left" if name in words else "right")
    return table


def _same_tokens(count: CultureCounts) -> str:
    train, test = count.same_tokens_train, count.same_tokens_test
    return f"{train + test}\n({train} + {test})" if train + test else "0"


def _add_row(table: Table, *cells: str) -> None:
    """Adds a row whose texts, which may come from the data, cannot steer the terminal."""
    table.add_row(*map(plain, cells))


def _percent(estimate: Estimate | Difference | None, *, signed: bool = False) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    value = f"{100 * estimate.value:{'+' if signed else ''}.1f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _behind(reached: Estimate | None, minus_best: Difference | None) -> str:
    """Beside the best of several: "best", or the difference, its interval and what it shows."""
    found = standing(reached, minus_best)
    if minus_best is None:
        return "best" if found == "best" else "–"
    return f"{_percent(minus_best, signed=True)}\n{found}"


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3_600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h"
