"""Soft labels: shares are what is fitted, and nothing else of the training changes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from scpo_ray.data.synthetic import vocabulary
from scpo_ray.evaluation.calibration import vote_shares
from scpo_ray.experiment import load_inputs, prepare_run, run_fingerprints
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import start_run
from scpo_ray.methods.group_dro import Groups, GroupWeights
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import load_test_pairs
from scpo_ray.training.engine import TorchEngine
from scpo_ray.training.loop import TrainingData, step_loss
from scpo_ray.training.pair_weights import FixedWeights
from tests.evaluation.test_opinions import opinions_document
from tests.tiny import tiny_config, tiny_document
from tests.training.test_loop import WORKER, Stopped, assert_same_end, attempt
from tests.training.test_trajectories import run_all

SHARES = {"a": 0.55, "b": 0.7, "c": 0.85, "d": 1.0}
"""Question -> the share that preferred the first of its two answers."""
WORDS = [word for word in vocabulary() if word.isalpha()][:8]


def shared_document(folder, model, shares=SHARES, **sections):
    """A run on four questions that ten people of each of two cultures were asked."""
    questions = dict(zip(shares, zip(WORDS[::2], WORDS[1::2], strict=True), strict=True))
    rows = [
        {
            "culture": culture,
            "user": f"{culture} {user}",
            "prompt": f"{chosen} {rejected} ?",
            "chosen": chosen,
            "rejected": rejected,
            "agreed": shares[question],
        }
        for culture in ("North", "South")
        for user in range(10)
        for question, (chosen, rejected) in questions.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {
        "soft_labels": True,
        "max_steps": 120,
        "learning_rate": 3e-3,
        "dropout": False,
        "log_every": 1,
        "checkpoint_every": 120,
    }
    document = tiny_document(model, folder / "runs", method="finetune", train=train) | {
        "data": {
            "source": "preferences",
            "train_files": [str(file)],
            "columns": {"user": "user", "chosen_share": "agreed"},
        }
    }
    for name, value in sections.items():
        below = document.get(name)
        document[name] = {**below, **value} if isinstance(below, dict) else value
    return document


def shared_config(folder, model, shares=SHARES, **sections) -> RunConfig:
    return RunConfig.model_validate(shared_document(folder, model, shares, **sections))


@pytest.fixture(scope="module")
def config(tiny_reward_model, tmp_path_factory) -> RunConfig:
    return tiny_config(tiny_reward_model, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def prepared(config):
    return prepare_run(config, load_inputs(config, open_run_dir(config)), WORKER)


@pytest.fixture(scope="module")
def shares(prepared):
    return np.linspace(0.51, 1, len(prepared.rows), dtype=np.float32)


def win_probabilities(config) -> np.ndarray:
    """(4,) of the first answer to each question, as the ended run was tested."""
    columns = load_test_pairs(start_run(config)[1])
    task = prepare_run(config, load_inputs(config, open_run_dir(config)), WORKER).task
    of_share = dict(zip(vote_shares(task.data.test), expit(columns["margin"]), strict=True))
    return np.array([of_share[share] for share in sorted(of_share)])


def test_training_fits_the_shares(tiny_reward_model, tmp_path):
    config = shared_config(tmp_path, tiny_reward_model)

    fitted = win_probabilities(config)

    np.testing.assert_allclose(fitted[:3], [0.55, 0.7, 0.85], atol=0.05)
    assert fitted[3] > 0.9
    # What hard labels make of the same answers.
    plain = shared_config(tmp_path, tiny_reward_model, train={"soft_labels": False})
    assert win_probabilities(plain).min() > 0.9


def test_interactions_of_several_pairs_are_nearer_to_the_shares_of_opinions(
    tiny_reward_model, tmp_path
):
    train = {"draw": "interactions", "max_steps": 30, "learning_rate": 3e-3, "dropout": False}

    def distance(soft_labels):
        document = opinions_document(
            tmp_path,
            tiny_reward_model,
            method="finetune",
            train=train | {"soft_labels": soft_labels},
        )
        result, _ = start_run(RunConfig.model_validate(document))
        return result.calibration["South Africa"].vote_distance["model"].value

    assert distance(True) < 0.1 < distance(False)


def test_shares_of_1_end_in_the_plain_weights_to_the_bit(config, prepared, tmp_path):
    ones = np.ones(len(prepared.rows), np.float32)

    soft = attempt(config, prepared, tmp_path / "soft", shares=ones)

    assert_same_end(soft, attempt(config, prepared, tmp_path / "plain"))


@pytest.mark.parametrize("stop_after", [4, 7, 11])
def test_a_stopped_run_ends_as_an_undisturbed_one(config, prepared, shares, tmp_path, stop_after):
    whole = attempt(config, prepared, tmp_path / "whole", shares=shares)

    def prepare(engine):
        engine.stop_after = stop_after

    with pytest.raises(Stopped):
        attempt(config, prepared, tmp_path / "cut", prepare=prepare, shares=shares)

    assert_same_end(attempt(config, prepared, tmp_path / "cut", shares=shares), whole)


def first_losses(prepared, shares, rows) -> np.ndarray:
    """(B,) cross-entropies of the plan's pairs `rows`, by the global model's rewards."""
    chosen, rejected = prepared.task.ref_rewards[prepared.plan.pairs[rows]].T.astype(np.float64)
    wins = expit(chosen - rejected)
    return -shares[rows] * np.log(wins) - (1 - shares[rows]) * np.log(1 - wins)


@pytest.mark.parametrize("micro_batch_tokens", [100, 100_000])
def test_a_steps_loss_is_the_weights_times_the_cross_entropies(
    config, prepared, shares, micro_batch_tokens
):
    model = prepared.task.base.trainable(seed=0)
    engine = TorchEngine(model, config.train.model_copy(update={"dropout": False}), WORKER)
    plan = replace(
        prepared.plan, micro_batch_tokens=micro_batch_tokens, in_rows=engine.model.in_rows
    )
    step = next(plan.steps_from(0))
    data = TrainingData(
        prepared.task.tokens, FixedWeights(prepared.weights), lambda rows: [], shares=shares
    )

    loss = step_loss(engine, step, data, WORKER, normalize_weights=False).total

    expected = prepared.weights[step.rows] * first_losses(prepared, shares, step.rows)
    assert loss == pytest.approx(expected.mean(), rel=1e-4)


def test_group_dro_follows_the_cross_entropies(config, prepared, shares, tmp_path):
    step = next(prepared.plan.steps_from(0))
    codes = np.zeros(len(prepared.rows), np.int64)
    codes[step.rows[:2]] = 1
    weights = GroupWeights(prepared.weights, Groups(codes, ("most", "two"), 0.5))
    once = config.model_copy(
        update={"train": config.train.model_copy(update={"max_steps": 1, "dropout": False})}
    )
    first = replace(prepared, plan=replace(prepared.plan, num_steps=1))

    attempt(once, first, tmp_path, weights=weights, shares=shares)

    losses = prepared.weights[step.rows] * first_losses(prepared, shares, step.rows)
    means = losses / len(step.rows) * len(codes)
    odds = math.exp(0.5 * (means[:2].sum() / 2 - means[2:].sum() / (len(codes) - 2)))
    assert weights.group_weights[1] == pytest.approx(odds / (1 + odds), rel=1e-4)


def test_a_coin_is_told_where_people_are_divided_too(config, prepared, shares, tmp_path, caplog):
    slow = config.model_copy(
        update={"train": config.train.model_copy(update={"learning_rate": 1e-12})}
    )

    def without_head(engine):
        for name, weights in engine.parameters.items():
            if name.startswith("classifier"):
                weights.data.zero_()

    attempt(slow, prepared, tmp_path, prepare=without_head, shares=shares)

    assert sum("nothing is being learned" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("soft_labels", [True, False])
def test_other_shares_are_other_training_data_where_they_are_learned(
    tiny_reward_model, tmp_path, soft_labels
):
    def fingerprint(folder, shares):
        train = {"soft_labels": soft_labels}
        config = shared_config(folder, tiny_reward_model, shares, train=train)
        return run_fingerprints(config, load_inputs(config, open_run_dir(config)))["training"]

    ours = fingerprint(tmp_path / "a", SHARES)
    theirs = fingerprint(tmp_path / "b", SHARES | {"a": 0.6})

    assert (ours != theirs) == soft_labels


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "group_dro"])
def test_every_engine_on_any_number_of_workers_fits_them_alike(
    groups, tiny_reward_model, tmp_path, method
):
    engines = [
        {"engine": "torch"},
        {"engine": "deepspeed", "zero_stage": 1},
        {"engine": "deepspeed", "zero_stage": 3},
    ]

    def curves(workers):
        documents = [
            shared_document(
                tmp_path,
                tiny_reward_model,
                experiment=f"on-{workers}-{number}",
                method=method,
                culture_weights={"North": 1.0, "South": 1.0},
                train=engine | {"max_steps": 12},
            )
            for number, engine in enumerate(engines)
        ]
        return [result["loss"] for result in groups.run(workers, run_all, documents)[0]]

    alone = curves(1)

    for loss in [*alone[1:], *curves(2)]:
        np.testing.assert_allclose(loss, alone[0], rtol=1e-4)
