"""Builders of small results for tests: plausible numbers, the same on every call."""

import zlib
from collections.abc import Sequence

import numpy as np

from scpo_ray.records import LAYERS, CultureCounts
from scpo_ray.results import (
    RESULT_FORMAT,
    ComparisonResult,
    CultureEvaluation,
    Difference,
    Estimate,
    ExamplePair,
    MethodSummary,
    RunResult,
    SelectionSummary,
    TrainingCurve,
)

CULTURES = ("Chile", "Israel", "Mexico")
ACCURACY = {  # method -> accuracy on all, distinctive, agreed
    "global": (0.586, 0.0, 1.0),
    "finetune": (0.621, 0.274, 0.866),
    "filter": (0.469, 0.630, 0.355),
    "weight": (0.611, 0.182, 0.914),
    "inverse": (0.566, 0.467, 0.636),
    "scpo": (0.627, 0.406, 0.783),
}
CONTROLS = {
    "random": (0.5, 0.5, 0.5),
    "longer": (0.55, 0.41, 0.65),
    "global_noise": (0.57, 0.11, 0.89),
}


def estimate(value: float | None, num_pairs: int = 140, num_clusters: int = 9) -> Estimate:
    if value is None:
        return Estimate(None, None, None, 0, 0)
    low, high = max(value - 0.06, 0.0), min(value + 0.06, 1.0)
    return Estimate(value, low, high, num_pairs, num_clusters)


def difference(value: float | None, half_width: float = 0.03, p: float = 0.04) -> Difference:
    if value is None:
        return Difference(None, None, None, None, None, 0, 0)
    low, high = value - half_width, value + half_width
    return Difference(value, low, high, p, min(1.0, 3 * p), 140, 9, 1.4 * half_width)


def counts() -> CultureCounts:
    return CultureCounts(
        users=61,
        train_users=44,
        dev_users=8,
        test_users=9,
        interactions=700,
        responses=2_510,
        train_pairs=2_204,
        dev_pairs=372,
        test_pairs=391,
        ties=118,
        equal_texts=4,
        longer_chosen_share=0.583,
        train_test_texts=2,
        format_differences={"brackets": 0.012},
        skipped={"empty response": 3},
    )


def evaluation(method: str, shift: float = 0.0) -> CultureEvaluation:
    before = dict(zip(LAYERS, ACCURACY["global"], strict=True))
    after = dict(zip(LAYERS, ACCURACY[method], strict=True))
    if method != "global":
        after = {layer: min(max(value + shift, 0.0), 1.0) for layer, value in after.items()}
    return CultureEvaluation(
        before={layer: estimate(before[layer]) for layer in LAYERS},
        after={layer: estimate(after[layer]) for layer in LAYERS},
        difference={layer: difference(after[layer] - before[layer]) for layer in LAYERS},
        controls={
            name: {layer: estimate(v) for layer, v in zip(LAYERS, values, strict=True)}
            for name, values in CONTROLS.items()
        },
        minus_noise={} if method == "global" else minus_noise(result_after=after),
    )


def minus_noise(result_after: dict[str, float]) -> dict[str, Difference]:
    noise = dict(zip(LAYERS, CONTROLS["global_noise"], strict=True))
    return {layer: difference(result_after[layer] - noise[layer]) for layer in LAYERS}


def selection(method: str) -> SelectionSummary:
    kept = 1_190 if method in ("filter", "scpo") else 2_204
    highest = 4.0 if method == "inverse" else 1.0
    lowest = 1.0 if method == "inverse" else 0.0
    bins = [0] * 9 + [kept]
    if method in ("weight", "scpo"):
        bins = [12, 20, 31, 44, 60, 71, 88, 102, 120, kept - 548]
    elif method == "inverse":
        bins = [kept - 400, 180, 90, 60, 30, 18, 10, 6, 4, 2]
    return SelectionSummary(
        num_pairs=2_204,
        num_selected=kept,
        kept_share=kept / 2_204,
        mean_weight=0.71 if method in ("weight", "scpo") else 1.0,
        histogram_edges=[float(e) for e in np.linspace(lowest, highest, 11)],
        histogram_counts=bins,
    )


def example(
    culture: str, kind: str, text: str = "Take the bus: it is half the price."
) -> ExamplePair:
    return ExamplePair(
        culture=culture,
        kind=kind,  # type: ignore[arg-type]
        pair_id=f"int12:{culture}:0>1",
        prompt="How do I get from the airport into town?",
        chosen=text,
        rejected="A taxi is the most comfortable way.",
        ref_margin=-0.42,
        win_probability=0.397,
        weight={"kept": 1.0, "dropped": 0.0, "down-weighted": 0.683}[kind],
    )


