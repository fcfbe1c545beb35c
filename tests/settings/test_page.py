"""docs/configuration.md says what the config classes say."""

from pathlib import Path

from scpo_ray.settings.page import configuration_page
from scpo_ray.settings.run import RunConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_settings_page_is_the_one_the_config_classes_make():
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), "run: make docs"


def test_every_setting_of_a_run_stands_on_the_page():
    page = configuration_page()

    for name in RunConfig.model_fields:
        assert f"| `{name}` |" in page
    for setting in ("data.columns.culture", "data.split.by", "model.lora.rank", "train.max_steps"):
        assert f"| `{setting}` |" in page
