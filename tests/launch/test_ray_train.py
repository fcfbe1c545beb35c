"""Runs on Ray's workers and torchrun's: the same as in one process, and quiet about it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scpo_ray.launch.runs import start_run
from scpo_ray.settings.files import load_config
from tests.launch.clusters import TIMEOUT_S, TWO, ended, ray_config, run_dir, start
from tests.test_cli import ROOT

pytestmark = [
    pytest.mark.ray,
    # Ray warns of settings of its own, and leaves files to the collector.
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STEADY = {"dropout": False, "max_steps": 60}


def curve(folder: Path) -> list[float]:
    losses: list[float] = json.loads((run_dir(folder) / "result.json").read_text())["curve"]["loss"]
    return losses


@pytest.fixture(scope="module")
def on_ray(tiny_reward_model, tmp_path_factory):
    """A run of two workers on a Ray that the command starts, and what it printed."""
    folder = tmp_path_factory.mktemp("ray")
    outcome = ended(start(ray_config(folder, tiny_reward_model, train=STEADY)))
    assert outcome.code == 0, outcome.err
    return folder, outcome


@pytest.fixture(scope="module")
def alone(tiny_reward_model, tmp_path_factory) -> Path:
    """The run in one process, with plain PyTorch."""
    folder = tmp_path_factory.mktemp("alone")
    config = ray_config(folder, tiny_reward_model, train=STEADY)
    start_run(load_config(config, [f"train={json.dumps(single())}"]))
    return folder


def test_two_workers_on_ray_end_as_one_process_does(on_ray, alone):
    np.testing.assert_allclose(curve(on_ray[0]), curve(alone), rtol=1e-4)
    results = [json.loads((run_dir(f) / "result.json").read_text()) for f in (on_ray[0], alone)]
    assert [r["num_workers"] for r in results] == [2, 1]
    assert [r["engine"] for r in results] == ["deepspeed ZeRO 2", "torch"]
    assert results[0]["run_id"] == results[1]["run_id"]


def test_one_worker_on_ray_is_the_run_of_one_process_to_the_byte(
    scpo, shared_ray, alone, tiny_reward_model, tmp_path, caplog
):
    config = ray_config(tmp_path, tiny_reward_model, train=STEADY, launch={"on": "ray"})

    outcome = scpo("train", config, "--set", f"train={json.dumps(single())}")

    assert outcome.code == 0, outcome.err
    assert "starting on Ray" in caplog.text
    ours, theirs = (run_dir(f) / "model" / "model.safetensors" for f in (tmp_path, alone))
    assert ours.read_bytes() == theirs.read_bytes()
    assert curve(tmp_path) == curve(alone)


def single() -> dict[str, object]:
    settings = {**TWO, **STEADY, "batch_size": 8, "learning_rate": 1e-3}
    for name in ("num_workers", "engine", "zero_stage"):
        del settings[name]
    return settings


def test_our_lines_come_once_and_rays_noise_does_not(on_ray):
    _, outcome = on_ray

    lines = outcome.err.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    # A line at each tenth of the way that is a point of the curve too.
    assert [line.split(",")[0] for line in steps] == ["step 30 of 60", "step 60 of 60"]
    assert len(steps) == len(set(steps))
    assert not [line for line in lines if re.search(r"pid=|INFO|Traceback|\x1b", line)]
    assert len(lines) < 25
    assert "ranked right" in outcome.out


def test_a_run_that_ended_is_read_and_starts_no_ray(on_ray, scpo, caplog):
    folder, first = on_ray

    outcome = scpo("train", folder / "run.yaml")

    assert outcome.code == 0
    assert outcome.out == first.out
    assert "has ended before, nothing to do" in caplog.text
    assert "starting on Ray" not in caplog.text


def test_torchrun_makes_the_same_run_of_the_same_config_and_prints_it_once(
    on_ray, tiny_reward_model, tmp_path
):
    config = ray_config(tmp_path, tiny_reward_model, train=STEADY)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]

    done = subprocess.run(
        [sys.executable, *command, "-m", "scpo_ray.cli", "train", str(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == on_ray[1].out
    ours, theirs = (run_dir(f) / "model" / "model.safetensors" for f in (tmp_path, on_ray[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_storage_uri_brings_a_run_to_a_machine_that_has_nothing_of_it(
    scpo, shared_ray, tiny_reward_model, tmp_path, caplog
):
    there, here = tmp_path / "there", tmp_path / "here"
    storage = {"storage": f"file://{tmp_path}/store"}
    first = scpo("train", ray_config(there, tiny_reward_model, train=STEADY, launch=storage))
    assert first.code == 0, first.err
    stored = {p.name for p in (tmp_path / "store" / "tiny").glob("*/*")}
    assert {"result.json", "run.json", "model"} <= stored
    assert "checkpoints" not in stored

    second = scpo("train", ray_config(here, tiny_reward_model, train=STEADY, launch=storage))

    assert second.code == 0, second.err
    assert caplog.text.count("starting on Ray") == caplog.text.count("has ended before") == 1
    assert second.out == first.out
    weights = [(run_dir(f) / "model" / "model.safetensors").read_bytes() for f in (there, here)]
    assert weights[0] == weights[1]
