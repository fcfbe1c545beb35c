"""What is lost on the way: afterwards the run ends as if nothing had been."""

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scpo_ray.storage.run_dir import load_result, load_test_pairs
from tests.launch.clusters import (
    TWO,
    assert_ends_alike,
    checkpoints,
    ended,
    kill_a_worker,
    logged_steps,
    ray_config,
    run_dir,
    start,
    two_nodes,
    wait_for_checkpoint,
    wait_until,
    wait_until_gone,
    workers_below,
)
from tests.storage.test_disk_faults import mounted_tmpfs
from tests.test_cli import in_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    # Ray warns of settings of its own, and leaves files to the collector.
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def undisturbed(tiny_reward_model, tmp_path_factory) -> Path:
    """Two workers to the end, with nothing in the way."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = ended(start(ray_config(folder, tiny_reward_model)))
    assert outcome.code == 0, outcome.err
    return folder


def test_a_killed_worker_costs_a_start_and_nothing_else(tiny_reward_model, tmp_path, undisturbed):
    config = ray_config(tmp_path, tiny_reward_model, tracking={"tracker": "mlflow"})
    process = start(config)
    wait_for_checkpoint(tmp_path, process)

    kill_a_worker(process)

    outcome = ended(process)
    assert outcome.code == 0, outcome.err
    assert "a worker was lost or joined: start 2, with 2" in outcome.err
    assert "resumed at step" in outcome.err
    assert_ends_alike(tmp_path, undisturbed)
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        runs = store.execute("SELECT status FROM runs").fetchall()
        steps = store.execute("SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step")
        assert [step for (step,) in steps] == list(range(10, 301, 10))
    assert runs == [("FINISHED",)]


def test_a_killed_driver_goes_on_from_the_newest_checkpoint_that_is_whole(
    tiny_reward_model, tmp_path, undisturbed
):
    config = ray_config(tmp_path, tiny_reward_model)
    process = start(config)
    wait_until(lambda: len(checkpoints(tmp_path)) >= 2, process, "two checkpoints")
    workers = workers_below(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # They write on for a moment.
    wait_until_gone(workers)
    before, newest = checkpoints(tmp_path)[-2:]
    os.truncate(newest / "worker-1" / "state.safetensors", 1_000)

    outcome = ended(start(config))

    assert outcome.code == 0, outcome.err
    damaged = f"{newest} is damaged (worker-1/state.safetensors is not what was written)"
    assert f"{damaged}: trying the one before" in outcome.err
    assert f"resumed at step {int(before.name.partition('-')[2])} from {before}" in outcome.err
    assert_ends_alike(tmp_path, undisturbed)


def test_a_full_disk_stops_the_run_until_there_is_room(tiny_reward_model, tmp_path, undisturbed):
    with mounted_tmpfs(tmp_path / "disk", size="40m") as disk:
        config = ray_config(disk, tiny_reward_model)
        process = start(config)
        wait_for_checkpoint(disk, process)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
            while True:
                file.write(bytes(100_000))
                file.flush()

        outcome = ended(process)

        assert outcome.code == 2, outcome.err
        assert "no space left" in outcome.err.lower()
        assert "Traceback" not in outcome.err
        assert not list(disk.rglob("result.json"))
        filler.unlink()
        again = ended(start(config))
        assert again.code == 0, again.err
        assert_ends_alike(disk, undisturbed)


def lose_a_node(model: Path, folder: Path, train: dict[str, Any], replaced: bool) -> Path:
    """A run on two nodes, one of which is killed on the way; its folder."""
    with two_nodes() as cluster:
        launch = {"address": cluster.address, "placement": "SPREAD"}
        process = start(ray_config(folder, model, launch=launch, train=train))
        wait_for_checkpoint(folder, process)

        lost = next(node for node in cluster.list_all_nodes() if not node.head)
        cluster.remove_node(lost, allow_graceful=False)
        if replaced:
            cluster.add_node(num_cpus=1)

        outcome = ended(process)
    assert outcome.code == 0, outcome.err
    assert f"a worker was lost or joined: start 2, with {2 if replaced else 1}" in outcome.err
    assert "resumed at step" in outcome.err
    return run_dir(folder)


def test_a_lost_node_is_replaced_by_another(tiny_reward_model, tmp_path, undisturbed):
    lose_a_node(tiny_reward_model, tmp_path, TWO, replaced=True)

    assert_ends_alike(tmp_path, undisturbed)


def test_a_lost_node_is_done_without_where_fewer_workers_will_do(tiny_reward_model, tmp_path):
    # Dropout is drawn per worker: with it, fewer workers make another run from there on. At a
    # higher rate this training is chaotic: what two orders of adding differ by grows to 1e-2.
    train = {**TWO, "num_workers": [1, 2], "dropout": False, "learning_rate": 1e-4}

    run = lose_a_node(tiny_reward_model, tmp_path / "lost", train, replaced=False)

    one = {**train, "num_workers": 1}
    alone = in_process("train", ray_config(tmp_path / "alone", tiny_reward_model, train=one))
    assert alone.code == 0, alone.err
    result, expected = load_result(run), load_result(run_dir(tmp_path / "alone"))
    assert (result.num_workers, result.num_steps) == (1, 300)
    # One worker adds up in another order than two, and small losses show it.
    np.testing.assert_allclose(result.curve.loss, expected.curve.loss, rtol=1e-3, atol=1e-3)
    margins = [load_test_pairs(r)["margin"] for r in (run, run_dir(tmp_path / "alone"))]
    np.testing.assert_allclose(*margins, rtol=1e-2, atol=1e-2)
    assert logged_steps(run) == list(range(10, 301, 10))
