"""Rivals without training: a country in the prompt, a soup, a culture that comes later."""

import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from scpo_ray.experiment import load_inputs, prepare_run
from scpo_ray.inputs import open_run_dir
from scpo_ray.launch.runs import start_run
from scpo_ray.methods.heads import TaughtPairs
from scpo_ray.methods.lore import shared_heads
from scpo_ray.methods.lore_few import Settings as FewSettings
from scpo_ray.methods.lore_few import mixed_heads
from scpo_ray.methods.prompted import filled
from scpo_ray.methods.rewording import RewordedTexts
from scpo_ray.methods.soup import model_folders
from scpo_ray.models.export import load_exported
from scpo_ray.models.scoring import score_tokens
from scpo_ray.records import ALONE, InputError
from scpo_ray.storage.run_dir import load_test_pairs
from tests.tiny import tiny_config

THREE = {"cultures": ["Majority", "North", "South"]}


def prepared(config):
    run_dir = open_run_dir(config)
    return prepare_run(config, load_inputs(config, run_dir), ALONE)


# prompted


def test_the_culture_stands_in_the_prompt_that_is_scored(tiny_reward_model, tmp_path):
    template = "people at home in {culture} talk about {prompt}"
    sections = {"prompted": {"template": template}}
    config = tiny_config(tiny_reward_model, tmp_path, method="prompted", methods=sections)

    result, folder = start_run(config)

    task = prepared(config).task
    ids = np.arange(len(task.data.texts))
    texts = RewordedTexts(task.data.texts, ids, lambda p: filled(template, "North", p))
    assert texts[3].prompt == f"people at home in North talk about {task.data.texts[3].prompt}"
    assert [t.prompt for t in texts[1:3]] == [texts[1].prompt, texts[2].prompt]
    assert texts.place(3) == task.data.texts.place(3)
    model = load_exported(tiny_reward_model, device="cpu")
    rewards = score_tokens(model, task.base.tokens(texts))
    test = task.data.test
    margin = load_test_pairs(folder)["margin"]
    np.testing.assert_allclose(rewards[test.chosen] - rewards[test.rejected], margin, atol=1e-5)
    assert (margin != load_test_pairs(folder)["ref_margin"]).any()
    assert result.told == ["Prompts are read as 'people at home in North talk about <prompt>'."]
    assert not (folder / "model").exists()


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("why?", "I live in South Africa. why?"),
        ("{culture} {", "I live in South Africa. {culture} {"),
    ],
)
def test_braces_of_a_prompt_are_its_own(prompt, text):
    assert filled("I live in {culture}. {prompt}", "South_Africa", prompt) == text


@pytest.mark.parametrize("template", ["{prompt}", "{culture}", "{prompt} {culture} {prompt}"])
def test_a_template_names_culture_and_prompt_once(template, tiny_reward_model, tmp_path):
    sections = {"prompted": {"template": template}}
    with pytest.raises(ValidationError, match="template must hold"):
        tiny_config(tiny_reward_model, tmp_path, method="prompted", methods=sections)


@pytest.mark.parametrize("method", ["prompted", "lore_few"])
def test_one_culture_is_named(method, tiny_reward_model, tmp_path):
    both = {"North": 1.0, "South": 1.0}
    config = tiny_config(
        tiny_reward_model, tmp_path, method=method, culture_weights=both, data=THREE
    )

    with pytest.raises(InputError, match=r"one culture .*got \['North', 'South'\]"):
        prepared(config)


# soup


@pytest.fixture(scope="module")
def trained(tiny_reward_model, tmp_path_factory):
    """Two seeds of North and one of South, with adapters."""
    output = tmp_path_factory.mktemp("runs")
    cells = [("North", 0, {}), ("North", 1, {}), ("South", 0, {"lora": {"rank": 2}})]
    return output, [
        start_run(
            tiny_config(
                tiny_reward_model,
                output,
                method="finetune",
                seed=seed,
                culture_weights={culture: 1.0},
                model=model,
            )
        )[1]
        for culture, seed, model in cells
    ]


