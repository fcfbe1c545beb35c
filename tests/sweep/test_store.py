import json
import logging
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from scpo_ray.records import InputError
from scpo_ray.settings.sweep import SweepConfig
from scpo_ray.storage.disk import read_json, write_json
from scpo_ray.storage.json_lines import append_json_lines
from scpo_ray.sweep.records import Setting
from scpo_ray.sweep.store import RESULT_FILE, SweepDir, load_sweep_result
from tests.sweep_results import CURVES, sweep_result, trial

PRINTS = {"data": "d" * 64, "model": "m" * 64}


@pytest.fixture
def folder(tmp_path):
    folder = SweepDir(tmp_path / "sweep-tau")
    folder.begin(document(), PRINTS, extend=False)
    return folder


def document(threshold=0.5, seeds=(0,)):
    return SweepConfig.model_validate(
        {
            "run": {"train": {"max_steps": 5}},
            "space": {"selection.filter_threshold": {"grid": [threshold, 0.7]}},
            "repeat": {"seeds": seeds},
        }
    ).document


# What is swept


def test_a_sweep_found_again_goes_on(folder):
    folder.begin(document(), dict(PRINTS), extend=False)

    known = json.loads(read_json(folder.path / "sweep.json", ""))
    assert known == {"document": document(), "fingerprints": PRINTS}


def test_a_file_that_has_changed_is_told_line_by_line(folder):
    with pytest.raises(InputError) as error:
        folder.begin(document(threshold=0.4, seeds=(0, 1)), PRINTS, extend=False)

    assert str(error.value) == (
        f"{folder.path}: the sweep file has changed since the sweep began\n"
        "  space.selection.filter_threshold.grid: was [0.5, 0.7], now [0.4, 0.7]\n"
        "  repeat.seeds: was [0], now [0, 1]\n"
        "  --extend goes on with the file as it is now; a copy of the file under another name is a "
        "new sweep"
    )
    assert json.loads(read_json(folder.path / "sweep.json", ""))["document"] == document()


def test_an_extended_sweep_says_what_has_changed_and_is_the_new_one_from_then_on(folder, caplog):
    caplog.set_level(logging.INFO)

    folder.begin(document(seeds=(0, 1)), PRINTS, extend=True)
    folder.begin(document(seeds=(0, 1)), PRINTS, extend=False)

    assert caplog.messages == ["extended: repeat.seeds: was [0], now [0, 1]"]


@pytest.mark.parametrize("extend", [False, True])
def test_other_data_is_another_sweep_even_if_it_is_extended(folder, extend):
    with pytest.raises(InputError) as error:
        folder.begin(document(), {**PRINTS, "data": "e" * 64}, extend=extend)

    assert str(error.value) == (
        f"{folder.path}: the sweep began with other data or another global model\n"
        "  data fingerprint then dddddddddddd, now eeeeeeeeeeee\n"
        "  give the sweep another run.experiment or run.output_dir"
    )


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "{}", '{"document": 3, "fingerprints": {}}', '{"document": {}}'],
)
def test_a_damaged_sweep_is_named(folder, content):
    (folder.path / "sweep.json").write_text(content)

    with pytest.raises(InputError, match=r"sweep\.json: damaged\n  it is not what .*\n  delete it"):
        folder.begin(document(), PRINTS, extend=True)


# One driver at a time


def test_a_sweep_has_one_driver_at_a_time(folder):
    with (
        folder.locked(),
        pytest.raises(InputError, match="another process is running this sweep\n  wait for it"),
        SweepDir(folder.path).locked(),
    ):
        pass

    with SweepDir(folder.path).locked():
        pass


