"""Every table of the command line on terminals of several widths."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from scpo_ray.evaluation.champion import Contest, Judgement
from scpo_ray.methods.margins import look_at_margins
from scpo_ray.report import confidence, listings, tables
from scpo_ray.report.overviews import CultureScores, DataHealth, GlobalScores, PlannedRun, SweepCost
from scpo_ray.report.terminal import fitted
from scpo_ray.results import BestOfN, Estimate, OpinionScores, OpinionSummary
from scpo_ray.tracking.trackers import RegisteredModel
from tests.results import comparison, counts, difference, estimate, evaluation
from tests.sweep_results import CURVES, sweep_result

NAME = "Democratic People's Republic of Korea"
PREDICTORS = ("model", "model_fitted", "global", "global_fitted", "uniform", "other_countries")


def shown(table: Table, width: int) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, emoji=False, highlight=False)
    console.print(*fitted(table, width), sep="\n")
    return file.getvalue()


def opinion_scores() -> OpinionScores:
    found = {name: estimate(0.7) for name in PREDICTORS}
    change = {"model_fitted": difference(0.02)}
    fitted_at = {NAME: {"model_fitted": 0.5}}
    return OpinionScores("all", "e", {NAME: found}, found, found, {NAME: change}, change, fitted_at)


def all_tables() -> dict[str, Table]:
    """Each table that a command prints, with values as long as they come."""
    health = DataHealth(
        {NAME: counts()}, {NAME: 1_234}, 512, ["South: a lengthy warning " * 9], "", {NAME: 0.281}
    )
    margins = np.linspace(-0.02, 0.02, 9, dtype=np.float32)
    look = look_at_margins(margins, np.zeros_like(margins), threshold=0.7, temperature=1.1)
    of_culture = CultureScores(123_456, 0.586, -1.234, 0.5, look)
    scores = GlobalScores({NAME: of_culture}, 0.7, 1.1, 654_321, "")
    plan = PlannedRun(f"scpo-{NAME}-s0", 123_456, 61_728, 1_024, 12.5, 123_456_789, 86_400.0)
    cost = SweepCost("thresholds", 36, 1_080, 12, 12, 400_000.0, {"selection.filter_threshold": 4})
    model = RegisteredModel(
        f"scpo-{NAME}", 12, ["champion", "candidate"], "id", NAME, "scpo", None, "2026-01-01"
    )
    contests: list[Contest] = [
        Contest(side, 0.61, 0.62, difference(-0.012), True, "champion")
        for side in ("all", "agreed", "other cultures")
    ]
    judgement = Judgement(True, "", 0.01, contests, f"scpo-{NAME}:3", f"scpo-{NAME}:2", "")
    opinions = [
        OpinionSummary(
            method, "", "all", "e", "model_fitted", estimate(0.7), difference(0.02), None
        )
        for method in ("global", "scpo")
    ]
    sweep = sweep_result(efficiency=CURVES)
    built = [
        *listings.data_tables(health),
        *listings.score_tables(scores),
        tables.evaluation_table({NAME: evaluation("scpo")}),
        *tables.opinion_tables([opinion_scores()]),
        *tables.opinion_comparison_tables(opinions),
        tables.comparison_table(comparison()[1]),
        listings.plan_table([plan]),
        listings.sweep_cost_table(cost),
        tables.sweep_table(sweep),
        tables.efficiency_table(sweep),
        listings.model_table([model]),
        tables.judgement_table(judgement),
    ]
    return {str(table.title): table for table in built}


TABLES = all_tables()


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("title", TABLES)
def test_a_table_fits_the_terminal_and_breaks_no_number(title, width):
    table = TABLES[title]

    text = shown(table, width)

    assert max(map(cell_len, text.splitlines())) <= width
    numbers = {
        line
        for column in table.columns
        if column.justify == "right"
        for cell in column.cells
        for line in str(cell).splitlines()
    }
    assert {number for number in numbers if number not in text} == set()
    assert "…" not in text
    # The names' column takes a third of the line at most; what stands alone takes all of it.
    assert title != "warnings" or len(text.splitlines()) < 10


@pytest.mark.parametrize("title", TABLES)
def test_a_file_gets_each_table_in_one_piece(title):
    assert len(fitted(TABLES[title], 1_000)) == 1


def test_what_does_not_fit_follows_behind_the_names():
    table = Table(title="numbers", title_justify="left", box=box.SIMPLE)
    table.add_column("name")
    for place in range(3):
        table.add_column(f"column {place}", justify="right")
    table.add_row("North", *(f"0.{place}23456789" for place in range(3)))

    lines = [" ".join(line.split()) for line in shown(table, 40).splitlines()]

    assert [line for line in lines if line.strip(" ─")] == [
        "numbers",
        "name column 0 column 1",
        "North 0.023456789 0.123456789",
        "name column 2",
        "North 0.223456789",
    ]


@settings(deadline=None)
@given(
    cells=st.lists(
        st.lists(st.text("0123456789.[]-, ", min_size=1, max_size=20), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    width=st.integers(60, 140),
)
def test_no_cell_of_numbers_is_ever_broken(cells, width):
    table = Table()
    table.add_column("name")
    for place in range(6):
        table.add_column(f"some column {place}", justify="right")
    for number, row in enumerate(cells):
        table.add_row(f"row {number}", *row)

    text = shown(table, width)

    assert all(cell.strip() in text for row in cells for cell in row)


@pytest.mark.parametrize(
    ("scale", "said"),
    [(100, "31.4 [20.0, 40.0]"), (10, "3.14 [2.00, 4.00]"), (1, "0.314 [0.200, 0.400]")],
)
def test_regret_has_the_decimals_that_the_scores_scale_needs(scale, said):
    regret = {
        "model": Estimate(0.314 * scale, 0.2 * scale, 0.4 * scale, 9, 4),
        "random": Estimate(0.5 * scale, 0.3 * scale, 0.7 * scale, 9, 4),
    }
    picks = BestOfN(9, 2.0, regret, {}, None, None, {})

    assert said in shown(confidence.best_of_n_table({"South": picks}), 160)