def soup(tiny_reward_model, output, *models, data=None):
    sections = {"soup": {"models": [str(m) for m in models]}}
    return tiny_config(tiny_reward_model, output, method="soup", methods=sections, data=data or {})


def test_a_soup_of_seeds_has_their_mean_weights_and_its_own_margins(trained, tiny_reward_model):
    output, (first, second, _) = trained
    config = soup(tiny_reward_model, output, output / "tiny" / "finetune-{culture}-s*")

    result, folder = start_run(config)

    ours, *theirs = (load_file(f / "model" / "model.safetensors") for f in (folder, first, second))
    for name, weight in ours.items():
        mean = (theirs[0][name].double() + theirs[1][name].double()) / 2
        torch.testing.assert_close(weight.double(), mean, atol=1e-6, rtol=0)
    model = load_exported(folder / "model", device="cpu")
    task = prepared(config).task
    rewards, test = score_tokens(model, task.tokens), task.data.test
    margin = load_test_pairs(folder)["margin"]
    np.testing.assert_allclose(rewards[test.chosen] - rewards[test.rejected], margin, atol=1e-5)
    assert result.told == [f"The mean of 2 models' weights: {first.name}, {second.name}."]


def test_a_soup_of_cultures_takes_adapters_in(trained, tiny_reward_model):
    output, (first, _, lora) = trained

    result, folder = start_run(soup(tiny_reward_model, output, first, lora / "model"))

    assert (folder / "model" / "model.safetensors").is_file()
    assert lora.name in result.told[0]


@pytest.mark.parametrize(
    ("patterns", "cultures", "problem"),
    [
        (["nowhere/*"], ["North"], r"nowhere/\*: there is no ended run or model"),
        (["{culture}"], ["North", "South"], r"\{culture\} needs one, got"),
        (["{one}"], ["North"], "two models at least"),
    ],
)
def test_a_soup_needs_two_models_that_are_there(patterns, cultures, problem, trained):
    one = str(trained[1][0])

    with pytest.raises(InputError, match=problem):
        model_folders([pattern.replace("{one}", one) for pattern in patterns], cultures)


@pytest.mark.parametrize(
    ("data", "side", "why"),
    [
        ({"split": {"seed": 7}}, "test", "data.split.seed is 0 there, 7 here"),
        ({"split": {"test_size": 0.4}}, "test", "data.split.test_size is 0.15 there, 0.4 here"),
        ({"split": {"num_folds": 4}}, "test", "data.split.num_folds is None there, 4 here"),
        ({"split": {"dev_size": 0.5}}, "dev", "data.split.dev_size is 0.15 there, 0.5 here"),
        ({"interactions_per_user": 5}, "test", "data.interactions_per_user is 4 there, 5 here"),
        ({"seed": 1}, "test", "data.seed is 0 there, 1 here"),
        ({"data_fraction": 0.5}, None, None),
        ({"split": {"dev_size": 0}}, None, None),
        (THREE, None, None),
    ],
)
def test_what_a_soup_is_judged_on_was_held_out_by_its_members(
    data, side, why, trained, tiny_reward_model
):
    output, (first, second, _) = trained
    config = soup(tiny_reward_model, output, first, second, data=data)

    if why is None:
        assert prepared(config).task.trained_cultures == ["North"]
        return
    with pytest.raises(InputError, match="may know what this run is judged on") as caught:
        prepared(config)
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith(f"{first}: ")
    assert f" {side} pairs" in caught.value.problems[0]
    assert caught.value.problems[0].endswith(f"of this run were not held out there: {why}")


def test_a_soup_says_of_which_members_it_is_not_known_whom_they_learned_from(
    trained, tiny_reward_model, tmp_path
):
    first, exported = trained[1][0], tmp_path / "exported"
    shutil.copytree(first / "model", exported)

    result, _ = start_run(soup(tiny_reward_model, tmp_path, first, exported))

    assert result.told[1].startswith(f"Whom these models learned from is not known: {exported}. ")


