"""Prompt and response to tokens: the one renderer of scoring, training and evaluation."""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.models.templates import ChatTemplate, TemplateRefusal, load_template
from scpo_ray.models.tokenization import (
    TextReader,
    backend_document,
    text_reader,
    tokenizer_state,
)
from scpo_ray.records import InputError, PreferenceData, Text, Tokens
from scpo_ray.settings.model import ModelConfig

# Counts up when the same text would become other tokens: stored tokens and scores are then void.
RENDERING_RULES = 2

Row = tuple[Sequence[int], Sequence[int] | None]
"""A text's token ids and token type ids."""


class RefusedTexts(InputError):
    """Some texts cannot be rendered. `reasons`: place of the text -> why."""

    def __init__(self, reasons: Mapping[int, str], num_texts: int) -> None:
        self.reasons = dict(reasons)
        super().__init__(
            f"{len(reasons)} of {num_texts} texts cannot be rendered",
            [f"text {place}: {reason}" for place, reason in list(reasons.items())[:20]],
        )
        self.num_texts = num_texts

    def __reduce__(self) -> tuple[type["RefusedTexts"], tuple[dict[int, str], int]]:
        return RefusedTexts, (self.reasons, self.num_texts)


def refusal(refused: RefusedTexts, data: PreferenceData, name: str) -> InputError:
    """What a user is told of refused texts: their interactions (file and line where they have no
    ids), and the reasons. `name` is the model's."""
    texts = np.concatenate([side for p in data.sides for side in (p.chosen, p.rejected)])
    rows = np.concatenate([p.interactions for p in data.sides for _ in range(2)])
    at_fault = np.flatnonzero(np.isin(texts, list(refused.reasons)))
    found, first = np.unique(rows[at_fault], return_index=True)
    lines = [
        f"{data.interaction_ids[int(row)]}: {refused.reasons[int(text)]}"
        for row, text in zip(found[:20], texts[at_fault[first[:20]]], strict=True)
    ]
    # An option of a survey may be in no pair.
    others = sorted(refused.reasons.keys() - set(texts[at_fault].tolist()))
    lines += [
        f"prompt {data.texts[text].prompt[:60]!r}: {refused.reasons[text]}"
        for text in others[: 20 - len(lines)]
    ]
    num_more = len(found) + len(others) - len(lines)
    share = f"{len(refused.reasons)} of {len(data.texts)}"
    return InputError(
        f"model.path = {name}: {share} texts cannot be rendered",
        [*lines, *([f"and {num_more} more"] if num_more else [])],
    )


