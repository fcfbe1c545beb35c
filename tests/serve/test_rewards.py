"""The trainers' functions, called as each trainer calls its own."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from scpo_ray.records import InputError
from scpo_ray.serve import rewards as functions
from scpo_ray.serve.items import Reward
from scpo_ray.serve.rewards import CultureReward, culture_reward, from_environment, trl
from tests.serve.double import LetterRewards, worth
from tests.serve.made_models import TEXTS, alone, write_culture

FOLDER = Path(functions.__file__).parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_reward_model):
    folder = tmp_path_factory.mktemp("cultures")
    return {
        culture: write_culture(folder / culture, tiny_reward_model, seed=seed, adapters=True)
        for seed, culture in enumerate(("Chile", "Mexico"), start=1)
    }


@pytest.fixture
def environment(folders, monkeypatch):
    """What sets up the functions without arguments."""
    from_environment.cache_clear()
    models = " ".join(f"{culture}='{folder}'" for culture, folder in folders.items())
    monkeypatch.setenv("SCPO_MODELS", models)
    monkeypatch.setenv("SCPO_SCALE", "raw")
    monkeypatch.setenv("SCPO_DEVICE", "cpu")
    yield monkeypatch
    from_environment.cache_clear()


def by_letters(**changed):
    settings = {"name": "letters", "scale": "raw", "column": "culture", "report_all": False}
    return CultureReward(LetterRewards(), **{**settings, **changed})


def by_path(name):
    """A module as trainers load one that is named by its file."""
    spec = importlib.util.spec_from_file_location("reward_module", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_row_is_judged_by_its_own_culture():
    found = by_letters()(
        prompts=["p", "p", "p"],
        completions=["ccc", "ccc", "mm"],
        completion_ids=[[1], [2], [3]],
        culture=["Chile", "Mexico", "Chile=0.5,Mexico=0.5"],
        trainer_state=None,
    )

    mixed = (worth("p mm", "Chile") + worth("p mm", "Mexico")) / 2
    assert found == pytest.approx([worth("p ccc", "Chile"), worth("p ccc", "Mexico"), mixed])


def test_messages_are_judged_as_texts_are():
    found = by_letters()(
        prompts=[[{"role": "user", "content": "p"}], "p"],
        completions=[[{"role": "assistant", "content": "ccc"}], "ccc"],
        culture=["Chile", "Chile"],
    )

    assert found[0] == found[1]


def test_it_logs_each_cultures_mean_and_what_the_others_think():
    logged = {}
    by_letters(report_all=True)(
        prompts=["p", "p", "p"],
        completions=["ccc", "c", "mm"],
        culture=["Chile", "Chile", "Mexico"],
        log_metric=logged.__setitem__,
    )

    mean = (worth("p ccc", "Chile") + worth("p c", "Chile")) / 2
    theirs = (worth("p ccc", "Mexico") + worth("p c", "Mexico")) / 2
    assert logged == {
        "reward/Chile": pytest.approx(mean),
        "reward/Chile/by/Mexico": pytest.approx(theirs),
        "reward/Mexico": pytest.approx(worth("p mm", "Mexico")),
        "reward/Mexico/by/Chile": pytest.approx(worth("p mm", "Chile")),
    }


def test_its_name_and_its_unit_can_be_chosen():
    function = by_letters(name="mine", scale="probability")

    (found,) = function(prompts=["p"], completions=["ccc"], culture=["Chile"])

    value = worth("p ccc", "Chile")
    assert (function.__name__, found) == ("mine", pytest.approx(value / (1 + value)))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "no column 'culture' in the data; cultures: Chile, Mexico"),
        ({"culture": ["Chle"]}, "row 0: culture = 'Chle': no such culture; nearest: 'Chile'"),
        ({"culture": [None]}, "row 0: culture must name a culture, got None"),
        ({"culture": ["Chile=2"]}, "row 0: culture: mix: weights must sum to 1, got 2"),
        (
            {"culture": ["Chile"], "completions": [[{"role": "tool", "content": "x"}]]},
            "row 0: a completion must be one assistant's message, got: tool",
        ),
        (
            {"culture": ["Chile"], "prompts": [[{"role": "user", "content": [{"text": "x"}]}]]},
            "row 0: a message must have role and content as text",
        ),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_judged_ends_the_training(columns, said):
    columns = {"prompts": ["p"], "completions": ["c"], **columns}

    with pytest.raises(InputError) as refused:
        by_letters()(**columns)

    assert said in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_ends_the_training(value):
    class Broken(LetterRewards):
        def rewards(self, items):
            return [Reward("Chile", value, None, None) for _ in items]

    function = CultureReward(
        Broken(), name="broken", scale="raw", column="culture", report_all=False
    )

    with pytest.raises(InputError, match=f"row 0: the reward is {value}"):
        function(prompts=["p"], completions=["c"], culture=["Chile"])


def test_a_model_without_references_has_no_standardised_rewards(tmp_path, tiny_reward_model):
    bare = write_culture(
        tmp_path / "bare", tiny_reward_model, seed=3, adapters=True, references=None
    )

    with pytest.raises(InputError, match="scale = standardised: the model of Chile was saved"):
        trl({"Chile": str(bare)}, device="cpu")(prompts=["p"], completions=["c"])


def test_chance_is_left_as_it_was(folders):
    models = {culture: str(folder) for culture, folder in folders.items()}
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)

    function = trl(models, device="cpu", scale="raw")
    function(prompts=["p"], completions=["c"], culture=["Chile"])

    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_trls_command_line_names_a_function(environment, folders):
    plain = [text for text in TEXTS if not text.history]
    found = culture_reward(
        [text.prompt for text in plain],
        [text.response for text in plain],
        completion_ids=[[0]] * len(plain),
        culture=["Mexico"] * len(plain),
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    )

    assert found == pytest.approx(alone(folders["Mexico"], plain), abs=1e-5)


def test_openrlhf_takes_the_file_by_its_path(environment, folders):
    """As its single-turn agent calls it: texts with the policy's marks, and the labels."""
    text = TEXTS[0]
    prompt = f"<|im_start|>user\n{text.prompt}<|im_end|>\n<|im_start|>assistant\n"

    answer = by_path("openrlhf").reward_func(
        [f"{prompt}{text.response}<|im_end|>"] * 2, [prompt] * 2, ["Chile", '{"culture": "Mexico"}']
    )

    expected = [alone(folders[culture], [text])[0] for culture in ("Chile", "Mexico")]
    torch.testing.assert_close(answer["rewards"], torch.tensor(expected), atol=1e-5, rtol=0)
    assert answer["scores"].shape == answer["extra_logs"]["reward"].shape == (2,)


