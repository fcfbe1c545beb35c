import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.records import InputError
from scpo_ray.settings.comparison import ComparisonConfig
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.methods import METHODS
from scpo_ray.settings.run import RunConfig
from scpo_ray.settings.sweep import ObjectiveConfig, RandInt, SweepConfig, Uniform
from scpo_ray.sweep.records import Setting
from scpo_ray.sweep.space import (
    changes,
    comparison_trials,
    job_objective,
    make_setting,
    planned_settings,
    run_objective,
    search_space,
    suggested_values,
    sweep_cultures,
    trial_id,
    trials_of,
)

KNOWN = ["Chile", "Israel", "Mexico"]
TAU, BETA, STEPS = "selection.filter_threshold", "selection.weight_temperature", "train.max_steps"
FINGERPRINTS = {"data": "d1", "model": "m1", "scores": "s1"}


def comparison(**space) -> ComparisonConfig:
    return ComparisonConfig.model_validate({"run": {"train": {"max_steps": 5}}, "space": space})


def test_trials_are_every_culture_by_method_by_seed_in_that_order():
    trials = comparison_trials(
        comparison(culture=["Mexico", "Chile"], method=["finetune", "scpo"], seed=[3, 1]), KNOWN
    )

    assert [(t.culture, t.config.method, t.config.seed) for t in trials] == [
        ("Mexico", "finetune", 3),
        ("Mexico", "finetune", 1),
        ("Mexico", "scpo", 3),
        ("Mexico", "scpo", 1),
        ("Chile", "finetune", 3),
        ("Chile", "finetune", 1),
        ("Chile", "scpo", 3),
        ("Chile", "scpo", 1),
    ]


def test_a_trial_trains_for_its_culture_alone_and_keeps_the_runs_other_settings():
    (trial,) = comparison_trials(comparison(culture=["Chile"], method=["scpo"]), KNOWN)

    assert trial.config.culture_weights == {"Chile": 1.0}
    assert trial.config.train.max_steps == 5
    assert trial.config == RunConfig.model_validate(
        {"train": {"max_steps": 5}, "culture_weights": {"Chile": 1.0}}
    )


def test_a_space_without_cultures_takes_those_of_the_data():
    trials = comparison_trials(comparison(method=["global"]), KNOWN)

    assert [trial.culture for trial in trials] == KNOWN


def test_a_method_that_pools_has_one_run_for_all_cultures_of_the_data():
    trials = comparison_trials(comparison(culture=["Chile", "Mexico"], method=["pooled"]), KNOWN)

    assert [trial.culture for trial in trials] == ["Chile", "Mexico"]
    assert trials[0].config == trials[1].config
    assert trials[0].config.culture_weights is None


@pytest.mark.parametrize(("equal_compute", "steps"), [(True, 15), (False, 5)])
def test_one_model_for_all_takes_the_steps_of_all_models_it_stands_beside(equal_compute, steps):
    trials = comparison_trials(
        comparison(method=["finetune", "pooled"], equal_compute=equal_compute), KNOWN
    )

    taken = {(trial.config.method, trial.config.train.max_steps) for trial in trials}
    assert taken == {("finetune", 5), ("pooled", steps)}


def test_a_sweeps_trials_of_a_method_that_pools_share_a_run():
    document = {
        "run": {"data": {"source": "prism", "cultures": KNOWN}},
        "space": {
            "culture": {"grid": ["Chile", "Mexico"]},
            "method": {"grid": ["finetune", "group_dro"]},
        },
    }
    of = SweepConfig.model_validate(document)

    trials = trials_of(of, planned_settings(of), KNOWN)

    weights = [(t.culture, t.config.method, t.config.culture_weights) for t in trials]
    assert weights == [
        ("Chile", "finetune", {"Chile": 1.0}),
        ("Mexico", "finetune", {"Mexico": 1.0}),
        ("Chile", "group_dro", None),
        ("Mexico", "group_dro", None),
    ]
    assert trials[2].config.run_id == trials[3].config.run_id


def test_no_two_trials_share_a_run_id():
    trials = comparison_trials(comparison(seed=[0, 1, 2]), KNOWN)

    assert len(trials) == 3 * 6 * 3
    assert len({trial.config.run_id for trial in trials}) == len(trials)


