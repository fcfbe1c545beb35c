"""Where one begins: a first config, and whether this machine can run it."""

from pathlib import Path
from typing import Annotated

import typer

from scpo_ray.cli.shown import say

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
