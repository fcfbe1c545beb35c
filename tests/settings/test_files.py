from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from scpo_ray.data.prism import PrismConfig
from scpo_ray.data.synthetic import SyntheticConfig
from scpo_ray.records import InputError
from scpo_ray.settings.data import PAPER_CULTURES
from scpo_ray.settings.files import (
    check_culture_names,
    load_comparison,
    load_config,
    load_header,
    load_sweep,
)
from scpo_ray.settings.launch import LaunchConfig
from scpo_ray.settings.methods import own_methods
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.spelling import nearest_names
from scpo_ray.settings.tracking import TrackingConfig
from scpo_ray.sweep.space import check_space, planned_settings, trials_of
from tests.settings.test_shown import SECRET, WITH_A_PASSWORD

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "sweeps").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(InputError) as error:
        load_config(write(folder, text), overrides)
    return list(error.value.problems)


def comparison_problems(folder: Path, text: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(InputError) as error:
        load_comparison(write(folder, text), overrides)
    return list(error.value.problems)


def test_every_problem_of_a_file_is_told_at_once(tmp_path):
    text = """
run:
  selection: {filter_threshold: 1.7, filter_treshold: 0.6}
  train: {warmup_steps: 2000}
"""
    path = write(tmp_path, text)

    with pytest.raises(InputError) as error:
        load_comparison(path)

    assert str(error.value) == (
        f"{path}: 3 problems\n"
        "  run.selection.filter_threshold = 1.7: must be less than or equal to 1\n"
        "  run.selection.filter_treshold = 0.6: no such setting; "
        "nearest: run.selection.filter_threshold\n"
        "  run.train: warmup_steps 2000 must be below max_steps 1024"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tain: {max_steps: 3}", "tain = {'max_steps': 3}: no such setting"),
        ("3: 4", "3: no such setting"),
        (
            "methods: {group_dro: {step_siz: 1}}",
            "methods.group_dro.step_siz = 1: no such setting; nearest: methods.group_dro.step_size",
        ),
        ("learning_rate: 3", "learning_rate = 3: no such setting; nearest: train.learning_rate"),
        ("seed: -1", "seed = -1: must be greater than or equal to 0"),
        ("seed: true", "seed: must be a number, not true or false"),
        ("selection: {filter_threshold: true}", "selection.filter_threshold: must be a number"),
        ("model: {num_layers: false}", "model.num_layers: must be a number, not true or false"),
        ("culture_weights: {North: true}", "culture_weights: must be a number, not true or false"),
        ("train: {batch_size: 1.5}", "train.batch_size = 1.5: must be a valid integer, got a"),
        ("train: {learning_rate: .inf}", "train.learning_rate = inf: must be a finite number"),
        (
            "selection: {weight_temperature: .nan}",
            "selection.weight_temperature = nan: must be a finite number",
        ),
        ("selection: {filter_threshold: 0}", "selection.filter_threshold = 0: must be greater"),
        ("model: {trust_remote_code: 7}", "model.trust_remote_code = 7: must be a valid boolean"),
        ("train:", "train = null: must be a section of settings"),
        ("data: prism", "data = prism: must be a section of settings"),
        ("experiment: a/b", "experiment: 'a/b' must be a folder's name: letters, digits"),
        ("experiment: ..", "experiment: '..' must be a folder's name: letters, digits"),
        ("method: scop", "method: there is no method 'scop'; nearest: 'soup', 'scpo'"),
        ("culture_weights: {Chile: -1}", "culture_weights.Chile = -1: must be greater than or"),
        ("culture_weights: {Chile: 0}", "culture_weights: at least one must be above 0"),
        (
            "data: {path: x}",
            "data.source = null: must be set, to one of opinions, preferences, prism, synthetic",
        ),
        (
            "data: {source: prizm}",
            "data.source = prizm: there is none of this name; nearest: 'prism'; all: opinions, ",
        ),
        ("data: {source: prism, history: maybe}", "data.history = maybe: must be a valid boolean"),
        ("data: {source: synthetic, history: true}", "data.history = true: no such setting"),
        (
            "data: {source: synthetic, users: {A: 1000000000}}",
            "data.users.A = 1000000000: must be less than or equal to 100000000",
        ),
        (
            "data: {source: synthetic, users: {A: 90000000}}",
            "data: users x interactions_per_user x responses_per_interaction must be at most 1",
        ),
        (
            "data: {source: synthetic, split: {num_folds: 1000000000000}}",
            "data.split.num_folds = 1000000000000: must be less than or equal to 1000",
        ),
        (
            "data: {source: prism, cultures: [Chile, 'Chile ']}",
            "data.cultures: cultures must name each culture once, got ['Chile', 'Chile ']",
        ),
        (
            'culture_weights: {Chile: 1, " Chile": 2}',
            "culture_weights must name each culture once, got ['Chile', ' Chile']",
        ),
        ("data: {source: synthetic, users: {A: 0}}", "data.users: must name cultures with at"),
        (
            "data: {source: prism, cultures: []}",
            "data.cultures: cultures must name one at least; null: all",
        ),
        (
            "data: {source: prism, cultures: [A, A]}",
            "data.cultures: cultures must name each culture once, got",
        ),
        ("data: {source: prism, path: null}", "data.path = null: must be a valid string"),
        ("data: {source: preferences}", "data: set either train_files or hub"),
        (
            "data: {source: preferences, train_files: [a.jsonl]}",
            'data: split.by "user" needs columns.user',
        ),
        (
            "data: {source: preferences, hub: a/b, split: {by: question}}",
            'data: split.by "question" needs columns.question',
        ),
        (
            "data: {source: preferences, train_files: [a.csv], split: {by: source}}",
            'data: test files (or hub_test_split) and split.by "source" go together, got '
            "split.by 'source' without a test part",
        ),
        (
            "data: {source: preferences, hub: a/b, test_files: [a.csv]}",
            "data: test_files go with train_files, not with hub",
        ),
        (
            "data: {source: preferences, hub: a/b, columns: {scores: s}}",
            "data.columns: responses and scores are set together or not at all",
        ),
        ("data: {source: prism, split: {fold: 1}}", "data.split: fold 1 needs num_folds"),
        (
            "data: {source: prism, split: {num_folds: 3, fold: 3}}",
            "data.split: fold 3 must be below num_folds 3",
        ),
        (
            "model: {new_head: true}",
            "method 'scpo' needs a trained global model, but model.new_head gives the model an",
        ),
        (
            "train: {micro_batch_tokens: 1000}",
            "train.micro_batch_tokens 1000 must hold one pair: at least 2 x model.max_length 512",
        ),
        (
            "train: {micro_batch_tokens: 63}",
            "train.micro_batch_tokens: must be auto or a whole number from 64 to 1000000000",
        ),
        (
            "model: {inference_batch_tokens: many}",
            "model.inference_batch_tokens: must be auto or a whole number from 64",
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_rule_and_value(tmp_path, text, problem):
    found = problems(tmp_path, text)

    assert len(found) == 1
    assert found[0].startswith(problem)


def test_a_long_or_broken_value_is_shown_in_one_short_line(tmp_path):
    (problem,) = problems(tmp_path, 'train: {max_steps: "a\\nb' + "x" * 200 + '"}')

    assert problem.startswith("train.max_steps = a bxxx")
    assert "\n" not in problem
    assert len(problem) < 150


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a config is a mapping of settings, got nothing"),
        ("- 1", "a config is a mapping of settings, got list"),
        ("just words", "a config is a mapping of settings, got str"),
        ("[a", "not YAML"),
        ("experiment: !!timestamp 2024-13-45", "not YAML"),
        ("preset: papper", "preset = papper: must be one of paper"),
        ("preset: [paper]", "preset = ['paper']: must be one of paper"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, text))

    assert error.value.title == f"{tmp_path / 'run.yaml'}: {message}"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read\n  No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read\n  Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"experiment: caf\xe9")
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_defaults_are_those_of_the_classes(tmp_path):
    assert load_config(write(tmp_path, "{}")) == RunConfig()


def test_overrides_reach_any_depth_and_are_read_as_yaml(tmp_path):
    path = write(tmp_path, "data: {source: prism, path: old}\ntrain: {max_steps: 7}")
    overrides = [
        "train.max_steps=3",
        "train.learning_rate=1e-4",
        "data.cultures=[Chile, South Africa]",
        "data.path=a=b",
        "selection.filter_threshold=null",
        "model.lora.rank=4",
        "culture_weights={Chile: 1.0}",
    ]

    config = load_config(path, overrides)

    assert config.train.max_steps == 3
    assert config.train.learning_rate == 1e-4
    assert config.data.cultures == ["Chile", "South Africa"]
    assert isinstance(config.data, PrismConfig)
    assert config.data.path == "a=b"
    assert config.selection.filter_threshold is None
    assert config.model.lora is not None
    assert config.model.lora.rank == 4
    assert config.culture_weights == {"Chile": 1.0}


def test_an_override_reaches_one_place_where_an_anchor_made_two(tmp_path):
    text = "data: {source: synthetic, users: &people {A: 1, B: 1}}\nculture_weights: *people"

    config = load_config(write(tmp_path, text), ["data.users.A=5"])

    assert isinstance(config.data, SyntheticConfig)
    assert config.data.users == {"A": 5, "B": 1}
    assert config.culture_weights == {"A": 1, "B": 1}


def test_the_last_of_two_overrides_wins(tmp_path):
    config = load_config(write(tmp_path, "{}"), ["seed=1", "seed=2"])

    assert config.seed == 2


def test_every_bad_override_is_named_at_once(tmp_path):
    path = write(tmp_path, "data: {source: prism, cultures: [Chile]}")
    overrides = ["seed", "=3", "seed=[", "seed=!!int x", "data.cultures.0=Peru", "method=weight"]

    with pytest.raises(InputError) as error:
        load_config(path, overrides)

    assert str(error.value) == (
        f"{path}: 5 problems in overrides\n"
        "  --set seed: must be setting=value\n"
        "  --set =3: must be setting=value\n"
        "  --set seed=[: the value is not YAML\n"
        "  --set seed=!!int x: the value is not YAML\n"
        "  --set data.cultures.0=Peru: a part of 'data.cultures.0' is not a section"
    )


def test_an_override_is_checked_like_the_file(tmp_path):
    assert problems(tmp_path, "{}", ["train.max_stepss=3", "seed=x"]) == [
        "seed = x: must be a valid integer, unable to parse string as an integer",
        "train.max_stepss = 3: no such setting; nearest: train.max_steps",
    ]


def test_settings_of_a_file_lie_over_its_preset_and_overrides_over_both(tmp_path):
    path = write(tmp_path, "preset: paper\nseed: 3\ntrain: {max_steps: 9, batch_size: 4}")

    config = load_config(path, ["train.batch_size=2"])

    assert (config.seed, config.train.max_steps, config.train.batch_size) == (3, 9, 2)
    assert config.train.learning_rate == 1e-6
    assert config.data.cultures == list(PAPER_CULTURES)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("preset: paper\ndata: {source: synthetic}", []),
        ("preset: paper", ["data.source=synthetic"]),
    ],
)
def test_a_preset_leaves_its_data_section_out_for_another_source(tmp_path, text, overrides):
    config = load_config(write(tmp_path, text), overrides)

    assert config.data == SyntheticConfig(source="synthetic")
    assert config.train.learning_rate == 1e-6


