"""One run from its config to its result: what is trained, evaluated, kept and not done again."""

import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from safetensors.torch import load_file

import scpo_ray.launch.worker
import scpo_ray.methods.network
from scpo_ray.data.hashes import pair_hashes, text_hash
from scpo_ray.evaluation.scales import reference_scale
from scpo_ray.experiment import load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import start_run
from scpo_ray.models.export import load_exported
from scpo_ray.models.files import model_fingerprint
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import InputError, Worker
from scpo_ray.results import Passes
from scpo_ray.settings.model import LoraConfig
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.json_lines import append_json_lines
from scpo_ray.storage.run_dir import load_dev_pairs, load_result, load_test_pairs
from scpo_ray.storage.scale_file import load_scale
from scpo_ray.tracking.trackers import SPOOL_FILE
from scpo_ray.training.loop import DivergedError
from tests.tiny import tiny_config

WORKER = Worker(rank=0, world_size=1, device="cpu")


def with_model(config: RunConfig, **settings) -> RunConfig:
    """The config with settings of its model section changed."""
    return config.model_copy(update={"model": config.model.model_copy(update=settings)})


def prepared(config):
    run_dir = open_run_dir(config)
    return prepare_run(config, load_inputs(config, run_dir), WORKER)


@pytest.fixture(scope="module")
def finished(tiny_reward_model, tmp_path_factory):
    """A run of scpo on North alone: its config, result and folder."""
    config = tiny_config(tiny_reward_model, tmp_path_factory.mktemp("runs"))
    return config, *start_run(config)


def test_a_run_leaves_model_result_and_report_and_no_checkpoint(finished):
    config, result, folder = finished

    assert folder == config.output_dir / "tiny" / f"scpo-North-s0-{config.run_id}"
    assert load_result(folder) == result
    files = {path.name for path in folder.iterdir()}
    assert {"model", "result.json", "report.html", "run.json", "test_pairs.parquet"} <= files
    assert "checkpoints" not in files
    assert not list(folder.rglob("*.part"))


def test_a_result_says_what_was_done(finished):
    config, result, folder = finished

    assert (result.method, result.seed, result.run_id) == ("scpo", 0, config.run_id)
    assert (result.num_steps, result.num_pairs_seen) == (12, 96)
    assert result.culture_weights == {"North": 1.0}
    assert list(result.selection) == ["North"]
    assert list(result.evaluation) == ["North", "South"]
    assert result.fingerprints.keys() == {"data", "model", "scores"}
    assert {e.culture for e in result.examples} == {"North"}
    assert result.model_dir == str(folder / "model")
    assert result.passes == Passes(train_tokens=2_048, inference_tokens=2_048, in_rows=True)


def test_the_saved_model_gives_the_margins_that_were_evaluated(finished):
    config, result, folder = finished
    data = prepared(config)
    model = load_exported(folder / "model", device="cpu")

    rewards = score_tokens(model, data.task.tokens)

    columns = load_test_pairs(folder)
    test = data.task.data.test
    np.testing.assert_allclose(
        rewards[test.chosen] - rewards[test.rejected], columns["margin"], atol=1e-5
    )
    hashes = [
        [text_hash(data.task.data.texts[int(text)]) for text in texts]
        for texts in (test.chosen, test.rejected)
    ]
    np.testing.assert_array_equal(columns["pair_hash"], pair_hashes(*np.uint64(hashes)))
    for culture, evaluation in result.evaluation.items():
        right = columns["margin"][columns["culture"] == culture] > 0
        assert evaluation.after["all"].value == pytest.approx(right.mean())


def test_the_saved_model_has_its_scale_on_texts_that_all_cultures_share(finished):
    config, result, folder = finished
    data = prepared(config).task.data
    texts = np.union1d(data.train.chosen, data.train.rejected)
    rewards = score_tokens(
        load_exported(folder / "model", device="cpu"), prepared(config).task.tokens
    )

    scale = load_scale(folder / "model")

    assert set(data.train.cultures) == {"North", "South"}
    assert scale.num_texts == len(texts) < 1_000
    assert scale.mean == pytest.approx(rewards[texts].mean(), abs=1e-5)
    assert scale.spread == pytest.approx(rewards[texts].std(ddof=1), abs=1e-5)
    assert scale.references == reference_scale(data, rewards).references


