"""A tokenizer's chat template: a conversation as one string, the same on any day."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from scpo_ray.models.tokenization import TextReader
from scpo_ray.records import InputError, Text

log = logging.getLogger(__name__)

# Templates that ask for today's date (Llama 3's) fall back on this one themselves.
THE_DAY = datetime(2024, 7, 26)

Turns = tuple[tuple[str, str], ...]
Span = tuple[int, int]


class TemplateRefusal(Exception):
    """The template cannot write this conversation, for the reason that it gives itself."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template whose own special tokens are control tokens, and nobody else's.

    Attributes:
        tokenizer: it renders; `reader` is its own.
        source: the template, with the day fixed.
    """

    tokenizer: Any
    reader: TextReader
    source: str

    def write(self, text: Text) -> str:
        """The conversation for the reader: control tokens under its names, contents as they are.

        Raises: TemplateRefusal with the template's reason.
        """
        turns = (*text.history, ("user", text.prompt), ("assistant", text.response))
        said = "".join(part for turn in turns for part in turn)
        spelled = sorted(set(self.reader.spelled.findall(said)))
        marks = dict(zip(spelled, _unused(said), strict=False))
        if marks:
            # One character each: no template can take it apart or mistake it for its own.
            mark = partial(self.reader.spelled.sub, lambda found: marks[found[0]])
            turns = tuple((mark(role), mark(said)) for role, said in turns)
        written = self.reader.with_names(self._rendered(turns))
        for content, character in marks.items():
            written = written.replace(character, content)
        return written

    def spans(self, text: Text, written: str) -> tuple[Span, Span]:
        """Where in `written` the prompt and the response of `text` stand, as the template left
        them: what is the same whatever they say is the template's frame.

        Raises: TemplateRefusal with the template's reason.
        """
        history = (part for turn in text.history for part in turn)
        probe = next(_unused("".join((written, *history, text.prompt, text.response))))
        prompt = self.write(Text(text.history, probe, text.response))
        response = self.write(Text(text.history, text.prompt, probe))
        return _span(written, prompt, probe), _span(written, response, probe)

    def _rendered(self, turns: Turns) -> str:
        messages = [{"role": role, "content": said} for role, said in turns]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False
            )
        except Exception as error:  # a template's code can fail in any way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TemplateRefusal(reason) from None
        return rendered


def load_template(tokenizer: Any, reader: TextReader, name: str) -> ChatTemplate:
    """The tokenizer's default template. `name` is the model's.

    Raises: InputError if there is none, it is no template, or draws at random.
    """
    import jinja2

    try:
        source: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(
            f"model.renderer = chat: the tokenizer of {name} has no default chat template",
            [str(error).strip().splitlines()[0]],
        ) from None
    if re.search(r"\|\s*random\b|\blipsum\b", source):
        raise InputError(
            f"model.path = {name}: the chat template draws at random",
            ["the same text must become the same tokens each time"],
        )
    if "strftime_now" in source:
        log.warning(
            "%s: the chat template asks for today's date and is told %s, on every day",
            name,
            THE_DAY.strftime("%d %b %Y"),
        )
        # A folder that was saved here has it already.
        source = _day_macro() + source.removeprefix(_day_macro())
    template = ChatTemplate(tokenizer, reader, source)
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            chat_template=source,
            tokenize=False,
        )
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"model.path = {name}: the chat template is no Jinja template",
            [f"line {error.lineno}: {error.message}"],
        ) from None
    except Exception:  # it may well refuse this conversation, and take those of the data
        pass
    return template


def _day_macro() -> str:
    """What stands before a template so that its `strftime_now` speaks of one day."""
    flags = [
        f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFfHIjklmMpRSTuUwWxXyYz"
    ]
    told = [("%%", "\0"), *((flag, THE_DAY.strftime(flag)) for flag in flags), ("\0", "%")]
    filters = "".join(f"|replace({json.dumps(flag)}, {json.dumps(day)})" for flag, day in told)
    # The line's end is dropped with the block, so the template begins as if nothing were before.
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n"


def _unused(said: str) -> Iterator[str]:
    """Characters for private use that do not occur in what is said."""
    return (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in said)


def _span(written: str, probed: str, probe: str) -> Span:
    """Where `written` says what `probed` says by the probe; empty where it says nothing."""
    first, last = probed.find(probe), probed.rfind(probe)
    if first < 0:
        return len(written), len(written)
    before, after = probed[:first], probed[last + 1 :]
    if not written.startswith(before):
        before = before[: _common_length(written, before)]
    if not written.endswith(after):
        after = after[len(after) - _common_length(written[::-1], after[::-1]) :]
    return len(before), max(len(before), len(written) - len(after))


def _common_length(one: str, other: str) -> int:
    """Characters that two strings begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
