"""One plan, one trajectory: whichever engine computes it, on however many workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from scpo_ray.data.synthetic import vocabulary
from scpo_ray.experiment import load_inputs, prepare_run, run_experiment
from scpo_ray.inputs import open_run_dir
from scpo_ray.methods.task import FitContext
from scpo_ray.models import reading
from scpo_ray.models.export import load_exported
from scpo_ray.models.loading import drawn_by
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import Worker
from scpo_ray.results import OpinionScores, RunResult
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import load_test_pairs
from scpo_ray.tracking.trackers import SilentTracker
from scpo_ray.training.plan import Plan
from scpo_ray.workers import first_worker_first
from tests.evaluation.test_opinions import opinions_document
from tests.group import Groups
from tests.models.test_reward_model import save_tiny
from tests.tiny import tiny_document

TORCH = {"engine": "torch"}
ZERO = [{"engine": "deepspeed", "zero_stage": stage} for stage in range(4)]
SHORT = {"max_steps": 20}
TRAIN = {
    "batch_size": 8,  # which three workers cannot share evenly
    "max_steps": 50,
    "learning_rate": 1e-3,
    "dropout": False,
    "log_every": 1,
    "checkpoint_every": 50,
}


@dataclass(frozen=True)
class Trajectory:
    """What a run went through, and where it came to.

    `passes`: most micro-batches of one worker in one step. `rewards`: of the test pairs' chosen
    and then rejected texts, by the exported model, less their mean.
    """

    engine: str
    loss: list[float]
    grad_norm: list[float]
    passes: int
    rewards: NDArray[np.float32]


class Follow(Protocol):
    def __call__(
        self, workers: int, variants: Sequence[dict[str, Any]], /, **sections: Any
    ) -> list[Trajectory]:
        """Runs with these `train` settings on so many workers."""


def run_all(worker: Worker, documents: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    return [run(worker, RunConfig.model_validate(document)) for document in documents]


def run(worker: Worker, config: RunConfig) -> dict[str, Any] | None:
    result, plan = ended(worker, config)
    if result is None or plan is None:
        return None
    return {
        "engine": result.engine,
        "loss": result.curve.loss,
        "grad_norm": result.curve.grad_norm,
        "passes": max(len(step.micro_batches(0)) for step in plan.steps_from(0)),
    }


def run_all_by_length(
    worker: Worker, documents: list[dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """As `run_all`; what is padded is padded in passes of one length each."""
    before, reading._PASS_TOKENS = reading._PASS_TOKENS, 1
    try:
        return run_all(worker, documents)
    finally:
        reading._PASS_TOKENS = before


def opinions_of_all(worker: Worker, documents: list[dict[str, Any]]) -> list[list[OpinionScores]]:
    """Of each run; nothing on the other workers than the first."""
    results = [ended(worker, RunConfig.model_validate(document))[0] for document in documents]
    return [result.opinions for result in results if result is not None]


def ended(worker: Worker, config: RunConfig) -> tuple[RunResult | None, Plan | None]:
    run_dir = open_run_dir(config)
    with first_worker_first(worker):
        run_dir.path.mkdir(parents=True, exist_ok=True)
        inputs = load_inputs(config, run_dir)
    prepared = prepare_run(config, inputs, worker)
    result = run_experiment(prepared, FitContext(run_dir, SilentTracker(), None))
    assert result is None or result.num_workers == worker.world_size
    return result, prepared.plan


@pytest.fixture
def follow(groups, tiny_reward_model, tmp_path) -> Follow:
    return partial(_follow, groups, tiny_reward_model, tmp_path)


def _follow(
    groups: Groups,
    start: Path,
    folder: Path,
    workers: int,
    variants: Sequence[dict[str, Any]],
    /,
    task: Callable[..., list[dict[str, Any] | None]] = run_all,
    **sections: Any,
) -> list[Trajectory]:
    # Who computes a run is not in its folder's name: experiments of their own keep them apart.
    documents = [
        tiny_document(start, folder, experiment=f"on-{workers}-{number}", **sections)
        | {"train": {**TRAIN, **sections.get("train", {}), **variant}}
        for number, variant in enumerate(variants)
    ]
    results = groups.run(workers, task, documents)[0]
    configs = [RunConfig.model_validate(document) for document in documents]
    return [
        Trajectory(**result, rewards=exported_rewards(config))
        for config, result in zip(configs, results, strict=True)
    ]


def exported_rewards(config: RunConfig) -> NDArray[np.float32]:
    """The exported model's, after a check that the run was evaluated with the same."""
    run_dir = open_run_dir(config)
    inputs = load_inputs(config, run_dir)
    model = load_exported(run_dir.model_dir, device="cpu")
    model = replace(model, precision=config.train.precision)
    rewards = score_tokens(model, inputs.tokens)
    test = inputs.data.test
    margins = load_test_pairs(run_dir.path)["margin"]
    # In bf16 the texts beside a text, and whether they are padded as under ZeRO 3, decide how its
    # last bits are rounded.
    unrounded = model.precision == "fp32" and model.dtype_name == "float32"
    tolerance = 1e-5 if unrounded else 1e-3
    np.testing.assert_allclose(
        rewards[test.chosen] - rewards[test.rejected], margins, rtol=0, atol=tolerance
    )
    rewards = np.concatenate([rewards[test.chosen], rewards[test.rejected]])
    # The loss sees differences alone, so the head's bias has a gradient of nothing but rounding,
    # which AdamW makes large: how high all rewards lie together is nobody's decision.
    shifted: NDArray[np.float32] = rewards - rewards.mean()
    return shifted


