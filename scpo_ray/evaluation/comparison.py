"""Methods side by side on the same test pairs: seeds averaged, differences paired, Holm applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
from scpo_ray.statistics.intervals import stream, with_holm
from scpo_ray.statistics.joint_scores import Measured, Seeds, measured

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
    training in the macro rows. The differences against "global" are against the global model's
    margins that every run carries; where that method was not run, they stand in for its runs, for
    it is what a method would replace. Holm's correction runs over the cultures, for each method,
    layer and rival; the macro difference is a single test. Where a method has no run for a culture
    there is no summary of the two, and the method's macro values are None: a mean over fewer
    cultures would be read against the others' as if alike.

    Every row says how far the method is behind the best of its culture (or macro mean) on `all`,
    with intervals that hold for all methods at once, as a sweep's settings are measured (without
    p-values).

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
    runs = _with_global(runs)
    runs_of = _runs_of_cells(runs)
    seeds = sorted({run.result.seed for run in runs})
    methods = sorted({method for method, _ in runs_of}, key=method_order)
    cultures = list(dict.fromkeys(run.culture for run in runs))
    settings = evaluation_settings(runs[0])
    tested = culture_pairs(runs[0].outcomes, settings)
    grid = _Grid(runs_of, methods, cultures, tested, settings, seeds[0])
    behind = {c: _behind_best([c] if c else cultures, grid) for c in (MACRO, *cultures)}
    others = _other_cultures(grid)
    return ComparisonResult(
        experiment=experiment,
        methods=methods,
        cultures=cultures,
        seeds=seeds,
        run_ids=list(dict.fromkeys(run.result.run_id for run in runs)),
        failures=dict(failures),
        summaries=[
            row
            for method in methods
            for row in _summaries(method, {c: of[method] for c, of in behind.items()}, others, grid)
        ],
    )


def _with_global(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """And one of the global model for each culture, if none is there and the runs know it."""
    if any(run.result.method == "global" for run in runs):
        return list(runs)
    known: dict[str, ComparedRun] = {}
    for run in runs:
        margins = run.outcomes.ref_margin
        if run.culture not in known and margins is not None:
            result = replace(run.result, method="global")
            outcomes = replace(run.outcomes, margin=margins)
            known[run.culture] = replace(run, result=result, outcomes=outcomes)
    return [*runs, *known.values()]


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
class _Models:
    """All that stands side by side on one culture's test pairs: a column each.

    First the methods, then noise as large as the change of each, then the global model.

    Attributes:
        outcomes: (P_c, 2 M + 1) seeds averaged; NaN where there is no run or no global model.
        by_seed: method -> (P_c, K) of its K seeds.
        seeds: layer -> per column what other seeds would add to its mean.
    """

    outcomes: NDArray[np.float64]
    by_seed: dict[str, NDArray[np.bool_]]
    seeds: dict[Layer, list[Seeds]]


@dataclass(frozen=True)
class _Grid:
    """All that the summaries are made from: runs by (method, trained culture), and their pairs."""

    runs: dict[tuple[str, str], list[ComparedRun]]
    methods: list[str]
    cultures: list[str]
    tested: dict[str, CulturePairs]
    settings: EvaluationConfig
    seed: int

    @property
    def layers(self) -> list[Layer]:
        return list(next(iter(self.tested.values())).masks)

    def column(self, method: str) -> int:
        """Of `models`; the noise of the method is `len(methods)` places behind it."""
        return self.methods.index(method)

    def is_there(self, culture: str, column: int) -> bool:
        return not np.isnan(self.models[culture].outcomes[:, column]).any()

    def over(self, culture: str) -> list[str]:
        """What a row is the mean of."""
        return self.cultures if culture == MACRO else [culture]

    @cached_property
    def models(self) -> dict[str, _Models]:
        """Culture -> the models on it, each method's trained for it."""
        return {culture: self._models(culture) for culture in self.cultures}

    def _models(self, culture: str) -> _Models:
        tested, number = self.tested[culture], len(self.methods)
        outcomes = np.full((len(tested.rows), 2 * number + 1), np.nan)
        if tested.ref_outcomes is not None:
            outcomes[:, -1] = tested.ref_outcomes
        seeds: dict[Layer, list[Seeds]] = {
            layer: [{} for _ in range(2 * number + 1)] for layer in tested.masks
        }
        by_seed = {}
        for column, method in enumerate(self.methods):
            runs = self.runs.get((method, culture), [])
            if not runs:
                continue
            by_seed[method] = np.stack([right(r.outcomes.margin[tested.rows]) for r in runs], 1)
            columns: dict[int, NDArray[np.bool_] | NDArray[np.float64]] = {column: by_seed[method]}
            of_noise = [
                noise_outcomes(ref_margin[tested.rows], run.outcomes.margin[tested.rows])
                for run in runs
                if (ref_margin := run.outcomes.ref_margin) is not None
            ]
            if of_noise and method != "global":
                columns[number + column] = np.stack(of_noise, axis=1)
            # By the runs: one that stands in several cultures' cells is one training.
            training = " ".join(run.result.run_id for run in runs)
            for place, of_seeds in columns.items():
                outcomes[:, place] = of_seeds.mean(axis=1)
                for layer, mask in tested.masks.items():
                    variance = macro_seed_variance([of_seeds[mask]], [tested.clusters[mask]])
                    seeds[layer][place] = {training: variance}
        return _Models(outcomes, by_seed, seeds)

    @cached_property
    def rows(self) -> dict[tuple[str, Layer], Measured]:
        """Culture or macro mean, and layer -> the columns of `models`, measured at once: all
        differences between them are differences of what each cluster moves them by."""
        return {
            (row, layer): measured(
                [self.models[c].outcomes[self.tested[c].masks[layer]] for c in self.over(row)],
                [self.tested[c].clusters[self.tested[c].masks[layer]] for c in self.over(row)],
                [self.models[c].seeds[layer] for c in self.over(row)],
            )
            for row in (MACRO, *self.cultures)
            for layer in self.layers
        }

    def stream(self, *names: str) -> np.random.Generator:
        return stream(self.seed, "comparison", *names)


