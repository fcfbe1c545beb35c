import logging

from scpo_ray.launch.sweep_live import REST, LivePage
from scpo_ray.records import InputError
from scpo_ray.report.sweep_page import REFRESH_S
from tests.sweep_results import TAU, sweep_result


class Clock:
    """Stands still but for what a test adds; a summary takes `summary_s` of it."""

    def __init__(self, summary_s=1.0, error=None):
        self.now, self.summaries, self.summary_s, self.error = 0.0, 0, summary_s, error

    def __call__(self):
        return self.now

    def summary(self):
        self.summaries += 1
        self.now += self.summary_s
        if self.error:
            raise self.error
        return sweep_result({TAU: [0.7]})


def test_a_running_sweeps_page_says_what_is_running_and_loads_itself_anew(tmp_path):
    clock = Clock()
    live = LivePage(tmp_path / "report.html", clock.summary, clock=clock)

    live.step(["filter_threshold=0.7, Chile, seed 0"])
    assert not (tmp_path / "report.html").exists(), "half a minute has to pass"
    clock.now = REFRESH_S
    live.step(["filter_threshold=0.7, Chile, seed 0", "<b>"])

    page = (tmp_path / "report.html").read_text()
    assert "filter_threshold=0.7, Chile, seed 0" in page and "&lt;b&gt;" in page
    assert f'<meta http-equiv="refresh" content="{REFRESH_S}">' in page


def test_a_page_that_takes_long_is_written_less_often(tmp_path):
    clock = Clock(summary_s=10.0)
    live = LivePage(tmp_path / "report.html", clock.summary, clock=clock)
    clock.now = REFRESH_S
    live.step([])

    clock.now += 10 * REST - 1
    live.step([])
    assert clock.summaries == 1
    clock.now += 2
    live.step([])
    assert clock.summaries == 2


def test_a_page_that_cannot_be_made_stops_nothing_and_is_said_once(tmp_path, caplog):
    clock = Clock(error=InputError("damaged"))
    live = LivePage(tmp_path / "report.html", clock.summary, clock=clock)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += 2 * REFRESH_S
            live.step([])

    assert clock.summaries == 3
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records] == ["damaged"]