def test_a_preset_is_never_changed_by_what_is_laid_over_it(tmp_path):
    before = load_config("paper")

    load_config("paper", ["train.max_steps=3", "data.cultures=[Chile]"])

    assert load_config("paper") == before


def test_a_comparison_file_has_a_run_and_a_space(tmp_path):
    text = """
run: {preset: paper, train: {max_steps: 9}}
space: {method: [global, scpo], culture: [Chile, Peru], seed: [0, 1]}
"""
    comparison = load_comparison(
        write(tmp_path, text), ["run.train.batch_size=2", "space.seed=[4]"]
    )

    assert comparison.run.train.max_steps == 9
    assert comparison.run.train.batch_size == 2
    assert comparison.run.train.learning_rate == 1e-6
    assert comparison.space.method == ["global", "scpo"]
    assert comparison.space.culture == ["Chile", "Peru"]
    assert comparison.space.seed == [4]


def test_a_run_alone_is_compared_over_all_methods_and_one_seed(tmp_path):
    comparison = load_comparison(write(tmp_path, "train: {max_steps: 9}"), ["train.batch_size=2"])

    assert comparison.run == load_config(
        write(tmp_path, "train: {max_steps: 9}"), ["train.batch_size=2"]
    )
    assert comparison.space.method == own_methods()
    assert comparison.space.culture is None
    assert comparison.space.seed == [0]