def test_a_run_is_measured_on_dev_users_apart(finished):
    config, result, folder = finished
    task = prepared(config).task
    columns = load_dev_pairs(folder)

    assert result.chosen_on == "dev" and list(result.dev) == list(result.evaluation)
    assert len(columns["margin"]) == len(task.data.dev) > 0
    assert not set(columns["cluster"]) & set(load_test_pairs(folder)["cluster"])
    for culture, evaluation in result.dev.items():
        mine = columns["culture"] == culture
        assert evaluation.after["all"].value == pytest.approx((columns["margin"][mine] > 0).mean())
        before = task.ref_rewards[task.data.dev.chosen] > task.ref_rewards[task.data.dev.rejected]
        assert evaluation.before["all"].value == pytest.approx(before[mine].mean())


def test_without_dev_users_there_is_nothing_of_them(tiny_reward_model, tmp_path):
    config = tiny_config(
        tiny_reward_model, tmp_path, method="global", data={"split": {"dev_size": 0}}
    )

    result, folder = start_run(config)

    assert (result.dev, result.chosen_on) == ({}, "test")
    assert not (folder / "dev_pairs.parquet").exists()


def test_a_finished_run_is_read_and_not_run_again(finished, monkeypatch):
    config, result, folder = finished

    def refuse(*arguments):
        raise AssertionError("the run was run again")

    monkeypatch.setattr(scpo_ray.launch.worker, "prepare_run", refuse)

    assert start_run(config) == (result, folder)


def test_a_run_that_ended_is_read_where_it_could_not_be_made(finished):
    config, result, folder = finished
    elsewhere = {"device": "cuda", "launch": config.launch.model_copy(update={"on": "ray"})}

    assert start_run(config.model_copy(update=elsewhere)) == (result, folder)


def test_the_same_run_elsewhere_has_the_same_weights(finished, tmp_path):
    config, result, folder = finished

    again, other = start_run(config.model_copy(update={"output_dir": tmp_path}))

    ours, theirs = (p / "model" / "model.safetensors" for p in (other, folder))
    assert ours.read_bytes() == theirs.read_bytes()
    assert again.evaluation == result.evaluation
    assert again.curve == result.curve
    assert again.run_id == result.run_id


def test_the_global_method_needs_no_training(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path, method="global")

    result, folder = start_run(config)

    assert (result.num_steps, result.num_pairs_seen, result.curve.step) == (0, 0, [])
    assert result.model_dir == str(tiny_reward_model)
    assert not (folder / "model").exists()
    for evaluation in result.evaluation.values():
        assert evaluation.before == evaluation.after
        assert evaluation.after["distinctive"].value == 0.0
        assert evaluation.after["agreed"].value == 1.0
        assert evaluation.difference["all"].value == 0.0


@pytest.mark.parametrize(
    ("method", "filters", "weighting"),
    [
        ("finetune", False, "none"),
        ("filter", True, "none"),
        ("weight", False, "agreement"),
        ("inverse", False, "inverse"),
        ("scpo", True, "agreement"),
    ],
)
def test_every_method_selects_and_weighs_as_it_says(
    tiny_reward_model, tmp_path, method, filters, weighting
):
    config = tiny_config(
        tiny_reward_model, tmp_path, method=method, selection={"filter_threshold": 0.5}
    )

    run = prepared(config)

    chosen, rejected = run.task.ref_pair_rewards
    margins, pairs = (chosen - rejected).numpy(), run.task.train_pairs
    kept = margins < 0 if filters else np.ones(len(pairs), dtype=bool)
    weights = {
        "none": np.ones(len(pairs)),
        "agreement": np.minimum(np.exp(margins / 1.1), 1),
        "inverse": np.maximum(np.exp(-margins), 1),
    }[weighting]
    np.testing.assert_array_equal(run.rows, np.flatnonzero(kept))
    np.testing.assert_allclose(run.weights, weights[kept], rtol=1e-5)
    assert run.plan is not None and len(run.plan.pairs) == kept.sum()


