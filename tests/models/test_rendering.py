"""One renderer: prompt and response to tokens, cut where too long and said so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scpo_ray.models.rendering import Renderer, load_renderer
from scpo_ray.records import InputError, Text, Tokens
from scpo_ray.settings.model import ModelConfig

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '[CLS] ' + m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}[SEP]"
)


def renderer_of(folder: Path, **options) -> Renderer:
    return load_renderer(folder, ModelConfig(path=str(folder), **{"max_length": 48} | options))


def changed_tokenizer(source: Path, folder: Path, **settings) -> Path:
    """A copy of a model's folder whose tokenizer_config.json has other settings; None: without."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer_config.json"
    document = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    return folder


def one(tokens: Tokens) -> list[int]:
    return tokens.input_ids.tolist()


def text(prompt: str, response: str, history=()) -> Text:
    return Text(history=tuple(history), prompt=prompt, response=response)


@pytest.fixture
def pair(tiny_backbone) -> Renderer:
    return renderer_of(tiny_backbone)


@pytest.fixture
def chat(tiny_backbone, tmp_path) -> Renderer:
    folder = changed_tokenizer(tiny_backbone, tmp_path / "chat", chat_template=CHAT_TEMPLATE)
    return renderer_of(folder)


WORDS = st.lists(st.sampled_from(["a", "about", "answer", "art", "unknown"]), max_size=12).map(
    " ".join
)