def test_a_run_alone_is_compared_over_the_space_that_the_command_names(tmp_path):
    path = write(tmp_path, "train: {max_steps: 9}")

    comparison = load_comparison(path, ["space.method=[finetune, lore]", "train.batch_size=2"])

    assert comparison.space.method == ["finetune", "lore"]
    assert (comparison.run.train.max_steps, comparison.run.train.batch_size) == (9, 2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("run:", "run = null: must be a section of settings"),
        ("run: {}\nspaces: {}", "spaces = {}: no such setting"),
        ("seed: x", "seed = x: must be a valid integer, unable to parse string as an integer"),
        ("run: {}\nspace: {seed: [-1]}", "space.seed.0 = -1: must be greater than or equal to 0"),
        ("run: {}\nspace: {method: []}", "space: method must name each value once, got []"),
        ("run: {}\nspace: {culture: []}", "space: culture must name each value once, got []"),
        ("run: {}\nspace: {seed: [1, 1]}", "space: seed must name each value once, got [1, 1]"),
    ],
)
def test_a_bad_comparison_is_refused(tmp_path, text, problem):
    assert comparison_problems(tmp_path, text) == [problem]


def test_a_comparison_of_methods_that_need_a_global_model_refuses_a_new_head(tmp_path):
    text = "run: {method: finetune, model: {new_head: true}}\nspace: {method: [finetune, weight]}"

    (problem,) = comparison_problems(tmp_path, text)

    assert problem.startswith("method 'weight' needs a trained global model")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_sweep_file_loads_and_says_what_it_is_for(path):
    text = path.read_text()

    assert text.startswith("#")
    document = yaml.safe_load(text)
    if any(isinstance(axis, dict) for axis in document.get("space", {}).values()):
        sweep = load_sweep(path)
        check_space(sweep, path)
        settings = [] if sweep.search.is_adaptive else planned_settings(sweep)
        assert load_header(path).endswith("?")
        known = sweep.run.data.cultures or sweep.space["culture"].grid
        assert len(trials_of(sweep, settings, known)) >= len(settings)
    elif "run" in document:
        assert load_comparison(path).space.method
    else:
        assert load_config(path).train.max_steps > 0


