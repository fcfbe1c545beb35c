from collections.abc import Sequence
from pathlib import Path

import pytest

from scpo_ray.records import InputError
from scpo_ray.settings.files import load_header, load_sweep
from scpo_ray.settings.sweep import SweepConfig
from scpo_ray.sweep.space import check_space, planned_settings, trials_of

RUN = "run: {data: {source: synthetic}}\n"
DRAWN = "\nsearch: {by: random, num_draws: 2}"
KINDS = "grid, choice, uniform, loguniform, randint, dirichlet, bundles"


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def checked(folder: Path, text: str, overrides: Sequence[str] = ()) -> SweepConfig:
    path = write(folder, text)
    sweep = load_sweep(path, overrides)
    check_space(sweep, path)
    return sweep


def problems(folder: Path, text: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(InputError) as error:
        checked(folder, text, overrides)
    return list(error.value.problems)


# What the user reads


def test_every_value_that_a_run_cannot_have_is_told_at_once(tmp_path):
    text = """
run: {data: {source: synthetic}}
space:
  selection.filter_threshold: {grid: [0.5, 1.7, -1]}
  selection.filter_treshold: {grid: [0.6]}
  train.batch_size: {randint: [0, 8]}
  arm: {bundles: {ours: {method: scpo}, theirs: {method: scop, train.max_stps: 3}}}
search: {by: random, num_draws: 2}
"""
    path = write(tmp_path, text)

    with pytest.raises(InputError) as error:
        check_space(load_sweep(path), path)

    assert str(error.value) == (
        f"{path}: 6 problems\n"
        "  space.selection.filter_threshold = 1.7: must be less than or equal to 1\n"
        "  space.selection.filter_threshold = -1: must be greater than 0\n"
        "  space.selection.filter_treshold = 0.6: no such setting; "
        "nearest: selection.filter_threshold\n"
        "  space.train.batch_size = 0: must be greater than or equal to 1\n"
        "  space.arm.theirs: method: there is no method 'scop'; nearest: 'soup', 'scpo'\n"
        "  space.arm.theirs: train.max_stps = 3: no such setting; nearest: train.max_steps"
    )


def test_every_section_with_a_bad_setting_is_told_at_once(tmp_path):
    text = (
        "run: {seed: x}\nspace: {method: {grid: []}}\nrepeat: {seeds: [1, 1]}\n"
        "budget: {trials: 0, hours: 0}\nresources: {cpus: 0, gpus: -1}\nsurch: 3\nmax_concurrent: 0"
    )

    assert problems(tmp_path, text) == [
        "run.seed = x: must be a valid integer, unable to parse string as an integer",
        "space.method.grid = []: must have at least 1 value",
        "repeat.seeds: must name each value once, got [1, 1]",
        "resources.cpus = 0: must be greater than 0",
        "resources.gpus = -1: must be greater than or equal to 0",
        "max_concurrent = 0: must be greater than or equal to 1",
        "budget.trials = 0: must be greater than or equal to 1",
        "budget.hours = 0: must be greater than 0",
        "surch = 3: no such setting",
    ]


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ("method: scpo", f"method: must be one of {KINDS} with its values, got 'scpo'"),
        ("method: [scpo]", f"method: must be one of {KINDS} with its values, got ['scpo']"),
        ("method: {gird: [1]}", f"method: must be one of {KINDS} with its values, got {{'gird': "),
        (
            "method: {grid: [a], choice: [b]}",
            f"method: must be one of {KINDS} with its values, got",
        ),
        ("method: {grid: []}", "method.grid = []: must have at least 1 value"),
        ("method: {choice: []}", "method.choice = []: must have at least 1 value"),
        ("method: {grid: scpo}", "method.grid = scpo: must be a valid list"),
        (
            "method: {grid: [scpo, scpo]}",
            "method.grid: must name each value once, got ['scpo', 'scpo']",
        ),
        ("seed.x: {choice: [1, 1]}", "seed.x.choice: must name each value once, got [1, 1]"),
        ("a: {uniform: [2, 1]}", "a.uniform: must rise, got [2.0, 1.0]"),
        ("a: {uniform: [1, 1]}", "a.uniform: must rise, got [1.0, 1.0]"),
        ("a: {uniform: [1]}", "a.uniform.1: must be set"),
        ("a: {uniform: [.nan, 1]}", "a.uniform.0 = nan: must be a finite number"),
        ("a: {uniform: [0, .inf]}", "a.uniform.1 = inf: must be a finite number"),
        ("a: {loguniform: [0, 1]}", "a.loguniform: must begin above 0, got [0.0, 1.0]"),
        ("a: {loguniform: [-2, -1]}", "a.loguniform: must begin above 0, got [-2.0, -1.0]"),
        ("a: {loguniform: [1e-4, 1e-6]}", "a.loguniform: must rise, got [0.0001, 1e-06]"),
        ("a: {randint: [8, 4]}", "a.randint: must rise, got [8, 4]"),
        (
            "a: {randint: [1.5, 4]}",
            "a.randint.0 = 1.5: must be a valid integer, got a number with a fractional part",
        ),
        ("a: {dirichlet: {N: 1}}", "a.dirichlet = {'N': 1}: must have at least 2 values"),
        ("a: {dirichlet: {N: 1, S: 0}}", "a.dirichlet.S = 0: must be greater than 0"),
        ("arm: {bundles: {}}", "arm.bundles = {}: must have at least 1 value"),
        ("arm: {bundles: {a: scpo}}", "arm.bundles.a = scpo: must be a valid dictionary"),
    ],
)
def test_a_bad_domain_is_named_with_its_rule_and_value(tmp_path, space, problem):
    (found,) = problems(tmp_path, f"{RUN}space: {{{space}}}{DRAWN}")

    assert found.startswith(f"space.{problem}")


