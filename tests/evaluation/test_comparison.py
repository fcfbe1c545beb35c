from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import t

from scpo_ray.evaluation.comparable import (
    ComparedRun,
    PairOutcomes,
    for_comparison,
    pair_outcomes,
)
from scpo_ray.evaluation.comparison import compare_runs
from scpo_ray.evaluation.metrics import noise_outcomes
from scpo_ray.evaluation.recommendation import recommendations
from scpo_ray.records import LAYERS
from scpo_ray.results import ComparisonResult, Difference, Estimate, MethodSummary
from scpo_ray.statistics.intervals import macro_difference, macro_mean, standing
from tests.results import run_result

CULTURES = ("Chile", "Mexico")
# Per culture: four pairs of two users, of which the global model ranks two right.
REF_MARGINS = [-1.0, -1.0, 1.0, 1.0]


def make_run(
    method: str,
    culture: str,
    *,
    seed: int = 0,
    own: Sequence[float] = REF_MARGINS,
    other: Sequence[float] = REF_MARGINS,
    ref: Sequence[float] | None = REF_MARGINS,
    cultures: Sequence[str] = CULTURES,
    kept_share: float = 0.5,
    samples: int = 100,
    shared_questions: bool = False,
) -> ComparedRun:
    """A run with margins `own` on its culture's pairs and `other` on those of each other one."""
    num_pairs = len(own)
    names = [name for name in cultures for _ in range(num_pairs)]
    rows = [row for _ in cultures for row in range(num_pairs)]
    result = run_result(method, culture, seed)
    summary = replace(run_result("scpo", culture).selection[culture], kept_share=kept_share)
    return ComparedRun(
        result=replace(
            result,
            config={"evaluation": {"distinctive_threshold": 0.5, "bootstrap_samples": samples}},
            selection={} if method == "global" else {culture: summary},
        ),
        culture=culture,
        outcomes=PairOutcomes(
            culture=np.array(names, object),
            pair_id=np.array([f"{n}{r}:0>1" for n, r in zip(names, rows, strict=True)], object),
            cluster=np.array(
                [
                    f"{'' if shared_questions else n}{r // 2}"
                    for n, r in zip(names, rows, strict=True)
                ],
                object,
            ),
            ref_margin=None if ref is None else np.array([*ref] * len(cultures), np.float32),
            margin=np.concatenate(
                [np.array(own if name == culture else other, np.float32) for name in cultures]
            ),
        ),
    )


def compare(runs: Sequence[ComparedRun]) -> ComparisonResult:
    return compare_runs(runs, "tastes", {})


def summary_of(result: ComparisonResult, method: str, culture: str) -> MethodSummary:
    [summary] = [s for s in result.summaries if (s.method, s.culture) == (method, culture)]
    return summary


def values(by_layer: dict) -> dict[str, float | None]:
    return {layer: entry.value for layer, entry in by_layer.items()}


def test_each_method_is_measured_on_the_culture_it_was_trained_for():
    result = compare(
        [
            make_run("scpo", "Chile", own=[1, 1, 1, -1], other=[-1, -1, -1, 1]),
            make_run("scpo", "Mexico", own=[1, -1, 1, 1], other=[-1, -1, -1, -1]),
        ]
    )

    chile = summary_of(result, "scpo", "Chile")
    assert values(chile.accuracy) == {"all": 3 / 4, "distinctive": 1, "agreed": 1 / 2}
    assert values(chile.minus_global) == {"all": 1 / 4, "distinctive": 1, "agreed": -1 / 2}
    assert (chile.other_cultures.value, chile.other_cultures.num_pairs) == (1 / 4, 4)
    assert (chile.accuracy["all"].num_pairs, chile.accuracy["all"].num_clusters) == (4, 2)
    assert chile.minus_finetune == {}
    macro = summary_of(result, "scpo", "")
    assert values(macro.accuracy) == {"all": 3 / 4, "distinctive": 3 / 4, "agreed": 3 / 4}
    assert macro.accuracy["all"].num_pairs == 8
    assert macro.other_cultures.value == pytest.approx((1 / 4 + 0) / 2)


