from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.evaluation.comparable import ComparedRun, PairOutcomes
from scpo_ray.records import HeldOut
from scpo_ray.results import Estimate
from scpo_ray.settings.sweep import ObjectiveConfig
from scpo_ray.statistics.intervals import accuracy, standing
from scpo_ray.statistics.joint_scores import ranking
from scpo_ray.sweep.choice import honest_choice
from scpo_ray.sweep.records import Setting, SettingSummary, SweepResult, TrialRecord
from scpo_ray.sweep.summary import importance, summarize_sweep
from tests.results import run_result, selection

CULTURES = ("Chile", "Mexico")
# Of each culture's four pairs, two users' two each, the global model ranks two right.
REF = "0011"


def trial(
    setting: int, culture: str = "Chile", seed: int = 0, fold: int | None = None, **changes
) -> TrialRecord:
    number = "" if fold is None else f"/fold {fold}"
    trial_id = f"{setting}/{culture}/{seed}{number}"
    record = TrialRecord(
        trial_id=trial_id,
        run_id=f"run {trial_id}",
        setting=setting,
        culture=culture,
        seed=seed,
        fold=fold,
        state="finished",
        reused=False,
        objective=0.5,
        num_steps=10,
        num_pairs=100,
        train_seconds=1.0,
        path="runs/r",
        mlflow_run_id="",
        error="",
    )
    return replace(record, **changes)


def make_run(
    of: TrialRecord,
    right: Mapping[str, str] | str,
    *,
    ref: str | None = REF,
    method: str = "scpo",
    users: int = 2,
    shared: bool = False,
    samples: int = 200,
) -> ComparedRun:
    """A run that ranks right the pairs with a 1; a single text stands for every culture."""
    by_culture = dict.fromkeys(CULTURES, right) if isinstance(right, str) else right
    rows = [(c, row) for c, text in by_culture.items() for row in range(len(text))]
    fold = "" if of.fold is None else f"f{of.fold}"

    def margins(text: str) -> np.ndarray:
        return np.array([int(mark) * 2 - 1 for mark in text], np.float32)

    result = run_result(method)
    return ComparedRun(
        result=replace(
            result,
            config={"evaluation": {"bootstrap_samples": samples}},
            selection={} if method == "global" else {"Chile": selection(method)},
        ),
        culture=of.culture,
        outcomes=PairOutcomes(
            culture=np.array([culture for culture, _ in rows], object),
            pair_id=np.array([f"{fold}{culture}{row}" for culture, row in rows], object),
            cluster=np.array(
                [
                    f"{fold}{'' if shared else culture}{row * users // len(by_culture[culture])}"
                    for culture, row in rows
                ],
                object,
            ),
            ref_margin=None if ref is None else margins(ref * len(by_culture)),
            margin=margins("".join(by_culture.values())),
        ),
    )


def summarize(
    runs: Sequence[ComparedRun] | Sequence[tuple[TrialRecord, ComparedRun | None]],
    *,
    values: Mapping[int, Mapping[str, object]] | None = None,
    axes: Sequence[str] = ("a",),
    seed: int = 0,
    measured_on: HeldOut = "test",
    load: Callable[[TrialRecord, HeldOut], ComparedRun] | None = None,
    **objective: str,
) -> SweepResult:
    numbers = sorted({of.setting for of, _ in runs})
    by_id = {of.trial_id: run for of, run in runs}
    return summarize_sweep(
        name="taus",
        experiment="tastes",
        question="Which?",
        objective=ObjectiveConfig.model_validate(objective),
        axes=axes,
        settings=[Setting(n, dict((values or {}).get(n, {"a": n})), f"a={n}") for n in numbers],
        trials=[of for of, _ in runs],
        measured_on=measured_on,
        load=load or (lambda of, _: by_id[of.trial_id]),
        seed=seed,
    )


def runs_of(outcomes: Mapping[tuple[int, str, int], str], **options):
    """(setting, culture, seed) -> its outcomes on its own culture; all wrong on the others."""
    found = []
    for (setting, culture, seed), own in outcomes.items():
        of = trial(setting, culture, seed)
        right = {c: own if c == culture else "0" * len(own) for c in CULTURES}
        found.append((of, make_run(of, right, **options)))
    return found


