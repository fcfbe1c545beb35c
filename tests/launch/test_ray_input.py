"""What a cluster cannot do is said within seconds, and says what is missing."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.launch.clusters import ended, ray_config, start, two_nodes
from tests.test_cli import Outcome
from tests.tiny import write_tiny_reward_model

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
    # Ray itself takes up to half of it to start on a busy machine.
    assert time.monotonic() - started < 60
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

    said = refused(ray_config(tmp_path, tiny_reward_model), f"train.deepspeed_config={json}")

    assert "zero_optimization.stage = 1: contradicts train.zero_stage; there it is 2" in said


def test_waiting_for_resources_waits(tiny_reward_model, tmp_path):
    config = ray_config(tmp_path, tiny_reward_model)
    process = start(
        config,
        *("--set", "launch.cpus_per_worker=1000", "--set", "launch.wait_for_resources=true"),
    )
    try:
        time.sleep(25)
        assert process.poll() is None
    finally:
        process.kill()
        _, err = process.communicate()
    assert "waiting for room for 2 workers of 1000 CPU each" in err


@contextmanager
def node_with_other_files(address: str, mount: list[str]) -> Iterator[None]:
    """A node whose file system is not the head's: `mount` is done for its processes alone."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    ray = str(Path(sys.executable).with_name("ray"))
    command = f'{" ".join(mount)} && exec "{ray}" start --address={address} --num-cpus=1 --block'
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def head_and(mount: list[str]) -> Iterator[str]:
    """A head, and a second node with `mount`; the head's address."""
    with two_nodes() as cluster:
        ordinary = next(node for node in cluster.list_all_nodes() if not node.head)
        cluster.remove_node(ordinary)
        with node_with_other_files(cluster.address, mount):
            yield cluster.address


def test_a_folder_that_a_node_does_not_see_is_named_with_the_node(tiny_reward_model, tmp_path):
    config = ray_config(tmp_path, tiny_reward_model)
    (tmp_path / "runs").mkdir()
    with head_and(["mount", "-t", "tmpfs", "none", str(tmp_path / "runs")]) as address:
        process = start(
            config,
            *("--set", f"launch.address={address}", "--set", "launch.placement=STRICT_SPREAD"),
            *("--set", "launch.wait_for_resources=true"),
        )
        outcome = ended(process)

    assert outcome.code == 2, outcome.err
    assert "does not see" in outcome.err
    assert "put output_dir on a file system that all machines mount" in outcome.err


def test_a_node_with_another_model_is_named_with_both_fingerprints(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    ours = write_tiny_reward_model(models / "ours")
    other = shutil.copytree(ours, models / "other")
    (other / "config.json").write_text((ours / "config.json").read_text() + "\n")
    config = ray_config(tmp_path, ours)
    with head_and(["mount", "--bind", str(other), str(ours)]) as address:
        process = start(
            config,
            *("--set", f"launch.address={address}", "--set", "launch.placement=STRICT_SPREAD"),
            *("--set", "launch.wait_for_resources=true"),
        )
        outcome = ended(process)

    assert outcome.code == 2, outcome.err
    assert "the workers' fingerprints differ" in outcome.err
    assert "worker 1 on " in outcome.err
    assert ": model " in outcome.err