def test_the_same_comparison_gives_the_same_run_ids():
    first, second = (comparison_trials(comparison(seed=[0, 1]), KNOWN) for _ in range(2))

    assert first == second
    assert [t.config.run_id for t in first] == [t.config.run_id for t in second]


def test_a_culture_the_data_has_not_is_refused_before_anything_runs():
    with pytest.raises(InputError, match="space.culture: no culture 'Chili' .* nearest: 'Chile'"):
        comparison_trials(comparison(culture=["Chile", "Chili"]), KNOWN)


# A sweep's settings


def test_a_grid_is_every_combination_the_last_axis_fastest():
    planned = planned_settings(sweep({TAU: {"grid": [0.5, None]}, BETA: {"grid": [1, 2, 3]}}))

    assert [s.number for s in planned] == [0, 1, 2, 3, 4, 5]
    assert [tuple(s.values.values()) for s in planned] == [
        (0.5, 1),
        (0.5, 2),
        (0.5, 3),
        (None, 1),
        (None, 2),
        (None, 3),
    ]
    assert planned[3].label == "filter_threshold=null weight_temperature=1"


def test_a_bundle_is_one_value_and_the_culture_is_none():
    planned = planned_settings(
        sweep(
            {
                "culture": {"grid": ["Chile", "Mexico"]},
                "arm": {"bundles": {"ours": {"method": "scpo"}, "theirs": {"method": "filter"}}},
            }
        )
    )

    assert [s.values for s in planned] == [{"arm": "ours"}, {"arm": "theirs"}]


def test_a_space_of_cultures_alone_has_one_setting():
    planned = planned_settings(sweep({"culture": {"grid": ["Chile"]}}))

    assert planned == [Setting(0, {}, "as in run")]


def test_each_draw_is_shared_by_all_combinations_of_the_grids():
    space = {TAU: {"uniform": [0.2, 0.9]}, "method": {"grid": ["scpo", "filter"]}}

    planned = planned_settings(sweep(space, search={"by": "random", "num_draws": 3}))

    drawn = [s.values[TAU] for s in planned]
    assert [s.values["method"] for s in planned] == ["scpo", "filter"] * 3
    assert drawn[0::2] == drawn[1::2]
    assert len(set(drawn)) == 3
    assert list(planned[0].values) == [TAU, "method"]


def test_draws_belong_to_their_seed_and_their_axis():
    draws = {"by": "random", "num_draws": 4}
    alone = sweep({TAU: {"uniform": [0.2, 0.9]}}, search=draws)
    beside = sweep({BETA: {"uniform": [0.2, 0.9]}, TAU: {"uniform": [0.2, 0.9]}}, search=draws)
    other_seed = sweep({TAU: {"uniform": [0.2, 0.9]}}, search={**draws, "seed": 1})
    more = sweep({TAU: {"uniform": [0.2, 0.9]}}, search={**draws, "num_draws": 6})

    taus = [s.values[TAU] for s in planned_settings(alone)]
    assert [s.values[TAU] for s in planned_settings(alone)] == taus
    assert [s.values[TAU] for s in planned_settings(beside)] == taus
    assert [s.values[BETA] for s in planned_settings(beside)] != taus
    assert [s.values[TAU] for s in planned_settings(more)][:4] == taus
    assert not set(taus) & {s.values[TAU] for s in planned_settings(other_seed)}


def test_draws_that_are_alike_are_one_setting():
    space = {"method": {"choice": ["scpo", "filter"]}}

    planned = planned_settings(sweep(space, search={"by": "random", "num_draws": 50}))

    assert sorted(s.values["method"] for s in planned) == ["filter", "scpo"]
    assert [s.number for s in planned] == [0, 1]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), low=st.floats(1e-12, 1e3), factor=st.floats(1.000001, 1e9))
def test_a_draw_lies_between_the_ends_and_is_short(seed, low, factor):
    high = low * factor
    space = {
        "a": {"loguniform": [low, high]},
        "b": {"uniform": [low, high]},
        "c": {"randint": [3, 5]},
    }
    search = {"by": "random", "num_draws": 3, "seed": seed}

    for setting in planned_settings(sweep(space, search=search)):
        a, b, c = setting.values.values()
        assert low <= a <= high
        assert low <= b <= high
        assert c in (3, 4, 5)
        # A number that four digits would round past an end is the end.
        for number in (a, b):
            assert number in (low, high) or float(f"{number:.4g}") == number