def test_a_global_model_is_made_from_a_plain_backbone(tiny_backbone, tmp_path):
    config = tiny_config(
        tiny_backbone,
        tmp_path / "runs",
        method="finetune",
        culture_weights={"North": 1.0, "South": 1.0},
    )

    result, folder = start_run(with_model(config, new_head=True))

    for evaluation in result.evaluation.values():
        assert list(evaluation.after) == ["all"]
        assert (evaluation.before, evaluation.difference) == ({}, {})
        assert "global_noise" not in evaluation.controls
    assert result.examples == []
    next_config = tiny_config(folder / "model", tmp_path / "runs")
    following, _ = start_run(next_config)
    for culture, evaluation in following.evaluation.items():
        assert evaluation.before["all"].value == result.evaluation[culture].after["all"].value


def test_a_culture_at_weight_0_is_left_out(finished, tmp_path):
    config, result, folder = finished
    without = config.model_copy(
        update={"output_dir": tmp_path, "culture_weights": {"North": 1.0, "South": 0.0}}
    )

    zero, other = start_run(without)

    ours, theirs = (load_file(p / "model" / "model.safetensors") for p in (other, folder))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert list(zero.selection) == ["North"]
    assert zero.evaluation == result.evaluation


def test_a_mixture_multiplies_a_pairs_weight_by_its_cultures(tiny_reward_model, tmp_path):
    def weights(**culture_weights):
        run = prepared(tiny_config(tiny_reward_model, tmp_path, culture_weights=culture_weights))
        codes = run.task.train_pairs.culture_codes[run.rows]
        names = [run.task.train_pairs.cultures[code] for code in codes]
        return {c: run.weights[[n == c for n in names]] for c in culture_weights}

    even, mixed = weights(North=1.0, South=1.0), weights(North=1.0, South=0.3)

    np.testing.assert_array_equal(mixed["North"], even["North"])
    np.testing.assert_allclose(mixed["South"], 0.3 * even["South"], rtol=1e-6)
    assert len(even["North"]) and len(even["South"])


def test_without_culture_weights_every_culture_counts_at_1(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path).model_copy(update={"culture_weights": None})

    run = prepared(config)

    assert run.task.culture_weights == {"North": 1.0, "South": 1.0}
    assert len(run.task.train_pairs) == len(run.task.data.train)


def test_a_data_fraction_trains_on_fewer_users_and_tests_on_the_same(tiny_reward_model, tmp_path):
    whole = prepared(tiny_config(tiny_reward_model, tmp_path))

    half = prepared(tiny_config(tiny_reward_model, tmp_path, data={"data_fraction": 0.5}))

    def users(run):
        return set(run.task.train_pairs.cluster_codes.tolist())

    assert users(half) < users(whole)
    assert len(users(half)) == round(len(users(whole)) / 2)
    assert half.task.data.test.cluster_codes.tolist() == whole.task.data.test.cluster_codes.tolist()
    assert [half.task.data.interaction_ids[i] for i in half.task.data.test.interactions] == [
        whole.task.data.interaction_ids[i] for i in whole.task.data.test.interactions
    ]


def test_adapters_train_evaluate_and_load_again(tiny_reward_model, tmp_path):
    config = with_model(tiny_config(tiny_reward_model, tmp_path), lora=LoraConfig(rank=4))

    _, folder = start_run(config)

    run = prepared(config)
    model = load_exported(folder / "model", device="cpu")
    rewards = score_tokens(model, run.task.tokens)
    margins = load_test_pairs(folder)["margin"]
    test = run.task.data.test
    assert (folder / "model" / "adapter_model.safetensors").is_file()
    np.testing.assert_allclose(rewards[test.chosen] - rewards[test.rejected], margins, atol=1e-5)
    assert model_fingerprint(folder / "model", config.model)


