"""The method of docs/extending.md, installed as another package has it, from config to report."""

import re
from pathlib import Path

import pytest

from scpo_ray.launch.runs import start_run
from scpo_ray.records import InputError
from scpo_ray.settings.methods import METHODS, method_names
from scpo_ray.settings.run import RunConfig
from tests.tiny import tiny_document

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.fixture
def smoothed(tmp_path, monkeypatch):
    """The page's file and entry point on the import path, and nothing else of it anywhere."""
    code = re.search(r"```python\n# smoothed.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    entry = re.search(r'"scpo_ray.methods"\]\n(.*?)\n```', PAGE.read_text(), re.DOTALL)
    assert code is not None and entry is not None
    folder = tmp_path / "installed"
    info = folder / "smoothed-1.dist-info"
    info.mkdir(parents=True)
    (folder / "smoothed.py").write_text(code[1])
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smoothed\nVersion: 1\n")
    lines = ["[scpo_ray.methods]", *(line.replace('"', "") for line in entry[1].splitlines())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    METHODS.__dict__.pop("_outside", None)
    yield code[1]
    METHODS.__dict__.pop("_outside", None)


def test_a_method_of_another_package_is_one_short_file(smoothed):
    assert len(smoothed.splitlines()) <= 40
    assert method_names()[-1] == "smoothed"


def test_it_trains_evaluates_and_tells_of_itself(smoothed, tiny_reward_model, tmp_path):
    document = tiny_document(
        tiny_reward_model,
        tmp_path / "runs",
        method="smoothed",
        methods={"smoothed": {"smoothing": 0.2}},
    )

    result, folder = start_run(RunConfig.model_validate(document))

    assert result.method == "smoothed"
    assert result.num_steps == result.curve.step[-1] > 0
    assert result.selection["North"].kept_share == 1.0
    assert result.told == ["20 % of the pairs are taken to be in the wrong order."]
    assert result.told[0] in (folder / "report.html").read_text()
    plain = RunConfig.model_validate({**document, "method": "finetune", "methods": {}})
    assert start_run(plain)[0].curve.loss != result.curve.loss


def test_its_settings_are_checked_as_the_packages_own(smoothed, tiny_reward_model, tmp_path):
    document = tiny_document(
        tiny_reward_model,
        tmp_path,
        method="smoothed",
        methods={"smoothed": {"smoothing": 0.5, "smothing": 1}},
    )

    with pytest.raises(ValueError, match="methods.smoothed") as caught:
        RunConfig.model_validate(document)

    assert "methods.smoothed.smoothing" in str(caught.value)
    assert "methods.smoothed.smothing" in str(caught.value)


def test_without_the_package_its_name_is_unknown(tiny_reward_model, tmp_path):
    document = tiny_document(tiny_reward_model, tmp_path, method="smoothed")

    with pytest.raises(ValueError, match="there is no method 'smoothed'"):
        RunConfig.model_validate(document)
    with pytest.raises(InputError, match="there is none of this name"):
        METHODS["smoothed"]
