import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.records import LAYERS, InputError
from scpo_ray.report import page as page_module
from scpo_ray.report import pictures
from scpo_ray.report.cells import cell_of
from scpo_ray.report.order import in_order, trained_on
from scpo_ray.report.page import write_report
from scpo_ray.settings.methods import method_names
from scpo_ray.statistics.intervals import verdict
from tests.report.browser import assert_shown_without_a_complaint, looked_at
from tests.results import comparison, difference, estimate, run_result

SECTIONS = (
    "answer",
    "findings",
    "differences",
    "accuracy",
    "tradeoff",
    "overbias",
    "matrix",
    "selection",
    "training",
    "examples",
    "data",
    "runs",
)
ODD_NAMES = (
    "<script>alert(1)</script>",
    "🇨🇱 emoji",
    "ישראל",
    "../a/b",
    "x" * 1_000,
    "$x_1$ & \"quotes\" 'too'",
    "nul\x00 and \ud800 surrogate",
)


class Page(HTMLParser):
    """What a test asks of a page: its tags, and its visible text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.text.append(data)

    def values(self, attribute):
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]


def words(path):
    return " ".join(" ".join(Page(path).text).split())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    results, summary = comparison(failures={"weight-Mexico-1": "loss is NaN at step 212"})
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    return write_report(results, summary, path)


def test_a_comparison_has_every_section_and_balanced_tags(compared):
    page = Page(compared)

    assert page.open == []
    assert [i for i in page.values("id") if i in SECTIONS] == list(SECTIONS)
    assert [path.name for path in compared.parent.iterdir()] == ["report.html"]


def test_the_lead_says_the_best_method_and_how_the_others_stand_to_it(compared):
    lead = words(compared)

    assert "Over all pairs scpo has the best macro mean. Beside it (points, paired, 95 %" in lead
    assert "not distinguishable: finetune (−0.6 [−3.6, +2.4]), weight (−1.6 [" in lead
    assert re.search(r"; behind: global \(−4\.1 \[−7\.1, −1\.1\]\), ", lead)


def test_the_page_is_self_contained(compared):
    page = Page(compared)

    references = page.values("src") + page.values("href") + page.values("xlink:href")
    assert references and all(r.startswith("#") or r == "data:," for r in references)
    assert "http" not in compared.read_text()
    assert "@import" not in compared.read_text()
    assert not {tag for tag, _ in page.tags} & {"iframe", "img", "object"}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    assert "prefers-color-scheme: dark" in compared.read_text()
    assert "@media print" in compared.read_text()


def test_every_reference_inside_a_figure_resolves_and_no_id_is_used_twice(compared):
    page, text = Page(compared), compared.read_text()
    ids = page.values("id")

    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert {r[1:] for r in page.values("xlink:href")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_lead_says_the_main_finding_with_its_uncertainty(compared):
    lead = words(compared)

    assert "36 finished runs: 6 methods" in lead and "3 cultures, 2 seeds (0, 1)" in lead
    assert "scpo: 62.7 % [56.7, 68.7] of all test pairs ranked right, macro mean" in lead
    assert "+4.1 points [+1.1, +7.1] over the global model (p = 0.040, Holm = 0.120)" in lead
    assert ", not distinguishable)" in lead


def test_the_lead_says_what_the_test_sets_can_show(compared):
    lead = words(compared)

    assert "a macro difference from the global model of 4.2 points would be found in 80 %" in lead
    assert "in one culture alone it would take 4.2 points" in lead


def test_a_gain_that_noise_would_give_is_warned_of_and_a_real_one_is_not(tmp_path):
    results, summary = comparison(methods=("global", "finetune", "filter", "scpo"), seeds=(0,))
    macro = next(s for s in summary.summaries if (s.method, s.culture) == ("scpo", ""))

    def lead(**minus_noise):
        changed = replace(macro, minus_noise={**macro.minus_noise, **minus_noise})
        summaries = [changed if s is macro else s for s in summary.summaries]
        page = write_report(results, replace(summary, summaries=summaries), tmp_path / "r.html")
        return words(page)

    text = lead(distinctive=difference(0.01), all=difference(0.02))
    assert (
        "scpo: the gain on distinctive is not distinguishable from that of noise of the same size "
        "(40.6 % against 11.0 %), +1.0 points [−2.0, +4.0]; over all pairs, too, it is not "
        "distinguishable from that noise, +2.0 points [−1.0, +5.0]: it does not show that a taste "
        "was learned." in text
    )
    careful = lead(distinctive=difference(-0.05), all=difference(0.05))
    assert "over all pairs it is better than that noise, +5.0 points [+2.0, +8.0]." in careful
    assert "scpo: the gain" not in lead(distinctive=difference(0.05), all=difference(0.0))
    assert "finetune: the gain on distinctive" not in text
    nothing = replace(difference(0.4), low=None, high=None)
    unknown = lead(distinctive=nothing, all=nothing)
    assert "of the same size: there is no interval (40.6 % against 11.0 %)" in unknown
    assert "; over all pairs there is no interval to tell by." in unknown
    # 35.5 % of agreed against noise's 89.0 %.
    assert "filter: more of agreed is lost than to noise of the same size (35.5 % against" in text
    assert "Over-bias" in words(tmp_path / "r.html")


def test_a_run_alone_is_set_against_noise_too(tmp_path):
    text = words(write_report([run_result()], None, tmp_path / "r.html"))

    assert "a difference of 4.2 points would be found in 80 % of cases" in text
    assert "scpo, Chile, seed 0, tested on Chile" in text


def test_failures_controls_and_the_warning_on_distinctive_are_shown(compared):
    text = words(compared)

    assert "weight-Mexico-1 : loss is NaN at step 212" in text
    assert "Higher distinctive is not better by itself." in text
    assert all(f"{name} control" in text for name in ("random", "longer", "global_noise"))


def test_numbers_stand_as_they_are_in_the_results(tmp_path):
    results, summary = comparison(methods=("global", "scpo"), seeds=(0,))
    macro = next(s for s in summary.summaries if s.method == "scpo" and s.culture == "")
    odd = replace(
        macro,
        accuracy=dict.fromkeys(LAYERS, estimate(0.12345, num_pairs=4_321, num_clusters=17)),
        minus_global=dict.fromkeys(LAYERS, difference(-0.0987, p=0.0001)),
    )
    summary = replace(summary, summaries=[odd if s is macro else s for s in summary.summaries])

    text = words(write_report(results, summary, tmp_path / "r.html"))

    assert "12.3 [6.3, 18.3]" in text and "4,321 pairs, 17 users" in text
    assert "−9.9 [−12.9, −6.9] p < 0.001" in text


@pytest.mark.parametrize(
    ("low", "high", "shown", "tone"),
    [
        (-0.01, 0.02, "not distinguishable", "noise"),
        (0.0, 0.02, "not distinguishable", "noise"),
        (0.001, 0.02, "better", "up"),
        (-0.02, -0.001, "worse", "down"),
        (None, None, "unknown", "noise"),
    ],
)
def test_the_word_and_the_colour_of_a_difference_are_its_verdict(low, high, shown, tone):
    change = replace(difference(0.01), low=low, high=high)

    cell = cell_of(change, "users")

    assert (verdict(change), cell.tone) == (shown, tone)
    assert (shown in cell.lines) is (tone == "noise")


def test_of_many_cultures_the_pictures_show_the_first_and_the_page_says_so(tmp_path, monkeypatch):
    results, summary = comparison(methods=("global", "scpo"), seeds=(0,))
    monkeypatch.setattr(pictures, "MAX_CULTURES", 2)

    drawn = pictures.draw(in_order(results), summary)
    text = words(write_report(results, summary, tmp_path / "r.html"))

    # The macro mean and two of three cultures; a loss and a histogram for two.
    number = Counter(picture.section for picture in drawn)
    assert number == {"tradeoff": 3, "loss": 2, "weights": 2, "matrix": 1}
    assert "the pictures show the first 2 of 3 cultures; the tables have all of them." in text


def test_of_many_cultures_the_pictures_stand_beside_the_page(tmp_path, monkeypatch):
    results, summary = comparison(methods=("global", "scpo"), seeds=(0,))
    monkeypatch.setattr(page_module, "MAX_CULTURES_WITHIN", 2)

    page = Page(write_report(results, summary, tmp_path / "my page.html"))

    sources = [unquote(source) for source in page.values("src")]
    assert sources and all((tmp_path / source).is_file() for source in sources)
    drawn = (tmp_path / "my page_pictures" / "answer-01.svg").read_text()
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "prefers-color-scheme:dark" in drawn and "--ink:" in drawn


@pytest.fixture
def of_much(tmp_path, monkeypatch):
    """A page that is taken for a large one."""
    results, summary = comparison()
    monkeypatch.setattr(page_module, "MAX_PAGE_CHARACTERS", 10_000)
    monkeypatch.setattr(page_module, "MAX_TOPIC_CHARACTERS", 10_000)
    return write_report(results, summary, tmp_path / "my page.html")


def test_of_much_the_tables_stand_beside_the_page_and_the_answer_on_it(compared, of_much):
    path, tmp_path = of_much, of_much.parent

    whole, parts = compared.read_text(), sorted(tmp_path.glob("my page_*.html"))
    assert len(path.read_text()) < len(whole) and tmp_path / "my page_differences.html" in parts
    tables = Counter(re.findall(r"<caption>[^<]*", whole))
    apart = [part.read_text() for part in parts]
    assert Counter(re.findall(r"<caption>[^<]*", "".join([path.read_text(), *apart]))) == tables
    answer = whole[whole.index('<section id="answer">') : whole.index("</section>")]
    assert answer in path.read_text()
    linked = [unquote(link) for link in Page(path).values("href") if link[0] != "#"]
    assert {*linked} >= {part.name for part in parts}
    assert all("my page.html" in map(unquote, Page(part).values("href")) for part in parts)


def test_the_script_is_small():
    assert len(Path(page_module.__file__).with_name("page.js").read_bytes()) < 15_000


def test_the_answer_stands_first_and_says_what_to_do(compared):
    text = words(compared)

    first = text[: text.index("In words what came out")]
    assert "Macro mean 140 pairs, 9 users scpo 62.7 [56.7, 68.7] clear +4.1 [+1.1, +7.1]" in first
    assert re.search(r"Chile: use \w+, or (the cheapest of )?\w+", first)
    differences = text[text.index("Paired differences points") :]
    assert differences.index("all: minus finetune") < differences.index("all: minus the global")


def test_an_empty_topic_is_not_there(tmp_path):
    run = replace(run_result("global"), examples=[])

    page = Page(write_report([run], None, tmp_path / "r.html"))

    contents = [a for a in page.values("href") if a.startswith("#")]
    assert "#examples" not in contents and "#selection" not in contents
    assert {c[1:] for c in contents} <= set(page.values("id"))


def test_a_difference_that_is_printed_as_zero_has_no_colour():
    tiny = replace(difference(0.0004), low=0.0001, high=0.0007)

    assert verdict(tiny) == "better" and cell_of(tiny, "users").tone == "noise"


def test_cultures_stand_in_the_comparisons_order_everywhere(tmp_path):
    results, summary = comparison(cultures=("Mexico", "Chile"), methods=("global", "scpo"))

    text = words(write_report(results[::-1], summary, tmp_path / "r.html"))

    for start in ("Which method for whom", "all: % of test pairs", "Counts by culture"):
        rest = text[text.index(start) :]
        assert rest.index("Mexico") < rest.index("Chile")


def test_missing_numbers_are_dashes_and_never_zeros(tmp_path):
    results, summary = comparison(methods=("global", "scpo"), seeds=(0,))
    nothing = [
        replace(
            s,
            accuracy=dict.fromkeys(LAYERS, estimate(None)),
            minus_global=dict.fromkeys(LAYERS, difference(None)),
            other_cultures=estimate(None),
        )
        for s in summary.summaries
    ]

    text = words(write_report(results, replace(summary, summaries=nothing), tmp_path / "r.html"))

    assert "scpo has no macro mean: there was nothing to average." in text
    assert "Macro mean – – – – –" in text
    assert "no number, which is not a zero" in text


def test_odd_names_are_escaped_everywhere_and_usable(tmp_path):
    results, summary = comparison(
        methods=("scpo",), cultures=ODD_NAMES, seeds=(0,), failures={"<b>": "<i>\x07"}
    )
    texts = ["<script>evil()</script> שלום 😀\x00\ud83d", "y" * 1_000_000]
    results = [
        replace(
            r,
            experiment="<script>",
            warnings=["<script>warned</script>"],
            examples=[replace(e, chosen=t) for e, t in zip(r.examples, texts, strict=False)],
        )
        for r in results
    ]
    path = write_report(results, summary, tmp_path / "r.html")
    page = Page(path)

    assert page.open == [] and [tag for tag, _ in page.tags].count("script") == 1
    assert "(999,300 more characters)" in words(path)
    assert "x" * 1_000 in words(path), "the table of counts has the whole name"
    assert not set(path.read_text()) & {"\x00", "\x07"}
    ids = " ".join(page.values("id"))
    assert re.fullmatch(r"[\w\- ]+", ids)


def test_single_runs_are_rows_beside_the_global_model_and_the_controls(tmp_path):
    results = [run_result("scpo", "Mexico", 1), run_result("finetune", "Chile", 0)]

    text = words(write_report(results, None, tmp_path / "r.html"))

    assert "2 runs, nothing averaged over runs" in text
    order = ["global before", "random control", "finetune, Chile, seed 0", "scpo, Mexico, seed 1"]
    table = text[text.index("all: % of test pairs") :]
    assert [table.index(name) for name in order] == sorted(table.index(name) for name in order)
    assert "Settings of scpo, Mexico , seed 1" in text


def test_a_run_without_a_global_model_has_a_page(tmp_path):
    run = run_result("finetune")
    only_all = {
        culture: replace(e, before={}, after={"all": e.after["all"]}, difference={}, controls={})
        for culture, e in run.evaluation.items()
    }
    run = replace(run, evaluation=only_all, selection={}, examples=[])

    text = words(write_report([run], None, tmp_path / "r.html"))

    assert "all: % of test pairs ranked right" in text and "distinctive: %" not in text
    assert "Paired differences" not in text
    assert "recommended" in text and "costs agreed" not in text


def test_a_comparison_in_which_every_run_failed_has_a_page(tmp_path):
    _, summary = comparison(seeds=(0,), failures={"scpo-Chile-0": "out of memory"})
    summary = replace(summary, run_ids=[], summaries=[])

    text = words(write_report([], summary, tmp_path / "r.html"))

    assert "out of memory" in text and "No run finished." in text


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ({"Chile": 1.0, "Mexico": 0.0}, "Chile"),
        ({"Chile": 1.0, "Mexico": 0.3}, "Chile x 1 + Mexico x 0.3"),
        (dict.fromkeys("abcde", 1.0), "5 cultures pooled"),
    ],
)
def test_a_mixture_is_named_by_its_weights(weights, name):
    assert trained_on(replace(run_result(), culture_weights=weights)) == name


def test_nothing_to_report_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nothing to report"):
        write_report([], None, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot be written"):
        write_report([run_result()], None, tmp_path / "file" / "new" / "r.html")
    with pytest.raises(InputError, match="cannot be written"):
        drawn = tmp_path / "file" / "pictures"
        write_report([run_result()], None, tmp_path / "r.html", pictures_dir=drawn)


def test_pictures_are_png_files_with_safe_names(tmp_path):
    results = [run_result("scpo", name, cultures=[name]) for name in ODD_NAMES[::6]]

    write_report(results, None, tmp_path / "r.html", pictures_dir=tmp_path / "pictures")

    paths = sorted((tmp_path / "pictures").iterdir())
    assert [p.stem for p in paths] == [
        "loss-01",
        "loss-02",
        "matrix-01",
        "tradeoff-01",
        "tradeoff-02",
        "weights-01",
        "weights-02",
    ]
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in paths)


def test_the_same_results_in_any_order_give_the_same_bytes(tmp_path):
    results = [run_result("scpo", cultures=("Chile",)), run_result("weight", cultures=("Chile",))]

    first = write_report(results, None, tmp_path / "first.html")
    again = write_report(results[::-1], None, tmp_path / "again.html")

    assert again.read_bytes() == first.read_bytes()


@given(st.integers(0, 5_000))
def test_thinning_keeps_the_ends_the_order_and_the_limit(length):
    rows = pictures.thinned(length)

    assert len(rows) == min(length, pictures.MAX_CURVE_POINTS)
    assert rows == sorted(set(rows))
    assert not rows or (rows[0], rows[-1]) == (0, length - 1)


@given(st.text(max_size=80), st.integers(5, 40))
def test_labels_are_short_and_on_one_line(text, longest):
    shown = pictures.label(text, longest)

    assert len(shown) <= longest
    assert not shown or shown.isprintable()


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint(compared, of_much, tmp_path):
    assert_shown_without_a_complaint(compared, tmp_path / "profile", SECTIONS)
    on_page = [section for section in SECTIONS if section != "tradeoff"]
    assert_shown_without_a_complaint(of_much, tmp_path / "profile", on_page)
    beside = of_much.with_name("my page_accuracy.html")
    assert_shown_without_a_complaint(beside, tmp_path / "profile", ["tradeoff"])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_answer_is_on_the_first_screen_and_its_columns_sort(compared, tmp_path, width):
    found = looked_at(compared, tmp_path, width=width, column=3)

    assert found["width"] == width and found["scroll"] <= width, "nothing goes beyond the page"
    if width == 1280:
        assert found["bottom"] < 900
    gains = dict(zip(found["before"], first_numbers(compared, column=3), strict=True))
    assert found["down"] == sorted(gains, key=lambda name: -gains[name])
    assert found["up"] == found["down"][::-1]
    # The first name that can be picked is a culture's; a link opens its topic.
    assert found["hidden"] == 1 and found["opened"] is True


def first_numbers(path, column):
    """Of the answer's rows, the number in a column."""
    table = re.search(r"<tbody>(.*?)</tbody>", path.read_text(), re.S)[1]
    rows = [re.findall(r"<td.*?</td>", row, re.S) for row in table.split("</tr>") if "<td" in row]
    shown = [re.search(r"<b>(.*?)</b>", row[column - 1])[1] for row in rows]
    return [float(number.replace("−", "-")) for number in shown]


def test_questions_are_called_questions_where_no_user_is_known(tmp_path):
    columns = {"user": None, "question": "question_id"}
    result = replace(run_result(), config={"data": {"columns": columns}})

    page = write_report([result], None, tmp_path / "report.html").read_text()

    assert "95 % intervals over questions" in page
    assert "questions<small>train + dev + test</small>" in page
    assert "resampling users" not in page


def test_every_method_looks_different():
    looks = [pictures.STYLES[method] for method in method_names()]

    assert len({look.marker for look in looks}) == len(method_names())
    assert len({look.ink for look in looks}) == len(method_names())
    colours = [colour for look in looks for colour in pictures.INKS[look.ink]]
    assert len(set(colours)) == 2 * len(method_names())
