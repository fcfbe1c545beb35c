"""Data, scores, one run, and methods side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from scpo_ray.cli.shown import (
    CONFIG_HELP,
    ConfigArgument,
    DryRunOption,
    JsonOption,
    SetOption,
    say,
    show,
    show_plans,
)

app = typer.Typer()


@app.command()
def quickstart(
    output_dir: Annotated[Path, typer.Option(help="Where everything is written.")] = Path(
        "runs/quickstart"
    ),
    as_json: JsonOption = False,
) -> None:
    """Generated data, a tiny model, six methods on three cultures, a report: 90 seconds."""
    from scpo_ray import quickstart as story
    from scpo_ray.report import tables

    done = story.quickstart(output_dir)
    show(as_json, asdict(done.comparison), [tables.comparison_table(done.comparison)])
    best = ", ".join(f"{culture} {100 * value:.1f} %" for culture, value in done.best.items())
    say(f"best possible accuracy on this generated data: {best}")
    say(f"report:    {done.folder / 'report.html'}")
    say(f"MLflow UI: mlflow ui --backend-store-uri {done.mlflow_uri}")


@app.command()
def data(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Counts per culture, what was skipped and why, warnings, and what a training would refuse."""
    from scpo_ray.commands.health import data_health
    from scpo_ray.records import InputError
    from scpo_ray.report import listings
    from scpo_ray.settings.files import load_config

    health = data_health(load_config(config, overrides or []))
    show(as_json, asdict(health), listings.data_tables(health))
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
    from scpo_ray.commands.looks import global_scores
    from scpo_ray.report import listings
    from scpo_ray.settings.files import load_config

    scores = global_scores(load_config(config, overrides or []), on_ray=on_ray)
    show(as_json, asdict(scores), listings.score_tables(scores))
    say(f"scores: {scores.path}")


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate one model; the same command resumes a stopped run."""
    from scpo_ray.commands.plans import planned_run
    from scpo_ray.launch.runs import start_run
    from scpo_ray.report import tables
    from scpo_ray.report.confidence import best_of_n_table, calibration_table
    from scpo_ray.settings.files import load_config

    settings = load_config(config, overrides or [])
    if dry_run:
        plans = [planned_run(settings)]
        show_plans(as_json, settings.model_dump(mode="json"), plans)
        return
    result, folder = start_run(settings)
    shown = [
        tables.evaluation_table(result.evaluation),
        calibration_table(result.calibration),
        best_of_n_table(result.best_of_n),
        *tables.opinion_tables(result.opinions),
    ]
    show(as_json, asdict(result), shown)
    say(f"model:  {result.model_dir}\nresult: {folder / 'result.json'}")
    say(f"report: {folder / 'report.html'}")


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder, scpo-Mexico:champion, or any reward model: a folder, a hub name."
        ),
    ] = None,
    config: Annotated[str | None, typer.Argument(help=CONFIG_HELP)] = None,
    scores: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Instead: compare two files of models' scores."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained model on every culture of a config, against its global model.

    --json: "evaluation", "calibration", "best_of_n" and "opinions", as in a run's result.json, and
    "warnings".
    --scores takes any two models: docs/models.md has the files' columns.
    """
    if scores is not None:
        if model is not None or overrides:
            raise typer.BadParameter(
                "takes no model, config or --set beside it", param_hint="--scores"
            )
        _compare_scores(scores, as_json)
        return
    if model is None or config is None:
        raise typer.BadParameter("name a model and a config, or give --scores A B")
    from scpo_ray.commands.evaluating import evaluate_model
    from scpo_ray.report import tables
    from scpo_ray.report.confidence import best_of_n_table, calibration_table
    from scpo_ray.settings.files import load_config

    found = evaluate_model(model, load_config(config, overrides or []))
    shown = [
        tables.evaluation_table(found.pairs),
        calibration_table(found.calibration),
        best_of_n_table(found.best_of_n),
        *tables.opinion_tables(found.opinions),
    ]
    by_culture: dict[str, dict[str, Any]] = {
        "evaluation": found.pairs,
        "calibration": found.calibration,
        "best_of_n": found.best_of_n,
    }
    document: dict[str, Any] = {
        name: {culture: asdict(of) for culture, of in each.items()}
        for name, each in by_culture.items()
    }
    document["opinions"] = [asdict(scores) for scores in found.opinions]
    document["warnings"] = found.warnings
    show(as_json, document, shown)
    for warning in found.warnings:
        say(f"warning: {warning}")


def _compare_scores(files: tuple[Path, Path], as_json: bool) -> None:
    from scpo_ray.commands.evaluating import compare_scores
    from scpo_ray.report.confidence import best_of_n_table, score_comparison_table

    found = compare_scores(*files)
    picked = best_of_n_table(found.best_of_n, names=("first", "second"))
    show(as_json, asdict(found), [score_comparison_table(found), picked])
    if "prompts" in found.clusters:
        say("rows without user and question: intervals and tests take all rows of a prompt as one")
    for reason, number in found.left_out.items():
        say(f"left out: {number} rows: {reason}")


@app.command()
def compare(
    config: Annotated[str, typer.Argument(help="A YAML file with run: and space:, or a run's.")],
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Methods over cultures and seeds; the same command resumes a stopped comparison."""
    from scpo_ray.commands.plans import planned_runs
    from scpo_ray.launch import runs
    from scpo_ray.report import tables
    from scpo_ray.settings.files import load_comparison

    comparison = load_comparison(config, overrides or [])
    if dry_run:
        show_plans(as_json, comparison.model_dump(mode="json"), planned_runs(comparison))
        return
    summary, folder = runs.compare(comparison)
    shown = [tables.comparison_table(summary), *tables.opinion_comparison_tables(summary.opinions)]
    show(as_json, asdict(summary), shown)
    for name, reason in summary.failures.items():
        say(f"failed: {name}: {reason}")
    say(f"report: {folder / 'report.html'}")
    if summary.failures:
        raise typer.Exit(2)
