"""Registered models and their champion, in a real MLflow store."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_ray.records import InputError
from scpo_ray.results import RunResult
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.disk import whole_folder
from scpo_ray.storage.run_dir import RunDir
from scpo_ray.tracking.mlflow_store import find_run, open_models
from scpo_ray.tracking.registry import compare_versions, promote, register_champion
from scpo_ray.tracking.trackers import list_models, start_tracker
from tests.evaluation.test_champion import mexico, with_texts
from tests.results import run_result
from tests.tracking.test_trackers import make_config

# MLflow 3.17's own: on SQLAlchemy 2.1, on importing its model types, on pandas 3.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
    "ignore:Operation with range is deprecated",
)
DEFAULT_PAIRS = mexico()


@pytest.fixture
def store(tmp_path, mlflow_database) -> str:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    return f"sqlite:///{tmp_path}/mlflow.db"


class Run:
    """A finished run of a culture's model with given outcomes, tracked without its model."""

    def __init__(self, folder: Path, store: str, outcomes=DEFAULT_PAIRS, *, seed: int = 0) -> None:
        self.config: RunConfig = make_config(
            folder, uri=store, cultures={"Mexico": 1.0}, seed=seed
        ).model_copy(update={"experiment": "registry"})
        self.config = self.config.model_copy(
            update={"tracking": self.config.tracking.model_copy(update={"log_model": False})}
        )
        self.result: RunResult = replace(
            run_result(culture="Mexico", seed=seed),
            config={
                "evaluation": {"distinctive_threshold": 0.5, "bootstrap_samples": 200},
                "data": {"split": {"dev_size": 0.15}},
            },
        )
        self.folder = folder / str(seed)
        with whole_folder(self.folder / "model") as part:
            (part / "weights").write_text("some")
        columns = {name: values for name, values in vars(outcomes).items() if values is not None}
        run_dir = RunDir(self.folder, folder)
        run_dir.save_dev_pairs(columns)
        # What the models do with test users must have no say.
        run_dir.save_test_pairs({**columns, "margin": -columns["margin"]})
        self.track()

    def track(self, **settings: object) -> None:
        tracking = self.config.tracking.model_copy(update=settings)
        tracker = start_tracker(self.config.model_copy(update={"tracking": tracking}), self.folder)
        tracker.log_result(self.result, self.folder)
        tracker.finish("FINISHED")

    def register(self):
        return register_champion(self.config, self.result, self.folder)


def aliases(store: str) -> dict[str, int]:
    return open_models(store, "scpo-")[1]["scpo-Mexico"]


def tags(store: str, version: int) -> dict[str, str]:
    client, _ = open_models(store, "scpo-")
    return client.get_model_version("scpo-Mexico", str(version)).tags


def test_the_first_model_is_champion_in_its_own_run(tmp_path, store):
    run = Run(tmp_path, store)
    _, before = find_run(run.config, run.folder)

    verdict = run.register()

    assert (verdict.is_champion, verdict.reason) == (True, "there was no champion")
    assert (verdict.model, verdict.champion) == ("scpo-Mexico:1", "")
    assert aliases(store) == {"champion": 1}
    client, after = find_run(run.config, run.folder)
    assert after.info.run_id == client.get_model_version("scpo-Mexico", "1").run_id
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    logged = {a.path for a in client.list_artifacts(after.info.run_id)}
    assert {"dev_pairs.parquet", "test_pairs.parquet"} <= logged
    assert tags(store, 1)["scpo.champion.against"] == "none"


def test_a_better_model_takes_the_place_and_a_worse_one_does_not(tmp_path, store):
    first, better, worse = (
        Run(tmp_path, store, outcomes, seed=seed)
        for seed, outcomes in enumerate([mexico(), mexico(6), mexico(12, lost=1)])
    )
    first.register()

    won = better.register()
    lost = worse.register()

    assert (won.is_champion, won.champion) == (True, "scpo-Mexico:1")
    assert (lost.is_champion, lost.champion) == (False, "scpo-Mexico:2")
    assert aliases(store) == {"champion": 2, "candidate": 3}
    assert "T" in tags(store, 1)["scpo.champion_until"]
    assert "scpo.champion_until" not in tags(store, 2)
    assert "scpo.not_champion" not in tags(store, 2)
    assert tags(store, 3)["scpo.not_champion"] == lost.reason
    assert tags(store, 3)["scpo.champion.margin"] == "0.02"
    assert (lost.side, tags(store, 3)["scpo.champion.side"]) == ("dev", "dev")
    # One of each user's 30 agreed pairs, and as much more as was never seen of others.
    assert tags(store, 3)["scpo.champion.agreed"].startswith("-3.33 [-5.")
    assert tags(store, 3)["scpo.champion.since_first_agreed"].startswith("-3.33 [-5.")
    assert tags(store, 3)["scpo.champion.other_cultures"].startswith("+0.00 [-1.")
    assert [tags(store, n)["scpo.champion_first"] for n in (1, 2)] == ["scpo-Mexico:1"] * 2
    assert (lost.first, won.first) == ("scpo-Mexico:1", "scpo-Mexico:1")


