"""Requests gathered into batches."""

import threading
import time

import pytest

from scpo_ray.serve.batching import Batcher, BusyError, StoppingError
from scpo_ray.serve.items import RewardItem
from scpo_ray.settings.serve import ServeConfig
from tests.serve.double import LetterRewards, worth


def item(response: str, culture: str = "Chile") -> RewardItem:
    return RewardItem(response, prompt="p", culture=culture)


@pytest.fixture
def scorer():
    return LetterRewards()


@pytest.fixture
def batcher(scorer):
    batchers = []

    def make(**settings):
        config = ServeConfig.model_validate(settings)
        batchers.append(Batcher(scorer, config, lambda items, seconds: None))
        return batchers[-1]

    yield make
    scorer.gate.set()
    for each in batchers:
        each.stop()


def test_requests_that_wait_together_are_one_batch_and_each_gets_its_own(batcher, scorer):
    waiting = batcher(gather_ms=200)
    scorer.gate.clear()
    first = waiting.submit([item("hold")])
    until(lambda: waiting.waiting == 1 and not first.done())
    time.sleep(0.3)  # The first is being scored by now: it is a batch of its own.
    asked = [[item(f"c{'c' * n}{m}") for m in range(n + 1)] for n in range(5)]
    futures = [waiting.submit(items) for items in asked]
    scorer.gate.set()

    for items, future in zip(asked, futures, strict=True):
        values = [reward.value for reward in future.result(10)]
        assert values == [pytest.approx(worth(f"p {i.response}", "Chile")) for i in items]
    assert scorer.batches == [1, 15]


def test_a_batch_waits_for_as_many_requests_as_the_one_before_had(batcher, scorer):
    waiting = batcher(gather_ms=1_000)
    waiting.submit([item("alone")]).result(10)
    scorer.gate.clear()
    held = waiting.submit([item("hold")])
    until(lambda: len(waiting._jobs) == 0)
    together = [waiting.submit([item("a")]) for _ in range(3)]
    scorer.gate.set()
    for future in (held, *together):
        future.result(10)

    again = [waiting.submit([item("b")]) for _ in range(3)]

    for future in again:
        future.result(10)
    assert scorer.batches == [1, 1, 3, 3]


def test_a_batch_holds_no_more_than_it_may_but_for_one_request(batcher, scorer):
    waiting = batcher(batch_items=4, gather_ms=0)
    scorer.gate.clear()
    futures = [waiting.submit([item("a")] * size) for size in (1, 3, 2, 9, 1)]
    scorer.gate.set()

    assert [len(future.result(10)) for future in futures] == [1, 3, 2, 9, 1]
    assert sum(scorer.batches) == 16
    assert max(scorer.batches) == 9


def test_a_full_queue_refuses_and_says_when_to_come_again(batcher, scorer):
    waiting = batcher(max_waiting_items=3, gather_ms=0)
    scorer.gate.clear()
    taken = [waiting.submit([item("a")]), waiting.submit([item("a")] * 2)]

    with pytest.raises(BusyError) as refused:
        waiting.submit([item("a")])

    assert 1 <= refused.value.retry_after_s <= 60
    scorer.gate.set()
    assert [len(future.result(10)) for future in taken] == [1, 2]
    until(lambda: waiting.waiting == 0)
    assert len(waiting.submit([item("a")]).result(10)) == 1


def test_one_requests_fault_is_not_anothers_error(batcher, scorer, caplog):
    waiting = batcher(gather_ms=0)
    scorer.gate.clear()
    waiting.submit([item("hold")])
    until(lambda: len(waiting._jobs) == 0)
    good, bad = waiting.submit([item("good")]), waiting.submit([item("bad")])
    scorer.gate.set()

    assert len(good.result(10)) == 1
    with pytest.raises(RuntimeError, match="a fault in the model's code"):
        bad.result(10)
    assert "a batch of 1 items failed" in caplog.text


def test_a_request_that_was_given_up_is_not_scored(batcher, scorer):
    waiting = batcher(gather_ms=0)
    scorer.gate.clear()
    first, second = waiting.submit([item("a")]), waiting.submit([item("b")] * 5)
    second.cancel()
    scorer.gate.set()

    first.result(10)
    until(lambda: waiting.waiting == 0)
    assert scorer.batches == [1]


def test_what_was_taken_is_scored_before_the_end(batcher, scorer):
    waiting = batcher(gather_ms=0)
    scorer.gate.clear()
    taken = [waiting.submit([item("a")]) for _ in range(3)]
    ending = threading.Thread(target=waiting.stop)
    ending.start()
    until(lambda: waiting._stopping)
    with pytest.raises(StoppingError):
        waiting.submit([item("late")])
    scorer.gate.set()
    ending.join(10)

    assert [len(future.result(0)) for future in taken] == [1, 1, 1]


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
