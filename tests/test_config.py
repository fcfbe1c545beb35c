import pytest

from scpo_ray.config import (
    METHODS,
    PAPER_CULTURES,
    PreferencesConfig,
    PrismConfig,
    RunConfig,
    Section,
    SyntheticConfig,
)
from scpo_ray.config_file import load_config


def test_the_paper_preset_has_the_papers_settings():
    config = load_config("paper")

    assert config.method == "scpo"
    assert config.seed == 0
    assert isinstance(config.data, PrismConfig)
    assert config.data.cultures == list(PAPER_CULTURES)
    assert set(PAPER_CULTURES) == {
        *("Chile", "South Africa", "New Zealand", "Australia", "Mexico", "Israel", "Canada")
    }
    assert config.data.history is False
    assert config.data.data_fraction == 1
    assert config.data.split.by == "user"
    assert config.data.split.test_size == 0.15
    assert config.data.split.seed == 0
    assert config.data.split.num_folds is None
    assert config.model.path == "OpenAssistant/reward-model-deberta-v3-base"
    assert config.model.max_length == 512
    assert config.model.lora is None
    assert config.model.new_head is False
    assert config.selection.filter_threshold == 0.7
    assert config.selection.weight_temperature == 1.10
    assert config.selection.normalize_weights is False
    assert config.train.learning_rate == 1e-6
    assert config.train.schedule == "linear"
    assert config.train.warmup_steps == 0
    assert config.train.batch_size == 8
    assert config.train.max_steps == 1_024
    assert config.train.max_grad_norm == 1.0
    assert config.evaluation.distinctive_threshold == 0.5


KEPT = ["output_dir=elsewhere", "tracking.tracker=none", "device=cpu", "experiment=other"]


@pytest.mark.parametrize("override", KEPT)
def test_run_id_does_not_depend_on_where_a_run_is_kept(override):
    assert load_config("paper", [override]).run_id == load_config("paper").run_id


DECIDING = [
    "method=weight",
    "seed=1",
    "culture_weights={Chile: 1.0}",
    "data={source: prism, path: other}",
    "data={source: prism, cultures: [Mexico]}",
    "data={source: prism, split: {seed: 1}}",
    "data={source: synthetic}",
    "model.path=other",
    "model.max_length=256",
    "model.lora={}",
    "selection.filter_threshold=null",
    "selection.weight_temperature=1.2",
    "train.batch_size=16",
    "train.max_steps=3",
    "train.learning_rate=2e-6",
    "evaluation.distinctive_threshold=0.4",
]


@pytest.mark.parametrize("override", DECIDING)
def test_run_id_depends_on_what_decides_the_result(override):
    assert load_config("paper", [override]).run_id != load_config("paper").run_id


def test_every_section_is_in_one_of_the_two_lists_above():
    listed = {override.partition("=")[0].partition(".")[0] for override in [*KEPT, *DECIDING]}

    assert listed == set(RunConfig.model_fields)


def test_a_config_that_went_through_json_is_the_same():
    config = load_config("paper", ["culture_weights={Chile: 1.0, Peru: 0.3}"])

    again = RunConfig.model_validate(config.model_dump(mode="json"))

    assert again == config
    assert again.run_id == config.run_id


def test_mlflow_goes_to_a_file_in_the_output_folder_unless_told(tmp_path):
    assert RunConfig(output_dir=tmp_path).mlflow_uri == f"sqlite:///{tmp_path}/mlflow.db"
    told = RunConfig.model_validate({"tracking": {"uri": "http://host:5000"}})
    assert told.mlflow_uri == "http://host:5000"


def test_settings_cannot_be_changed_after_they_were_checked():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3


def all_sections(section: type[Section]) -> set[type[Section]]:
    below = {s for child in section.__subclasses__() for s in all_sections(child)}
    return {section, *below}


@pytest.mark.parametrize(
    "section", sorted(all_sections(Section), key=lambda s: s.__name__), ids=lambda s: s.__name__
)
def test_every_setting_has_a_help_text(section):
    without = [name for name, field in section.model_fields.items() if not field.description]

    assert without == []


@pytest.mark.parametrize("section", [PrismConfig, PreferencesConfig, SyntheticConfig])
def test_every_source_has_the_settings_of_all(section):
    assert {"source", "cultures", "data_fraction", "split"} <= set(section.model_fields)


def test_the_methods_are_the_papers_points_of_the_settings():
    table = {
        name: (method.trains, method.filters, method.weighting) for name, method in METHODS.items()
    }

    assert table == {
        "global": (False, False, "none"),
        "finetune": (True, False, "none"),
        "filter": (True, True, "none"),
        "weight": (True, False, "agreement"),
        "inverse": (True, False, "inverse"),
        "scpo": (True, True, "agreement"),
    }
    assert [name for name, method in METHODS.items() if method.needs_global_model] == [
        *("filter", "weight", "inverse", "scpo")
    ]