def test_registering_again_is_the_same_as_once(tmp_path, store):
    runs = [
        Run(tmp_path, store, outcomes, seed=seed)
        for seed, outcomes in enumerate([mexico(), mexico(6), mexico(12, lost=1)])
    ]
    verdicts = [run.register() for run in runs]
    before = [tags(store, version) for version in (1, 2, 3)]

    again = [run.register() for run in runs]

    assert again == verdicts
    assert [tags(store, version) for version in (1, 2, 3)] == before
    assert aliases(store) == {"champion": 2, "candidate": 3}
    assert len(list_models(store)) == 3


def test_a_decision_that_was_cut_short_is_taken_again(tmp_path, store):
    first, better = Run(tmp_path, store), Run(tmp_path, store, mexico(6), seed=1)
    first.register()
    verdict = better.register()
    client, _ = open_models(store, "scpo-")
    client.delete_model_version_tag("scpo-Mexico", "2", "scpo.champion.decided")

    assert better.register() == verdict
    assert aliases(store) == {"champion": 2}
    assert "scpo.champion.decided" in tags(store, 2)


def test_a_promotion_by_force_that_was_cut_short_stays_one(three):
    verdict = promote(three, "scpo-Mexico:2", force=True)
    before = tags(three, 2)
    client, _ = open_models(three, "scpo-")
    client.delete_model_version_tag("scpo-Mexico", "2", "scpo.champion.decided")
    folder = Path(three.removeprefix("sqlite:///")).parent

    again = Run(folder, three, mexico(12, lost=1), seed=1).register()

    assert again == verdict
    assert tags(three, 2).keys() == before.keys()
    assert tags(three, 2)["scpo.promoted_by_force"] == before["scpo.promoted_by_force"]


def test_training_alone_makes_candidates_and_no_champion(tmp_path, store):
    first, second, third = (Run(tmp_path, store, seed=seed) for seed in range(3))
    first.track(log_model=True)
    second.track(log_model=True)
    assert aliases(store) == {"candidate": 2}

    assert second.register().is_champion
    first.track(log_model=True)
    second.track(log_model=True)

    assert aliases(store) == {"champion": 2}
    third.track(log_model=True)
    assert aliases(store) == {"champion": 2, "candidate": 3}


def test_a_champion_whose_test_pairs_are_others_or_lost_stays(tmp_path, store):
    first = Run(tmp_path, store)
    first.register()
    other_pairs = Run(tmp_path, store, mexico(users=10), seed=1).register()
    _, run = find_run(first.config, first.folder)
    artifact = Path(run.info.artifact_uri.removeprefix("file://")) / "dev_pairs.parquet"

    artifact.write_text("no table")
    damaged = Run(tmp_path, store, seed=2).register()
    pq.write_table(pa.table({"culture": ["Mexico"]}), artifact)
    strange = Run(tmp_path, store, seed=3).register()
    artifact.unlink()
    lost = Run(tmp_path, store, seed=4).register()

    assert aliases(store) == {"champion": 1, "candidate": 5}
    assert "the two differ in their pairs: row 10 is" in other_pairs.reason
    with pytest.raises(InputError, match="scpo-Mexico:2 and scpo-Mexico:3: it cannot be compared"):
        compare_versions(store, "scpo-Mexico:2", "scpo-Mexico:3")
    assert "scpo-Mexico:1: dev_pairs.parquet cannot be read" in damaged.reason
    assert "dev_pairs.parquet cannot be read (it is not what was written)" in strange.reason
    assert lost.reason == (
        "it cannot be compared: scpo-Mexico:1: its MLflow run has no dev_pairs.parquet"
    )


