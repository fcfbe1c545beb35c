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

# The reading order: a room imports only rooms that stand above it, and within a room a file only
# files above it. A room without files is a single module at the package's root.
ROOMS: dict[str, list[str]] = {
    "records": [],
    "results": [],
    "workers": [],
    "statistics": ["cluster_variance", "intervals", "joint_scores"],
    "settings": [
        "shown",
        "section",
        "spelling",
        "plugins",
        "countries",
        "data",
        "model",
        "methods",
        "selection",
        "train",
        "launch",
        "serve",
        "evaluation",
        "tracking",
        "run",
        "comparison",
        "presets",
        "sweep",
        "documents",
        "files",
        "page",
        "naming",
    ],
    "storage": ["disk", "json_lines", "remote", "stores", "run_dir", "inventory", "scale_file"],
    "data": [
        "rows",
        "files",
        "hashes",
        "table",
        "messages",
        "prism",
        "preferences",
        "guess",
        "opinions",
        "synthetic",
        "pairing",
        "scored",
        "codes",
        "splits",
        "health",
        "loading",
    ],
    "models": [
        "tokenization",
        "templates",
        "rendering",
        "feed_forward",
        "rows",
        "reading",
        "packing",
        "reward_model",
        "pickles",
        "files",
        "heads",
        "precision",
        "adapters",
        "loading",
        "known_renderer",
        "tokenizing",
        "same_tokens",
        "shapes",
        "compatible",
        "export",
        "hub",
        "merging",
        "tiny",
        "scoring",
        "elsewhere",
        "adapted",
        "global_model",
    ],
    "inputs": [],
    "evaluation": [
        "scales",
        "mixtures",
        "picks",
        "metrics",
        "distributions",
        "layers",
        "calibration",
        "best_of_n",
        "opinions",
        "comparable",
        "comparison",
        "opinion_comparison",
        "recommendation",
        "nearness",
        "champion",
        "held_out",
    ],
    "sweep": ["records", "space", "store", "outcomes", "scores", "choice", "efficiency", "summary"],
    "tracking": [
        "opening",
        "pyfunc",
        "mlflow_store",
        "notes",
        "trackers",
        "sweep",
        "comparison",
        "registry",
    ],
    "training": [
        "deepspeed_settings",
        "memory",
        "loss",
        "pair_weights",
        "plan",
        "checkpoints",
        "engine_state",
        "optimization",
        "deepspeed_engine",
        "engine",
        "loop",
    ],
    "methods": [
        "mixture",
        "task",
        "account",
        "selection",
        "margins",
        "network",
        "heads",
        "choosing",
        "few_shot",
        "rewording",
        "averaging",
        "ways",
        "scpo",
        "pooled",
        "group_dro",
        "shared_offset",
        "lore",
        "lore_few",
        "prompted",
        "soup",
        "gpo",
    ],
    "report": [
        "overviews",
        "order",
        "labels",
        "pictures",
        "cells",
        "terminal",
        "confidence",
        "answer",
        "opinion_answer",
        "answer_picture",
        "findings",
        "examples",
        "written",
        "page_tables",
        "page",
        "sweep_looks",
        "sweep_pictures",
        "sweep_page",
        "card",
        "tables",
        "listings",
        "steering_page",
    ],
    "experiment": [],
    "launch": [
        "worker",
        "ray_cluster",
        "relay",
        "ray_score",
        "ray_train",
        "status",
        "runs",
        "sweep_trial",
        "ray_tune",
        "sweep_book",
        "sweep_live",
        "sweeps",
    ],
    "serve": [
        "items",
        "sources",
        "networks",
        "core",
        "rewardbench",
        "rows",
        "parts",
        "files",
        "on_ray",
        "steering",
        "choices",
        "dialogues",
        "payloads",
        "measures",
        "logs",
        "guard",
        "batching",
        "service",
        "app",
        "server",
        "supervisor",
        "champions",
        "client",
        "rewards",
        "openrlhf",
        "verl",
    ],
    "commands": [
        "beginning",
        "checkup",
        "health",
        "looks",
        "plans",
        "efficiency",
        "evaluating",
        "exporting",
        "folders",
        "rewards",
        "serving",
    ],
    "quickstart": [],
    "cli": [
        "shown",
        "beginning",
        "runs",
        "sweeps",
        "models",
        "serving",
        "folders",
        "steering",
        "main",
    ],
}

ORDER = [f"{room}.{file}" if file else room for room in ROOMS for file in ROOMS[room] or [""]]

