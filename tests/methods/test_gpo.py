"""GPO's predictor: who learns from whom, what it may see, and planted countries told apart."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from scpo_ray.commands.exporting import export_model
from scpo_ray.evaluation.distributions import similarities
from scpo_ray.experiment import load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import compare, start_run
from scpo_ray.methods.few_shot import (
    Answer,
    Predictor,
    few_shot,
    learn_predictor,
    predicted_logits,
    standardized,
    training_answers,
)
from scpo_ray.methods.gpo import Settings as GpoSettings
from scpo_ray.records import ALONE, InputError, Opinions
from scpo_ray.settings.comparison import ComparisonConfig
from scpo_ray.settings.run import RunConfig
from tests.evaluation.test_opinions import opinions_document

COUNTRIES = tuple("ABCDEFG")
NUM_QUESTIONS, NUM_OPTIONS = 60, 3


def planted(seed: int = 0) -> tuple[Opinions, np.ndarray]:
    """Countries on a line of tastes: shares are the softmax of an option's features times a taste.
    The last 20 questions are test questions."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(NUM_QUESTIONS * NUM_OPTIONS, 4)).astype(np.float32)
    texts = np.arange(len(features)).reshape(NUM_QUESTIONS, NUM_OPTIONS)
    shares = np.stack(
        [
            softmax(2 * (features @ [np.cos(a), np.sin(a), 0, 0])[texts], axis=1)
            for a in np.linspace(0, np.pi, len(COUNTRIES))
        ]
    )
    num_answers = len(COUNTRIES) * NUM_QUESTIONS
    opinions = Opinions(
        offsets=NUM_OPTIONS * np.arange(num_answers + 1),
        texts=np.tile(texts.ravel(), len(COUNTRIES)),
        shares=shares.ravel(),
        option_numbers=np.tile(np.arange(NUM_OPTIONS), num_answers),
        refusals=np.zeros(num_answers * NUM_OPTIONS, np.bool_),
        culture_codes=np.repeat(np.arange(len(COUNTRIES)), NUM_QUESTIONS).astype(np.int32),
        question_codes=np.tile(np.arange(NUM_QUESTIONS), len(COUNTRIES)),
        groups=np.arange(num_answers),
        is_train=np.tile(np.arange(NUM_QUESTIONS) < 40, len(COUNTRIES)),
        is_test=np.tile(np.arange(NUM_QUESTIONS) >= 40, len(COUNTRIES)),
        cultures=COUNTRIES,
    )
    return opinions, features


def gpo(**changes) -> GpoSettings:
    small = {"num_learning_countries": 4, "num_context_questions": 10, "min_questions": 5}
    return GpoSettings.model_validate({**small, "max_questions": 20, **changes})


def test_the_defaults_are_the_papers_protocol_but_for_the_steps():
    config = GpoSettings()

    assert (config.num_learning_countries, config.num_context_questions) == (5, 20)
    assert (config.learning_rate, config.min_questions, config.max_questions) == (3e-4, 10, 100)


def test_countries_that_are_not_learned_from_all_learn_from_the_same_ones():
    opinions, _ = planted()
    learning = {c: list(few_shot(opinions, c, gpo(), seed=3).learning) for c in COUNTRIES}

    sets = [frozenset(names) for names in learning.values()]
    common = max(set(sets), key=sets.count)
    assert all(c not in names and len(names) == 4 for c, names in learning.items())
    assert sum(found == common for found in sets) == len(COUNTRIES) - 4
    # One that is among them has the next in its place.
    assert all(
        len(found & common) == 3 for c, found in zip(COUNTRIES, sets, strict=True) if c in common
    )


