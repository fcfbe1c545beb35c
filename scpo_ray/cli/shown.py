"""What all commands share: their options, and how they show what they found."""

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scpo_ray.settings.shown import plain

if TYPE_CHECKING:
    from rich.table import Table

_FILE_WIDTH = 1_000

CONFIG_HELP = "A YAML file of settings, or 'paper'."
ConfigArgument = Annotated[str, typer.Argument(help=CONFIG_HELP)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one setting; can be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved config and the plan, and train nothing."),
]


def show(as_json: bool, document: Any, tables: "list[Table]") -> None:
    """Prints the tables, or the document as JSON; of torchrun's processes the first alone."""
    if not is_first():
        return
    if as_json:
        print(json.dumps(document, indent=1, default=str))
        return
    from rich.console import Console

    from scpo_ray.report.terminal import fitted

    # Files and pipes have no width; names from the data are no markup.
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    for table in tables:
        console.print(*fitted(table, console.width), sep="\n")


def show_plans(as_json: bool, settings: dict[str, Any], plans: list[Any]) -> None:
    """Prints the resolved settings and what runs of them would do."""
    from scpo_ray.report import listings
    from scpo_ray.settings.documents import write_yaml

    document = {"config": settings, "plans": [asdict(plan) for plan in plans]}
    if not as_json:
        print(write_yaml(settings))
    show(as_json, document, [listings.plan_table(plans)])


def say(line: str) -> None:
    """Prints a line to standard error: standard output is the tables or the JSON, no more."""
    if is_first():
        print(plain(line), file=sys.stderr)


def is_first() -> bool:
    """Of the processes that torchrun started for one command, one speaks."""
    return os.environ.get("RANK", "0") == "0"