def test_the_macro_rows_say_the_best_method_and_how_far_the_others_are_behind():
    runs = []
    for culture in CULTURES:
        runs += [
            make_run("global", culture),
            make_run("finetune", culture, own=[-1, 1, 1, 1]),
            make_run("scpo", culture, own=[1, 1, 1, 1]),
        ]
    result = compare([*runs, make_run("filter", "Chile")])

    best, second, last, partial = (
        summary_of(result, method, "") for method in ("scpo", "finetune", "global", "filter")
    )
    assert best.minus_best is None
    # One pair of the first of two users of each culture lost: that cannot be told from nothing.
    assert second.minus_best.value == pytest.approx(-1 / 4)
    assert second.minus_best.low < 0 < second.minus_best.high
    assert second.minus_best.p_value is None
    assert last.minus_best.value == pytest.approx(-1 / 2)
    assert partial.minus_best is None
    found = [standing(s.accuracy["all"], s.minus_best) for s in (best, second, partial)]
    assert found == ["best", "not distinguishable", "unknown"]
    assert summary_of(result, "finetune", "Chile").minus_best.value == pytest.approx(-1 / 4)
    assert summary_of(result, "scpo", "Chile").minus_best is None


def test_a_method_that_is_far_worse_is_behind_though_one_culture_has_one_user():
    # Six cultures of twelve users and one of one: a mean without an interval would be no verdict.
    generator = np.random.default_rng(0)
    names = [f"C{number}" for number in range(7)]
    culture = np.repeat(names, [24] * 6 + [2]).astype(object)
    cluster = np.arange(len(culture)) // 2
    runs = []
    for method, reached in (("finetune", 0.9), ("scpo", 0.25)):
        for name in names:
            margin = np.where(generator.random(len(culture)) < reached, 1, -1).astype(np.float32)
            ids = np.arange(len(culture)).astype(str).astype(object)
            outcomes = PairOutcomes(culture, ids, cluster, np.ones_like(margin), margin)
            runs.append(replace(make_run(method, name), outcomes=outcomes))

    scpo = summary_of(compare(runs), "scpo", "")

    assert scpo.minus_best.high < 0 and scpo.minus_finetune["all"].high < 0
    assert standing(scpo.accuracy["all"], scpo.minus_best) == "behind"


@pytest.mark.parametrize(
    ("reached", "found"),
    [((40, 24, 32), "not distinguishable"), ((32, 32, 32), "behind")],
)
def test_seeds_that_differ_tie_methods_that_users_alone_would_part(reached, found):
    # Twenty users of two pairs. finetune ranks 26 of 40 pairs right, spread over all users.
    def margins(right: int) -> list[float]:
        return [1.0 if row * right % 40 < right else -1.0 for row in range(40)]

    runs = []
    for culture in CULTURES:
        for seed, right in enumerate(reached):
            for method, own in (("finetune", margins(26)), ("scpo", margins(right))):
                runs.append(
                    make_run(method, culture, seed=seed, own=own, other=own, ref=None, samples=500)
                )
    finetune = summary_of(compare(runs), "finetune", "")

    assert finetune.minus_best.value == pytest.approx(-6 / 40)
    assert standing(finetune.accuracy["all"], finetune.minus_best) == found


def test_the_seeds_of_one_model_for_all_cultures_move_all_of_them_at_once():
    def width(one_run: bool) -> float:
        runs = []
        for culture in CULTURES:
            for seed, right in enumerate((40, 24, 32)):
                own = [1.0 if row * right % 40 < right else -1.0 for row in range(40)]
                run = make_run("finetune", culture, seed=seed, own=own, other=own, ref=[1.0] * 40)
                run_id = f"seed {seed}" if one_run else run.result.run_id
                runs.append(replace(run, result=replace(run.result, run_id=run_id)))
        change = summary_of(compare(runs), "finetune", "").minus_global["all"]
        assert change.value == pytest.approx(-0.2)
        return change.high - change.low

    # Two trainings halve the variance of the macro mean; one that serves both does not.
    assert width(one_run=True) > 1.2 * width(one_run=False)


def test_each_methods_gain_stands_beside_noise_and_the_cost_to_others():
    result = compare(
        [
            *(make_run("global", c) for c in CULTURES),
            *(make_run("scpo", c, own=[1, 1, 1, 1], other=[-1, -1, -1, 1]) for c in CULTURES),
        ]
    )

    chile = summary_of(result, "scpo", "Chile")
    # Half of the margins are kept and half are turned: nothing of the global model's is left.
    assert chile.scale == 0
    assert values(chile.noise) == {"all": 0.5, "distinctive": 0.5, "agreed": 0.5}
    assert chile.minus_noise["distinctive"].value == 0.5
    assert chile.others_minus_global.value == 1 / 4 - 2 / 4
    macro = summary_of(result, "scpo", "")
    assert macro.minus_noise["agreed"].value == 0.5 and macro.scale == 0
    assert macro.others_minus_global.num_pairs == 8
    unchanged = summary_of(result, "global", "")
    assert (unchanged.noise, unchanged.minus_noise, unchanged.scale) == ({}, {}, None)
    assert unchanged.others_minus_global is None