def test_only_training_questions_are_learned_from_and_shown():
    opinions, _ = planted()

    task = few_shot(opinions, "B", gpo(learning_countries=["A", "C"]), seed=0)

    assert list(task.learning) == ["A", "C"]
    assert [len(answers) for answers in task.learning.values()] == [40, 40]
    assert len(task.context) == 10
    seen = [a.texts for answers in [task.context, *task.learning.values()] for a in answers]
    assert np.concatenate(seen).max() < 40 * NUM_OPTIONS
    expected = {tuple(answer.shares) for answer in training_answers(opinions, "B")}
    assert {tuple(answer.shares) for answer in task.context} <= expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_learning_countries": 7}, "num_learning_countries 7 beside B: the data has 7"),
        ({"learning_countries": ["A", "B"]}, "B cannot be learned from and predicted too"),
        ({"learning_countries": ["A", "Z"]}, "not in the data: Z"),
        ({"min_questions": 21, "max_questions": 30}, "40 training questions, and twice"),
        ({"num_context_questions": 41}, "B: 40 training questions are fewer than"),
    ],
)
def test_too_little_to_learn_from_is_told(changes, problem):
    opinions, _ = planted()

    with pytest.raises(ValueError, match=problem):
        few_shot(opinions, "B", gpo(**changes), seed=0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"min_questions": 30}, "max_questions 20 must not be below min_questions 30"),
        ({"learning_countries": ["S. Africa", "South Africa"]}, "must name each culture once"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        gpo(**changes)


def test_another_source_than_opinions_is_refused():
    with pytest.raises(ValueError, match='needs data.source "opinions", got "prism"'):
        RunConfig(method="gpo")


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 100))
def test_a_target_sees_the_context_and_no_other_target(num_shown, num_asked, seed):
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    predictor = Predictor(3).eval()
    context, targets = torch.randn(num_shown, 3, generator=draw), torch.randn(num_asked, 3)
    shares = torch.rand(num_shown, generator=draw)
    with torch.no_grad():
        together = predictor(context, shares, targets)
        alone = torch.cat([predictor(context, shares, target[None]) for target in targets])
        order = torch.randperm(num_shown, generator=draw)
        shuffled = predictor(context[order], shares[order], targets)
        other = predictor(context, shares + 1, targets)

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, shuffled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, other, atol=1e-6)


def test_features_are_standardized_over_the_rows_learned_from():
    features = np.array([[0.0, 5.0], [2.0, 5.0], [9.0, 6.0]], np.float32)

    scaled = standardized(features, np.array([0, 1]))

    np.testing.assert_allclose(scaled[:2], [[-1, 0], [1, 0]])
    assert np.isfinite(scaled).all()


def similarity(opinions, logits, country) -> float:
    mine = (opinions.culture_codes == COUNTRIES.index(country)) & opinions.is_test
    texts = opinions.texts.reshape(-1, NUM_OPTIONS)[mine]
    aims = opinions.shares.reshape(-1, NUM_OPTIONS)[mine]
    return float(similarities(softmax(logits[texts], axis=1), aims, base=2.0).mean())


def test_planted_countries_are_told_apart_from_a_few_answers():
    opinions, features = planted()
    config = gpo(learning_countries=["A", "C", "E", "G"], num_steps=600, learning_rate=1e-3)
    tasks = {country: few_shot(opinions, country, config, seed=0) for country in "BF"}
    countries = list(tasks["B"].learning.values())

    predictor, _ = learn_predictor(countries, features, config, seed=0, device="cpu")

    logits = {
        country: predicted_logits(predictor, task.context, features, device="cpu")
        for country, task in tasks.items()
    }
    for country, other in ("BF", "FB"):
        own = similarity(opinions, logits[country], country)
        assert own > similarity(opinions, np.zeros(len(features)), country) + 0.1
        # The same questions with the other country's answers shown are another prediction.
        assert own > similarity(opinions, logits[other], country) + 0.1