def test_logarithms_are_drawn_evenly():
    space = {"a": {"loguniform": [1e-6, 1e-2]}}

    planned = planned_settings(sweep(space, search={"by": "random", "num_draws": 400}))

    # Half of the logarithms lie below 1e-4: 200, give or take 3.5 standard deviations of 10.
    assert 165 <= sum(s.values["a"] < 1e-4 for s in planned) <= 235


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    concentrations=st.lists(st.floats(1e-3, 100), min_size=2, max_size=8),
)
def test_drawn_shares_add_up_to_one(seed, concentrations):
    named = {f"C{number}": value for number, value in enumerate(concentrations)}
    search = {"by": "random", "num_draws": 2, "seed": seed}

    for setting in planned_settings(
        sweep({"culture_weights": {"dirichlet": named}}, search=search)
    ):
        shares = setting.values["culture_weights"]
        assert list(shares) == list(named)
        assert_shares(shares)


def test_a_label_names_an_axis_whole_where_its_last_part_is_not_enough():
    values = {"a.rank": 1, "b.rank": 2, "culture_weights.U.S.": 0.5, "mix": {"A": 0.5, "B": 0.25}}

    label = make_setting(7, values).label

    assert label == "a.rank=1 b.rank=2 U.S.=0.5 mix={A: 0.5, B: 0.25}"


# A sweep's trials


def test_every_setting_has_its_first_seed_and_fold_before_any_has_its_next():
    of = sweep(
        {"culture": {"grid": ["Mexico", "Chile"]}, TAU: {"grid": [0.5, 0.7]}},
        repeat={"seeds": [3, 1], "num_folds": 3},
    )

    trials = trials_of(of, planned_settings(of), KNOWN)

    assert [(t.seed, t.fold, t.setting.number, t.culture) for t in trials] == [
        (seed, fold, setting, culture)
        for seed in (3, 1)
        for fold in (0, 1, 2)
        for setting in (0, 1)
        for culture in ("Mexico", "Chile")
    ]
    assert len({t.config.run_id for t in trials}) == 24


def test_a_trial_is_the_run_with_its_own_settings():
    bundles = {"short": {STEPS: 5, "method": "filter", "data.users": {"Chile": 3, "Peru": 3}}}
    of = sweep(
        {"culture": {"grid": ["Chile"]}, TAU: {"grid": [0.5]}, "arm": {"bundles": bundles}},
        repeat={"seeds": [4], "num_folds": 3},
        resources={"workers": 2, "cpus": 0.5, "gpus": 0.25},
    )

    trial = trials_of(of, planned_settings(of), KNOWN)[1]

    assert trial.config == RunConfig.model_validate(
        {
            "method": "filter",
            "seed": 4,
            "culture_weights": {"Chile": 1.0},
            "data": {
                "source": "synthetic",
                "users": {"Chile": 3, "Peru": 3},
                "split": {"num_folds": 3, "fold": 1},
            },
            "selection": {"filter_threshold": 0.5},
            "train": {"max_steps": 5, "num_workers": 2},
            "launch": {"cpus_per_worker": 0.5, "gpus_per_worker": 0.25},
        }
    )


def test_a_whole_section_in_the_space_leaves_fold_and_workers_to_the_sweep():
    of = sweep(
        {"data": {"grid": [{"source": "synthetic"}]}, "train": {"grid": [{"max_steps": 5}]}},
        repeat={"num_folds": 3},
        resources={"workers": 3},
    )

    trials = trials_of(of, planned_settings(of), KNOWN)

    assert [t.config.data.split.fold for t in trials] == [0, 1, 2]
    assert {t.config.train.num_workers for t in trials} == {3}


@pytest.mark.parametrize(
    ("pooling", "weights"),
    [
        (0, {"Chile": 1.0}),
        (0.25, {"Chile": 1.0, "Israel": 0.25, "Mexico": 0.25}),
        (1, {"Chile": 1.0, "Israel": 1.0, "Mexico": 1.0}),
    ],
)
def test_pooling_is_the_weight_of_the_other_cultures(pooling, weights):
    of = sweep({"culture": {"grid": ["Chile"]}, "pooling": {"grid": [pooling]}})

    (trial,) = trials_of(of, planned_settings(of), KNOWN)

    assert trial.config.culture_weights == weights


