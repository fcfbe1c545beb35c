"""Answer shares of a model against a country's: each predictor by hand, and a run that has them."""

import json
import math

import numpy as np
import pytest

from scpo_ray.evaluation.comparable import ComparedRun, pair_outcomes
from scpo_ray.evaluation.opinion_comparison import compare_opinions
from scpo_ray.evaluation.opinions import PREDICTORS, evaluate_opinions, opinion_outcomes
from scpo_ray.launch.runs import compare, start_run
from scpo_ray.records import InputError, Opinions
from scpo_ray.report import page as report_page
from scpo_ray.report.tables import opinion_tables
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.files import load_comparison
from scpo_ray.settings.naming import result_metrics
from scpo_ray.settings.run import RunConfig
from scpo_ray.storage.run_dir import (
    load_comparison_result,
    load_result,
    load_test_opinions,
    load_test_pairs,
)
from tests.data.test_opinions import row, write
from tests.tiny import tiny_document

CONFIG = EvaluationConfig(bootstrap_samples=100)


def opinions(*distributions, cultures=("A", "B")) -> Opinions:
    """Of (culture, question, is_test, shares): two options, or three of which the last is a
    refusal; the texts of question q are 3 q, 3 q + 1, 3 q + 2."""
    sizes = [len(shares) for *_, shares in distributions]
    return Opinions(
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        texts=np.concatenate([3 * q + np.arange(len(s)) for _, q, _, s in distributions]),
        shares=np.concatenate([np.array(s, dtype=np.float64) for *_, s in distributions]),
        option_numbers=np.concatenate([np.arange(size) for size in sizes]),
        refusals=np.concatenate([np.arange(size) == 2 for size in sizes]),
        culture_codes=np.array([cultures.index(c) for c, *_ in distributions], dtype=np.int32),
        question_codes=np.array([q for _, q, *_ in distributions]),
        groups=np.arange(len(distributions)),
        is_train=np.array([not test for _, _, test, _ in distributions]),
        is_test=np.array([test for _, _, test, _ in distributions]),
        cultures=cultures,
    )


def similarity(data, rewards, ref_rewards=None, trained=("A",), options="all", base="2"):
    rewards = np.array(rewards, dtype=np.float32)
    if ref_rewards is not None:
        ref_rewards = np.array(ref_rewards, dtype=np.float32)
    found = opinion_outcomes(data, rewards, ref_rewards, trained_cultures=trained)
    return {name: v.tolist() for name, v in found[options].similarity[base].items()}


def test_a_model_with_the_logarithms_of_the_shares_as_rewards_is_a_perfect_match():
    data = opinions(("A", 0, False, [0.8, 0.2]), ("A", 1, True, [0.3, 0.7]), cultures=("A",))
    rewards = np.log([0.8, 0.2, 1, 0.3, 0.7, 1])

    found = similarity(data, rewards, ref_rewards=np.zeros(6))

    assert found["model"] == pytest.approx([1.0], abs=1e-6)
    assert found["model_fitted"] == pytest.approx([1.0], abs=1e-6)
    assert found["global"] == found["uniform"]
    assert found["uniform"][0] < 1


def test_the_temperature_is_fitted_on_training_questions_of_the_country_alone():
    data = opinions(
        ("A", 0, False, [0.8, 0.2]),
        ("A", 1, True, [0.1, 0.9]),
        ("B", 0, False, [0.6, 0.4]),
        ("B", 1, True, [0.1, 0.9]),
    )
    rewards = np.array([1, 0, 0, 1, 0, 0], dtype=np.float32)

    found = opinion_outcomes(data, rewards, None, trained_cultures=["A"])["all"]

    # softmax(1 / T) gives the shares: T = 1 / log(odds)
    assert found.temperatures["A"]["model_fitted"] == pytest.approx(1 / math.log(0.8 / 0.2))
    assert found.temperatures["B"]["model_fitted"] == pytest.approx(1 / math.log(0.6 / 0.4))


