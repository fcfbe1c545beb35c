"""RewardBench 2: whether the best of a prompt's completions is one of the right ones. Pure.

Source: rewardbench 0.1.4, whose local rows have id, prompt, chosen, rejected, num_correct,
total_completions and subset; the chosen completions come first.
"""

from collections.abc import Iterable, Sequence

TIES = "Ties"
"""The subset that the benchmark scores by a rule of its own, which is not computed here."""


def right_share(scores: Sequence[float], num_correct: int) -> float:
    """1 if the completion with the highest score is right, 0 if it is not; of several highest
    ones, the share of right ones.

    Args:
        scores: of all completions, the `num_correct` right ones first.

    Raises: ValueError if no completion is right or none is wrong.
    """
    if not 0 < num_correct < len(scores):
        raise ValueError(f"num_correct = {num_correct}: must be 1 to {len(scores) - 1}")
    best = max(scores)
    tied = [place for place, score in enumerate(scores) if score == best]
    return sum(place < num_correct for place in tied) / len(tied)


def by_subset(rows: Iterable[tuple[str, float]]) -> dict[str, tuple[float, int]]:
    """Subset -> mean share and number of prompts, from (subset, `right_share`) of each row."""
    found: dict[str, list[float]] = {}
    for subset, share in rows:
        found.setdefault(subset, []).append(share)
    return {subset: (sum(shares) / len(shares), len(shares)) for subset, shares in found.items()}
