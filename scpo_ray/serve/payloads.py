"""What requests and answers look like: our own, and those of the tools that ask for rewards."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scpo_ray.records import InputError, Text
from scpo_ray.serve.choices import Choice, read_choice
from scpo_ray.serve.dialogues import answered, continued, sample_of
from scpo_ray.serve.items import How, Reward, RewardItem

Scale = Literal["raw", "standardised", "probability"]
"""In which unit a tool gets its numbers; of a mixture, which has no raw reward, the mixed value."""


class _Ours(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class _Theirs(BaseModel):
    """A tool's own request: what it sends besides is left alone."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True)


class Message(_Ours):
    role: str
    content: str


class Item(_Ours):
    """One response under its prompt, and whose reward is asked for."""

    response: str
    prompt: str | None = None
    """What is answered; or `messages`."""
    messages: list[Message] | None = Field(None, min_length=1)
    """The conversation before the response, its last message being what is answered."""
    culture: str | None = None
    """A culture by name; or `mix`. Neither is needed where one culture is served."""
    mix: dict[str, float] | None = Field(None, min_length=1)
    """Shares of cultures, which sum to 1."""
    how: How = "linear"
    """How a mixture becomes one number."""


class RewardsRequest(_Ours):
    # The first fault ends the reading: a million of them would take minutes to list.
    items: list[Item] = Field(min_length=1, fail_fast=True)


class RewardOut(BaseModel):
    of: str
    """The culture, or the mixture as in "0.5 Chile + 0.5 Mexico (linear)"."""
    reward: float
    """In the model's own unit; of a mixture, the mixed value."""
    standardised: float | None
    """In standard deviations of the culture's rewards of its reference texts; null: none known."""
    probability: float | None
    """Chance to beat a reference response, in [0, 1]; null where no references are known."""
    interval: tuple[float, float] | None
    """95 % interval of `reward`, over seeds; null where there is one model alone."""
    truncated: bool
    """Whether the text was cut at a model's maximum length."""


class RewardsAnswer(BaseModel):
    rewards: list[RewardOut]
    models: dict[str, str]
    """Culture -> the model that answered."""


class OpenRlhfRequest(_Theirs):
    """OpenRLHF's remote reward: the labels name the culture, or are JSON with a `culture`."""

    query: list[str] = Field(min_length=1, fail_fast=True)
    prompts: list[str] | None = Field(None, fail_fast=True)
    labels: list[Any] | None = None


