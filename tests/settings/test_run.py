import pytest

from scpo_ray.data.opinions import OpinionsConfig
from scpo_ray.data.preferences import PreferencesConfig
from scpo_ray.data.prism import PrismConfig
from scpo_ray.data.synthetic import SyntheticConfig
from scpo_ray.records import InputError
from scpo_ray.settings.data import PAPER_CULTURES
from scpo_ray.settings.files import load_config
from scpo_ray.settings.methods import METHODS, method_names, own_methods
from scpo_ray.settings.model import ModelConfig
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.section import Section
from scpo_ray.settings.train import TrainConfig


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
    assert config.train.weight_decay == 0.0
    assert config.evaluation.distinctive_threshold == 0.5


KEPT = [
    "output_dir=elsewhere",
    "tracking.tracker=none",
    "device=cpu",
    "experiment=other",
    "launch={max_failures: 7}",
    "train.num_workers=2",
    "train.micro_batch_tokens=2048",
    "train={engine: deepspeed, zero_stage: 3, offload_optimizer: true}",
    "train={engine: deepspeed, deepspeed_config: more.json}",
    # What is looked at, and how often.
    "evaluation.distinctive_threshold=0.4",
    "evaluation.bootstrap_samples=100",
    "train={log_every: 7, checkpoint_every: 9, keep_checkpoints: 1}",
    "model.inference_batch_tokens=2048",
    "model.attention=eager",
    # What another method reads.
    "methods={lore: {rank: 3}, group_dro: {step_size: 0.5}}",
]


@pytest.mark.parametrize("override", KEPT)
def test_run_id_does_not_depend_on_where_a_run_is_kept_or_how_it_is_looked_at(override):
    assert load_config("paper", [override]).run_id == load_config("paper").run_id


DECIDING = [
    "train.draw=interactions",
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
    "train.weight_decay=0.3",
]


@pytest.mark.parametrize("override", DECIDING)
def test_run_id_depends_on_what_decides_the_result(override):
    assert load_config("paper", [override]).run_id != load_config("paper").run_id


def voted(columns: str, *more: str) -> RunConfig:
    columns = f"data={{source: preferences, train_files: [a.jsonl], columns: {{{columns}}}}}"
    return load_config("paper", [columns, *more])


@pytest.mark.parametrize(
    "columns",
    ["user: u, chosen_share: agreed", "user: u, chosen_votes: a, rejected_votes: b"],
)
def test_soft_labels_make_another_run_and_leaving_them_out_does_not(columns):
    soft, plain = (voted(columns, f"train.soft_labels={on}") for on in ("true", "false"))

    assert soft.run_id != plain.run_id == voted(columns).run_id


def test_a_share_column_makes_another_run_and_none_does_not():
    ids = [voted(c).run_id for c in ("user: u, chosen_share: null", "user: u, chosen_share: s")]

    assert ids[0] == voted("user: u").run_id != ids[1]


@pytest.mark.parametrize(
    "data",
    [
        "{source: prism}",
        "{source: synthetic}",
        "{source: preferences, train_files: [a.jsonl], columns: {user: u}}",
        "{source: preferences, train_files: [a.jsonl],"
        " columns: {user: u, responses: r, scores: s}}",
    ],
)
def test_soft_labels_are_refused_where_the_data_counts_nobody(data):
    with pytest.raises(InputError) as caught:
        load_config("paper", [f"data={data}", "train.soft_labels=true"])

    [problem] = caught.value.problems
    assert "train.soft_labels needs data that says how many preferred each response" in problem


def test_soft_labels_go_with_opinions():
    opinions = ["data={source: opinions, path: answers.csv}", "train.soft_labels=true"]

    assert load_config("paper", opinions).train.soft_labels


def test_cultures_that_are_only_tested_on_make_another_evaluation_and_not_another_run():
    chile = ["culture_weights={Chile: 1.0}"]
    seven = load_config("paper", chile)
    two = load_config("paper", [*chile, "data.cultures=[Chile, Israel]"])
    zero = load_config("paper", ["culture_weights={Chile: 1.0, Israel: 0.0}"])

    assert seven.run_id == two.run_id == zero.run_id
    assert seven.evaluation_id != two.evaluation_id
    # Heads are learned from all cultures of the data.
    lore = [
        load_config("paper", [*chile, "method=lore", *more])
        for more in ([], ["data.cultures=[Chile, Israel]"])
    ]
    assert lore[0].run_id != lore[1].run_id


@pytest.mark.parametrize("override", ["evaluation.num_examples=9", "train.max_steps=3", "seed=1"])
def test_evaluation_id_depends_on_the_model_and_on_how_it_is_evaluated(override):
    assert load_config("paper", [override]).evaluation_id != load_config("paper").evaluation_id


