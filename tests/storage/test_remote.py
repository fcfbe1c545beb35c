"""Checkpoints and runs at a URI: there when whole, fetched where they are missing."""

import json
import re
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from safetensors.torch import save_file

from scpo_ray.records import ALONE, InputError
from scpo_ray.settings.launch import LaunchConfig
from scpo_ray.storage.disk import inside, write_json
from scpo_ray.storage.remote import RemoteFolder, below_uri
from scpo_ray.storage.run_dir import RunDir
from scpo_ray.training.checkpoints import RemoteCheckpoints, open_checkpoints


@pytest.fixture(params=["file", "memory"])
def remote(request, tmp_path: Path) -> RemoteFolder:
    """One of Arrow's own file systems, and one that only fsspec knows."""
    if request.param == "file":
        return RemoteFolder(f"file://{tmp_path}/store/run")
    return RemoteFolder(f"memory://{uuid4().hex}/run")


def save(checkpoints: RemoteCheckpoints, step: int, loss: float = 1.0, keep: int = 2) -> None:
    with checkpoints.saving(step, loss, keep=keep, worker=ALONE) as folder:
        save_file({"w": torch.full((100,), float(step))}, folder / "state.safetensors")


def names(remote: RemoteFolder) -> list[str]:
    return remote.names()


def test_a_checkpoint_comes_back_as_it_was_saved(remote, tmp_path):
    checkpoints = RemoteCheckpoints(remote, tmp_path / "scratch")
    save(checkpoints, 5)
    save(checkpoints, 10)

    newest = checkpoints.newest(ALONE)

    assert newest is not None
    assert json.loads(remote.read("step-00000010/checkpoint.json")) == {
        "step": 10,
        "loss": 1.0,
    }
    here = RemoteCheckpoints(remote, tmp_path / "elsewhere").newest(ALONE)
    assert here is not None
    file = "worker-0/state.safetensors"
    assert (here / file).read_bytes() == (newest / file).read_bytes()


def test_the_newest_and_the_best_stay(remote, tmp_path):
    checkpoints = RemoteCheckpoints(remote, tmp_path / "scratch")

    for step, loss in ((5, 0.3), (10, 0.1), (15, 0.5), (20, 0.4), (25, 0.2)):
        save(checkpoints, step, loss)

    assert names(remote) == ["step-00000010", "step-00000020", "step-00000025"]


def test_without_a_checkpoint_there_is_no_newest(remote, tmp_path):
    assert RemoteCheckpoints(remote, tmp_path).newest(ALONE) is None


def test_a_checkpoint_without_a_manifest_is_not_there(remote, tmp_path):
    checkpoints = RemoteCheckpoints(remote, tmp_path / "scratch")
    save(checkpoints, 5)

    class Stopped(Exception):
        pass

    with (
        pytest.raises(Stopped),
        checkpoints.saving(10, 1.0, keep=2, worker=ALONE) as folder,
    ):
        (folder / "state.safetensors").write_bytes(b"half")
        raise Stopped
    remote.write("step-00000015/worker-0/state.safetensors", b"no manifest")

    newest = checkpoints.newest(ALONE)

    assert newest is not None
    assert json.loads(remote.read("step-00000005/checkpoint.json"))["step"] == 5
    assert torch.equal(_weights(newest), torch.full((100,), 5.0))


