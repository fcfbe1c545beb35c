"""Reward functions for reinforcement learning: what trainers call, and how they are set up.

TRL takes a function, `trl(...)`, or by its command line a name,
`--reward_funcs scpo_ray.serve.rewards.culture_reward`. OpenRLHF and verl take the path of a file:
`openrlhf.py` and `verl.py` beside this one. What has no arguments is set up by the environment:

    SCPO_MODELS        "Chile=scpo-Chile@champion Mexico=runs/mexico"
    SCPO_BASE          the adapters' base model
    SCPO_TRACKING_URI  the MLflow store of registered models
    SCPO_DEVICE        a torch device; without it a GPU if there is one
    SCPO_URL           a server's address, in place of all these
    SCPO_TOKEN         the server's token
    SCPO_SCALE         standardised (the default), raw or probability
"""

import math
import os
import random
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol, get_args

import numpy as np
import torch

from scpo_ray.records import InputError
from scpo_ray.serve.choices import read_choice, read_models
from scpo_ray.serve.client import ServedRewards
from scpo_ray.serve.core import CultureRewards
from scpo_ray.serve.items import Reward, RewardItem
from scpo_ray.serve.payloads import Scale, number_of

COLUMN = "culture"
"""The data column that names each row's culture or mixture."""


class Rewards(Protocol):
    """The scoring core, or a server's."""

    @property
    def cultures(self) -> tuple[str, ...]: ...

    def rewards(self, items: Sequence[RewardItem]) -> list[Reward]: ...


class CultureReward:
    """TRL's `reward_funcs`: each completion's reward by its own row's culture or mixture.

    It logs the mean by culture, `reward/<culture>`, and with `report_all` what every other
    culture thinks of the same completions, `reward/<culture>/by/<other>`.
    """

    def __init__(
        self, rewards: Rewards, *, name: str, scale: Scale, column: str, report_all: bool
    ) -> None:
        # TRL names its log fields after it: two functions of one name would share them.
        self.__name__ = name
        self._rewards = rewards
        self._scale = scale
        self._column = column
        self._report_all = report_all

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """(N,) rewards of N completions.

        Args:
            prompts, completions: texts, or lists of messages.
            columns: the data's others, each of N, with the cultures among them.

        Raises: InputError that names the row, or for a reward that is no finite number.
        """
        named = self._named(columns.get(self._column), len(prompts))
        items = [
            self._item(row, prompt, completion, culture)
            for row, (prompt, completion, culture) in enumerate(
                zip(prompts, completions, named, strict=True)
            )
        ]
        found = finite_rewards(self._rewards, items, self._scale)
        self._log(items, named, found, columns.get("log_metric"))
        return found

    def _named(self, column: Any, count: int) -> list[str]:
        cultures = self._rewards.cultures
        if column is None and len(cultures) == 1:
            return [cultures[0]] * count
        if column is None:
            known = ", ".join(cultures)
            raise InputError(f"no column {self._column!r} in the data; cultures: {known}")
        return list(column)

    def _item(self, row: int, prompt: Any, completion: Any, culture: Any) -> RewardItem:
        if not isinstance(culture, str):
            raise InputError(f"row {row}: {self._column} must name a culture, got {culture!r}")
        choice = read_choice(culture, self._rewards.cultures, f"row {row}: {self._column}")
        asked = (
            {"prompt": prompt}
            if isinstance(prompt, str)
            else {"messages": [_message(m, row) for m in prompt]}
        )
        said = completion if isinstance(completion, str) else _reply(completion, row)
        return RewardItem(said, **asked, culture=choice.culture, mix=choice.mix, how=choice.how)

    def _log(
        self, items: Sequence[RewardItem], named: Sequence[str], found: Sequence[float], log: Any
    ) -> None:
        if log is None:
            return
        for name in sorted(set(named)):
            rows = [row for row, culture in enumerate(named) if culture == name]
            log(f"reward/{name}", sum(found[row] for row in rows) / len(rows))
            if not self._report_all:
                continue
            for other in self._rewards.cultures:
                if other == name:
                    continue
                asked = [_by(items[row], other) for row in rows]
                theirs = finite_rewards(self._rewards, asked, self._scale)
                log(f"reward/{name}/by/{other}", sum(theirs) / len(theirs))


