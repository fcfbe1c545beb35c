"""A tokenizer as its files say, and a reading in which nothing in a text is a control token."""

import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from tokenizers import Tokenizer

log = logging.getLogger(__name__)

# What decides tokens in a tokenizer.json, beside the added tokens.
_PIPELINE = ("normalizer", "pre_tokenizer", "model", "post_processor")


def backend_document(tokenizer: Any, folder: Path, name: str) -> dict[str, Any] | None:
    """Makes a tokenizer do what the `tokenizer.json` beside it says; its Rust backend as JSON.

    The classes of transformers build parts of it from their own defaults; some differ from the
    file (DebertaV2Tokenizer and the normalizer). A class that came with the model's code, or a
    folder without the file, decides itself. A large vocabulary takes long to write down, so
    this is done here, once, for all who ask.

    Args:
        name: the model's, for the log.

    Returns: None where the backend alone does not decide the tokens, so that it cannot be called
        without its class.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    own_way = type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus
    if own_way and not _is_plain(tokenizer):
        return None
    try:
        done = tokenizer.backend_tokenizer.to_str()
    except Exception:  # parts written in Python cannot be written down; the library says it so
        return None
    document: dict[str, Any] = json.loads(done)
    generic = type(tokenizer) is PreTrainedTokenizerFast
    if generic or not (folder / "tokenizer.json").is_file() or not _is_plain(tokenizer):
        return document
    # The library's generic class takes the pipeline from the file, and from tokenizer_config.json
    # the special tokens and whether a text begins and ends with one.
    said = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
    said_document = json.loads(said.to_str())
    differing = [part for part in _PIPELINE if said_document[part] != document[part]]
    if not differing:
        return document
    log.warning(
        "%s: %s of transformers does not do what tokenizer.json says (%s): the file is followed",
        name,
        type(tokenizer).__name__,
        ", ".join(differing),
    )
    known = {token.content for token in said.get_added_tokens_decoder().values() if token.special}
    added = sorted(tokenizer.backend_tokenizer.get_added_tokens_decoder().items())
    said.add_special_tokens([t for _, t in added if t.special and t.content not in known])
    tokenizer._tokenizer = said
    followed: dict[str, Any] = json.loads(said.to_str())
    return followed


def _is_plain(tokenizer: Any) -> bool:
    """Whether its class is one of transformers', with a backend in Rust."""
    return tokenizer.is_fast and type(tokenizer).__module__.startswith("transformers.")


def tokenizer_state(
    tokenizer: Any, folder: Path, document: dict[str, Any] | None
) -> dict[str, Any]:
    """All of a tokenizer that decides tokens, padding or cutting, as a JSON document.

    The same for a copy elsewhere and for what `save_pretrained` writes. `document` is as from
    `backend_document`.
    """
    state: dict[str, Any] = {
        "special_tokens": {name: str(t) for name, t in tokenizer.special_tokens_map.items()},
        "inputs": list(tokenizer.model_input_names),
        "truncation_side": tokenizer.truncation_side,
        "padding_side": tokenizer.padding_side,
    }
    if document is not None:
        # Left by whoever cut or padded last; here neither is the backend's business.
        left = ("truncation", "padding")
        return state | {"backend": {k: v for k, v in document.items() if k not in left}}
    settings = {key: repr(value) for key, value in tokenizer.init_kwargs.items()}
    for key in (*tokenizer.vocab_files_names, "name_or_path", "tokenizer_file"):
        settings.pop(key, None)
    return state | {
        "class": type(tokenizer).__name__,
        "settings": settings,
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "code": {path.name: path.read_text() for path in sorted(folder.glob("*.py"))},
    }


@dataclass(frozen=True)
class TextReader:
    """The tokenizer's backend under other names for its special tokens, which no text can hold.

    A special token spelled out in a text is then text, to the vocabulary too; `spelled` and
    `names` are how a chat template's own are written instead.
    """

    backend: Tokenizer
    names: Mapping[str, str]
    spelled: re.Pattern[str]

    def __reduce__(self) -> tuple[Callable[..., "TextReader"], tuple[Any, ...]]:
        # A backend's own way leaves out how it takes special tokens.
        only_text = self.backend.encode_special_tokens
        return _same_reader, (self.backend.to_str(), only_text, dict(self.names), self.spelled)

    def with_names(self, rendered: str) -> str:
        """The string with every special token in it under its name here."""
        return self.spelled.sub(lambda found: self.names[found[0]], rendered)

    def read(self, inputs: Sequence[str] | Sequence[tuple[str, str]]) -> list[Any]:
        """The backend's encodings of whole strings (nothing is added) or of pairs, uncut."""
        if not inputs:
            return []
        pairs = not isinstance(inputs[0], str)
        # Without offsets, which take a third of the time; `read_with_offsets` has them.
        encodings: list[Any] = self.backend.encode_batch_fast(inputs, add_special_tokens=pairs)
        return encodings

    def read_with_offsets(self, one: str | tuple[str, str]) -> Any:
        """As `read`, with the place of each token in its string."""
        if isinstance(one, str):
            return self.backend.encode(one, add_special_tokens=False)
        return self.backend.encode(*one)


def _same_reader(
    backend: str, only_text: bool, names: Mapping[str, str], spelled: re.Pattern[str]
) -> TextReader:
    return TextReader(_backend(backend, only_text=only_text), names, spelled)


def _backend(document: str, *, only_text: bool) -> Tokenizer:
    backend = Tokenizer.from_str(document)
    backend.encode_special_tokens = only_text
    return backend


def text_reader(document: Mapping[str, Any], *, only_text: bool) -> TextReader:
    """A tokenizer's backend, from its `backend_document`, as a `TextReader`.

    `only_text`: what it will read are people's texts, without control tokens between them.
    """
    # A special token of one character ("!" to pad with) is an ordinary letter of many texts.
    contents = [
        token["content"]
        for token in document["added_tokens"]
        if token["special"] and len(token["content"]) > 1
    ]
    # Nobody can write a name that is drawn anew each time; letters pass every normalizer.
    nonce = "".join(secrets.choice(ascii_lowercase) for _ in range(24))
    names = {content: nonce + _letters(number) for number, content in enumerate(contents)}
    renamed = {
        **document,
        "added_tokens": [
            token | {"content": names.get(token["content"], token["content"])}
            for token in document["added_tokens"]
        ],
        "truncation": None,
        "padding": None,
        "model": _renamed_model(document["model"], names),
    }
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
    backend = _backend(json.dumps(renamed), only_text=only_text)
    return TextReader(backend, names, re.compile(pattern))


def _letters(number: int) -> str:
    """A number as five letters: of one width, so that no name begins another."""
    return "".join(ascii_lowercase[number // 26**place % 26] for place in range(5))


def _renamed_model(model: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    vocabulary = model["vocab"]
    renamed = dict(model)
    if isinstance(vocabulary, dict):
        renamed["vocab"] = {names.get(piece, piece): i for piece, i in vocabulary.items()}
    else:
        renamed["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") is not None:
        renamed["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        renamed["merges"] = [
            m for m in merges if not names.keys() & {m[0], m[1], _merged(m, model)}
        ]
    # Chance in the choice of pieces is for training a model on its own errors.
    for chance in ("dropout", "alpha", "nbest_size"):
        if chance in renamed:
            renamed[chance] = None
    return renamed


def _merged(merge: Sequence[str], model: Mapping[str, Any]) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return merge[0] + merge[1].removeprefix(prefix)