def of_setting(result: SweepResult, number: int) -> SettingSummary:
    [summary] = [s for s in result.settings if s.setting.number == number]
    return summary


def test_each_culture_is_measured_by_its_own_model_and_counts_alike():
    result = summarize(runs_of({(0, "Chile", 0): "1110", (0, "Mexico", 0): "1000"}))

    [summary] = result.settings
    found = {c: {layer: e.value for layer, e in a.items()} for c, a in summary.accuracy.items()}
    assert found == {
        "": {"all": 1 / 2, "distinctive": 3 / 4, "agreed": 1 / 4},
        "Chile": {"all": 3 / 4, "distinctive": 1, "agreed": 1 / 2},
        "Mexico": {"all": 1 / 4, "distinctive": 1 / 2, "agreed": 0},
    }
    assert (summary.accuracy[""]["all"].num_pairs, summary.accuracy[""]["all"].num_clusters) == (
        8,
        4,
    )
    assert summary.objective == summary.accuracy[""]["all"]
    assert summary.objective_per_culture == {"Chile": 3 / 4, "Mexico": 1 / 4}
    assert summary.minus_global.value == 0 and summary.minus_global.p_value is None
    assert summary.other_cultures.value == 0
    assert (result.cultures, result.seeds, result.num_folds) == (["Chile", "Mexico"], [0], None)


def test_seeds_are_averaged_per_pair_and_their_spread_is_that_of_the_objective():
    result = summarize(
        runs_of(
            {
                (0, "Chile", 3): "1111",
                (0, "Mexico", 3): "1100",
                (0, "Chile", 1): "1100",
                (0, "Mexico", 1): "1100",
            }
        )
    )

    [summary] = result.settings
    assert summary.accuracy["Chile"]["agreed"].value == (2 + 0) / 4
    # Macro by seed: (1 + 1/2) / 2 and (1/2 + 1/2) / 2, a quarter apart.
    assert summary.seed_sd == pytest.approx(1 / 4 / 2**0.5)
    assert result.seeds == [3, 1]


def test_seeds_that_differ_widen_the_intervals_and_tie_what_users_alone_would_part():
    # 20 users of two pairs. Three trainings of setting 1 reach 100, 60 and 80 % of everyone's
    # pairs, or 80 % each with other pairs wrong; setting 0 reaches 70 % always.
    pattern = {1.0: "1" * 40, 0.8: "11011" * 8, 0.7: "1101100111" * 4, 0.6: "10101" * 8}

    def summary(reached: Sequence[str]) -> SettingSummary:
        runs = {(0, c, seed): pattern[0.7] for c in CULTURES for seed in range(3)}
        runs |= {(1, c, seed): own for c in CULTURES for seed, own in enumerate(reached)}
        return of_setting(summarize(runs_of(runs, users=20, samples=1_000, ref="0" * 40)), 0)

    apart = summary([pattern[1.0], pattern[0.6], pattern[0.8]])
    alike = summary(["11011" * 8, "01111" * 8, "11101" * 8])

    assert apart.minus_best.value == alike.minus_best.value == pytest.approx(-0.1)
    found = [standing(summary.objective, summary.minus_best) for summary in (apart, alike)]
    assert found == ["not distinguishable", "behind"]


def test_the_seeds_of_one_model_for_all_cultures_vary_in_all_of_them_at_once():
    def width(cultures: Sequence[str], one_run: bool = False) -> float:
        runs = []
        for seed, own in enumerate(("1" * 40, "10101" * 8, "11011" * 8)):
            for culture in cultures:
                shared = {"run_id": f"run {seed}"} if one_run else {}
                of = trial(0, culture, seed, **shared)
                runs.append((of, make_run(of, own, users=20, samples=1_000, ref="0" * 40)))
        estimate = of_setting(summarize(runs), 0).accuracy[""]["all"]
        assert estimate.value == pytest.approx(0.8)
        return estimate.high - estimate.low

    # Two trainings halve the variance of the macro mean; one that serves both does not.
    assert width([""]) > 1.2 * width(CULTURES)
    # Also where every culture's trial is that one training (pooled).
    assert width(CULTURES, one_run=True) > 1.2 * width(CULTURES)


