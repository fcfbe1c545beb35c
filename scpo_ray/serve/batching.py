"""Requests gathered into batches: a bounded queue, and one thread that scores.

One thread, because a device computes one batch at a time anyway; bounded, because a queue that
grows answers nobody in time. The scoring core sorts a batch by length itself.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from scpo_ray.records import InputError
from scpo_ray.serve.items import Reward, RewardItem
from scpo_ray.settings.serve import ServeConfig

log = logging.getLogger(__name__)


class Scorer(Protocol):
    """What a batch is given to: the scoring core."""

    @property
    def cultures(self) -> tuple[str, ...]: ...

    def rewards(self, items: Sequence[RewardItem]) -> list[Reward]: ...


class BusyError(Exception):
    """More waits than may; `retry_after_s` is when it will have been scored, at today's pace."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"too many items wait: try again in {retry_after_s} s")


class StoppingError(Exception):
    """The server takes no more requests."""


@dataclass
class _Job:
    items: Sequence[RewardItem]
    answer: "Future[list[Reward]]" = field(default_factory=Future)


class Batcher:
    """Takes items from any thread; answers when its own thread has scored them.

    Args:
        on_batch: called with the number of items and the seconds of each batch that was scored.
    """

    def __init__(
        self, scorer: Scorer, config: ServeConfig, on_batch: Callable[[int, float], None]
    ) -> None:
        self._scorer = scorer
        self._config = config
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._scoring = 0
        self._expected = 1
        self._items_per_s = 0.0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that were taken and are not scored yet."""
        return self._waiting + self._scoring

    def replace(self, scorer: Scorer) -> None:
        """What is scored from the next batch on is scored by `scorer`."""
        self._scorer = scorer

    def submit(self, items: Sequence[RewardItem]) -> "Future[list[Reward]]":
        """A future of the items' rewards, in their order. Cancelled before its batch: not scored.

        It raises what the core raises for these items.

        Raises: BusyError if they do not fit beside what waits, StoppingError after `stop`.
        """
        job = _Job(items)
        with self._changed:
            if self._stopping:
                raise StoppingError("the server is stopping")
            # A request larger than the bound is taken where nothing else waits.
            if self.waiting and self.waiting + len(items) > self._config.max_waiting_items:
                raise BusyError(self._retry_after_s())
            self._jobs.append(job)
            self._waiting += len(items)
            self._changed.notify_all()
        return job.answer

    def stop(self) -> None:
        """Scores what was taken, then ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _retry_after_s(self) -> int:
        if self._items_per_s <= 0:
            return 1
        return min(max(1, math.ceil(self.waiting / self._items_per_s)), 60)

    def _work(self) -> None:
        while jobs := self._gathered():
            begun = time.perf_counter()
            self._score([job for job in jobs if job.answer.set_running_or_notify_cancel()])
            seconds = time.perf_counter() - begun
            count, self._scoring = self._scoring, 0
            self._items_per_s = count / max(seconds, 1e-6)
            self._on_batch(count, seconds)

    def _gathered(self) -> list[_Job]:
        """The jobs of the next batch, at least one; none once all is done."""
        with self._changed:
            while not self._jobs and not self._stopping:
                self._changed.wait()
            # Whoever was answered together comes back together, a moment apart; a lone caller has
            # nobody to wait for. A batch that found fewer is followed by one that expects fewer.
            end = time.monotonic() + self._config.gather_ms / 1_000
            while (
                len(self._jobs) < self._expected
                and self._waiting < self._config.batch_items
                and not self._stopping
            ):
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            jobs: list[_Job] = []
            while self._jobs and (
                not jobs or self._scoring + len(self._jobs[0].items) <= self._config.batch_items
            ):
                jobs.append(self._jobs.popleft())
                self._scoring += len(jobs[-1].items)
            self._waiting -= self._scoring
            self._expected = len(jobs)
            return jobs

    def _score(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            rewards = self._scorer.rewards([item for job in jobs for item in job.items])
        except Exception as error:  # The core raises whatever a model's code does.
            if len(jobs) > 1:
                # One request's fault must not be another's error.
                for job in jobs:
                    self._score([job])
                return
            if not isinstance(error, InputError):
                log.exception("a batch of %d items failed", len(jobs[0].items))
            jobs[0].answer.set_exception(error)
            return
        begin = 0
        for job in jobs:
            found = rewards[begin : begin + len(job.items)]
            begin += len(job.items)
            job.answer.set_result(found)