def test_there_are_sweep_files():
    assert SWEEPS


def test_an_unknown_culture_is_told_with_the_nearest_names():
    known = ["Chile", "China", "Korea, Republic of", "Mexico"]

    with pytest.raises(InputError) as error:
        check_culture_names(["Chile", "chille", "Korea"], known, "data.cultures")

    assert error.value.problems == (
        "data.cultures: no culture 'chille' in the data; nearest: 'Chile', 'China'",
        f"data.cultures: no culture 'Korea' in the data; nearest: {nearest_names('Korea', known)}",
    )
    assert "'Korea, Republic of'" in error.value.problems[1]


@pytest.mark.parametrize(
    ("left", "by", "place"),
    [
        (None, "data.cultures", "the data"),
        (["Peru", "US"], "data.cultures", "the data"),
        (["Peru"], "data.cultures", "data.cultures, which leaves all others out"),
        (["Peru"], "space.culture", "space.culture, which leaves all others out"),
    ],
)
def test_a_culture_that_a_setting_leaves_out_is_told_with_that_setting(left, by, place):
    with pytest.raises(InputError) as error:
        check_culture_names(["US"], ["Peru"], "culture_weights", left=left, by=by)

    [problem] = error.value.problems
    assert problem == f"culture_weights: no culture 'US' in {place}; nearest: 'Peru'"


def test_known_cultures_are_no_problem():
    check_culture_names(["Chile"], ["Chile", "Peru"], "data.cultures")
    check_culture_names([], ["Chile"], "data.cultures")


def test_a_section_written_twice_is_an_error_that_names_key_and_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("train:\n  max_steps: 5\nseed: 1\ntrain:\n  batch_size: 4\n")

    with pytest.raises(InputError) as error:
        load_config(path)

    assert "'train' is set twice" in str(error.value)
    assert "line 4" in str(error.value)