def test_the_best_is_first_and_the_others_are_paired_with_it():
    # Six users of four pairs: all right, one user's pair lost, all lost but one user's.
    marks = {0: "1" + "0" * 23, 1: "1" * 24, 2: "0" + "1" * 23}
    runs = {(n, c, 0): text for n, text in marks.items() for c in CULTURES}
    result = summarize(runs_of(runs, users=6, ref="0" * 24))

    assert [s.setting.number for s in result.settings] == [1, 2, 0]
    best, second, last = result.settings
    assert best.minus_best is None and standing(best.objective, None) == "best"
    assert second.minus_best.value == pytest.approx(-1 / 24)
    assert second.minus_best.low < 0 < second.minus_best.high
    assert second.minus_best.p_value is None
    assert standing(second.objective, second.minus_best) == "not distinguishable"
    assert last.minus_best.value == pytest.approx(-23 / 24)
    assert last.minus_best.high < 0
    assert standing(last.objective, last.minus_best) == "behind"
    assert result.best_trials == {"Chile": "1/Chile/0", "Mexico": "1/Mexico/0"}


def test_the_lowest_is_best_where_the_mode_says_so():
    marks = {0: "1111", 1: "1000", 2: "1100"}
    result = summarize(
        runs_of({(n, c, 0): text for n, text in marks.items() for c in CULTURES}), mode="min"
    )

    assert [s.setting.number for s in result.settings] == [1, 2, 0]
    assert result.best_trials["Mexico"] == "1/Mexico/0"
    assert result.objective == {"metric": "all", "culture": "macro", "mode": "min"}


@pytest.mark.parametrize(
    ("objective", "reached", "order"),
    [
        ({"culture": "macro"}, {0: 5 / 8, 1: 4 / 8}, [0, 1]),
        ({"culture": "Mexico"}, {0: 1 / 4, 1: 1 / 2}, [1, 0]),
        ({"culture": "Mexico", "metric": "agreed"}, {0: 0, 1: 0}, [0, 1]),
    ],
)
def test_the_objective_is_the_mean_or_one_culture_on_its_layer(objective, reached, order):
    runs = runs_of(
        {
            (0, "Chile", 0): "1111",
            (0, "Mexico", 0): "1000",
            (1, "Chile", 0): "1100",
            (1, "Mexico", 0): "1100",
        }
    )

    result = summarize(runs, **objective)

    assert {s.setting.number: s.objective.value for s in result.settings} == reached
    assert [s.setting.number for s in result.settings] == order


def test_the_worst_culture_is_measured_as_if_chance_had_not_picked_it():
    # Setting 1 is alike in both cultures, setting 0 better in one and worse in the other.
    marks = {(0, "Chile"): "11111110", (0, "Mexico"): "10000000"}
    marks |= {(1, culture): "11001010" for culture in CULTURES}
    runs = {(*key, 0): text * 10 for key, text in marks.items()}

    result = summarize(runs_of(runs, users=40, ref="0" * 80), culture="worst")

    assert [s.setting.number for s in result.settings] == [1, 0]
    first, last = result.settings
    assert last.objective.value == pytest.approx(1 / 8)
    # The lower of two equal ones would lie below both; it is set right by half a standard error.
    assert 1 / 2 < first.objective.value < 1 / 2 + 0.1
    assert first.objective.low < 1 / 2 < first.objective.high
    assert standing(last.objective, last.minus_best) == "behind"


def test_equal_settings_stand_in_the_order_of_their_numbers_and_are_not_distinguishable():
    result = summarize(runs_of({(n, c, 0): "1010" for n in (2, 0, 1) for c in CULTURES}))

    assert [s.setting.number for s in result.settings] == [0, 1, 2]
    found = [standing(s.objective, s.minus_best) for s in result.settings]
    assert found == ["best", "not distinguishable", "not distinguishable"]
    assert result.settings[1].minus_best.value == 0
    assert result.importance == {"a": 0.0}