def test_seeds_that_differ_widen_the_interval_of_their_mean():
    users = range(20)
    good, bad = [1.0] * 20, [1.0, -1.0] * 10
    ref = [-1.0] * 20

    def interval(seeds: Sequence[Sequence[float]]) -> float:
        runs = [
            make_run("scpo", c, seed=seed, own=own, ref=ref, other=ref, samples=500)
            for c in CULTURES
            for seed, own in enumerate(seeds)
        ]
        chile = summary_of(compare(runs), "scpo", "Chile").accuracy["all"]
        assert chile.value == pytest.approx(0.75)
        return chile.high - chile.low

    # The same mean for every user: from three seeds alike, and from seeds of 100, 50, 75 %.
    alike = [[1.0 if (pair + seed) % 4 else -1.0 for pair in users] for seed in range(3)]
    middle = [-1.0 if pair % 4 == 3 else 1.0 for pair in users]
    assert interval([good, bad, middle]) > interval(alike) + 0.2


def test_seeds_are_averaged_and_their_spread_is_kept():
    runs = [
        make_run("scpo", culture, seed=seed, own=own)
        for culture in CULTURES
        for seed, own in ((0, [1, 1, 1, 1]), (3, [1, -1, 1, 1]), (7, [-1, -1, 1, 1]))
    ]

    result = compare(runs)

    chile, macro = summary_of(result, "scpo", "Chile"), summary_of(result, "scpo", "")
    assert chile.accuracy["all"].value == pytest.approx((1 + 3 / 4 + 1 / 2) / 3)
    assert chile.accuracy["all"].num_pairs == 4
    assert chile.seed_sd["all"] == pytest.approx(1 / 4)
    assert chile.seed_sd["agreed"] == 0
    assert macro.seed_sd["all"] == pytest.approx(1 / 4)
    assert result.seeds == [0, 3, 7]


def test_one_seed_has_no_spread():
    result = compare([make_run("scpo", "Chile")])

    assert summary_of(result, "scpo", "Chile").seed_sd == dict.fromkeys(LAYERS)
    assert summary_of(result, "scpo", "").seed_sd == dict.fromkeys(LAYERS)


def test_finetune_is_the_second_rival_on_the_same_pairs():
    result = compare(
        [
            make_run(method, culture, own=own)
            for culture in CULTURES
            for method, own in (("finetune", [1, -1, 1, -1]), ("scpo", [1, 1, 1, -1]))
        ]
    )

    for culture in ("", *CULTURES):
        scpo = summary_of(result, "scpo", culture)
        assert values(scpo.minus_finetune) == {"all": 1 / 4, "distinctive": 1 / 2, "agreed": 0}
        assert summary_of(result, "finetune", culture).minus_finetune == {}


def test_p_values_are_corrected_over_cultures_and_the_macro_test_stands_alone():
    ref, own = [-1] * 12, [1] * 12  # six users, all won
    result = compare([make_run("scpo", c, own=own, ref=ref, other=ref) for c in CULTURES])

    chile = summary_of(result, "scpo", "Chile").minus_global["all"]
    # No user differs: 12 pairs of two a user are worth 12 / 1.05, and t is the root of that.
    alone = 2 * t.sf((12 / 1.05) ** 0.5, 5)
    assert (chile.p_value, chile.p_holm) == pytest.approx((alone, 2 * alone))
    macro = summary_of(result, "scpo", "").minus_global["all"]
    assert macro.p_value == macro.p_holm == pytest.approx(2 * t.sf((24 / 1.05) ** 0.5, 10))
    assert summary_of(result, "scpo", "Chile").minus_global["agreed"].p_holm is None


