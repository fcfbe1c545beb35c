"""The rewards behind a server."""

from pathlib import Path
from typing import Annotated

import typer

from scpo_ray.cli.models import MODELS_URI, UriOption
from scpo_ray.cli.shown import SetOption

app = typer.Typer()


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="CULTURE=MODEL[,MODEL]...",
            help="A culture's model: a run's folder, an exported one, or scpo-Chile@champion; "
            "several (seeds) give their mean, with an interval.",
        ),
    ],
    base: Annotated[str | None, typer.Option(help="The base model of adapters.")] = None,
    uri: UriOption = MODELS_URI,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: a free one.")] = 8_000,
    device: Annotated[
        list[str] | None,
        typer.Option(help="A torch device; repeated: a process for each. Else all GPUs."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Holds the token; else SCPO_TOKEN, else a new one.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Without a token, on this machine alone.")
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Rewards over HTTP, by culture or mixture; trainers' and servers' own routes too."""
    from scpo_ray.commands import serving

    serving.serve(
        models,
        base=base,
        uri=uri,
        host=host,
        port=port,
        devices=device or [],
        token_file=token_file,
        without_token=no_auth,
        overrides=overrides or [],
    )
