"""What there is and what would be done, as tables for a terminal: data, plans, models, runs."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table

from scpo_ray.records import LAYERS, CultureCounts, MemoryEstimate
from scpo_ray.report.overviews import (
    DataHealth,
    FileScores,
    Finding,
    GlobalScores,
    PlannedRun,
    Steering,
    SweepCost,
)
from scpo_ray.report.terminal import add_row, points, size, titled
from scpo_ray.settings.shown import duration, plain, threshold_text, threshold_texts
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
        "dev\npairs",
        "test\npairs",
        "ties",
        "equal\ntexts",
        "same\ntokens",
        f"cut at\n{health.max_length}",
        "longer\nchosen",
        "texts in\ntrain, test",
        "can show,\npoints",
    )
    cut = health.truncated_texts
    for culture, c in health.counts.items():
        add_row(
            counts,
            culture,
            f"{c.users}\n({c.train_users} + {c.dev_users} + {c.test_users})",
            str(c.interactions),
            str(c.responses),
            str(c.train_pairs),
            str(c.dev_pairs),
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


def score_tables(scores: GlobalScores) -> list[Table]:
    """What the global model says of the training pairs, and what tau and beta would make of it."""
    threshold = scores.filter_threshold
    table = titled(
        f"the global model on the training pairs ({scores.num_texts} texts)",
        "culture",
        "pairs",
        "ranked right",
        "mean margin",
        "kept" if threshold is None else f"kept below {threshold_text(threshold)}",
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
    tables = [table, _margin_table(scores), *_choice_tables(scores)]
    warnings = [
        (culture, warning)
        for culture, s in scores.cultures.items()
        for warning in s.margins.warnings
    ]
    if warnings:
        shown = titled(
            "values that do next to nothing here", "culture", "warning", words=("warning",)
        )
        for culture, warning in warnings:
            add_row(shown, culture, warning)
        tables.append(shown)
    return tables


def _margin_table(scores: GlobalScores) -> Table:
    """Quantiles of the margins' sizes, and the tau that keeps given shares of the pairs."""
    first = next(iter(scores.cultures.values())).margins
    table = titled(
        "sizes of the global model's margins (reward units), and the tau that keeps a share",
        "culture",
        *(f"{100 * share:g} %\nare below" for share in first.quantiles),
        *(f"tau keeps\n{100 * share:g} %" for share in first.thresholds),
    )
    for culture, s in scores.cultures.items():
        add_row(
            table,
            culture,
            *(f"{size:.3g}" for size in s.margins.quantiles.values()),
            *_thresholds(s.margins.thresholds.values()),
        )
    return table


def _thresholds(found: Iterable[float | None]) -> Iterator[str]:
    found = list(found)
    texts = iter(threshold_texts([tau for tau in found if tau is not None], digits=4))
    return ("none" if tau is None else next(texts) for tau in found)


def _choice_tables(scores: GlobalScores) -> Iterator[Table]:
    """tau against the share of pairs kept, beta against what the kept pairs then count."""
    first = next(iter(scores.cultures.values())).margins
    kept = titled(
        "tau: share of the training pairs kept, %",
        "culture",
        *threshold_texts(list(first.kept), digits=6),
    )
    for culture, s in scores.cultures.items():
        add_row(kept, culture, *(f"{100 * share:.1f}" for share in s.margins.kept.values()))
    yield kept
    tau = "all"
    if scores.filter_threshold is not None:
        tau = f"below tau {threshold_text(scores.filter_threshold)}"
    weights = titled(
        f"beta: mean weight of the pairs ({tau}), and how many equal ones would say as much (Kish)",
        "culture",
        "pairs",
        *(f"{beta:g}" for beta in first.weights),
    )
    for culture, s in scores.cultures.items():
        looks = s.margins.weights.values()
        cells = (f"{look.mean:.2f}\n{look.effective_pairs:.0f}" for look in looks)
        add_row(weights, culture, str(s.margins.num_kept), *cells)
    yield weights


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


def memory_table(memory: MemoryEstimate) -> Table:
    """What each worker would need, in GB; those that are there at one time make the sum."""
    table = titled("memory of each worker at the peak of a step, estimated", "what", "GB")
    parts = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations of the widest pass", memory.activations),
        ("buffers, when activations are gone", memory.buffers),
        ("on the device", memory.total),
    ]
    if memory.host:
        parts.append(("the machine's own, beside libraries and data", memory.host))
    for name, num_bytes in parts:
        add_row(table, name, "unknown" if num_bytes is None else f"{num_bytes / 10**9:.2f}")
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


def reward_tables(found: FileScores) -> list[Table]:
    """Of RewardBench 2, each column's share of right picks by subset (Ties: the subset's own
    score); else nothing."""
    tables = []
    for column, subsets in found.subsets.items():
        table = titled(column, "subset", "prompts", "score")
        for subset, (share, num_prompts) in subsets.items():
            add_row(table, subset, str(num_prompts), f"{points(share)} %")
        tables.append(table)
    return tables


def steering_table(found: Steering) -> Table:
    """How often two judges pick the same response."""
    table = titled("the same pick, % of the prompts", "judge", *found.judges)
    for judge in found.judges:
        add_row(table, judge, *(points(found.agreement[judge][o]) for o in found.judges))
    return table


def _same_tokens(count: CultureCounts) -> str:
    sides = count.same_tokens_train, count.same_tokens_dev, count.same_tokens_test
    return f"{sum(sides)}\n({' + '.join(map(str, sides))})" if any(sides) else "0"


def finding_table(findings: Sequence[Finding]) -> Table:
    """Faults first, then notes, then what is fine."""
    words = ("found", "", "remedy")
    table = titled("this machine", "what", *words, words=words)
    order = ("fault", "note", "fine")
    for finding in sorted(findings, key=lambda finding: order.index(finding.verdict)):
        add_row(table, finding.what, finding.found, finding.verdict, finding.remedy)
    return table
