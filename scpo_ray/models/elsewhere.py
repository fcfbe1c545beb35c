"""An exported folder in the hands of other tools: the rewards that they read from it."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from scpo_ray.models.rendering import quiet_transformers, reasons
from scpo_ray.models.reward_model import RewardModel
from scpo_ray.models.scoring import score_texts
from scpo_ray.records import InputError, Text

Tool = Literal["transformers", "pipeline", "sentence-transformers", "trl"]
TOOLS: tuple[Tool, ...] = get_args(Tool)

TOLERANCE = 1e-4
"""Reward units by which a tool's reward may differ."""

REWARD_FUNCTION = "scpo_ray.serve.rewards.trl"
"""What to give a trainer that cannot read the folder right."""

_PACKAGES: dict[Tool, str] = {
    "transformers": "transformers",
    "pipeline": "transformers",
    "sentence-transformers": "sentence_transformers",
    "trl": "trl",
}
_CANNOT: dict[tuple[Tool, str], str] = {
    ("trl", "pair"): (
        "cannot be right: it joins prompt and completion to one text without special tokens, and "
        f"this model reads them as a pair; give its trainers {REWARD_FUNCTION}(...) as reward_funcs"
    ),
    ("sentence-transformers", "chat"): (
        "cannot be right: its CrossEncoder reads pairs, and this model reads conversations; use "
        "transformers, or TRL with messages"
    ),
}


@dataclass(frozen=True)
class ToolCheck:
    """What a tool made of an exported folder.

    `difference`: the largest of its rewards from ours, in reward units; None where nothing was
    compared. `note`: why, or what else there is to know.
    """

    tool: Tool
    difference: float | None
    note: str = ""
    failed: bool = False


def read_tools(names: str) -> list[Tool]:
    """Tools from their names with commas between. Raises: InputError naming what is none."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in TOOLS]
    if unknown or not asked:
        raise InputError(f"--check {names!r}: must be of {', '.join(TOOLS)}", unknown)
    return [tool for tool in TOOLS if tool in asked]


def check_tools(
    model: RewardModel, folder: Path, texts: Sequence[Text], tools: Sequence[Tool]
) -> list[ToolCheck]:
    """Loads an exported folder with each tool, and compares its rewards of the texts with ours.

    Args:
        model: what was exported, as it scores here.
        texts: of one turn; those that are cut here are left out, for each tool cuts in its own way.
    """
    texts = [
        t for t, cut in zip(texts, model.renderer.encode(texts).truncated, strict=True) if not cut
    ]
    if not texts:
        raise ValueError("no text is short enough to be compared")
    ours = score_texts(model, texts)
    return [_checked(tool, model.renderer.style, folder, texts, ours) for tool in tools]


def _checked(
    tool: Tool,
    style: Literal["pair", "chat"],
    folder: Path,
    texts: Sequence[Text],
    ours: NDArray[np.float32],
) -> ToolCheck:
    if (tool, style) in _CANNOT:
        return ToolCheck(tool, None, _CANNOT[tool, style])
    if importlib.util.find_spec(_PACKAGES[tool]) is None:
        return ToolCheck(tool, None, f"not installed (pip install {tool})")
    try:
        with _as_a_user_would(), torch.no_grad():
            theirs = _ROADS[tool](folder, style, texts)
    except Exception as error:  # whatever another tool raises is what its user would see
        return ToolCheck(tool, None, f"cannot be used: {reasons(error)[0]}", failed=True)
    difference = float(np.abs(np.asarray(theirs, dtype=np.float64) - ours).max())
    return ToolCheck(tool, difference, f"{len(texts)} texts", failed=not difference <= TOLERANCE)


@contextmanager
def _as_a_user_would() -> Iterator[None]:
    """Alone, without their warnings, the global random streams as they were."""
    quiet_transformers()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def _by_transformers(folder: Path, style: str, texts: Sequence[Text]) -> NDArray[np.float64]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if style == "chat":
        inputs = tokenizer.apply_chat_template(
            _conversations(texts), padding=True, return_tensors="pt", return_dict=True
        )
    else:
        prompts, responses = [t.prompt for t in texts], [t.response for t in texts]
        inputs = tokenizer(prompts, responses, padding=True, return_tensors="pt")
    return np.asarray(network(**inputs).logits[:, 0].double().numpy())


def _by_pipeline(folder: Path, style: str, texts: Sequence[Text]) -> NDArray[np.float64]:
    from transformers import pipeline

    scorer = pipeline("text-classification", model=str(folder), device="cpu")
    if style == "chat":
        written = scorer.tokenizer.apply_chat_template(_conversations(texts), tokenize=False)
        # The template has written them.
        found = scorer(written, add_special_tokens=False, batch_size=len(texts))
    else:
        pairs = [{"text": t.prompt, "text_pair": t.response} for t in texts]
        found = scorer(pairs, batch_size=len(texts))
    return np.array([one["score"] for one in found])


def _by_sentence_transformers(
    folder: Path, style: str, texts: Sequence[Text]
) -> NDArray[np.float64]:
    from sentence_transformers import CrossEncoder

    scorer = CrossEncoder(str(folder), device="cpu")
    pairs = [(t.prompt, t.response) for t in texts]
    return np.asarray(scorer.predict(pairs, show_progress_bar=False), dtype=np.float64)


def _by_trl(folder: Path, style: str, texts: Sequence[Text]) -> NDArray[np.float64]:
    """As its GRPO trainer scores message prompts with a model that is named by its path."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import apply_chat_template

    network = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    written = [
        apply_chat_template({"messages": messages}, tokenizer)["text"]
        for messages in _conversations(texts)
    ]
    inputs = tokenizer(
        text=written,
        return_tensors="pt",
        padding=True,
        padding_side="right",
        add_special_tokens=False,
    )
    return np.asarray(network(**inputs).logits[:, 0].double().numpy())


def _conversations(texts: Sequence[Text]) -> list[list[dict[str, Any]]]:
    return [
        [{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.response}]
        for t in texts
    ]


_ROADS: dict[Tool, Callable[[Path, str, Sequence[Text]], NDArray[np.float64]]] = {
    "transformers": _by_transformers,
    "pipeline": _by_pipeline,
    "sentence-transformers": _by_sentence_transformers,
    "trl": _by_trl,
}