@pytest.mark.parametrize("shared_questions", [False, True])
def test_methods_measured_at_once_have_the_numbers_of_each_by_itself(shared_questions: bool):
    rng, cultures = np.random.default_rng(0), ("Chile", "Mexico", "Peru")
    ref = rng.normal(size=12).tolist()
    like = {"ref": ref, "cultures": cultures, "shared_questions": shared_questions}
    runs = {}
    for method, culture, seed in product(("finetune", "scpo"), cultures, range(3)):
        own, other = rng.normal(0.3, 1, size=12).tolist(), rng.normal(size=12).tolist()
        run = make_run(method, culture, seed=seed, own=own, other=other, **like)
        runs[method, culture, seed] = run
    result = compare(list(runs.values()))

    def outcomes(method: str, culture: str) -> np.ndarray:
        """(P, seeds) on all pairs, from the models trained for one culture."""
        return np.stack([runs[method, culture, s].outcomes.margin > 0 for s in range(3)], axis=1)

    of = runs["scpo", "Chile", 0].outcomes
    rows = {culture: of.culture == culture for culture in cultures}
    for row in ("", *cultures):
        summary, over = summary_of(result, "scpo", row), [row] if row else cultures
        ours, theirs = ([outcomes(m, c)[rows[c]] for c in over] for m in ("scpo", "finetune"))
        clusters = [of.cluster[rows[c]] for c in over]
        assert_same(summary.accuracy["all"], macro_mean(ours, clusters))
        assert_same(summary.minus_finetune["all"], macro_difference(ours, theirs, clusters))
        ref_outcomes = [of.ref_margin[rows[c]] > 0 for c in over]
        assert_same(summary.minus_global["all"], macro_difference(ours, ref_outcomes, clusters))
        noise = [
            np.stack(
                [
                    noise_outcomes(*(a[rows[c]] for a in (of.ref_margin, run.outcomes.margin)))
                    for run in (runs["scpo", c, seed] for seed in range(3))
                ],
                axis=1,
            )
            for c in over
        ]
        assert_same(summary.noise["all"], macro_mean(noise, clusters))
        assert_same(summary.minus_noise["all"], macro_difference(ours, noise, clusters))
        others = [
            np.mean([outcomes("scpo", c)[rows[o]].mean(axis=1) for c in over if c != o], axis=0)
            for o in cultures
            if o != row
        ]
        clusters = [of.cluster[rows[o]] for o in cultures if o != row]
        ref_outcomes = [of.ref_margin[rows[o]] > 0 for o in cultures if o != row]
        assert_same(summary.other_cultures, macro_mean(others, clusters))
        expected = macro_difference(others, ref_outcomes, clusters)
        assert_same(summary.others_minus_global, expected)


def assert_same(found: Estimate | Difference, expected: Estimate | Difference) -> None:
    """But for Holm's correction, which is over cultures."""
    of_found, of_expected = (asdict(of) | {"p_holm": None} for of in (found, expected))
    # A p-value with seeds is a root, found to nine digits.
    assert of_found == pytest.approx(of_expected, abs=1e-8)


def test_questions_shared_by_cultures_count_once():
    ref, own = [-1] * 12, [1] * 12
    result = compare(
        [make_run("scpo", c, own=own, other=ref, ref=ref, shared_questions=True) for c in CULTURES]
    )

    macro = summary_of(result, "scpo", "")
    # Six questions of four pairs each.
    expected = 2 * t.sf((24 / (1 + 0.05 * 3)) ** 0.5, 5)
    assert macro.minus_global["all"].p_value == pytest.approx(expected)
    assert (macro.accuracy["all"].num_pairs, macro.accuracy["all"].num_clusters) == (24, 6)


def test_a_method_that_lacks_a_culture_has_no_macro_value_and_its_failure_is_carried():
    runs = [
        make_run("finetune", "Chile"),
        make_run("finetune", "Mexico"),
        make_run("scpo", "Chile", own=[1, 1, 1, 1]),
    ]

    result = compare_runs(runs, "tastes", {"scpo/Mexico/seed 0": "loss is NaN at step 7"})

    assert result.failures == {"scpo/Mexico/seed 0": "loss is NaN at step 7"}
    assert [(s.method, s.culture) for s in result.summaries] == [
        ("global", ""),
        ("global", "Chile"),
        ("global", "Mexico"),
        ("finetune", ""),
        ("finetune", "Chile"),
        ("finetune", "Mexico"),
        ("scpo", ""),
        ("scpo", "Chile"),
    ]
    macro = summary_of(result, "scpo", "")
    for by_layer in (macro.accuracy, macro.minus_global, macro.minus_finetune):
        assert values(by_layer) == dict.fromkeys(LAYERS)
    assert macro.other_cultures.value is None
    assert macro.seed_sd == dict.fromkeys(LAYERS)
    assert summary_of(result, "scpo", "Chile").minus_finetune["all"].value == 1 / 2
    assert summary_of(result, "finetune", "").accuracy["all"].value == 1 / 2


