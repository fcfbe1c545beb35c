"""What the tests share: an environment, processes and stores made once, how they are spread."""

import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is loaded, which reads it once: tiny models gain nothing from threads, and two tests
# at once would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.group import Groups
from tests.spread import InGroups, group_of, place_of
from tests.tiny import write_tiny_backbone, write_tiny_reward_model

if TYPE_CHECKING:
    from tests.test_cli import Outcome

# How long an example takes says how busy the machine is; the same examples in every run.
settings.register_profile(
    "scpo_ray", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("scpo_ray")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> InGroups:
    return InGroups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups in their order; a test that needs a Ray of its own before those that share one."""
    items.sort(key=lambda item: (place_of(group_of(item.nodeid)), "shared_ray" in taken_by(item)))
    strays = [
        item.nodeid
        for item in items
        if item.get_closest_marker("ray") and group_of(item.nodeid) != "ray"
    ]
    if strays:
        raise pytest.UsageError(f"on Ray, but not in its group (tests/spread.py): {strays}")


def taken_by(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("models") / "backbone")


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reward_model(tmp_path_factory.mktemp("models") / "global")


@pytest.fixture
def scpo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., "Outcome"]:
    """Runs a command in this process."""
    import scpo_ray.cli.main
    from tests.test_cli import Outcome  # A file of tests: pytest must be the first to load it.

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["scpo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            scpo_ray.cli.main.main()
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def groups() -> Iterator[Groups]:
    """Processes that work together, as many as a test asks for: their start is what costs."""
    with Groups() as groups:
        yield groups


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow store with nothing in it, to be copied: making one costs seconds."""
    from scpo_ray.tracking.mlflow_store import open_models

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    path.touch()
    open_models(f"sqlite:///{path}", "")
    with closing(sqlite3.connect(path)) as database:
        return database.serialize()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real preference data that lies beside the project; tests that need it skip elsewhere."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("SCPO_SHARED_DATA") or root.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("needs real data: set SCPO_SHARED_DATA to its folder")
    return folder


@pytest.fixture
def smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The method of docs/extending.md, its file and entry point, as an installed package has it."""
    from scpo_ray.settings.methods import METHODS

    page = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
    code = re.search(r"```python\n# smoothed.py\n(.*?)```", page, re.DOTALL)
    entry = re.search(r'"scpo_ray.methods"\]\n(.*?)\n```', page, re.DOTALL)
    assert code is not None and entry is not None
    folder = tmp_path / "installed"
    info = folder / "smoothed-1.dist-info"
    info.mkdir(parents=True)
    (folder / "smoothed.py").write_text(code[1])
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smoothed\nVersion: 1\n")
    lines = ["[scpo_ray.methods]", *(line.replace('"', "") for line in entry[1].splitlines())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    METHODS.__dict__.pop("_outside", None)
    yield code[1]
    METHODS.__dict__.pop("_outside", None)
