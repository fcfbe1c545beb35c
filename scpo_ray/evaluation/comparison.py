"""Methods side by side on the same test pairs: seeds averaged, differences paired, Holm applied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scpo_ray.evaluation.comparable import (
    ComparedRun,
    CulturePairs,
    check_comparable,
    culture_pairs,
    evaluation_settings,
    right,
)
from scpo_ray.evaluation.metrics import margin_scale, noise_outcomes
from scpo_ray.records import Layer
from scpo_ray.results import ComparisonResult, Difference, Estimate, MethodSummary
from scpo_ray.settings.evaluation import EvaluationConfig
from scpo_ray.settings.methods import method_order
from scpo_ray.statistics.cluster_variance import macro_seed_variance
from scpo_ray.statistics.intervals import (
    macro_difference,
    macro_mean,
    paired_difference,
    stream,
    with_holm,
)
from scpo_ray.statistics.joint_scores import Seeds, measured

MACRO = ""
"""The culture of the rows that hold the macro mean."""


def compare_runs(
    runs: Sequence[ComparedRun], experiment: str, failures: Mapping[str, str]
) -> ComparisonResult:
    """Each method on each culture's own test pairs, seeds averaged, and its macro mean.

    A pair's outcome is the share of a method's seeds that rank it right, over the seeds that
    finished; estimates and paired differences are taken of these. Their intervals and p-values
    count the seeds as a layer of chance beside the users (`other_cultures` averages them first:
    there one seed's model serves several cultures). A method with one model for all cultures is one
    training in the macro rows. The differences against
    "global" are against the global model's margins that every run carries. Holm's correction runs
    over the cultures, for each method, layer and rival; the macro difference is a single test.
    Where a method has no run for a culture there is no summary of the two, and the method's macro
    values are None: a mean over fewer cultures would be read against the others' as if alike.

    The macro rows say how far each method is behind the best on `all`, with intervals that hold
    for all methods at once, as a sweep's settings are measured (without p-values).

    `other_cultures` is the macro mean over the cultures the model was not trained for; in the
    macro row, over all tested cultures, of what the models trained for another one reach there.

    Args:
        runs: in any order; two cannot share method, culture and seed. All are tested on the same
            pairs, in the same order, with the same evaluation settings.
        failures: run name -> what went wrong; carried along.

    Returns: methods in the order of `methods.method_names`, cultures as `runs` first names them;
        of each method the macro row, then its cultures. Chance is seeded by the smallest seed.
    Raises: ValueError naming the two runs that cannot be compared, or the run whose trained
        culture is not among those it was tested on.
    """
    if not runs:
        return ComparisonResult(experiment, [], [], [], [], dict(failures), [])
    runs_of = _runs_of_cells(runs)
    seeds = sorted({run.result.seed for run in runs})
    methods = sorted({method for method, _ in runs_of}, key=method_order)
    cultures = list(dict.fromkeys(run.culture for run in runs))
    grid = _Grid(
        runs_of,
        cultures,
        culture_pairs(runs[0].outcomes, evaluation_settings(runs[0])),
        evaluation_settings(runs[0]),
        seeds[0],
    )
    return ComparisonResult(
        experiment=experiment,
        methods=methods,
        cultures=cultures,
        seeds=seeds,
        run_ids=list(dict.fromkeys(run.result.run_id for run in runs)),
        failures=dict(failures),
        summaries=[
            row
            for method, behind in _behind_best(methods, grid).items()
            for row in _summaries(method, behind, grid)
        ],
    )


def _runs_of_cells(runs: Sequence[ComparedRun]) -> dict[tuple[str, str], list[ComparedRun]]:
    """Method and culture -> its runs, one a seed."""
    runs_of: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in runs:
        check_comparable(run, runs[0])
        same_cell = runs_of.setdefault((run.result.method, run.culture), [])
        if any(other.result.seed == run.result.seed for other in same_cell):
            raise ValueError(f"two runs are {run.name}")
        same_cell.append(run)
    return runs_of


def is_one_training(cells: Mapping[tuple[str, str], Sequence[ComparedRun]], method: str) -> bool:
    """Whether the same runs stand in all of a method's cells (method, culture): one model for all
    cultures, whose seeds move all of them at once."""
    found = [
        {run.result.run_id for run in runs} for cell, runs in cells.items() if cell[0] == method
    ]
    return len(found) > 1 and all(run_ids == found[0] for run_ids in found)


@dataclass(frozen=True)
class _Grid:
    """All that the summaries are made from: runs by (method, trained culture), and their pairs."""

    runs: dict[tuple[str, str], list[ComparedRun]]
    cultures: list[str]
    tested: dict[str, CulturePairs]
    settings: EvaluationConfig
    seed: int

    def reached(self, method: str, trained: str, tested: str) -> NDArray[np.bool_]:
        """(P_c, K) whether each of K seeds' models, trained for one culture, ranks a pair of
        another right. Looked up anew each time: all of them at once are gigabytes."""
        rows = self.tested[tested].rows
        runs = self.runs[method, trained]
        return np.stack([right(run.outcomes.margin[rows]) for run in runs], axis=1)

    @cached_property
    def on_own(self) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """(method, culture) -> its models' outcomes on the culture that they were trained for."""
        return {(m, culture): self.reached(m, culture, culture) for m, culture in self.runs}

    @property
    def layers(self) -> list[Layer]:
        return list(next(iter(self.tested.values())).masks)

    def own(self, method: str, culture: str, layer: Layer) -> NDArray[Any]:
        """(B, K) the method's outcomes on the culture it was trained for; empty without a run."""
        if (method, culture) not in self.runs:
            return np.empty(0)
        return self.on_own[method, culture][self.tested[culture].masks[layer]]

    def clusters(self, method: str, culture: str, layer: Layer) -> NDArray[np.int64]:
        """The clusters of `own`."""
        if (method, culture) not in self.runs:
            return np.empty(0, dtype=np.int64)
        tested = self.tested[culture]
        return tested.clusters[tested.masks[layer]]

    def noise(self, method: str, culture: str, layer: Layer) -> NDArray[np.float64]:
        """(B, K) what noise as large as each seed's change would do on the pairs of `own`."""
        tested = self.tested[culture]
        columns = []
        for run in self.runs.get((method, culture), ()):
            ref_margins = run.outcomes.ref_margin
            if ref_margins is None:
                return np.empty(0)
            margins = run.outcomes.margin[tested.rows]
            columns.append(noise_outcomes(ref_margins[tested.rows], margins)[tested.masks[layer]])
        return np.stack(columns, axis=1) if columns else np.empty(0)

    def rival(self, method: str, rival: str, culture: str, layer: Layer) -> NDArray[Any] | None:
        """What a method is set against on the pairs of `own`: the global model, "noise", or a
        method; None where there is none."""
        tested = self.tested[culture]
        if rival == "noise":
            known = tested.ref_outcomes is not None and method != "global"
            return self.noise(method, culture, layer) if known else None
        if rival != "global":
            return self.own(rival, culture, layer) if (rival, culture) in self.runs else None
        return None if tested.ref_outcomes is None else tested.ref_outcomes[tested.masks[layer]]

    def stream(self, *names: str) -> np.random.Generator:
        return stream(self.seed, "comparison", *names)


def _behind_best(methods: Sequence[str], grid: _Grid) -> dict[str, Difference | None]:
    """How far each method's macro mean on `all` is behind the best, as settings are in a sweep."""
    clusters = [grid.tested[culture].clusters for culture in grid.cultures]
    outcomes, seeds = [], []
    for culture, labels in zip(grid.cultures, clusters, strict=True):
        columns = np.full((len(labels), len(methods)), np.nan)
        of_methods: list[Seeds] = []
        for column, method in enumerate(methods):
            of_methods.append({})
            if (method, culture) in grid.runs:
                own = grid.own(method, culture, "all")
                columns[:, column] = own.mean(axis=1)
                # By the runs: one that stands in several cultures' cells is one training.
                training = " ".join(run.result.run_id for run in grid.runs[method, culture])
                of_methods[column] = {training: macro_seed_variance([own], [labels])}
        outcomes.append(columns)
        seeds.append(of_methods)
    behind = measured(outcomes, clusters, seeds).behind_best(
        "max", samples=grid.settings.bootstrap_samples, rng=grid.stream("best")
    )
    return dict(zip(methods, behind, strict=True))


def _summaries(method: str, behind: Difference | None, grid: _Grid) -> list[MethodSummary]:
    minus_global = _differences(method, "global", grid)
    minus_finetune = _differences(method, "finetune", grid)
    minus_noise = _differences(method, "noise", grid)
    kept_shares = {
        culture: float(np.mean([_kept_share(run) for run in grid.runs[method, culture]]))
        for culture in grid.cultures
        if (method, culture) in grid.runs
    }
    summaries = []
    macro_share = float(np.mean(list(kept_shares.values())))
    for culture, kept_share in ((MACRO, macro_share), *kept_shares.items()):
        others, others_minus_global = _other_cultures(method, culture, grid)
        summary = MethodSummary(
            method=method,
            culture=culture,
            accuracy=_accuracies(method, culture, grid, grid.own),
            minus_global=minus_global.get(culture, {}),
            minus_finetune=minus_finetune.get(culture, {}),
            seed_sd={layer: _seed_sd(method, culture, layer, grid) for layer in grid.layers},
            kept_share=kept_share,
            other_cultures=others,
            noise=_accuracies(method, culture, grid, grid.noise) if minus_noise else {},
            minus_noise=minus_noise.get(culture, {}),
            others_minus_global=others_minus_global,
            minus_best=behind if culture == MACRO else None,
            scale=_scale(method, culture, grid),
        )
        summaries.append(summary)
    return summaries


def _kept_share(run: ComparedRun) -> float:
    if run.result.method == "global":
        return 0.0
    if run.culture not in run.result.selection:
        raise ValueError(f"{run.name} says nothing of the selection of {run.culture!r}")
    return run.result.selection[run.culture].kept_share


def _accuracies(
    method: str,
    culture: str,
    grid: _Grid,
    outcomes: Callable[[str, str, Layer], NDArray[Any]],
) -> dict[str, Estimate]:
    cultures = grid.cultures if culture == MACRO else [culture]
    return {
        layer: macro_mean(
            [outcomes(method, c, layer) for c in cultures],
            [grid.clusters(method, c, layer) for c in cultures],
            one_training=is_one_training(grid.runs, method),
        )
        for layer in grid.layers
    }


def _differences(method: str, rival: str, grid: _Grid) -> dict[str, dict[str, Difference]]:
    """Culture (and macro) -> layer -> the method minus `rival`; empty where one was not run, and
    for finetune against itself: its seeds would count as two independent sets."""
    if method == rival == "finetune":
        return {}
    cultures = [
        culture
        for culture in grid.cultures
        if (method, culture) in grid.runs and grid.rival(method, rival, culture, "all") is not None
    ]
    if not cultures:
        return {}
    differences: dict[str, dict[str, Difference]] = {c: {} for c in (MACRO, *cultures)}
    for layer in grid.layers:
        outcomes = {c: _paired(method, rival, c, layer, grid) for c in grid.cultures}
        per_culture = [paired_difference(*outcomes[culture]) for culture in cultures]
        for culture, difference in zip(cultures, with_holm(per_culture), strict=True):
            differences[culture][layer] = difference
        ours, theirs, clusters = zip(*outcomes.values(), strict=True)
        macro = macro_difference(
            ours,
            theirs,
            clusters,
            one_training=is_one_training(grid.runs, method),
            # The noise is as large as each seed's own change.
            rival_one_training=is_one_training(grid.runs, method if rival == "noise" else rival),
        )
        [differences[MACRO][layer]] = with_holm([macro])
    return differences


def _paired(
    method: str, rival: str, culture: str, layer: Layer, grid: _Grid
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Outcomes, the rival's and their clusters; all empty where either was not run."""
    ours, clusters = grid.own(method, culture, layer), grid.clusters(method, culture, layer)
    theirs = grid.rival(method, rival, culture, layer)
    if theirs is None or (method, culture) not in grid.runs:
        return np.empty(0), np.empty(0), np.empty(0, dtype=np.int64)
    return ours, theirs, clusters


def _scale(method: str, culture: str, grid: _Grid) -> float | None:
    """Mean over the seeds, and over the cultures of the macro row, of the scale of the margins."""
    if method == "global":
        return None
    found = []
    for trained in grid.cultures if culture == MACRO else [culture]:
        rows = grid.tested[trained].rows
        for run in grid.runs.get((method, trained), ()):
            ref_margins = run.outcomes.ref_margin
            if ref_margins is not None:
                found.append(margin_scale(ref_margins[rows], run.outcomes.margin[rows]))
    known = [scale for scale in found if scale is not None]
    return float(np.mean(known)) if known else None


def _seed_sd(method: str, culture: str, layer: Layer, grid: _Grid) -> float | None:
    """Over the seeds that finished in each culture of the row; None with fewer than two."""
    by_seed: list[dict[int, float]] = []
    for trained in grid.cultures if culture == MACRO else [culture]:
        tested = grid.tested[trained]
        rows = tested.rows[tested.masks[layer]]
        by_seed.append(
            {
                run.result.seed: float(right(run.outcomes.margin[rows]).mean())
                for run in grid.runs.get((method, trained), ())
                if len(rows)
            }
        )
    seeds = set(by_seed[0]).intersection(*by_seed)
    if len(seeds) < 2:
        return None
    means = [np.mean([accuracies[seed] for accuracies in by_seed]) for seed in sorted(seeds)]
    return float(np.std(means, ddof=1))


def _other_cultures(method: str, culture: str, grid: _Grid) -> tuple[Estimate, Difference | None]:
    """The method's accuracy on the others' pairs, and minus the global model's there."""
    models = grid.cultures if culture == MACRO else [culture]
    outcomes, ref_outcomes, clusters = [], [], []
    for name, tested in grid.tested.items():
        reached = [
            grid.reached(method, trained, name).mean(axis=1)
            for trained in models
            if trained != name and (method, trained) in grid.runs
        ]
        if reached:
            outcomes.append(np.mean(reached, axis=0))
            clusters.append(tested.clusters)
            ref_outcomes.append(tested.ref_outcomes)
    if any((method, trained) not in grid.runs for trained in models):
        outcomes, ref_outcomes, clusters = [], [], []
    estimate = macro_mean(outcomes, clusters)
    known = [column for column in ref_outcomes if column is not None]
    if not known or method == "global":
        return estimate, None
    return estimate, macro_difference(outcomes, known, clusters)