def test_a_lost_seed_leaves_the_ones_that_finished():
    result = compare(
        [
            make_run("scpo", "Chile", seed=0, own=[1, 1, 1, 1]),
            make_run("scpo", "Chile", seed=1, own=[1, 1, -1, -1]),
            make_run("scpo", "Mexico", seed=1, own=[1, 1, 1, 1]),
        ]
    )

    assert summary_of(result, "scpo", "Mexico").accuracy["all"].value == 1
    assert summary_of(result, "scpo", "").accuracy["all"].value == pytest.approx(7 / 8)
    assert summary_of(result, "scpo", "").seed_sd["all"] is None


def test_the_global_method_equals_itself_and_keeps_no_training_pair():
    result = compare([make_run("global", c) for c in CULTURES])

    summary = summary_of(result, "global", "Mexico")
    assert values(summary.accuracy) == {"all": 1 / 2, "distinctive": 0, "agreed": 1}
    assert (summary.minus_global["all"].value, summary.minus_global["all"].p_holm) == (0, 1)
    assert summary.kept_share == 0


def test_kept_share_is_averaged_over_seeds_then_cultures():
    result = compare(
        [
            make_run("scpo", "Chile", seed=0, kept_share=0.2),
            make_run("scpo", "Chile", seed=1, kept_share=0.4),
            make_run("scpo", "Mexico", seed=0, kept_share=0.7),
        ]
    )

    assert summary_of(result, "scpo", "Chile").kept_share == pytest.approx(0.3)
    assert summary_of(result, "scpo", "").kept_share == pytest.approx(0.5)


def test_without_a_global_model_there_is_one_layer_and_no_difference_from_it():
    result = compare(
        [
            make_run(method, c, ref=None, own=[1, 1, 1, -1])
            for c in CULTURES
            for method in ("finetune", "weight")
        ]
    )

    summary = summary_of(result, "weight", "")
    assert values(summary.accuracy) == {"all": 3 / 4}
    assert summary.minus_global == {}
    assert set(summary.minus_finetune) == {"all"}


def test_a_culture_without_distinctive_pairs_leaves_the_macro_mean_without_value():
    result = compare([make_run("scpo", c, ref=[1, 1, 1, 1]) for c in CULTURES])

    for culture in ("", *CULTURES):
        summary = summary_of(result, "scpo", culture)
        assert summary.accuracy["distinctive"] == Estimate(None, None, None, 0, 0)
        assert summary.minus_global["distinctive"].p_holm is None


def test_one_culture_has_no_other_cultures():
    result = compare([make_run("scpo", "Chile", cultures=["Chile"])])

    assert summary_of(result, "scpo", "Chile").other_cultures == Estimate(None, None, None, 0, 0)
    assert summary_of(result, "scpo", "").other_cultures == Estimate(None, None, None, 0, 0)


def test_cultures_that_were_only_tested_count_among_the_others():
    cultures = (*CULTURES, "Israel")

    result = compare([make_run("scpo", "Chile", cultures=cultures, other=[1, 1, 1, -1])])

    assert result.cultures == ["Chile"]
    assert summary_of(result, "scpo", "Chile").other_cultures.num_pairs == 8
    assert summary_of(result, "scpo", "Chile").other_cultures.value == 3 / 4


def test_methods_come_in_the_papers_order_and_cultures_as_the_runs_name_them():
    runs = [make_run(m, c) for m in ("scpo", "global", "finetune") for c in ("Mexico", "Chile")]

    result = compare(runs)

    assert result.methods == ["global", "finetune", "scpo"]
    assert result.cultures == ["Mexico", "Chile"]
    assert result.run_ids == [run.result.run_id for run in runs]
    assert compare(runs) == result


def test_nothing_finished_is_a_comparison_of_failures():
    result = compare_runs([], "tastes", {"scpo/Chile/seed 0": "no disk space"})

    assert (result.summaries, result.failures) == ([], {"scpo/Chile/seed 0": "no disk space"})


def with_column(run: ComparedRun, **columns: np.ndarray | None) -> ComparedRun:
    return replace(run, outcomes=replace(run.outcomes, **columns))


