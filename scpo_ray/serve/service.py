"""The models being served: loaded, given batches, and loaded anew when an alias has moved."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from scpo_ray.records import InputError
from scpo_ray.serve.batching import Batcher, Scorer
from scpo_ray.serve.items import Reward, RewardItem
from scpo_ray.serve.measures import Measures
from scpo_ray.settings.serve import ServeConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the models come from.

    Attributes:
        resolve: culture -> the model that its name means now, an alias as a version's number;
            several of one culture with commas between.
        load: the scoring core with these models. Raises: InputError.
    """

    resolve: Callable[[], Mapping[str, str]]
    load: Callable[[Mapping[str, str]], Scorer]


class Service:
    """Models in memory behind a batcher. Raises: InputError if they cannot be loaded."""

    def __init__(self, source: Source, config: ServeConfig, measures: Measures) -> None:
        self.config = config
        self.measures = measures
        self._source = source
        self._models = dict(source.resolve())
        scorer = source.load(self._models)
        self.cultures: tuple[str, ...] = tuple(scorer.cultures)
        self._batcher = Batcher(scorer, config, self._count_batch)
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._watch_models, name="watching", daemon=True)
        self._watch.start()

    @property
    def models(self) -> dict[str, str]:
        """Culture -> the model that scores it now."""
        return dict(self._models)

    @property
    def waiting(self) -> int:
        """Items that were taken and are not scored yet."""
        return self._batcher.waiting

    def submit(self, items: Sequence[RewardItem]) -> "Future[list[Reward]]":
        """As `Batcher.submit`."""
        answer = self._batcher.submit(items)
        self.measures.waiting.set(self._batcher.waiting)
        return answer

    def _count_batch(self, items: int, seconds: float) -> None:
        self.measures.batch_items.observe(items)
        self.measures.batch_seconds.observe(seconds)
        self.measures.waiting.set(self._batcher.waiting)

    def stop(self) -> None:
        """Scores what was taken and ends the threads."""
        self._stopped.set()
        self._batcher.stop()

    def reload_if_moved(self) -> bool:
        """Whether other models serve now. A failure keeps those there are, and is logged."""
        try:
            models = dict(self._source.resolve())
            if models == self._models:
                return False
            # The old ones answer until the new ones can: both are in memory for a moment.
            scorer = self._source.load(models)
        except InputError as error:
            log.warning("the models stay as they are: %s", error)
            self.measures.reloads.labels("failed").inc()
            return False
        moved = {c: f"{self._models[c]} -> {m}" for c, m in models.items() if self._models[c] != m}
        self._batcher.replace(scorer)
        self._models = models
        self.measures.reloads.labels("loaded").inc()
        log.info("models loaded anew", extra={"fields": {"models": moved}})
        return True

    def _watch_models(self) -> None:
        while not self._stopped.wait(self.config.watch_s):
            try:
                self.reload_if_moved()
            except Exception:  # Watching goes on: what serves now is whole.
                log.exception("looking for moved models failed")