def run_result(
    method: str = "scpo",
    culture: str = "Chile",
    seed: int = 0,
    cultures: Sequence[str] = CULTURES,
    num_points: int = 40,
) -> RunResult:
    run_id = f"{zlib.crc32(f'{method} {culture} {seed}'.encode('utf-8', 'replace')):012x}"
    rng = np.random.default_rng(int(run_id, 16))
    steps = [] if method == "global" else [10 * i for i in range(num_points)]
    loss = 0.55 + 0.25 * np.exp(-np.array(steps) / 80) + 0.05 * rng.standard_normal(len(steps))
    tested = {
        name: evaluation(method, (0.0 if name == culture else -0.03) + 0.01 * rng.normal())
        for name in cultures
    }
    return RunResult(
        format=RESULT_FORMAT,
        run_id=run_id,
        evaluation_id=f"e-{run_id}",
        experiment="tastes",
        method=method,
        seed=seed,
        culture_weights={culture: 1.0},
        config={
            "experiment": "tastes",
            "method": method,
            "seed": seed,
            "culture_weights": {culture: 1.0},
            "data": {"source": "prism", "path": "prism", "cultures": list(cultures)},
            "model": {"path": "models/global", "max_length": 512},
            "train": {"max_steps": 400, "learning_rate": 1e-6},
        },
        fingerprints={"data": "d1f3a9c0", "model": "77b2e6aa", "scores": "0c9e41f2"},
        data={name: counts() for name in cultures},
        warnings=["Chile: chosen and rejected differ in brackets (+1.2 points)"],
        truncated_texts={name: 7 for name in cultures},
        selection={culture: selection(method)} if method != "global" else {},
        examples=[example(culture, kind) for kind in ("kept", "dropped", "down-weighted")],
        num_steps=len(steps) and 400,
        num_pairs_seen=len(steps) and 3_200,
        train_seconds=0.0 if method == "global" else 38.4,
        curve=TrainingCurve(
            step=steps,
            loss=[float(value) for value in loss],
            lr=[1e-6] * len(steps),
            grad_norm=[1.0] * len(steps),
        ),
        evaluation=tested,
        dev=tested,
        model_dir=f"runs/tastes/{run_id}/model",
        device="cpu",
        versions={"scpo_ray": "0.1.0", "torch": "2.13.0"},
    )


def summary(method: str, culture: str, *, with_finetune: bool, shift: float = 0.0) -> MethodSummary:
    result = evaluation(method, shift)
    behind = ACCURACY[method][0] - ACCURACY["scpo"][0]
    minus_finetune = {}
    if with_finetune:
        for layer, value in zip(LAYERS, ACCURACY["finetune"], strict=True):
            gap = (result.after[layer].value or 0.0) - value
            minus_finetune[layer] = difference(gap, p=0.4)
    return MethodSummary(
        method=method,
        culture=culture,
        accuracy=result.after,
        minus_global=result.difference,
        minus_finetune=minus_finetune,
        seed_sd=dict.fromkeys(LAYERS, 0.011),
        kept_share=0.54 if method in ("filter", "scpo") else 1.0,
        other_cultures=estimate(ACCURACY[method][0] - 0.03, 780, 50),
        noise={} if method == "global" else result.controls["global_noise"],
        minus_noise=result.minus_noise,
        others_minus_global=None if method == "global" else difference(-0.02),
        minus_best=None if culture or method == "scpo" else difference(behind),
    )


def comparison(
    methods: Sequence[str] = tuple(ACCURACY),
    cultures: Sequence[str] = CULTURES,
    seeds: Sequence[int] = (0, 1),
    failures: dict[str, str] | None = None,
    num_points: int = 40,
) -> tuple[list[RunResult], ComparisonResult]:
    """The runs of every method, culture and seed, and what their comparison says."""
    results = [
        run_result(method, culture, seed, cultures, num_points)
        for method in methods
        for culture in cultures
        for seed in seeds
    ]
    rng = np.random.default_rng(0)
    return results, ComparisonResult(
        experiment="tastes",
        methods=list(methods),
        cultures=list(cultures),
        seeds=list(seeds),
        run_ids=[result.run_id for result in results],
        failures=failures or {},
        summaries=[
            summary(
                method,
                culture,
                with_finetune="finetune" in methods,
                shift=0.02 * float(rng.standard_normal()) if culture else 0.0,
            )
            for method in methods
            for culture in ("", *cultures)
        ],
    )
