"""Tokens computed for each real one where a network pads: `python benchmarks/padding.py`.

Steps of 8 pairs of PRISM's lengths, 400 pairs, micro-batches of 2,048 tokens: each padded to its
longest text, and in passes of near-equal lengths as training on a CPU has them.
"""

from training_speed import BATCH, drawn_data

from scpo_ray.models.reading import near_equal_runs
from scpo_ray.training.plan import plan_steps

STEPS = 50


def main() -> None:
    data = drawn_data(STEPS * BATCH, whole=False)
    plan = plan_steps(
        data.pairs,
        data.lengths,
        batch_size=BATCH,
        num_steps=STEPS,
        micro_batch_tokens=2_048,
        num_workers=1,
        seed=0,
    )
    passes = [data.lengths[b.texts] for step in plan.steps_from(0) for b in step.micro_batches(0)]
    by_length = [lengths[run] for lengths in passes for run in near_equal_runs(lengths)]
    real = sum(int(lengths.sum()) for lengths in passes)
    print("| padded | passes | tokens computed for a real one |\n|---|---|---|")
    for name, made in (("to a micro-batch's longest", passes), ("by length", by_length)):
        computed = sum(int(lengths.max()) * len(lengths) for lengths in made)
        print(f"| {name} | {len(made)} | {computed / real:.2f} |")


if __name__ == "__main__":
    main()
