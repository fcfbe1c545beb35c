"""The command line: parse, load the config, call one function, print where the result is."""

import json
import logging
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scpo_ray.settings.shown import plain

if TYPE_CHECKING:
    from rich.table import Table

_FILE_WIDTH = 1_000
_STOPPED = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One reward model per culture, from preferences labelled with where people live.",
)

ConfigArgument = Annotated[str, typer.Argument(help="A YAML file of settings, or 'paper'.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one setting; can be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved config and the plan, and train nothing."),
]


@app.command()
def quickstart(
    output_dir: Annotated[Path, typer.Option(help="Where everything is written.")] = Path(
        "runs/quickstart"
    ),
    as_json: JsonOption = False,
) -> None:
    """Generated data, a tiny model, six methods on three cultures, a report: about a minute."""
    from scpo_ray import quickstart as story
    from scpo_ray.report import tables

    done = story.quickstart(output_dir)
    _show(as_json, asdict(done.comparison), [tables.comparison_table(done.comparison)])
    best = ", ".join(f"{culture} {100 * value:.1f} %" for culture, value in done.best.items())
    _say(f"best possible accuracy on this generated data: {best}")
    _say(f"report:    {done.folder / 'report.html'}")
    _say(f"MLflow UI: mlflow ui --backend-store-uri {done.mlflow_uri}")


