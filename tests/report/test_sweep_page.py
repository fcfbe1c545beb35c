import json
import math
import re
import time
from dataclasses import replace

import pytest

from scpo_ray.records import InputError
from scpo_ray.report import sweep_pictures
from scpo_ray.report.sweep_looks import short_names, shown
from scpo_ray.report.sweep_page import (
    pairs_needed,
    write_sweep_pictures,
    write_sweep_report,
)
from scpo_ray.report.sweep_pictures import draw_sweep, heat_maps
from tests.report.browser import assert_shown_without_a_complaint
from tests.report.test_page import ODD_NAMES, Page, words
from tests.results import difference
from tests.sweep_results import BETA, CURVES, TAU, close, curve, noise, sweep_result

SECTIONS = (
    "ranking",
    "cultures",
    "importance",
    "landscape",
    "efficiency",
    "layers",
    "trials",
    "meaning",
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    result = sweep_result(failures={(3, "Mexico"): "out of memory"}, efficiency=CURVES)
    path = tmp_path_factory.mktemp("report") / "new" / "sweep.html"
    return write_sweep_report(result, path)


def drawn(result):
    return [picture.name for picture in draw_sweep(result)]


def random_search(length):
    points = [
        {
            "method": ("scpo", "filter", "weight")[i % 3],
            "train.learning_rate": 10 ** (-6 + 1.5 * noise(i)),
            BETA: 1.1 + 0.9 * noise(i, "beta"),
        }
        for i in range(length)
    ]
    return sweep_result(points=points)


def test_a_sweep_has_every_section_in_order_and_balanced_tags(swept):
    page = Page(swept)

    assert page.open == []
    assert [i for i in page.values("id") if i in SECTIONS] == list(SECTIONS)
    assert [path.name for path in swept.parent.iterdir()] == ["sweep.html"]


def test_the_page_is_self_contained_and_its_references_resolve(swept):
    page, text = Page(swept), swept.read_text()
    ids = page.values("id")

    references = page.values("src") + page.values("href") + page.values("xlink:href")
    assert references and all(r.startswith("#") or r == "data:," for r in references)
    assert {r[1:] for r in references if r.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert len(ids) == len(set(ids))
    assert "http" not in text and "@import" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "img", "object"}
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_lead_says_what_was_run_what_is_best_and_how_sure_that_is(swept):
    lead = re.sub("[\u2068\u2069]", "", words(swept)[:3000])

    assert lead.startswith("thresholds Which threshold and which temperature? Four hours")
    assert "150 trials (148 finished, 2 failed; 3 had ended before this sweep)" in lead
    assert "25 settings, 3 cultures, 2 seeds (0, 1); experiment tastes." in lead
    assert "Best is the highest objective: % of all dev pairs ranked right, macro mean" in lead
    assert "Best: filter_threshold=0.7 weight_temperature=1.1, with 64.3 % [62.3, 66.3]" in lead
    assert "+5.7 points [+3.7, +7.7] over the global model on all pairs" in lead
    assert re.search(
        r"Of the 23 other settings, \d+ are not distinguishable from it: filter_", lead
    )
    assert re.search(r"\d+ are behind it \(intervals that hold for all at once\)\.", lead)
    assert "it has 61.9 % [59.9, 63.9] of all test pairs ranked right, macro mean over" in lead
    assert "+3.3 points [+0.3, +6.3] over the global model on all pairs, macro mean" in lead
    assert "This is the number to report; all others on this page are from dev." in lead


def test_without_dev_users_the_lead_says_what_half_of_the_users_chose(tmp_path):
    page = write_sweep_report(sweep_result(measured_on="test"), tmp_path / "r.html")

    lead = re.sub("[\u2068\u2069]", "", words(page))
    assert "highest objective: % of all test pairs ranked right, macro mean" in lead
    assert "The best of 25 settings, chosen on the same pairs that measure it, looks better" in lead
    assert "measured on the other half, it has 61.9 % [59.9, 63.9] (840 pairs, 54 users" in lead
    assert "Nobody was held out for choices (data.split.dev_size 0)" in lead


def test_failures_stand_before_the_ranking_with_their_errors(swept):
    text = words(swept)

    assert "2 trials failed; in no number of this page" in text
    assert "Mexico" in text and text.index("seed 1 : out of memory") < text.index("Settings, best")
    assert "1 without an objective" in text


def test_numbers_stand_as_they_are_in_the_table(tmp_path):
    result = sweep_result({TAU: [0.5, 0.7]}, seeds=(0,))
    best, second = result.settings
    macro = dict(second.accuracy[""], distinctive=close(0.4321), agreed=close(0.7654))
    odd = replace(
        second,
        accuracy=second.accuracy | {"": macro},
        objective=close(0.12345),
        minus_best=difference(-0.0987, 0.01),
        seed_sd=None,
        num_pairs=4_321.4,
        num_failed=3,
    )

    page = write_sweep_report(replace(result, settings=[best, odd]), tmp_path / "r.html")

    row = words(page).split("2 setting 0, behind ", 1)[1][:260]
    assert row.startswith("0.5 12.3 [10.3, 14.3] −9.9 [−10.9, −8.9] ")
    assert "43.2 [41.2, 45.2] 76.5 [74.5, 78.5]" in row
    assert "4,321 25.0 % – 6 3 failed" in row


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"is_at_most": True}, "scpo needs at most 0.36 [0.24, 0.58] of the pairs"),
        ({"rival_learned": "unknown"}, "finetune is not shown to be better with all its users"),
        ({"rival_learned": "not distinguishable"}, "nothing was learned that needs pairs"),
    ],
)
def test_a_flat_curve_is_not_said_to_save_pairs(changed, said):
    [sentence] = pairs_needed([replace(CURVES[0], **changed)])

    assert said in re.sub("[\u2068\u2069]", "", sentence)


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ((0.61, 0.5, 0.8), "needs 0.61 [0.50, 0.80] of the pairs that finetune selects"),
        ((0.9, 0.7, math.inf), "needs 0.90 [0.70, never] of the pairs that finetune selects"),
        ((math.inf, 0.9, math.inf), "never reaches what finetune has at its largest fraction."),
    ],
)
def test_the_pairs_needed_are_said(tmp_path, match, said):
    curves = [curve("scpo", 0.57, 0.635, "finetune", match), CURVES[1]]

    page = write_sweep_report(sweep_result(efficiency=curves), tmp_path / "r.html")

    text = re.sub("[\u2068\u2069]", "", words(page))
    assert f"scpo {said}" in text and "finetune needs" not in text