def test_means_of_other_countries_leave_the_country_itself_out():
    data = opinions(
        ("A", 0, True, [1.0, 0.0]),
        ("B", 0, True, [0.5, 0.5]),
        ("C", 0, True, [0.0, 1.0]),
        ("C", 1, True, [0.5, 0.5]),
        cultures=("A", "B", "C"),
    )

    found = similarity(data, np.zeros(6), trained=("A", "B"))

    # for B and C what A (and B) answered; nobody else was asked question 1: uniform
    assert found["training_countries"][2] == pytest.approx(
        similarity(opinions(("A", 0, True, [0.0, 1.0]), cultures=("A",)), np.log([0.75, 0.25, 1]))[
            "model"
        ][0]
    )
    assert found["training_countries"][3] == 1.0
    # B beside A and C, whose mean is one half each
    assert found["other_countries"][1] == pytest.approx(1.0)


def test_without_another_country_there_is_no_mean_of_others():
    data = opinions(("A", 0, True, [0.9, 0.1]), ("B", 0, True, [0.9, 0.1]))
    rewards = np.zeros(3, dtype=np.float32)

    found = opinion_outcomes(data, rewards, None, trained_cultures=["A"])
    scores = evaluate_opinions(found)[0]

    assert scores.cultures["A"]["training_countries"].value is None
    assert scores.cultures["B"]["training_countries"].value == 1.0
    assert scores.macro["training_countries"].value is None
    assert scores.micro["training_countries"].value is None


def test_the_constant_is_the_mean_training_answer_with_as_many_options():
    data = opinions(
        ("A", 0, False, [0.8, 0.2]),
        ("A", 1, False, [0.6, 0.4]),
        ("A", 2, True, [0.7, 0.3]),
        ("A", 3, True, [0.5, 0.25, 0.25]),
        cultures=("A",),
    )

    found = similarity(data, np.zeros(12))

    assert found["best_constant"][0] == pytest.approx(1.0)
    # no training question has three options
    assert found["best_constant"][1] == found["uniform"][1]
    # without the refusal it has two again, 2/3 and 1/3 against 0.7 and 0.3
    without = similarity(data, np.zeros(12), options="drop_refusal")
    assert without["best_constant"][1] > without["uniform"][1]


def test_answers_that_are_all_refusals_are_missing_for_every_predictor():
    data = opinions(("A", 0, False, [0.5, 0.5]), ("A", 1, True, [0.0, 0.0, 1.0]), cultures=("A",))

    found = similarity(data, np.zeros(6), options="drop_refusal")

    assert all(math.isnan(values[0]) for values in found.values())
    outcomes = opinion_outcomes(data, np.zeros(6, np.float32), None, trained_cultures=["A"])
    scores = {s.options: s for s in evaluate_opinions(outcomes)}
    assert scores["drop_refusal"].macro["model"].value is None
    assert scores["all"].macro["model"].value is not None


def test_a_models_shares_are_the_mean_over_the_orders_of_the_options():
    # A model that likes the first letter, whatever it stands for: over both orders it is uniform.
    data = Opinions(
        offsets=np.array([0, 2, 4]),
        texts=np.array([0, 1, 2, 3]),
        shares=np.array([0.9, 0.1, 0.1, 0.9]),
        option_numbers=np.array([0, 1, 1, 0]),
        refusals=np.zeros(4, dtype=np.bool_),
        culture_codes=np.zeros(2, dtype=np.int32),
        question_codes=np.zeros(2, dtype=np.int64),
        groups=np.zeros(2, dtype=np.int64),
        is_train=np.zeros(2, dtype=np.bool_),
        is_test=np.ones(2, dtype=np.bool_),
        cultures=("A",),
    )

    found = similarity(data, [3.0, 0.0, 3.0, 0.0])

    assert found["model"] == found["uniform"]


