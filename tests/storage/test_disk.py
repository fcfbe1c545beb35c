"""Whole files and folders or none, and what is signed is checked."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scpo_ray.storage.disk import (
    folder_fault,
    put_into,
    read_json,
    whole_file,
    whole_folder,
    write_json,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def everything_below(folder: Path) -> list[str]:
    """Files below `folder`; locks are no content."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return sorted(str(p.relative_to(folder)) for p in files)


@contextmanager
def child(code: str, *arguments: Path | str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has come to its line `ready()`."""
    start = "import sys, time\ndef ready(): print('ready', flush=True)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


# Whole files and folders


def test_a_whole_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"

    with whole_file(path) as part:
        part.write_text("content")
        assert not path.exists()

    assert path.read_text() == "content"
    assert everything_below(tmp_path) == ["new/a.txt"]


def test_an_exception_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError

    assert path.read_text() == "old"
    assert everything_below(tmp_path) == ["a.txt"]


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise RuntimeError

    assert everything_below(tmp_path) == []


def test_a_whole_folder_replaces_the_older_one_and_carries_its_manifest(tmp_path):
    path = tmp_path / "f"
    for name in ("old", "new"):
        with whole_folder(path) as part:
            (part / "below").mkdir()
            (part / "below" / name).write_text(name)

    assert everything_below(tmp_path) == ["f/below/new", "f/manifest.json"]
    assert folder_fault(path) is None


def test_an_exception_leaves_the_old_folder_and_no_rest(tmp_path):
    path = tmp_path / "f"
    with whole_folder(path) as part:
        (part / "a").write_text("old")

    with pytest.raises(RuntimeError), whole_folder(path) as part:
        (part / "a").write_text("half")
        raise RuntimeError

    assert (path / "a").read_text() == "old"
    assert everything_below(tmp_path) == ["f/a", "f/manifest.json"]


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_content_or_nothing(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with whole_folder(tmp_path / "old") as part:
        (part / "a").write_text("old")
    code = """
from pathlib import Path
from scpo_ray.storage.disk import whole_file, whole_folder
root = Path(sys.argv[1])
with (
    whole_file(root / "old.txt") as a, whole_file(root / "new.txt") as b,
    whole_folder(root / "old") as c, whole_folder(root / "new") as d,
):
    for half in (a, b, c / "a", d / "a"):
        half.write_text("half")
    ready()
    time.sleep(60)
"""
    with child(code, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()

    assert (tmp_path / "old.txt").read_text() == "old"
    assert (tmp_path / "old" / "a").read_text() == "old"
    assert folder_fault(tmp_path / "old") is None
    assert not (tmp_path / "new.txt").exists()
    assert not (tmp_path / "new").exists()

    # The next writer of the folder finds the rest and removes it.
    with whole_folder(tmp_path / "new") as part:
        (part / "b").write_text("whole")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["b", "manifest.json"]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: (f / "a").write_text("conten"), "a is not what was written"),
        (lambda f: (f / "a").write_text("cOntent"), "a is not what was written"),
        (lambda f: (f / "manifest.json").unlink(), "its manifest is missing or unreadable"),
        (lambda f: (f / "manifest.json").write_text('{"a"'), "its manifest is missing or unread"),
    ],
)
def test_a_damaged_folder_is_known_by_its_manifest(tmp_path, damage, fault):
    with whole_folder(tmp_path / "f") as part:
        (part / "a").write_text("content")

    damage(tmp_path / "f")

    assert str(folder_fault(tmp_path / "f")).startswith(fault)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", {"x": 1})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": value})

    assert json.loads(read_json(tmp_path / "a.json", "")) == {"x": 1}


def test_a_file_put_into_a_folder_of_another_program_gives_it_no_manifest(tmp_path):
    put_into(tmp_path, "note.json", "first")

    assert [path.name for path in tmp_path.iterdir()] == ["note.json"]


def test_a_file_put_into_a_whole_folder_is_part_of_what_is_checked(tmp_path):
    path = tmp_path / "model"
    with whole_folder(path) as part:
        (part / "weights").write_text("w")

    for text in ("first", "second"):
        put_into(path, "note.json", text)
        assert folder_fault(path) is None
    (path / "note.json").write_text("changed")

    assert folder_fault(path) == "note.json is not what was written"
