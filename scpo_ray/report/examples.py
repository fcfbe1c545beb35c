"""Which training pairs a report shows as text."""

from collections.abc import Sequence

from scpo_ray.report.order import control_evaluations
from scpo_ray.results import ExamplePair, RunResult


def examples_of(results: Sequence[RunResult]) -> dict[str, list[ExamplePair]]:
    """Culture -> its pairs; each kind from the first run that has it, scpo's before others'."""
    source: dict[tuple[str, str], str] = {}
    found: dict[str, list[ExamplePair]] = {}
    for r in sorted(results, key=lambda r: r.method != "scpo"):
        for example in r.examples:
            if source.setdefault((example.culture, example.kind), r.run_id) == r.run_id:
                found.setdefault(example.culture, []).append(example)
    order = list(control_evaluations(results))
    known = [culture for culture in order if culture in found]
    return {culture: found[culture] for culture in dict.fromkeys([*known, *found])}
