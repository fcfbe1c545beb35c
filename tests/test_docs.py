"""Every command that the README and the docs name is one, and what it reads is there and loads."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from scpo_ray.cli.main import app
from scpo_ray.settings.files import holds_a_space, load_comparison, load_config, load_sweep

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "cluster").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "sweeps").glob("*.yaml")),
]
MINE = """
experiment: mine
culture_weights: {Chile: 1.0}
data:
  source: preferences
  train_files: [preferences.jsonl]
  columns: {culture: country, user: user_id}
"""
"""What stands for a reader's own file where a page names one that is not there."""


def commands_on(page: Path) -> list[str]:
    """Lines of code blocks (in a sweep file: of its header) that call `scpo`, joined and bare."""
    text = re.sub(r"\\\n#?", " ", page.read_text(encoding="utf-8"))
    if page.suffix == ".yaml":
        lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#  ")]
    else:
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"scpo [a-z]+( |$)", line)]


COMMANDS = [
    pytest.param(command, id=f"{page.name}: {command[:60]}")
    for page in PAGES
    for command in dict.fromkeys(commands_on(page))
]


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """The command's name and parameters. Raises: KeyError or a usage error if it is none."""
    words = shlex.split(command, comments=True)[1:]
    found: Any = typer.main.get_command(app)
    while hasattr(found, "commands"):
        if not words or words[0] not in found.commands:  # `scpo models --uri ...`
            break
        found = found.commands[words.pop(0)]
    return found.name, found.make_context(found.name, words).params


def test_the_pages_name_commands():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_page_is_one(command, request, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "smoothed" in command:
        request.getfixturevalue("smoothed")
    monkeypatch.setenv("share", "0.1")  # a loop's variable, in one sweep's header
    name, params = parsed(os.path.expandvars(command))

    file = params.get("config") or params.get("sweep_file") or params.get("file")
    if file is None or name not in ("data", "score", "train", "compare", "sweep", "efficiency"):
        return
    path = Path(str(file))
    if not path.exists() and str(file) != "paper":
        path = tmp_path / path.name
        path.write_text(MINE)
    overrides = list(params.get("overrides") or [])
    if name == "sweep" or (name == "efficiency" and holds_a_space(path)):
        assert load_sweep(path, overrides).space
    elif name == "compare":
        assert load_comparison(path, overrides).space.method
    else:
        assert load_config(path, overrides).run_id