class OpenRlhfAnswer(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class LlamaFactoryRequest(_Theirs):
    model: str = "model"
    """A culture or a mixture; "model", which the tool sends, says nothing."""
    messages: list[str] = Field(min_length=1, fail_fast=True)


class LlamaFactoryAnswer(BaseModel):
    id: str
    object: Literal["score"] = "score"
    model: str
    scores: list[float]


class VllmRequest(_Theirs):
    """vLLM's `/classify` and `/pooling`: rendered texts, or one conversation."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    messages: list[Message] | None = Field(None, min_length=2)
    task: Literal["classify"] = "classify"


class SglangRequest(_Theirs):
    """SGLang's `/classify`: `text` (vLLM's has `input` or `messages`)."""

    model: str | None = None
    text: str | Annotated[list[str], Field(min_length=1, fail_fast=True)]


class VllmClass(BaseModel):
    index: int
    label: str = "LABEL_0"
    probs: list[float]
    num_classes: int = 1


class VllmPooled(BaseModel):
    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float]


class VllmAnswer(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[VllmClass] | list[VllmPooled]
    usage: dict[str, int] = {}


class SglangAnswer(BaseModel):
    embedding: list[float]
    meta_info: dict[str, Any]


def our_items(request: RewardsRequest) -> list[RewardItem]:
    """The items as the scoring core takes them, which checks them."""
    return [
        RewardItem(
            response=item.response,
            prompt=item.prompt,
            messages=None if item.messages is None else [dict(m) for m in item.messages],
            culture=item.culture,
            mix=item.mix,
            how=item.how,
        )
        for item in request.items
    ]


def asked(text: Text, choice: Choice) -> RewardItem:
    """The text as the scoring core takes it."""
    turns = (*text.history, ("user", text.prompt))
    return RewardItem(
        response=text.response,
        messages=[{"role": role, "content": content} for role, content in turns],
        culture=choice.culture,
        mix=choice.mix,
        how=choice.how,
    )


def tool_choice(
    asked_for: str | None, named: str | None, cultures: Sequence[str], place: str
) -> Choice:
    """What a tool asks for: by `?culture=` in its URL, else by the field it has, else the only one.

    Raises: InputError, naming `place`.
    """
    if asked_for is not None:
        return read_choice(asked_for, cultures, "culture")
    if named is not None:
        return read_choice(named, cultures, place)
    if len(cultures) == 1:
        return Choice(cultures[0])
    known = ", ".join(cultures)
    raise InputError(
        f"{place}: names no culture, nor does ?culture= of the URL; there are: {known}"
    )


def openrlhf_items(
    request: OpenRlhfRequest, asked_for: str | None, cultures: Sequence[str]
) -> list[RewardItem]:
    """Raises: InputError that names the sample and its field."""
    count = len(request.query)
    for name, column in (("prompts", request.prompts), ("labels", request.labels)):
        if column is not None and len(column) not in (0, count):
            raise InputError(f"{name}: must be as many as query, {count}, got {len(column)}")
    prompts: Sequence[str | None] = request.prompts or [None] * count
    labels = request.labels or [None] * count
    items = []
    for number, (query, prompt, label) in enumerate(
        zip(request.query, prompts, labels, strict=True)
    ):
        place = f"query.{number}"
        text = sample_of(query, place) if prompt is None else continued(query, prompt, place)
        named = label_culture(label, f"labels.{number}")
        items.append(asked(text, tool_choice(asked_for, named, cultures, f"labels.{number}")))
    return items


def label_culture(label: Any, place: str) -> str | None:
    """The culture in a label: the label itself, or `culture` of an object, also one as JSON text.

    Raises: InputError, naming `place`, if it is of another kind.
    """
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except (ValueError, RecursionError):
            raise InputError(f"{place}: begins as a JSON object and is none") from None
    if isinstance(label, dict):
        label = label.get("culture")
    if label is None or label == "":
        return None
    if not isinstance(label, str):
        raise InputError(f"{place}: must name a culture, got {type(label).__name__}")
    return label


def llama_factory_items(
    request: LlamaFactoryRequest, asked_for: str | None, cultures: Sequence[str]
) -> list[RewardItem]:
    """Raises: InputError that names the sample."""
    named = None if request.model == "model" else request.model
    choice = tool_choice(asked_for, named, cultures, "model")
    return [asked(sample_of(t, f"messages.{n}"), choice) for n, t in enumerate(request.messages)]


def vllm_items(
    request: VllmRequest, asked_for: str | None, cultures: Sequence[str]
) -> list[RewardItem]:
    """Raises: InputError that names the sample, or unless there is one of input and messages."""
    if (request.input is None) == (request.messages is None):
        raise InputError("must have either input or messages")
    choice = tool_choice(asked_for, request.model, cultures, "model")
    if request.messages is not None:
        turns = tuple((message.role, message.content) for message in request.messages)
        return [asked(answered(turns, "messages"), choice)]
    return _rendered(request.input or "", "input", choice)


def sglang_items(
    request: SglangRequest, asked_for: str | None, cultures: Sequence[str]
) -> list[RewardItem]:
    """Raises: InputError that names the sample."""
    choice = tool_choice(asked_for, request.model, cultures, "model")
    return _rendered(request.text, "text", choice)


def _rendered(texts: str | Sequence[str], place: str, choice: Choice) -> list[RewardItem]:
    if isinstance(texts, str):
        return [asked(sample_of(texts, place), choice)]
    return [asked(sample_of(text, f"{place}.{n}"), choice) for n, text in enumerate(texts)]


def reward_out(reward: Reward) -> RewardOut:
    interval = None if reward.low is None or reward.high is None else (reward.low, reward.high)
    return RewardOut(
        of=reward.of,
        reward=reward.value,
        standardised=reward.standardised,
        probability=reward.probability,
        interval=interval,
        truncated=reward.truncated,
    )


def number_of(reward: Reward, scale: Scale) -> float:
    """The reward in one unit. Raises: InputError where it has none, as without references."""
    value = reward.value if scale == "raw" else getattr(reward, scale)
    if value is None:
        raise InputError(f"scale = {scale}: the model of {reward.of} was saved without references")
    return float(value)


def asked_name(item: RewardItem) -> str:
    """The culture, or "mix": for counting, so that no caller makes up a name."""
    return "mix" if item.culture is None else item.culture
