"""What is known of a renderer stands in for its tokenizer, until a text has to be rendered."""

import json
import shutil
from pathlib import Path

import pytest

import scpo_ray.models.known_renderer
from scpo_ray.models.known_renderer import KnownRenderer, known_renderer
from scpo_ray.models.tokenizing import tokenize
from scpo_ray.records import InputError
from scpo_ray.settings.model import ModelConfig
from scpo_ray.storage.stores import TokenStore
from tests.models.test_global_model import ListedTexts
from tests.models.test_rendering import CHAT_TEMPLATE, changed_tokenizer, renderer_of

TEXTS = [("about art", "answer"), ("art", "a " * 30)]


def known(folder: Path, records: Path, **settings) -> KnownRenderer:
    config = ModelConfig(path=str(folder), **{"max_length": 48} | settings)
    return known_renderer(folder, config, records)


def no_loading(*arguments):
    raise AssertionError("the tokenizer was loaded")


def test_a_renderer_is_known_the_second_time_and_loads_for_a_new_text_alone(
    tiny_backbone, tmp_path, monkeypatch
):
    store = TokenStore(tmp_path / "tokens")
    first = known(tiny_backbone, tmp_path)
    tokens = tokenize(first, ListedTexts(*TEXTS), store)
    with monkeypatch.context() as patched:
        patched.setattr(scpo_ray.models.known_renderer, "load_renderer", no_loading)

        again = known(tiny_backbone, tmp_path)

        assert again.fingerprint == renderer_of(tiny_backbone).fingerprint
        assert again.unknown_id == renderer_of(tiny_backbone).unknown_id == 1
        kept = tokenize(again, ListedTexts(*TEXTS), store)
        assert kept.input_ids.tolist() == tokens.input_ids.tolist()
        with pytest.raises(AssertionError, match="the tokenizer was loaded"):
            tokenize(again, ListedTexts(("new", "answer")), store)

    assert len(tokenize(again, ListedTexts(("new", "answer")), store).lengths) == 1


def with_other_word(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"about"', '"abaut"'))
    return folder


def test_whatever_decides_the_tokens_is_known_apart(tiny_backbone, tmp_path, monkeypatch):
    records = tmp_path / "records"
    chat = changed_tokenizer(tiny_backbone, tmp_path / "chat", chat_template=CHAT_TEMPLATE)
    named = shutil.copytree(chat, tmp_path / "named")
    (named / "chat_template.jinja").write_text("{{ 1 }}")
    left = changed_tokenizer(tiny_backbone, tmp_path / "left", truncation_side="left")
    word = with_other_word(tiny_backbone, tmp_path / "word")
    asked = [(tiny_backbone, {}), (chat, {}), (named, {}), (left, {}), (word, {})]
    asked += [(tiny_backbone, {"max_length": 47}), (chat, {"renderer": "pair"})]
    for folder, settings in asked:
        known(folder, records, **settings)
    monkeypatch.setattr(scpo_ray.models.known_renderer, "load_renderer", no_loading)

    found = [known(folder, records, **settings).fingerprint for folder, settings in asked]

    assert found == [renderer_of(folder, **settings).fingerprint for folder, settings in asked]
    # Without its template, the chat model's tokenizer is the plain one.
    assert found[-1] == found[0] and len(set(found)) == len(asked) - 1
    # The same files elsewhere, under other weights, are the same.
    copy = shutil.copytree(tiny_backbone, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"others")
    assert known(copy, records).fingerprint == found[0]
    monkeypatch.setattr(scpo_ray.models.known_renderer, "version", lambda name: "0.0")
    with pytest.raises(AssertionError, match="the tokenizer was loaded"):
        known(tiny_backbone, records)


def test_code_that_comes_with_a_model_is_asked_each_time(tiny_backbone, tmp_path):
    known(tiny_backbone, tmp_path / "records", trust_remote_code=True)

    assert not (tmp_path / "records").exists()


def test_a_damaged_record_is_made_anew(tiny_backbone, tmp_path, caplog):
    fingerprint = known(tiny_backbone, tmp_path).fingerprint
    [record] = tmp_path.glob("*.json")
    whole = record.read_bytes()
    record.write_bytes(whole.replace(fingerprint[:8].encode(), b"00000000"))

    assert known(tiny_backbone, tmp_path).fingerprint == fingerprint

    assert "what is known of a tokenizer is damaged" in caplog.text
    assert record.read_bytes() == whole


def test_a_tokenizer_that_changes_under_a_command_is_refused_once(tiny_backbone, tmp_path):
    folder = shutil.copytree(tiny_backbone, tmp_path / "model")
    known(folder, tmp_path / "records")
    again = known(folder, tmp_path / "records")
    document = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(document | {"padding_side": "left"}))

    with pytest.raises(InputError, match="not what it was when this command began"):
        _ = again.loaded

    assert known(folder, tmp_path / "records").loaded.fingerprint != again.fingerprint
