"""Temperatures that are saved with a model, and read back."""

import json

import pytest

from scpo_ray.models.export import save_temperatures, saved_temperatures
from scpo_ray.records import InputError
from scpo_ray.results import Calibration
from scpo_ray.storage.disk import folder_fault, whole_folder

FILE = "scpo_calibration.json"


def calibration(**temperatures):
    return Calibration(temperatures, "train", {}, {}, {}, {}, {}, {})


def test_a_models_temperatures_are_part_of_its_folder(tmp_path):
    folder = tmp_path / "model"
    with whole_folder(folder) as part:
        (part / "config.json").write_text("{}")
    assert saved_temperatures(folder) is None

    found = {"Perú": calibration(model_fitted=1.5), "Chile": calibration(global_fitted=2.0)}
    save_temperatures(folder, found)

    assert saved_temperatures(folder) == {"Perú": 1.5}
    assert folder_fault(folder) is None
    assert FILE in json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"win_temperatures": [1]}', "cannot be read"),
        ('{"win_temperatures": {"Chile": "warm"}}', "cannot be read"),
        ('{"win_temperatures": {"Chile": 0}}', "must be above 0 and finite\n  Chile: 0.0"),
        ('{"win_temperatures": {"Chile": NaN}}', "must be above 0 and finite\n  Chile: nan"),
    ],
)
def test_temperatures_that_cannot_be_used_are_refused_by_the_file(text, problem, tmp_path):
    (tmp_path / FILE).write_text(text)

    with pytest.raises(InputError) as refused:
        saved_temperatures(tmp_path)

    assert f"{tmp_path / FILE}: " in str(refused.value)
    assert problem in str(refused.value)
