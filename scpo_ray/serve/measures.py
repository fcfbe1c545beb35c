"""What the server counts, for Prometheus."""

import os
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where several processes of one server keep their numbers; set before this module is loaded."""

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096)


class Measures:
    """Counters of one app; `text` is all processes' sum where they share a folder."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            "scpo_requests", "Requests answered.", ["route", "status"], **common
        )
        self.request_seconds = Histogram(
            "scpo_request_seconds", "From head to answer.", ["route"], buckets=_SECONDS, **common
        )
        self.items = Counter("scpo_items", "Items scored.", ["culture"], **common)
        self.batch_items = Histogram(
            "scpo_batch_items", "Items of a batch.", buckets=_ITEMS, **common
        )
        self.batch_seconds = Histogram(
            "scpo_batch_seconds", "Seconds a batch is scored.", buckets=_SECONDS, **common
        )
        self.waiting = Gauge(
            "scpo_waiting_items",
            "Items taken and not scored.",
            multiprocess_mode="livesum",
            **common,
        )
        self.reloads = Counter("scpo_reloads", "Models loaded anew.", ["outcome"], **common)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        if os.environ.get(SHARED_FOLDER):
            shared = CollectorRegistry()
            MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
            return generate_latest(shared)
        return generate_latest(self._registry)


def forget_process(pid: int) -> None:
    """A process that is gone has nothing waiting any more; what it counted stays."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