def test_learning_is_the_same_for_one_seed_and_leaves_the_global_stream_alone():
    opinions, features = planted()
    task = few_shot(opinions, "B", gpo(), seed=0)
    config, countries = gpo(num_steps=2), list(task.learning.values())
    before = torch.get_rng_state()

    first, loss = learn_predictor(countries, features, config, seed=5, device="cpu")
    again, same = learn_predictor(countries, features, config, seed=5, device="cpu")
    other, _ = learn_predictor(countries, features, config, seed=6, device="cpu")

    def logits(predictor):
        return predicted_logits(predictor, task.context, features, device="cpu")

    assert loss == same
    np.testing.assert_array_equal(logits(first), logits(again))
    assert not np.array_equal(logits(first), logits(other))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_answer_in_several_orders_counts_once():
    opinions, _ = planted()
    doubled = Opinions(**{**opinions.__dict__, "groups": opinions.groups // 2})

    assert len(training_answers(opinions, "A")) == 40
    assert len(training_answers(doubled, "A")) == 20
    assert isinstance(training_answers(doubled, "A")[0], Answer)


FEW = {"num_learning_countries": 1, "num_context_questions": 5, "min_questions": 3}
SHORT = {"gpo": {**FEW, "max_questions": 6, "num_steps": 3}}


def test_a_run_predicts_its_countrys_shares_and_leaves_no_model(tiny_reward_model, tmp_path):
    document = opinions_document(tmp_path, tiny_reward_model, method="gpo", methods=SHORT)
    config = RunConfig.model_validate(document)

    result, folder = start_run(config)

    scores = next(s for s in result.opinions if (s.options, s.base) == ("all", "e"))
    for country in ("Chile", "South Africa"):
        assert 0 < scores.cultures[country]["model"].value < 1
    assert scores.cultures["Chile"]["model"] != scores.cultures["Chile"]["global"]
    assert (result.num_steps, result.num_pairs_seen) == (3, 0)
    assert result.model_dir == str(tiny_reward_model)
    with pytest.raises(InputError, match="has no trained model"):
        export_model(str(folder), tmp_path / "exported", uri="", merge=False)


@pytest.mark.parametrize(("damaged", "num_learned"), [(False, 1), (True, 2)])
def test_the_same_countries_are_learned_from_once(
    tiny_reward_model, tmp_path, caplog, damaged, num_learned
):
    caplog.set_level("INFO", "scpo_ray")
    found = []
    # What is shown of the country makes another run; it needs the same predictor.
    for num_shown in (5, 6):
        rivals = {"gpo": {**SHORT["gpo"], "num_context_questions": num_shown}}
        document = opinions_document(tmp_path, tiny_reward_model, method="gpo", methods=rivals)
        result, _ = start_run(RunConfig.model_validate(document))
        found.append(result.opinions[0].cultures["Chile"]["model"].value)
        (weights,) = (tmp_path / "runs" / "cache" / "predictors").glob("*/*.safetensors")
        if damaged:
            weights.write_bytes(b"{}")

    assert found[0] != found[1]
    assert caplog.text.count("3 steps, loss") == num_learned
    assert ("are damaged" in caplog.text) == damaged


def test_it_is_compared_with_the_others_on_each_country(tiny_reward_model, tmp_path):
    document = opinions_document(tmp_path, tiny_reward_model, methods=SHORT, train={"max_steps": 2})
    methods = ["finetune", "lore", "gpo"]
    comparison = ComparisonConfig.model_validate({"run": document, "space": {"method": methods}})

    summary, _ = compare(comparison)

    assert not summary.failures
    found = {(s.method, s.culture): s for s in summary.opinions if s.predictor == "model"}
    for country in ("", "Chile", "South Africa"):
        assert found["gpo", country].minus_finetune is not None
        assert found["gpo", country].similarity.value is not None


@pytest.mark.parametrize(
    ("weights", "rivals", "problem"),
    [
        ({"Chile": 1.0}, {}, "predicts one country, got 2"),
        ({}, {"num_learning_countries": 2}, "methods.gpo: num_learning_countries 2 beside South"),
        ({}, {"num_context_questions": 50}, "methods.gpo: South Africa: 29 training questions are"),
    ],
)
def test_a_run_says_early_what_it_has_too_little_of(
    tiny_reward_model, tmp_path, weights, rivals, problem
):
    document = opinions_document(
        tmp_path,
        tiny_reward_model,
        method="gpo",
        methods={"gpo": {**FEW, **rivals}},
        culture_weights=weights,
    )
    config = RunConfig.model_validate(document)
    run_dir = open_run_dir(config)

    with pytest.raises(InputError, match=problem):
        prepare_run(config, load_inputs(config, run_dir), ALONE)