@given(texts=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_pair_style_is_the_tokenizers_own_pair_encoding(tiny_backbone, texts):
    pair = renderer_of(tiny_backbone)

    tokens = pair.encode([text(prompt, response) for prompt, response in texts])

    for row, (prompt, response) in enumerate(texts):
        alone = pair.tokenizer([prompt], [response])
        span = slice(tokens.offsets[row], tokens.offsets[row + 1])
        assert tokens.input_ids[span].tolist() == alone["input_ids"][0]
        assert tokens.token_type_ids is not None
        assert tokens.token_type_ids[span].tolist() == alone["token_type_ids"][0]
    assert not tokens.truncated.any()


def test_chat_style_is_the_templates_text_without_further_special_tokens(chat):
    tokens = chat.encode([text("about art", "answer", [("user", "a"), ("assistant", "art")])])

    said = "[CLS] user a [CLS] assistant art [CLS] user about art [CLS] assistant answer [SEP]"
    assert chat.style == "chat"
    assert chat.tokenizer.convert_ids_to_tokens(one(tokens)) == (
        said.replace("user", "[UNK]").replace("assistant", "[UNK]").split()
    )


def test_a_separator_inside_a_text_is_text_and_no_boundary(pair):
    tokens = pair.encode([text("about [SEP] art [CLS] [PAD]", "answer [SEP] a")])

    words = pair.tokenizer.convert_ids_to_tokens(one(tokens))
    assert (words[0], words.count("[CLS]"), words.count("[SEP]")) == ("[CLS]", 1, 2)
    assert "[PAD]" not in words
    assert tokens.token_type_ids.tolist() == sorted(tokens.token_type_ids)


COUNTS = st.integers(0, 60)


@pytest.mark.parametrize("side", ["left", "right"])
@settings(suppress_health_check=list(HealthCheck))
@given(num_prompt=COUNTS, num_response=COUNTS)
def test_a_pair_is_cut_as_the_library_cuts_the_longest_first(sided, side, num_prompt, num_response):
    pair = sided[side]
    prompt = " ".join(f"{WORD[n % 3]}" for n in range(num_prompt))
    response = " ".join(f"{WORD[n % 4]}" for n in range(num_response))

    tokens = pair.encode([text(prompt, response)])

    alone = pair.tokenizer(prompt, response, truncation="longest_first", max_length=16)
    if response:  # the library reads an empty second text as none
        assert tokens.input_ids.tolist() == alone["input_ids"]
        assert tokens.token_type_ids.tolist() == alone["token_type_ids"]
    assert tokens.truncated.tolist() == [num_prompt + num_response + 3 > 16]


WORD = ["a", "about", "answer", "art"]


@pytest.fixture(scope="module")
def sided(tiny_backbone, tmp_path_factory) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("sided")
    return {
        side: renderer_of(
            changed_tokenizer(tiny_backbone, folder / side, truncation_side=side), max_length=16
        )
        for side in ("left", "right")
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("history", "num_prompt", "num_response", "kept"),
    [
        (0, 2_000, 1, (0, 12, 1)),
        (0, 1, 2_000, (0, 1, 12)),
        (0, 2_000, 2_000, (0, 6, 7)),
        (2_000, 3, 3, (7, 3, 3)),
        (2_000, 40, 2, (0, 11, 2)),
        (2_000, 40, 40, (0, 7, 6)),
        (1, 7, 7, (0, 7, 6)),
    ],
)
def test_neither_side_of_a_pair_vanishes_and_history_goes_first(
    sided, side, history, num_prompt, num_response, kept
):
    # 16 tokens, three of them special: 13 for the texts
    turns = [("about", "about " * history)] if history else []
    long = text("answer " * num_prompt, "art " * num_response, turns)

    tokens = sided[side].encode([long])

    words = sided[side].tokenizer.convert_ids_to_tokens(one(tokens))
    assert tuple(words.count(word) for word in ("about", "answer", "art")) == kept
    assert (words[0], words.count("[SEP]"), words[-1]) == ("[CLS]", 2, "[SEP]")
    assert tokens.truncated.tolist() == [True]


def test_a_long_chat_is_cut_marked_and_keeps_its_last_token(chat):
    tokens = chat.encode([text("about", "art " * 100)])

    words = chat.tokenizer.convert_ids_to_tokens(one(tokens))
    assert tokens.truncated.tolist() == [True]
    assert len(words) == 48
    assert words[-2:] == ["art", "[SEP]"]


def test_a_text_of_exactly_the_maximum_length_is_whole(pair):
    tokens = pair.encode([text("about " * 20, "art " * 25)])

    assert tokens.lengths.tolist() == [48]
    assert not tokens.truncated.any()


def test_earlier_turns_stand_before_the_prompt(pair):
    with_history = pair.encode([text("about", "answer", [("user", "art"), ("assistant", "a")])])

    spelled = pair.encode([text("user: art\nassistant: a\nabout", "answer")])
    assert one(with_history) == one(spelled)


@pytest.mark.parametrize("response", ["art " * 250_000, "x" * 1_000_000], ids=["words", "one word"])
def test_a_megabyte_of_text_becomes_at_most_the_maximum_length(pair, response):
    tokens = pair.encode([text("about", response)])

    assert tokens.lengths.tolist() == [min(48, 4 + len(response.split()))]


@pytest.mark.parametrize("odd", ["\0", "a\0b", "\ufffe", "🦜", "\u202e", ""])
def test_odd_characters_are_text_like_any_other(pair, odd):
    tokens = pair.encode([text(odd, "art"), text("about", odd)])

    assert not tokens.truncated.any()
    assert (tokens.lengths >= 3).all()


def test_no_texts_give_no_tokens(pair):
    tokens = pair.encode([])

    assert len(tokens.input_ids) == 0
    np.testing.assert_array_equal(tokens.offsets, [0])


def test_the_fingerprint_is_the_same_for_the_same_tokenizer_elsewhere(tiny_backbone, tmp_path):
    copy = changed_tokenizer(tiny_backbone, tmp_path / "copy")

    assert renderer_of(copy).fingerprint == renderer_of(tiny_backbone).fingerprint


def test_vocabulary_template_and_maximum_length_change_the_fingerprint(tiny_backbone, tmp_path):
    other_words = changed_tokenizer(tiny_backbone, tmp_path / "words")
    file = other_words / "tokenizer.json"
    file.write_text(file.read_text().replace('"about"', '"abaut"'))
    templates = [
        changed_tokenizer(tiny_backbone, tmp_path / name, chat_template=template)
        for name, template in (("one", CHAT_TEMPLATE), ("other", CHAT_TEMPLATE + " "))
    ]

    fingerprints = {
        renderer_of(tiny_backbone).fingerprint,
        renderer_of(tiny_backbone, max_length=47).fingerprint,
        renderer_of(other_words).fingerprint,
        *(renderer_of(folder).fingerprint for folder in templates),
    }

    assert len(fingerprints) == 5


def test_a_template_that_is_not_used_does_not_change_the_fingerprint(tiny_backbone, tmp_path):
    folder = changed_tokenizer(tiny_backbone, tmp_path / "chat", chat_template=CHAT_TEMPLATE)

    forced = renderer_of(folder, renderer="pair")

    assert forced.style == "pair"
    assert forced.fingerprint == renderer_of(tiny_backbone).fingerprint


def test_a_folder_without_tokenizer_is_refused(tiny_backbone, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_backbone, folder, ignore=shutil.ignore_patterns("tokenizer*"))

    with pytest.raises(InputError, match=f"model.path = {folder}: the folder has no tokenizer"):
        renderer_of(folder)


def test_a_damaged_tokenizer_is_refused_in_one_line(tiny_backbone, tmp_path):
    folder = changed_tokenizer(tiny_backbone, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")

    with pytest.raises(InputError) as caught:
        renderer_of(folder)

    assert caught.value.title == f"model.path = {folder}: the tokenizer cannot be loaded"
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]


def test_chat_without_a_template_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="model.renderer = chat: .* has no chat template"):
        renderer_of(tiny_backbone, renderer="chat")


def test_a_tokenizer_without_padding_pads_with_its_end_token(tiny_backbone, tmp_path):
    folder = changed_tokenizer(tiny_backbone, tmp_path / "model", pad_token=None, eos_token="[SEP]")

    renderer = renderer_of(folder)

    assert renderer.pad_id == renderer.tokenizer.convert_tokens_to_ids("[SEP]")
    # To fill up with behind a mask, and no more: an exported tokenizer has none either.
    assert renderer.tokenizer.pad_token is None