def test_a_setting_that_lacks_a_culture_has_no_macro_mean_and_stands_last():
    runs = runs_of({(0, "Chile", 0): "1111", (1, "Chile", 0): "1000", (1, "Mexico", 0): "1000"})
    lost = trial(0, "Mexico", state="failed", error="loss is NaN")

    result = summarize([*runs, (lost, None)])

    assert [s.setting.number for s in result.settings] == [1, 0]
    half = of_setting(result, 0)
    assert half.accuracy[""]["all"] == Estimate(None, None, None, 0, 0)
    assert half.accuracy["Chile"]["all"].value == 1 and "Mexico" not in half.accuracy
    assert (half.num_finished, half.num_failed, half.num_stopped) == (1, 1, 0)
    assert half.objective is half.minus_best is half.minus_global is half.other_cultures is None
    assert half.seed_sd is None and standing(half.objective, half.minus_best) == "unknown"
    # It is still the best on the culture that it has.
    assert result.best_trials == {"Chile": "0/Chile/0", "Mexico": "1/Mexico/0"}
    assert summarize([*runs, (lost, None)], culture="Chile").settings[0].setting.number == 0


def test_one_model_for_all_cultures_counts_on_each_of_them():
    of = [trial(n, "") for n in (0, 1)]
    marks = [{"Chile": "1111", "Mexico": "1000"}, {"Chile": "1000", "Mexico": "1110"}]

    result = summarize([(t, make_run(t, m)) for t, m in zip(of, marks, strict=True)])

    assert result.cultures == ["Chile", "Mexico"]
    assert of_setting(result, 0).objective_per_culture == {"Chile": 1, "Mexico": 1 / 4}
    assert of_setting(result, 1).objective.value == 1 / 2
    assert of_setting(result, 0).other_cultures is None
    assert result.best_trials == {"Chile": "0//0", "Mexico": "1//0"}


def test_folds_are_put_together_and_a_lost_one_leaves_no_number():
    texts = {(0, 0): "1111", (0, 1): "1000", (1, 0): "1100", (1, 1): "1100"}
    of = {key: trial(key[0], "", fold=key[1]) for key in texts}
    runs = [(of[key], make_run(of[key], text)) for key, text in texts.items()]

    whole = summarize(runs)
    lost = replace(of[1, 1], state="failed")
    partial = summarize([*runs[:3], (lost, None)])

    assert (whole.num_folds, of_setting(whole, 0).objective.value) == (2, 5 / 8)
    assert of_setting(whole, 0).objective.num_pairs == 16
    assert of_setting(whole, 0).objective.num_clusters == 8
    assert whole.best_trials["Chile"] == "0//0/fold 0"
    assert of_setting(partial, 0).objective == of_setting(whole, 0).objective
    assert of_setting(partial, 1).objective is None


def test_folds_that_no_trial_has_begun_are_not_waited_for():
    first, later = trial(0, "", fold=0), trial(0, "", fold=1, state="waiting")

    result = summarize([(first, make_run(first, "1110")), (later, None)])

    assert (result.num_folds, result.settings[0].objective.value) == (2, 3 / 4)


def test_the_trial_to_register_is_the_lowest_seed_then_fold_of_the_best_setting_there():
    keys = [(5, 1), (5, 0), (2, 1), (2, 0)]
    of = [trial(0, "Chile", seed, fold) for seed, fold in keys]

    result = summarize([(t, make_run(t, "1111")) for t in of])

    assert result.best_trials == {"Chile": "0/Chile/2/fold 0"}


def test_without_a_global_model_there_is_one_layer_and_nothing_to_be_set_against():
    runs = runs_of({(0, c, 0): "1110" for c in CULTURES}, ref=None)

    [summary] = summarize(runs).settings
    [blind] = summarize(runs, metric="agreed").settings

    assert set(summary.accuracy[""]) == {"all"}
    assert summary.minus_global is None
    assert (blind.objective, blind.objective_per_culture) == (None, {})