@pytest.mark.parametrize("fault", ["truncated", "missing", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(remote, tmp_path, caplog, fault):
    checkpoints = RemoteCheckpoints(remote, tmp_path / "scratch")
    save(checkpoints, 5)
    save(checkpoints, 10)
    newest = "step-00000010"
    if fault == "truncated":
        remote.write(f"{newest}/worker-0/state.safetensors", b"short")
    elif fault == "missing":
        remote.remove(f"{newest}/worker-0")
    else:
        remote.write(f"{newest}/manifest.json", b"{")

    found = checkpoints.newest(ALONE)

    assert found is not None
    assert torch.equal(_weights(found), torch.full((100,), 5.0))
    assert "step-00000010 is damaged" in caplog.text


def _weights(checkpoint: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(checkpoint / "worker-0" / "state.safetensors")["w"]


def test_a_run_that_ended_elsewhere_is_fetched_without_its_checkpoints(remote, tmp_path):
    there = RunDir(tmp_path / "there", tmp_path / "cache", remote)
    write_json(there.path / "run.json", {"fingerprints": {}})
    write_json(there.path / "model" / "config.json", {"layers": 2})
    write_json(there.path / "result.json", {"seed": 0})
    save(open_checkpoints(there), 5)
    there.keep()

    here = RunDir(tmp_path / "here", tmp_path / "cache", remote)
    here.fetch()

    found = sorted(str(p.relative_to(here.path)) for p in here.path.rglob("*") if p.is_file())
    assert found == ["model/config.json", "result.json", "run.json"]
    assert names(remote.below("checkpoints")) == ["step-00000005"]
    there.remove_checkpoints()
    assert names(remote.below("checkpoints")) == []


def test_what_says_that_something_is_whole_is_copied_after_it(tmp_path):
    class Recording:
        copied: list[str] = []

        def upload(self, file: Path, name: str) -> None:
            self.copied.append(name)

        def download(self, name: str, file: Path) -> None:
            self.copied.append(name)
            file.write_text("{}")

        def files(self) -> list[str]:
            return ["result.json", "training.json", "weights/w", "run.json"]

    remote = Recording()
    there = RunDir(tmp_path / "there", tmp_path / "cache", remote)
    for name in ("result.json", "training.json", "run.json", "weights/w"):
        write_json(there.path / name, {"seed": 0})

    there.keep()
    RunDir(tmp_path / "here", tmp_path / "cache", remote).fetch()

    for copied in (remote.copied[:4], remote.copied[4:]):
        assert sorted(copied[:2]) == ["run.json", "weights/w"]
        assert copied[2:] == ["training.json", "result.json"]


def test_a_uri_of_no_known_kind_is_named():
    with pytest.raises(InputError) as error:
        RemoteFolder("nonsense://bucket/x")
    assert str(error.value) == (
        "launch.storage = nonsense://bucket/x: cannot be used\n  Protocol not known: nonsense"
    )


def test_a_path_is_no_uri():
    with pytest.raises(ValueError, match=r"must be a URI such as s3://bucket/runs"):
        LaunchConfig(storage="runs/shared")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    remote = RemoteFolder(f"file://{tmp_path}/file/run")

    with pytest.raises(InputError, match=r"launch.storage = file://.*: cannot be used"):
        remote.write("result.json", b"{}")


def test_a_file_or_a_folder_is_removed_and_what_is_not_there_is_no_fault(remote, tmp_path):
    (tmp_path / "note").write_text("text")
    for name in ("kept", "file", "folder/below"):
        remote.upload(tmp_path / "note", name)

    for name in ("file", "folder", "nothing"):
        remote.remove(name)

    assert remote.files() == ["kept"]


# Names that come from the store


HOSTILE = [
    "../evil",
    "worker-0/../../evil",
    "/tmp/evil",
    "..\\evil",
    "C:/evil",
    "a\0b",
    "a//b",
    "./a",
    "",
    "a\nb",
    "..",
    "link/evil",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_out_of_the_folder_is_no_name_in_it(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)

    with pytest.raises(InputError, match=r"is no name of a file in it|leads out of it, by a link"):
        inside(tmp_path / "folder", name)


def test_other_names_are_below_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "folder")

    assert inside(tmp_path, "a/b..c/d e%41") == tmp_path / "a" / "b..c" / "d e%41"
    assert inside(tmp_path / "link", "a") == tmp_path / "link" / "a"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_whose_manifest_names_it_is_damaged_and_nothing_is_written(
    tmp_path, caplog, name
):
    remote = RemoteFolder(f"file://{tmp_path}/store/run")
    checkpoints = RemoteCheckpoints(remote, tmp_path / "scratch" / "deep")
    save(checkpoints, 5)
    remote.write("step-00000010/manifest.json", json.dumps({name: "00"}).encode())
    remote.write("evil", b"evil")
    before = {path for path in tmp_path.rglob("*") if "scratch" not in path.parts}

    newest = checkpoints.newest(ALONE)

    assert newest is not None
    assert torch.equal(_weights(newest), torch.full((100,), 5.0))
    assert "step-00000010 is damaged" in caplog.text
    assert {path for path in tmp_path.rglob("*") if "scratch" not in path.parts} == before
    assert not list(tmp_path.rglob("scratch/**/evil"))


def test_a_run_is_not_fetched_out_of_its_folder(tmp_path):
    remote = RemoteFolder(f"memory://{uuid4().hex}/run")
    remote.write("result.json", b"{}")
    here = RunDir(tmp_path / "here" / "run", tmp_path / "cache", remote)
    (tmp_path / "elsewhere").mkdir()
    here.path.mkdir(parents=True)
    (here.path / "model").symlink_to(tmp_path / "elsewhere")
    remote.write("model/config.json", b"evil")

    with pytest.raises(InputError, match="'model/config.json' leads out of it, by a link"):
        here.fetch()

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not here.result_path.exists()


# Options and characters of a URI


@pytest.mark.parametrize(
    ("uri", "below"),
    [
        ("s3://bucket/runs", "s3://bucket/runs/a/b"),
        ("s3://bucket/runs/?region=x&scheme=http", "s3://bucket/runs/a/b?region=x&scheme=http"),
        ("file:///mnt/runs/", "file:///mnt/runs/a/b"),
    ],
)
def test_a_folder_below_stands_before_the_options(uri, below):
    assert below_uri(uri, "a/b") == below


def test_the_options_reach_the_file_system():
    options = "endpoint_override=127.0.0.1:9&scheme=http&region=eu-north-1"
    folder = RemoteFolder(f"s3://bucket/runs/?{options}").below("tiny/run")

    assert folder._files.region == "eu-north-1"
    assert folder._root == "bucket/runs/tiny/run"
    assert folder.uri == f"s3://bucket/runs/tiny/run?{options}"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://bucket/runs?nonsense=1", "Unexpected query parameter in S3 URI: 'nonsense'"),
        ("memory://bucket/runs?a=1", "options behind a ? are for s3://, gs:// and hdfs:// alone"),
    ],
)
def test_an_option_that_nobody_knows_is_named(uri, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        RemoteFolder(uri)


@pytest.mark.parametrize("name", ["runs-12:30", "a b", "100%", "ü", "~x", "a&b=c+d", "a;b@c"])
def test_a_folder_at_a_uri_may_be_called_so(tmp_path, name):
    storage = LaunchConfig(storage=f"file://{tmp_path}/{name}").storage

    folder = RemoteFolder(storage).below("tiny/run")
    folder.write("note", b"text")

    assert (tmp_path / name / "tiny" / "run" / "note").read_bytes() == b"text"
    assert folder.files() == ["note"]
