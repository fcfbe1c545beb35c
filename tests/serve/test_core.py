"""Rewards by the one core: the same number by every road, and mixtures of them."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from scpo_ray.models.loading import drawn_by
from scpo_ray.records import InputError
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import RewardItem
from scpo_ray.storage.scale_file import load_scale
from tests.serve.made_models import TEXTS, alone, write_culture


def items(texts=TEXTS, **asked):
    return [
        RewardItem(text.response, text.prompt, **asked)
        if not text.history
        else RewardItem(
            text.response,
            messages=[
                {"role": role, "content": said}
                for role, said in (*text.history, ("user", text.prompt))
            ],
            **asked,
        )
        for text in texts
    ]


@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("options", [{}, {"max_loaded": 1}, {"batch_tokens": 64}])
def test_every_road_gives_the_number_of_the_runs_own_scoring(models, adapters, options):
    folders = models[adapters]
    rewards = CultureRewards.load({c: str(f) for c, f in folders.items()}, **options)
    asked = [item for culture in folders for item in items(culture=culture)]

    found = rewards.rewards(asked[::-1])[::-1]

    expected = [value for folder in folders.values() for value in alone(folder)]
    assert [reward.value for reward in found] == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == len(expected)
    assert [reward.of for reward in found] == [c for c in folders for _ in TEXTS]
    assert [reward.truncated for reward in found] == [False, False, False, True] * 3


def test_texts_of_all_cultures_on_one_base_are_one_row_of_one_pass(models):
    core = CultureRewards.load({c: str(f) for c, f in models[True].items()}, device="cpu")
    network = next(iter(core._networks._loaded.values())).__self__.model.scored.plain
    shapes = []
    hook = network.get_input_embeddings().register_forward_pre_hook(
        lambda layer, given: shapes.append(tuple(given[0].shape))
    )

    core.rewards([item for culture in models[True] for item in items(culture=culture)])

    hook.remove()
    assert [shape[0] for shape in shapes] == [1]


def test_adapters_on_one_base_share_a_network_and_whole_models_take_turns(models):
    shared = CultureRewards.load({c: str(f) for c, f in models[True].items()}, max_loaded=1)
    whole = CultureRewards.load({c: str(f) for c, f in models[False].items()}, max_loaded=2)

    assert shared._networks.num_loaded == 1
    assert whole._networks.num_loaded == 2
    whole.rewards(items(culture="New Zealand"))
    assert whole._networks.num_loaded == 2


def test_adapters_on_debertas_share_the_network_but_no_pass(tmp_path, tiny_backbone):
    base = tmp_path / "base"
    shutil.copytree(tiny_backbone, base)
    settings = DebertaV2Config(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        num_labels=1,
    )
    with drawn_by(0):
        DebertaV2ForSequenceClassification(settings).save_pretrained(base)
    folders = {
        culture: write_culture(tmp_path / culture, base, seed=seed, adapters=True)
        for seed, culture in enumerate(["Chile", "Mexico"])
    }

    rewards = loaded(folders)
    found = rewards.rewards([item for culture in folders for item in items(culture=culture)])

    expected = [value for folder in folders.values() for value in alone(folder)]
    assert [reward.value for reward in found] == pytest.approx(expected, abs=1e-5)
    assert rewards._networks.num_loaded == 1


def test_nothing_that_others_draw_is_changed(models):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)

    rewards = CultureRewards.load({c: str(f) for c, f in models[True].items()})
    rewards.rewards(items(culture="Chile"))

    assert torch.equal(torch.rand(3), expected)


def loaded(folders, **options):
    return CultureRewards.load({c: str(f) for c, f in folders.items()}, **options)


def test_a_reward_has_its_scale_and_its_probability_beside_it(models):
    folder = models[True]["Mexico"]
    scale = load_scale(folder)
    (reward, *_) = loaded(models[True]).rewards(items(culture="Mexico"))

    assert reward.standardised == pytest.approx((reward.value - scale.mean) / scale.spread)
    below = np.mean(np.array(scale.quantiles) < reward.value)
    assert reward.probability == pytest.approx(below, abs=0.02)


def test_mixtures_are_of_standardised_rewards_shares_and_the_worst_off(models):
    rewards = loaded(models[True])
    mix = {"Mexico": 0.25, "Chile": 0.75, "New Zealand": 0.0}
    chile, mexico = (rewards.rewards(items(culture=c)) for c in ("Chile", "Mexico"))
    found = {how: rewards.rewards(items(mix=mix, how=how)) for how in ("linear", "people", "worst")}

    for place, (one, other) in enumerate(zip(chile, mexico, strict=True)):
        linear = 0.75 * one.standardised + 0.25 * other.standardised
        share = 0.75 * one.probability + 0.25 * other.probability
        lowest = min(one.standardised, other.standardised)
        assert found["linear"][place].value == pytest.approx(linear)
        assert found["linear"][place].standardised == pytest.approx(linear)
        assert found["people"][place].value == pytest.approx(share)
        assert found["worst"][place].value == pytest.approx(lowest)
        assert [found[how][place].probability for how in found] == pytest.approx([share] * 3)
    assert found["linear"][0].of == "0.75 Chile + 0.25 Mexico (linear)"
    assert found["worst"][0].of == "Chile + Mexico (worst)"


def test_several_models_of_a_culture_are_their_mean_with_an_interval(models):
    folders = models[True]
    seeds = [str(folders["Chile"]), str(folders["New Zealand"])]
    several = CultureRewards.load({"Chile": seeds, "Mexico": [str(folders["Mexico"])] * 2})
    single = loaded(folders)
    one, other, mexico = (
        single.rewards(items(culture=c))[0] for c in ("Chile", "New Zealand", "Mexico")
    )

    (found, *_) = several.rewards(items(culture="Chile"))
    (mixed, *_) = several.rewards(items(mix={"Chile": 0.5, "Mexico": 0.5}))

    # t(0.975) of one degree of freedom is 12.706; the standard error of two is half their distance
    half = 12.7062 * abs(one.value - other.value) / 2
    mean = (one.value + other.value) / 2
    assert (found.value, found.low, found.high) == pytest.approx(
        (mean, mean - half, mean + half), rel=1e-4, abs=1e-5
    )
    z = (one.standardised + other.standardised) / 2
    half = 0.5 * 12.7062 * abs(one.standardised - other.standardised) / 2
    expected = 0.5 * z + 0.5 * mexico.standardised
    assert mixed.value == pytest.approx(expected, abs=1e-5)
    assert mixed.high - mixed.low == pytest.approx(2 * half, rel=1e-4)
    assert (one.low, one.high) == (None, None)


def test_one_model_needs_no_name(models):
    rewards = loaded({"Chile": models[False]["Chile"]})

    assert rewards.rewards(items()) == rewards.rewards(items(culture="Chile"))


def bad(response="a", prompt="b", **asked):
    return RewardItem(response, prompt, **asked)


BAD_ITEMS = {
    "unknown culture": (bad(culture="Chlie"), "culture = 'Chlie'.*nearest: 'Chile'"),
    "culture of another type": (bad(culture=3), "culture = 3: must be a culture's name"),
    "no culture": (bad(), "culture: must be given, or mix: there are: Chile, Mexico"),
    "culture and mix": (bad(culture="Chile", mix={"Chile": 1}), "a culture or a mix, not both"),
    "unknown in the mix": (bad(mix={"Mexcio": 1}), "mix = 'Mexcio'.*nearest: 'Mexico'"),
    "weights of another sum": (bad(mix={"Chile": 0.5, "Mexico": 0.4}), "sum to 1, got 0.9"),
    "negative weight": (bad(mix={"Chile": 1.5, "Mexico": -0.5}), "mix.Mexico = -0.5.*negative"),
    "NaN": (bad(mix={"Chile": float("nan")}), "mix.Chile = nan: must be a finite number"),
    "weight of another type": (bad(mix={"Chile": "1"}), "mix.Chile = '1': must be a finite"),
    "empty mix": (bad(mix={}), "mix = {}: must be weights by culture"),
    "unknown way": (bad(mix={"Chile": 1}, how="mean"), "how = 'mean': must be one of linear,"),
    "no prompt": (bad(prompt=None, culture="Chile"), "give a prompt or messages"),
    "prompt of another type": (bad(prompt=7, culture="Chile"), "prompt = 7: must be text"),
    "response of another type": (bad(None, culture="Chile"), "response = None: must be text"),
    "half a character": (bad("\ud800", culture="Chile"), "not UTF-8"),
    "no messages": (bad(prompt=None, messages=[], culture="Chile"), "messages = "),
    "a message without content": (
        bad(prompt=None, messages=[{"role": "user"}], culture="Chile"),
        "messages.*role and content",
    ),
    "ends with the assistant": (
        bad(prompt=None, messages=[{"role": "assistant", "content": "a"}], culture="Chile"),
        "must end with a user's message",
    ),
}


@pytest.mark.parametrize("fault", BAD_ITEMS)
def test_an_item_at_fault_is_named(models, fault):
    item, said = BAD_ITEMS[fault]
    good = bad(culture="Chile")

    with pytest.raises(InputError, match=f"items that cannot be scored\n  item 1: .*{said}"):
        loaded(models[True]).rewards([good, item])


def test_nothing_to_score_is_an_error(models):
    with pytest.raises(InputError, match="at least 1 item"):
        loaded(models[True]).rewards([])


def test_adapters_of_another_base_are_refused(tmp_path, models, tiny_reward_model):
    other = write_culture(tmp_path / "base", tiny_reward_model, seed=9, adapters=False)
    folder = shutil.copytree(models[True]["Chile"], tmp_path / "Chile")
    moved = tmp_path / "moved"
    shutil.copytree(tiny_reward_model, moved)
    expected = alone(folder)

    with pytest.raises(InputError, match="Chile: .*adapters of another base model than .*trained"):
        loaded({"Chile": folder}, base=str(other))
    found = loaded({"Chile": folder}, base=str(moved)).rewards(items())
    assert [reward.value for reward in found] == pytest.approx(expected, abs=1e-5)


def test_a_base_that_is_gone_is_named(tmp_path, models):
    folder = shutil.copytree(models[True]["Chile"], tmp_path / "Chile")
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}
    file.write_text(json.dumps(settings))

    with pytest.raises(InputError, match="Chile: .*its base model.*gone.*base = names the base"):
        loaded({"Chile": folder})


MIXED = {
    "renderers": ({"max_length": 40}, "mix: models of different renderers\n  Chile .* other "),
    "reference texts": ({"references": "others"}, "models of different reference texts\n  Chile"),
    "no scale": ({"references": None}, "mix: no scale in the model of other\n  scpo scale [^\n]*$"),
}


@pytest.mark.parametrize("difference", MIXED)
def test_models_that_cannot_be_compared_make_no_mixture(
    tmp_path, models, tiny_reward_model, difference
):
    settings, said = MIXED[difference]
    other = write_culture(tmp_path / "other", tiny_reward_model, seed=7, adapters=True, **settings)
    rewards = loaded({"Chile": models[True]["Chile"], "other": other})

    with pytest.raises(InputError, match=said):
        rewards.rewards(2 * items(mix={"Chile": 0.5, "other": 0.5}))
    values = [reward.value for reward in rewards.rewards(items(culture="other"))]
    assert values == pytest.approx(alone(other), abs=1e-5)


BAD_LOADS = {
    "nothing": ({}, {}, "at least 1 culture"),
    "no folder": ({"Chile": "runs/none"}, {}, "Chile: runs/none: no such folder"),
    "no store": ({"Chile": "scpo-Chile@champion"}, {}, "no MLflow store to look it up in"),
    "no memory": ({"Chile": "a"}, {"max_loaded": 0}, "max_loaded = 0: must be at least 1"),
    "no such type": ({"Chile": "a"}, {"dtype": "int4"}, "dtype = 'int4': must be one of"),
    "no such device": ({"Chile": "a"}, {"device": "cuda:9"}, "device = cuda:9: cannot be used"),
}


@pytest.mark.parametrize("fault", BAD_LOADS)
def test_what_cannot_be_loaded_is_named(fault):
    models, options, said = BAD_LOADS[fault]

    with pytest.raises(InputError, match=said):
        CultureRewards.load(models, **options)


def test_a_reward_that_is_no_number_is_an_error(models, monkeypatch):
    rewards = loaded({"Chile": models[False]["Chile"]})
    network = rewards._models["Chile\n0"].network
    rewards._networks._loaded[network] = lambda tokens, ids, names: np.full(len(ids), np.inf)

    with pytest.raises(InputError, match="Chile: .* gives rewards that are not finite"):
        rewards.rewards(items())
