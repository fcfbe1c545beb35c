"""Chat messages in the shapes data sets give them: lists, such lists as text, transcripts."""

import json
import re
from typing import Any

from scpo_ray.data.rows import BadField, printed_value

Turns = tuple[tuple[str, str], ...]
"""(role, text) of each chat message."""

SPEAKERS = {"Human": "user", "Assistant": "assistant"}

_SPEAKER = re.compile(r"[ \t]*(Human|Assistant):")

# What a text must have to be taken for a list of messages: an opening bracket (perhaps quoted, or
# of an array) and both keys of a message. Only few texts get past the first. Blanks are matched
# once and for all ("*+"): a text of a million of them is read in no time.
_BEGIN = r"""\s*+["']?\s*+(?:[\w.]{1,20}\(\s*+)?"""
_OPENS = re.compile(rf"{_BEGIN}[\[({{]")
_WHO = re.compile(r"""["'](?:role|from)\\*+["']\s*+:""")
_WHAT = re.compile(r"""["'](?:content|value)\\*+["']\s*+:""")
_OPENS_MESSAGES = re.compile(
    rf"""{_BEGIN}[\[(]\s*+(?:[\w.]{{1,20}}\(\s*+)?\{{\s*+"""
    r"""\\*+["'](?:role|from|content|value)\\*+["']\s*+:"""
)


def messages_read(name: str, value: Any) -> Any:
    """`value`, or the list of messages that stands in it as text, as JSON or as Python prints it.

    Any other text stays one, also one that holds lists.

    Raises: BadField for a text that begins as such a list and cannot be read as one.
    """
    if not isinstance(value, str) or not _OPENS.match(value):
        return value
    if not (_WHO.search(value) and _WHAT.search(value)):
        return value
    try:
        parsed = parsed_value(value)
    except ValueError:
        if _OPENS_MESSAGES.match(value):
            rule = "begins as a list of messages and cannot be read as one: write it as JSON"
            raise BadField(name, value, rule) from None
        return value
    if isinstance(parsed, str):
        inner = messages_read(name, parsed)
        return value if inner is parsed else inner
    first = parsed[0] if isinstance(parsed, list) and parsed else parsed
    is_message = isinstance(first, dict) and ({"role", "from"} & first.keys())
    return parsed if is_message else value


def parsed_value(text: str) -> Any:
    """What `text` says as JSON, or else as Python prints it. Raises: ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return printed_value(text)


def messages(name: str, value: Any) -> Turns:
    """Raises: BadField if `value` is no list of messages with role and content."""
    if not isinstance(value, list) or not value:
        raise BadField(name, value, "must be text or a list of chat messages")
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise BadField(name, message, "a chat message must have role and content as text")
    return tuple((message["role"], message["content"]) for message in value)


def transcript(text: str) -> Turns | None:
    """The turns of a dialogue in one text, as in hh-rlhf; None where it is none.

    "\\n\\nHuman: a\\n\\nAssistant: b" -> (("user", "a"), ("assistant", "b")). The turns are parted
    by empty lines, or by line ends where no reply stands after an empty line.
    """
    dialogue = text.lstrip()
    if not dialogue.startswith("Human:"):
        return None
    lines = dialogue.split("\n")
    heads = [(n, found) for n, line in enumerate(lines) if (found := _SPEAKER.match(line))]
    apart = [(n, found) for n, found in heads if n == 0 or not lines[n - 1].strip()]
    if any(found[1] == "Assistant" for _, found in apart):
        heads = apart
    ends = [n for n, _ in heads[1:]] + [len(lines)]
    turns = tuple(
        (SPEAKERS[found[1]], "\n".join([lines[n][found.end() :], *lines[n + 1 : end]]).strip())
        for (n, found), end in zip(heads, ends, strict=True)
    )
    return turns if "assistant" in dict(turns) else None


def common_prefix(conversations: list[Turns]) -> Turns:
    """What all share, short of each one's last message (equal replies are replies still)."""
    if not conversations:
        return ()
    shared = min(conversations, key=len)[:-1]
    for conversation in conversations:
        while conversation[: len(shared)] != shared:
            shared = shared[:-1]
    return shared