@pytest.mark.parametrize("old_has_dev", [False, True])
def test_without_dev_users_models_are_compared_on_test_users_with_their_like_alone(
    old_has_dev, tmp_path, store
):
    first, second, other = (Run(tmp_path, store, seed=seed) for seed in range(3))
    for run in (other,) if old_has_dev else (first, second):
        config = {**run.result.config, "data": {"split": {"dev_size": 0.0}}}
        run.result = replace(run.result, dev={}, config=config)
        (run.folder / "dev_pairs.parquet").unlink()
        run.track()

    first.register()
    alike, apart = second.register(), other.register()

    old, new = ("dev users", "test users") if old_has_dev else ("test users", "dev users")
    sizes = {"dev users": "0.15", "test users": "0"}
    assert (alike.side, len(alike.contests) > 0) == (old.split()[0], True)
    assert (apart.is_champion, apart.contests) == (False, [])
    assert apart.reason == (
        f"it cannot be compared: scpo-Mexico:3 on {new} (data.split.dev_size {sizes[new]}) and "
        f"scpo-Mexico:1 on {old} (data.split.dev_size {sizes[old]}) are judged on different "
        "people: train scpo-Mexico:3 anew with the data.split of scpo-Mexico:1, or promote it by "
        "force"
    )
    with pytest.raises(InputError, match="scpo-Mexico:1 on .* are judged on different people"):
        compare_versions(store, "scpo-Mexico:3", "scpo-Mexico:1")


def test_the_same_rows_with_other_labels_are_no_test_of_the_champion(tmp_path, store):
    Run(tmp_path, store, with_texts(mexico())).register()
    same = Run(tmp_path, store, with_texts(mexico(6)), seed=1).register()
    turned = Run(tmp_path, store, with_texts(mexico(12), turned=True), seed=2).register()

    assert same.is_champion
    assert (turned.is_champion, turned.contests) == (False, [])
    assert "the two differ in their texts: in 1800 of 1800 pairs" in turned.reason


def test_a_run_that_was_never_tracked_is_tracked_first(tmp_path, store):
    run = Run(tmp_path, store)
    client, known = find_run(run.config, run.folder)
    client.delete_run(known.info.run_id)

    assert run.register().is_champion

    _, found = find_run(run.config, run.folder)
    assert found.info.run_id != known.info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.metrics["accuracy/all/Mexico"] > 0


def test_what_cannot_be_registered_is_named(tmp_path, store):
    run = Run(tmp_path, store)
    untracked = run.config.model_copy(
        update={"tracking": make_config(tmp_path, tracker="none").tracking}
    )
    with pytest.raises(InputError, match="tracking.tracker = none: models are registered"):
        register_champion(untracked, run.result, run.folder)
    with pytest.raises(InputError, match="dev_pairs.parquet: cannot be read"):
        (run.folder / "dev_pairs.parquet").unlink()
        run.register()
    with pytest.raises(InputError, match=r"no model to register \(method scpo\)"):
        (run.folder / "model").rename(run.folder / "elsewhere")
        run.register()
    assert open_models(store, "scpo-")[1] == {}


# Compared and promoted by hand


@pytest.fixture
def three(tmp_path, store) -> str:
    """A champion, 1; a model that may not follow it, 2; one that has not been judged and may, 3."""
    Run(tmp_path, store, mexico()).register()
    Run(tmp_path, store, mexico(12, lost=1), seed=1).register()
    Run(tmp_path, store, mexico(6), seed=2).track(log_model=True)
    return store


def test_comparing_changes_nothing_and_says_what_promoting_would(three):
    before = [tags(three, version) for version in (1, 2, 3)]

    refused = compare_versions(three, "scpo-Mexico:2", "scpo-Mexico:champion")
    allowed = compare_versions(three, "scpo-Mexico:candidate", "scpo-Mexico:1")

    assert (refused.model, refused.champion) == ("scpo-Mexico:2", "scpo-Mexico:1")
    assert (refused.is_champion, allowed.is_champion) == (False, True)
    assert refused.reason == before[1]["scpo.not_champion"]
    assert allowed.model == "scpo-Mexico:3"
    assert [tags(three, version) for version in (1, 2, 3)] == before
    assert promote(three, "scpo-Mexico:candidate", force=False) == allowed


def test_a_version_is_not_compared_with_itself(three):
    with pytest.raises(InputError, match="are one version, scpo-Mexico:1: name two"):
        compare_versions(three, "scpo-Mexico:1", "scpo-Mexico:champion")
    promote(three, "scpo-Mexico:3", force=False)

    back = compare_versions(three, "scpo-Mexico:1", "scpo-Mexico:champion")

    assert back.first == "scpo-Mexico:1"
    assert {contest.against for contest in back.contests} == {"champion"}


