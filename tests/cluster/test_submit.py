"""cluster/submit.sh: what it refuses, what it hands to Ray, and a job of a real cluster."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "submit.sh"
SHARED = "--set run.output_dir=/mnt/shared/runs".split()
TIMEOUT_S = 240

# Says what it was called with; fails, or waits to be stopped, when told to.
COMMAND = """\
import json, os, signal, sys, time
from pathlib import Path

import scpo_ray.data

found = {
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "sweep": Path(sys.argv[2]).read_text(),
    "model": Path("models/global").exists(),
    "copied": sorted(str(p) for p in Path(sys.argv[2]).parents[1].iterdir()),
    "interval": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"),
}
Path(os.environ["HOME"], "found.json").write_text(json.dumps(found))
# As the command does, whatever it inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("the sweep is here", flush=True)
if "waits" in sys.argv:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise SystemExit(130)
raise SystemExit("fail" in sys.argv)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with the script, a sweep, and what must stay at home."""
    root = tmp_path / "check out"
    for folder in ("cluster", "sweeps", "scpo_ray/data", "models", "runs", "data", ".venv/bin"):
        (root / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, root / "cluster")
    (root / "sweeps" / "small grid.yaml").write_text("run: {experiment: small}\n")
    (root / "scpo_ray" / "__init__.py").touch()
    (root / "scpo_ray" / "data" / "__init__.py").touch()
    (root / "scpo_ray" / "cli.py").write_text(COMMAND)
    for large in ("models/global", "runs/result.json", "data/pairs.jsonl", ".venv/bin/python"):
        (root / large).touch()
    return root


@pytest.fixture
def ray_that_notes(tmp_path: Path) -> Path:
    """A folder with a `ray` that writes its arguments down and ends with 1."""
    folder = tmp_path / "bin"
    folder.mkdir()
    ray = folder / "ray"
    ray.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > "{tmp_path}/noted"\nexit 1\n')
    ray.chmod(0o755)
    return folder


def environment_of(path: Path, settings: dict[str, str]) -> dict[str, str]:
    """This environment without Ray's and Python's, with `path` before all others, and the
    settings: what a user's shell need not have is not leant on."""
    own = ("RAY_", "SCPO_", "PYTHON")
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(own)}
    return inherited | {"PATH": f"{path}:{os.environ['PATH']}"} | settings


