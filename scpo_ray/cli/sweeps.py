"""Sweeps over a space of settings."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scpo_ray.cli.shown import JsonOption, SetOption, say, show

app = typer.Typer()


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
    from scpo_ray.commands.plans import sweep_cost
    from scpo_ray.launch.sweeps import run_sweep
    from scpo_ray.report import listings, tables

    if dry_run:
        cost = sweep_cost(file, overrides or [])
        show(as_json, asdict(cost), [listings.sweep_cost_table(cost)])
        return
    result, folder = run_sweep(file, overrides or [], rerun=rerun, extend=extend)
    show(as_json, asdict(result), [tables.sweep_table(result)])
    for trial in result.trials:
        if trial.state == "failed":
            say(f"failed: {trial.trial_id} {trial.culture} seed {trial.seed}: {trial.error}")
    waiting = sum(trial.state == "waiting" for trial in result.trials)
    if waiting:
        say(f"{waiting} trials wait: the same command runs them")
    say(f"report: {folder / 'report.html'}")
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
    from scpo_ray.commands.efficiency import efficiency as curves
    from scpo_ray.report import tables
    from scpo_ray.report.cells import ISOLATES
    from scpo_ray.report.sweep_page import pairs_needed

    result, folder, file = curves(config, overrides or [])
    shown = [asdict(curve) for curve in result.efficiency]
    show(as_json, shown, [tables.efficiency_table(result)])
    for sentence in pairs_needed(result.efficiency):
        # The page's marks around names; here they would be shown as escapes.
        say(sentence.translate(dict.fromkeys(map(ord, ISOLATES))))
    say(f"sweep file: {file}\nreport: {folder / 'report.html'}")
    if any(trial.state == "failed" for trial in result.trials):
        raise typer.Exit(2)
