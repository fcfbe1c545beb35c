"""What a command loads before it works: `python benchmarks/command_line.py OTHER_CHECKOUT`.

CPU seconds (user and system, the least of three) of the imports of a few commands, here and in
another checkout of the project, in turn: the ratio holds on a machine that has other work too.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "scpo --help": "scpo_ray.cli.main",
    "scpo report": "scpo_ray.cli.main, scpo_ray.commands.folders",
    "scpo models": "scpo_ray.cli.main, scpo_ray.tracking.trackers, scpo_ray.report.tables",
    "scpo data": "scpo_ray.cli.main, scpo_ray.commands.looks",
}
TIMES = 3


def cpu_seconds(modules: str, checkout: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", f"import {modules}"]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    here, other = Path(__file__).resolve().parents[1], Path(sys.argv[1]).resolve()
    print("| command | there, CPU s | here, CPU s | ratio |\n|---|---|---|---|")
    for command, modules in COMMANDS.items():
        pairs = [(cpu_seconds(modules, other), cpu_seconds(modules, here)) for _ in range(TIMES)]
        there, now = (min(column) for column in zip(*pairs, strict=True))
        print(f"| `{command}` | {there:.2f} | {now:.2f} | {there / now:.2f} |", flush=True)


if __name__ == "__main__":
    main()