@dataclass(frozen=True)
class Renderer:
    """The one way from prompt and response to tokens: scoring, training and evaluation share it.

    `style` "pair": two segments, as encoders read question and answer; "chat": the tokenizer's
    chat template. `fingerprint` changes with all of the tokenizer that decides a number, the
    template and `max_length`. `reader` is None for a tokenizer written in Python, `template`
    where the style is "pair".
    """

    tokenizer: Any
    style: Literal["pair", "chat"]
    max_length: int
    fingerprint: str
    reader: TextReader | None
    template: ChatTemplate | None

    @property
    def pad_id(self) -> int:
        """A token to fill up with where the mask hides it."""
        tokenizer = self.tokenizer
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id)
        return int(next((token for token in ids if token is not None), 0))

    @property
    def unknown_id(self) -> int | None:
        """The token for what the vocabulary lacks."""
        token: int | None = self.tokenizer.unk_token_id
        return token

    def encode(self, texts: Sequence[Text]) -> Tokens:
        """Tokens of T texts. What is longer than `max_length` is cut and marked `truncated`.

        Raises: RefusedTexts naming each text that the chat template refuses, or whose response
            has no place beside the template's own tokens.
        """
        rows: list[Row]
        if self.template is not None and self.reader is not None:
            rows, cut = self._chats(texts, self.template, self.reader)
        elif self.reader is not None:
            rows, cut = self._pairs(texts, self.reader)
        else:
            rows, cut = self._pairs_in_python(texts)
        ids = [np.asarray(row_ids, dtype=np.int32) for row_ids, _ in rows]
        types = [np.asarray(t, dtype=np.int8) for _, t in rows if t is not None]
        return Tokens(
            input_ids=np.concatenate(ids or [np.empty(0, np.int32)]),
            token_type_ids=np.concatenate(types) if types else None,
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            truncated=cut,
        )

    def _pairs(self, texts: Sequence[Text], reader: TextReader) -> tuple[list[Row], NDArray[Any]]:
        pairs = [(_history(text) + text.prompt, text.response) for text in texts]
        encodings = reader.read(pairs)
        cut = np.array([len(e) > self.max_length for e in encodings], dtype=np.bool_)
        rows = [self._row(encoding) for encoding in encodings]
        for place in np.flatnonzero(cut).tolist():
            encoding = reader.read_with_offsets(pairs[place])
            kept = self._kept_of_pair(encoding, len(_history(texts[place])))
            rows[place] = self._row(encoding, kept)
        return rows, cut

    def _kept_of_pair(self, encoding: Any, history_end: int) -> NDArray[np.int64]:
        """Which tokens of a long pair stay: the longer of prompt and response gives way, so that
        neither vanishes; of the prompt first what was said before it, the oldest first."""
        sides = np.array([-1 if side is None else side for side in encoding.sequence_ids])
        first, second = np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)
        room = self.max_length - int((sides < 0).sum())
        num_first, num_second = longest_first(len(first), len(second), room)
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
        num_history = int((ends[first] <= history_end).sum()) if history_end else 0
        dropped = min(num_history, len(first) - num_first)
        first = self._one_end(first[dropped:], num_first)
        return np.sort(
            np.concatenate([np.flatnonzero(sides < 0), first, self._one_end(second, num_second)])
        )

    def _one_end(self, tokens: NDArray[np.int64], num_kept: int) -> NDArray[np.int64]:
        """The side of a segment that the tokenizer is set to keep."""
        if self.tokenizer.truncation_side == "left":
            return tokens[len(tokens) - num_kept :]
        return tokens[:num_kept]

    def _pairs_in_python(self, texts: Sequence[Text]) -> tuple[list[Row], NDArray[Any]]:
        """By a tokenizer that is not the library's in Rust: it splits and cuts in its own way."""
        firsts = [_apart(_history(text) + text.prompt, self.tokenizer) for text in texts]
        seconds = [_apart(text.response, self.tokenizer) for text in texts]
        rows: list[Row] = []
        cut = np.zeros(len(texts), dtype=np.bool_)
        for place, pair in enumerate(zip(firsts, seconds, strict=True)):
            encoded = self.tokenizer(*pair, split_special_tokens=True)
            cut[place] = len(encoded["input_ids"]) > self.max_length
            if cut[place]:
                encoded = self.tokenizer(
                    *pair,
                    split_special_tokens=True,
                    truncation="longest_first",
                    max_length=self.max_length,
                )
            rows.append((encoded["input_ids"], encoded.get("token_type_ids")))
        return rows, cut

    def _chats(
        self, texts: Sequence[Text], template: ChatTemplate, reader: TextReader
    ) -> tuple[list[Row], NDArray[Any]]:
        written, refused = [], {}
        for place, text in enumerate(texts):
            try:
                written.append(template.write(text))
            except TemplateRefusal as refusal:
                refused[place] = str(refusal)
                written.append("")
        encodings = reader.read(written)
        cut = np.array([len(e) > self.max_length for e in encodings], dtype=np.bool_)
        rows = [self._row(encoding) for encoding in encodings]
        for place in np.flatnonzero(cut).tolist():
            try:
                rows[place] = self._shortened_chat(texts[place], template, reader)
            except TemplateRefusal as refusal:
                refused[place] = str(refusal)
        if refused:
            raise RefusedTexts(dict(sorted(refused.items())), len(texts))
        return rows, cut

    def _shortened_chat(self, text: Text, template: ChatTemplate, reader: TextReader) -> Row:
        """The oldest turns go first, then the prompt from its end, then the response from its
        end; what the template writes itself stays."""
        shorter = _shorter(text)

        def fits(place: int) -> bool:
            (encoding,) = reader.read([template.write(shorter[place])])
            return len(encoding) <= self.max_length

        place = bisect_left(range(len(shorter) - 1), True, key=fits)
        text, written = shorter[place], template.write(shorter[place])
        encoding = reader.read_with_offsets(written)
        excess = len(encoding.ids) - self.max_length
        if excess <= 0:
            return self._row(encoding)
        prompt, response = (
            [i for i, (a, b) in enumerate(encoding.offsets) if start <= a < b <= end]
            for start, end in template.spans(text, written)
        )
        of_prompt = min(excess, len(prompt))
        of_response = excess - of_prompt
        if of_response and of_response >= len(response):
            frame = len(encoding.ids) - len(prompt) - len(response)
            raise TemplateRefusal(
                f"the template's own tokens are {frame}, model.max_length = {self.max_length} "
                "leaves no room for the response"
            )
        dropped = prompt[len(prompt) - of_prompt :] + response[len(response) - of_response :]
        return self._row(encoding, np.setdiff1d(np.arange(len(encoding.ids)), dropped))

    def _row(self, encoding: Any, kept: NDArray[np.int64] | None = None) -> Row:
        ids: Sequence[int] = encoding.ids
        types = encoding.type_ids if "token_type_ids" in self.tokenizer.model_input_names else None
        if kept is not None:
            ids = [ids[i] for i in kept]
            types = None if types is None else [types[i] for i in kept]
        return ids, types