SECOND = make_run("scpo", "Mexico")
BOTH = "finetune/Chile/seed 0 and scpo/Mexico/seed 0"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            with_column(SECOND, pair_id=np.array([f"other{i}" for i in range(8)], object)),
            f"{BOTH} differ in their pairs: row 0 is 'Chile' 'Chile0:0>1' 'Chile0' and "
            "'Chile' 'other0' 'Chile0' (culture, pair, cluster)",
        ),
        (
            with_column(SECOND, cluster=SECOND.outcomes.cluster[::-1]),
            f"{BOTH} differ in their pairs: row 0 is",
        ),
        (
            make_run("scpo", "Mexico", cultures=(*CULTURES, "Israel")),
            "row 8 is no pair and 'Israel' 'Israel0:0>1' 'Israel0'",
        ),
        (make_run("scpo", "Mexico", ref=None), f"of {BOTH} only one has a global model's margins"),
        (
            make_run("scpo", "Mexico", ref=[-1, -1, 1, 1.5]),
            f"{BOTH} differ in their global model: margins by up to 0.5",
        ),
        (make_run("scpo", "Mexico", samples=101), f"{BOTH} differ in their evaluation settings"),
        (make_run("finetune", "Chile"), "two runs are finetune/Chile/seed 0"),
        (replace(SECOND, culture="Israel"), "scpo/Israel/seed 0 was not tested on 'Israel'"),
        (
            replace(SECOND, result=replace(SECOND.result, selection={})),
            "scpo/Mexico/seed 0 says nothing of the selection of 'Mexico'",
        ),
        (
            make_run("scpo", "Mexico", own=[1, 1, 1, np.nan]),
            "rewards must be finite, got 1 pairs that are not",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_named(second: ComparedRun, message: str):
    with pytest.raises(ValueError) as error:
        compare([make_run("finetune", "Chile"), second])

    assert message in str(error.value)


def test_runs_on_the_same_pairs_share_all_but_their_margins():
    def columns(margin: float) -> dict[str, np.ndarray]:
        return {
            "culture": np.array(["A", "B"], object),
            "pair_id": np.array(["a", "b"], object),
            "cluster": np.array([0, 1]),
            "pair_hash": np.array([3, 5], np.uint64),
            "ref_margin": np.ones(2, np.float32),
            "margin": np.full(2, margin, np.float32),
        }

    first = pair_outcomes(columns(1.0))
    second = pair_outcomes(columns(2.0), first)
    other = pair_outcomes(columns(2.0) | {"cluster": np.array([0, 0])}, first)

    shared = ("culture", "pair_id", "cluster", "ref_margin", "pair_hash")
    assert all(getattr(second, name) is getattr(first, name) for name in shared)
    assert second.margin.tolist() == [2, 2] and other.cluster.tolist() == [0, 0]


def test_of_a_result_a_comparison_keeps_its_own_culture_whole_and_of_others_what_is_shown():
    result = run_result("scpo", "Chile")

    shown = for_comparison(result, is_shown=True, like=result)
    later = for_comparison(result, is_shown=False)

    assert shown.evaluation["Chile"] == later.evaluation["Chile"] == result.evaluation["Chile"]
    assert list(shown.evaluation) == list(result.evaluation)
    assert list(later.evaluation) == ["Chile"]
    israel = shown.evaluation["Israel"]
    assert israel.after == {"all": result.evaluation["Israel"].after["all"]}
    assert israel.difference == {"all": result.evaluation["Israel"].difference["all"]}
    assert (israel.before, israel.controls, israel.minus_noise) == ({}, {}, {})
    assert shown.data is result.data


def test_the_global_model_stands_beside_the_methods_though_it_was_not_run():
    # Twelve users; scpo ranks fewer of the pairs right than the global model does.
    ref = [1.0, 1.0, 1.0, -1.0] * 6
    asked = [
        make_run("scpo", culture, own=[-0.5, -0.5, 0.5, -0.5] * 6, other=ref, ref=ref)
        for culture in CULTURES
    ]
    of_global = [make_run("global", culture, own=ref, other=ref, ref=ref) for culture in CULTURES]

    without, beside = compare(asked), compare([*asked, *of_global])

    assert without.methods == ["global", "scpo"]
    assert without.summaries == beside.summaries
    assert [r.name for r in recommendations(without)] == ["global"] * 3
    assert summary_of(without, "scpo", "").minus_best.high < 0