@app.command()
def data(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Counts per culture, what was skipped and why, warnings, and what a training would refuse."""
    from scpo_ray.commands import data_health
    from scpo_ray.records import InputError
    from scpo_ray.report import tables
    from scpo_ray.settings.files import load_config

    health = data_health(load_config(config, overrides or []))
    _show(as_json, asdict(health), tables.data_tables(health))
    if health.refusals:
        raise InputError("a training would refuse this", health.refusals)


@app.command()
def score(
    config: ConfigArgument,
    overrides: SetOption = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Compute them on all machines of a Ray cluster.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the global model's rewards once and keep them in the score store."""
    from scpo_ray.commands import global_scores
    from scpo_ray.report import tables
    from scpo_ray.settings.files import load_config

    scores = global_scores(load_config(config, overrides or []), on_ray=on_ray)
    _show(as_json, asdict(scores), [tables.score_table(scores)])
    _say(f"scores: {scores.path}")


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate one model; the same command resumes a stopped run."""
    from scpo_ray.commands import planned_run
    from scpo_ray.launch.runs import start_run
    from scpo_ray.report import tables
    from scpo_ray.settings.files import load_config

    settings = load_config(config, overrides or [])
    if dry_run:
        plans = [planned_run(settings)]
        _show_plans(as_json, settings.model_dump(mode="json"), plans)
        return
    result, folder = start_run(settings)
    shown = [tables.evaluation_table(result.evaluation), *tables.opinion_tables(result.opinions)]
    _show(as_json, asdict(result), shown)
    _say(f"model:  {result.model_dir}\nresult: {folder / 'result.json'}")
    _say(f"report: {folder / 'report.html'}")


@app.command()
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="A run's folder, or any reward model: a folder or a hub name.")
    ],
    config: ConfigArgument,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained model on every culture of a config, against its global model.

    --json: culture -> layers; "opinions" beside the countries where the data holds opinions.
    """
    from scpo_ray.commands import evaluate_model
    from scpo_ray.report import tables
    from scpo_ray.settings.files import load_config

    found = evaluate_model(model, load_config(config, overrides or []))
    document: dict[str, Any] = {culture: asdict(e) for culture, e in found.pairs.items()}
    if found.opinions:
        document["opinions"] = [asdict(scores) for scores in found.opinions]
    shown = [tables.evaluation_table(found.pairs), *tables.opinion_tables(found.opinions)]
    _show(as_json, document, shown)


@app.command()
def compare(
    config: Annotated[str, typer.Argument(help="A YAML file with run: and space:, or a run's.")],
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Methods over cultures and seeds; the same command resumes a stopped comparison."""
    from scpo_ray.commands import planned_runs
    from scpo_ray.launch import runs
    from scpo_ray.report import tables
    from scpo_ray.settings.files import load_comparison

    comparison = load_comparison(config, overrides or [])
    if dry_run:
        _show_plans(as_json, comparison.model_dump(mode="json"), planned_runs(comparison))
        return
    summary, folder = runs.compare(comparison)
    shown = [tables.comparison_table(summary), *tables.opinion_comparison_tables(summary.opinions)]
    _show(as_json, asdict(summary), shown)
    for name, reason in summary.failures.items():
        _say(f"failed: {name}: {reason}")
    _say(f"report: {folder / 'report.html'}")
    if summary.failures:
        raise typer.Exit(2)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file with run: and space:.")],
    overrides: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run and what it costs.")
    ] = False,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Run again what has ended; its results are deleted.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on with a sweep file that has changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Many runs over a space of settings, on Ray; the same command goes on with a stopped sweep."""
    from scpo_ray.commands import sweep_cost
    from scpo_ray.launch.sweeps import run_sweep
    from scpo_ray.report import tables

    if dry_run:
        cost = sweep_cost(file, overrides or [])
        _show(as_json, asdict(cost), [tables.sweep_cost_table(cost)])
        return
    result, folder = run_sweep(file, overrides or [], rerun=rerun, extend=extend)
    _show(as_json, asdict(result), [tables.sweep_table(result)])
    for trial in result.trials:
        if trial.state == "failed":
            _say(f"failed: {trial.trial_id} {trial.culture} seed {trial.seed}: {trial.error}")
    waiting = sum(trial.state == "waiting" for trial in result.trials)
    if waiting:
        _say(f"{waiting} trials wait: the same command runs them")
    _say(f"report: {folder / 'report.html'}")
    if any(trial.state == "failed" for trial in result.trials):
        raise typer.Exit(2)


@app.command()
def efficiency(
    config: Annotated[
        str, typer.Argument(help="A run's YAML file, or a sweep's with data.data_fraction.")
    ],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """How many pairs scpo needs to match finetune: a sweep over shares of the training users.

    The same command goes on with a stopped sweep, and shows a finished one.
    """
    from scpo_ray.commands import efficiency as curves
    from scpo_ray.report import tables
    from scpo_ray.report.cells import ISOLATES
    from scpo_ray.report.sweep_page import pairs_needed

    result, folder, file = curves(config, overrides or [])
    shown = [asdict(curve) for curve in result.efficiency]
    _show(as_json, shown, [tables.efficiency_table(result)])
    for sentence in pairs_needed(result.efficiency):
        # The page's marks around names; here they would be shown as escapes.
        _say(sentence.translate(dict.fromkeys(map(ord, ISOLATES))))
    _say(f"sweep file: {file}\nreport: {folder / 'report.html'}")
    if any(trial.state == "failed" for trial in result.trials):
        raise typer.Exit(2)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs or of comparisons.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """One HTML page about finished runs, from their result.json files alone."""
    from scpo_ray.commands import report_folders

    _say(f"report: {report_folders(folders, output)}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    folder: Annotated[Path, typer.Argument(help="The Hugging Face folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold adapters into the weights.")] = False,
) -> None:
    """Write a run's model as a plain Hugging Face sequence-classification folder."""
    from scpo_ray.commands import export_model

    export_model(run, folder, merge=merge)
    _say(f"model: {folder}")


models_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")

UriOption = Annotated[str, typer.Option(help="MLflow tracking URI.")]
MODELS_URI = "sqlite:///runs/mlflow.db"
ModelArgument = Annotated[str, typer.Argument(help="As in scpo-Mexico:3 or scpo-Mexico:champion.")]


@models_app.callback()
def models(
    context: typer.Context, uri: UriOption = MODELS_URI, as_json: JsonOption = False
) -> None:
    """The registered models: culture, method, aliases and accuracy; compare and promote them."""
    if context.invoked_subcommand is not None:
        # Options count before the subcommand's name as after it.
        context.default_map = {context.invoked_subcommand: {"uri": uri, "as_json": as_json}}
        return
    from scpo_ray.report import tables
    from scpo_ray.tracking.trackers import list_models

    registered = list_models(uri)
    _show(as_json, [asdict(model) for model in registered], [tables.model_table(registered)])


@models_app.command("compare")
def compare_models(
    model: ModelArgument,
    champion: Annotated[str, typer.Argument(help="The version to compare it with.")],
    uri: UriOption = MODELS_URI,
    as_json: JsonOption = False,
) -> None:
    """Two registered models on the same test pairs, and whether one could replace the other."""
    from scpo_ray.report import tables
    from scpo_ray.tracking.registry import compare_versions

    verdict = compare_versions(uri, model, champion)
    _show(as_json, asdict(verdict), [tables.judgement_table(verdict)])
    could = "could" if verdict.is_champion else "could not"
    _say(f"{verdict.model} {could} replace {verdict.champion}: {verdict.reason}")


@models_app.command("promote")
def promote_model(
    model: ModelArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it whatever the rule says.")
    ] = False,
    uri: UriOption = MODELS_URI,
    as_json: JsonOption = False,
) -> None:
    """Make a registered model the champion, if it is not worse than the one there is."""
    from scpo_ray.report import tables
    from scpo_ray.tracking.registry import promote

    verdict = promote(uri, model, force=force)
    _show(as_json, asdict(verdict), [tables.judgement_table(verdict)] if verdict.contests else [])
    _say(f"{verdict.model} is {'' if verdict.is_champion else 'not '}champion: {verdict.reason}")
    if not verdict.is_champion:
        raise typer.Exit(2)


def main() -> None:
    """Exit codes: 0 done; 1 a fault of this program; 2 of the input; 130 stopped by Ctrl-C."""
    from scpo_ray.records import InputError

    # A script's background commands, and jobs of a Ray that one started, begin with the signal
    # ignored; `ray job stop` and Slurm send it to end a sweep in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The libraries' own lines: quiet unless the user asks otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_PlainLines("%(message)s"))
    logging.getLogger("scpo_ray").setLevel(logging.INFO if _is_first() else logging.WARNING)
    # DeepSpeed (imported by transformers) logs to standard output, where the JSON goes.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        app(prog_name="scpo")
    except InputError as error:
        _say(str(error))
        sys.exit(2)
    except SystemExit as end:
        if end.code == _STOPPED:
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise
    except Exception:  # As Python would show it, but for what steers the terminal.
        print(plain(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)


class _PlainLines(logging.Formatter):
    """Log lines, those of libraries too, in which nothing from the data steers the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def _is_first() -> bool:
    """Of the processes that torchrun started for one command, one speaks."""
    return os.environ.get("RANK", "0") == "0"


def _show(as_json: bool, document: Any, tables: "list[Table]") -> None:
    if not _is_first():
        return
    if as_json:
        print(json.dumps(document, indent=1, default=str))
        return
    from rich.console import Console

    # Files and pipes have no width; names from the data are no markup.
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    for table in tables:
        console.print(table)


def _show_plans(as_json: bool, settings: dict[str, Any], plans: list[Any]) -> None:
    from scpo_ray.report import tables
    from scpo_ray.settings.documents import write_yaml

    document = {"config": settings, "plans": [asdict(plan) for plan in plans]}
    if not as_json:
        print(write_yaml(settings))
    _show(as_json, document, [tables.plan_table(plans)])


def _say(line: str) -> None:
    # Beside the tables, so that standard output is the table or the JSON and nothing else.
    if _is_first():
        print(plain(line), file=sys.stderr)


if __name__ == "__main__":
    main()