def longest_first(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """How many tokens of two segments stay: the longer gives way until both are as long."""
    short, long = sorted((num_first, num_second))
    long = min(long, max(short, room - short))
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if num_first > num_second else (short, long)


def _history(text: Text) -> str:
    """What was said before the prompt, a line each turn."""
    return "".join(f"{role}: {said}\n" for role, said in text.history)


def _shorter(text: Text) -> list[Text]:
    """The conversation with ever fewer turns before its prompt: whole, from each later turn of
    the user's on, with the system's words alone, with nothing."""
    turns = text.history
    first = 1 if turns and turns[0][0] in ("system", "developer") else 0
    starts = [place for place in range(first + 1, len(turns)) if turns[place][0] == "user"]
    histories = [turns, *(turns[:first] + turns[start:] for start in starts), turns[:first], ()]
    return [Text(history, text.prompt, text.response) for history in dict.fromkeys(histories)]


def _apart(text: str, tokenizer: Any) -> str:
    """The text with a blank inside each special token that is spelled out in it."""
    for token in tokenizer.all_special_tokens:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def load_renderer(folder: Path, config: ModelConfig) -> Renderer:
    """The model's tokenizer as a `Renderer`.

    Raises: InputError if the folder has no tokenizer, or no template where "chat" is asked for, or
        one that cannot be used.
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
    backend = backend_document(tokenizer, folder, config.path)
    reader = None if backend is None else text_reader(backend, only_text=style == "pair")
    template = None
    if style == "chat":
        if reader is None:
            raise InputError(
                f"model.renderer = chat: the tokenizer of {config.path} is written in Python",
                ["chat needs one with a tokenizer.json"],
            )
        template = load_template(tokenizer, reader, config.path)
    document = {
        "rules": RENDERING_RULES,
        "tokenizer": tokenizer_state(tokenizer, folder, backend),
        "template": None if template is None else template.source,
        "style": style,
        "max_length": config.max_length,
    }
    fingerprint = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return Renderer(tokenizer, style, config.max_length, fingerprint, reader, template)


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
