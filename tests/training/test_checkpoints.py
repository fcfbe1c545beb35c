"""Checkpoints in a run's folder: there when whole, the newest and the best kept."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scpo_ray.records import ALONE, InputError
from scpo_ray.training.checkpoints import open_checkpoints
from tests.storage.test_run_dir import run_dir

Damage = Callable[[Path], object]


def write_checkpoint(folder: Path, step: int, *, keep: int = 5, loss: float = 1.0) -> Path:
    """Checkpoint `step` of the run below `folder`: a weight that is `step` throughout."""
    run = run_dir(folder)
    with open_checkpoints(run).saving(step, loss, keep=keep, worker=ALONE) as mine:
        save_file({"w": torch.full((100,), float(step))}, mine / "state.safetensors")
    return run.checkpoints_dir / f"step-{step:08d}"


def newest(folder: Path) -> Path | None:
    return open_checkpoints(run_dir(folder)).newest(ALONE)


def kept_steps(folder: Path) -> list[int]:
    """Steps of all that is in the folder of checkpoints, half-written parts included."""
    return sorted(int(p.name.split("-")[1]) for p in run_dir(folder).checkpoints_dir.iterdir())


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "worker-0" / "state.safetensors", 50)


def flip_a_bit(checkpoint: Path) -> None:
    path = checkpoint / "worker-0" / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def with_manifest(content: str) -> Damage:
    return lambda checkpoint: (checkpoint / "manifest.json").write_text(content)


def test_a_checkpoint_says_its_step_and_loss_and_holds_what_the_worker_wrote(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 5, loss=0.25)

    assert newest(tmp_path) == checkpoint
    assert json.loads((checkpoint / "checkpoint.json").read_text()) == {"step": 5, "loss": 0.25}
    weights = load_file(checkpoint / "worker-0" / "state.safetensors")
    assert torch.equal(weights["w"], torch.full((100,), 5.0))


def test_folders_that_a_worker_makes_within_its_own_are_kept_and_checked(tmp_path):
    checkpoints = open_checkpoints(run_dir(tmp_path))
    with checkpoints.saving(5, 1.0, keep=2, worker=ALONE) as mine:
        (mine / "below").mkdir()
        (mine / "below" / "notes.txt").write_text("as written")

    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    (checkpoint / "worker-0" / "below" / "notes.txt").write_text("as changed")
    assert newest(tmp_path) is None


def test_without_checkpoints_there_is_no_newest(tmp_path):
    assert newest(tmp_path) is None

    write_checkpoint(tmp_path, 5)
    run_dir(tmp_path).remove_checkpoints()
    assert newest(tmp_path) is None


# Which ones stay


def test_the_newest_checkpoints_and_the_one_of_the_lowest_loss_stay(tmp_path):
    for step, loss in ((5, 0.9), (10, 0.2), (98, 0.5), (99, 0.4), (100, 0.3)):
        write_checkpoint(tmp_path, step, keep=2, loss=loss)

    assert kept_steps(tmp_path) == [10, 99, 100]
    assert newest(tmp_path) == run_dir(tmp_path).checkpoints_dir / "step-00000100"


def test_where_the_best_is_among_the_newest_no_other_stays(tmp_path):
    for step, loss in ((5, 0.9), (10, 0.8), (15, 0.1), (20, 0.2)):
        write_checkpoint(tmp_path, step, keep=2, loss=loss)

    assert kept_steps(tmp_path) == [15, 20]


@settings(max_examples=15)
@given(
    losses=st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=7),
    keep=st.integers(1, 3),
)
def test_at_any_time_the_best_of_all_so_far_and_the_newest_are_there(
    tmp_path_factory, losses, keep
):
    folder = tmp_path_factory.mktemp("run")

    for step, loss in enumerate(losses, start=1):
        write_checkpoint(folder, step, keep=keep, loss=loss)
        there = kept_steps(folder)

        so_far = losses[:step]
        assert min(so_far[s - 1] for s in there) == min(so_far)
        assert set(range(max(1, step - keep + 1), step + 1)) <= set(there)
        assert len(there) <= keep + 1


@pytest.mark.parametrize("facts", ["", "{", "{}", "[]", "null", '{"loss": null}'])
def test_a_checkpoint_whose_loss_cannot_be_read_is_not_the_best(tmp_path, facts):
    damaged = write_checkpoint(tmp_path, 5, loss=0.1)
    (damaged / "checkpoint.json").write_text(facts)

    write_checkpoint(tmp_path, 10, keep=1, loss=0.5)
    write_checkpoint(tmp_path, 15, keep=1, loss=0.9)

    assert kept_steps(tmp_path) == [10, 15]


# Damage


NO_MANIFEST = "its manifest is missing or unreadable"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (truncate, "worker-0/state.safetensors is not what was written"),
        (flip_a_bit, "worker-0/state.safetensors is not what was written"),
        (
            lambda c: (c / "worker-0" / "state.safetensors").unlink(),
            "worker-0/state.safetensors is missing",
        ),
        (lambda c: (c / "checkpoint.json").unlink(), "checkpoint.json is missing"),
        (lambda c: (c / "manifest.json").unlink(), NO_MANIFEST),
        *((with_manifest(content), NO_MANIFEST) for content in ("", "{", "{}", "[]", "null", "5")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path, caplog, damage, fault):
    good, bad = write_checkpoint(tmp_path, 5), write_checkpoint(tmp_path, 10)

    damage(bad)

    assert newest(tmp_path) == good
    assert f"checkpoint {bad} is damaged ({fault}): trying the one before" in caplog.messages


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew(tmp_path):
    for step in (5, 10):
        truncate(write_checkpoint(tmp_path, step))

    assert newest(tmp_path) is None


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_made_again(tmp_path):
    write_checkpoint(tmp_path, 5)
    truncate(write_checkpoint(tmp_path, 10))

    again = write_checkpoint(tmp_path, 10)

    assert newest(tmp_path) == again
    assert kept_steps(tmp_path) == [5, 10]


def test_damaged_checkpoints_of_later_steps_do_not_crowd_out_new_ones(tmp_path):
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step)
    for step in (10, 15):
        truncate(run_dir(tmp_path).checkpoints_dir / f"step-{step:08d}")

    # The run has gone on from step 5.
    made = write_checkpoint(tmp_path, 8, keep=1, loss=2.0)

    assert newest(tmp_path) == made
    assert kept_steps(tmp_path) == [5, 8]


# Half-written ones


def test_a_half_written_checkpoint_is_none_and_is_cleared_away(tmp_path):
    good = write_checkpoint(tmp_path, 5)
    part = good.with_name(".step-00000010.part")
    (part / "worker-0").mkdir(parents=True)
    (part / "worker-0" / "state.safetensors").write_bytes(b"half")

    assert newest(tmp_path) == good

    write_checkpoint(tmp_path, 10)
    assert kept_steps(tmp_path) == [5, 10]


@pytest.mark.parametrize("error", [InputError("no space"), KeyboardInterrupt(), RuntimeError()])
def test_a_checkpoint_that_is_broken_off_leaves_nothing_and_the_one_before(tmp_path, error):
    good = write_checkpoint(tmp_path, 5)
    checkpoints = open_checkpoints(run_dir(tmp_path))

    with (
        pytest.raises(type(error)),
        checkpoints.saving(10, 1.0, keep=1, worker=ALONE) as mine,
    ):
        save_file({"w": torch.zeros(3)}, mine / "state.safetensors")
        raise error

    assert newest(tmp_path) == good
    assert list(run_dir(tmp_path).checkpoints_dir.iterdir()) == [good]


def test_a_file_in_the_checkpoints_place_is_told_with_the_path(tmp_path):
    run = run_dir(tmp_path)
    run.path.mkdir()
    run.checkpoints_dir.write_text("in the way")

    with pytest.raises(InputError, match=r"checkpoints/step-00000005: cannot be written"):
        write_checkpoint(tmp_path, 5)
