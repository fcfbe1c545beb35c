"""The rules of the layout: imports go one way, heavy packages have one home, nothing prints."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "scpo_ray"

# The reading order: a module imports only what stands above it.
ORDER = [
    "records",
    "sweep_records",
    "overviews",
    "countries",
    "config",
    "sweep_config",
    "config_file",
    "config_page",
    "deepspeed_settings",
    "selection",
    "loss",
    "group_dro",
    "heads",
    "gpo",
    "metrics",
    "cluster_variance",
    "statistics",
    "distributions",
    "plan",
    "sweep",
    "disk",
    "json_lines",
    "remote",
    "stores",
    "storage",
    "sweep_store",
    "workers",
    "checkpoints",
    "data.rows",
    "data.table",
    "data.prism",
    "data.preferences",
    "data.opinions",
    "data.synthetic",
    "data.pairing",
    "data.splits",
    "data.health",
    "data.loading",
    "rendering",
    "models",
    "tiny",
    "scoring",
    "engine_state",
    "optimization",
    "deepspeed_engine",
    "engine",
    "naming",
    "mlflow_store",
    "tracking",
    "sweep_tracking",
    "training",
    "evaluation",
    "opinions",
    "frozen",
    "experiment",
    "joint_scores",
    "comparison",
    "opinion_comparison",
    "sweep_outcomes",
    "sweep_scores",
    "sweep_efficiency",
    "sweep_summary",
    "champion",
    "registry",
    "pictures",
    "report",
    "sweep_pictures",
    "sweep_report",
    "launch.worker",
    "launch.ray_cluster",
    "launch.relay",
    "launch.ray_score",
    "launch.ray_train",
    "launch.runs",
    "launch.sweep_trial",
    "launch.ray_tune",
    "launch.sweeps",
    "commands",
    "quickstart",
    "tables",
    "cli",
]

# Scripts that others run: they may import any module, and no module imports them.
SCRIPTS = {"mlflow_model"}

HOMES = {
    "datasets": {"data.rows"},
    "huggingface_hub": {"models", "data.rows"},
    "transformers": {"rendering", "models", "tiny"},
    "tokenizers": {"tiny"},
    "peft": {"models"},
    "deepspeed": {"deepspeed_engine"},
    "mlflow": {"mlflow_store", "tracking", "mlflow_model"},
    "pandas": {"mlflow_store", "mlflow_model"},
    "matplotlib": {"pictures", "sweep_pictures"},
    "jinja2": {"report"},
    "ray": {
        "launch.ray_cluster",
        "launch.relay",
        "launch.ray_score",
        "launch.ray_train",
        "launch.ray_tune",
    },
    "optuna": {"launch.ray_tune"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli", "tables"},
    "yaml": {"config_file", "report", "commands", "cli"},
    "pydantic": {"config", "config_file", "storage", "sweep_config", "sweep_store"},
}

# Arrays and numbers in, arrays and numbers out: no files, clock, chance of their own, logging.
PURE = [
    "countries",
    "selection",
    "loss",
    "group_dro",
    "heads",
    "gpo",
    "metrics",
    "cluster_variance",
    "statistics",
    "distributions",
    "plan",
    "sweep",
    "joint_scores",
    "sweep_outcomes",
    "sweep_scores",
    "sweep_efficiency",
    "sweep_summary",
    "champion",
]
IMPURE = {
    "logging",
    "os",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "time",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {
    module_name(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.stat().st_size > 0
}
MODULES = {name: path for name, path in FILES.items() if name != "__init__"}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a file imports."""
    names = {name.removeprefix("scpo_ray.") for name in imported(path) if "scpo_ray" in name}
    return {module for module in FILES for name in names if f"{name}.".startswith(f"{module}.")}


def test_the_reading_order_names_every_module():
    assert sorted([*ORDER, *SCRIPTS]) == sorted(MODULES)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_above_it(module):
    below = set(ORDER[ORDER.index(module) :]) | SCRIPTS

    assert imported_modules(MODULES[module]) & below == set()


@pytest.mark.parametrize("package", HOMES)
def test_a_package_is_imported_only_at_home(package):
    users = {
        module
        for module, path in FILES.items()
        if package in {name.partition(".")[0] for name in imported(path)}
    }

    assert users <= HOMES[package]


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_touches_no_file_clock_or_log(module):
    assert {name.partition(".")[0] for name in imported(MODULES[module])} & IMPURE == set()


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"cli"}))
def test_only_the_command_line_prints(module):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"print", "input", "breakpoint"}
    ]

    assert calls == []


def test_a_helper_lives_with_the_thing_it_helps():
    assert not {"utils", "util", "helpers", "common", "misc"} & {p.stem for p in FILES.values()}


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_says_what_it_is_for(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text()))


@pytest.mark.parametrize("module", sorted(MODULES.keys() - SCRIPTS))
def test_a_module_can_be_imported(module):
    assert importlib.import_module(f"scpo_ray.{module}").__name__ == f"scpo_ray.{module}"


def modules_loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_command_line_loads_no_heavy_package_before_it_knows_the_command():
    heavy = {"torch", "transformers", "datasets", "mlflow", "ray", "matplotlib", "pandas", "scipy"}

    assert modules_loaded_by("import scpo_ray.cli") & heavy == set()


def test_settings_are_read_and_checked_without_a_heavy_package():
    heavy = {"torch", "transformers", "datasets", "mlflow", "ray", "matplotlib", "pandas", "scipy"}

    loaded = modules_loaded_by("from scpo_ray.config_file import load_config; load_config('paper')")

    assert "yaml" in loaded
    assert loaded & heavy == set()