def test_two_bundles_of_one_name_are_refused_as_the_file_is_read(tmp_path):
    text = f"{RUN}space:\n  arm: {{bundles: {{a: {{method: scpo}}, a: {{method: filter}}}}}}\n"
    path = write(tmp_path, text)

    with pytest.raises(InputError) as error:
        load_sweep(path)

    assert error.value.title == f"{path}: not YAML"
    assert error.value.problems[0] == "'a' is set twice"
    assert "line 3" in error.value.problems[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{RUN}", "space: must be set"),
        (f"{RUN}space:", "space = null: must be a valid dictionary"),
        (f"{RUN}space: {{}}", "space = {}: must have at least 1 value"),
        ("space: {method: {grid: [scpo]}}", "run: must be set"),
        ("run:\nspace: {method: {grid: [scpo]}}", "run = null: must be a section of settings"),
        (
            f"{RUN}space: {{culture_weights: {{grid: [{{North: 0, South: 0}}]}}}}",
            "space.culture_weights: at least one must be above 0",
        ),
        (
            f"{RUN}space: {{train.learning_rate.x: {{grid: [2]}}}}",
            "space.train.learning_rate.x: a part of it is not a section",
        ),
        (
            "run: {method: finetune, model: {new_head: true}}\nspace: {method: {grid: [scpo]}}",
            "space.method 'scpo' needs a trained global model, but model.new_head gives the model "
            'an untrained head; make one first with method "finetune"',
        ),
    ],
)
def test_a_sweep_that_lacks_a_part_or_has_no_run_is_refused(tmp_path, text, problem):
    assert problems(tmp_path, text) == [problem]


