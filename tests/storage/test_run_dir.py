"""A run's folder: its lock, its input, its result."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from scpo_ray.records import InputError
from scpo_ray.storage.disk import write_json
from scpo_ray.storage.run_dir import (
    RunDir,
    load_comparison_result,
    load_result,
    load_test_pairs,
    save_comparison_result,
)
from tests.results import comparison, run_result
from tests.storage.test_stores import child


def run_dir(folder: Path) -> RunDir:
    return RunDir(folder / "run", folder / "cache")


# Run folders


def test_a_run_folder_is_held_by_one_process_and_free_after_its_death(tmp_path):
    run = run_dir(tmp_path)
    code = """
from pathlib import Path
from scpo_ray.storage.run_dir import RunDir
with RunDir(Path(sys.argv[1]), Path(sys.argv[2])).locked(wait_s=0):
    ready()
    time.sleep(60)
"""
    with child(code, run.path, run.cache) as process:
        with pytest.raises(InputError, match="run: another process is running this run"):
            with run.locked(wait_s=0):
                pass
        process.send_signal(signal.SIGKILL)
        process.wait()

    with run.locked(wait_s=0):
        assert run.path.is_dir()


def test_a_run_folder_is_free_again_after_an_exception(tmp_path):
    run = run_dir(tmp_path)

    with pytest.raises(RuntimeError), run.locked(wait_s=0):
        raise RuntimeError

    with run.locked(wait_s=0):
        assert run.path.is_dir()


@pytest.mark.parametrize("changed", ["data", "model"])
def test_a_run_folder_goes_on_with_its_input_and_refuses_another(tmp_path, changed):
    run = run_dir(tmp_path)
    fingerprints = {"data": "a" * 64, "model": "a" * 64}
    run.save_config({"seed": 0}, fingerprints)
    run.save_config({"seed": 0}, fingerprints)

    with pytest.raises(
        InputError, match=f"began with other input\n  {changed} fingerprint then a{{12}}, now b"
    ):
        run.save_config({"seed": 0}, {**fingerprints, changed: "b" * 64})

    assert json.loads((run.path / "run.json").read_text()) == {
        "config": {"seed": 0},
        "fingerprints": fingerprints,
    }


@pytest.mark.parametrize("content", ["", '{"config"', "[]", "{}", "\x00"])
def test_a_damaged_run_file_is_named(tmp_path, content):
    run = run_dir(tmp_path)
    run.path.mkdir()
    (run.path / "run.json").write_text(content)

    with pytest.raises(InputError, match=r"run\.json: damaged; delete it to begin anew"):
        run.save_config({}, {"data": "a" * 64})


def test_an_output_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("in the way")

    with pytest.raises(InputError, match="run: cannot be written\n  a file stands where a folder"):
        with run_dir(tmp_path).locked(wait_s=0):
            pass
    with pytest.raises(InputError, match="cannot be written\n  a part of the path is a file"):
        write_json(tmp_path / "run" / "below" / "a.json", {})


# Results


def test_a_result_is_read_back_as_it_was(tmp_path):
    run = run_dir(tmp_path)
    result = run_result()

    run.save_result(result)

    assert load_result(run.path) == result


def test_a_comparison_is_read_back_as_it_was(tmp_path):
    _, result = comparison()

    save_comparison_result(tmp_path, result)

    assert load_comparison_result(tmp_path) == result


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(InputError, match=r"result\.json: cannot be read\n  No such file or direct"):
        load_result(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.pop("curve"), "curve: Field required"),
        (lambda d: d.update(num_steps="many"), "num_steps: Input should be a valid integer"),
        (lambda d: d["curve"].update(loss=None), "curve.loss: Input should be a valid array"),
    ],
)
def test_a_result_of_another_version_is_refused_with_the_field(tmp_path, change, problem):
    run = run_dir(tmp_path)
    run.save_result(run_result())
    document = json.loads(run.result_path.read_text())

    change(document)
    run.result_path.write_text(json.dumps(document))

    with pytest.raises(InputError, match=r"result\.json: not a result of this version") as error:
        load_result(run.path)
    assert error.value.problems[0].startswith(problem)


@pytest.mark.parametrize("content", [b"", b'{"run_id": "a', b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_result_is_refused(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)

    with pytest.raises(InputError, match=r"result\.json: not a result of this version") as error:
        load_result(tmp_path)
    assert not error.value.problems[0].startswith(":")


def test_test_pairs_are_read_back_as_they_were(tmp_path):
    run = run_dir(tmp_path)
    margin = np.array([0.5, -1.0], np.float32)

    run.save_test_pairs({"culture": ["Chile", "Peru"], "margin": margin})

    columns = load_test_pairs(run.path)
    assert columns["culture"].tolist() == ["Chile", "Peru"]
    np.testing.assert_array_equal(columns["margin"], margin)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 half"])
def test_missing_or_damaged_test_pairs_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "test_pairs.parquet").write_bytes(content)

    with pytest.raises(InputError, match=r"test_pairs\.parquet: cannot be read"):
        load_test_pairs(tmp_path)
