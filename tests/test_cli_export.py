"""`scpo export`: the folder, its card, other tools' rewards, and the hub."""

import json
import re
from pathlib import Path

import pytest
import yaml

from scpo_ray.commands.exporting import _base_by_its_name
from scpo_ray.launch.runs import start_run
from scpo_ray.report.card import model_card
from scpo_ray.results import Scale
from scpo_ray.storage.disk import folder_fault, read_json
from tests.results import run_result
from tests.tiny import tiny_config

SCALE = Scale(mean=0.5, spread=2.0, quantiles=[-1.0, 2.0], num_texts=40, references="a")


@pytest.fixture(scope="module")
def run(tiny_reward_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "runs"
    _, path = start_run(tiny_config(tiny_reward_model, folder))
    return path


@pytest.fixture(scope="module")
def adapters(tiny_reward_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "runs"
    model = {"path": str(tiny_reward_model), "max_length": 48, "lora": {"rank": 2}}
    _, path = start_run(tiny_config(tiny_reward_model, folder, model=model))
    return path


def test_an_export_says_what_it_is_and_gives_the_same_rewards_elsewhere(scpo, run, tmp_path):
    folder = tmp_path / "export"

    outcome = scpo("export", run, folder, "--check", "transformers,pipeline,trl")

    assert outcome.code == 0, outcome.err
    for tool in ("transformers", "pipeline"):
        [difference] = re.findall(rf"{tool}: differs by at most (\S+) on \d+ texts", outcome.err)
        assert float(difference) < 1e-5
    assert "trl: cannot be right" in outcome.err
    assert "scpo_ray.serve.rewards.trl" in outcome.err
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert "# Reward model for North" in card
    config = json.loads((folder / "config.json").read_text())
    scale = json.loads(read_json(folder / "scpo_scale.json", ""))
    assert (config["mean"], config["std"]) == (scale["mean"], scale["spread"])
    assert config["problem_type"] == "regression"
    assert config["id2label"] == {"0": "reward"}


def test_a_tool_that_differs_ends_with_2_and_pushes_nothing(scpo, run, tmp_path, monkeypatch):
    import scpo_ray.models.elsewhere as elsewhere

    monkeypatch.setattr(elsewhere, "TOLERANCE", -1.0)

    outcome = scpo("export", run, tmp_path / "a", "--check", "transformers", "--push", "me/model")

    assert outcome.code == 2
    assert "not every tool gives the rewards" in outcome.err
    assert "cannot be uploaded" not in outcome.err


def test_a_hub_that_is_not_there_leaves_the_folder_and_says_so(scpo, run, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    outcome = scpo("export", run, tmp_path / "export", "--push", "me/model")

    assert outcome.code == 2
    assert f"--push me/model: the model cannot be uploaded; it lies in {tmp_path}" in outcome.err
    assert 'from_pretrained("me/model")' in (tmp_path / "export" / "README.md").read_text()


def test_adapters_of_a_folder_here_are_pushed_only_merged(scpo, adapters, tmp_path):
    refused = scpo("export", adapters, tmp_path / "a", "--push", "me/model")
    checked = scpo("export", adapters, tmp_path / "b", "--merge", "--check", "transformers")

    assert refused.code == 2
    assert "nobody else could load them: export with --merge" in refused.err
    assert not (tmp_path / "a").exists()
    assert checked.code == 0, checked.err
    assert "transformers: differs by at most" in checked.err


def test_adapters_name_a_model_of_the_hub_by_its_name():
    place = f"/home/a/.cache/huggingface/hub/models--org--base/snapshots/{'a1' * 20}"
    settings = {"base_model_name_or_path": place, "r": 4}

    named = _base_by_its_name(settings)

    assert named == {"base_model_name_or_path": "org/base", "revision": "a1" * 20, "r": 4}
    assert _base_by_its_name({"base_model_name_or_path": "/a"}) == {"base_model_name_or_path": "/a"}


def test_a_wrong_tool_is_said_before_anything_is_written(scpo, run, tmp_path):
    outcome = scpo("export", run, tmp_path / "export", "--check", "vllm")

    assert outcome.code == 2
    assert "--check 'vllm': must be of transformers, pipeline" in outcome.err
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("how", [(), ("--merge",)])
def test_an_exported_model_that_is_scaled_anew_stays_whole(scpo, adapters, tmp_path, how):
    folder, answers = tmp_path / "exported", tmp_path / "answers.jsonl"
    rows = [{"prompt": "What now?", "responses": ["Go on.", "Stop here, and rest."]}]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scpo("export", adapters, folder, *how).code == 0

    for _ in range(2):
        outcome = scpo("scale", folder, answers)
        assert outcome.code == 0, outcome.err

    outcome = scpo("reward", f"North={folder}", answers)
    assert outcome.code == 0, outcome.err
    assert folder_fault(folder) is None


# The card


def card(style: str = "pair", scale: Scale | None = None, **changes: object) -> str:
    result = run_result(**changes)
    return model_card(result, style=style, folder="here", scale=scale, is_adapters=False)


def test_the_card_has_intervals_limits_and_how_to_load_it():
    text = card(culture="Chile", scale=SCALE)

    assert re.search(r"\| Chile \| \d+, \d+ \| \d+\.\d \\\[\d+\.\d, \d+\.\d\\\] \|", text)
    assert "no judge of safety or truth" in text
    assert 'tokenizer("What should I cook?", "A pot of soup."' in text
    assert "mean 0.5000 and standard deviation" in text
    assert yaml.safe_load(text.split("---\n")[1])["pipeline_tag"] == "text-classification"


def test_the_card_of_a_chat_model_loads_conversations():
    text = card("chat")

    assert "apply_chat_template(messages" in text
    assert "OpenRLHF" not in text


def test_names_from_the_data_are_no_markup():
    hostile = "A|B\n# <b>[x](y)"

    text = card(culture=hostile, cultures=(hostile, "Chile"))

    assert r"A\|B \# \<b\>\[x\](y)" in text
    assert "\n# <b>" not in text
