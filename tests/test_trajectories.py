"""One plan, one trajectory: whichever engine computes it, on however many workers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scpo_ray.config import RunConfig
from scpo_ray.experiment import load_inputs, open_run_dir
from scpo_ray.launch.worker import work
from scpo_ray.models import load_exported
from scpo_ray.records import Worker
from scpo_ray.scoring import score_tokens
from scpo_ray.storage import load_result, load_test_pairs
from tests.group import in_group
from tests.tiny import tiny_document

pytestmark = pytest.mark.slow

TORCH = {"engine": "torch"}
ZERO = [{"engine": "deepspeed", "zero_stage": stage} for stage in range(4)]
BASE = {
    "max_steps": 50,
    "learning_rate": 1e-3,
    "dropout": False,
    "log_every": 1,
    "checkpoint_every": 100,
}

Trajectory = tuple[list[float], np.ndarray]


def run_all(worker: Worker, documents: list[dict[str, Any]]) -> None:
    """Every run in turn, in one group: importing and starting are what costs."""
    for document in documents:
        work(RunConfig.model_validate(document), worker)


def trajectories(
    folder: Path, start: Path, workers: int, variants: list[dict[str, Any]], **sections: Any
) -> list[Path]:
    """The folders of runs with these `train` settings, each on `workers` workers."""
    documents = [
        tiny_document(
            start,
            folder / f"{workers}-{number}",
            **{**sections, "train": {**BASE, **sections.get("train", {}), **variant}},
        )
        for number, variant in enumerate(variants)
    ]
    in_group(workers, run_all, documents)
    return [open_run_dir(RunConfig.model_validate(document)).path for document in documents]


def trajectory(folder: Path) -> Trajectory:
    return load_result(folder).curve.loss, load_test_pairs(folder)["margin"]


def assert_same_trajectory(ours: Trajectory, theirs: Trajectory, rtol: float = 1e-4) -> None:
    assert len(ours[0]) == 50
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=rtol, atol=rtol)


@pytest.fixture(scope="module")
def alone(tiny_reward_model, tmp_path_factory) -> Trajectory:
    """Plain PyTorch on one worker."""
    folder = tmp_path_factory.mktemp("alone")
    [run] = trajectories(folder, tiny_reward_model, 1, [TORCH])
    assert trajectory(run)[0][-1] < 0.6 < trajectory(run)[0][0]
    return trajectory(run)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_engine_and_number_of_workers_follows_one_trajectory(
    tiny_reward_model, tmp_path, alone, workers
):
    # Eight pairs a step: three workers cannot share them evenly.
    for run in trajectories(tmp_path, tiny_reward_model, workers, [TORCH, *ZERO]):
        assert_same_trajectory(trajectory(run), alone)
        result = load_result(run)
        assert result.num_workers == workers
        assert result.engine in {"torch", *(f"deepspeed ZeRO {stage}" for stage in range(4))}


def test_micro_batches_clipping_and_a_users_json_change_no_trajectory(
    tiny_reward_model, tmp_path, alone
):
    more = tmp_path / "more.json"
    more.write_text('{"zero_optimization": {"reduce_bucket_size": 5000}, "fp16": {}}')
    # Room for one pair or two: steps of several passes, and some of none.
    small = {"micro_batch_tokens": 96}
    variants = [
        {**TORCH, **small},
        *({**zero, **small} for zero in ZERO),
        {**ZERO[2], "deepspeed_config": str(more)},
        {**ZERO[2], "offload_optimizer": True},
        {**ZERO[3], "offload_optimizer": True},
        {**ZERO[3], "gradient_checkpointing": True},
        {**ZERO[1], "gradient_checkpointing": True},
    ]

    for run in trajectories(tmp_path, tiny_reward_model, 2, variants):
        assert_same_trajectory(trajectory(run), alone)


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"max_grad_norm": 0.05}},
        {"selection": {"normalize_weights": True}},
        {"model": {"lora": {"rank": 4}}, "train": {"learning_rate": 2e-3}},
    ],
    ids=["clipping", "normalized weights", "adapters"],
)
def test_settings_mean_the_same_on_every_engine(tiny_reward_model, tmp_path, alone, sections):
    variants = [TORCH, *ZERO]
    [one] = trajectories(tmp_path, tiny_reward_model, 1, [TORCH], **sections)
    assert trajectory(one)[0] != alone[0]

    for run in trajectories(tmp_path, tiny_reward_model, 2, variants, **sections):
        assert_same_trajectory(trajectory(run), trajectory(one))
        assert_reloads(run)


def assert_reloads(run: Path) -> None:
    """The exported folder gives the rewards that the run was evaluated with."""
    config = RunConfig.model_validate(load_result(run).config)
    inputs = load_inputs(config, open_run_dir(config))
    rewards = score_tokens(load_exported(run / "model", device="cpu"), inputs.tokens)
    test = inputs.data.test
    margins = rewards[test.chosen] - rewards[test.rejected]
    np.testing.assert_allclose(margins, load_test_pairs(run)["margin"], rtol=0, atol=1e-5)


def test_bf16_is_near_on_every_engine(tiny_reward_model, tmp_path):
    bf16 = {"precision": "bf16"}
    variants = [{**TORCH, **bf16}, *({**zero, **bf16} for zero in ZERO)]

    torch_run, *others = trajectories(tmp_path, tiny_reward_model, 2, variants)

    ours = trajectory(torch_run)
    for run in others:
        np.testing.assert_allclose(trajectory(run)[0], ours[0], rtol=0.03)