@pytest.mark.parametrize(
    ("source", "spelling", "name"),
    [("prism", " Me\u0301xico ", "México"), ("opinions", "S.  Africa", "South Africa")],
)
def test_cultures_have_one_name_wherever_a_setting_names_them(tmp_path, source, spelling, name):
    data = {"source": source, "cultures": [spelling]}
    run = {"data": data, "culture_weights": {spelling: 1.0}}
    space = {"culture": [spelling], "method": ["finetune"]}
    axes = {"culture": {"grid": [spelling]}, "train.batch_size": {"grid": [4, 8]}}
    mixed = {f"culture_weights.{spelling}": {"grid": [0.5, 1.0]}}

    config = load_config(write(tmp_path, yaml.safe_dump(run)))
    compared = load_comparison(write(tmp_path, yaml.safe_dump({"run": run, "space": space})))
    objective = {"culture": spelling}
    swept = load_sweep(
        write(tmp_path, yaml.safe_dump({"run": run, "space": axes, "objective": objective}))
    )
    weighed = load_sweep(write(tmp_path, yaml.safe_dump({"run": run, "space": mixed})))

    assert config.data.cultures == list(config.culture_weights) == [name]
    assert compared.space.culture == [name]
    assert (swept.space["culture"].grid, swept.objective.culture) == ([name], name)
    assert list(weighed.space) == [f"culture_weights.{name}"]


@pytest.mark.parametrize(
    "text", ["launch: {on: ray}", "launch:\n  on: ray", '{"launch": {"on": "ray"}}']
)
def test_on_is_a_setting_and_no_boolean(tmp_path, text):
    assert load_config(write(tmp_path, text)).launch.on == "ray"


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_a_culture_may_be_called_so(tmp_path, word):
    path = write(tmp_path, f"culture_weights: {{{word}: 1, Chile: {{}}}}")

    config = load_config(
        path, ["data.source=prism", f"data.cultures=[{word}]", "culture_weights.Chile=0.5"]
    )

    assert config.culture_weights == {word: 1, "Chile": 0.5}
    assert config.data.cultures == [word]


def test_a_sweep_over_cultures_called_so(tmp_path):
    text = (
        "run: {data: {source: synthetic, users: {no: 9, y: 9}}}\nspace: {culture: {grid: [no, y]}}"
    )

    sweep = load_sweep(write(tmp_path, text))

    assert sweep.space["culture"].model_dump() == {"grid": ["no", "y"]}


# Secrets


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("tracking.uri", "tracking: {{uri: '{uri}'}}"),
        ("launch.storage", "launch: {{storage: '{uri}'}}"),
        ("data.path", "data: {{source: prism, path: '{uri}'}}"),
        ("trackin.uri", "trackin: {{uri: '{uri}'}}"),
    ],
)
@pytest.mark.parametrize("uri", WITH_A_PASSWORD)
def test_a_password_is_refused_in_a_file_and_in_an_override_and_shown_by_neither(
    tmp_path, setting, text, uri
):
    path = write(tmp_path, text.format(uri=uri))
    with pytest.raises(InputError) as in_file:
        load_config(path)
    path.write_text("{}")
    with pytest.raises(InputError) as in_override:
        load_config(path, [f"{setting}='{uri}'"])

    for error in (in_file, in_override):
        assert "environment" in str(error.value)
        assert SECRET not in str(error.value)
    assert in_override.value.problems[0].startswith(f"{setting}: holds a")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tracking: {password: hunter2}", "tracking.password = ***: no such setting"),
        ("trackin: {token: hunter2}", "trackin = {'token': '***'}: no such setting"),
        ("tracking: [{secret: hunter2}]", "tracking = [{'secret': '***'}]: must be a section"),
    ],
)
def test_what_is_called_a_secret_is_not_shown(tmp_path, text, shown):
    (problem,) = problems(tmp_path, text)

    assert problem.startswith(shown)


@pytest.mark.parametrize(
    "override",
    [
        "=http://u:hunter2@host",
        "http://u:hunter2@host",
        "a.password=[hunter2",
        "uri=[http://u:hunter2@h",
    ],
)
def test_an_override_that_cannot_be_read_shows_no_secret(tmp_path, override):
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, "{}"), [override])

    assert SECRET not in str(error.value)