def test_a_run_that_diverges_leaves_no_result_and_can_be_tried_again(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path, train={"learning_rate": 1e30})

    for _ in range(2):
        with pytest.raises(DivergedError, match="training stopped at step"):
            start_run(config)

    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_another_process_holds_is_refused(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path)

    with open_run_dir(config).locked(wait_s=0):
        with pytest.raises(InputError, match="another process is running this run"):
            start_run(config)


def test_no_pair_after_the_filter_names_every_such_culture(tiny_reward_model, tmp_path):
    config = tiny_config(
        tiny_reward_model,
        tmp_path,
        culture_weights={"North": 1.0, "South": 1.0},
        selection={"filter_threshold": 1e-6},
    )

    with pytest.raises(InputError, match="nothing to train on") as caught:
        prepared(config)

    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["North", "South"]
    assert all(
        "left at selection.filter_threshold = 1e-06" in problem for problem in caught.value.problems
    )


def test_a_global_model_that_changes_under_a_run_is_refused(tiny_reward_model, tmp_path):
    model = tmp_path / "global"
    shutil.copytree(tiny_reward_model, model)
    config = tiny_config(model, tmp_path / "runs")
    _, folder = start_run(config)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)

    with pytest.raises(InputError, match="began with other input\n  model fingerprint then"):
        start_run(config)

    (folder / "result.json").unlink()
    with pytest.raises(InputError, match="model fingerprint then"):
        start_run(config)


def test_another_evaluation_of_a_run_trains_nothing(finished, tmp_path, monkeypatch):
    config, result, folder = finished
    shutil.copytree(folder.parents[1], tmp_path / "runs")
    looked = {"evaluation": config.evaluation.model_copy(update={"distinctive_threshold": 0.3})}
    config = config.model_copy(update={"output_dir": tmp_path / "runs", **looked})

    def refuse(*arguments, **settings):
        raise AssertionError("the run was trained again")

    monkeypatch.setattr(scpo_ray.methods.network, "train", refuse)
    again, place = start_run(config)

    assert again.run_id == result.run_id and place.name == folder.name
    assert again.evaluation_id != result.evaluation_id
    assert again.curve == result.curve and again.train_seconds == result.train_seconds
    for culture, evaluation in again.evaluation.items():
        assert evaluation.after["all"] == result.evaluation[culture].after["all"]
    assert again.evaluation != result.evaluation
    assert load_result(place) == again
    # And back: the first evaluation is made again, to the same numbers.
    first = config.model_copy(update={"evaluation": finished[0].evaluation})
    assert start_run(first)[0].evaluation == result.evaluation


def test_another_culture_to_test_on_trains_nothing(tiny_reward_model, tmp_path, monkeypatch):
    of_both = tiny_config(tiny_reward_model, tmp_path)
    data = of_both.data.model_copy(update={"cultures": ["North"]})
    alone, folder = start_run(of_both.model_copy(update={"data": data}))

    def refuse(*arguments, **settings):
        raise AssertionError("the run was trained again")

    monkeypatch.setattr(scpo_ray.methods.network, "train", refuse)
    both, place = start_run(of_both)

    assert place == folder
    assert list(alone.evaluation) == ["North"] and list(both.evaluation) == ["North", "South"]
    assert both.evaluation["North"] == alone.evaluation["North"]


@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
    "ignore:Operation with range is deprecated",
)
def test_a_run_that_ended_without_its_store_is_tracked_when_found_again(
    tiny_reward_model, mlflow_database, tmp_path
):
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    config = tiny_config(
        tiny_reward_model, tmp_path, tracking={"tracker": "mlflow", "log_model": False}
    )
    result, folder = start_run(config)
    point = {"key": "late", "value": 0.5, "timestamp": 1_700_000_000_000, "step": 12}
    append_json_lines(folder / SPOOL_FILE, [point])

    assert start_run(config) == (result, folder)

    assert not (folder / SPOOL_FILE).exists()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        found = store.execute("select value, step from metrics where key = 'late'").fetchall()
        runs = store.execute("select status from runs").fetchall()
    assert found == [(0.5, 12)]
    assert runs == [("FINISHED",)]
