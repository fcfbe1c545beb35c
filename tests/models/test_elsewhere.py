"""Exports in other tools: the same rewards, or a word why not."""

import json
from pathlib import Path

import pytest

from scpo_ray.models.compatible import padding_of
from scpo_ray.models.elsewhere import (
    REWARD_FUNCTION,
    TOLERANCE,
    TOOLS,
    check_tools,
    read_tools,
)
from scpo_ray.models.export import load_exported
from scpo_ray.models.loading import drawn_by
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError, Text
from tests.models.test_rendering import CHAT_TEMPLATE
from tests.models.test_reward_model import (
    assert_close,
    copied,
    loaded,
    save_tiny,
    saved,
    tiny_llama_config,
)

TEXTS = [
    Text((), "a brief question", "a caring answer , rather short"),
    Text((), "why", "bold"),
    Text((), "words that nobody knows", "a b c d e f g"),
]


@pytest.fixture(scope="module")
def llama(tiny_backbone, tmp_path_factory) -> Path:
    """A decoder whose config has no pad token, nor its tokenizer."""
    from transformers import LlamaForSequenceClassification

    with drawn_by(0):
        network = LlamaForSequenceClassification(tiny_llama_config(num_labels=1))
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_tiny(network, tiny_backbone, folder, chat_template=CHAT_TEMPLATE)
    return with_settings(folder, pad_token_id=None)


def with_settings(folder: Path, **settings: object) -> Path:
    """With another config, and a tokenizer that has no pad token."""
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return folder


def by_tool(folder: Path, model, tools=TOOLS) -> dict:
    return {found.tool: found for found in check_tools(model, folder, TEXTS, tools)}


def test_an_encoder_gives_the_same_rewards_elsewhere_and_trl_is_told_what_to_use(
    tiny_reward_model, tmp_path
):
    model = load_exported(tiny_reward_model, device="cpu")
    folder = saved(model, tmp_path / "export")

    found = by_tool(folder, model)

    for tool in ("transformers", "pipeline"):
        assert found[tool].difference < 1e-6 and not found[tool].failed
    crossed = found["sentence-transformers"]
    assert crossed.note.startswith("not installed") or crossed.difference < 1e-6
    assert found["trl"].difference is None and not found["trl"].failed
    assert f"give its trainers {REWARD_FUNCTION}(...) as reward_funcs" in found["trl"].note


def test_a_decoder_without_a_pad_token_exports_with_one_that_ends_no_text(llama, tmp_path):
    model = loaded(llama, max_length=48)
    assert model.renderer.tokenizer.pad_token_id is None
    rewards = score_texts(model, TEXTS)

    folder = saved(model, tmp_path / "export")

    found = by_tool(folder, model)
    for tool in ("transformers", "pipeline"):
        assert found[tool].difference < 1e-6, found[tool]
    assert found["trl"].note == "not installed (pip install trl)" or not found["trl"].failed
    assert found["sentence-transformers"].note.startswith("cannot be right: its CrossEncoder")
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    last = int(model.renderer.encode(TEXTS[:1]).input_ids[-1])
    assert config["pad_token_id"] not in (None, last, config["eos_token_id"])
    assert settings["pad_token"] == model.renderer.tokenizer.convert_ids_to_tokens(
        config["pad_token_id"]
    )
    assert settings["model_max_length"] == 48
    assert_close(score_texts(load_exported(folder, device="cpu"), TEXTS), rewards, 1e-6)


def test_a_config_that_pads_with_what_texts_end_in_is_kept_and_told(llama, tmp_path):
    end = loaded(llama).renderer.encode(TEXTS[:1]).input_ids[-1]
    model = loaded(with_settings(copied(llama, tmp_path / "model"), pad_token_id=int(end)))

    folder = saved(model, tmp_path / "export")

    padding = padding_of(model.renderer, model.scored.plain)
    assert padding is not None and padding.hides_end and not padding.is_new
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == end
    assert by_tool(folder, model, ["transformers"])["transformers"].difference < 1e-6


def test_a_folder_that_another_tool_reads_otherwise_fails(tiny_reward_model, tmp_path):
    model = load_exported(tiny_reward_model, device="cpu")
    folder = saved(model, tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": None}))

    sigmoid = by_tool(folder, model, ["pipeline"])["pipeline"]
    (folder / "config.json").unlink()
    broken = by_tool(folder, model, ["transformers"])["transformers"]

    assert sigmoid.failed and sigmoid.difference > TOLERANCE
    assert broken.failed and broken.note.startswith("cannot be used: ")


def test_a_pair_model_exports_without_a_template_that_it_does_not_use(llama, tmp_path):
    folder = saved(loaded(llama, renderer="pair"), tmp_path / "export")

    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert loaded(folder).renderer.style == "pair"


def test_a_template_that_asks_for_the_day_exports_with_the_day_that_is_told_here(llama, tmp_path):
    source = copied(llama, tmp_path / "dated")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    model = loaded(source)

    folder = saved(model, tmp_path / "export")

    assert by_tool(folder, model, ["transformers"])["transformers"].difference < 1e-6
    template = loaded(folder).renderer.template
    assert template is not None and model.renderer.template is not None
    assert template.source == model.renderer.template.source


@pytest.mark.parametrize("names", ["vllm", "transformers,vllm", "", " , "])
def test_tools_that_are_none_are_named(names):
    with pytest.raises(InputError, match="must be of transformers, pipeline") as caught:
        read_tools(names)
    assert caught.value.problems == (("vllm",) if "vllm" in names else ())


def test_tools_are_read_in_one_order_whatever_is_asked():
    assert read_tools(" trl,transformers, trl") == ["transformers", "trl"]