def test_a_soup_without_models_is_refused(tiny_reward_model, tmp_path):
    with pytest.raises(ValidationError, match=r"name them in methods\.soup\.models"):
        tiny_config(tiny_reward_model, tmp_path, method="soup")


def test_a_damaged_model_is_in_no_soup(trained, tiny_reward_model, tmp_path):
    output, (first, *_) = trained
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (first / "model").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text("{}")

    with pytest.raises(InputError, match="damaged"):
        start_run(soup(tiny_reward_model, tmp_path, first, broken))


# A culture that comes later


def taught(rng, true, count, num_features):
    """Pairs whose chosen response is drawn by a head."""
    features = rng.standard_normal((count, num_features))
    wins = rng.random(count) < 1 / (1 + np.exp(-features @ true))
    signed = np.where(wins[:, None], features, -features)
    return TaughtPairs(torch.from_numpy(signed), torch.zeros(count, dtype=torch.float64))


def test_a_new_culture_is_the_mixture_of_the_others_heads_that_its_answers_ask_for():
    rng = np.random.default_rng(0)
    directions = 3 * np.eye(4)[:2]
    cultures = [taught(rng, directions[k % 2], 400, 4) for k in range(4)]
    new = taught(rng, directions[1], 40, 4)
    settings = FewSettings(rank=2)

    found = mixed_heads([new, *cultures], settings, target=0, seed=0)

    basis = shared_heads(cultures, settings, seed=0).changes
    shares = np.linalg.lstsq(basis.T, found.changes[0], rcond=None)[0]
    assert shares.sum() == pytest.approx(1, abs=1e-6)
    assert shares.min() > -1e-6
    cosine = found.changes[0] @ directions[1] / np.linalg.norm(found.changes[0]) / 3
    assert cosine > 0.95
    assert (found.changes[1:] == 0).all()


def test_few_answers_are_among_more_and_the_others_keep_all(tiny_reward_model, tmp_path):
    def kept(number):
        sections = {"lore_few": {"num_answers": number}}
        config = tiny_config(
            tiny_reward_model, tmp_path, method="lore_few", methods=sections, data=THREE
        )
        run = prepared(config)
        pairs = run.kept_pairs
        mine = pairs.culture_codes == pairs.cultures.index("North")
        return set(pairs.interactions[mine]), int((~mine).sum())

    (few, others), (more, others_then) = kept(3), kept(6)

    assert (len(few), len(more)) == (3, 6)
    assert few < more
    assert others == others_then > 100


def test_a_new_culture_gets_a_whole_model(tiny_reward_model, tmp_path):
    sections = {"lore_few": {"num_answers": 5}}
    config = tiny_config(
        tiny_reward_model, tmp_path, method="lore_few", methods=sections, data=THREE
    )

    result, folder = start_run(config)

    model = load_exported(folder / "model", device="cpu")
    task = prepared(config).task
    rewards, test = score_tokens(model, task.tokens), task.data.test
    margin = load_test_pairs(folder)["margin"]
    np.testing.assert_allclose(
        rewards[test.chosen] - rewards[test.rejected], margin, rtol=2e-3, atol=1e-3
    )
    assert result.selection["North"].num_selected < result.selection["North"].num_pairs
    assert result.selection["South"].kept_share == 1


def test_a_new_culture_needs_two_others(tiny_reward_model, tmp_path):
    config = tiny_config(tiny_reward_model, tmp_path, method="lore_few")

    with pytest.raises(InputError, match="learns from the other cultures, and there is 1"):
        prepared(config)

    ranked = {"lore_few": {"rank": 5}}
    config = tiny_config(tiny_reward_model, tmp_path, method="lore_few", methods=ranked, data=THREE)
    with pytest.raises(InputError, match=r"methods\.lore_few: rank must be at most the 2 cultures"):
        prepared(config)