@pytest.mark.parametrize(
    ("space", "search", "problem"),
    [
        (
            "selection.filter_threshold: {uniform: [0.1, 0.9]}",
            "{}",
            "space.selection.filter_threshold: a grid search takes grid and bundles alone",
        ),
        (
            "method: {choice: [scpo, filter]}",
            "{by: grid}",
            "space.method: a grid search takes grid and bundles alone",
        ),
        (
            "method: {grid: [scpo]}, arm: {bundles: {a: {train.max_steps: 3}}}",
            "{by: random, num_draws: 2}",
            "search.by random: nothing in the space is drawn; use grid",
        ),
        (
            "selection.filter_threshold: {uniform: [0.1, 0.9]}",
            "{by: random}",
            "search: num_draws goes with every search but \"grid\", got by 'random'",
        ),
        (
            "selection.filter_threshold: {uniform: [0.1, 0.9]}",
            "{by: tpe}",
            "search: num_draws goes with every search but \"grid\", got by 'tpe'",
        ),
        (
            "method: {grid: [scpo]}",
            "{num_draws: 3}",
            "search: num_draws goes with every search but \"grid\", got by 'grid'",
        ),
        (
            "selection.filter_threshold: {uniform: [0.1, 0.9]}",
            "{by: random, num_draws: 0}",
            "search.num_draws = 0: must be greater than or equal to 1",
        ),
        (
            "method: {grid: [scpo]}",
            "{by: optuna}",
            "search.by = optuna: must be 'grid', 'random', 'tpe' or 'tpe-all-agreed'",
        ),
        (
            "method: {grid: [scpo]}",
            "{seed: -1}",
            "search.seed = -1: must be greater than or equal to 0",
        ),
    ],
)
def test_a_search_that_does_not_fit_its_space_is_refused(tmp_path, space, search, problem):
    assert problems(tmp_path, f"{RUN}space: {{{space}}}\nsearch: {search}") == [problem]


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (
            "culture: {choice: [North, South]}",
            "culture: must be a grid, each culture has runs of its own",
        ),
        ("culture: {uniform: [0, 1]}", "culture: must be a grid, each culture has runs of its own"),
        ("culture: {grid: [North, 3]}", "culture: must name cultures, got 3"),
        ("culture: {grid: [false]}", "culture: must name cultures, got False"),
        ("culture: {grid: [[N, S]]}", "culture: must name cultures, got ['N', 'S']"),
        ("pooling: {grid: [0, 0.5]}", "pooling: the weight of the others, needs space.culture"),
        (
            "culture: {grid: [N]}, pooling: {loguniform: [0.1, 1]}",
            "pooling: must be a grid, a choice or uniform",
        ),
        (
            "culture: {grid: [N]}, pooling: {bundles: {a: {method: scpo}}}",
            "pooling: must be a grid, a choice or uniform",
        ),
        (
            "culture: {grid: [N]}, pooling: {grid: [0, much]}",
            "pooling: must be weights of at least 0, got 'much'",
        ),
        (
            "culture: {grid: [N]}, pooling: {grid: [null]}",
            "pooling: must be weights of at least 0, got None",
        ),
        (
            "culture: {grid: [N]}, pooling: {grid: [true]}",
            "pooling: must be weights of at least 0, got True",
        ),
        (
            "culture: {grid: [N]}, pooling: {uniform: [-1, 1]}",
            "pooling: must be weights of at least 0, got -1.0",
        ),
        ("arm: {bundles: {a: {culture: N}}}", "arm.a: culture is an axis of its own"),
        ("arm: {bundles: {a: {pooling: 1}}}", "arm.a: pooling is an axis of its own"),
        (
            "culture: {grid: [N]}, culture_weights: {grid: [{S: 1}]}",
            "culture_weights: is set by space.culture",
        ),
    ],
)
def test_a_bad_axis_of_cultures_is_refused(tmp_path, space, problem):
    # What is drawn has a search that draws.
    text = f"{RUN}space: {{{space}, selection.filter_threshold: {{uniform: [0.1, 0.9]}}}}{DRAWN}"

    assert problems(tmp_path, text) == [f"space.{problem}"]


OPINIONS = "run: {data: {source: opinions}}\n"