def test_macro_counts_countries_alike_and_micro_distributions():
    data = opinions(
        ("A", 0, True, [1.0, 0.0]),
        ("B", 0, True, [0.5, 0.5]),
        ("B", 1, True, [0.5, 0.5]),
        ("B", 2, True, [0.5, 0.5]),
    )
    outcomes = opinion_outcomes(data, np.zeros(9, np.float32), None, trained_cultures=["A"])
    scores = {(s.options, s.base): s for s in evaluate_opinions(outcomes)}

    a, found = scores["all", "2"].cultures["A"]["model"].value, scores["all", "2"]

    assert found.macro["model"].value == pytest.approx((a + 1) / 2)
    assert found.micro["model"].value == pytest.approx((a + 3) / 4)
    assert (found.micro["model"].num_pairs, found.micro["model"].num_clusters) == (4, 3)
    assert list(scores) == [
        *(("all", base) for base in "e2"),
        *(("drop_refusal", base) for base in "e2"),
    ]
    # base e gives a shorter distance: sqrt(ln 2) of base 2's
    gap = 1 - scores["all", "e"].cultures["A"]["model"].value
    assert gap == pytest.approx(math.sqrt(math.log(2)) * (1 - a))


def test_a_reward_that_is_not_finite_is_an_error():
    data = opinions(("A", 0, True, [0.5, 0.5]), cultures=("A",))

    with pytest.raises(ValueError, match="rewards must be finite, got nan"):
        similarity(data, [math.nan, 0.0, 0.0])


WORDS = ("warm", "cold", "kind")


def opinions_document(folder, model, **sections):
    """A run on forty questions that two countries answer in opposite ways."""
    rows = [
        row(
            f"what do you think of food {n}?",
            {"Chile": [0.6, 0.3, 0.1], "S. Africa": [0.2, 0.7, 0.1]},
            [*WORDS[:2], "DK/Refused"],
        )
        for n in range(40)
    ]
    data = {
        "source": "opinions",
        "path": str(write(folder, rows)),
        "cultures": ["Chile", "S. Africa"],
    }
    document = tiny_document(model, folder / "runs") | {
        "culture_weights": {"S. Africa": 1.0},
        "data": data,
    }
    for name, value in sections.items():
        below = document.get(name)
        document[name] = {**below, **value} if isinstance(below, dict) else value
    return document