def test_without_a_single_objective_there_is_a_page_and_no_ranking_picture(tmp_path):
    failures = {(i, c): "no room" for i in range(25) for c in ("Chile", "Israel", "Mexico")}
    result = sweep_result(failures=failures)

    text = words(write_sweep_report(result, tmp_path / "r.html"))

    assert drawn(result) == []
    assert "No setting has an objective" in text and "150 trials failed" in text
    assert "The other 130 are in sweep_result.json." in text
    assert "No culture has a number." in text
    assert write_sweep_pictures(result, tmp_path / "pictures") == []


def test_a_culture_that_failed_everywhere_leaves_the_others_to_see(tmp_path):
    result = sweep_result(failures={(i, "Mexico"): "no room" for i in range(25)})

    text = words(write_sweep_report(result, tmp_path / "r.html"))

    assert "No setting has an objective" in text and "lowest highest Chile Israel" in text
    assert [m.title for m in heat_maps(result)] == ["Chile", "Israel"]


def test_one_setting_is_not_chosen_among_several(tmp_path):
    result = sweep_result({TAU: [0.7]}, measured_on="test")

    text = words(write_sweep_report(result, tmp_path / "r.html"))

    assert "No other setting has an objective to compare with it." in text
    assert "It was not chosen among several" in text
    assert drawn(result) == ["ranking-01", "cultures-01", "layers-01", "layers-02"]


def test_a_sweep_that_has_not_begun_has_a_page(tmp_path):
    result = replace(sweep_result(points=[]), question="", importance={}, cultures=[], seeds=[])

    text = words(write_sweep_report(result, tmp_path / "r.html"))

    assert "0 trials (none run)" in text and "No setting was run." in text
    assert "No trial was asked for." in text