def test_the_lock_of_a_killed_driver_is_free(folder):
    script = f"""
import os, signal
from pathlib import Path
from scpo_ray.sweep.store import SweepDir
with SweepDir(Path({str(folder.path)!r})).locked():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9

    with folder.locked():
        pass


def test_a_place_that_cannot_hold_a_sweep_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(InputError, match="file/sweep-x: cannot be written\n  a part of the path is"),
        SweepDir(tmp_path / "file" / "sweep-x").locked(),
    ):
        pass


# What became of its trials


def test_of_two_lines_about_a_trial_the_later_holds(folder):
    waiting, failed, other = (
        trial(0, "Chile", 0),
        trial(0, "Chile", 0, "lost"),
        trial(1, "Chile", 0),
    )
    folder.add_trials([waiting, other])

    folder.add_trials([failed])

    assert folder.trials() == {failed.trial_id: failed, other.trial_id: other}
    assert failed.trial_id == waiting.trial_id


def test_a_sweep_that_has_just_begun_has_no_trials(folder):
    assert folder.trials() == {}
    assert folder.settings() == []
    assert folder.suggestions() == {}


def test_a_crash_costs_the_last_line_at_most(folder, caplog):
    first, second = trial(0, "Chile", 0), trial(1, "Chile", 0)
    folder.add_trials([first, second])
    path = folder.path / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-3])

    assert list(folder.trials()) == [first.trial_id]
    assert not path.read_bytes().endswith(b"\n"), "who does not hold the sweep mends nothing"
    with folder.locked():
        assert list(folder.trials()) == [first.trial_id]
        folder.add_trials([replace(second, error="again")])

    assert folder.trials()[second.trial_id].error == "again"
    assert caplog.text.count("cut short by a crash") == 1


def test_a_damaged_line_costs_its_trial_alone_and_one_of_another_version_is_named(folder, caplog):
    first = trial(0, "Chile", 0)
    folder.add_trials([first])
    path = folder.path / "trials.jsonl"
    whole = path.read_text()

    path.write_text("{\n" + whole)
    assert folder.trials() == {first.trial_id: first}
    assert "line 1 is not what was written: left out" in caplog.text
    path.write_text(whole)
    append_json_lines(path, [{"trial_id": "x"}])
    with pytest.raises(InputError, match=r"trials\.jsonl: line 2: not of this version"):
        folder.trials()


# What a search has chosen


def test_chosen_settings_and_what_the_search_said_of_them_come_back(folder):
    first = Setting(0, {"a": 0.5, "mix": {"A": 0.25, "B": 0.75}}, "a=0.5")
    second = Setting(1, {"a": None}, "a=null")
    folder.add_setting(first, {"a": 0.50001, "mix/A": 0.1, "mix/B": 0.2})
    folder.add_setting(second, {"a": 2})

    assert folder.settings() == [first, second]
    assert folder.suggestions() == {0: {"a": 0.50001, "mix/A": 0.1, "mix/B": 0.2}, 1: {"a": 2}}


def test_a_chosen_setting_of_another_version_is_named(folder):
    append_json_lines(folder.path / "settings.jsonl", [{"number": 0}])

    for read in (folder.settings, folder.suggestions):
        with pytest.raises(InputError, match=r"settings\.jsonl: line 1: not of this version"):
            read()


def test_a_damaged_setting_of_a_search_is_refused_with_the_remedy(folder):
    folder.add_setting(Setting(0, {"a": 0.5}, "a=0.5"), {"a": 0.5})
    path = folder.path / "settings.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.4"))

    with pytest.raises(InputError, match=r"line 1: not what was written\n  delete .* to search an"):
        folder.settings()


# Its result


def test_a_result_comes_back_whole(folder):
    result = sweep_result(failures={(3, "Chile"): "no pair left"})

    folder.save_result(result)

    assert load_sweep_result(folder.path) == result


def test_a_curve_that_never_reaches_its_rival_is_kept_as_infinite(folder):
    result = sweep_result(efficiency=CURVES)

    folder.save_result(result)

    assert load_sweep_result(folder.path).efficiency[2].pairs_to_match == (math.inf, 0.9, math.inf)
    assert load_sweep_result(folder.path) == result


def test_a_result_that_is_not_there_or_damaged_is_named(folder):
    with pytest.raises(InputError, match=rf"{RESULT_FILE}: cannot be read"):
        load_sweep_result(folder.path)
    write_json(folder.path / RESULT_FILE, {"format": 2, "name": "x"})
    with pytest.raises(InputError, match=rf"{RESULT_FILE}: not a result of this version"):
        load_sweep_result(folder.path)


def test_a_result_of_an_older_version_is_told_by_its_format(folder):
    folder.save_result(sweep_result())
    document = json.loads(read_json(folder.path / RESULT_FILE, ""))
    del document["format"], document["measured_on"]
    write_json(folder.path / RESULT_FILE, document)

    with pytest.raises(InputError) as error:
        load_sweep_result(folder.path)

    assert error.value.problems[0] == "it is of format 1, and this version reads format 2"
