"""Rendered dialogues taken apart: a text with a chat template's marks, back into turns. Pure.

Trainers send one text per sample, in the template of their policy; a reward model has another
template, or none. So the marks are taken off and the turns rendered anew.
"""

import re
from dataclasses import dataclass

from scpo_ray.data.messages import Turns, transcript
from scpo_ray.records import InputError, Text

_ROLES = {"human": "user", "model": "assistant", "bot": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class _Family:
    """How a family of templates marks a turn: `head` names its role, `end` closes it."""

    head: re.Pattern[str]
    end: str


_FAMILIES = (
    _Family(re.compile(r"<\|im_start\|>(\w+)\n"), "<|im_end|>"),
    _Family(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*"), "<|eot_id|>"),
    _Family(re.compile(r"<start_of_turn>(\w+)\n"), "<end_of_turn>"),
    _Family(re.compile(r"<\|(system|user|assistant)\|>\s*"), ""),
)

# What tokenizers end a text with; decoded with special tokens, it stands behind the last turn.
_ENDS = re.compile(
    r"(?:\s*(?:</s>|<eos>|<\|endoftext\|>|<\|end_of_text\|>|<\|im_end\|>|<\|eot_id\|>"
    r"|<end_of_turn>|<\|end\|>|<pad>|<\|pad\|>|\[PAD\]))+\s*$"
)
_BEGINS = re.compile(r"^\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)\s*)+")
_INSTRUCTIONS = re.compile(r"\[INST\](.*?)\[/INST\]", re.DOTALL)


def without_ends(text: str) -> str:
    """The text without the special tokens that a tokenizer's decoding leaves at its two ends."""
    return _ENDS.sub("", _BEGINS.sub("", text))


def turns_of(text: str) -> Turns | None:
    """The (role, text) turns of a rendered dialogue; None where no known marks are in it.

    Known are ChatML (Qwen and others), Llama 3, Gemma, Zephyr and Tulu, Llama 2 and Mistral, and
    "Human: ... Assistant: ..." transcripts. A turn that was opened and not yet filled, as at the
    end of a prompt, is a turn without text.
    """
    for family in _FAMILIES:
        heads = list(family.head.finditer(text))
        if heads:
            ends = [head.start() for head in heads[1:]] + [len(text)]
            turns = []
            for head, end in zip(heads, ends, strict=True):
                said = text[head.end() : end]
                if family.end:
                    said = said.partition(family.end)[0]
                turns.append((_role(head[1]), without_ends(said).strip()))
            return tuple(turns)
    plain = without_ends(text)
    return _instructed(plain) or transcript(plain)


def _instructed(text: str) -> Turns | None:
    """The turns of "[INST] prompt [/INST] response</s>[INST] ..."."""
    asked = list(_INSTRUCTIONS.finditer(text))
    if not asked:
        return None
    turns: list[tuple[str, str]] = []
    ends = [found.start() for found in asked[1:]] + [len(text)]
    for found, end in zip(asked, ends, strict=True):
        turns.append(("user", found[1].strip()))
        turns.append(("assistant", without_ends(text[found.end() : end]).strip()))
    return tuple(turns)


def _role(name: str) -> str:
    return _ROLES.get(name.lower(), name.lower())


def sample_of(text: str, place: str) -> Text:
    """Prompt, history and response of a rendered dialogue that ends with a response.

    Raises: InputError, naming `place`, if it has no known marks or does not end with one.
    """
    turns = turns_of(text)
    if turns is None:
        raise InputError(
            f"{place}: no template's marks in the text, so prompt and response cannot be told "
            "apart: send messages, or prompt and response to /v1/rewards"
        )
    return answered(turns, place)


def answered(turns: Turns, place: str) -> Text:
    """The last turn as the response to the one before it; what is before both is the history.

    Raises: InputError, naming `place`, unless the last is an assistant's and one stands before it.
    """
    roles = [role for role, _ in turns]
    if len(turns) < 2 or roles[-1] != "assistant":
        raise InputError(
            f"{place}: must end with an assistant's turn that answers another, got the roles "
            f"{', '.join(roles[-3:]) or 'none'}"
        )
    return Text(history=turns[:-2], prompt=turns[-2][1], response=turns[-1][1])


def continued(query: str, prompt: str, place: str) -> Text:
    """Of a trainer's `query` (its prompt and what the policy went on with) and the `prompt` alone.

    The prompt may be rendered or plain; the response is what the query has more.

    Raises: InputError, naming `place`, if the query does not begin with the prompt and has no
        template's marks either.
    """
    whole, begun = _BEGINS.sub("", query), _BEGINS.sub("", prompt)
    if not whole.startswith(begun):
        return sample_of(query, place)
    response = without_ends(whole[len(begun) :]).strip()
    turns = turns_of(begun)
    if turns is None:
        return Text(history=(), prompt=begun, response=response)
    if turns[-1] == ("assistant", ""):
        turns = turns[:-1]
    if not turns:
        raise InputError(f"{place}: the prompt holds no turn")
    return Text(history=turns[:-1], prompt=turns[-1][1], response=response)
