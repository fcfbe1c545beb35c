"""Where one begins: a first config, and whether this machine can run it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scpo_ray.cli.shown import JsonOption, say, show

app = typer.Typer()


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="Preferences: JSONL, CSV or Parquet.")],
    output: Annotated[
        Path | None, typer.Option(help="The config to write. [default: DATA's name, .yaml]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The global reward model: a folder or a hub name.")
    ] = None,
) -> None:
    """Write a first config for a file of preferences, by looking at its columns."""
    from scpo_ray.commands.beginning import write_first_config

    config = output or Path(f"{data.name.split('.')[0]}.yaml")
    guess = write_first_config(data, config, model)
    for reason in guess.reasons:
        say(reason)
    say(f"config: {config}\nnext:   scpo data {config}")


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file: its output_dir, tracking and launch.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Versions, devices, Ray, tracking store, hub, disk: what is wrong, and how to mend it."""
    from scpo_ray.commands.checkup import checkup
    from scpo_ray.report import listings
    from scpo_ray.settings.files import load_config
    from scpo_ray.settings.run import RunConfig

    findings = checkup(load_config(config) if config else RunConfig())
    show(as_json, [asdict(finding) for finding in findings], [listings.finding_table(findings)])
    faults = sum(finding.verdict == "fault" for finding in findings)
    if faults:
        say(f"{faults} to mend")
        raise typer.Exit(2)
