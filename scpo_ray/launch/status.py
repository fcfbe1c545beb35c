"""One line at the bottom of a terminal while many runs go on: done, to come, time left, running."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from scpo_ray.settings.shown import plain

_TICK_S = 0.5


def status_text(what: str, done: int, total: int, running: Sequence[str], left: str | None) -> str:
    """ "2 of 9 runs done, 6 to come, about 3 min left; running: scpo-Chile-s0".

    The names come last: what does not fit the terminal is cut off.

    Args:
        what: "runs", say.
        left: a time, as it is said; None where it is not known yet.
    """
    to_come = max(0, total - done - len(running))
    parts = [f"{done} of {total} {what} done", f"{to_come} to come"]
    parts += [f"{left} left"] if left else []
    return ", ".join(parts) + (f"; running: {', '.join(running)}" if running else "")


def time_left(took: Mapping[str, Sequence[float]], to_come: Mapping[str, int]) -> float | None:
    """Seconds, by the mean of each kind of run; None where one to come has no run before it.

    Args:
        took: kind -> seconds of the runs that have ended.
        to_come: kind -> number of the others.
    """
    if not all(took.get(kind) for kind in to_come):
        return None
    return sum(number * sum(took[kind]) / len(took[kind]) for kind, number in to_come.items())


@contextmanager
def status_line() -> Iterator[Callable[[str], object]]:
    """Gives a function that sets the line's text; the line goes when the context ends.

    Other lines scroll above it, and a run's own progress bar is drawn below. A second thread keeps
    its clock going. Where standard error is no terminal, nothing is drawn.
    """
    bar = tqdm(bar_format="{elapsed}  {desc}", disable=None, leave=False, dynamic_ncols=True)
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_S):
            bar.refresh()

    ticking = threading.Thread(target=tick, daemon=True)
    if not bar.disable:
        ticking.start()
    try:
        yield lambda text: bar.set_description_str(plain(text), refresh=False)
    finally:
        ended.set()
        if ticking.ident is not None:
            ticking.join()
        bar.close()
