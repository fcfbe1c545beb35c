"""A builder of sweep tables for tests: plausible numbers, the same on every call."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from scpo_ray.records import LAYERS, HeldOut
from scpo_ray.results import RESULT_FORMAT, Estimate
from scpo_ray.sweep.records import (
    EfficiencyCurve,
    EfficiencyPoint,
    Setting,
    SettingSummary,
    SweepResult,
    TrialRecord,
)
from tests.results import CULTURES, difference

TAU, BETA = "selection.filter_threshold", "selection.weight_temperature"
GRID = {TAU: [0.5, 0.6, 0.7, 0.8, None], BETA: [0.5, 0.8, 1.1, 1.5, 2.0]}


def noise(*key: Any) -> float:
    """In [-1, 1], by the key alone."""
    digest = hashlib.sha256(repr(key).encode("utf-8", "replace")).digest()
    return 2 * int.from_bytes(digest[:4]) / 0xFFFFFFFF - 1


def one_line(values: Mapping[str, Any]) -> str:
    shown = [f"{name.rpartition('.')[2]}={value}" for name, value in values.items()]
    return " ".join(shown) or "as in run"


def close(value: float | None, half_width: float = 0.02) -> Estimate:
    if value is None:
        return Estimate(None, None, None, 0, 0)
    return Estimate(value, value - half_width, value + half_width, 840, 54)


def accuracy(values: Mapping[str, Any], culture: str) -> dict[str, float]:
    """Of a setting on a culture, by layer: a hill over tau and beta, a trade between layers."""
    tau = values.get(TAU, 0.7)
    tau = 1.0 if tau is None else tau
    hill = -0.35 * (tau - 0.7) ** 2 - 0.02 * math.log(values.get(BETA, 1.1) / 1.1) ** 2
    base = 0.62 + 0.05 * noise(culture) + hill + 0.006 * noise(*values.items(), culture)
    push = 1.0 - tau
    return {"all": base, "distinctive": 0.2 + 0.5 * push, "agreed": 0.95 - 0.35 * push**1.2 + hill}


def summary(
    number: int, values: dict[str, Any], cultures: Sequence[str], lost: Sequence[str] = ()
) -> SettingSummary:
    """What the runs of a setting reached; the runs of the `lost` cultures failed."""
    measured = {c: accuracy(values, c) for c in cultures if c not in lost}
    by_culture = {c: {n: close(v, 0.05) for n, v in m.items()} for c, m in measured.items()}
    macro = {}
    if not lost:
        macro = {n: sum(m[n] for m in measured.values()) / len(measured) for n in LAYERS}
        by_culture[""] = {n: close(v) for n, v in macro.items()}
    tau = values.get(TAU, 0.7)
    kept = 1.0 if tau is None else tau**2
    return SettingSummary(
        setting=Setting(number, values, one_line(values)),
        num_finished=2 * len(measured),
        num_failed=2 * len(lost),
        num_stopped=0,
        accuracy=by_culture,
        other_cultures=close(macro["all"] - 0.03) if macro else None,
        objective=close(macro["all"]) if macro else None,
        objective_per_culture={c: m["all"] for c, m in measured.items()},
        minus_best=None,
        minus_global=difference(macro["all"] - 0.586, 0.02) if macro else None,
        seed_sd=0.008,
        kept_share=kept,
        num_pairs=2_204 * kept,
    )


def ranked(summaries: Sequence[SettingSummary]) -> list[SettingSummary]:
    """Best first, each with its difference to the best; more than 0.8 points are behind it."""
    found = [(s.objective.value, s) for s in summaries if s.objective and s.objective.value]
    found.sort(key=lambda pair: -pair[0])
    rows = []
    for value, s in found:
        behind = value - found[0][0]
        minus = difference(behind, 0.008) if rows else None
        rows.append(replace(s, minus_best=minus))
    return [*rows, *(s for s in summaries if not s.objective)]


def trial(setting: int, culture: str, seed: int, error: str = "") -> TrialRecord:
    name = f"{setting} {culture} {seed}".encode("utf-8", "replace")
    trial_id = hashlib.sha256(name).hexdigest()[:12]
    return TrialRecord(
        trial_id=trial_id,
        run_id=f"run-{trial_id}",
        setting=setting,
        culture=culture,
        seed=seed,
        fold=None,
        state="failed" if error else "finished",
        reused=seed == 0 and setting == 0,
        objective=None if error else 0.6 + 0.05 * noise(setting, culture, seed),
        num_steps=212 if error else 400,
        num_pairs=1_190,
        train_seconds=38.4,
        path=f"runs/tastes/run-{trial_id}",
        mlflow_run_id="",
        error=error,
    )


def curve(
    name: str, low: float, high: float, rival: str, match: tuple[float, float, float] | None
) -> EfficiencyCurve:
    points = [
        EfficiencyPoint(f, f * (1_190 if match else 2_204), close(low + (high - low) * f**0.5))
        for f in (0.1, 0.2, 0.4, 0.7, 1.0)
    ]
    return EfficiencyCurve(name, points, rival, match, "better", False)


CURVES = [
    curve("scpo", 0.57, 0.635, "finetune", (0.36, 0.24, 0.58)),
    curve("finetune", 0.565, 0.621, "", None),
    curve("weight", 0.575, 0.615, "finetune", (math.inf, 0.9, math.inf)),
]


def sweep_result(
    axes: Mapping[str, Sequence[Any]] | None = None,
    cultures: Sequence[str] = CULTURES,
    seeds: Sequence[int] = (0, 1),
    points: Sequence[dict[str, Any]] | None = None,
    failures: Mapping[tuple[int, str], str] | None = None,
    efficiency: Sequence[EfficiencyCurve] = (),
    measured_on: HeldOut = "dev",
) -> SweepResult:
    """A sweep over every combination of `axes`, or over `points`.

    `failures`: (setting's number, culture) -> the error of its runs.
    """
    axes, failures = GRID if axes is None else axes, failures or {}
    if points is None:
        points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    lost = [[c for c in cultures if (i, c) in failures] for i in range(len(points))]
    settings = ranked([summary(i, v, cultures, lost[i]) for i, v in enumerate(points)])
    names = list(dict.fromkeys(name for values in points for name in values))
    finished = [s for s in settings if s.objective]
    return SweepResult(
        format=RESULT_FORMAT,
        name="thresholds",
        experiment="tastes",
        question="Which threshold and which temperature?\nFour hours on one GPU.",
        objective={"metric": "all", "culture": "macro", "mode": "max"},
        axes=["culture", *names],
        cultures=list(cultures),
        seeds=list(seeds),
        num_folds=None,
        measured_on=measured_on,
        settings=settings,
        trials=[
            trial(i, c, seed, failures.get((i, c), ""))
            for i in range(len(points))
            for c in cultures
            for seed in seeds
        ],
        importance={name: 0.62 / (i + 1) for i, name in enumerate(names)},
        pareto=[s.setting.number for s in finished if s.setting.values.get(BETA) == 1.1],
        best_trials={c: trial(settings[0].setting.number, c, 0).trial_id for c in cultures}
        if finished
        else {},
        chosen_honestly=close(0.619) if finished else None,
        chosen_minus_global=difference(0.033) if finished and measured_on == "dev" else None,
        efficiency=list(efficiency),
    )