def test_a_mixture_has_no_culture_and_the_weights_of_its_setting():
    of = sweep({"culture_weights": {"grid": [None, {"Chile": 1, "Mexico": 0.5}]}})

    trials = trials_of(of, planned_settings(of), KNOWN)

    assert [t.culture for t in trials] == ["", ""]
    assert [t.config.culture_weights for t in trials] == [None, {"Chile": 1, "Mexico": 0.5}]


def test_a_culture_may_have_dots_in_its_name():
    known = ["St. Lucia", "U.S.", "Chile"]
    space = {"culture": {"grid": ["U.S."]}, "culture_weights.St. Lucia": {"grid": [0.5]}}

    (trial,) = trials_of(sweep(space), planned_settings(sweep(space)), known)

    assert trial.config.culture_weights == {"U.S.": 1.0, "St. Lucia": 0.5}


def test_settings_that_no_run_can_have_are_told_at_once_and_once_each():
    of = sweep(
        {STEPS: {"grid": [10, 3000]}, "train.warmup_steps": {"grid": [20, 30]}},
        repeat={"seeds": [0, 1]},
    )

    with pytest.raises(InputError) as error:
        trials_of(of, planned_settings(of), KNOWN)

    assert str(error.value) == (
        "the space has settings that no run can have: 2 problems\n"
        "  max_steps=10 warmup_steps=20: train: warmup_steps 20 must be below max_steps 10\n"
        "  max_steps=10 warmup_steps=30: train: warmup_steps 30 must be below max_steps 10"
    )


def test_of_many_problems_the_first_twenty_are_told():
    of = sweep({STEPS: {"grid": [-n for n in range(23)]}})

    with pytest.raises(InputError) as error:
        trials_of(of, planned_settings(of), KNOWN)

    assert error.value.title.endswith("23 problems")
    assert len(error.value.problems) == 21
    assert error.value.problems[-1] == "and 3 more"


def test_a_culture_or_weight_that_the_data_has_not_is_refused():
    of_culture = sweep({"culture": {"grid": ["Chile", "Chili"]}})
    of_weight = sweep({"culture_weights": {"grid": [{"Chile": 1, "Mexiko": 1}]}})

    with pytest.raises(InputError, match="space.culture: no culture 'Chili' .* nearest: 'Chile'"):
        sweep_cultures(of_culture, KNOWN)
    with pytest.raises(InputError, match="culture_weights: no culture 'Mexiko' .*: 'Mexico'"):
        trials_of(of_weight, planned_settings(of_weight), KNOWN)


def test_an_objective_on_a_culture_without_runs_is_refused_before_anything_runs():
    space, objective = {"culture": {"grid": ["Chile"]}}, {"culture": "Mexico"}

    with pytest.raises(InputError, match="objective.culture: no culture 'Mexico'"):
        sweep_cultures(sweep(space, objective=objective), KNOWN)
    assert sweep_cultures(sweep({TAU: {"grid": [0.5]}}, objective=objective), KNOWN) == [""]


# A trial's name


def test_a_trial_is_another_with_other_settings_data_or_model(monkeypatch):
    config = RunConfig(seed=1)
    first = trial_id(config, FINGERPRINTS, "Chile")

    assert trial_id(config, dict(FINGERPRINTS), "Chile") == first
    assert trial_id(config, {**FINGERPRINTS, "scores": "s2"}, "Chile") == first
    assert trial_id(config.model_copy(update={"device": "cpu"}), FINGERPRINTS, "Chile") == first
    others = [
        trial_id(RunConfig(seed=2), FINGERPRINTS, "Chile"),
        trial_id(config, {**FINGERPRINTS, "data": "d2"}, "Chile"),
        trial_id(config, {**FINGERPRINTS, "model": "m2"}, "Chile"),
        trial_id(config, {"data": "m1", "model": "d1"}, "Chile"),
    ]
    with_more = config.model_copy(update={"evaluation": EvaluationConfig(num_examples=9)})
    others.append(trial_id(with_more, FINGERPRINTS, "Chile"))
    newer = replace(METHODS["scpo"], version=METHODS["scpo"].version + 1)
    monkeypatch.setitem(METHODS._own, "scpo", newer)
    others.append(trial_id(config, FINGERPRINTS, "Chile"))
    assert len({first, *others}) == 7