@pytest.mark.parametrize(
    ("space", "rest"),
    [
        ("culture: {grid: [Chile, COUNTRY]}, pooling: {grid: [0, 0.5]}", ""),
        ("culture: {grid: [Chile]}, culture_weights.COUNTRY: {uniform: [0, 1]}", DRAWN),
        (
            "culture_weights: {dirichlet: {Chile: 1, COUNTRY: 2}}",
            f"{DRAWN}\nobjective: {{culture: COUNTRY}}",
        ),
        (
            "culture_weights: {grid: [null, {Chile: 1, COUNTRY: 2}]}",
            "\nobjective: {culture: worst}",
        ),
        ("culture_weights: {choice: [{Chile: 1, COUNTRY: 2}]}", DRAWN),
        (
            "arm: {bundles: {a: {culture_weights: {COUNTRY: 1}}, b: {culture_weights.COUNTRY: 1}}}",
            "",
        ),
    ],
)
def test_a_sweep_over_opinions_takes_both_spellings_of_a_country(tmp_path, space, rest):
    text = f"{OPINIONS}space: {{{space}}}{rest}"
    ours, theirs = (
        checked(tmp_path, text.replace("COUNTRY", country))
        for country in ("S. Africa", "South Africa")
    )

    assert ours == theirs
    trials = trials_of(ours, planned_settings(ours), ["Chile", "South Africa"])
    assert "South Africa" in {name for t in trials for name in t.config.culture_weights or {}}


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (
            "culture: {grid: [S. Africa, South Africa]}",
            "space.culture must name each culture once, got ['S. Africa', 'South Africa']",
        ),
        (
            "culture_weights: {grid: [{S. Africa: 1, South Africa: 2}]}",
            "culture_weights must name each culture once, got ['S. Africa', 'South Africa']",
        ),
        (
            "culture_weights: {dirichlet: {S. Africa: 1, South Africa: 2}}",
            "culture_weights must name each culture once, got ['S. Africa', 'South Africa']",
        ),
        (
            "culture_weights.S. Africa: {grid: [1]}, culture_weights.South Africa: {grid: [0]}",
            "space.culture_weights.South Africa: must be set once, however its culture is spelled",
        ),
        ("culture: {grid: [Chile, 3]}", "space.culture: must name cultures, got 3"),
        ("culture_weights: {grid: 3}", "space.culture_weights.grid = 3: must be a valid list"),
    ],
)
def test_a_country_that_a_sweep_names_twice_or_badly_is_refused(tmp_path, space, problem):
    assert problems(tmp_path, f"{OPINIONS}space: {{{space}}}") == [problem]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("seed", "1", "is set by repeat.seeds"),
        ("train.num_workers", "2", "is set by resources.workers"),
        ("data.split.num_folds", "3", "is set by repeat.num_folds"),
        ("data.split.fold", "0", "is set by repeat.num_folds"),
        ("device", "cpu", "decides nothing of a run's result"),
        ("output_dir", "a", "decides nothing of a run's result"),
        ("experiment", "a", "decides nothing of a run's result"),
        ("tracking.uri", "a", "decides nothing of a run's result"),
        ("launch.cpus_per_worker", "2", "decides nothing of a run's result"),
        ("train.engine", "deepspeed", "decides nothing of a run's result"),
        ("train.zero_stage", "1", "decides nothing of a run's result"),
    ],
)
def test_a_setting_with_another_home_is_refused_on_an_axis_and_in_a_bundle(
    tmp_path, name, value, rule
):
    on_an_axis = f"{RUN}space: {{{name}: {{grid: [{value}]}}}}"
    in_a_bundle = f"{RUN}space: {{arm: {{bundles: {{a: {{{name}: {value}}}}}}}}}"

    assert problems(tmp_path, on_an_axis) == [f"space.{name}: {rule}"]
    assert problems(tmp_path, in_a_bundle) == [f"space.{name}: {rule}"]


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (
            "train: {grid: [{max_steps: 3, num_workers: 2}]}",
            "train.num_workers: is set by resources.workers",
        ),
        (
            "data: {grid: [{source: prism, split: {fold: 1, num_folds: 2}}]}",
            "data.split.fold: is set by repeat.num_folds",
        ),
        (
            "arm: {bundles: {a: {train: {engine: torch}}}}",
            "train.engine: decides nothing of a run's result",
        ),
    ],
)
def test_a_setting_with_another_home_is_found_in_a_whole_section(tmp_path, space, problem):
    assert problems(tmp_path, f"{RUN}space: {{{space}}}") == [f"space.{problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("repeat: {seeds: [1, 2, 1]}", "repeat.seeds: must name each value once, got [1, 2, 1]"),
        ("repeat: {seeds: []}", "repeat.seeds = []: must have at least 1 value"),
        ("repeat: {seeds: [-1]}", "repeat.seeds.0 = -1: must be greater than or equal to 0"),
        ("repeat: {num_folds: 1}", "repeat.num_folds = 1: must be greater than or equal to 2"),
        ("objective: {metric: al}", "objective.metric = al: must be 'all', 'distinctive' or 'agr"),
        ("objective: {mode: best}", "objective.mode = best: must be 'max' or 'min'"),
        ("scheduler: {by: pbt}", "scheduler.by = pbt: must be 'none', 'asha' or 'hyperband'"),
        (
            "scheduler: {reduction_factor: 1}",
            "scheduler.reduction_factor = 1: must be greater than or equal to 2",
        ),
        ("max_trial_failures: -1", "max_trial_failures = -1: must be greater than or equal to 0"),
        (
            "scheduler: {by: asha}\nresources: {workers: 2}",
            "scheduler: needs resources.workers 1, it compares single processes",
        ),
    ],
)
def test_a_bad_setting_of_the_sweep_is_refused(tmp_path, text, problem):
    (found,) = problems(tmp_path, f"{RUN}space: {{method: {{grid: [scpo]}}}}\n{text}")

    assert found.startswith(problem)


