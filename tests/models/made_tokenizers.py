"""Tokenizers of every family, small and made on the spot, as folders that a model would have."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|turn|>", "</s>"]
WORDS = ["about", "answer", "art", "river", "market", "tea", "bread", "village", "user"]
LETTERS = sorted({letter for word in WORDS for letter in word} | set("|<>[]/ABCDEFGKLNPSU.,'"))
SENTENCES = [f"{one} {other}. [{one}] <{other}>" for one in WORDS for other in WORDS]

TURNS = (
    "{{ '[CLS]' }}{% for m in messages %}"
    "{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
)


def _word_level() -> Tokenizer:
    vocabulary = [*SPECIAL, *WORDS, *LETTERS]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _word_piece() -> Tokenizer:
    vocabulary = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _bpe() -> Tokenizer:
    """As Llama's: no byte level, and a whole word of the vocabulary needs no merges."""
    vocabulary = [*SPECIAL, "▁", *LETTERS, "ar", "art", "▁art"]
    merges = [("a", "r"), ("ar", "t"), ("▁", "art")]
    tokenizer = Tokenizer(
        models.BPE(
            {w: i for i, w in enumerate(vocabulary)},
            merges,
            unk_token="[UNK]",
            fuse_unk=True,
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    pieces = [*((token, 0.0) for token in SPECIAL), ("▁", -3.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS] + [(letter, -6.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, 1, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


FAMILIES = {
    "WordLevel": _word_level,
    "WordPiece": _word_piece,
    "BPE": _bpe,
    "byte-level BPE": _byte_level,
    "Unigram": _unigram,
}


def made_tokenizer(
    folder: Path, family: str, *, class_name: str = "TokenizersBackend", **settings: Any
) -> Path:
    """A folder with the tokenizer of a family; `settings` go into its tokenizer_config.json."""
    tokenizer = FAMILIES[family]()
    tokenizer.add_special_tokens(SPECIAL)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    document = {
        "tokenizer_class": class_name,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    } | settings
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in document.items() if value is not None})
    )
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def edited_file(folder: Path, **parts: Any) -> Path:
    """The folder, its tokenizer.json with other parts."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return folder
