"""Output folders: what lies in them and what can go."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scpo_ray.cli.shown import JsonOption, say, show

if TYPE_CHECKING:
    from scpo_ray.storage.inventory import Inventory

app = typer.Typer()

FolderArgument = Annotated[Path, typer.Argument(help="An output folder, or one experiment's.")]


@app.command()
def runs(folder: FolderArgument = Path("runs"), as_json: JsonOption = False) -> None:
    """The runs in an output folder: method, culture, state, accuracy, size; what can be deleted."""
    from scpo_ray.report import listings
    from scpo_ray.storage.inventory import inventory

    found = inventory(folder)
    _say_where_runs_are(found)
    shown = [listings.run_table(found)] if found.runs else []
    if found.deletable:
        shown.append(listings.deletable_table(found))
    show(as_json, asdict(found), shown)


@app.command()
def clean(
    folder: FolderArgument = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Delete all of it without asking.")] = False,
) -> None:
    """Delete what no result needs; asks before each kind. Ended runs stay."""
    from scpo_ray.report import listings
    from scpo_ray.storage.inventory import delete, inventory

    found = inventory(folder)
    _say_where_runs_are(found)
    if not found.deletable:
        say(f"{folder}: nothing to delete")
        return
    chosen = found.deletable
    if not yes:
        show(False, None, [listings.deletable_table(found)])
        chosen = [kind for kind in chosen if typer.confirm(f"Delete {kind.kind}?", err=True)]
    deleted = delete(chosen)
    say(f"deleted: {deleted / 1e6:.1f} MB in {len(chosen)} of {len(found.deletable)} kinds")


def _say_where_runs_are(found: "Inventory") -> None:
    if not found.runs:
        below = ", ".join(found.below)
        say(f"{found.folder}: no runs in it" + (f"; there are in {below}" if below else ""))