# Scripts that others run: they may import any module, and no module imports them.
SCRIPTS = {"tracking.mlflow_model", "cli.__main__", "serve.ray_app"}

HOMES = {
    "datasets": {"data.files"},
    "huggingface_hub": {"models.files", "models.hub", "data.files"},
    "transformers": {
        *(f"models.{file}" for file in ("tokenization", "rendering", "rows", "loading", "tiny")),
        "models.precision",
        "models.elsewhere",
    },
    "sentence_transformers": {"models.elsewhere"},
    "trl": {"models.elsewhere"},
    "tokenizers": {"models.tokenization", "models.tiny"},
    "joblib": {"models.tokenizing"},
    "peft": {"models.adapters", "models.adapted"},
    "bitsandbytes": {"models.precision"},
    "deepspeed": {"training.deepspeed_engine"},
    "mlflow": {
        "tracking.opening",
        "tracking.mlflow_store",
        "tracking.pyfunc",
        "tracking.trackers",
        "tracking.mlflow_model",
    },
    "sqlalchemy": {"tracking.opening"},
    "pandas": {"tracking.pyfunc", "tracking.mlflow_model"},
    "matplotlib": {
        *(f"report.{file}" for file in ("pictures", "answer_picture")),
        *(f"report.{file}" for file in ("sweep_looks", "sweep_pictures")),
    },
    "jinja2": {"models.templates", "report.page", "report.card"},
    "ray": {
        "launch.ray_cluster",
        "launch.relay",
        "launch.ray_score",
        "launch.ray_train",
        "launch.ray_tune",
        "serve.on_ray",
        "serve.ray_app",
    },
    "optuna": {"launch.ray_tune"},
    "typer": {f"cli.{file}" for file in ROOMS["cli"]},
    "rich": {
        "cli.shown",
        "report.tables",
        "report.listings",
        "report.terminal",
        "report.confidence",
    },
    "yaml": {"settings.documents"},
    "pydantic": {
        *(f"{room}.{file}" for room in ("settings", "methods", "data") for file in ROOMS[room]),
        "storage.run_dir",
        "storage.scale_file",
        "sweep.store",
        "serve.payloads",
        "serve.ray_app",
    },
    "fastapi": {"serve.app", "serve.ray_app"},
    "starlette": {"serve.app", "serve.guard"},
    "uvicorn": {"serve.server"},
    "h11": {"serve.server"},
    "prometheus_client": {"serve.measures"},
}

# Arrays and numbers in, arrays and numbers out: no files, clock, chance of their own, logging.
PURE = [
    "settings.spelling",
    "settings.shown",
    "settings.countries",
    "serve.choices",
    "serve.dialogues",
    "tracking.notes",
    "methods.selection",
    "training.loss",
    "training.pair_weights",
    "methods.group_dro",
    "methods.shared_offset",
    "methods.lore",
    "evaluation.metrics",
    "evaluation.scales",
    "evaluation.mixtures",
    "evaluation.picks",
    "serve.rewardbench",
    "statistics.cluster_variance",
    "statistics.intervals",
    "evaluation.distributions",
    "evaluation.calibration",
    "evaluation.best_of_n",
    "training.plan",
    "sweep.space",
    "statistics.joint_scores",
    "sweep.outcomes",
    "sweep.scores",
    "sweep.efficiency",
    "sweep.summary",
    "evaluation.champion",
    "evaluation.recommendation",
    "evaluation.nearness",
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
    """Dotted; the door of a room (its `__init__.py`) has the room's name, the package's is ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
DOORS = {name for name, path in FILES.items() if path.name == "__init__.py"}
MODULES = {name: path for name, path in FILES.items() if name not in DOORS}


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


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"cli.shown", "cli.main"}))
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


@pytest.mark.parametrize("room", sorted(DOORS - {""}))
def test_the_door_of_a_room_holds_a_docstring_and_no_more(room):
    assert len(ast.parse(FILES[room].read_text()).body) == 1


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

    assert modules_loaded_by("import scpo_ray.cli.main") & heavy == set()


def test_settings_are_read_and_checked_without_a_heavy_package():
    heavy = {"torch", "transformers", "datasets", "mlflow", "ray", "matplotlib", "pandas", "scipy"}

    loaded = modules_loaded_by(
        "from scpo_ray.settings.files import load_config; load_config('paper')"
    )

    assert "yaml" in loaded
    assert loaded & heavy == set()


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_file_and_a_function_can_be_read_in_one_go(module):
    text = FILES[module].read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]

    assert len(text.splitlines()) <= 450
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 60] == []
