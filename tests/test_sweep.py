import pytest

from scpo_ray.config import ComparisonConfig, RunConfig
from scpo_ray.records import InputError
from scpo_ray.sweep import comparison_trials

KNOWN = ["Chile", "Israel", "Mexico"]


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
