"""Rewards in use: a file's, several cultures' side by side, and models merged by weight."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scpo_ray.cli.models import MODELS_URI, UriOption
from scpo_ray.cli.shown import JsonOption, say, show

app = typer.Typer()

ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="CULTURE=MODEL[,MODEL]...",
        help="A run's folder, an exported one or scpo-Chile@champion, for each culture; "
        "several (seeds) give their mean, with an interval.",
    ),
]
FileArgument = Annotated[Path, typer.Argument(help="A .jsonl, .csv or .parquet file.")]
BaseOption = Annotated[
    str | None, typer.Option(help="The base model of adapters, if not where their folders say.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="As in cpu or cuda:1; a GPU if there is one.")
]
MixOption = Annotated[
    list[str] | None,
    typer.Option("--mix", metavar="A=0.5,B=0.5", help="A mixture of cultures; can be repeated."),
]
HowOption = Annotated[
    str, typer.Option(help="What a mixture means: linear, people or worst (docs/serving.md).")
]


@app.command()
def reward(
    models: ModelsArgument,
    file: FileArgument,
    output: Annotated[
        Path | None, typer.Option(help="The .jsonl or .parquet file to write.")
    ] = None,
    cultures: Annotated[
        list[str] | None,
        typer.Option("--culture", help="Of this culture alone; can be repeated."),
    ] = None,
    mixes: MixOption = None,
    how: HowOption = "linear",
    form: Annotated[
        str, typer.Option("--format", help="rows, or rewardbench2 for its local JSONL.")
    ] = "rows",
    base: BaseOption = None,
    device: DeviceOption = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    uri: UriOption = MODELS_URI,
    on_ray: Annotated[
        bool | None,
        typer.Option("--ray/--no-ray", help="Ray Data or this process; else by the rows' number."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The rewards of a file's responses, every column kept; the same command goes on if stopped.

    Rows have prompt (text or messages) and response or responses; each is scored by the model of
    its column culture, or where there is none by every model.
    """
    from scpo_ray.commands.rewards import Where, reward_file
    from scpo_ray.report import listings

    where = Where(tuple(models), base, device, dtype, uri)
    found = reward_file(
        where,
        file,
        output,
        cultures=cultures or [],
        mixes=mixes or [],
        how=how,
        form=form,
        on_ray=on_ray,
    )
    show(as_json, asdict(found), listings.reward_tables(found))
    say(f"{found.num_rows} rows gained {', '.join(found.columns)}\nrewards: {found.output}")


@app.command()
def steer(
    models: ModelsArgument,
    file: FileArgument,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("steering.html"),
    mixes: MixOption = None,
    how: HowOption = "linear",
    base: BaseOption = None,
    device: DeviceOption = None,
    uri: UriOption = MODELS_URI,
    as_json: JsonOption = False,
) -> None:
    """Which of each prompt's responses every culture and mixture would pick; where they part."""
    from scpo_ray.commands import rewards
    from scpo_ray.report import listings

    where = rewards.Where(tuple(models), base, device, "float32", uri)
    found, page = rewards.steer(where, file, output, mixes=mixes or [], how=how)
    show(as_json, asdict(found), [listings.steering_table(found)])
    say(f"{found.num_parted} of {found.num_prompts} prompts part them\npage: {page}")


@app.command()
def merge(
    weighted: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL=WEIGHT...",
            help="A folder, a registered version or a culture (its champion), and its weight.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    uri: UriOption = MODELS_URI,
) -> None:
    """One model, the weighted sum of several: scpo merge Chile=0.5 Mexico=0.5 OUT."""
    from scpo_ray.commands.rewards import merge_by_weight

    merge_by_weight(weighted, folder, uri)
    say(f"model: {folder}")


@app.command()
def scale(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Exported or merged models.")
    ],
    file: FileArgument,
    device: DeviceOption = None,
) -> None:
    """Puts models' rewards on one scale, that of a file's responses: for merged and older models.

    Mixtures are of standardised rewards: scale all models of a mixture with one file.
    """
    from scpo_ray.commands.rewards import scale_models

    for folder, made in zip(folders, scale_models(folders, file, device), strict=True):
        say(f"{folder}: mean {made.mean:.4g}, spread {made.spread:.4g}, {made.num_texts} texts")