def test_run_id_of_a_rival_depends_on_its_own_settings_alone():
    lore = load_config("paper", ["method=lore"])

    more = load_config("paper", ["method=lore", "methods.lore.rank=3"])
    other = load_config("paper", ["method=lore", "methods.group_dro.step_size=0.5"])

    assert more.run_id != lore.run_id == other.run_id


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


@pytest.mark.parametrize(
    "section", [PrismConfig, PreferencesConfig, OpinionsConfig, SyntheticConfig]
)
def test_every_source_has_the_settings_of_all(section):
    assert {"source", "cultures", "data_fraction", "split"} <= set(section.model_fields)


def test_the_papers_methods_come_first_and_what_they_need_is_said():
    assert own_methods() == ["global", "finetune", "filter", "weight", "inverse", "scpo"]
    assert method_names()[:6] == own_methods()
    assert {name for name in method_names() if METHODS[name].needs_global_model} == {
        *("filter", "weight", "inverse", "scpo", "shared_offset", "lore", "lore_few", "gpo"),
        "prompted",
    }
    assert {name for name in method_names() if not METHODS[name].trains} == {
        *("global", "shared_offset", "lore", "lore_few", "gpo", "prompted", "soup")
    }


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["train.num_workers=0"], "train: num_workers must be at least 1, got 0"),
        (["train.num_workers=-1"], "train: num_workers must be at least 1, got -1"),
        (["train.num_workers=[0, 2]"], "train: num_workers must be at least 1, got 0"),
        (["train.num_workers=[2, 1]"], "train: num_workers [min, max] must rise, got [2, 1]"),
        (
            ["train.num_workers=two"],
            "train.num_workers: must be a whole number or [min, max], got 'two'",
        ),
        (
            ["train.num_workers=[1, 2, 3]"],
            "train.num_workers: must be a whole number or [min, max], got [1, 2, 3]",
        ),
        (
            ["train.num_workers=true"],
            "train.num_workers: must be a whole number or [min, max], got True",
        ),
        (
            ["train.num_workers=9"],
            "train: num_workers 9 must not exceed batch_size 8: a worker without a pair has "
            "nothing to do",
        ),
        (
            ["train.engine=deepspeed", "train.zero_stage=4"],
            "train.zero_stage = 4: must be less than or equal to 3",
        ),
        (
            ["train.zero_stage=2"],
            'train: zero_stage needs engine "deepspeed", got engine "torch"',
        ),
        (
            ["train.deepspeed_config=ds.json"],
            'train: deepspeed_config needs engine "deepspeed", got engine "torch"',
        ),
        (
            ["train.engine=deepspeed", "train.offload_optimizer=true"],
            "train: offload_optimizer needs zero_stage 1, 2 or 3, got 0",
        ),
        (
            ["launch.storage=runs/shared", "tracking.tracker=jsonl"],
            "launch.storage: must be a URI such as s3://bucket/runs or file:///mnt/runs, got "
            "'runs/shared'",
        ),
        (
            ["launch.storage=s3://bucket/runs"],
            "launch.storage is for machines without a common disk, and so without a common "
            "mlflow.db: set tracking.uri to a server, or tracking.tracker to jsonl",
        ),
        (["launch.cpus_per_worker=0"], "launch.cpus_per_worker = 0: must be greater than 0"),
        (["launch.placement=NEAR"], "launch.placement = NEAR: must be 'PACK', 'SPREAD'"),
    ],
)
def test_workers_that_cannot_be_are_refused_with_the_rule_and_the_value(overrides, problem):
    with pytest.raises(InputError) as error:
        load_config("paper", overrides)

    assert error.value.problems[0].startswith(problem)


def test_workers_between_two_numbers():
    train = load_config("paper", ["train.num_workers=[1, 4]"]).train

    assert (train.min_workers, train.max_workers) == (1, 4)
    assert load_config("paper", ["train.num_workers=3"]).train.worker_range == (3, 3)


def test_tokens_of_a_pass_follow_from_the_device_and_hold_the_longest_pair():
    train, model = TrainConfig(), ModelConfig()

    assert train.pass_tokens("cpu", longest_pair=90) == 2_048
    assert train.pass_tokens("cuda:1", longest_pair=90) == 8_192
    assert train.pass_tokens("cpu", longest_pair=4_096) == 4_096
    assert TrainConfig(micro_batch_tokens=96).pass_tokens("cuda", longest_pair=90) == 96
    assert (model.batch_tokens("cpu"), model.batch_tokens("cuda")) == (2_048, 16_384)
    assert ModelConfig(inference_batch_tokens=99).batch_tokens("cpu") == 99
