"""Methods side by side on the same answer distributions: seeds averaged, differences paired."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparable import ComparedRun
from scpo_ray.evaluation.comparison import MACRO, is_one_training
from scpo_ray.evaluation.opinions import (
    BASES,
    OPTION_POLICIES,
    RIVALS,
    WITHOUT_MODEL,
    Base,
    Options,
    column_name,
)
from scpo_ray.results import Difference, Estimate, OpinionSummary
from scpo_ray.settings.methods import method_order
from scpo_ray.statistics.intervals import holm, macro_difference, macro_mean

Predictor = Literal["model", "model_fitted"]
PREDICTORS: tuple[Predictor, ...] = ("model", "model_fitted")
Column = tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[Any]]
"""(D, K) similarity of a method's K seeds, of its rival's where it has one, and (D,) questions."""


def compare_opinions(runs: Sequence[ComparedRun]) -> list[OpinionSummary]:
    """Each method on each country's own test distributions, and its macro mean.

    A distribution's similarity is the mean over a method's seeds, which count as a layer of
    chance beside the questions. As in `compare_runs`, a method without a run for a country has no
    summary there and no macro value.

    Args:
        runs: as for `compare_runs`; their `opinions` are of one data set, in one order.

    Returns: of each choice of options, base, temperature and method the macro row, then its
        countries; nothing where a run has no opinions.
    """
    if not runs or any(run.opinions is None for run in runs):
        return []
    comparison = _Comparison(runs)
    return [
        summary
        for policy in OPTION_POLICIES
        for base in BASES
        for predictor in PREDICTORS
        for method in comparison.methods
        for summary in comparison.summaries(policy, base, predictor, method)
    ]


class _Comparison:
    """The runs by method and country, and what all numbers share."""

    def __init__(self, runs: Sequence[ComparedRun]) -> None:
        self.by_cell: dict[tuple[str, str], list[ComparedRun]] = {}
        for run in runs:
            self.by_cell.setdefault((run.result.method, run.culture), []).append(run)
        self.methods = sorted({method for method, _ in self.by_cell}, key=method_order)
        self.cultures = list(dict.fromkeys(run.culture for run in runs))

    def summaries(
        self, policy: Options, base: Base, predictor: Predictor, method: str
    ) -> list[OpinionSummary]:
        ours = column_name(policy, base, predictor)
        theirs = column_name(policy, base, RIVALS[predictor])
        against_global = [
            self._column(method, ours, None if method == "global" else (method, theirs), culture)
            for culture in self.cultures
        ]
        rival = None if method in ("global", "finetune") else ("finetune", ours)
        against_finetune = [self._column(method, ours, rival, culture) for culture in self.cultures]
        without_model = self._without_model(policy, base, predictor, method)
        of_cultures = [
            OpinionSummary(
                method=method,
                culture=culture,
                options=policy,
                base=base,
                predictor=predictor,
                similarity=self._mean([column]),
                minus_global=self._difference([column]),
                minus_finetune=self._difference([other]),
                minus_constant=self._difference([constant]),
                minus_others=self._difference([others]),
            )
            for culture, column, other, constant, others in zip(
                self.cultures, against_global, against_finetune, *without_model, strict=True
            )
            if column is not None
        ]
        together = is_one_training(self.by_cell, method)
        macro = OpinionSummary(
            method=method,
            culture=MACRO,
            options=policy,
            base=base,
            predictor=predictor,
            similarity=self._mean(against_global, one_training=together),
            minus_global=self._difference(against_global, one_training=together),
            minus_finetune=self._difference(against_finetune, one_training=together),
            minus_constant=self._difference(without_model[0], one_training=together),
            minus_others=self._difference(without_model[1], one_training=together),
        )
        return [macro, *_with_holm(of_cultures)]

    def _without_model(
        self, policy: Options, base: Base, predictor: Predictor, method: str
    ) -> list[list[Column | None]]:
        """Beside the best constant, and beside the other countries; Nones but for the fitted."""
        if predictor != "model_fitted":
            return [[None] * len(self.cultures)] * len(WITHOUT_MODEL)
        ours = column_name(policy, base, predictor)
        return [
            [
                self._column(method, ours, (method, column_name(policy, base, rival)), culture)
                for culture in self.cultures
            ]
            for rival in WITHOUT_MODEL
        ]

    def _column(
        self, method: str, name: str, rival: tuple[str, str] | None, culture: str
    ) -> Column | None:
        """The method's numbers on the country's distributions; None where it has no run."""
        ours = self._over_seeds(method, name, culture)
        if ours is None:
            return None
        values, clusters = ours
        theirs = None if rival is None else self._over_seeds(*rival, culture)
        known = np.isfinite(values).all(axis=1)
        if theirs is None:
            return values[known], None, clusters[known]
        known &= np.isfinite(theirs[0]).all(axis=1)
        return values[known], theirs[0][known], clusters[known]

    def _over_seeds(
        self, method: str, name: str, culture: str
    ) -> tuple[NDArray[np.float64], NDArray[Any]] | None:
        columns = [
            run.opinions
            for run in self.by_cell.get((method, culture), [])
            if run.opinions is not None and name in run.opinions
        ]
        if not columns:
            return None
        mine = columns[0]["culture"] == culture
        values = np.stack([column[name][mine] for column in columns], axis=1)
        return values, columns[0]["cluster"][mine]

    def _mean(self, columns: Sequence[Column | None], *, one_training: bool = False) -> Estimate:
        there = [column for column in columns if column is not None]
        if len(there) < len(columns):
            return Estimate(None, None, None, 0, 0)
        return macro_mean(
            [values for values, _, _ in there],
            [clusters for _, _, clusters in there],
            one_training=one_training,
        )

    def _difference(
        self, columns: Sequence[Column | None], *, one_training: bool = False
    ) -> Difference | None:
        paired = [
            (column[0], column[1], column[2])
            for column in columns
            if column is not None and column[1] is not None
        ]
        if not paired or len(paired) < len(columns):
            return None
        return macro_difference(
            [values for values, _, _ in paired],
            [theirs for _, theirs, _ in paired if theirs is not None],
            [clusters for _, _, clusters in paired],
            one_training=one_training,
        )


def _with_holm(summaries: Sequence[OpinionSummary]) -> list[OpinionSummary]:
    """Each rival's p-values corrected over the countries."""
    to_global = holm([s.minus_global.p_value if s.minus_global else None for s in summaries])
    to_finetune = holm([s.minus_finetune.p_value if s.minus_finetune else None for s in summaries])
    return [
        replace(
            s,
            minus_global=s.minus_global and replace(s.minus_global, p_holm=p),
            minus_finetune=s.minus_finetune and replace(s.minus_finetune, p_holm=q),
        )
        for s, p, q in zip(summaries, to_global, to_finetune, strict=True)
    ]
