"""What there is and what would be done, as tables for a terminal: data, plans, models, runs."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from scpo_ray.records import LAYERS, CultureCounts
from scpo_ray.report.overviews import DataHealth, Finding, GlobalScores, PlannedRun, SweepCost
from scpo_ray.report.terminal import add_row, points, size, titled
from scpo_ray.settings.shown import duration, plain
from scpo_ray.storage.inventory import Inventory
from scpo_ray.tracking.trackers import RegisteredModel


def data_tables(health: DataHealth) -> list[Table]:
    """Counts, then what was skipped, then the warnings; the last two only if there are any."""
    counts = titled(
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
        add_row(
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
            points(health.detectable.get(culture)),
        )
    counts.caption = (
        "can show: the smallest difference of accuracy between two models that the test "
        "pairs show in 80 % of cases (p <= 0.05), if the two differ on 20 % of the pairs"
    )
    counts.caption_justify = "left"
    tables = [counts]
    skipped = titled("rows left out", "culture", "reason", "rows", words=("reason",))
    for culture, c in health.counts.items():
        for reason, rows in c.skipped.items():
            add_row(skipped, culture, reason, str(rows))
    if skipped.row_count:
        tables.append(skipped)
    if health.warnings:
        warnings = Table(title="warnings", title_justify="left", box=box.SIMPLE, show_header=False)
        for warning in health.warnings:
            add_row(warnings, warning)
        tables.append(warnings)
    return tables


def score_table(scores: GlobalScores) -> Table:
    threshold = scores.filter_threshold
    table = titled(
        f"the global model on the training pairs ({scores.num_texts} texts)",
        "culture",
        "pairs",
        "ranked right",
        "mean margin",
        "kept" if threshold is None else f"kept below {threshold:g}",
    )
    for culture, s in scores.cultures.items():
        add_row(
            table,
            culture,
            str(s.num_pairs),
            f"{100 * s.accuracy:.1f} %",
            f"{s.mean_margin:+.3f}",
            f"{100 * s.kept_share:.1f} %",
        )
    return table


def plan_table(plans: Sequence[PlannedRun]) -> Table:
    total = duration(sum(plan.seconds for plan in plans))
    runs = "1 run" if len(plans) == 1 else f"{len(plans)} runs"
    table = titled(
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
        add_row(
            table,
            plan.name,
            str(plan.num_train_pairs),
            str(plan.num_selected),
            str(plan.num_steps),
            f"{plan.epochs:.1f}",
            f"{plan.num_tokens:,}",
            duration(plan.seconds),
        )
    return table


def sweep_cost_table(cost: SweepCost) -> Table:
    """What a sweep would run, in lines."""
    table = Table(title=plain(f"sweep {cost.name}"), title_justify="left", box=box.SIMPLE)
    table.add_column("what")
    table.add_column("number", justify="right")
    for axis, num_values in cost.axes.items():
        add_row(table, f"values of {axis}", str(num_values))
    add_row(table, "settings", str(cost.num_settings))
    add_row(table, "trials", str(cost.num_trials))
    add_row(table, "of these ended already", str(cost.num_ended))
    if cost.seconds is not None:
        one_by_one = f"training, one by one (from {cost.num_sampled} of them)"
        add_row(table, one_by_one, f"about {duration(cost.seconds)}")
    return table


def model_table(models: Sequence[RegisteredModel]) -> Table:
    words = ("alias", "culture", "method")
    table = titled("registered models", "name", "version", *words, *LAYERS, words=words)
    for m in models:
        add_row(
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


def run_table(found: Inventory) -> Table:
    """The runs in a folder, the newest last."""
    words = ("culture", "state", "when (UTC)")
    columns = ("method", *words[:1], "seed", *words[1:], "all, %", "size")
    table = titled(f"runs in {found.folder}", "run", *columns, words=(*words, "method"))
    for run in sorted(found.runs, key=lambda run: run.changed):
        add_row(
            table,
            run.path.removeprefix(f"{found.folder}/"),
            run.method,
            ", ".join(run.cultures) or "–",
            "–" if run.seed is None else str(run.seed),
            run.state,
            run.changed[:16].replace("T", " "),
            "–" if run.accuracy is None else f"{100 * run.accuracy:.1f}",
            size(run.num_bytes),
        )
    return table


def deletable_table(found: Inventory) -> Table:
    """What no result needs, and what is lost with it."""
    lost = "what is done again without it"
    table = titled("can be deleted (scpo clean)", "what", lost, "places", "size", words=(lost,))
    for kind in found.deletable:
        add_row(table, kind.kind, kind.loss, str(len(kind.paths)), size(kind.num_bytes))
    return table


def _same_tokens(count: CultureCounts) -> str:
    train, test = count.same_tokens_train, count.same_tokens_test
    return f"{train + test}\n({train} + {test})" if train + test else "0"


def finding_table(findings: Sequence[Finding]) -> Table:
    """Faults first, then notes, then what is fine."""
    words = ("found", "", "remedy")
    table = titled("this machine", "what", *words, words=words)
    order = ("fault", "note", "fine")
    for finding in sorted(findings, key=lambda finding: order.index(finding.verdict)):
        add_row(table, finding.what, finding.found, finding.verdict, finding.remedy)
    return table