def test_missing_numbers_are_dashes_and_never_zeros(tmp_path):
    result = sweep_result()
    nothing = [
        replace(
            s,
            accuracy={c: dict.fromkeys(e, close(None)) for c, e in s.accuracy.items()},
            other_cultures=None,
            objective=close(None),
            objective_per_culture={},
            minus_best=difference(None),
            minus_global=None,
            seed_sd=None,
            kept_share=None,
            num_pairs=None,
        )
        for s in result.settings
    ]
    page = write_sweep_report(replace(result, settings=nothing), tmp_path / "r.html")

    assert "– setting 12 0.7 1.1 – – – – – – – – 6" in words(page)
    assert "No setting has an objective" in words(page)
    assert drawn(replace(result, settings=nothing)) == []


def test_odd_names_are_escaped_everywhere_and_usable(tmp_path):
    failures = {(0, ODD_NAMES[0]): "<i>\x07 <script>evil()</script>", (1, ODD_NAMES[2]): "?"}
    curves = [curve(ODD_NAMES[0], 0.5, 0.6, ODD_NAMES[2], (0.5, 0.4, 0.6))]
    curves.append(curve(ODD_NAMES[2], 0.5, 0.6, "", None))
    result = sweep_result(
        {name: [0.1, "<script>", "x" * 3_000, {"<b>": 0.3}] for name in (ODD_NAMES[0], "שלום.a")},
        cultures=ODD_NAMES,
        failures=failures,
        efficiency=curves,
    )
    result = replace(
        result,
        name="<script>alert(1)</script>",
        trials=[replace(t, error="") if t.error == "?" else t for t in result.trials],
        question="<script>why?</script> שלום \ud83d" + "y" * 1_000,
        objective=result.objective | {"culture": ODD_NAMES[0]},
    )

    path = write_sweep_report(result, tmp_path / "r.html")
    page = Page(path)

    assert page.open == [] and "script" not in {tag for tag, _ in page.tags}
    assert not set(path.read_text()) & {"\x00", "\x07"}
    assert "no reason known" in words(path)
    assert re.fullmatch(r"[\w\- ]+", " ".join(page.values("id")))
    assert path.stat().st_size < 3e6
    assert write_sweep_pictures(result, tmp_path / "pictures")


def test_two_thousand_settings_make_a_small_page_in_seconds(tmp_path):
    result = random_search(2_000)
    begin = time.perf_counter()

    path = write_sweep_report(result, tmp_path / "r.html")

    assert time.perf_counter() - begin < 20
    assert path.stat().st_size < 3e6
    text = words(path)
    assert "The other 1,900 settings are in sweep_result.json." in text
    assert "12,000 trials; the first 200, the others are in sweep_result.json" in text
    assert "The best 30 of 2,000 settings" in text
    assert "200 of 2,000 settings, evenly over the ranking." in text
    assert "The first 200 of 2,000 settings." in text


def test_a_heat_map_averages_over_the_other_axes_and_outlines_the_best():
    result = sweep_result({TAU: [None, 0.5], BETA: [1.1, 2.0], "model.lora.rank": [4, 8]})
    lost = result.settings[-1]
    kept = replace(result, settings=result.settings[:-1])

    macro, *cultures = heat_maps(kept)

    assert (macro.x, macro.y) == (TAU, BETA)
    assert macro.x_levels == [0.5, None] and macro.y_levels == [1.1, 2.0]
    assert [m.title for m in cultures] == ["Chile", "Israel", "Mexico"]
    values = [
        100 * s.objective.value
        for s in kept.settings
        if s.setting.values[TAU] == 0.5 and s.setting.values[BETA] == 1.1
    ]
    assert len(values) == 2 and macro.cells[0, 0] == (pytest.approx(sum(values) / 2), 2)
    assert sorted(number for _, number in macro.cells.values()) == [1, 2, 2, 2]
    assert lost.setting.values[TAU] is None
    figure = sweep_pictures.heat_figure(macro, short_names(result.axes), lowest_is_best=False)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum(text.endswith("*") for text in texts) == 1


@pytest.mark.parametrize(
    ("axes", "pair"),
    [
        ({TAU: [0.5, 0.7], BETA: [1.1, 2.0]}, (TAU, BETA)),
        ({"a": [1, 2], TAU: [0.5, 0.7], "b": [1, 2]}, (TAU, "a")),
        ({"a": [1, 2], "b": [True, False]}, ("a", "b")),
        ({"a": [1, 2], "b": ["x", "y"]}, None),
        ({"a": [1, 2], "b": [1]}, None),
        ({"a": [1, 2], "b": list(range(13))}, None),
    ],
)
def test_heat_maps_are_over_the_papers_axes_or_the_most_important_ordered_ones(axes, pair):
    maps = heat_maps(sweep_result(axes))

    assert [(m.x, m.y) for m in maps[:1]] == ([pair] if pair else [])


