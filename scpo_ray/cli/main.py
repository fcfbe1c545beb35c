"""The program: its commands, its exit codes, and what its libraries may print."""

import logging
import os
import signal
import sys
import traceback
from typing import Annotated, TextIO

import typer

import scpo_ray
from scpo_ray.cli import beginning, folders, models, runs, serving, steering, sweeps
from scpo_ray.cli.shown import is_first, say
from scpo_ray.settings.shown import plain

_STOPPED = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"scpo_ray {scpo_ray.__version__}")
        raise typer.Exit


@app.callback()
def scpo(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """One reward model per culture, from preferences labelled with where people live."""


for chapter in (beginning, runs, sweeps, models, serving, folders, steering):
    app.add_typer(chapter.app)


def main() -> None:
    """Exit codes: 0 done; 1 a fault of this program; 2 of the input; 130 stopped by Ctrl-C."""
    from scpo_ray.records import InputError

    # A script's background commands, and jobs of a Ray that one started, begin with the signal
    # ignored; `ray job stop` and Slurm send it to end a sweep in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The libraries' own lines: quiet unless the user asks otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    lines = _AboveBars(sys.stderr)
    lines.setFormatter(_PlainLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    logging.getLogger("scpo_ray").setLevel(logging.INFO if is_first() else logging.WARNING)
    # DeepSpeed (imported by transformers) logs to standard output, where the JSON goes.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        app(prog_name="scpo")
    except InputError as error:
        say(str(error))
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


class _AboveBars(logging.StreamHandler[TextIO]):
    """Log lines that scroll above the bars which are drawn at the bottom of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)
