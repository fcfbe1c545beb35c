from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.training.plan import Plan, plan_steps


@st.composite
def plans(draw, **fixed):
    """Plans over small data, their budget between tight and loose."""
    num_texts = draw(st.integers(2, 12))
    in_rows = fixed.get("in_rows", draw(st.booleans()))
    text = st.integers(0, num_texts - 1)
    pairs = draw(st.lists(st.tuples(text, text), min_size=1, max_size=20))
    lengths = draw(st.lists(st.integers(1, 50), min_size=num_texts, max_size=num_texts))
    workers = fixed.get("num_workers") or draw(st.sampled_from([1, 2, 3, 4]))
    plan = plan_steps(
        np.array(pairs, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        batch_size=workers + draw(st.integers(0, 12)),
        num_steps=draw(st.integers(1, 6)),
        micro_batch_tokens=draw(st.integers(100, 400)),
        num_workers=workers,
        seed=draw(st.integers(0, 5)),
        groups=draw(st.none() | st.just(np.arange(len(pairs)) // 3)),
    )
    return replace(plan, in_rows=in_rows)


def small_plan(num_pairs=6, **settings) -> Plan:
    """Pair p has the texts 2p and 2p + 1; text t has t + 1 tokens."""
    lengths = np.arange(1, 2 * num_pairs + 1)
    return plan_of(np.arange(2 * num_pairs).reshape(-1, 2), lengths, **settings)


def plan_of(pairs, lengths, **settings) -> Plan:
    return plan_steps(
        np.array(pairs),
        np.array(lengths),
        **{
            "batch_size": 4,
            "num_steps": 3,
            "micro_batch_tokens": 1_000,
            "num_workers": 1,
            "seed": 0,
            **settings,
        },
    )


def as_lists(step):
    return (
        step.number,
        step.rows.tolist(),
        [
            [(b.rows.tolist(), b.texts.tolist(), b.pairs.tolist()) for b in batches]
            for batches in step.by_rank
        ],
    )


def micro_batches(step):
    return [batch for batches in step.by_rank for batch in batches]


def test_steps_are_numbered_from_one_and_are_as_many_as_asked_for():
    steps = list(small_plan(num_steps=3).steps_from(0))

    assert [step.number for step in steps] == [1, 2, 3]
    assert [len(step.rows) for step in steps] == [4, 4, 4]


def test_every_pair_is_used_once_per_epoch_and_a_batch_may_span_two():
    # 6 pairs in batches of 4: three steps are two epochs.
    rows = np.concatenate([step.rows for step in small_plan(num_steps=3).steps_from(0)])

    assert sorted(rows[:6]) == list(range(6))
    assert sorted(rows[6:]) == list(range(6))
    assert rows[:6].tolist() != rows[6:].tolist()


@settings(max_examples=60)
@given(plans())
def test_no_pair_comes_twice_before_all_have_come(plan):
    rows = np.concatenate([step.rows for step in plan.steps_from(0)])

    for start in range(0, len(rows), len(plan.pairs)):
        epoch = rows[start : start + len(plan.pairs)]
        assert len(set(epoch)) == len(epoch)


@settings(max_examples=60)
@given(plans())
def test_the_workers_together_compute_each_pair_of_the_step_once(plan):
    for step in plan.steps_from(0):
        computed = np.concatenate([batch.rows for batch in micro_batches(step)])

        assert Counter(computed.tolist()) == Counter(step.rows.tolist())
        assert len(step.rows) == plan.batch_size


@settings(max_examples=60)
@given(plans())
def test_every_worker_has_as_many_micro_batches_and_idles_only_where_pairs_are_single(plan):
    for step in plan.steps_from(0):
        counts = {len(step.micro_batches(rank)) for rank in range(plan.num_workers)}

        assert len(step.by_rank) == plan.num_workers
        assert len(counts) == 1
        sizes = [len(batch.rows) for batch in micro_batches(step)]
        assert 0 not in sizes or max(sizes) == 1
        assert sizes.count(0) < plan.num_workers


@settings(max_examples=60)
@given(plans())
def test_a_micro_batch_holds_each_text_once_and_keeps_to_the_token_budget(plan):
    for step in plan.steps_from(0):
        for batch in micro_batches(step):
            assert len(set(batch.texts.tolist())) == len(batch.texts)
            if len(batch.rows):
                assert set(batch.texts.tolist()) == set(plan.pairs[batch.rows].ravel().tolist())
            lengths = plan.lengths[batch.texts]
            computed = lengths.sum() if plan.in_rows else len(lengths) * lengths.max()
            assert computed <= plan.micro_batch_tokens


@settings(max_examples=60)
@given(plans())
def test_a_micro_batchs_pairs_point_at_the_right_texts(plan):
    for step in plan.steps_from(0):
        for batch in micro_batches(step):
            np.testing.assert_array_equal(batch.texts[batch.pairs], plan.pairs[batch.rows])


@settings(max_examples=40)
@given(plans(num_workers=4), st.sampled_from([1, 2, 4]))
def test_what_is_in_a_step_does_not_depend_on_the_number_of_workers(plan, num_workers):
    other = plan_steps(
        plan.pairs,
        plan.lengths,
        batch_size=plan.batch_size,
        num_steps=plan.num_steps,
        micro_batch_tokens=plan.micro_batch_tokens,
        num_workers=num_workers,
        seed=plan.seed,
        groups=plan.groups,
    )

    for step, other_step in zip(plan.steps_from(0), other.steps_from(0), strict=True):
        assert step.rows.tolist() == other_step.rows.tolist()


@settings(max_examples=40)
@given(plans(), st.data())
def test_a_plan_taken_up_at_a_step_goes_on_as_if_never_left(plan, data):
    last_step = data.draw(st.integers(0, plan.num_steps), label="last step")

    tail = [as_lists(step) for step in plan.steps_from(last_step)]

    assert tail == [as_lists(step) for step in plan.steps_from(0)][last_step:]


@settings(max_examples=40)
@given(plans(in_rows=False))
def test_rows_change_how_a_step_is_divided_and_not_what_is_in_it(plan):
    in_rows = replace(plan, in_rows=True)

    for padded, packed in zip(plan.steps_from(0), in_rows.steps_from(0), strict=True):
        assert padded.rows.tolist() == packed.rows.tolist()
        assert len(packed.by_rank[0]) <= max(len(padded.by_rank[0]), 1)


def test_rows_of_one_step_are_of_near_equal_size_and_share_texts():
    # Two prompts of three texts each, all pairs of both: 6 texts of 10 tokens in two rows of 30.
    pairs = [[0, 1], [3, 4], [0, 2], [3, 5], [1, 2], [4, 5]]
    plan = plan_of(pairs, [10] * 6, batch_size=6, num_steps=1, micro_batch_tokens=40, num_workers=2)

    (step,) = replace(plan, in_rows=True).steps_from(0)

    assert [batch.texts.tolist() for batch in micro_batches(step)] == [[0, 1, 2], [3, 4, 5]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 3), st.booleans())
def test_the_order_of_an_epoch_is_that_of_the_drawn_places(codes, seed, in_groups):
    groups = np.array(codes) if in_groups else None
    settings = {"batch_size": len(codes), "num_steps": 2, "seed": seed, "groups": groups}
    plan = plan_of([[0, 1]] * len(codes), [5, 5], **settings)

    for epoch, step in enumerate(plan.steps_from(0)):
        drawn = np.random.default_rng((seed, epoch)).permutation(
            len(set(codes)) if in_groups else len(codes)
        )
        mine = np.unique(codes, return_inverse=True)[1] if in_groups else np.arange(len(codes))
        assert step.rows.tolist() == np.argsort(np.argsort(drawn)[mine], kind="stable").tolist()


def test_pairs_of_a_group_come_one_after_the_other_and_groups_in_a_drawn_order():
    groups = np.array([7, 3, 7, 5, 3, 7])
    plan = plan_of([[0, 1]] * 6, [5, 5], batch_size=6, num_steps=4, groups=groups)

    orders = [groups[step.rows].tolist() for step in plan.steps_from(0)]

    runs = [[code for at, code in enumerate(o) if at == 0 or o[at - 1] != code] for o in orders]
    assert all(sorted(run) == [3, 5, 7] for run in runs)
    assert len({tuple(run) for run in runs}) > 1


def test_the_seed_alone_decides_the_order():
    def rows(seed):
        return [step.rows.tolist() for step in small_plan(20, seed=seed).steps_from(0)]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


def test_a_batch_larger_than_the_data_uses_pairs_again_within_the_step():
    (step,) = small_plan(3, batch_size=7, num_steps=1).steps_from(0)

    assert Counter(Counter(step.rows.tolist()).values()) == {2: 2, 3: 1}


def test_near_equal_lengths_stand_together():
    # Budget for two pairs of the longest texts: 4 texts x 12 tokens.
    (step,) = small_plan(6, batch_size=6, num_steps=1, micro_batch_tokens=48).steps_from(0)

    widths = [[2 * row + 2 for row in batch.rows.tolist()] for batch in step.micro_batches(rank=0)]

    assert widths == [[12, 10], [8, 6, 4], [2]]


def test_few_long_texts_are_dealt_one_pair_to_each_worker():
    (step,) = small_plan(4, num_workers=4, num_steps=1).steps_from(0)

    assert [[b.rows.tolist() for b in batches] for batches in step.by_rank] == [
        [[3]],
        [[2]],
        [[1]],
        [[0]],
    ]


def test_a_worker_without_a_pair_passes_the_shortest_text_and_adds_nothing():
    # Four pairs, each alone within the budget, for three workers: two passes each.
    lengths = [8, 3, 8, 8, 8, 8, 8, 8]
    pairs = np.arange(8).reshape(-1, 2)
    plan = plan_of(pairs, lengths, num_steps=1, micro_batch_tokens=16, num_workers=3)
    (step,) = plan.steps_from(0)

    sizes = [[len(batch.rows) for batch in batches] for batches in step.by_rank]
    assert sizes == [[1, 1], [1, 0], [1, 0]]
    idle = step.micro_batches(2)[1]
    assert (idle.texts.tolist(), idle.pairs.shape) == ([1], (0, 2))


def test_shared_texts_are_computed_once():
    # One prompt's three responses in three pairs.
    pairs = [[0, 1], [0, 2], [1, 2]]
    plan = plan_of(pairs, [5, 5, 5], batch_size=3, num_steps=1, micro_batch_tokens=15)

    (step,) = plan.steps_from(0)

    (batch,) = step.micro_batches(rank=0)
    assert batch.texts.tolist() == [0, 1, 2]


def test_tokens_of_a_plan_are_those_of_its_steps_without_padding():
    # One epoch: texts of 1 to 12 tokens, each once.
    plan = small_plan(6, batch_size=6, num_steps=1)

    assert plan.num_tokens() == sum(range(1, 13))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_pairs": 0}, "there are no pairs to train on"),
        ({"num_workers": 5}, "batch_size 4 must not be below the 5 workers"),
        ({"micro_batch_tokens": 23}, "micro_batch_tokens 23 must hold the longest pair, 24 tokens"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small_plan(**settings)
