import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scpo_ray.data.synthetic import vocabulary
from scpo_ray.models.export import load_exported
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError, Text
from scpo_ray.results import RunResult, Scale
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import RewardItem
from scpo_ray.settings.naming import safe_name
from scpo_ray.storage.scale_file import save_scale
from scpo_ray.tracking.trackers import MlflowTracker, list_models, start_tracker
from tests.results import run_result
from tests.tracking.test_trackers import make_config, run_python

# MLflow 3.17's own: on SQLAlchemy 2.1, on importing its model types, on pandas 3.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
    "ignore:Operation with range is deprecated",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory, mlflow_database):
    """One database for the module; each test its experiment."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    path.write_bytes(mlflow_database)
    return f"sqlite:///{path}"


def test_a_registered_model_gives_the_same_rewards_in_a_fresh_process(
    tmp_path, store, tiny_reward_model
):
    culture = "Korea, Republic of"
    result = run_result(culture=culture, cultures=(culture, "Chile"))
    tracker = start_tracker(make_config(tmp_path, uri=store, cultures={culture: 1.0}), tmp_path)
    log_with_model(tracker, result, tmp_path, tiny_reward_model)
    log_with_model(tracker, result, tmp_path, tiny_reward_model)

    (model,) = [m for m in list_models(store) if m.run_id == result.run_id]
    assert model.name == f"scpo-{safe_name(culture)}"
    assert (model.version, model.aliases) == (1, ["candidate"])
    assert (model.culture, model.method) == (culture, "scpo")
    after = result.evaluation[culture].after
    assert model.accuracy == {layer: estimate.value for layer, estimate in after.items()}

    one, two, three, *_ = vocabulary()
    texts = [(one, f"{two} {three}"), (one, three), ("", "unknown word")]
    script = f"""
        import mlflow, pandas as pd
        mlflow.set_tracking_uri({store!r})
        model = mlflow.pyfunc.load_model("models:/{model.name}@candidate")
        assert model.metadata.signature.outputs.input_names() == ["reward"]
        assert model.input_example is not None
        frame = pd.DataFrame({texts!r}, columns=["prompt", "response"])
        print(model.predict(frame)["reward"].tolist())
    """
    rewards = json.loads(run_python(script).splitlines()[-1])
    ours = score_texts(
        load_exported(tiny_reward_model, device="cpu"), [Text((), *t) for t in texts]
    )
    assert len(set(rewards)) == 3
    np.testing.assert_allclose(rewards, ours, atol=1e-6)
    for name in (f"{model.name}@candidate", f"{model.name}:candidate", f"{model.name}:1"):
        served = CultureRewards.load({culture: name}, tracking_uri=store)
        assert served.sources == {culture: f"{model.name}:1"}
        found = [r.value for r in served.rewards([RewardItem(text, p) for p, text in texts])]
        np.testing.assert_allclose(found, ours, atol=1e-5)
    with pytest.raises(InputError, match=f"{model.name}:9: no such version; there are: 1, cand"):
        CultureRewards.load({culture: f"{model.name}@9"}, tracking_uri=store)


def test_the_alias_moves_to_the_newest_version_and_not_back(tmp_path, store, tiny_reward_model):
    trackers, results = [], []
    for seed in (0, 1):
        config = make_config(tmp_path, uri=store, cultures={"Peru": 1.0}, seed=seed)
        trackers.append(start_tracker(config, tmp_path / str(seed)))
        results.append(run_result(culture="Peru", seed=seed))
        log_with_model(trackers[seed], results[seed], tmp_path / str(seed), tiny_reward_model)
    log_with_model(trackers[0], results[0], tmp_path / "0", tiny_reward_model)

    versions = [m for m in list_models(store) if m.name == "scpo-Peru"]
    assert [(m.version, m.aliases) for m in versions] == [(2, ["candidate"]), (1, [])]


def test_a_model_that_cannot_be_logged_costs_a_warning(tmp_path, store, caplog):
    tracker = start_tracker(make_config(tmp_path, uri=store, cultures={"Cuba": 1.0}), tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "dangling").symlink_to(tmp_path / "nowhere")

    tracker.log_result(run_result(culture="Cuba"), tmp_path)

    assert "the model could not be written" in caplog.text
    assert "scpo-Cuba" not in {model.name for model in list_models(store)}


def test_models_of_a_database_that_is_not_there_are_not_an_empty_list(tmp_path):
    with pytest.raises(InputError, match="no such database"):
        list_models(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def log_with_model(tracker: MlflowTracker, result: RunResult, run_dir: Path, model: Path) -> None:
    shutil.copytree(model, run_dir / "model", dirs_exist_ok=True)
    tracker.log_result(result, run_dir)


# What it is asked


@pytest.fixture(scope="module")
def logged(tiny_reward_model, tmp_path_factory):
    """The model as MLflow loads it, with a scale."""
    from scpo_ray.tracking.mlflow_model import LoggedRewardModel

    folder = tmp_path_factory.mktemp("logged") / "model"
    shutil.copytree(tiny_reward_model, folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    save_scale(folder, Scale(1.0, 2.0, [-1.0, 0.0, 1.0], 30, "texts"))
    model = LoggedRewardModel()
    model.load_context(
        SimpleNamespace(artifacts={"model": str(folder)}, model_config={"cultures": ["Peru"]})
    )
    return model


def asked(model, rows: list[dict[str, object]], **params: str) -> list[float]:
    import pandas as pd

    return list(model.predict(None, pd.DataFrame(rows), params or None)["reward"])


def test_messages_and_columns_in_one_frame_give_the_rewards_that_are_given_here(logged):
    one, two, three, *_ = vocabulary()
    talk = [("user", one), ("assistant", two), ("user", three), ("assistant", one)]
    messages = [{"role": role, "content": said} for role, said in talk]

    rewards = asked(logged, [{"prompt": one, "response": two}, {"messages": messages}])

    texts = [Text((), one, two), Text(tuple(talk[:2]), three, one)]
    np.testing.assert_allclose(rewards, score_texts(logged.reward_model, texts), atol=1e-6)


def test_a_scale_is_asked_for_by_name(logged):
    rows = [{"prompt": "a", "response": "b"}]
    [raw] = asked(logged, rows, culture="Peru")

    [standardised] = asked(logged, rows, scale="standardised")
    [probability] = asked(logged, rows, scale="probability")

    assert standardised == pytest.approx((raw - 1.0) / 2.0, abs=1e-6)
    assert probability == pytest.approx((raw + 1.0) / 2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "params", "message"),
    [
        ({"prompt": "a"}, {}, "row 0: give prompt and response, or messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, {}, "row 0: messages must end with"),
        ({"prompt": "a", "response": "b"}, {"culture": "Chile"}, "'Chile': this model is of Peru"),
        ({"prompt": "a", "response": "b"}, {"scale": "best"}, "'best': must be raw, standardised"),
    ],
)
def test_what_cannot_be_answered_is_one_error(logged, row, params, message):
    with pytest.raises(InputError, match=message):
        asked(logged, [row], **params)


def test_the_device_is_the_one_that_mlflow_is_told(logged, tiny_reward_model, monkeypatch):
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu")
    model = type(logged)()
    model.load_context(
        SimpleNamespace(artifacts={"model": str(tiny_reward_model)}, model_config=None)
    )

    assert model.reward_model.device == "cpu"
    with pytest.raises(InputError, match="saved without a scale"):
        asked(model, [{"prompt": "a", "response": "b"}], scale="probability")


def test_a_model_on_its_way_has_a_name_that_a_killed_writer_leaves(
    tmp_path, store, tiny_reward_model, monkeypatch
):
    config = make_config(tmp_path, uri=store, cultures={"Fiji": 1.0})
    tracker, seen = start_tracker(config, tmp_path), set[str]()
    before = {path.name for path in tmp_path.iterdir()} | {"model"}
    send = tracker._client.log_model_artifacts

    def look(*arguments: object) -> None:
        seen.update(path.name for path in tmp_path.iterdir())
        send(*arguments)

    monkeypatch.setattr(tracker._client, "log_model_artifacts", look)
    log_with_model(tracker, run_result(culture="Fiji"), tmp_path, tiny_reward_model)

    [name] = seen - before
    assert name.startswith(".mlflow-") and name.endswith(".part")