def test_trials_of_a_method_that_pools_share_a_run_and_not_a_name():
    pooled, own = RunConfig(method="pooled"), RunConfig(method="finetune")

    assert trial_id(pooled, FINGERPRINTS, "Chile") != trial_id(pooled, FINGERPRINTS, "Mexico")
    # The others' configs differ by their culture_weights.
    assert trial_id(own, FINGERPRINTS, "Chile") == trial_id(own, FINGERPRINTS, "Mexico")


# The objective

ACCURACIES = {
    "Chile": {"all": 0.6, "agreed": 0.9, "distinctive": None},
    "Mexico": {"all": 0.8, "agreed": 0.7, "distinctive": 0.3},
}


@pytest.mark.parametrize(
    ("objective", "culture", "value"),
    [
        ({}, "Chile", 0.6),
        ({"culture": "worst", "metric": "agreed"}, "Mexico", 0.7),
        ({"culture": "Mexico"}, "Chile", 0.6),
        ({"metric": "distinctive"}, "Chile", None),
        ({}, "Peru", None),
        ({}, "", 0.7),
        ({"culture": "worst"}, "", 0.6),
        ({"culture": "worst", "metric": "agreed"}, "", 0.7),
        ({"culture": "Mexico", "metric": "distinctive"}, "", 0.3),
        ({"metric": "distinctive"}, "", None),
    ],
)
def test_a_runs_objective_is_on_its_own_culture_or_over_those_of_a_mixture(
    objective, culture, value
):
    found = run_objective(ACCURACIES, ObjectiveConfig.model_validate(objective), culture)

    assert found == (value if value is None else pytest.approx(value))


def test_a_run_that_was_tested_on_nothing_has_no_objective():
    assert run_objective({}, ObjectiveConfig(), "") is None


@pytest.mark.parametrize(
    ("culture", "reached", "value"),
    [
        # Three runs of Chile must not outweigh one of Mexico: (mean 0.5 + 0.9) / 2.
        ("macro", [("Chile", 0.4), ("Chile", 0.5), ("Chile", 0.6), ("Mexico", 0.9)], 0.7),
        ("worst", [("Chile", 0.4), ("Chile", 0.6), ("Mexico", 0.9)], 0.5),
        ("Mexico", [("Chile", None), ("Mexico", 0.8), ("Mexico", 0.9)], 0.85),
        ("macro", [("Chile", 0.4), ("Mexico", None)], None),
        ("worst", [("Chile", 0.4), ("Chile", None)], None),
        ("Mexico", [("Chile", 0.4)], None),
        ("macro", [("", 0.4), ("", 0.6)], 0.5),
        ("Mexico", [("", 0.4), ("", 0.6)], 0.5),
        ("macro", [], None),
    ],
)
def test_a_settings_objective_is_over_seeds_and_then_over_cultures(culture, reached, value):
    of = sweep({"method": {"grid": ["scpo"]}}, objective={"culture": culture})

    found = job_objective(reached, of)

    assert found == (value if value is None else pytest.approx(value))


# What a search chooses

SPACE = {
    "culture": {"grid": ["Chile", "Mexico"]},
    TAU: {"uniform": [0.2, 0.9]},
    "train.batch_size": {"randint": [4, 8]},
    "method": {"choice": ["scpo", "filter"]},
    "arm": {"bundles": {"short": {STEPS: 5}, "long": {STEPS: 50}}},
    "mix": {"dirichlet": {"A": 1, "B": 2}},
}
TPE = {"by": "tpe", "num_draws": 3}


def test_a_search_chooses_among_all_axes_but_the_culture():
    open_ends = Uniform(uniform=(1e-6, 1 - 1e-6))

    assert search_space(sweep(SPACE, search=TPE)) == {
        TAU: Uniform(uniform=(0.2, 0.9)),
        "train.batch_size": RandInt(randint=(4, 8)),
        "method": 2,
        "arm": 2,
        "mix/A": open_ends,
        "mix/B": open_ends,
    }


