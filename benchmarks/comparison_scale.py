"""What it takes to compare many methods on many cultures, and to write the page about it.

`python benchmarks/comparison_scale.py [CULTURES METHODS SEEDS USERS]` makes that many stand-in
runs, each tested on every culture (USERS people of each, 30 pairs each), in memory; then compares
them as `scpo compare` does, and writes the page of up to 1,000 of them. Every number is drawn.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from scpo_ray.evaluation.comparable import (
    ComparedRun,
    PairOutcomes,
    for_comparison,
    pair_outcomes,
)
from scpo_ray.evaluation.comparison import compare_runs
from scpo_ray.records import LAYERS
from scpo_ray.report.page import write_report
from scpo_ray.results import (
    RESULT_FORMAT,
    ComparisonResult,
    CultureEvaluation,
    Difference,
    Estimate,
    RunResult,
    SelectionSummary,
    TrainingCurve,
)
from scpo_ray.settings.evaluation import EvaluationConfig

PAIRS_OF_A_USER = 30
EVALUATIONS: TypeAdapter[dict[str, CultureEvaluation]] = TypeAdapter(dict[str, CultureEvaluation])


def columns(num_cultures: int, users: int) -> dict[str, np.ndarray]:
    """What a run's `test_pairs.parquet` holds, but for the margins of the trained model."""
    rng = np.random.default_rng(0)
    per_culture = users * PAIRS_OF_A_USER
    culture = np.repeat([f"Country {c:03d}" for c in range(num_cultures)], per_culture)
    return {
        "culture": culture.astype(object),
        "pair_id": np.array([f"interaction-{i:07d}:0>1" for i in range(len(culture))], object),
        "cluster": np.repeat(np.arange(num_cultures * users), PAIRS_OF_A_USER),
        "pair_hash": np.arange(len(culture), dtype=np.uint64),
        "ref_margin": rng.standard_normal(len(culture)).astype(np.float32),
    }


def evaluation(known: dict[str, np.ndarray]) -> bytes:
    """What a result says of every culture, as JSON that is read anew for each run, as files are."""
    one, margin = Estimate(0.6, 0.5, 0.7, 300, 10), Difference(0.1, 0.0, 0.2, 0.1, 0.2, 300, 10)
    layers, changes = dict.fromkeys(LAYERS, one), dict.fromkeys(LAYERS, margin)
    controls = dict.fromkeys(("random", "longer", "global_noise"), layers)
    found = CultureEvaluation(layers, layers, changes, controls, changes, 1.0)
    return EVALUATIONS.dump_json({str(c): found for c in dict.fromkeys(known["culture"])})


def stand_in(method: str, culture: str, seed: int, run_id: str, of_cultures: bytes) -> RunResult:
    selection = SelectionSummary(1_000, 600, 0.6, 0.7, [0.0, 1.0], [600])
    return RunResult(
        format=RESULT_FORMAT,
        run_id=run_id,
        evaluation_id=run_id,
        experiment="scale",
        method=method,
        seed=seed,
        culture_weights={culture: 1.0},
        config={"evaluation": EvaluationConfig().model_dump(), "data": {}, "model": {}},
        fingerprints={},
        data={},
        warnings=[],
        truncated_texts={},
        selection={culture: selection},
        examples=[],
        num_steps=0,
        num_pairs_seen=0,
        train_seconds=0.0,
        curve=TrainingCurve(),
        evaluation=EVALUATIONS.validate_json(of_cultures),
        dev={},
        model_dir="",
        device="cpu",
        versions={},
    )


def stand_ins(
    known: dict[str, np.ndarray], methods: list[str], seeds: int
) -> Iterator[ComparedRun]:
    """Runs one after the other, each read as from its file: columns of its own."""
    rng, first, of_cultures = np.random.default_rng(1), None, evaluation(known)
    for culture in dict.fromkeys(known["culture"]):
        for number, method in enumerate(methods):
            for seed in range(seeds):
                shift = 0.3 * number / len(methods)
                noise = rng.standard_normal(len(known["ref_margin"])).astype(np.float32)
                own = {name: column.copy() for name, column in known.items()}
                own["margin"] = (0.5 * own["ref_margin"] + noise + shift).astype(np.float32)
                outcomes: PairOutcomes = pair_outcomes(own, first)
                first = first or outcomes
                run_id = f"{method}-{culture}-{seed}"
                result = stand_in(method, culture, seed, run_id, of_cultures)
                yield ComparedRun(for_comparison(result, is_shown=seed == 0), culture, outcomes)


def measured(what: str, work: Callable[[], object]) -> object:
    """Processor time, which other users of the machine do not stretch."""
    started = time.process_time()
    found = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
    print(f"| {what} | {time.process_time() - started:.1f} | {peak:,.0f} |", flush=True)
    return found


def main(num_cultures: int, num_methods: int, seeds: int, users: int) -> None:
    names = ["global", "finetune", "filter", "weight", "inverse", "scpo"]
    methods = names[:num_methods] + [f"rival{n}" for n in range(num_methods - len(names))]
    known = columns(num_cultures, users)
    print(
        f"{num_cultures} cultures x {num_methods} methods x {seeds} seeds, "
        f"{len(known['cluster']):,} test pairs in each of "
        f"{num_cultures * num_methods * seeds:,} runs\n\n"
        "| what | CPU seconds | peak MB |\n|---|---|---|"
    )
    runs = list(measured("runs", lambda: list(stand_ins(known, methods, seeds))))
    summary = measured("comparison", lambda: compare_runs(runs, "scale", {}))
    assert isinstance(summary, ComparisonResult)
    if len(runs) > 1_000:
        return
    results = [run.result for run in runs]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        measured("page", lambda: write_report(results, summary, page))
        print(f"\npage: {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:]) if len(sys.argv) == 5 else (100, 6, 1, 10)))
