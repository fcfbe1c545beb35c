"""What lies in folders and in the registry: pages, exports, registered models."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scpo_ray.cli.shown import JsonOption, say, show

app = typer.Typer()

models_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")

UriOption = Annotated[str, typer.Option(help="MLflow tracking URI.")]
MODELS_URI = "sqlite:///runs/mlflow.db"
ModelArgument = Annotated[str, typer.Argument(help="As in scpo-Mexico:3 or scpo-Mexico:champion.")]


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs or of comparisons.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    latex: Annotated[
        bool, typer.Option("--latex", help="Write the tables for a paper beside it (booktabs).")
    ] = False,
) -> None:
    """One HTML page about finished runs, from their result.json files alone, and its answer as
    Markdown beside it."""
    from scpo_ray.commands.folders import report_folders

    page, texts = report_folders(folders, output, latex=latex)
    say(f"report: {page}\nas text: {', '.join(map(str, texts))}")


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(help="A finished run's folder, or as in scpo-Mexico:champion.")
    ],
    folder: Annotated[Path, typer.Argument(help="The Hugging Face folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold adapters into the weights.")] = False,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="TOOLS",
            help="Compare its rewards in transformers, pipeline, sentence-transformers, trl "
            "(with commas) with ours; more than 1e-4 apart is an error.",
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub.")
    ] = None,
    uri: UriOption = MODELS_URI,
) -> None:
    """Write a run's model as a plain Hugging Face folder, with a card that says what it is."""
    from scpo_ray.commands.exporting import check_export, export_model
    from scpo_ray.models.elsewhere import TOLERANCE, read_tools
    from scpo_ray.models.hub import push_folder

    tools = [] if check is None else read_tools(check)
    model, result = export_model(run, folder, uri=uri, merge=merge, push=push)
    say(f"model: {folder}")
    checks = check_export(model, result, folder, tools) if tools else []
    for found in checks:
        said = found.note
        if found.difference is not None:
            said = f"differs by at most {found.difference:.1e} on {found.note}"
        say(f"{found.tool}: {said}")
    if any(found.failed for found in checks):
        say(f"not every tool gives the rewards that are given here (up to {TOLERANCE:g})")
        raise typer.Exit(2)
    if push is not None:
        say(f"hub: {push_folder(folder, push)}")


@models_app.callback()
def models(
    context: typer.Context, uri: UriOption = MODELS_URI, as_json: JsonOption = False
) -> None:
    """The registered models: culture, method, aliases and accuracy; compare and promote them."""
    if context.invoked_subcommand is not None:
        # Options count before the subcommand's name as after it.
        context.default_map = {context.invoked_subcommand: {"uri": uri, "as_json": as_json}}
        return
    from scpo_ray.report import listings
    from scpo_ray.tracking.trackers import list_models

    registered = list_models(uri)
    show(as_json, [asdict(model) for model in registered], [listings.model_table(registered)])


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
    show(as_json, asdict(verdict), [tables.judgement_table(verdict)])
    could = "could" if verdict.is_champion else "could not"
    say(f"{verdict.model} {could} replace {verdict.champion}: {verdict.reason}")


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
    show(as_json, asdict(verdict), [tables.judgement_table(verdict)] if verdict.contests else [])
    say(f"{verdict.model} is {'' if verdict.is_champion else 'not '}champion: {verdict.reason}")
    if not verdict.is_champion:
        raise typer.Exit(2)
