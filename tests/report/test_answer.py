"""The answer's table: each number below its own heading, and what is unknown said so."""

import pytest

from scpo_ray.evaluation.recommendation import Candidate, recommend, recommendations
from scpo_ray.report.answer import answer_row, comparison_answer
from scpo_ray.report.answer_picture import Line, answer_figure
from scpo_ray.results import Difference
from tests.results import comparison, difference, estimate


@pytest.mark.parametrize(
    "methods",
    [("global", "scpo"), ("global", "finetune"), ("global", "finetune", "scpo"), ("scpo",)],
)
def test_the_costs_stand_below_their_headings_whatever_was_compared(methods):
    _, compared = comparison(methods=methods)
    whole = recommendations(compared)[0]

    table, _ = comparison_answer(compared, "users")

    headings = [name for name, _ in table.columns]
    cells = dict(zip(headings, table.rows[0].cells, strict=True))
    assert ("best over finetune" in headings) == ("finetune" in methods)
    if whole.best != "global":
        for heading, found in (
            ("costs agreed", whole.agreed),
            ("costs other cultures", whole.others),
        ):
            said = cells[heading].main.replace("\N{MINUS SIGN}", "-")
            assert float(said) == pytest.approx(100 * found.value, abs=0.06)


@pytest.mark.parametrize(
    ("known", "main", "lines"),
    [((), "unknown", ("global, weight",)), (("weight",), "weight", ("unknown: global",))],
)
def test_a_method_of_which_nothing_is_known_is_not_said_to_be_worse(known, main, lines):
    unknown = Difference(-0.01, None, None, None, None, 9, 1)
    others = [
        Candidate(name, estimate(0.6), difference(-0.01) if name in known else unknown)
        for name in ("global", "weight")
    ]
    found = recommend("Chile", [*others, Candidate("scpo", estimate(0.61), None)])

    row = answer_row("Chile", "", found, "users")

    assert (row.cells[4].main, row.cells[4].lines) == (main, lines)


@pytest.mark.parametrize(
    ("far", "half_width", "scale"),
    [(-0.8, 0.02, "symlog"), (-0.25, 0.2, "linear"), (-0.06, 0.02, "linear")],
)
def test_the_scale_bends_only_where_a_difference_dwarfs_the_others_intervals(
    far, half_width, scale
):
    lines = [
        Line("scpo", Difference(0.0, None, None, None, None, 9, 4)),
        *(Line(m, difference(v, half_width)) for m, v in (("weight", -0.004), ("filter", far))),
    ]

    [axes] = answer_figure({"Chile": lines}).axes

    assert axes.get_xscale() == scale
