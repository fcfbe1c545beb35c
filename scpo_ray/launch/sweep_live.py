"""A sweep's page while it runs: written anew every half minute, with what is running."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scpo_ray.records import InputError
from scpo_ray.report.sweep_page import REFRESH_S, write_sweep_report
from scpo_ray.sweep.records import SweepResult

log = logging.getLogger(__name__)

REST = 20.0
"""Times as long as a page took, until the next: a sweep of thousands of trials gives its page
little of its time."""


class LivePage:
    """Called again and again with what is running; writes the page when it is time to.

    A page that cannot be written costs the sweep nothing: it is said once, and tried again.
    """

    def __init__(
        self,
        path: Path,
        summary: Callable[[], SweepResult],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: summary: the sweep's table of what has ended so far."""
        self._path = path
        self._summary = summary
        self._clock = clock
        self._next = clock() + REFRESH_S
        self._has_failed = False

    def step(self, running: Sequence[str]) -> None:
        """Args: running: the names of the trials that run now."""
        began = self._clock()
        if began < self._next:
            return
        try:
            write_sweep_report(self._summary(), self._path, running=running)
        except (InputError, OSError, ValueError) as error:
            log.log(
                logging.DEBUG if self._has_failed else logging.WARNING,
                "%s: the page of the running sweep is not written: %s",
                self._path,
                error,
            )
            self._has_failed = True
        took = self._clock() - began
        self._next = began + took + max(REFRESH_S, REST * took)