def assert_same(ours: Trajectory, theirs: Trajectory) -> None:
    assert len(ours.loss) == len(theirs.loss)
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-4, err_msg=ours.engine)
    # In reward units for those near 0; here they are spread over some three.
    np.testing.assert_allclose(
        ours.rewards, theirs.rewards, rtol=3e-4, atol=3e-4, err_msg=ours.engine
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_engine_on_any_number_of_workers_follows_one_trajectory(follow, workers):
    [alone] = follow(1, [TORCH])
    assert alone.loss[-1] < 0.6 < alone.loss[0]

    trajectories = follow(workers, [TORCH, *ZERO])

    names = ["torch", *(f"deepspeed ZeRO {stage}" for stage in range(4))]
    assert [trajectory.engine for trajectory in trajectories] == names
    for trajectory in trajectories:
        assert len(trajectory.loss) == 50
        assert_same(trajectory, alone)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_saves_memory_changes_no_trajectory(follow, tmp_path, workers):
    """Several passes a step, activations computed again, small buckets, moments offloaded."""
    more = tmp_path / "more.json"
    more.write_text(
        '{"zero_optimization": {"reduce_bucket_size": 5000}, "gradient_clipping": "auto"}'
    )
    small = {"micro_batch_tokens": 96, "gradient_checkpointing": True}
    with_json = {**small, "deepspeed_config": str(more)}
    variants = [
        {**TORCH, **small},
        *({**zero, **with_json} for zero in ZERO),
        *({**zero, "offload_optimizer": True} for zero in ZERO[1:]),
    ]
    [alone] = follow(1, [TORCH], train=SHORT)

    trajectories = follow(workers, variants, train=SHORT)

    assert trajectories[0].passes > alone.passes
    for trajectory in trajectories:
        assert_same(trajectory, alone)


@pytest.mark.parametrize("workers", [1, 2])
def test_adapters_are_trained_alike_by_every_engine(follow, workers):
    adapters = {"lora": {"rank": 4}}
    [alone] = follow(1, [TORCH], model=adapters)
    assert alone.loss[-1] < 0.65 < alone.loss[0]

    for trajectory in follow(workers, ZERO, model=adapters):
        assert_same(trajectory, alone)


@pytest.mark.slow
def test_adapters_on_a_bfloat16_base_are_trained_alike_by_every_engine(follow):
    halved = {"lora": {"rank": 4}, "dtype": "bfloat16"}
    [alone] = follow(1, [TORCH], model=halved, train=SHORT)

    for trajectory in follow(2, [ZERO[1], ZERO[3]], model=halved, train=SHORT):
        np.testing.assert_allclose(trajectory.loss, alone.loss, rtol=2e-3)


def test_a_network_that_is_padded_is_trained_alike_by_length_and_by_every_engine(
    follow, tiny_reward_model, tmp_path
):
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    shape = DebertaV2Config(
        vocab_size=len(vocabulary()) + 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        num_labels=1,
    )
    with drawn_by(0):
        network = DebertaV2ForSequenceClassification(shape)
    folder = save_tiny(network, tiny_reward_model, tmp_path / "deberta")
    settings = {"model": {"path": str(folder)}, "train": SHORT}
    [alone] = follow(1, [TORCH], **settings)

    trajectories = follow(2, [TORCH, *ZERO], task=run_all_by_length, **settings)

    for trajectory in trajectories:
        assert_same(trajectory, alone)


def test_clipping_and_normalized_weights_mean_the_same_on_every_engine(follow):
    settings = {
        "train": {**SHORT, "max_grad_norm": 0.002},
        "selection": {"normalize_weights": True},
    }
    [alone] = follow(1, [TORCH], **settings)
    assert min(alone.grad_norm) > 0.002

    for trajectory in follow(2, [TORCH, *ZERO], **settings):
        assert_same(trajectory, alone)
        np.testing.assert_allclose(trajectory.grad_norm, alone.grad_norm, rtol=1e-3)


def test_bf16_is_near_on_every_engine_and_saved_as_it_was_evaluated(follow):
    bf16 = {**SHORT, "precision": "bf16"}
    [fp32] = follow(1, [TORCH], train=SHORT)

    torch_run, *others = follow(2, [TORCH, *ZERO], train=bf16)

    assert torch_run.loss != fp32.loss
    for other in others:
        np.testing.assert_allclose(other.loss, torch_run.loss, rtol=0.02, err_msg=other.engine)


def test_group_dro_follows_one_trajectory_on_any_number_of_workers(follow):
    settings = {
        "method": "group_dro",
        "culture_weights": {"North": 1.0, "South": 1.0},
        "methods": {"group_dro": {"step_size": 0.5}},
        "train": SHORT,
    }
    [alone] = follow(1, [TORCH], **settings)

    for trajectory in [*follow(2, [TORCH, *ZERO[:2]], **settings), *follow(3, [TORCH], **settings)]:
        assert_same(trajectory, alone)


def test_answer_shares_are_the_same_on_two_workers_by_every_kind_of_method(
    groups, tiny_reward_model, tmp_path
):
    few_shot = {"num_learning_countries": 1, "num_context_questions": 5, "num_steps": 3}
    methods = {
        "scpo": {"train": {"max_steps": 6, "dropout": False, "learning_rate": 3e-3}},
        "shared_offset": {},
        "lore": {},
        "gpo": {"methods": {"gpo": few_shot}},
    }

    def on(workers: int) -> list[list[OpinionScores]]:
        documents = [
            opinions_document(
                tmp_path, tiny_reward_model, experiment=f"on-{workers}", method=method, **sections
            )
            for method, sections in methods.items()
        ]
        return groups.run(workers, opinions_of_all, documents)[0]

    alone, shared = on(1), on(2)

    for method, ours, theirs in zip(methods, shared, alone, strict=True):
        for us, them in zip(ours, theirs, strict=True):
            assert us.macro.keys() == them.macro.keys()
            for culture, found in us.cultures.items():
                for predictor, estimate in found.items():
                    expected = them.cultures[culture][predictor]
                    assert estimate.num_pairs == expected.num_pairs
                    assert estimate.value == pytest.approx(expected.value, abs=1e-4), method
    own = [scores[0].cultures["South Africa"]["model"].value for scores in alone]
    assert len(set(own)) == len(methods)