def test_a_line_that_is_no_yaml_is_shown_without_its_secret(tmp_path):
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, "tracking: {password: hunter2"))

    assert "not YAML" in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("uri", WITH_A_PASSWORD)
def test_a_library_user_is_refused_without_its_being_shown(uri):
    for section in (lambda: TrackingConfig(uri=uri), lambda: LaunchConfig(storage=uri)):
        with pytest.raises(ValidationError) as error:
            section()
        assert SECRET not in str(error.value)


# Names and places


@pytest.mark.parametrize(
    "name", ["cache", "Cache", "mlartifacts", "mlflow.db", "MLflow.DB", "mlflow.db.lock", "ray"]
)
def test_an_experiment_is_no_folder_that_the_output_needs(tmp_path, name):
    (problem,) = problems(tmp_path, f"experiment: {name}")

    assert problem == (
        f"experiment: '{name}' is what output_dir or launch.storage needs for itself"
    )


@pytest.mark.parametrize("name", ["caches", "mlflow", "my.cache", "2026-11-28", "on"])
def test_other_names_are_free(tmp_path, name):
    assert load_config(write(tmp_path, f"experiment: {name}")).experiment == name


def test_the_home_folder_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert load_config(write(tmp_path, "output_dir: ~/runs")).output_dir == tmp_path / "runs"
    (problem,) = problems(tmp_path, "output_dir: ~nobody-here/runs")
    assert problem.startswith("output_dir: no user has the home '~nobody-here'")


@pytest.mark.parametrize("name", ["a?b", "%41b"])
def test_a_database_that_no_uri_can_name_is_refused_and_without_one_any_name_will_do(
    tmp_path, name
):
    text = f"output_dir: '{tmp_path / name}'"

    (problem,) = problems(tmp_path, text)

    assert problem.startswith(f"output_dir: MLflow's database cannot lie in '{tmp_path / name}'")
    assert load_config(write(tmp_path, text), ["tracking.tracker=jsonl"]).output_dir.name == name


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("sqlite:///a?b/mlflow.db", "what follows a [?] are options"),
        ("sqlite:///~/mlflow.db", "~ is not read as your home here"),
        ("sqlite://", "must have three slashes and a path"),
        ("sqlite://runs/mlflow.db", "must have three slashes and a path"),
        ("sqlite:///:memory:", "a database in memory keeps nothing"),
        ("sqlite:///file:runs/mlflow.db?uri=true", "must be a path, not a URI within a URI"),
    ],
)
def test_a_database_uri_that_would_be_another_file_is_refused(uri, rule):
    with pytest.raises(ValidationError, match=rule):
        TrackingConfig(uri=uri)


@pytest.mark.parametrize(
    ("storage", "rule"),
    [
        ("file:///runs/a?b", "%3F"),
        ("file:///runs/a#b", "%23"),
        ("s3://bucket/a#b", "%23"),
        ("file://~/runs", "~ is not read"),
        ("s3://", "must be a URI such as"),
    ],
)
def test_a_storage_uri_that_would_be_another_place_is_refused(storage, rule):
    with pytest.raises(ValidationError, match=rule):
        LaunchConfig(storage=storage)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: {max_steps: 1000000000000}", "train.max_steps = 1000000000000: must be less"),
        ("train: {batch_size: 1000000000000}", "train.batch_size = 1000000000000: must be less"),
        ("evaluation: {bootstrap_samples: 5000000000}", "evaluation.bootstrap_samples = 50"),
        (
            "data: {source: synthetic, users: {A: 1000000000}}",
            "data.users.A = 1000000000: must be less than or equal to 100000000",
        ),
        ("model: {max_length: 4000000000}", "model.max_length = 4000000000: must be less"),
    ],
)
def test_a_number_of_any_size_is_refused(tmp_path, text, problem):
    assert problems(tmp_path, text)[0].startswith(problem)


def test_a_sweep_of_billions_of_trials_is_refused(tmp_path):
    axes = ", ".join(
        f"{name}: {{grid: [{', '.join(map(str, range(1, 100)))}]}}"
        for name in ("train.max_steps", "train.batch_size", "evaluation.num_examples")
    )

    with pytest.raises(InputError, match=r"space: 970,299 trials, at most 100,000 are planned"):
        load_sweep(write(tmp_path, f"run: {{}}\nspace: {{{axes}}}"))