@pytest.mark.parametrize("by", ["tpe", "tpe-all-agreed"])
def test_a_scheduler_cannot_compare_settings_of_many_runs_in_turn(tmp_path, by):
    text = (
        f"{RUN}space: {{culture: {{grid: [N, S]}}, selection.filter_threshold: "
        f"{{uniform: [0.1, 0.9]}}}}\nsearch: {{by: {by}, num_draws: 3}}\n"
        "repeat: {seeds: [0, 1], num_folds: 3}\nscheduler: {by: asha}"
    )

    # 2 cultures x 2 seeds x 3 folds
    assert problems(tmp_path, text) == [
        f"scheduler: with search.by {by} a setting has 12 runs in turn, and only single ones can "
        "be compared midway"
    ]


def test_a_scheduler_takes_single_runs_of_a_search_and_all_runs_of_a_grid(tmp_path):
    searched = (
        f"{RUN}space: {{culture: {{grid: [N]}}, selection.filter_threshold: "
        "{uniform: [0.1, 0.9]}}\nsearch: {by: tpe, num_draws: 3}\nscheduler: {by: hyperband}"
    )
    grid = f"{RUN}space: {{culture: {{grid: [N, S]}}}}\nscheduler: {{by: asha}}"

    assert checked(tmp_path, searched).scheduler.by == "hyperband"
    assert checked(tmp_path, f"{grid}\nrepeat: {{seeds: [0, 1]}}").scheduler.by == "asha"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "run: {train: {num_workers: 2}}\nspace: {method: {grid: [scpo]}}",
            "run.train.num_workers: is set by resources.workers in a sweep",
        ),
        (
            "run: {data: {source: preferences, train_files: [a.csv], test_files: [b.csv], "
            "split: {by: source}}}\nspace: {method: {grid: [scpo]}}\nrepeat: {num_folds: 3}",
            "repeat.num_folds needs run.data.split.by user or question",
        ),
    ],
)
def test_a_run_that_does_not_fit_its_sweep_is_refused(tmp_path, text, problem):
    assert problems(tmp_path, text) == [problem]


# What is no fault


def test_a_value_that_needs_another_axis_is_no_fault(tmp_path):
    text = (
        f"{RUN}space: {{train.max_steps: {{grid: [5000]}}, train.warmup_steps: {{grid: [2000]}}}}"
    )
    weights = (
        f"{RUN}space: {{culture_weights.North: {{uniform: [0, 1]}}, "
        f"culture_weights.South: {{uniform: [0, 1]}}}}{DRAWN}"
    )

    checked(tmp_path, text)
    checked(tmp_path, weights)


