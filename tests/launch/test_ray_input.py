"""What a cluster cannot do is said before anything is started, and says what is missing."""

import socket
import time

import pytest
import torch

from tests.launch.clusters import ended, lines_until, one_node, ray_config, start
from tests.test_cli import Outcome, in_process

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def assert_refused(outcome: Outcome, *expected: str) -> None:
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert [part for part in expected if part not in outcome.err] == []


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        (["launch.cpus_per_worker=1000"], "train.num_workers = 2, each with 1000 CPU (PACK)"),
        (["launch.gpus_per_worker=1000"], "each with 1 CPU and 1000 GPU (PACK)"),
        (["launch.cpus_per_worker=0.1", "launch.placement=STRICT_SPREAD"], "(STRICT_SPREAD)"),
    ],
)
def test_more_than_the_cluster_has_is_refused_with_what_is_there(
    scpo, shared_ray, tiny_reward_model, tmp_path, caplog, settings, asked
):
    overrides = [part for setting in settings for part in ("--set", setting)]

    outcome = scpo("train", ray_config(tmp_path, tiny_reward_model), *overrides)

    assert_refused(
        outcome,
        f"{asked}: the cluster has room for ",
        f"there: {socket.gethostname()} with ",
        "launch.wait_for_resources",
    )
    assert "starting on Ray" not in caplog.text


def test_a_gpu_where_there_is_none_is_refused(scpo, shared_ray, tiny_reward_model, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    outcome = scpo("train", ray_config(tmp_path, tiny_reward_model), "--set", "device=cuda")

    assert_refused(outcome, "each with 1 CPU and 1 GPU (PACK): the cluster has room for 0")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379"])
def test_an_address_without_a_cluster_is_refused(tiny_reward_model, tmp_path, address):
    config = ray_config(tmp_path, tiny_reward_model, launch={"address": address})

    # In a process of its own, which has joined none.
    outcome = in_process("train", config)

    assert_refused(outcome, f"launch.address = {address}: no Ray cluster can be joined there")


def test_a_ray_that_cannot_be_started_here_is_one_clear_error(
    tiny_reward_model, tmp_path, monkeypatch
):
    # Longer than a socket's name may be: Ray itself raises a plain OSError.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 120)))

    outcome = in_process("train", ray_config(tmp_path, tiny_reward_model))

    assert_refused(outcome, "no Ray can be started on this machine", "AF_UNIX path length")


def test_two_workers_are_not_one_process(scpo, tiny_reward_model, tmp_path):
    config = ray_config(tmp_path, tiny_reward_model, launch={"on": "process"})

    assert_refused(scpo("train", config), "train.num_workers = 2: a process is one worker")


def test_a_users_deepspeed_json_that_contradicts_is_refused_before_any_training(
    scpo, tiny_reward_model, tmp_path, caplog
):
    json = tmp_path / "ds.json"
    json.write_text('{"zero_optimization": {"stage": 1}}')
    config = ray_config(tmp_path, tiny_reward_model)

    outcome = scpo("train", config, "--set", f"train.deepspeed_config={json}")

    assert_refused(
        outcome, "zero_optimization.stage = 1: contradicts train.zero_stage; there it is 2"
    )
    assert "starting on Ray" not in caplog.text


@pytest.mark.slow
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
