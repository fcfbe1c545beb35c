"""What a command takes before it works: `python benchmarks/command_line.py OTHER_CHECKOUT`.

CPU seconds (user and system, the least of three) of the imports of a few commands and of the whole
of `scpo data` on a small set whose caches are there, here and in another checkout of the project,
in turn: the ratio holds on a machine that has other work too.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = {
    "`scpo --help`, imports": "scpo_ray.cli.main",
    "`scpo report`, imports": "scpo_ray.cli.main, scpo_ray.commands.folders",
    "`scpo models`, imports": (
        "scpo_ray.cli.main, scpo_ray.tracking.trackers, scpo_ray.report.tables"
    ),
}
TIMES = 3


def cpu_seconds(arguments: list[str], checkout: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def look_at_data(folder: Path) -> list[str]:
    """`scpo data` on generated preferences, its caches in `folder`."""
    settings = {
        "output_dir": str(folder / "runs"),
        "data": {"source": "synthetic"},
        "model": {"path": str(folder.parent / "backbone"), "max_length": 48},
    }
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings))
    return ["-m", "scpo_ray.cli", "data", str(config)]


def main() -> None:
    from scpo_ray.data.synthetic import vocabulary
    from scpo_ray.models.tiny import make_tiny_backbone

    here, other = Path(__file__).resolve().parents[1], Path(sys.argv[1]).resolve()
    print("| command | there, CPU s | here, CPU s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_backbone(Path(folder) / "backbone", vocabulary(), seed=0)
        commands = {name: (["-c", f"import {m}"],) * 2 for name, m in IMPORTS.items()}
        looks = look_at_data(Path(folder) / "there"), look_at_data(Path(folder) / "here")
        for arguments, checkout in zip(looks, (other, here), strict=True):
            cpu_seconds(arguments, checkout)
        commands["`scpo data CONFIG`, warm, whole"] = looks
        for name, (theirs, ours) in commands.items():
            pairs = [(cpu_seconds(theirs, other), cpu_seconds(ours, here)) for _ in range(TIMES)]
            there, now = (min(column) for column in zip(*pairs, strict=True))
            print(f"| {name} | {there:.2f} | {now:.2f} | {there / now:.2f} |", flush=True)


if __name__ == "__main__":
    main()
