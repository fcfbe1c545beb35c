"""Best of N: how good is the response that a model picks, in the eyes of the person who scored it.

Ranking pairs right on average says little of the one at the top, which is what is shown to people
(arXiv 2512.23067). From each prompt's K scored responses a model picks the one with the highest
reward; of several with the same reward, one at random.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scpo_ray.records import Pairs
from scpo_ray.results import BestOfN, Difference, Estimate
from scpo_ray.statistics.intervals import accuracy, paired_difference

Found = TypeVar("Found", Estimate, Difference)


@dataclass(frozen=True)
class Candidates:
    """N prompts with at most K scored responses each, of one culture.

    Attributes:
        texts: (N, K) int64, -1 beyond a prompt's responses.
        scores: (N, K) float64, the person's; 0 beyond.
        clusters: (N,) the user or question.
    """

    texts: NDArray[np.int64]
    scores: NDArray[np.float64]
    clusters: NDArray[np.int64]

    @property
    def valid(self) -> NDArray[np.bool_]:
        return self.texts >= 0


def candidates(pairs: Pairs) -> Candidates:
    """The responses that stand in the pairs, prompt by prompt: two or more, not all scored alike.

    One that ties with all others of its prompt is in no pair, and not among them.
    """
    rows = np.concatenate([pairs.interactions, pairs.interactions])
    numbers = np.concatenate([pairs.chosen_responses, pairs.rejected_responses])
    texts = np.concatenate([pairs.chosen, pairs.rejected])
    scores = np.concatenate([pairs.chosen_scores, pairs.rejected_scores])
    clusters = np.concatenate([pairs.cluster_codes, pairs.cluster_codes])
    _, first = np.unique(np.stack([rows, numbers], axis=1), axis=0, return_index=True)
    _, prompts, sizes = np.unique(rows[first], return_inverse=True, return_counts=True)
    shape = (len(sizes), int(sizes.max(initial=0)))
    places = np.arange(len(first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    found = Candidates(
        np.full(shape, -1, dtype=np.int64), np.zeros(shape), np.zeros(shape[0], dtype=np.int64)
    )
    found.texts[prompts, places] = texts[first]
    found.scores[prompts, places] = scores[first]
    found.clusters[prompts] = clusters[first]
    return found


def evaluate_best_of_n(
    test: Pairs, rewards: NDArray[np.floating[Any]], ref_rewards: NDArray[np.floating[Any]] | None
) -> dict[str, BestOfN]:
    """Culture -> what the model's picks among each test prompt's responses are worth.

    Args:
        test: `chosen` and `rejected` index the (T,) rewards.
        ref_rewards: of the global model, or None where there is none.

    Returns: an entry for every culture of `test.cultures` with a pair.
    """
    return {
        culture: _best_of_n(candidates(test.take(mine)), rewards, ref_rewards)
        for code, culture in enumerate(test.cultures)
        if (mine := test.culture_codes == code).any()
    }


def picks(rewards: NDArray[np.floating[Any]], among: Candidates) -> NDArray[np.float64]:
    """(N, K) the chance that each response is picked: 1 for the highest reward, shared by ties.

    Args: rewards: (T,). Raises: ValueError if a candidate's reward is NaN or infinite.
    """
    # -1 reads the last text, in cells that are not valid.
    own = rewards[among.texts].astype(np.float64)
    if not np.isfinite(own[among.valid]).all():
        raise ValueError("rewards must be finite")
    own[~among.valid] = -np.inf
    highest = own == own.max(axis=1, keepdims=True)
    shares: NDArray[np.float64] = highest / highest.sum(axis=1, keepdims=True)
    return shares


def wins(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,) the chance that our pick has the higher score; equal scores, and the same pick, count
    half.

    Args:
        ours, theirs: (N, K) chances of each response, independent of each other.
        scores: (N, K).
    """
    above = (np.sign(scores[:, :, None] - scores[:, None, :]) + 1) / 2
    return np.asarray(np.einsum("nk,nkl,nl->n", ours, above, theirs))


def wins_over_others(ours: NDArray[np.float64], among: Candidates) -> NDArray[np.float64]:
    """(N,) the chance that our pick's score is above that of another response of the prompt, drawn
    at random; equal scores count half."""
    above = (np.sign(among.scores[:, :, None] - among.scores[:, None, :]) + 1) / 2
    num_others = among.valid.sum(axis=1) - 1
    beaten = np.einsum("nkl,nl->nk", above, among.valid.astype(np.float64)) - 0.5
    return np.asarray((ours * beaten).sum(axis=1) / num_others)


def _best_of_n(
    among: Candidates,
    rewards: NDArray[np.floating[Any]],
    ref_rewards: NDArray[np.floating[Any]] | None,
) -> BestOfN:
    valid = among.valid
    sizes = valid.sum(axis=1)
    picked = {"model": picks(rewards, among)}
    if ref_rewards is not None:
        picked["global"] = picks(ref_rewards, among)
    picked["random"] = valid / sizes[:, None]
    best = np.where(valid, among.scores, -np.inf).max(axis=1)
    regrets = {name: best - (shares * among.scores).sum(axis=1) for name, shares in picked.items()}
    spreads = _spreads(among)
    won = {"random": wins_over_others(picked["model"], among)}
    if "global" in picked:
        won["global"] = wins(picked["model"], picked["global"], among.scores)
    in_sd = {name: values / spreads for name, values in regrets.items()}
    worst = best - np.where(valid, among.scores, np.inf).min(axis=1)
    return BestOfN(
        num_prompts=len(sizes),
        mean_responses=float(sizes.mean()),
        regret=_estimates(regrets, among.clusters, float(worst.max())),
        regret_minus_global=_minus_global(regrets, among.clusters, float(worst.max())),
        regret_sd=_estimates(in_sd, among.clusters, float((worst / spreads).max())),
        regret_sd_minus_global=_minus_global(in_sd, among.clusters, float((worst / spreads).max())),
        win_rate={name: accuracy(values, among.clusters) for name, values in won.items()},
    )


def _spreads(among: Candidates) -> NDArray[np.float64]:
    """(N,) the standard deviation of all scores of the prompt's user (or question)."""
    _, codes = np.unique(among.clusters, return_inverse=True)
    rows, _ = np.nonzero(among.valid)
    values, owners = among.scores[among.valid], codes[rows]
    counts = np.bincount(owners)
    centred = values - (np.bincount(owners, values) / counts)[owners]
    spreads = np.sqrt(np.bincount(owners, centred**2) / (counts - 1))
    return np.asarray(spreads[codes])


def _estimates(
    values: dict[str, NDArray[np.float64]], clusters: NDArray[np.int64], largest: float
) -> dict[str, Estimate]:
    """Means of what lies between 0 and `largest`: as shares of it they have a share's interval."""
    return {name: _scaled(accuracy(of / largest, clusters), largest) for name, of in values.items()}


def _minus_global(
    values: dict[str, NDArray[np.float64]], clusters: NDArray[np.int64], largest: float
) -> Difference | None:
    if "global" not in values:
        return None
    found = paired_difference(values["model"] / largest, values["global"] / largest, clusters)
    detectable = None if found.detectable is None else largest * found.detectable
    return replace(_scaled(found, largest), detectable=detectable)


def _scaled(found: Found, factor: float) -> Found:
    def times(value: float | None) -> float | None:
        return None if value is None else factor * value

    return replace(found, value=times(found.value), low=times(found.low), high=times(found.high))
