"""Models merged by weight: the sum of their weights, heads included."""

import json

import numpy as np
import pytest
import torch

from scpo_ray.commands.rewards import merge_by_weight, scale_models
from scpo_ray.models.adapters import merged_adapters
from scpo_ray.models.export import load_exported
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError, Text
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import RewardItem
from scpo_ray.storage.scale_file import load_scale
from tests.serve.made_models import REFERENCES, TEXTS, alone, write_culture

NO_STORE = "sqlite:///none.db"


def summed_by_hand(folders, weights):
    """Rewards of the network whose every weight is the weighted sum of the models'."""
    networks = []
    for folder in folders:
        model = load_exported(folder, device="cpu")
        if hasattr(model.network, "merge_and_unload"):
            model = merged_adapters(model)
        networks.append(model)
    states = [model.network.state_dict() for model in networks]
    with torch.no_grad():
        networks[0].network.load_state_dict(
            {
                name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
                if states[0][name].is_floating_point()
                else states[0][name]
                for name in states[0]
            }
        )
    return [float(reward) for reward in score_texts(networks[0], TEXTS)]


@pytest.mark.parametrize("adapters", [True, False])
def test_a_merged_model_is_the_weighted_sum_of_the_weights(tmp_path, models, adapters):
    folders = [models[adapters][culture] for culture in ("Chile", "Mexico")]

    merge_by_weight([f"{folders[0]}=0.25", f"{folders[1]}=0.75"], tmp_path / "merged", NO_STORE)

    expected = summed_by_hand(folders, [0.25, 0.75])
    assert alone(tmp_path / "merged") == pytest.approx(expected, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(expected, alone(folders[1]), strict=True)) > 0.01


def test_a_merged_model_is_served_beside_the_others(tmp_path, models):
    chile, mexico = (models[True][culture] for culture in ("Chile", "Mexico"))
    merge_by_weight([f"{chile}=0.5", f"{mexico}=0.5"], tmp_path / "merged", NO_STORE)

    rewards = CultureRewards.load({"Chile": str(chile), "both": str(tmp_path / "merged")})

    assert rewards._networks.num_loaded == 1
    assert rewards.has_scale("Chile") and not rewards.has_scale("both")


def test_a_model_alone_stays_what_it_is(tmp_path, models):
    chile = models[True]["Chile"]

    merge_by_weight([f"{chile}=1"], tmp_path / "merged", NO_STORE)

    assert alone(tmp_path / "merged") == pytest.approx(alone(chile), abs=1e-5)


def test_what_does_not_fit_together_is_refused(tmp_path, models, tiny_reward_model):
    chile, whole = models[True]["Chile"], models[False]["Mexico"]
    shorter = write_culture(
        tmp_path / "shorter", tiny_reward_model, seed=5, adapters=True, max_length=40
    )
    elsewhere = write_culture(tmp_path / "elsewhere", whole, seed=5, adapters=True)
    for other, said in (
        (whole, "whole models and adapters have no common weights"),
        (shorter, "models of different renderers cannot be merged"),
        (elsewhere, "models of different base models cannot be merged"),
    ):
        with pytest.raises(InputError, match=said):
            merge_by_weight([f"{chile}=0.5", f"{other}=0.5"], tmp_path / "out", NO_STORE)
        assert not (tmp_path / "out").exists()


BAD_WEIGHTS = {
    "no weight": (["a"], "'a' is no weight"),
    "no number": (["a=b"], "'a=b' is no weight"),
    "sum": (["a=0.5", "b=0.4"], "weights must sum to 1, got 0.9"),
    "negative": (["a=1.5", "b=-0.5"], "must not be negative"),
    "twice": (["a=0.5", "a=0.5"], "a twice"),
    "no model": (["runs/a=1"], "no such database|no such folder"),
}


@pytest.mark.parametrize("fault", BAD_WEIGHTS)
def test_weights_at_fault_are_named(tmp_path, fault):
    weights, said = BAD_WEIGHTS[fault]

    with pytest.raises(InputError, match=said):
        merge_by_weight(weights, tmp_path / "out", f"sqlite:///{tmp_path}/none.db")


def test_models_without_a_scale_get_one_from_a_files_responses(tmp_path, models):
    folders = []
    for culture in ("Chile", "Mexico"):
        folders.append(tmp_path / culture)
        merge_by_weight([f"{models[True][culture]}=1"], folders[-1], NO_STORE)
    named = {folder.name: str(folder) for folder in folders}
    mix = RewardItem("a kind answer", "about food", mix={"Chile": 0.5, "Mexico": 0.5})
    with pytest.raises(InputError, match="no scale in the model of Chile, Mexico") as refused:
        CultureRewards.load(named).rewards([mix])
    assert "scpo scale FOLDER... FILE" in str(refused.value)
    rows = [
        {"prompt": text.prompt, "responses": [text.response, "a cold answer"]}
        for text in REFERENCES
    ]
    file = tmp_path / "references.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    scales = scale_models(folders, file, "cpu")

    texts = {
        (t.prompt, r): Text((), t.prompt, r)
        for t in REFERENCES
        for r in (t.response, rows[0]["responses"][1])
    }
    values = alone(folders[1], list(texts.values()))
    assert scales[1].num_texts == len(texts) < 2 * len(REFERENCES)
    assert scales[1].mean == pytest.approx(np.mean(values), abs=1e-5)
    assert scales[1].spread == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    assert [load_scale(folder) for folder in folders] == scales
    (found,) = CultureRewards.load(named).rewards([mix])
    each = [CultureRewards.load({"one": name}) for name in named.values()]
    said = [one.rewards([RewardItem("a kind answer", "about food")])[0] for one in each]
    assert found.value == pytest.approx(np.mean([reward.standardised for reward in said]), abs=1e-5)


def test_what_cannot_be_scaled_is_named(tmp_path, models):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n')
    for folder, text, said in (
        (tmp_path, '{"prompt": "a", "response": "b"}', "no exported or merged model"),
        (models[True]["Chile"], '{"prompt": "a", "response": "b"}', "no scale on texts.jsonl"),
        (models[True]["Chile"], '{"prompt": "a"}', "texts.jsonl, line 1"),
    ):
        file.write_text(f"{text}\n")
        with pytest.raises(InputError, match=said):
            scale_models([folder], file, "cpu")
