"""The loop: a stopped run ends as an undisturbed one, and a diverged one says where."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from scpo_ray.experiment import PreparedRun, load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.methods.group_dro import Groups, GroupWeights
from scpo_ray.records import Worker
from scpo_ray.settings.run import RunConfig
from scpo_ray.training.checkpoints import Checkpoints
from scpo_ray.training.engine import TorchEngine
from scpo_ray.training.loop import DivergedError, TrainingData, TrainingSummary, step_loss, train
from scpo_ray.training.pair_weights import FixedWeights, PairWeights
from tests.tiny import tiny_config

WORKER = Worker(rank=0, world_size=1, device="cpu")
STEPS, CHECKPOINT_EVERY, LOG_EVERY = 12, 5, 3


class Stopped(Exception):
    """What stands in for a kill."""


class RecordingTracker:
    """Remembers what it was told, and stops the run when told of step `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.points: dict[int, dict[str, float]] = {}

    def log(self, metrics, step):
        if step == self.stop_at:
            raise Stopped
        self.points[step] = dict(metrics)

    def log_result(self, result, run_dir):
        raise AssertionError("the loop has no result")

    def log_artifact(self, path):
        raise AssertionError("the loop has no artifact")

    def finish(self, status):
        raise AssertionError("the loop does not end the tracker")


class StoppingEngine(TorchEngine):
    """Stops when it is to make the step after `stop_after`, or before a checkpoint is whole."""

    stop_after: int | None = None
    stop_in_checkpoint: int | None = None

    def step(self):
        if self.steps_done == self.stop_after:
            raise Stopped
        return super().step()

    def save_checkpoint(self, folder):
        super().save_checkpoint(folder)
        if self.steps_done == self.stop_in_checkpoint:
            raise Stopped


@pytest.fixture(scope="module")
def config(tiny_reward_model, tmp_path_factory) -> RunConfig:
    config = tiny_config(tiny_reward_model, tmp_path_factory.mktemp("runs"))
    assert config.train.dropout
    assert (config.train.max_steps, config.train.checkpoint_every) == (STEPS, CHECKPOINT_EVERY)
    return config


@pytest.fixture(scope="module")
def prepared(config) -> PreparedRun:
    run_dir = open_run_dir(config)
    return prepare_run(config, load_inputs(config, run_dir), WORKER)


def attempt(
    config: RunConfig,
    prepared: PreparedRun,
    folder: Path,
    *,
    tracker: RecordingTracker | None = None,
    prepare: Callable[[StoppingEngine], None] = lambda engine: None,
    weights: PairWeights | None = None,
    shares: NDArray[np.float32] | None = None,
) -> tuple[dict[str, torch.Tensor], TrainingSummary]:
    """One process's try at the run in `folder`: the weights and the summary it ends with."""
    task = prepared.task
    model = task.base.trainable(config.seed)
    engine = StoppingEngine(model, config.train, WORKER)
    prepare(engine)
    assert prepared.plan is not None
    summary = train(
        engine,
        prepared.plan,
        TrainingData(
            task.tokens,
            weights or FixedWeights(prepared.weights),
            lambda rows: [f"pair {row}" for row in rows],
            shares=shares,
        ),
        config.train,
        tracker or RecordingTracker(),
        Checkpoints(folder / "checkpoints"),
        WORKER,
        seed=config.seed,
        normalize_weights=config.selection.normalize_weights,
    )
    return {n: p.detach().clone() for n, p in engine.parameters.items()}, summary


@pytest.fixture(scope="module")
def undisturbed(config, prepared, tmp_path_factory):
    """Weights, summary and tracked points of a run that nothing stopped."""
    tracker = RecordingTracker()
    weights, summary = attempt(
        config, prepared, tmp_path_factory.mktemp("undisturbed"), tracker=tracker
    )
    return weights, summary, tracker.points


def assert_same_end(ours, theirs) -> None:
    weights, summary = ours
    assert all(weights[name].equal(theirs[0][name]) for name in theirs[0])
    assert summary.curve == theirs[1].curve
    assert summary.num_steps == theirs[1].num_steps
    assert summary.num_pairs_seen == theirs[1].num_pairs_seen


def test_the_curve_has_the_mean_loss_rate_and_norm_of_every_logged_step(
    config, prepared, undisturbed
):
    weights, summary, points = undisturbed

    curve = summary.curve
    assert curve.step == [3, 6, 9, 12]
    assert curve.lr == pytest.approx([1e-3 * (1 - (s - 1) / 12) for s in curve.step])
    assert all(math.isfinite(v) and v > 0 for v in [*curve.loss, *curve.grad_norm])
    assert points == {
        step: {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm}
        for step, loss, lr, norm in zip(
            curve.step, curve.loss, curve.lr, curve.grad_norm, strict=True
        )
    }
    assert (summary.num_steps, summary.num_pairs_seen) == (12, 12 * 8)
    start = prepared.task.base.trainable(seed=0)
    assert any(not p.equal(weights[n]) for n, p in start.network.named_parameters())


@pytest.mark.parametrize("stop_after", range(STEPS))
def test_a_run_stopped_at_any_step_ends_as_an_undisturbed_one(
    config, prepared, undisturbed, tmp_path, stop_after
):
    def prepare(engine):
        engine.stop_after = stop_after

    with pytest.raises(Stopped):
        attempt(config, prepared, tmp_path, prepare=prepare)

    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").glob("*"))
    expected = [s for s in (5, 10) if s <= stop_after]
    assert checkpoints == [f"step-{step:08d}" for step in expected]
    assert_same_end(attempt(config, prepared, tmp_path), undisturbed)


@pytest.mark.parametrize("stop_after", [4, 7, 11])
def test_group_dro_stopped_at_any_step_ends_as_an_undisturbed_one(
    config, prepared, tmp_path, stop_after
):
    halves = (np.arange(len(prepared.rows)) % 3 == 0).astype(np.int64)
    groups = Groups(halves, ("two thirds", "a third"), 0.5)
    tracker = RecordingTracker()
    of_whole, of_cut = (GroupWeights(prepared.weights, groups) for _ in range(2))
    whole = attempt(config, prepared, tmp_path / "whole", tracker=tracker, weights=of_whole)

    def prepare(engine):
        engine.stop_after = stop_after

    with pytest.raises(Stopped):
        stopped = GroupWeights(prepared.weights, groups)
        attempt(config, prepared, tmp_path / "cut", prepare=prepare, weights=stopped)
    end = attempt(config, prepared, tmp_path / "cut", weights=of_cut)

    assert_same_end(end, whole)
    assert of_cut.state() == of_whole.state()
    last = {n: v for n, v in tracker.points[12].items() if n.startswith("train/group_weight/")}
    assert last == {
        "train/group_weight/two_thirds": of_whole.group_weights[0],
        "train/group_weight/a_third": of_whole.group_weights[1],
    }
    assert sum(last.values()) == pytest.approx(1)
    assert len(set(last.values())) == 2


def test_group_dro_weighs_the_second_step_by_the_losses_of_the_first(config, prepared, tmp_path):
    once = config.model_copy(
        update={"train": config.train.model_copy(update={"max_steps": 1, "dropout": False})}
    )
    assert prepared.plan is not None and prepared.task.ref_rewards is not None
    first = replace(prepared, plan=replace(prepared.plan, num_steps=1))
    step = next(prepared.plan.steps_from(0))
    codes = np.zeros(len(prepared.rows), np.int64)
    codes[step.rows[:2]] = 1

    weights = GroupWeights(prepared.weights, Groups(codes, ("most", "two"), 0.5))
    attempt(once, first, tmp_path, weights=weights)

    # The model starts as the global one, whose rewards are known.
    chosen, rejected = prepared.task.ref_rewards[prepared.plan.pairs[step.rows]].T.astype(
        np.float64
    )
    losses = prepared.weights[step.rows] * np.log1p(np.exp(rejected - chosen)) / len(step.rows)
    two = losses[:2].sum() * len(codes) / 2
    most = losses[2:].sum() * len(codes) / (len(codes) - 2)
    odds = math.exp(0.5 * (two - most))
    assert weights.group_weights[1] == pytest.approx(odds / (1 + odds), rel=1e-4)


@pytest.mark.parametrize("stop_at", [3, 6, 12])
def test_a_run_stopped_while_it_logs_ends_as_an_undisturbed_one(
    config, prepared, undisturbed, tmp_path, stop_at
):
    with pytest.raises(Stopped):
        attempt(config, prepared, tmp_path, tracker=RecordingTracker(stop_at))

    again = RecordingTracker()
    assert_same_end(attempt(config, prepared, tmp_path, tracker=again), undisturbed)
    # What the resumed run logs it logs alike; what lay before its checkpoint it does not repeat.
    assert again.points.items() <= undisturbed[2].items()
    assert min(again.points) == {3: 3, 6: 6, 12: 12}[stop_at]


def test_a_run_stopped_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    config, prepared, undisturbed, tmp_path
):
    def prepare(engine):
        engine.stop_in_checkpoint = 10

    with pytest.raises(Stopped):
        attempt(config, prepared, tmp_path, prepare=prepare)

    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert_same_end(attempt(config, prepared, tmp_path), undisturbed)


def test_a_run_stopped_twice_ends_as_an_undisturbed_one(config, prepared, undisturbed, tmp_path):
    for stop_after in (7, 7, 11):

        def prepare(engine, stop_after=stop_after):
            engine.stop_after = stop_after

        with pytest.raises(Stopped):
            attempt(config, prepared, tmp_path, prepare=prepare)

    assert_same_end(attempt(config, prepared, tmp_path), undisturbed)


@pytest.mark.parametrize(
    "file",
    ["worker-0/state.safetensors", "worker-0/progress.json", "checkpoint.json", "manifest.json"],
)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    config, prepared, undisturbed, tmp_path, caplog, file
):
    def prepare(engine):
        engine.stop_after = 11

    with pytest.raises(Stopped):
        attempt(config, prepared, tmp_path, prepare=prepare)
    checkpoint = tmp_path / "checkpoints" / "step-00000010"
    damaged = checkpoint / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    caplog.set_level("INFO", logger="scpo_ray")

    end = attempt(config, prepared, tmp_path)

    assert f"checkpoint {checkpoint} is damaged" in caplog.text
    assert "resumed at step 5" in caplog.text
    assert_same_end(end, undisturbed)


def test_the_newest_checkpoints_and_the_best_stay(config, prepared, tmp_path):
    often = config.model_copy(
        update={"train": config.train.model_copy(update={"checkpoint_every": 2, "log_every": 2})}
    )

    _, summary = attempt(often, prepared, tmp_path)

    # A point of the curve is the mean loss since the last one, and so since the last checkpoint.
    loss_at = dict(zip(summary.curve.step, summary.curve.loss, strict=True))
    best = min((2, 4, 6, 8, 10), key=lambda step: loss_at[step])
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in sorted({best, 8, 10})]


def test_a_loss_that_is_not_finite_stops_with_step_pairs_and_checkpoint(config, prepared, tmp_path):
    assert prepared.plan is not None
    steps = list(prepared.plan.steps_from(0))
    weights = prepared.weights.copy()
    # A pair that comes up for the first time in step 7, behind the checkpoint of step 5.
    seen = {int(row) for step in steps[:6] for row in step.rows}
    bad = next(int(row) for row in steps[6].rows if int(row) not in seen)
    weights[bad] = np.nan

    with pytest.raises(DivergedError) as caught:
        attempt(config, prepared, tmp_path, weights=FixedWeights(weights))

    assert caught.value.title == "training stopped at step 7: the loss is nan"
    pairs, checkpoint, _ = caught.value.problems
    assert pairs == "pairs of the step: " + ", ".join(f"pair {row}" for row in steps[6].rows)
    assert checkpoint == f"last good checkpoint: {tmp_path / 'checkpoints' / 'step-00000005'}"
    assert f"pair {bad}" in pairs


@pytest.mark.parametrize(("head", "is_said"), [(0.0, True), (100.0, False)])
def test_a_loss_that_stays_a_coins_is_said_once(config, prepared, tmp_path, caplog, head, is_said):
    slow = config.model_copy(
        update={"train": config.train.model_copy(update={"learning_rate": 1e-12})}
    )

    def scale_head(engine: StoppingEngine) -> None:
        with torch.no_grad():
            for name, weights in engine.parameters.items():
                if name.startswith("classifier"):
                    weights *= head

    attempt(slow, prepared, tmp_path, prepare=scale_head)

    said = [r.message for r in caplog.records if "nothing is being learned" in r.message]
    assert len(said) == int(is_said)


def test_a_learning_rate_that_leaves_the_numbers_stops_the_run(config, prepared, tmp_path):
    wild = config.model_copy(
        update={"train": config.train.model_copy(update={"learning_rate": 1e30})}
    )

    with pytest.raises(DivergedError, match=r"training stopped at step \d+: the ") as caught:
        attempt(wild, prepared, tmp_path)

    assert "last good checkpoint: none yet" in caught.value.problems


def test_the_steps_gradient_does_not_depend_on_its_micro_batches(config, prepared):
    def gradient(micro_batch_tokens: int) -> dict[str, torch.Tensor]:
        assert prepared.plan is not None
        task = prepared.task
        model = task.base.trainable(seed=0)
        engine = TorchEngine(model, config.train.model_copy(update={"dropout": False}), WORKER)
        plan = replace(prepared.plan, micro_batch_tokens=micro_batch_tokens)
        step = next(plan.steps_from(0))
        losses.append(
            step_loss(
                engine,
                step,
                TrainingData(task.tokens, FixedWeights(prepared.weights), lambda rows: []),
                WORKER,
                normalize_weights=False,
            ).total
        )
        num_batches.append(len(step.micro_batches(0)))
        return {n: p.grad for n, p in engine.parameters.items() if p.grad is not None}

    losses: list[float] = []
    num_batches: list[int] = []

    whole, parts = gradient(100_000), gradient(100)

    assert num_batches[0] == 1 < num_batches[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-4, atol=1e-6)


class Readings(TorchDispatchMode):
    """Counts how often a number is read off a tensor, for which a device would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.number += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


def test_a_steps_loss_is_read_once_however_many_passes_it_has(config, prepared):
    assert prepared.plan is not None
    task = prepared.task
    model = task.base.trainable(seed=0)
    engine = TorchEngine(model, config.train.model_copy(update={"dropout": False}), WORKER)
    plan = replace(prepared.plan, micro_batch_tokens=100, in_rows=model.in_rows)
    step = next(plan.steps_from(0))
    data = TrainingData(task.tokens, FixedWeights(prepared.weights), lambda rows: [])

    with Readings() as readings:
        step_loss(engine, step, data, WORKER, normalize_weights=False)

    assert len(step.micro_batches(0)) > 2
    assert readings.number == 1


@pytest.mark.parametrize("normalize_weights", [False, True])
def test_a_steps_loss_is_over_its_pairs_or_over_their_weights(config, prepared, normalize_weights):
    assert prepared.plan is not None
    task = prepared.task
    model = task.base.trainable(seed=0)
    engine = TorchEngine(model, config.train.model_copy(update={"dropout": False}), WORKER)
    step = next(prepared.plan.steps_from(0))
    data = TrainingData(task.tokens, FixedWeights(prepared.weights), lambda rows: [])

    loss = step_loss(engine, step, data, WORKER, normalize_weights=normalize_weights).total

    # The model starts as the global one, whose rewards are known.
    assert prepared.task.ref_rewards is not None
    chosen, rejected = prepared.task.ref_rewards[prepared.plan.pairs[step.rows]].T.astype(
        np.float64
    )
    weights = prepared.weights[step.rows].astype(np.float64)
    divisor = weights.sum() if normalize_weights else len(step.rows)
    expected = (weights * np.log1p(np.exp(rejected - chosen))).sum() / divisor
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_terminal_shows_pairs_per_second(config, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    attempt(config, prepared, tmp_path)

    shown = capsys.readouterr().err
    assert "train" in shown
    assert "pair/s" in shown


def test_the_time_of_all_attempts_counts(config, prepared, tmp_path):
    def prepare(engine):
        engine.stop_after = 6

    with pytest.raises(Stopped):
        attempt(config, prepared, tmp_path, prepare=prepare)
    progress = tmp_path / "checkpoints" / "step-00000005" / "worker-0" / "progress.json"
    earlier = json.loads(progress.read_text())["seconds"]

    _, summary = attempt(config, prepared, tmp_path)

    assert 0 < earlier < summary.seconds