def test_promoting_follows_the_rule(three):
    refused = promote(three, "scpo-Mexico:2", force=False)
    assert (refused.is_champion, aliases(three)) == (False, {"champion": 1, "candidate": 3})

    assert promote(three, "scpo-Mexico:3", force=False).is_champion
    assert aliases(three) == {"champion": 3}
    assert "scpo.champion_until" in tags(three, 1)
    again = promote(three, "scpo-Mexico:champion", force=False)
    assert (again.is_champion, again.reason) == (True, "it is the champion already")


def test_force_overrides_the_rule_and_is_recorded(three):
    verdict = promote(three, "scpo-Mexico:2", force=True)

    assert verdict.is_champion
    assert verdict.reason.startswith(
        "promoted by force, though it is not shown to be as good, in points: agreed"
    )
    assert aliases(three) == {"champion": 2, "candidate": 3}
    assert tags(three, 2)["scpo.promoted_by_force"].startswith("it is not shown to be as good")
    assert "scpo.not_champion" not in tags(three, 2)

    # Back by force again: the first is champion as if it had never been replaced.
    promote(three, "scpo-Mexico:1", force=True)
    assert aliases(three) == {"champion": 1, "candidate": 3}
    assert "scpo.champion_until" not in tags(three, 1)
    assert "scpo.champion_until" in tags(three, 2)


def test_losses_since_the_first_champion_add_up_and_force_begins_a_new_line(tmp_path, store):
    # One of 180 pairs of another culture at a time is within the margin, two are not.
    line = [mexico(6 * step, others=step, pairs=180) for step in range(4)]
    runs = [Run(tmp_path, store, outcomes, seed=seed) for seed, outcomes in enumerate(line)]

    steps = [run.register() for run in runs[:3]]
    forced = promote(store, "scpo-Mexico:3", force=True)
    after = runs[3].register()

    assert [step.is_champion for step in steps] == [True, True, False]
    assert "other cultures against the first champion -1.11 [" in steps[2].reason
    assert (forced.is_champion, forced.first) == (True, "scpo-Mexico:1")
    assert (after.is_champion, after.first) == (True, "scpo-Mexico:3")
    assert tags(store, 4)["scpo.champion_first"] == "scpo-Mexico:3"


def test_force_that_was_not_needed_is_not_recorded(three):
    assert promote(three, "scpo-Mexico:3", force=True).is_champion

    assert "scpo.promoted_by_force" not in tags(three, 3)


def test_a_version_that_is_not_there_is_named_with_those_that_are(three):
    for name, message in {
        "scpo-Mexico": "which version? As in scpo-Mexico:champion",
        "scpo-Mexico:": "which version?",
        ":3": "which version?",
        "scpo-Peru:1": "no such model; there are: scpo-Mexico",
        "scpo-' OR '1:1": "no such model",
        "scpo-Mexico:9": "no such version; there are: 1, 2, 3, candidate, champion",
        "scpo-Mexico:best": "no such version; there are: 1, 2, 3",
        "scpo-Mexico:0": "no such version",
        "scpo-Mexico:²": "no such version",
    }.items():
        with pytest.raises(InputError) as caught:
            promote(three, name, force=False)

        assert str(caught.value).startswith(f"{name}: {message}")
        assert "\n" not in str(caught.value)


def test_the_command_line_compares_and_promotes(three, scpo):
    listed = scpo("models", "--uri", three)
    assert (listed.code, listed.out.count("scpo-Mexico")) == (0, 3)

    compared = scpo("models", "compare", "scpo-Mexico:2", "scpo-Mexico:champion", "--uri", three)
    assert compared.code == 0
    assert "scpo-Mexico:2 against scpo-Mexico:1" in compared.out
    for words in ("all ", "distinctive ", "agreed ", "other cultures ", "low end > -2.0: no"):
        assert words in compared.out
    assert (
        "scpo-Mexico:2 could not replace scpo-Mexico:1: it is not shown to be as good"
        in compared.err
    )

    refused = scpo("models", "--uri", three, "--json", "promote", "scpo-Mexico:2")
    assert refused.code == 2
    assert json.loads(refused.out)["is_champion"] is False
    assert "scpo-Mexico:2 is not champion: it is not shown to be as good" in refused.err

    forced = scpo("models", "promote", "scpo-Mexico:2", "--force", "--uri", three)
    assert forced.code == 0
    assert "scpo-Mexico:2 is champion: promoted by force" in forced.err
    missing = scpo("models", "promote", "scpo-Mexico:7", "--uri", three)
    assert (missing.code, missing.out) == (2, "")
    away = scpo("models", "compare", "a:1", "b:1", "--uri", f"{three}.away")
    assert (away.code, "no such database" in away.err) == (2, True)
