"""What every model of a sweep did with every test pair: its finished runs, read once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparable import (
    ComparedRun,
    CulturePairs,
    PairOutcomes,
    check_comparable,
    check_same_evaluation,
    culture_pairs,
    evaluation_settings,
    right,
)
from scpo_ray.records import Layer
from scpo_ray.sweep.records import TrialRecord


@dataclass(frozen=True)
class FinishedRun:
    """What is kept of a finished trial: a byte for each pair, and two numbers.

    `right`: (P_f,) bool over the pairs of its fold. `kept_share`: of the training pairs of
    all its cultures; it and `num_pairs` are 0 for a method that trains nothing.
    """

    trial: TrialRecord
    right: NDArray[np.bool_]
    kept_share: float
    num_pairs: int


@dataclass(frozen=True)
class SweepOutcomes:
    """The outcomes of a sweep's models on dev pairs, or on test pairs, its folds put together: each
    pair is in one fold.

    Attributes:
        cultures: those with models, or those tested where one model serves all.
        folds: those that were begun, in the order of `tested`; [None] without folds.
        fold_rows: of each, which of the P pairs are its own.
        tested: culture -> its P_c pairs; their rows count over all P pairs of all folds.
        samples: resamples of the clusters that the runs' evaluation asks for.
        runs: (setting's number, culture trained for or "") -> its finished runs.
    """

    cultures: list[str]
    folds: list[int | None]
    fold_rows: list[slice]
    tested: dict[str, CulturePairs]
    samples: int
    runs: dict[tuple[int, str], list[FinishedRun]]

    @property
    def layers(self) -> list[Layer]:
        """`all`, and with a global model the two that part it."""
        return list(next(iter(self.tested.values())).masks)

    @cached_property
    def num_pairs(self) -> int:
        return sum(len(pairs.rows) for pairs in self.tested.values())

    def runs_for(self, setting: int, culture: str) -> list[FinishedRun]:
        """The setting's runs for a culture; those of its mixture where it has no others."""
        return self.runs.get((setting, culture)) or self.runs.get((setting, ""), [])

    def shares(
        self, setting: int, culture: str, seed: int | None = None
    ) -> NDArray[np.float64] | None:
        """(P,) share of the seeds (or whether the one seed) that rank each pair right.

        None where a fold has no finished run: the other folds' pairs would be read as if all.
        """
        runs = self.runs_for(setting, culture)
        by_fold = []
        for fold in self.folds:
            seeds = [
                run.right
                for run in runs
                if run.trial.fold == fold and seed in (None, run.trial.seed)
            ]
            if not seeds:
                return None
            by_fold.append(np.mean(seeds, axis=0))
        return np.concatenate(by_fold)

    def own(self, settings: Sequence[int]) -> NDArray[np.float64]:
        """(P, S) outcomes of each setting's model for the pair's culture; NaN where there is none.

        Pairs of a culture that no model is trained for are NaN, too.
        """
        outcomes = np.full((self.num_pairs, len(settings)), np.nan)
        for column, setting in enumerate(settings):
            for culture in self.cultures:
                shares = self.shares(setting, culture)
                if shares is not None:
                    rows = self.tested[culture].rows
                    outcomes[rows, column] = shares[rows]
        return outcomes

    def by_seed(self, setting: int, culture: str) -> NDArray[np.float64] | None:
        """(P, K) whether each of the K seeds that finished in every fold ranks each pair right.

        None where there are fewer than two.
        """
        seeds = sorted({run.trial.seed for run in self.runs_for(setting, culture)})
        if len(seeds) < 2:
            return None
        columns = [self.shares(setting, culture, seed) for seed in seeds]
        whole = [column for column in columns if column is not None]
        return np.stack(whole, axis=1) if len(whole) > 1 else None

    def others(self, settings: Sequence[int]) -> NDArray[np.float64]:
        """(P, S) mean outcome of each setting's models for other cultures than the pair's.

        NaN for a setting that lacks a culture's model or has one for all, and for the pairs of a
        culture that has the only model.
        """
        outcomes = np.full((self.num_pairs, len(settings)), np.nan)
        for column, setting in enumerate(settings):
            if (setting, "") in self.runs:
                continue
            models = [self.shares(setting, culture) for culture in self.cultures]
            shares = [share for share in models if share is not None]
            if len(shares) < len(models):
                continue
            for name, pairs in self.tested.items():
                foreign = [
                    share[pairs.rows]
                    for trained, share in zip(self.cultures, shares, strict=True)
                    if trained != name
                ]
                if foreign:
                    outcomes[pairs.rows, column] = np.mean(foreign, axis=0)
        return outcomes


def read_outcomes(
    trials: Sequence[TrialRecord], load: Callable[[TrialRecord], ComparedRun]
) -> SweepOutcomes | None:
    """Reads every finished run once, and of each keeps a byte for every pair.

    Args:
        trials: in any state; two that finished cannot share setting, culture, seed and fold.
        load: reads one run with its dev pairs, or with its test pairs: all alike.

    Returns: None if no trial has finished. Folds of which every trial waits are left out.
    Raises: ValueError naming the two trials that cannot be compared: their test pairs (within a
        fold), global models or evaluation settings differ, or they are the same run twice.
    """
    firsts: dict[int | None, tuple[TrialRecord, ComparedRun]] = {}
    runs: dict[tuple[int, str], list[FinishedRun]] = {}
    known: dict[tuple[int, str, int, int | None], TrialRecord] = {}
    for trial in trials:
        if trial.state != "finished":
            continue
        key = (trial.setting, trial.culture, trial.seed, trial.fold)
        if key in known:
            both = f"{known[key].trial_id} and {trial.trial_id}"
            raise ValueError(f"{both}: one setting, culture, seed and fold finished twice: {key}")
        known[key] = trial
        run = load(trial)
        _check(trial, run, firsts)
        firsts.setdefault(trial.fold, (trial, run))
        kept = _finished(trial, run)
        runs.setdefault((trial.setting, trial.culture), []).append(kept)
    if not firsts:
        return None
    begun = list(dict.fromkeys(trial.fold for trial in trials if trial.state != "waiting"))
    evaluation = evaluation_settings(next(iter(firsts.values()))[1])
    together = _together([firsts[fold] for fold in begun if fold in firsts])
    ends = np.cumsum([len(firsts[f][1].outcomes.margin) if f in firsts else 0 for f in begun])
    fold_rows = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    tested = culture_pairs(together, evaluation)
    names = [[trial.culture] if trial.culture else list(tested) for trial in trials]
    cultures = list(dict.fromkeys(name for several in names for name in several))
    # A culture whose every run failed may be tested nowhere: no pair, so no number.
    nothing = CulturePairs(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        {layer: np.empty(0, np.bool_) for layer in next(iter(tested.values())).masks},
        None if together.ref_margin is None else np.empty(0, np.bool_),
    )
    tested |= {name: nothing for name in cultures if name not in tested}
    return SweepOutcomes(cultures, begun, fold_rows, tested, evaluation.bootstrap_samples, runs)


def _check(
    trial: TrialRecord,
    run: ComparedRun,
    firsts: dict[int | None, tuple[TrialRecord, ComparedRun]],
) -> None:
    owner, first = firsts.get(trial.fold, (trial, run))
    # Of another fold only the way of testing can be compared: its pairs are others.
    other, elsewhere = next(iter(firsts.values()), (trial, run))
    for rival, check, known in (
        (owner, check_comparable, first),
        (other, check_same_evaluation, elsewhere),
    ):
        try:
            check(run, known)
        except ValueError as error:
            both = " and ".join(dict.fromkeys([rival.trial_id, trial.trial_id]))
            raise ValueError(f"{both}: {error}") from None


def _finished(trial: TrialRecord, run: ComparedRun) -> FinishedRun:
    outcomes = right(run.outcomes.margin)
    if run.result.method == "global":
        return FinishedRun(trial, outcomes, 0.0, 0)
    selections = run.result.selection.values()
    available = sum(selection.num_pairs for selection in selections)
    if not available:
        raise ValueError(f"{trial.trial_id} says nothing of its selection")
    kept_share = sum(selection.num_selected for selection in selections) / available
    return FinishedRun(trial, outcomes, kept_share, trial.num_pairs)


def _together(firsts: Sequence[tuple[TrialRecord, ComparedRun]]) -> PairOutcomes:
    """The test pairs of all folds, one after the other. Raises: ValueError if two share one."""
    owners: dict[tuple[str, str], TrialRecord] = {}
    for trial, run in firsts:
        for pair in zip(run.outcomes.culture, run.outcomes.pair_id, strict=True):
            owner = owners.setdefault(pair, trial)
            if owner.fold != trial.fold:
                raise ValueError(
                    f"{owner.trial_id} and {trial.trial_id}: folds {owner.fold} and "
                    f"{trial.fold} both test the pair {pair[1]!r} of {pair[0]}"
                )
    columns = [run.outcomes for _, run in firsts]
    margins = [c.ref_margin for c in columns if c.ref_margin is not None]
    return replace(
        columns[0],
        culture=np.concatenate([c.culture for c in columns]),
        pair_id=np.concatenate([c.pair_id for c in columns]),
        cluster=np.concatenate([c.cluster for c in columns]),
        ref_margin=np.concatenate(margins) if margins else None,
        margin=np.concatenate([c.margin for c in columns]),
        pair_hash=None,  # Each fold has been checked, and this is compared with nothing.
    )