def submit(
    checkout: Path, *arguments: str, path: Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(checkout / "cluster" / "submit.sh"), *arguments],
        env=environment_of(path, environment),
        cwd=checkout / "sweeps",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {}, "usage:"),
        (["--set", "a=b"], {}, "usage:"),
        (["missing.yaml"], {}, "missing.yaml: no such file"),
        ([str(SCRIPT)], {}, "must lie in this checkout"),
        (["small grid.yaml"], {}, "would go to the job's copy of this folder"),
        (["small grid.yaml", "--set", "run.output_dir=runs"], {}, "would go to the job's copy"),
        (["small grid.yaml"], {"SCPO_SHARED_DIR": "mnt"}, "must be an absolute path"),
        (["small grid.yaml", *SHARED], {"RAY_ADDRESS": "head:6379"}, "must be the job server"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_sent(
    checkout, ray_that_notes, arguments, environment, said
):
    outcome = submit(checkout, *arguments, path=ray_that_notes, **environment)

    assert outcome.returncode == 2
    assert said in outcome.stderr
    assert not (checkout.parent / "noted").exists()


@pytest.mark.parametrize(
    "written",
    [
        "run:\n  output_dir: /mnt/shared/runs\n",
        'run:\n  output_dir: "/mnt/shared/runs"\n',
    ],
)
def test_a_place_that_outlives_the_job_can_be_named_in_the_sweep(checkout, ray_that_notes, written):
    (checkout / "sweeps" / "small grid.yaml").write_text(written)
    assert submit(checkout, "small grid.yaml", path=ray_that_notes).returncode == 1


def test_a_comment_names_no_place(checkout, ray_that_notes):
    (checkout / "sweeps" / "small grid.yaml").write_text(
        "# output_dir: /mnt/shared/runs\nrun: {}\n"
    )
    assert submit(checkout, "small grid.yaml", path=ray_that_notes).returncode == 2


def test_ray_gets_the_code_the_command_and_no_secret(checkout, ray_that_notes):
    culture = "data.cultures=[South Africa, 'a $HOME']"

    outcome = submit(
        checkout,
        "small grid.yaml",
        *SHARED,
        "--set",
        culture,
        path=ray_that_notes,
        RAY_AUTH_TOKEN="never-shown",
    )

    assert outcome.returncode == 1  # Ray's own
    noted = (checkout.parent / "noted").read_text().split("\0")[:-1]
    named = dict(zip(noted[2::2], noted[3::2], strict=False))
    assert noted[:2] == ["job", "submit"]
    assert named["--address"] == "http://127.0.0.1:8265"
    assert named["--entrypoint-num-cpus"] == "0"
    assert named["--working-dir"] == str(checkout)
    assert named["--submission-id"].startswith("scpo-small-grid-20")
    assert f"ray job stop --address http://127.0.0.1:8265 {named['--submission-id']}" in (
        outcome.stderr
    )
    environment = json.loads(named["--runtime-env-json"])
    assert {"/runs", "/models", "/data", "/.git", ".venv"} <= set(environment["excludes"])
    assert environment["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.2"
    assert noted[-6:] == ["sweeps/small grid.yaml", "", *SHARED, "--set", culture]
    assert "never-shown" not in " ".join(noted) + outcome.stderr + outcome.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What to call a one-machine cluster with; its home is a folder of its own."""
    with socket.socket() as one, socket.socket() as other:
        for bound in (one, other):
            bound.bind(("127.0.0.1", 0))
        port, jobs_port = one.getsockname()[1], other.getsockname()[1]
    folder = tmp_path_factory.mktemp("ray")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Ray is the one beside this Python; sockets have short names.
    ray = Path(sys.executable).parent
    command = f"{ray}/ray start --head --block --num-cpus=2 --port={port}".split()
    command += [f"--dashboard-port={jobs_port}", f"--temp-dir=/tmp/ray-submit-{os.getpid()}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command,
            env=inherited
            | token
            | {
                "HOME": str(folder),
                "PATH": f"{ray}:{os.environ['PATH']}",
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            },
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", jobs_port), timeout=1).close()
                break
            except OSError:
                assert head.poll() is None and time.monotonic() < deadline, (
                    folder / "head.log"
                ).read_text()
                time.sleep(0.2)
        yield token | {"RAY_ADDRESS": f"http://127.0.0.1:{jobs_port}", "FOUND": str(folder)}
    finally:
        head.terminate()
        head.wait(timeout=TIMEOUT_S)
        shutil.rmtree(f"/tmp/ray-submit-{os.getpid()}", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("last", ["ends", "fail"])
def test_a_job_runs_where_paths_mean_what_they_mean_at_home(checkout, tmp_path, cluster, last):
    shared = tmp_path / "shared"
    (shared / "models").mkdir(parents=True)
    (shared / "models" / "global").touch()

    outcome = submit(
        checkout,
        "small grid.yaml",
        "--set",
        "data.cultures=[South Africa, 'a $HOME']",
        last,
        path=Path(sys.executable).parent,
        SCPO_SHARED_DIR=str(shared),
        **cluster,
    )

    assert outcome.returncode == (last == "fail"), outcome.stdout + outcome.stderr
    assert "the sweep is here" in outcome.stdout
    found = json.loads((Path(cluster["FOUND"]) / "found.json").read_text())
    assert found["folder"] == str(shared) and found["model"]
    assert found["sweep"] == "run: {experiment: small}\n"
    assert found["arguments"][2:] == ["--set", "data.cultures=[South Africa, 'a $HOME']", last]
    # The code with its data/ went along; the data, models and results at the top did not.
    assert [Path(path).name for path in found["copied"]] == ["cluster", "scpo_ray", "sweeps"]
    assert found["interval"] == "0.2"


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_that_is_stopped_can_end_in_order(checkout, tmp_path, cluster):
    environment = environment_of(Path(sys.executable).parent, cluster)
    command = [checkout / "cluster" / "submit.sh", "small grid.yaml", *SHARED, "waits"]
    output = tmp_path / "output"
    with output.open("w") as log:
        job = subprocess.Popen(
            command, env=environment, cwd=checkout / "sweeps", stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while "the sweep is here" not in output.read_text():
            assert job.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        (stop,) = re.findall(r"stop: *RAY_AUTH_MODE=token (.*)", output.read_text())

        subprocess.run(stop.split(), env=environment, check=True, capture_output=True)

        assert job.wait(timeout=TIMEOUT_S) == 1
        assert "interrupted" in output.read_text()
    finally:
        job.kill()
        job.wait()


@pytest.mark.slow
@pytest.mark.ray
def test_whoever_has_no_token_is_not_let_in(checkout, cluster):
    wrong = cluster | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}

    outcome = submit(
        checkout, "small grid.yaml", *SHARED, path=Path(sys.executable).parent, **wrong
    )

    assert outcome.returncode == 1
    assert "the sweep is here" not in outcome.stdout
