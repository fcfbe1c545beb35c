"""Prompt and response to tokens: the one renderer of scoring, training and evaluation."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scpo_ray.records import InputError, Text, Tokens
from scpo_ray.settings.model import ModelConfig

# Counts up when the same text would become other tokens: stored tokens and scores are then void.
RENDERING_RULES = 1


@dataclass(frozen=True)
class Renderer:
    """The one way from prompt and response to tokens: scoring, training and evaluation share it.

    `style` "pair": two segments, as encoders read question and answer; "chat": the tokenizer's
    chat template. `fingerprint` changes with the vocabulary, the template and `max_length`.
    """

    tokenizer: Any
    style: Literal["pair", "chat"]
    max_length: int
    fingerprint: str

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def encode(self, texts: Sequence[Text]) -> Tokens:
        """Tokens of T texts. What is longer than `max_length` is cut and marked `truncated`."""
        tokenize = self._tokenize_pairs if self.style == "pair" else self._chat
        encoded = tokenize(texts) if texts else []  # the library's tokenizers want at least one
        ids, types, cut = [], [], np.zeros(len(texts), dtype=np.bool_)
        for row, (text, row_ids, row_types) in enumerate(encoded):
            cut[row] = len(row_ids) > self.max_length
            if cut[row]:
                row_ids, row_types = self._shortened(text, row_ids, row_types)
            ids.append(np.asarray(row_ids, dtype=np.int32))
            if row_types is not None:
                types.append(np.asarray(row_types, dtype=np.int8))
        lengths = [len(row_ids) for row_ids in ids]
        return Tokens(
            input_ids=np.concatenate(ids or [np.empty(0, np.int32)]),
            token_type_ids=np.concatenate(types) if types else None,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            truncated=cut,
        )

    def _shortened(
        self, text: Text, ids: list[int], types: list[int] | None
    ) -> tuple[list[int], list[int] | None]:
        if self.style == "pair":
            # The longer of prompt and response gives way, so that neither vanishes.
            ((_, ids, types),) = self._tokenize_pairs(
                [text], truncation="longest_first", max_length=self.max_length
            )
            return ids, types
        # The last token stays: decoders read the reward at the end of the turn.
        cut_ids = [*ids[: self.max_length - 1], ids[-1]]
        return cut_ids, None if types is None else types[: self.max_length]

    def _tokenize_pairs(
        self, texts: Sequence[Text], **options: Any
    ) -> list[tuple[Text, list[int], list[int] | None]]:
        first = [
            "\n".join([*(f"{role}: {said}" for role, said in text.history), text.prompt])
            for text in texts
        ]
        # A "[SEP]" inside somebody's text is text, not a boundary.
        encoded = self.tokenizer(
            first, [text.response for text in texts], split_special_tokens=True, **options
        )
        return self._rows(texts, encoded)

    def _chat(self, texts: Sequence[Text]) -> list[tuple[Text, list[int], list[int] | None]]:
        rendered = []
        for text in texts:
            messages = [{"role": role, "content": said} for role, said in text.history]
            messages.append({"role": "user", "content": text.prompt})
            messages.append({"role": "assistant", "content": text.response})
            rendered.append(self.tokenizer.apply_chat_template(messages, tokenize=False))
        return self._rows(texts, self.tokenizer(rendered, add_special_tokens=False))

    def _rows(
        self, texts: Sequence[Text], encoded: Any
    ) -> list[tuple[Text, list[int], list[int] | None]]:
        types = encoded.get("token_type_ids")
        return [
            (text, encoded["input_ids"][row], None if types is None else types[row])
            for row, text in enumerate(texts)
        ]


def load_renderer(folder: Path, config: ModelConfig) -> Renderer:
    """The model's tokenizer as a `Renderer`.

    Raises: InputError if the folder has no tokenizer, or no template where "chat" is asked for.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InputError(f"model.path = {config.path}: the folder has no tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # the library raises whatever its parsers raise
        raise InputError(
            f"model.path = {config.path}: the tokenizer cannot be loaded", reasons(error)
        ) from None
    style = config.renderer
    if style == "auto":
        style = "chat" if tokenizer.chat_template else "pair"
    if style == "chat" and not tokenizer.chat_template:
        raise InputError(
            f"model.renderer = chat: the tokenizer of {config.path} has no chat template"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked out, so any token serves; the end token always exists.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise InputError(f"model.path = {config.path}: the tokenizer has no token to pad with")
    document = {
        "rules": RENDERING_RULES,
        "vocabulary": tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else repr(tokenizer),
        "template": tokenizer.chat_template if style == "chat" else None,
        "style": style,
        "max_length": config.max_length,
    }
    fingerprint = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return Renderer(tokenizer, style, config.max_length, fingerprint)


def quiet_transformers() -> None:
    """Silences the library's load report and length warnings: they repeat what is checked here."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def reasons(error: Exception) -> list[str]:
    """The first line of a loader's error, and the setting to change where it is about code."""
    lines = [(str(error).strip().splitlines() or [type(error).__name__])[0]]
    if "trust_remote_code" in str(error):
        lines.append("set model.trust_remote_code to true only if you have read that code")
    return lines
