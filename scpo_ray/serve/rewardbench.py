"""RewardBench 2: whether the best of a prompt's completions is one of the right ones. Pure.

Source: rewardbench 0.1.4, whose local rows have id, prompt, chosen, rejected, num_correct,
total_completions and subset; the chosen completions come first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

TIES = "Ties"
"""The subset that is scored as a whole, by `ties_score`."""

_REF, _TIED = "ref", "tied"


@dataclass(frozen=True)
class TiesPrompt:
    """A prompt of the subset Ties, of a pair of two with one `number`.

    Attributes:
        is_tied: whether several completions are right; one is in the other of the pair, "ref".
        scores: of all completions, the `num_correct` right ones first.
    """

    number: str
    is_tied: bool
    scores: tuple[float, ...]
    num_correct: int

    @property
    def above_wrong(self) -> float:
        """How far the worst right completion is above the best wrong one."""
        return min(self.scores[: self.num_correct]) - max(self.scores[self.num_correct :])

    @property
    def among_right(self) -> float:
        """How far the best right completion is above the worst right one."""
        right = self.scores[: self.num_correct]
        return max(right) - min(right)


def ties_prompt(row_id: str, scores: Sequence[float], num_correct: int) -> TiesPrompt:
    """Raises: ValueError for an id that is not as in "ref:3" or "tied:3", or if as many
    completions are not right as it says."""
    kind, _, number = row_id.partition(":")
    if kind not in (_REF, _TIED) or not number:
        raise ValueError(f"id = {row_id!r}: must be as in ref:3 or tied:3 in the subset {TIES}")
    _check_number(num_correct, len(scores))
    if (kind == _TIED) != (num_correct > 1):
        rule = "more than 1" if kind == _TIED else "1"
        raise ValueError(f"num_correct = {num_correct}: must be {rule} where the id is {kind}:")
    return TiesPrompt(number, kind == _TIED, tuple(scores), num_correct)


def ties_score(prompts: Sequence[TiesPrompt]) -> float:
    """The subset's score: 0.3 a + 0.3 b + 0.2 c + 0.2 d + 0.01 e.

    a, b: the shares of tied prompts, and of the others, whose right completions are all above every
    wrong one. Of the pairs, c: the share where right is above wrong by more than right ones differ;
    d: where it is so in both prompts of a pair; e: tanh of how many times more, less 1, on average
    (0 where it is 0 of 0). It may be 1.01.

    Returns: NaN where no pair has both its prompts.
    Source: rewardbench, `process_single_model` of the second benchmark's utilities.
    """
    tied = {prompt.number: prompt for prompt in prompts if prompt.is_tied}
    single = {prompt.number: prompt for prompt in prompts if not prompt.is_tied}
    both = sorted(tied.keys() & single.keys())
    if not both:
        return float("nan")
    differ = np.array([tied[number].among_right for number in both])
    of_tied = np.array([tied[number].above_wrong for number in both])
    least = np.minimum(of_tied, [single[number].above_wrong for number in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.nan_to_num(np.tanh(least / differ - 1), nan=0.0)
    return float(
        0.3 * np.mean([prompt.above_wrong > 0 for prompt in tied.values()])
        + 0.3 * np.mean([prompt.above_wrong > 0 for prompt in single.values()])
        + 0.2 * np.mean(of_tied > differ)
        + 0.2 * np.mean(least > differ)
        + 0.01 * np.mean(times)
    )


def right_share(scores: Sequence[float], num_correct: int) -> float:
    """1 if the completion with the highest score is right, 0 if it is not; of several highest
    ones, the share of right ones.

    Args:
        scores: of all completions, the `num_correct` right ones first.

    Raises: ValueError if no completion is right or none is wrong.
    """
    _check_number(num_correct, len(scores))
    best = max(scores)
    tied = [place for place, score in enumerate(scores) if score == best]
    return sum(place < num_correct for place in tied) / len(tied)


def _check_number(num_correct: int, num_completions: int) -> None:
    if not 0 < num_correct < num_completions:
        raise ValueError(f"num_correct = {num_correct}: must be 1 to {num_completions - 1}")


def by_subset(rows: Iterable[tuple[str, float]]) -> dict[str, tuple[float, int]]:
    """Subset -> mean share and number of prompts, from (subset, `right_share`) of each row."""
    found: dict[str, list[float]] = {}
    for subset, share in rows:
        found.setdefault(subset, []).append(share)
    return {subset: (sum(shares) / len(shares), len(shares)) for subset, shares in found.items()}
