"""What a cluster cannot do is said within seconds, and says what is missing."""

import socket
import time
from pathlib import Path

import pytest
import torch

from tests.launch.clusters import ended, lines_until, one_node, ray_config, start
from tests.test_cli import Outcome

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def refused(config: Path, *settings: str) -> str:
    started = time.monotonic()
    overrides = [part for setting in settings for part in ("--set", setting)]
    outcome: Outcome = ended(start(config, *overrides))
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert time.monotonic() - started < 30
    return outcome.err


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        (["launch.cpus_per_worker=1000"], "train.num_workers = 2, each with 1000 CPU (PACK)"),
        (["launch.gpus_per_worker=1000"], "each with 1 CPU and 1000 GPU (PACK)"),
        (["launch.cpus_per_worker=0.1", "launch.placement=STRICT_SPREAD"], "(STRICT_SPREAD)"),
    ],
)
def test_more_than_the_cluster_has_is_refused_with_what_is_there(
    tiny_reward_model, tmp_path, settings, asked
):
    said = refused(ray_config(tmp_path, tiny_reward_model), *settings)

    assert f"{asked}: the cluster has room for " in said
    assert f"there: {socket.gethostname()} with " in said
    assert "launch.wait_for_resources" in said


def test_a_gpu_where_there_is_none_is_refused(tiny_reward_model, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    said = refused(ray_config(tmp_path, tiny_reward_model), "device=cuda")

    assert "each with 1 CPU and 1 GPU (PACK): the cluster has room for 0" in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379"])
def test_an_address_without_a_cluster_is_refused(tiny_reward_model, tmp_path, address):
    said = refused(ray_config(tmp_path, tiny_reward_model), f"launch.address={address}")

    assert f"launch.address = {address}: no Ray cluster can be joined there" in said


def test_two_workers_are_not_one_process(tiny_reward_model, tmp_path):
    said = refused(ray_config(tmp_path, tiny_reward_model), "launch.on=process")

    assert "train.num_workers = 2: a process is one worker" in said


def test_a_users_deepspeed_json_that_contradicts_is_refused_before_any_training(
    tiny_reward_model, tmp_path
):
    json = tmp_path / "ds.json"
    json.write_text('{"zero_optimization": {"stage": 1}}')
    config = ray_config(tmp_path, tiny_reward_model)

    said = refused(config, f"train.deepspeed_config={json}")

    assert "starting on Ray" not in said
    assert "zero_optimization.stage = 1: contradicts train.zero_stage; there it is 2" in said


def test_a_run_that_waits_begins_when_a_machine_joins(tiny_reward_model, tmp_path, monkeypatch):
    # Ray calls it a failure when there has been no room for a minute; here for two seconds.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    with one_node() as cluster:
        launch = {"address": cluster.address, "wait_for_resources": True}
        config = ray_config(tmp_path, tiny_reward_model, train={"max_steps": 20}, launch=launch)
        process = start(config)
        said = list(lines_until("starting on Ray", process))
        time.sleep(20)
        assert process.poll() is None
        cluster.add_node(num_cpus=1)

        outcome = ended(process)

    assert outcome.code == 0, outcome.err
    assert "waiting for room for 2 workers of 1 CPU each\n" in said