def test_a_value_that_no_other_axis_can_help_is_a_fault(tmp_path):
    text = (
        f"{RUN}space: {{train.max_steps: {{grid: [10, 20]}}, train.warmup_steps: {{grid: [99]}}}}"
    )

    # max_steps 1024 is what the run has by itself, and allows 99; each value of the axis does not.
    checked(tmp_path, text)
    text = text.replace("99", "2000")
    assert problems(tmp_path, text) == [
        "space.train: warmup_steps 2000 must be below max_steps 1024"
    ]


def test_numbers_are_numbers_with_and_without_a_point(tmp_path):
    text = f"{RUN}space: {{train.learning_rate: {{grid: [1e-4, 1.0e-5, 1E-06, 2e-6]}}}}"

    sweep = checked(tmp_path, text, ["run.train.learning_rate=3e-6"])

    assert sweep.space["train.learning_rate"].model_dump() == {"grid": [1e-4, 1e-5, 1e-6, 2e-6]}
    assert sweep.run.train.learning_rate == 3e-6


# Overrides, presets, the header


def test_overrides_reach_every_section_of_the_file(tmp_path):
    text = f"{RUN}space: {{method: {{grid: [scpo]}}}}"
    overrides = [
        "run.train.max_steps=7",
        "space.method={grid: [filter, weight]}",
        "repeat.seeds=[3, 4]",
        "resources.workers=2",
        "max_concurrent=5",
        "budget.hours=0.5",
    ]

    sweep = checked(tmp_path, text, overrides)

    assert sweep.run.train.max_steps == 7
    assert sweep.space["method"].model_dump() == {"grid": ["filter", "weight"]}
    assert sweep.repeat.seeds == [3, 4]
    assert (sweep.resources.workers, sweep.max_concurrent, sweep.budget.hours) == (2, 5, 0.5)


def test_bad_overrides_are_told_like_bad_lines(tmp_path):
    text = f"{RUN}space: {{method: {{grid: [scpo]}}}}"

    assert problems(tmp_path, text, ["search.by=random", "repeat.seeds=[1, 1]"]) == [
        "search: num_draws goes with every search but \"grid\", got by 'random'",
        "repeat.seeds: must name each value once, got [1, 1]",
    ]
    assert problems(tmp_path, text, ["space", "search.by.x=1", "run.seed=["]) == [
        "--set space: must be setting=value",
        "--set run.seed=[: the value is not YAML",
    ]


def test_a_run_over_a_preset_keeps_the_presets_other_settings(tmp_path):
    text = "run: {preset: paper, train: {max_steps: 9}}\nspace: {method: {grid: [scpo]}}"

    sweep = checked(tmp_path, text)

    assert (sweep.run.train.max_steps, sweep.run.train.learning_rate) == (9, 1e-6)
    with pytest.raises(InputError, match="preset = papper: must be one of paper"):
        load_sweep(write(tmp_path, text.replace("paper", "papper")))


def test_the_header_is_the_comment_up_to_its_first_empty_line(tmp_path):
    path = write(tmp_path, "# Which threshold?\n#   Four hours.\n#\n# Not this.\nrun: {}\n")

    assert load_header(path) == "Which threshold? Four hours."
    assert load_header(write(tmp_path, "run: {}\n# late\n")) == ""


# What makes two sweeps the same


def test_where_and_how_fast_a_sweep_runs_is_no_part_of_it(tmp_path):
    text = f"{RUN}space: {{method: {{grid: [scpo]}}}}"
    first = checked(tmp_path, text)

    elsewhere = ["run.output_dir=x", "run.device=cpu", "resources.workers=3", "max_concurrent=2"]
    budget = ["max_trial_failures=7", "budget.trials=1", "run.tracking.tracker=none"]
    assert checked(tmp_path, text, elsewhere + budget).digest == first.digest


@pytest.mark.parametrize(
    "override",
    [
        "run.train.max_steps=7",
        "space.method={grid: [filter]}",
        "repeat.seeds=[1]",
        "objective.metric=agreed",
        "scheduler.by=asha",
        "search.seed=1",
    ],
)
def test_what_decides_a_sweeps_result_is_part_of_it(tmp_path, override):
    text = f"{RUN}space: {{method: {{grid: [scpo]}}}}"

    assert checked(tmp_path, text, [override]).digest != checked(tmp_path, text).digest
