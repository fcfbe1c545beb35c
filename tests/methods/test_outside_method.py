"""The method of docs/extending.md, installed as another package has it, from config to report."""

import pytest

from scpo_ray.launch.runs import start_run
from scpo_ray.records import InputError
from scpo_ray.settings.methods import METHODS, method_names
from scpo_ray.settings.run import RunConfig
from tests.tiny import tiny_document


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