def trl(
    models: Mapping[str, str | Sequence[str]] | str,
    *,
    token: str | None = None,
    scale: Scale = "standardised",
    column: str = COLUMN,
    report_all: bool = False,
    name: str = "culture_reward",
    **options: Any,
) -> CultureReward:
    """A function for TRL's `reward_funcs`; the global random streams stay as they are.

    Args:
        models: culture -> model, or several, as for `CultureRewards.load`; or a server's URL.
        token: the server's.
        scale: the unit; standardised rewards of cultures can be compared.
        column: which data column names the culture, or the mixture as in "Chile=0.5,Mexico=0.5".
        report_all: log what every culture thinks of each culture's completions.
        name: of the log fields.
        options: more for `CultureRewards.load`, as `base` and `device`.

    Raises: InputError if a model cannot be loaded.
    """
    rewards = _opened(models, token, options)
    return CultureReward(rewards, name=name, scale=scale, column=column, report_all=report_all)


def culture_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """`trl(...)` as the environment says, for `--reward_funcs` of TRL's command line."""
    rewards, scale = from_environment()
    function = CultureReward(
        rewards, name="culture_reward", scale=scale, column=COLUMN, report_all=False
    )
    return function(prompts, completions, **columns)


@lru_cache(maxsize=1)
def from_environment() -> tuple[Rewards, Scale]:
    """The rewards and their scale that this process's environment names; opened once.

    Raises: InputError that names the variable.
    """
    said = os.environ.get("SCPO_SCALE", "standardised")
    scale = next((known for known in get_args(Scale) if known == said), None)
    if scale is None:
        raise InputError(f"SCPO_SCALE = {said!r}: must be one of {', '.join(get_args(Scale))}")
    url = os.environ.get("SCPO_URL")
    if url:
        return _opened(url, os.environ.get("SCPO_TOKEN"), {}), scale
    models = read_models(shlex.split(os.environ.get("SCPO_MODELS", "")))
    if not models:
        raise InputError("SCPO_MODELS or SCPO_URL must be set: CULTURE=MODEL CULTURE=MODEL ...")
    options = {
        "base": os.environ.get("SCPO_BASE"),
        "tracking_uri": os.environ.get("SCPO_TRACKING_URI"),
        "device": os.environ.get("SCPO_DEVICE"),
    }
    return _opened(models, None, options), scale


def finite_rewards(rewards: Rewards, items: Sequence[RewardItem], scale: Scale) -> list[float]:
    """The items' rewards in one unit; the global random streams stay as they are.

    Raises: InputError for one that is no finite number: trainers take NaN for "no reward", and
        infinity for a number.
    """
    with untouched_chance():
        found = [number_of(reward, scale) for reward in rewards.rewards(items)]
    for row, reward in enumerate(found):
        if not math.isfinite(reward):
            raise InputError(f"row {row}: the reward is {reward}")
    return found


@contextmanager
def untouched_chance() -> Iterator[None]:
    """The global random streams of Python, NumPy and torch are afterwards what they were.

    Loading a model seeds them: a policy drawn, or sampled, afterwards would not be chance.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _opened(
    models: Mapping[str, str | Sequence[str]] | str, token: str | None, options: Any
) -> Rewards:
    if isinstance(models, str):
        if options:
            raise InputError(f"a server's models are its own: {', '.join(options)} have no effect")
        return ServedRewards(models, token)
    with untouched_chance():
        return CultureRewards.load(models, **options)


def _message(message: Any, row: int) -> dict[str, str]:
    if isinstance(message, Mapping) and isinstance(message.get("content"), str):
        return {"role": str(message.get("role")), "content": message["content"]}
    raise InputError(f"row {row}: a message must have role and content as text, got {message!r}")


def _reply(completion: Any, row: int) -> str:
    messages = [_message(message, row) for message in completion]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise InputError(f"row {row}: a completion must be one assistant's message, got: {roles}")
    return messages[0]["content"]


def _by(item: RewardItem, culture: str) -> RewardItem:
    return RewardItem(item.response, item.prompt, item.messages, culture=culture)