@pytest.fixture(scope="module")
def finished(tiny_reward_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("opinions")
    config = RunConfig.model_validate(
        opinions_document(folder, tiny_reward_model, train={"learning_rate": 3e-3})
    )
    return config, *start_run(config)


def test_a_run_on_opinions_keeps_every_predictor_in_its_result(finished):
    config, result, folder = finished

    assert load_result(folder) == result
    assert list(result.culture_weights) == ["South Africa"]
    assert [(s.options, s.base) for s in result.opinions] == [
        ("all", "e"),
        ("all", "2"),
        ("drop_refusal", "e"),
        ("drop_refusal", "2"),
    ]
    for scores in result.opinions:
        assert list(scores.cultures) == ["Chile", "South Africa"]
        assert set(scores.macro) == set(PREDICTORS)
    everyone = result.opinions[0].cultures["South Africa"]
    # Every question is answered alike, so the training answers say it all.
    assert everyone["best_constant"].value == pytest.approx(1.0)
    assert everyone["model"].num_clusters == 6  # 15 % of 40
    columns = load_test_opinions(folder)
    mine = columns["culture"] == "South Africa"
    assert columns["model/all/e"][mine].mean() == pytest.approx(everyone["model"].value)


def test_training_for_a_country_brings_its_answers_nearer(finished):
    _, result, _ = finished

    changed = result.opinions[0].difference["South Africa"]["model_fitted"]

    assert changed.value > 0


def test_a_runs_metrics_tables_and_report_show_opinions(finished):
    _, result, folder = finished

    metrics = result_metrics(result)
    value = result.opinions[0].cultures["South Africa"]["model"].value
    assert metrics["opinions/all/base_e/model/South_Africa"] == value
    assert metrics["opinions/all/base_e/model/macro"] == result.opinions[0].macro["model"].value
    assert metrics["opinions/all/base_e/model/micro/low"] == result.opinions[0].micro["model"].low
    assert metrics["opinions_difference/all/base_2/model/macro"] is not None
    assert metrics["opinions_temperature/all/model_fitted/South_Africa"] > 0
    assert [table.row_count for table in opinion_tables(result.opinions)] == [4, 4]
    page = (folder / "report.html").read_text()
    assert 'id="opinions"' in page
    assert "without refusals, base e" in page
    assert f"<b>{100 * value:.1f}</b>" in page


def test_letters_are_averaged_over_orders_and_share_no_text_between_questions(
    tiny_reward_model, tmp_path
):
    document = opinions_document(tmp_path, tiny_reward_model, method="global")
    document["data"] |= {"options_as": "letters", "num_option_orders": 2}

    result, _ = start_run(RunConfig.model_validate(document))

    assert result.data["Chile"].interactions == 2 * 40
    assert result.data["Chile"].train_test_texts == 0
    assert result.opinions[0].cultures["Chile"]["global"].num_pairs == 6
    assert result.opinions[0].macro_difference["model"].value == 0.0


def test_methods_are_compared_on_the_same_distributions(tiny_reward_model, tmp_path):
    document = {
        "run": opinions_document(tmp_path, tiny_reward_model, train={"max_steps": 2}),
        "space": {"method": ["global", "finetune", "scpo"], "culture": ["S. Africa"]},
    }
    path = tmp_path / "compare.yaml"
    path.write_text(json.dumps(document))

    result, folder = compare(load_comparison(path))

    assert result.cultures == ["South Africa"]
    assert load_comparison_result(folder) == result
    found = {(s.method, s.culture, s.options, s.base, s.predictor): s for s in result.opinions}
    scpo = found["scpo", "", "all", "e", "model"]
    own = found["scpo", "South Africa", "all", "e", "model"]
    assert scpo.similarity.value == own.similarity.value
    global_model = found["global", "South Africa", "all", "e", "model"]
    assert global_model.minus_global is None
    assert own.minus_global.value == pytest.approx(
        own.similarity.value - global_model.similarity.value
    )
    assert own.minus_finetune is not None
    assert own.minus_global.p_holm is not None
    page = (folder / "report.html").read_text()
    assert "Answer shares" in page
    # The other predictors' macro mean is over Chile too, which is not compared.
    runs = [load_result(path.parent) for path in sorted(folder.glob("*/result.json"))]
    macro, own_row = report_page._compared_opinions(runs, result)["e"][0].rows
    assert [cell.main for cell in macro.cells[-3:]] == [report_page.NONE] * 3
    assert own_row.cells[-1].main == report_page.percent(
        runs[0].opinions[0].cultures["South Africa"]["uniform"].value
    )


def test_a_method_without_a_country_has_no_macro_value(finished):
    _, result, folder = finished
    outcomes = pair_outcomes(load_test_pairs(folder))
    one = ComparedRun(result, "South Africa", outcomes, load_test_opinions(folder))
    other = ComparedRun(
        result.__class__(**{**vars(result), "method": "finetune"}), "Chile", outcomes, one.opinions
    )

    found = {(s.method, s.culture): s for s in compare_opinions([one, other])}

    assert found["scpo", ""].similarity.value is None
    assert found["scpo", ""].minus_global is None
    assert found["scpo", "South Africa"].similarity.value is not None


@pytest.mark.parametrize(
    ("document", "setting"),
    [
        ({"culture_weights": {"S. Africa": 1.0, "South Africa": 0.5}}, "culture_weights"),
        ({"data": {"cultures": ["S. Africa", "South Africa"]}}, "data.cultures: cultures"),
        ({"space": {"culture": ["S. Africa", "South Africa"]}}, "space.culture"),
    ],
)
def test_a_country_named_twice_is_refused(tmp_path, document, setting):
    space = document.pop("space", None)
    run = document | {"data": {"source": "opinions"} | document.get("data", {})}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run if space is None else {"run": run, "space": space}))

    with pytest.raises(InputError) as error:
        load_comparison(path)

    names = "['S. Africa', 'South Africa']"
    assert error.value.problems == (f"{setting} must name each culture once, got {names}",)
