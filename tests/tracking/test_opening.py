"""MLflow's database is whole or not there; what cannot be used is said first of all."""
# ruff: noqa: F811 (the fixture `scpo` is imported)

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import pytest

from scpo_ray.inputs import open_run_dir
from scpo_ray.records import InputError
from scpo_ray.settings.run import RunConfig
from scpo_ray.tracking.opening import StoreAwayError
from scpo_ray.tracking.trackers import MlflowTracker, start_tracker
from tests.results import run_result
from tests.test_cli import start_process, write_yaml
from tests.tiny import tiny_document

# MLflow 3.17's own, on SQLAlchemy 2.1.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

OPEN = """
    import sys
    from pathlib import Path
    from scpo_ray.records import InputError
    from scpo_ray.settings.run import RunConfig
    from scpo_ray.tracking.trackers import start_tracker
    {limit}
    folder = Path(sys.argv[1])
    try:
        start_tracker(RunConfig(output_dir=folder), folder / "run")
    except InputError as error:
        sys.exit(str(error))
"""


def opening_process(folder: Path, limit: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(OPEN).format(limit=limit), folder],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """A whole one, made once: it takes seconds."""
    folder = tmp_path_factory.mktemp("whole")
    tracked(folder)
    return folder / "mlflow.db"


def tracked(folder: Path, experiment: str = "scpo", **tracking: str) -> MlflowTracker:
    config = RunConfig.model_validate(
        {"output_dir": folder, "experiment": experiment, "tracking": tracking}
    )
    tracker = start_tracker(config, folder / "run")
    assert isinstance(tracker, MlflowTracker)
    return tracker


def left(folder: Path) -> list[str]:
    """What begins with mlflow.db or is the rest of one."""
    return sorted(path.name for path in folder.iterdir() if "mlflow.db" in path.name)


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_database_whose_making_was_killed_is_made_by_the_next(tmp_path, size):
    killed = opening_process(tmp_path)
    part = tmp_path / ".mlflow.db.part"
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size >= size):
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "mlflow.db").exists()

    tracked(tmp_path).log({"train/loss": 1.0}, step=1)

    assert left(tmp_path) == ["mlflow.db", "mlflow.db.lock"]


def test_a_full_disk_while_it_is_made_is_said_and_ruins_nothing(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    full = opening_process(
        tmp_path, f"{limit}; import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    )
    _, said = full.communicate(timeout=120)
    assert full.returncode == 1
    assert "MLflow cannot be used there" in said
    assert left(tmp_path) == ["mlflow.db.lock"]

    tracked(tmp_path)

    assert left(tmp_path) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "without tables"])
def test_an_empty_file_is_no_ruin(tmp_path, content):
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        if content is None:
            connection.execute("PRAGMA user_version = 1")
            connection.commit()
    tracked(tmp_path).finish("FINISHED")

    assert left(tmp_path) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.parametrize(
    ("num_runs", "remedy"),
    [(0, "it holds no run: delete it"), (1, "it holds 1 runs: open it with the MLflow that made")],
)
def test_a_database_that_was_left_half_made_is_named_with_what_to_do(
    tmp_path, database, num_runs, remedy
):
    shutil.copy(database, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        # As a stop between two steps leaves it: the tables are there, the mark is an older one.
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        if num_runs == 0:
            connection.execute("DELETE FROM runs")
        connection.commit()
    before = (tmp_path / "mlflow.db").read_bytes()

    with pytest.raises(InputError) as error:
        tracked(tmp_path)

    assert error.value.title == f"{tmp_path}/mlflow.db: not a whole database of this MLflow"
    assert (
        error.value.problems[1]
        .removeprefix("a process was stopped while it was made; ")
        .startswith(remedy)
    )
    assert not isinstance(error.value, StoreAwayError)
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert left(tmp_path) == ["mlflow.db", "mlflow.db.lock"]


def test_a_database_of_an_older_mlflow_is_brought_up_to_date(tmp_path):
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{tmp_path}/mlflow.db")
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "451aebb31d03")
    engine.dispose()

    tracked(tmp_path).log({"train/loss": 1.0}, step=1)

    assert left(tmp_path) == ["mlflow.db", "mlflow.db.lock"]


PLACES = ["100%", "a#b", "a b", "ü", "runs-12:30", "~x", "a&b=c", "a;b", "a+b", "a'b\"c", "[a]"]
PLACES += ["a\\b", "{a}", "$HOME", "@x", "a:b@c", "a\nb"]


@pytest.mark.parametrize("name", PLACES)
def test_an_output_folder_may_be_called_so(tmp_path, database, name):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")

    tracker = tracked(folder, "elsewhere")
    tracker.log_result(run_result(), folder / "run")
    tracker.finish("FINISHED")

    found = tracker._client.download_artifacts(tracker._run_id, "result.json", str(tmp_path))
    assert Path(found).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "result.json"])
    assert (folder / "mlartifacts").is_dir()
    assert tracked(folder, "elsewhere")._run_id == tracker._run_id


# Said first of all


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:9", "MLflow cannot be used there"),
        ("postgresql+psycopg2://mlflow@127.0.0.1:9/mlflow", "MLflow cannot be used there"),
        ("mysql+nodriver://mlflow@127.0.0.1:9/mlflow", "MLflow cannot be used there"),
        ("oracle+cx_oracle://mlflow@127.0.0.1:9/mlflow", "MLflow cannot be used there"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare", "sweep"])
def test_a_store_that_cannot_be_used_is_said_before_the_data_is_read(
    scpo, tmp_path, command, uri, reason
):
    document = tiny_document(
        tmp_path / "no-model", tmp_path / "runs", tracking={"tracker": "mlflow"}
    )
    document["tracking"]["uri"] = uri
    document["data"] = {"source": "prism", "path": str(tmp_path / "no-data"), "cultures": ["Chile"]}
    if command == "sweep":
        del document["culture_weights"]
        document = {"run": document, "space": {"method": {"grid": ["scpo", "finetune"]}}}
    began = time.monotonic()

    outcome = scpo(command, write_yaml(tmp_path / "run.yaml", document))

    assert outcome.code == 2
    assert outcome.err.startswith(f"tracking.uri = {uri}: {reason}")
    assert "no-data" not in outcome.err
    assert time.monotonic() - began < 15


def test_a_driver_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="its driver is not installed: No module named 'MySQLdb'"):
        tracked(tmp_path, uri="mysql://mlflow@127.0.0.1:9/mlflow")


# Two at once


def test_a_comparison_waits_for_a_run_that_another_one_is_running(tmp_path, tiny_reward_model):
    run = tiny_document(tiny_reward_model, tmp_path / "runs")
    space = {"method": ["finetune"], "culture": ["North"]}
    file = write_yaml(tmp_path / "compare.yaml", {"run": run, "space": space})
    theirs = open_run_dir(RunConfig.model_validate(run | {"method": "finetune"}))

    with theirs.locked(wait_s=0):
        waiting = start_process("compare", file, "--json")
        said = ""
        while "waiting" not in said:
            line = waiting.stderr.readline()
            assert line, said
            said += line
    out, more = waiting.communicate(timeout=300)

    assert f"{theirs.path}: another process is running this run; waiting for it" in said
    assert waiting.returncode == 0, more
    summaries = json.loads(out)["summaries"]
    assert [s["method"] for s in summaries if not s["culture"]] == ["global", "finetune"]
