"""The global model's rewards computed by Ray Data's workers, against those of one process."""

import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

import scpo_ray.storage.stores
from scpo_ray.experiment import RunInputs, global_rewards, load_inputs
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.ray_score import score_on_ray
from scpo_ray.launch.worker import local_worker
from scpo_ray.records import InputError
from scpo_ray.settings.run import RunConfig
from tests.launch.clusters import TIMEOUT_S
from tests.launch.test_bad_places import cut_weights, spoil_with_nan
from tests.test_cli import in_process, start_process, write_yaml
from tests.tiny import tiny_config, tiny_document

pytestmark = [
    pytest.mark.ray,
    # Ray warns of settings of its own, and leaves files to the collector.
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# Some 4,200 texts in 66 small parts, and small batches: long enough to be killed midway.
DATA = {"users": {"Majority": 10, "North": 70, "South": 70}, "interactions_per_user": 10}
MODEL = {"inference_batch_tokens": 256}
TEXTS_PER_PART, NUM_PARTS = 64, 66


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(scpo_ray.storage.stores, "_TEXTS_PER_PART", TEXTS_PER_PART)


class Scoring(NamedTuple):
    """A config whose scores are wanted, and the parts they are kept in."""

    config: RunConfig
    inputs: RunInputs

    @property
    def parts(self) -> list[Path]:
        model = self.inputs.global_model
        return sorted(model.stores.scores.path(model.score_key).glob("part-*"))

    def contents(self) -> set[tuple[bytes, bytes]]:
        """Which texts and their rewards stand together, whatever a part's number is."""
        files = ("hashes.npy", "values.npy")
        return {tuple((part / file).read_bytes() for file in files) for part in self.parts}

    def written(self) -> dict[str, tuple[int, int]]:
        """Which file it is and when it was written."""
        states = {part.name: (part / "values.npy").stat() for part in self.parts}
        return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def scoring(model: Path, folder: Path, **sections: Any) -> Scoring:
    config = tiny_config(model, folder / "runs", data=DATA, model=MODEL, **sections)
    return Scoring(config, load_inputs(config, open_run_dir(config)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads as Ray gives a worker of one CPU: their number shows in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local(tiny_reward_model, tmp_path_factory, one_thread) -> set[tuple[bytes, bytes]]:
    """The parts as one process writes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scpo_ray.storage.stores, "_TEXTS_PER_PART", TEXTS_PER_PART)
        here = scoring(tiny_reward_model, tmp_path_factory.mktemp("local"))
        score_here(here)
        assert len(here.parts) == NUM_PARTS
        return here.contents()


def score_here(scoring: Scoring) -> None:
    global_rewards(scoring.inputs, local_worker(scoring.config))


@pytest.fixture
def own_model(tiny_reward_model, tmp_path) -> Path:
    """A global model that a test may spoil."""
    return Path(shutil.copytree(tiny_reward_model, tmp_path / "global"))


def test_ray_writes_the_parts_that_one_process_writes(
    shared_ray, local, small_parts, tiny_reward_model, tmp_path, caplog
):
    ours = scoring(tiny_reward_model, tmp_path)

    with caplog.at_level("INFO", logger="scpo_ray"):
        score_on_ray(ours.config, ours.inputs)

    assert ours.contents() == local
    lines = [record.getMessage() for record in caplog.records]
    told = [line for line in lines if line.endswith(f"of {NUM_PARTS} parts")]
    assert len(told) == 10
    assert told[0] == "scores: 7 of 66 parts" and told[-1] == "scores: 66 of 66 parts"


def test_only_what_is_missing_or_damaged_is_computed(
    shared_ray, local, small_parts, tiny_reward_model, tmp_path
):
    ours = scoring(tiny_reward_model, tmp_path)
    score_here(ours)
    before = ours.written()
    damaged, gone = ours.parts[3], ours.parts[16]
    (damaged / "values.npy").write_bytes((damaged / "values.npy").read_bytes()[:-20])
    shutil.rmtree(gone)

    score_on_ray(ours.config, ours.inputs)

    assert ours.contents() == local
    after = ours.written()
    assert before.keys() - after.keys() == {damaged.name, gone.name}
    assert after.keys() - before.keys() == {f"part-{NUM_PARTS:06d}", f"part-{NUM_PARTS + 1:06d}"}
    assert all(after[name] == before[name] for name in before.keys() & after.keys())


def test_what_is_all_there_needs_no_ray(small_parts, tiny_reward_model, tmp_path):
    # Nothing answers there: joining it would be an error.
    ours = scoring(tiny_reward_model, tmp_path, launch={"address": "127.0.0.1:1"})
    score_here(ours)
    before = ours.written()

    score_on_ray(ours.config, ours.inputs)

    assert ours.written() == before


# Lost workers and commands


def scorers_of_this_process() -> list[int]:
    """The scoring processes of the Ray that this process has started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            scores = b"_Scorer" in (folder / "cmdline").read_bytes()
        except OSError:
            continue  # It has just ended.
        parents[int(folder.name)] = int(fields[1]), scores
    raylets = {pid for pid, (parent, _) in parents.items() if parent == os.getpid()}
    return [pid for pid, (parent, scores) in parents.items() if scores and parent in raylets]


def alone() -> dict[str, Any]:
    """What lets one worker have the whole machine: it is at work when a part is there."""
    return {"cpus_per_worker": ray.cluster_resources()["CPU"]}


@contextmanager
def one_killed_midway(scoring: Scoring) -> Iterator[list[int]]:
    """Kills a scoring process as soon as a part is there."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not killed and not over.wait(0.002):
            if scoring.parts:
                killed.append(scorers_of_this_process()[0])
                os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


@pytest.mark.slow
def test_a_killed_worker_costs_no_part(shared_ray, local, small_parts, tiny_reward_model, tmp_path):
    ours = scoring(tiny_reward_model, tmp_path, launch=alone())

    with one_killed_midway(ours) as killed:
        score_on_ray(ours.config, ours.inputs)

    assert killed
    assert ours.contents() == local


@pytest.mark.slow
def test_a_scoring_that_loses_too_many_workers_is_given_up_and_keeps_what_it_has(
    shared_ray, local, small_parts, tiny_reward_model, tmp_path
):
    ours = scoring(tiny_reward_model, tmp_path, launch={**alone(), "max_failures": 0})

    with (
        one_killed_midway(ours) as killed,
        pytest.raises(InputError, match="lost more often than launch.max_failures = 0") as told,
    ):
        score_on_ray(ours.config, ours.inputs)

    assert killed
    assert "the same command goes on with the missing parts" in str(told.value)
    assert 0 < len(ours.parts) < NUM_PARTS
    assert ours.contents() <= local


@pytest.mark.slow
def test_a_killed_command_goes_on_with_what_is_missing(
    shared_ray, local, small_parts, tiny_reward_model, tmp_path
):
    ours = scoring(tiny_reward_model, tmp_path)
    document = tiny_document(tiny_reward_model, tmp_path / "runs", data=DATA, model=MODEL)
    config = write_yaml(tmp_path / "run.yaml", document)
    arguments = ["scpo", "score", str(config), "--ray", "--set", f"launch.address={shared_ray}"]
    command = start_process(
        code=f"import sys, scpo_ray.cli.main, scpo_ray.storage.stores; sys.argv = {arguments}\n"
        f"scpo_ray.storage.stores._TEXTS_PER_PART = {TEXTS_PER_PART}\n"
        "scpo_ray.cli.main.main()\n"
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not ours.parts:
        assert command.poll() is None and time.monotonic() < deadline, command.communicate()[1]
        time.sleep(0.001)
    command.kill()
    command.communicate(timeout=TIMEOUT_S)
    before = ours.written()
    assert 0 < len(before) < NUM_PARTS

    score_on_ray(ours.config, ours.inputs)

    assert ours.contents() == local
    assert before.items() <= ours.written().items()


# Faults of the input


def change_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (shutil.rmtree, ["model.path = ", "neither a folder nor a hub model"]),
        (cut_weights, ["other data or model files than where the command", "model fingerprint"]),
        (change_weights, ["other data or model files", "model fingerprint", "scores fingerprint"]),
    ],
    ids=["gone", "half of it", "another"],
)
def test_a_machine_whose_model_is_not_the_commands_is_named(
    shared_ray, own_model, tmp_path, spoil, expected, capfd
):
    ours = scoring(own_model, tmp_path)
    spoil(own_model)

    with pytest.raises(InputError) as told:
        score_on_ray(ours.config, ours.inputs)

    assert str(told.value).startswith(f"{platform.node()}: ")
    assert [text for text in expected if text not in str(told.value)] == []
    assert not ours.parts
    assert "Traceback" not in capfd.readouterr().err


def test_rewards_that_are_no_numbers_end_the_command_with_2_and_are_not_kept(
    scpo, shared_ray, own_model, tmp_path
):
    spoil_with_nan(own_model)
    document = tiny_document(own_model, tmp_path / "runs")

    outcome = scpo("score", write_yaml(tmp_path / "run.yaml", document), "--ray")

    assert (outcome.code, outcome.out) == (2, "")
    assert "the global model gives rewards that are not finite" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("*.parquet.*")) and not list(tmp_path.rglob("part-*"))


# Commands


def test_score_on_ray_prints_what_score_prints(scpo, shared_ray, tiny_reward_model, tmp_path):
    config = write_yaml(
        tmp_path / "run.yaml", tiny_document(tiny_reward_model, tmp_path / "runs", data=DATA)
    )
    alone = scpo("score", config, "--set", f"output_dir={tmp_path / 'alone'}")

    ours = in_process("score", config, "--ray", "--set", f"launch.address={shared_ray}")

    assert (ours.code, ours.out) == (0, alone.out)
    assert "scores: 1 of 1 parts\n" in ours.err
    assert not [noise for noise in ("(pid=", "INFO", "Traceback") if noise in ours.err]


def test_a_run_on_ray_has_many_texts_scored_by_all_machines(
    scpo, shared_ray, tiny_reward_model, tmp_path, caplog
):
    document = tiny_document(
        tiny_reward_model,
        tmp_path / "runs",
        train={"max_steps": 2},
        launch={"on": "ray", "address": shared_ray, "score_on_ray_above": 50},
    )

    outcome = scpo("train", write_yaml(tmp_path / "run.yaml", document))

    assert outcome.code == 0, outcome.err
    computed, read = caplog.text.index("texts computed"), caplog.text.index("texts read from")
    assert caplog.text.index("scores: 1 of 1 parts") < computed < read