def test_eight_cultures_have_maps_beside_the_objective():
    names = [f"Culture {i}" for i in range(24)]

    maps = heat_maps(sweep_result(cultures=names))

    assert [m.title for m in maps[1:]] == names[:8]


def test_axes_with_many_numbers_are_scattered_on_a_log_scale_where_they_span_decades():
    result = random_search(30)

    figures = {p.title: p.figure for p in draw_sweep(result) if p.section == "scatter"}

    assert list(figures) == [
        "Objective against learning_rate",
        "Objective against weight_temperature",
    ]
    assert [f.axes[0].get_xscale() for f in figures.values()] == ["log", "linear"]


def test_shares_drawn_together_are_an_axis_each():
    points = [{"culture_weights": {"Chile": i / 9, "Mexico": 1 - i / 9}} for i in range(10)]

    titles = [p.title for p in draw_sweep(sweep_result(points=points)) if p.section == "scatter"]

    assert titles == [f"Objective against culture_weights: {c}" for c in ("Chile", "Mexico")]


def test_the_pareto_front_is_drawn_though_its_settings_rank_low():
    result = random_search(400)
    last = result.settings[-1].setting.number
    figure = draw_sweep(replace(result, pareto=[last]))[-1].figure

    front = figure.axes[0].lines[-1]
    assert len(front.get_xdata()) == 1
    placed = result.settings[-1].accuracy[""]["agreed"].value
    assert front.get_xdata()[0] == pytest.approx(100 * placed)


def test_a_rival_is_dashed_and_a_match_that_is_never_reached_has_no_diamond():
    figure = sweep_pictures.efficiency_figure(CURVES)

    lines = figure.axes[0].lines
    assert [line.get_linestyle() for line in lines if len(line.get_xdata()) == 5] == [
        "-",
        "--",
        "-",
    ]
    (diamond,) = [line for line in lines if line.get_marker() == "D"]
    assert diamond.get_xdata()[0] == pytest.approx(0.36 * 2_204)


def test_pictures_are_png_files_with_safe_names(tmp_path):
    result = sweep_result({TAU: [0.5, 0.7], BETA: [0.8, 1.1]}, efficiency=CURVES)

    paths = write_sweep_pictures(result, tmp_path)

    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [p.stem for p in paths] == [
        "ranking-01",
        "cultures-01",
        "importance-01",
        *(f"heat-0{i}" for i in range(1, 5)),
        "efficiency-01",
        "layers-01",
        "layers-02",
    ]
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in paths)


def test_the_same_sweep_gives_the_same_bytes(tmp_path):
    first = write_sweep_report(sweep_result(), tmp_path / "first.html")
    again = write_sweep_report(sweep_result(), tmp_path / "again.html")

    assert again.read_bytes() == first.read_bytes()


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot be written"):
        write_sweep_report(sweep_result(), tmp_path / "file" / "new" / "r.html")
    with pytest.raises(InputError, match="cannot be written"):
        write_sweep_pictures(sweep_result(), tmp_path / "file" / "pictures")


def test_axes_are_called_by_the_last_part_of_their_name_unless_two_share_it():
    assert short_names(["culture", "a.rank", "b.rank", "train.max_steps"]) == {
        "culture": "culture",
        "a.rank": "a.rank",
        "b.rank": "b.rank",
        "train.max_steps": "max_steps",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (4, "4"), (0.70000001, "0.7"), (1e-6, "1e-06"), ("a", "a")]
    + [({"Chile": 0.25, "Mexico": 0.75}, "Chile 0.25, Mexico 0.75"), ([1, "é"], '[1, "é"]')],
)
def test_values_are_shown_as_the_sweep_file_spells_them(value, text):
    assert shown(value) == text
    assert value is None or json.dumps(value)


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint(swept, tmp_path):
    assert_shown_without_a_complaint(swept, tmp_path, SECTIONS)
