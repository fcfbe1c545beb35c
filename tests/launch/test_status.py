"""The line at the bottom of a terminal, while many runs go on."""

import fcntl
import io
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from scpo_ray.cli.main import _AboveBars
from scpo_ray.launch.status import status_line, status_text, time_left
from tests.test_cli import write_yaml
from tests.tiny import tiny_document


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What stands on the screen in the end."""
        return [shown.rstrip() for shown in screen(self.getvalue()) if shown.strip()]


def screen(written: str) -> list[str]:
    """The lines of a terminal: line feeds, returns and cursors that go up."""
    lines, row, column = [""], 0, 0
    characters = iter(written.replace("\x1b[A", "\v"))
    for c in characters:
        if c == "\n":
            row, column = row + 1, 0
            lines += [""] if row == len(lines) else []
        elif c == "\r":
            column = 0
        elif c == "\v":
            row -= 1
        else:
            lines[row] = lines[row][:column].ljust(column) + c + lines[row][column + 1 :]
            column += 1
    return lines


@pytest.mark.parametrize(
    ("running", "left", "text"),
    [
        ([], None, "2 of 9 runs done, 7 to come"),
        (
            ["scpo-Chile-s0"],
            "40 s",
            "2 of 9 runs done, 6 to come, 40 s left; running: scpo-Chile-s0",
        ),
        (list("abcdefgh"), None, "2 of 9 runs done, 0 to come; running: a, b, c, d, e, f, g, h"),
    ],
)
def test_the_status_says_what_is_done_to_come_and_running(running, left, text):
    assert status_text("runs", 2, 9, running, left) == text


@pytest.mark.parametrize(
    ("took", "to_come", "left"),
    [
        ({"global": [1.0], "scpo": [30.0, 50.0]}, {"global": 1, "scpo": 2}, 81.0),
        ({"global": [1.0]}, {"global": 1, "scpo": 1}, None),
        ({}, {}, 0.0),
    ],
)
def test_the_time_left_goes_by_what_runs_of_the_same_method_took(took, to_come, left):
    assert time_left(took, to_come) == left


def test_lines_scroll_above_the_status_and_it_goes_in_the_end(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log = logging.Logger("lines")
    log.addHandler(_AboveBars(terminal))

    with status_line() as show:
        show("1 of 3 runs done\x1b[2J")
        log.info("first")
        log.info("second")
        midway = terminal.lines()

    assert midway == ["first", "second", "00:00  1 of 3 runs done\\x1b[2J"]
    assert terminal.lines() == ["first", "second"]


def test_a_pipe_gets_no_status(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)

    with status_line() as show:
        show("1 of 3 runs done")

    assert pipe.getvalue() == ""


@pytest.mark.slow
def test_a_comparison_on_a_terminal_keeps_its_status_below_its_lines(tiny_reward_model, tmp_path):
    document = tiny_document(tiny_reward_model, tmp_path / "runs", train={"max_steps": 3})
    space = {"method": ["finetune", "scpo"], "culture": ["North", "South"]}
    file = write_yaml(tmp_path / "compare.yaml", {"run": document, "space": space})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))

    command = subprocess.Popen(
        [sys.executable, "-m", "scpo_ray.cli", "compare", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    with suppress(OSError):  # The other end is closed.
        while True:
            written += os.read(ours, 65_536)

    assert command.wait() == 0
    text = written.decode().replace("\r\n", "\n")
    for done in range(4):
        assert f"  {done} of 4 runs done, {3 - done} to come" in text
    shown = [line.rstrip() for line in screen(text) if line.strip()]
    assert [line.partition(":")[0] for line in shown if line.startswith("run ")] == [
        f"run {number} of 4" for number in range(1, 5)
    ]
    assert not [line for line in shown if "runs done" in line]
    assert shown[-1].startswith("report: ")