def test_the_global_model_selects_no_pair_and_a_mean_is_taken_over_the_runs():
    trained = runs_of({(0, c, 0): REF for c in CULTURES})
    untrained = runs_of({(1, c, 0): REF for c in CULTURES}, method="global")

    result = summarize([*trained, *untrained])

    kept = selection("scpo").kept_share
    assert (of_setting(result, 0).kept_share, of_setting(result, 0).num_pairs) == (kept, 100)
    assert (of_setting(result, 1).kept_share, of_setting(result, 1).num_pairs) == (0, 0)
    difference = of_setting(result, 1).minus_global
    assert difference.value == 0 and difference.low < 0 < difference.high


def test_other_cultures_are_measured_by_the_models_that_were_not_trained_for_them():
    runs = []
    for culture, foreign in (("Chile", "1100"), ("Mexico", "0001")):
        of = trial(0, culture)
        runs.append((of, make_run(of, {c: "1111" if c == culture else foreign for c in CULTURES})))

    [summary] = summarize(runs).settings

    # Mexico's pairs by Chile's model: 1/2; Chile's by Mexico's: 1/4.
    assert summary.other_cultures.value == (1 / 2 + 1 / 4) / 2


def test_a_sweep_of_which_nothing_finished_is_a_table_of_failures():
    result = summarize([(trial(0, state="failed"), None), (trial(1, state="stopped"), None)])

    assert [(s.num_failed, s.num_stopped) for s in result.settings] == [(1, 0), (0, 1)]
    assert all(s.objective is None and s.minus_best is None for s in result.settings)
    assert (result.cultures, result.best_trials, result.pareto) == (["Chile"], {}, [])


def test_each_finished_run_is_read_once_and_the_numbers_do_not_depend_on_the_order():
    runs = runs_of({(n, c, 0): f"{n + 4:04b}" for n in range(4) for c in CULTURES})
    loaded = []

    def load(of: TrialRecord, side: str) -> ComparedRun:
        loaded.append(of.trial_id)
        return dict((t.trial_id, run) for t, run in runs)[of.trial_id]

    def result(order: Sequence[int]) -> SweepResult:
        return summarize_sweep(
            name="n",
            experiment="e",
            question="",
            objective=ObjectiveConfig(),
            axes=["a"],
            settings=[Setting(n, {"a": n}, "") for n in order],
            trials=[of for of, _ in runs],
            measured_on="test",
            load=load,
            seed=0,
        )

    assert result([0, 1, 2, 3]) == result([2, 3, 1, 0])
    assert sorted(loaded) == sorted(2 * [of.trial_id for of, _ in runs])


