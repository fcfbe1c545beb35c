"""What has a name is found by it, and a name that cannot be used says why."""

import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from scpo_ray.records import InputError
from scpo_ray.settings.plugins import Plugins

NUMBERS = count()


@dataclass(frozen=True)
class Tool:
    name: str
    size: int = 0


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder on the import path, and in it a package whose name no other test has."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / f"room{next(NUMBERS)}"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    return folder


def write_tool(folder: Path, file: str, *lines: str) -> None:
    head = f"from {__name__} import Tool"
    (folder / f"{file}.py").write_text("\n".join([head, *lines]))


def install(folder: Path, package: str, **names: str) -> None:
    """As an installed package has it: a module is on the path, `names` are its entry points."""
    info = folder / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[test.tools]", *lines]))


def tools(room: Path) -> Plugins[Tool]:
    return Plugins(room.name, "test.tools", "TOOL", Tool)


def refused(table: Plugins[Tool], name: str) -> InputError:
    with pytest.raises(InputError) as refusal:
        table[name]
    return refusal.value


def test_a_new_file_offers_its_values_and_no_other_file_names_it(room):
    write_tool(room, "b", "TOOL = Tool('saw', 3)")
    write_tool(room, "a", "TOOL: tuple[Tool, ...] = (Tool('nail', 2), Tool('axe', 1))")

    table = tools(room)

    assert table.names() == ("nail", "axe", "saw")
    assert table["saw"] == Tool("saw", 3)


def test_a_file_that_offers_nothing_is_not_imported(room):
    write_tool(room, "a", "TOOL = Tool('axe')")
    (room / "slow.py").write_text('"""TOOL is not set here: TOOL = 1."""\nraise ValueError')

    assert tools(room).names() == ("axe",)
    assert f"{room.name}.slow" not in sys.modules


def test_an_installed_package_offers_by_its_entry_points(room):
    write_tool(room, "a", "TOOL = Tool('saw')")
    write_tool(room.parent, f"{room.name}_other", "DRILL = Tool('drill', 7)")
    install(room.parent, "other", drill=f"{room.name}_other:DRILL", broken="no_such_module:X")

    table = tools(room)

    assert table.names() == ("saw", "broken", "drill")
    assert table["drill"] == Tool("drill", 7)


def test_an_unknown_name_is_told_with_the_nearest(room):
    write_tool(room, "a", "TOOL = (Tool('hammer'), Tool('saw'))")

    refusal = refused(tools(room), "hamer")

    assert refusal.title == "tool 'hamer' cannot be used"
    why = "there is none of this name; nearest: 'hammer'; all: hammer, saw"
    assert refusal.problems == (why,)


@pytest.mark.parametrize(
    ("module", "value", "reason"),
    [
        ("", "no_such_module:X", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "{}:DRILL", "ZeroDivisionError: division by zero"),
        ("", "{}:DRILL", "AttributeError: module '{}' has no attribute 'DRILL'"),
        ("DRILL = 3", "{}:DRILL", f"must be a {__name__}.Tool, got int"),
        (
            "DRILL = Tool('bore')",
            "{}:DRILL",
            "calls itself 'bore': the entry point must have the same name",
        ),
    ],
)
def test_what_cannot_be_used_is_told_with_its_package_and_reason(room, module, value, reason):
    name = f"{room.name}_other"
    write_tool(room.parent, name, module)
    install(room.parent, "other", drill=value.format(name))

    refusal = refused(tools(room), "drill")

    assert refusal.title == "tool 'drill' cannot be used"
    assert refusal.problems == (f"other ({value.format(name)}): {reason.format(name)}",)


def test_a_name_that_two_offer_is_no_name(room):
    write_tool(room, "a", "TOOL = Tool('saw')")
    install(room.parent, "one", saw="one:SAW", axe="one:AXE")
    install(room.parent, "two", axe="two:AXE")

    own, both = refused(tools(room), "saw"), refused(tools(room), "axe")

    assert own.problems == (f"offered more than once: one (one:SAW), {room.name}: its own",)
    assert both.problems[0].startswith("offered more than once: ")
    assert "one (one:AXE)" in both.problems[0] and "two (two:AXE)" in both.problems[0]