def test_what_it_chooses_becomes_a_settings_values():
    suggestion = {
        TAU: 0.123456,
        "train.batch_size": 7,
        "method": 1,
        "arm": 0,
        "mix/A": 1 - math.exp(-1),
        "mix/B": 0.5,
    }

    values = suggested_values(sweep(SPACE, search=TPE), suggestion)

    # Quantiles: of Gamma(1) at 1 - 1/e it is 1; of Gamma(2) at 1/2 it is 1.678347.
    assert values == {
        TAU: 0.2,
        "train.batch_size": 7,
        "method": "filter",
        "arm": "short",
        "mix": {"A": 0.3734, "B": 0.6266},
    }
    assert suggested_values(sweep(SPACE, search=TPE), {**suggestion, TAU: 0.71239})[TAU] == 0.7124


@settings(max_examples=60)
@given(st.data())
def test_every_suggestion_is_a_setting_that_a_run_can_have(data):
    of = sweep({**SPACE, "mix": {"bundles": {"a": {}}}}, search=TPE)
    suggestion = {}
    for name, domain in search_space(of).items():
        if isinstance(domain, int):
            suggestion[name] = data.draw(st.integers(0, domain - 1))
        elif isinstance(domain, RandInt):
            suggestion[name] = data.draw(st.integers(*domain.randint))
        else:
            suggestion[name] = data.draw(st.floats(*domain.uniform))

    setting = make_setting(-1, suggested_values(of, suggestion))

    assert list(setting.values) == [name for name in of.space if name != "culture"]
    trials = trials_of(of, [setting], KNOWN)
    assert [t.culture for t in trials] == ["Chile", "Mexico"]
    assert {t.config.train.max_steps for t in trials} <= {5, 50}


@settings(max_examples=60)
@given(st.data())
def test_suggested_shares_add_up_to_one_however_small_the_concentration(data):
    quantiles = st.floats(1e-6, 1 - 1e-6)
    named = data.draw(
        st.dictionaries(st.text(min_size=1), st.floats(1e-4, 100), min_size=2, max_size=6)
    )
    of = sweep({"mix": {"dirichlet": named}}, search=TPE)

    values = suggested_values(of, {f"mix/{name}": data.draw(quantiles) for name in named})

    assert list(values["mix"]) == list(named)
    assert_shares(values["mix"])


def test_shares_too_small_for_a_number_keep_their_order():
    of = sweep({"mix": {"dirichlet": {"A": 1e-3, "B": 1e-3}}}, search=TPE)

    # Both draws are below 1e-308; the greater quantile has 2^1000 times the other's share.
    assert suggested_values(of, {"mix/A": 0.01, "mix/B": 0.02}) == {
        "mix": {"A": 9.333e-302, "B": 1.0}
    }
    assert suggested_values(of, {"mix/A": 0.01, "mix/B": 0.01}) == {"mix": {"A": 0.5, "B": 0.5}}


# What differs between two documents


def test_changes_name_each_place_with_what_was_and_is():
    before = {"run": {"seed": 0, "data": {"path": "a"}}, "space": {"x.y": {"grid": [1]}}, "old": 1}
    after = {"run": {"seed": 1, "data": {"path": "a"}}, "space": {"x.y": {"grid": [1, None]}}}

    assert changes(before, after) == [
        "run.seed: was 0, now 1",
        "space.x.y.grid: was [1], now [1, null]",
        "old: was 1, now nothing",
    ]
    assert changes({"a": "b"}, {"a": {"b": True}}) == ["a: was b, now {b: true}"]


@settings(max_examples=60)
@given(
    st.recursive(
        st.integers() | st.text() | st.booleans(),
        lambda below: st.dictionaries(st.text(), below) | st.lists(below),
    ).map(lambda value: {"top": value})
)
def test_a_document_differs_from_all_others_and_not_from_itself(document):
    assert changes(document, document) == []
    assert len(changes(document, {"top": ("another",)})) == 1
    assert len(changes({}, document)) == 1


# What the tests share


def sweep(space: dict[str, Any], **sections: Any) -> SweepConfig:
    run = {"data": {"source": "synthetic"}}
    return SweepConfig.model_validate({"run": run, "space": space, **sections})


def assert_shares(shares: dict[str, float]) -> None:
    assert all(0 <= share <= 1 for share in shares.values())
    # Each is rounded to four digits: off by half of the fourth at most.
    assert sum(shares.values()) == pytest.approx(1, abs=5e-5 * len(shares))