def _behind_best(cultures: Sequence[str], grid: _Grid) -> dict[str, Difference | None]:
    """How far each method's mean over `cultures` is behind the best on `all`, as settings are in a
    sweep."""
    number = len(grid.methods)
    # The macro mean's stream has no name beside its own: its numbers stay those of before.
    names = cultures if cultures != grid.cultures else []
    behind = measured(
        [grid.models[culture].outcomes[:, :number] for culture in cultures],
        [grid.tested[culture].clusters for culture in cultures],
        [grid.models[culture].seeds["all"][:number] for culture in cultures],
    ).behind_best("max", samples=grid.settings.bootstrap_samples, rng=grid.stream("best", *names))
    return dict(zip(grid.methods, behind, strict=True))


def _summaries(
    method: str,
    behind: Mapping[str, Difference | None],
    others: Mapping[tuple[str, str], tuple[Estimate, Difference | None]],
    grid: _Grid,
) -> list[MethodSummary]:
    minus_global = _differences(method, "global", grid)
    minus_finetune = _differences(method, "finetune", grid)
    minus_noise = _differences(method, "noise", grid)
    kept_shares = {
        culture: float(np.mean([_kept_share(run) for run in grid.runs[method, culture]]))
        for culture in grid.cultures
        if (method, culture) in grid.runs
    }
    column, number = grid.column(method), len(grid.methods)
    summaries = []
    macro_share = float(np.mean(list(kept_shares.values())))
    for culture, kept_share in ((MACRO, macro_share), *kept_shares.items()):
        noise = _accuracies(culture, number + column, grid) if minus_noise else {}
        reached, reached_minus_global = others[method, culture]
        summary = MethodSummary(
            method=method,
            culture=culture,
            accuracy=_accuracies(culture, column, grid),
            minus_global=minus_global.get(culture, {}),
            minus_finetune=minus_finetune.get(culture, {}),
            seed_sd={layer: _seed_sd(method, culture, layer, grid) for layer in grid.layers},
            kept_share=kept_share,
            other_cultures=reached,
            noise=noise,
            minus_noise=minus_noise.get(culture, {}),
            others_minus_global=reached_minus_global,
            minus_best=behind[culture],
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


def _accuracies(culture: str, column: int, grid: _Grid) -> dict[str, Estimate]:
    return {layer: grid.rows[culture, layer].estimate(column) for layer in grid.layers}


def _differences(method: str, rival: str, grid: _Grid) -> dict[str, dict[str, Difference]]:
    """Culture (and macro) -> layer -> the method minus `rival`: the global model, the method's
    "noise", or a method. Empty where one was not run, and for finetune against itself: its seeds
    would count as two independent sets."""
    if method == rival == "finetune" or rival not in ("global", "noise", *grid.methods):
        return {}
    place, number = grid.column(method), len(grid.methods)
    # What the runs carry of the global model, and not the method of that name.
    other = {"global": 2 * number, "noise": number + place}.get(rival)
    other = grid.column(rival) if other is None else other
    cultures = [c for c in grid.cultures if grid.is_there(c, place) and grid.is_there(c, other)]
    if not cultures:
        return {}
    differences: dict[str, dict[str, Difference]] = {c: {} for c in (MACRO, *cultures)}
    for layer in grid.layers:
        found = [grid.rows[c, layer].paired(place, other) for c in (MACRO, *cultures)]
        corrected = [*with_holm(found[:1]), *with_holm(found[1:])]
        for culture, difference in zip(differences, corrected, strict=True):
            differences[culture][layer] = difference
    return differences


def _scale(method: str, culture: str, grid: _Grid) -> float | None:
    """Mean over the seeds, and over the cultures of the macro row, of the scale of the margins."""
    if method == "global":
        return None
    found = []
    for trained in grid.over(culture):
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
    for trained in grid.over(culture):
        mask = grid.tested[trained].masks[layer]
        reached: dict[int, float] = {}
        if (method, trained) in grid.runs and mask.any():
            seeds = [run.result.seed for run in grid.runs[method, trained]]
            means = grid.models[trained].by_seed[method][mask].mean(axis=0)
            reached = dict(zip(seeds, means.tolist(), strict=True))
        by_seed.append(reached)
    seeds_of_all = set(by_seed[0]).intersection(*by_seed)
    if len(seeds_of_all) < 2:
        return None
    of_seeds = [np.mean([of[seed] for of in by_seed]) for seed in sorted(seeds_of_all)]
    return float(np.std(of_seeds, ddof=1))


def _other_cultures(grid: _Grid) -> dict[tuple[str, str], tuple[Estimate, Difference | None]]:
    """Method and culture (or macro) -> its models' accuracy on the others' pairs, and minus the
    global model's there."""
    found: dict[tuple[str, str], tuple[Estimate, Difference | None]] = {}
    number = len(grid.methods)
    # Over all models trained for another culture, a sum: one array in place of one a culture.
    sums = {name: np.zeros((len(of.rows), number)) for name, of in grid.tested.items()}
    counts = dict.fromkeys(grid.tested, 0)
    for culture in grid.cultures:
        reached = _reached(culture, grid)
        others = {n: reached[of.rows] for n, of in grid.tested.items() if n != culture}
        for name, outcomes in others.items():
            sums[name] += outcomes
            counts[name] += 1
        found |= _on_others(culture, others, grid)
    means = {name: sums[name] / counts[name] for name in grid.tested if counts[name]}
    return found | _on_others(MACRO, means, grid)


def _reached(trained: str, grid: _Grid) -> NDArray[np.float64]:
    """(P, M) how often each method's seeds, trained for one culture, rank any pair right."""
    num_pairs = sum(len(of.rows) for of in grid.tested.values())
    reached = np.full((num_pairs, len(grid.methods)), np.nan)
    for column, method in enumerate(grid.methods):
        runs = grid.runs.get((method, trained), [])
        if runs:
            reached[:, column] = sum(right(run.outcomes.margin).astype(np.int64) for run in runs)
            reached[:, column] /= len(runs)
    return reached


def _on_others(
    culture: str, outcomes: Mapping[str, NDArray[np.float64]], grid: _Grid
) -> dict[tuple[str, str], tuple[Estimate, Difference | None]]:
    """Args: outcomes: another culture -> (P_c, M) what the models reach there."""
    if not outcomes:
        nothing = Estimate(None, None, None, 0, 0)
        return {(method, culture): (nothing, None) for method in grid.methods}
    columns = []
    for name, reached in outcomes.items():
        ref_outcomes = grid.tested[name].ref_outcomes
        own = np.full(len(reached), np.nan) if ref_outcomes is None else ref_outcomes
        columns.append(np.column_stack([reached, own]))
    number = len(grid.methods)
    seeds: list[Seeds] = [{} for _ in range(number + 1)]
    models = measured(columns, [grid.tested[n].clusters for n in outcomes], [seeds] * len(columns))
    found = {}
    for place, method in enumerate(grid.methods):
        estimate, minus_global = models.estimate(place), models.paired(place, number)
        is_known = method != "global" and minus_global.value is not None
        found[method, culture] = (estimate, minus_global if is_known else None)
    return found
