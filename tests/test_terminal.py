"""Nothing from the data steers the terminal: not in a table, a log line or an error."""
# ruff: noqa: F811 (the fixture `scpo` is imported)

import json
import logging
import sys

import pytest

import scpo_ray.cli.main
from tests.test_bad_input import Workplace, as_lines, rows_of

EVIL = "N\x1b[2J\x9b31m\u202eorth\x07"
"""What turns a terminal's text about (U+202E) is taken out of a name, and shown anywhere else."""
SHOWN = "N\\x1b[2J\\x9b31m\\u202eorth\\x07"


@pytest.fixture
def place(tmp_path, tiny_reward_model) -> Workplace:
    return Workplace(tmp_path, tiny_reward_model)


def assert_plain(text: str) -> None:
    assert not {c for c in text if c in "\x1b\x9b\x07\u202e\r"}


@pytest.mark.parametrize(
    "command", [("data",), ("score",), ("train", "--dry-run"), ("train",), ("data", "--json")]
)
def test_a_culture_with_control_characters_is_shown_by_their_escapes(scpo, place, command):
    place.data.write_text(as_lines(rows_of((EVIL, "South"))))
    place.document["culture_weights"] = {EVIL: 1.0}

    outcome = scpo(*command, place.write())

    assert outcome.code == 0, outcome.err
    assert_plain(outcome.out + outcome.err)
    if command in (("data",), ("train",)):
        assert SHOWN.replace("\\u202e", "") in outcome.out
    if command == ("train", "--dry-run"):
        assert "N\\e[2J\\x9B31morth\\a" in outcome.out


def test_an_error_that_quotes_the_data_is_plain(scpo, place):
    place.set_row(5, culture=EVIL, id=7)

    outcome = scpo("data", place.write())

    assert outcome.code == 2
    assert_plain(outcome.err)


def test_a_setting_is_quoted_plainly(scpo, place):
    outcome = scpo("train", place.write(), "--set", f"method={json.dumps(EVIL)}")

    assert outcome.code == 2
    assert SHOWN in outcome.err
    assert_plain(outcome.err)


def test_log_lines_and_tracebacks_are_plain(monkeypatch, capsys):
    def command(prog_name: str) -> None:
        logging.getLogger("some.library").warning("about %s", EVIL)
        raise RuntimeError(EVIL)

    monkeypatch.setattr(scpo_ray.cli.main, "app", command)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["scpo"])

    with pytest.raises(SystemExit) as ended:
        scpo_ray.cli.main.main()

    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"about {SHOWN}" in said
    assert f"RuntimeError: {SHOWN}" in said
    assert_plain(said)
