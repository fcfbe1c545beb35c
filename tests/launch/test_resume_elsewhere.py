"""A run stopped on some workers goes on on others, of any engine, along the same trajectory."""

from pathlib import Path
from typing import Any

import numpy as np

from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.worker import work
from scpo_ray.records import Worker
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import load_result, load_test_pairs
from scpo_ray.tracking.trackers import SilentTracker, Tracker
from tests.tiny import tiny_document

TORCH = {"engine": "torch"}
ZERO = [{"engine": "deepspeed", "zero_stage": stage} for stage in range(4)]
STEPS, CHECKPOINT, STOP = 12, 5, 8


class Stopped(Exception):
    """What stands in for a kill."""


class StoppingTracker(SilentTracker):
    def __init__(self, tracker: Tracker) -> None:
        pass

    def log(self, metrics, step):
        if step == STOP:
            raise Stopped


class FirstStep(SilentTracker):
    """Knows where a run began or went on."""

    step: int | None = None

    def log(self, metrics, step):
        self.step = self.step or step


def stopped(worker: Worker, documents: list[dict[str, Any]]) -> None:
    for document in documents:
        try:
            work(RunConfig.model_validate(document), worker, tracked_by=StoppingTracker)
        except Stopped:
            continue
        raise AssertionError("the run was not stopped")


def ended(worker: Worker, documents: list[dict[str, Any]]) -> list[int | None]:
    """The first step that each run made here."""
    trackers = [FirstStep() for _ in documents]
    for document, tracker in zip(documents, trackers, strict=True):
        work(RunConfig.model_validate(document), worker, tracked_by=lambda _, own=tracker: own)
    return [tracker.step for tracker in trackers]


def document(model: Path, output_dir: Path, engine: dict[str, Any], *, dropout: bool):
    train = {
        "max_steps": STEPS,
        "checkpoint_every": CHECKPOINT,
        "log_every": 1,
        "learning_rate": 1e-3,
        "dropout": dropout,
    }
    return tiny_document(model, output_dir, train={**train, **engine})


def run_path(document: dict[str, Any]) -> Path:
    return open_run_dir(RunConfig.model_validate(document)).path


PAIRINGS = [
    # begun on (workers, engine), ended on (workers, engine)
    ((2, TORCH), (3, ZERO[3])),
    ((2, ZERO[0]), (1, ZERO[3])),
    ((2, ZERO[1]), (3, ZERO[2])),
    ((2, ZERO[2]), (1, TORCH)),
    ((2, ZERO[3]), (1, ZERO[1])),
    ((2, ZERO[3]), (3, ZERO[0])),
    ((3, ZERO[1]), (2, ZERO[0])),
    ((3, ZERO[3]), (1, ZERO[2])),
]


def test_a_run_goes_on_on_other_workers_and_engines_along_its_trajectory(
    groups, tiny_reward_model, tmp_path
):
    undisturbed = document(tiny_reward_model, tmp_path / "whole", TORCH, dropout=False)
    begun: dict[int, list[Any]] = {2: [], 3: []}
    going_on: dict[int, list[Any]] = {1: [], 2: [], 3: []}
    for number, ((before, first), (after, second)) in enumerate(PAIRINGS):
        place = tmp_path / str(number)
        begun[before].append(document(tiny_reward_model, place, first, dropout=False))
        going_on[after].append(document(tiny_reward_model, place, second, dropout=False))
        assert run_path(begun[before][-1]) == run_path(going_on[after][-1])

    assert groups.run(1, ended, [undisturbed]) == [[1]]
    for workers, documents in begun.items():
        groups.run(workers, stopped, documents)
    for workers, documents in going_on.items():
        first_steps = groups.run(workers, ended, documents)[0]
        assert first_steps == [CHECKPOINT + 1] * len(documents)

    theirs = load_result(run_path(undisturbed))
    margins = load_test_pairs(run_path(undisturbed))["margin"]
    for run in [run_path(document) for documents in begun.values() for document in documents]:
        ours = load_result(run)
        assert ours.curve.step == list(range(1, STEPS + 1))
        np.testing.assert_allclose(ours.curve.loss, theirs.curve.loss, rtol=1e-4)
        np.testing.assert_allclose(load_test_pairs(run)["margin"], margins, rtol=1e-4, atol=1e-4)


def test_on_as_many_workers_of_the_same_engine_it_ends_as_undisturbed_to_the_bit(
    groups, tiny_reward_model, tmp_path
):
    engines = [TORCH, *ZERO]

    def documents(place: str) -> list[dict[str, Any]]:
        return [
            document(tiny_reward_model, tmp_path / place / str(number), engine, dropout=True)
            for number, engine in enumerate(engines)
        ]

    groups.run(2, ended, documents("whole"))
    groups.run(2, stopped, documents("stopped"))
    assert groups.run(2, ended, documents("stopped"))[0] == [CHECKPOINT + 1] * len(engines)

    for ours, theirs in zip(documents("stopped"), documents("whole"), strict=True):
        weights = [run_path(d) / "model" / "model.safetensors" for d in (ours, theirs)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert load_result(run_path(ours)).curve == load_result(run_path(theirs)).curve
        assert load_result(run_path(ours)).evaluation == load_result(run_path(theirs)).evaluation