@pytest.mark.parametrize("kind", ["text", "messages", "array"])
def test_verl_takes_the_file_by_its_path(environment, folders, kind):
    """As its reward manager calls it, by keywords, with what newer versions pass besides."""
    text = TEXTS[0]
    messages = [{"role": "user", "content": text.prompt}]
    prompts = {"text": text.prompt, "messages": messages, "array": np.array(messages)}

    answer = by_path("verl").compute_score(
        data_source="prism",
        solution_str=text.response,
        ground_truth=None,
        extra_info={"prompt": prompts[kind], "culture": "Chile", "index": 3, "split": "train"},
        reward_router_address=None,
        reward_model_tokenizer=None,
    )

    assert answer == {"score": pytest.approx(alone(folders["Chile"], [text])[0], abs=1e-5)}


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (None, "extra_info must have the prompt"),
        ({"culture": "Chile"}, "extra_info must have the prompt"),
        ({"prompt": "p"}, "no column 'culture'"),
        ({"prompt": "p", "culture": "Chle"}, "no such culture"),
    ],
)
def test_verl_is_told_what_the_data_lacks(environment, info, said):
    with pytest.raises(InputError, match=said):
        by_path("verl").compute_score("prism", "c", None, info)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SCPO_MODELS": ""}, "SCPO_MODELS or SCPO_URL must be set"),
        ({"SCPO_MODELS": "Chile"}, "Chile: must be CULTURE=MODEL"),
        ({"SCPO_SCALE": "big"}, "SCPO_SCALE = 'big': must be one of raw, standardised, probabil"),
        ({"SCPO_URL": "http://127.0.0.1:1"}, "http://127.0.0.1:1/v1/cultures: no answer"),
        ({"SCPO_URL": "http://me:word@127.0.0.1:1"}, "holds a user's password or token"),
    ],
)
def test_an_environment_that_sets_up_nothing_is_told(environment, variables, said):
    for name, value in variables.items():
        environment.setenv(name, value)

    with pytest.raises(InputError, match=said):
        from_environment()
