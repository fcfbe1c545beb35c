"""What two workers find out about each other before anything is trained."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import scpo_ray.launch.worker
from scpo_ray.launch.worker import library_versions, work
from scpo_ray.records import InputError, Worker
from scpo_ray.settings.run import RunConfig
from tests.tiny import tiny_document


def refusal(worker: Worker, documents: list[dict[str, Any]]) -> str:
    """What the run is refused with, each worker with a machine (and so a config) of its own."""
    try:
        work(RunConfig.model_validate(documents[worker.rank]), worker)
    except InputError as error:
        return str(error)
    return "not refused"


def refusal_of_versions(worker: Worker, document: dict[str, Any]) -> str:
    versions = library_versions() | {"torch": f"2.{worker.rank}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scpo_ray.launch.worker, "library_versions", lambda: versions)
        return refusal(worker, [document, document])


def refusal_on_a_machine(worker: Worker, document: dict[str, Any], folder: str) -> str:
    # The path in the config is relative, and each worker stands elsewhere.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(folder) / f"machine-{worker.rank}")
        return refusal(worker, [document, document])


def test_a_folder_that_a_worker_does_not_see_is_named_with_the_machine(
    groups, tiny_reward_model, tmp_path
):
    documents = [tiny_document(tiny_reward_model, tmp_path / name) for name in ("a", "b")]

    first, second = groups.run(2, refusal, documents)

    assert first == second
    assert re.search(r"/b/tiny/\S+: worker 1 on \S+ does not see this folder as worker 0", first)
    assert "put output_dir on a file system all machines mount" in first
    assert not list(tmp_path.rglob(".seen-*"))


def test_other_model_files_are_named_with_both_fingerprints(groups, tiny_reward_model, tmp_path):
    other = shutil.copytree(tiny_reward_model, tmp_path / "other")
    config = other / "config.json"
    config.write_text(config.read_text() + "\n")
    for rank, model in enumerate((tiny_reward_model, other)):
        (tmp_path / f"machine-{rank}").mkdir()
        (tmp_path / f"machine-{rank}" / "model").symlink_to(model)
    document = tiny_document(Path("model"), tmp_path / "runs")

    first, second = groups.run(2, refusal_on_a_machine, document, str(tmp_path))

    assert first == second
    assert "the workers' fingerprints differ" in first
    assert re.search(r"worker 1 on \S+: model [0-9a-f]{64}, on worker 0 [0-9a-f]{64}", first)


def test_other_library_versions_are_named(groups, tiny_reward_model, tmp_path):
    document = tiny_document(tiny_reward_model, tmp_path / "runs")

    first, second = groups.run(2, refusal_of_versions, document)

    assert first == second
    assert re.fullmatch(
        r"the workers' library versions differ\n  worker 1 on \S+: torch 2.1, on worker 0 2.0",
        first,
    )