FIRST = trial(0, "Chile")
SECOND = trial(1, "Mexico")
FOLDS = trial(0, "Chile", fold=0), trial(0, "Chile", fold=1)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            [(FIRST, make_run(FIRST, "1111")), (SECOND, make_run(SECOND, "11111", ref="00110"))],
            "0/Chile/0 and 1/Mexico/0: scpo/Chile/seed 0 and scpo/Mexico/seed 0 differ in their "
            "pairs",
        ),
        (
            [(FIRST, make_run(FIRST, "1111")), (SECOND, make_run(SECOND, "1111", ref="1111"))],
            "differ in their global model: margins by up to 2",
        ),
        (
            [(FIRST, make_run(FIRST, "1111")), (SECOND, make_run(SECOND, "1111", samples=300))],
            "differ in their evaluation settings",
        ),
        (
            [
                (FOLDS[0], make_run(FOLDS[0], "1111")),
                (FOLDS[1], make_run(FOLDS[1], "1111", samples=300)),
            ],
            "0/Chile/0/fold 0 and 0/Chile/0/fold 1: scpo/Chile/seed 0 and scpo/Chile/seed 0 "
            "differ in their evaluation settings",
        ),
        (
            [(FOLDS[0], make_run(FIRST, "1111")), (FOLDS[1], make_run(FIRST, "1111"))],
            "folds 0 and 1 both test the pair 'Chile0' of Chile",
        ),
        (
            [(FIRST, make_run(FIRST, "1")), (replace(FIRST, path="again"), make_run(FIRST, "1"))],
            "0/Chile/0 and 0/Chile/0: one setting, culture, seed and fold finished twice",
        ),
        (
            [(trial(0, "Israel"), make_run(trial(0, "Israel"), "1111"))],
            "0/Israel/0: scpo/Israel/seed 0 was not tested on 'Israel'",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_named(runs, message: str):
    with pytest.raises(ValueError) as error:
        summarize(runs)

    assert message in str(error.value)


def test_an_unknown_culture_or_setting_is_refused():
    runs = runs_of({(0, "Chile", 0): "1111"})

    with pytest.raises(ValueError, match="must be macro, worst or one of Chile, got 'Peru'"):
        summarize(runs, culture="Peru")
    with pytest.raises(ValueError, match="0/Chile/0: there is no setting 0"):
        summarize_sweep(
            name="n",
            experiment="e",
            question="",
            objective=ObjectiveConfig(),
            axes=[],
            settings=[],
            trials=[runs[0][0]],
            measured_on="test",
            load=lambda *_: runs[0][1],
            seed=0,
        )


def test_pareto_keeps_what_nothing_beats_on_both_layers():
    # distinctive, agreed:  1, 0 | 1/2, 1/2 | 1/2, 0 (beaten) | 0, 1 | 1/2, 1/2 (as good)
    marks = {0: "1100", 1: "1010", 2: "1000", 3: "0011", 4: "0101"}

    result = summarize(runs_of({(n, c, 0): m for n, m in marks.items() for c in CULTURES}))

    assert sorted(result.pareto) == [0, 1, 3, 4]


def settings_with(**columns: Sequence[object]) -> list[Setting]:
    rows = zip(*columns.values(), strict=True)
    return [Setting(n, dict(zip(columns, row, strict=True)), "") for n, row in enumerate(rows)]


def test_importance_is_the_share_of_variance_between_an_axis_levels():
    settings = settings_with(a=[1, 1, 2, 2], b=["x", "y", "x", "y"], c=[None] * 4)

    shares = importance(["culture", "a", "b", "c"], settings, [0.0, 0.2, 0.4, 0.6])

    # Mean 0.3, squares 0.2; a's means 0.1 and 0.5: 4 * 0.04 = 0.16; b's 0.2 and 0.4: 0.04.
    assert shares == {"a": pytest.approx(0.8), "b": pytest.approx(0.2), "c": 0.0}


def test_axes_with_many_values_are_read_in_quartiles_or_by_their_largest_share():
    rates = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    mixtures = [{"Chile": x / 10, "Mexico": 1 - x / 10} for x in rates]
    settings = settings_with(rate=rates, mixture=mixtures)

    shares = importance(["rate", "mixture"], settings, rates)

    # Squares 42. Quartile means 1.5, 3.5, 5.5, 7.5: 2 * (9 + 1 + 1 + 9) = 40. Mexico's share is
    # the largest up to 5 (first of two equal ones: Chile): means 2.5 and 6.5 -> 8 * 4 = 32.
    assert shares == {"rate": pytest.approx(40 / 42), "mixture": pytest.approx(32 / 42)}


def test_settings_without_an_objective_do_not_count_in_the_importance():
    settings = settings_with(a=[1, 2, 3])

    assert importance(["a"], settings, [0.1, 0.5, None]) == {"a": pytest.approx(1.0)}
    assert importance(["a"], settings, [None] * 3) == {"a": 0.0}


@given(st.lists(st.none() | st.integers(0, 5).map(lambda n: n / 5), max_size=9))
def test_a_ranking_holds_each_place_once_the_best_first_and_none_last(values):
    order = ranking(values, mode="max")

    known = [values[place] for place in order if values[place] is not None]
    assert sorted(order) == list(range(len(values)))
    assert known == sorted(known, reverse=True)
    assert all(values[place] is None for place in order[len(known) :])
    negative = [None if value is None else -value for value in values]
    assert order == ranking(negative, mode="min")


def halves(outcomes: np.ndarray, users: np.ndarray, **objective: str) -> Estimate | None:
    rng = np.random.default_rng(0)
    return honest_choice([outcomes], [users], ObjectiveConfig(**objective), rng=rng)


def test_a_choice_among_equal_settings_is_not_worth_what_the_luckiest_shows():
    rng = np.random.default_rng(1)
    outcomes = (rng.random((80, 200)) < 0.6).astype(float)
    users = np.repeat(np.arange(20), 4)

    honest = halves(outcomes, users)

    assert outcomes.mean(axis=0).max() > 0.7
    assert honest.value == pytest.approx(0.6, abs=0.05)
    assert honest.low <= honest.value <= honest.high
    assert (honest.num_pairs, honest.num_clusters) == (80, 20)


def test_a_setting_that_is_better_everywhere_keeps_its_value():
    outcomes = np.tile([0.25, 0.75, np.nan], (8, 1))

    found = halves(outcomes, np.arange(8))
    assert found.value == 0.75 and (found.num_pairs, found.num_clusters) == (8, 8)
    # As an accuracy of 75 % of 8 users who do not differ.
    alone = accuracy(np.full(8, 0.75), np.arange(8))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    assert halves(outcomes, np.arange(8), mode="min").value == 0.25


def test_one_setting_or_few_users_give_no_honest_choice():
    outcomes = np.tile([0.25, 0.75], (8, 1))

    assert halves(outcomes[:, :1], np.arange(8)) is None
    assert halves(outcomes, np.arange(8) % 3) is None


def test_a_sweep_of_enough_users_says_what_its_choice_is_worth():
    marks = {0: "11111110", 1: "10000000"}
    four = {(n, c, 0): text for n, text in marks.items() for c in CULTURES}

    honest = summarize(runs_of(four, users=4, ref="00110011")).chosen_honestly

    # Setting 0 wins on either half; the two halves together are the whole.
    assert (honest.value, honest.num_pairs, honest.num_clusters) == (pytest.approx(7 / 8), 16, 8)
    whole = of_setting(summarize(runs_of(four, users=4, ref="00110011")), 0).objective
    assert (honest.low, honest.high) == pytest.approx((whole.low, whole.high))
    assert summarize(runs_of(four, users=3, ref="00110011")).chosen_honestly is None


def test_what_dev_users_chose_is_tested_once_on_test_users():
    dev = dict(runs_of({(0, "Chile", 0): "1110", (1, "Chile", 0): "1000"}))
    test = dict(runs_of({(0, "Chile", 0): "0100", (1, "Chile", 0): "1111"}))
    loaded = []

    def load(of: TrialRecord, side: str) -> ComparedRun:
        by_run = {t.run_id: (t, run) for t, run in {"dev": dev, "test": test}[side].items()}
        known, run = by_run[of.run_id]
        loaded.append((known.setting, side))
        return run

    result = summarize(list(dev.items()), measured_on="dev", load=load)

    # Setting 1 would have been better on test users, who are not asked.
    assert [s.setting.number for s in result.settings] == [0, 1]
    assert [s.objective.value for s in result.settings] == [0.75, 0.25]
    assert result.chosen_honestly.value == 0.25
    assert result.chosen_minus_global.value == -0.25
    assert [setting for setting, side in loaded if side == "test"] == [0]


def test_each_fold_chooses_on_its_own_dev_users():
    marks = {"dev": {(0, 0): "1111", (0, 1): "0000", (1, 0): "0011", (1, 1): "0001"}}
    marks["test"] = {(0, 0): "0111", (0, 1): "1111", (1, 0): "1111", (1, 1): "0001"}
    runs = {
        side: {(n, f): make_run(trial(n, fold=f), {"Chile": m}) for (n, f), m in found.items()}
        for side, found in marks.items()
    }
    trials = [trial(n, fold=f) for n, f in marks["dev"]]
    settings = {of.run_id: of.setting for of in trials}

    result = summarize(
        [(of, None) for of in trials],
        measured_on="dev",
        load=lambda of, side: runs[side][settings[of.run_id], of.fold],
    )

    # Fold 0 takes setting 0 (3 of 4 on test), fold 1 setting 1 (1 of 4); all together, setting 0.
    assert result.settings[0].setting.number == 0
    assert result.chosen_honestly.value == 0.5
    assert result.chosen_honestly.num_pairs == 8


def test_questions_that_cultures_share_are_drawn_and_counted_once():
    runs = runs_of({(0, c, 0): "11110000" for c in CULTURES}, users=8, ref="00110011", shared=True)
    apart = runs_of({(0, c, 0): "11110000" for c in CULTURES}, users=8, ref="00110011")

    shared, single = summarize(runs).settings[0].objective, summarize(apart).settings[0].objective

    assert (shared.num_clusters, single.num_clusters) == (8, 16)
    assert shared.high - shared.low > 1.2 * (single.high - single.low)


def test_a_culture_of_which_every_run_was_lost_keeps_the_macro_mean_away():
    lost = trial(0, "Israel", state="failed")

    result = summarize([*runs_of({(0, c, 0): "1111" for c in CULTURES}), (lost, None)])

    assert result.cultures == ["Chile", "Mexico", "Israel"]
    [summary] = result.settings
    assert set(summary.accuracy) == {"", "Chile", "Mexico"}
    assert (summary.objective, summary.minus_global) == (None, None)
    assert set(result.best_trials) == {"Chile", "Mexico"}


def test_a_data_fraction_makes_curves_of_the_sweeps_own_replicates():
    values = {
        0: {"method": "finetune", "data.data_fraction": 1.0},
        1: {"method": "scpo", "data.data_fraction": 0.5},
        2: {"method": "finetune", "data.data_fraction": 0.5},
        3: {"method": "scpo", "data.data_fraction": 1.0},
    }
    marks = {0: "1110", 1: "1110", 2: "1000", 3: "1110"}
    runs = [
        (replace(of, num_pairs=400 if of.setting in (0, 3) else 200), run)
        for of, run in runs_of({(n, c, 0): m for n, m in marks.items() for c in CULTURES})
    ]

    result = summarize(runs, values=values, axes=["method", "data.data_fraction", "culture"])

    finetune, scpo = result.efficiency
    assert (finetune.name, finetune.pairs_to_match) == ("method=finetune", None)
    # The same pairs right with half of the training pairs, in every resample; fewer might do.
    assert scpo.pairs_to_match == (0.5, 0.5, 0.5) and scpo.is_at_most
    # Two users a culture do not show that finetune needs more than half of its pairs.
    assert finetune.rival_learned == scpo.rival_learned == "not distinguishable"
    assert list(result.importance) == ["method", "data.data_fraction"]


def test_the_interval_of_an_honest_choice_holds_what_is_chosen_in_19_of_20_cases():
    rng = np.random.default_rng(6)
    held = []
    for _ in range(100):
        users = np.repeat(np.arange(20), 10)
        taste = np.clip(rng.normal(0.6, 0.1, 20), 0, 1)[users, None]
        gains = rng.normal(0, 0.02, 8)
        common = np.where(rng.random((200, 8)) < 0.3, rng.random((200, 8)), rng.random((200, 1)))
        outcomes = (common < taste + gains).astype(float)
        honest = halves(outcomes, users)
        held.append(honest.low <= 0.6 + gains[outcomes.mean(axis=0).argmax()] <= honest.high)

    assert np.mean(held) > 0.95 - 3 * 0.022


def test_the_worst_culture_of_an_honest_choice_is_measured_where_it_did_not_choose():
    rng = np.random.default_rng(7)
    values = []
    for seed in range(40):
        users = [np.repeat(np.arange(12), 10) + 100 * culture for culture in range(5)]
        outcomes = [(rng.random((120, 2)) < 0.6).astype(float) for _ in users]
        objective = ObjectiveConfig(culture="worst")
        values.append(
            honest_choice(outcomes, users, objective, rng=np.random.default_rng(seed)).value
        )

    # The lowest of five measured accuracies lies 5 points below 60 on average.
    assert np.mean(values) == pytest.approx(0.6, abs=0.02)
