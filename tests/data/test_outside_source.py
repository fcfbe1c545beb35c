"""The source of docs/extending.md, installed as another package, is a source like any other."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from scpo_ray.data.loading import load_preferences
from scpo_ray.models.tiny import make_tiny_backbone
from scpo_ray.records import InputError
from scpo_ray.settings.data import SOURCES
from scpo_ray.settings.files import load_config, load_sweep
from scpo_ray.settings.naming import config_params
from scpo_ray.settings.page import configuration_page
from scpo_ray.settings.run import RunConfig
from scpo_ray.sweep.space import check_space, planned_settings, trials_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## A data source")[2].partition("\n## ")[0]


def example(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return code


@pytest.fixture
def site(tmp_path) -> Path:
    """What `pip install` makes of the page's two files."""
    site, project = tmp_path / "site", tomllib.loads(example("toml"))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    name, version = project["project"]["name"], project["project"]["version"]
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(example("python"))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = project["project"]["entry-points"]
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{point} = {value}" for point, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


@pytest.fixture
def installed(site, monkeypatch):
    """The package in this process, which may have looked for sources before."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(SOURCES.__dict__, "_outside", raising=False)
    yield
    SOURCES.__dict__.pop("_outside", None)
    sys.modules.pop("two_columns", None)


@pytest.fixture
def config(tmp_path) -> Path:
    """The page's config, and 20 people's lines for each of its cultures."""
    document = yaml.safe_load(example("yaml"))
    for culture, name in document["data"]["files"].items():
        lines = [f"good {culture} {n}\tbad {culture} {n}\n" for n in range(20)]
        (tmp_path / name).write_text("".join(lines))
        document["data"]["files"][culture] = str(tmp_path / name)
    document["output_dir"] = str(tmp_path / "runs")
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_example_fits_a_page():
    assert len(example("python").splitlines()) <= 40


def test_an_outside_source_is_read_checked_and_split(tmp_path, installed, config):
    data = load_preferences(load_config(config).data, tmp_path / "cache")

    assert data.cultures == ("North", "South")
    assert sum(map(len, data.sides)) == 40
    pair = data.texts[data.train.chosen[0]], data.texts[data.train.rejected[0]]
    assert [text.response.split()[0] for text in pair] == ["good", "bad"]
    assert pair[0].prompt == "Which of the two is better?"


def test_its_settings_are_overridden_and_kept_as_any_others_are(installed, config):
    run = load_config(config, ["data.prompt=Better?", "data.cultures=[' South']"])

    assert config_params(run)["data.prompt"] == "Better?"
    assert run.data.cultures == ["South"]
    again = RunConfig.model_validate(run.model_dump(mode="json"))
    assert (again, again.run_id) == (run, run.run_id)
    assert run.run_id != load_config(config).run_id


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.files=3", "data.files = 3: must be a valid dictionary"),
        ("data.fils={}", "data.fils = {}: no such setting; nearest: data.files"),
        ("data.promt=x", "data.promt = x: no such setting; nearest: data.prompt"),
        ("data.prompt=null", "data.prompt = null: must be a valid string"),
        ("data.split.test_size=2", "data.split.test_size = 2: must be less than 1"),
        ("data.source=two_colums", "data.source = two_colums: there is none of this name; near"),
    ],
)
def test_a_wrong_setting_of_it_is_named_as_any_other_is(installed, config, override, problem):
    with pytest.raises(InputError) as error:
        load_config(config, [override])
    assert error.value.problems[0].startswith(problem)


def test_a_preset_gives_way_to_it_and_a_sweep_varies_it(installed, config, tmp_path):
    data = yaml.safe_load(config.read_text())["data"]
    sweep = tmp_path / "sweep.yaml"
    space = {"culture": {"grid": ["North"]}, "data.prompt": {"grid": ["A?", "B?"]}}
    document = {"run": {"preset": "paper", "data": data}, "space": space}
    sweep.write_text(yaml.safe_dump(document))

    loaded = load_sweep(sweep)
    check_space(loaded, ["North", "South"])
    trials = trials_of(loaded, planned_settings(loaded), ["North"])

    assert sorted(trial.config.data.prompt for trial in trials) == ["A?", "B?"]


def test_bad_lines_of_it_are_told_at_once(installed, config, tmp_path):
    file = tmp_path / "north.txt"
    file.write_text(file.read_text() + "one column\na\tb\tc\n")
    with pytest.raises(InputError) as error:
        load_preferences(load_config(config).data, tmp_path / "cache")
    assert error.value.problems == (
        f"{file}, line 21: 1 columns: must be 2, parted by a tab",
        f"{file}, line 22: 3 columns: must be 2, parted by a tab",
    )


def test_lines_of_it_that_are_of_no_use_are_left_out_and_counted(installed, config, tmp_path):
    file = tmp_path / "north.txt"
    file.write_text(file.read_text() + "good\t \n")
    data = load_preferences(load_config(config).data, tmp_path / "cache")
    assert data.counts["North"].skipped == {"empty response": 1, "fewer than 2 responses": 1}


def test_the_page_of_settings_knows_this_packages_own_sources_alone(installed):
    assert "two_columns" in SOURCES.names()
    assert "two_columns" not in configuration_page()


@pytest.mark.slow
def test_the_command_line_reads_an_installed_source(site, config, tmp_path):
    model = tmp_path / "model"
    numbers = (str(n) for n in range(20))
    make_tiny_backbone(model, ["good", "bad", "north", "south", *numbers], seed=0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, "-m", "scpo_ray.cli", "data", str(config), "--json"]

    done = subprocess.run(
        [*command, "--set", f"model.path={model}", "--set", "model.max_length=64"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    assert {culture: count["interactions"] for culture, count in counts.items()} == {
        "North": 20,
        "South": 20,
    }
