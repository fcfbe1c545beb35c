"""Python code that comes with a model runs only where it is asked for."""

from pathlib import Path

import pytest

from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError
from tests.models.test_reward_model import TEXTS, assert_close, copied, loaded

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification
Path({marker!r}).touch()

class Config(BertConfig):
    model_type = "theirs"

class Model(BertForSequenceClassification):
    config_class = Config
"""


@pytest.mark.parametrize("model_type", ["bert", "theirs"])
def test_code_that_comes_with_a_model_does_not_run(tiny_reward_model, tmp_path, model_type):
    folder, marker = model_with_code(tiny_reward_model, tmp_path, model_type)

    if model_type == "bert":
        loaded(folder)
    else:
        with pytest.raises(InputError, match="config.json cannot be used"):
            loaded(folder)

    assert not marker.exists()


def test_code_that_comes_with_a_model_runs_where_it_is_asked_for(
    tiny_reward_model, tmp_path, monkeypatch
):
    import transformers.dynamic_module_utils

    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder, marker = model_with_code(tiny_reward_model, tmp_path, "theirs")

    model = loaded(folder, trust_remote_code=True)

    assert marker.exists()
    expected = score_texts(loaded(tiny_reward_model), TEXTS)
    assert_close(score_texts(model, TEXTS), expected, 1e-6)


def model_with_code(source: Path, tmp_path: Path, model_type: str) -> tuple[Path, Path]:
    """A model's folder with code, and the file that the code makes when it runs."""
    marker = tmp_path / "marker"
    auto_map = {
        "AutoConfig": "theirs.Config",
        "AutoModelForSequenceClassification": "theirs.Model",
    }
    folder = copied(source, tmp_path / "model", model_type=model_type, auto_map=auto_map)
    (folder / "theirs.py").write_text(CODE.format(marker=str(marker)))
    return folder, marker
