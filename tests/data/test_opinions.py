import csv
import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scpo_ray.data.loading import load_preferences
from scpo_ray.data.opinions import OpinionsConfig, is_refusal, open_opinions
from scpo_ray.data.rows import Notes
from scpo_ray.records import InputError
from scpo_ray.settings.countries import country_name

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("SCPO_SHARED_DATA", ROOT.parent / "shared" / "data")) / "goqa"
needs_sample = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no opinions data at {SHARED}")
SAMPLE = SHARED / "global_opinions_partial.csv"

HEADER = ("question", "selections", "options", "source")


def row(question, selections, options=("Yes", "No"), source="GAS"):
    """A row as the data set prints it; `selections` and `options` may be printed already."""
    if isinstance(selections, dict):
        selections = f"defaultdict(<class 'list'>, {selections})"
    printed = options if isinstance(options, str) else str(list(options))
    return (question, selections, printed, source)


def write(folder, rows, header=HEADER, name="opinions.csv"):
    path = folder / name
    opened = (
        gzip.open(path, "wt", newline="") if name.endswith(".gz") else path.open("w", newline="")
    )
    with opened as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def config(path, **settings):
    return OpinionsConfig.model_validate(
        {"source": "opinions", "path": str(path), "cultures": None} | settings
    )


def read(path, **settings):
    notes = Notes()
    found = [each for _, each in open_opinions(config(path, **settings)).read(notes)]
    return found, notes


def many(num_questions, countries=("Chile", "Israel")):
    """Questions that every country answers, each in its own way."""
    return [
        row(f"question {n}?", {c: [0.7 - 0.1 * k, 0.3 + 0.1 * k] for k, c in enumerate(countries)})
        for n in range(num_questions)
    ]


def test_each_country_of_a_question_is_an_interaction_with_its_shares_as_scores(tmp_path):
    path = write(tmp_path, [row("Fair?", {"Chile": [0.6, 0.4], "S. Africa": [0.25, 0.75]})])

    interactions, notes = read(path)

    assert not notes.skipped
    assert [(i.interaction_id, i.culture, i.human_scores) for i in interactions] == [
        ("q1:Chile", "Chile", (0.6, 0.4)),
        ("q1:South Africa", "South Africa", (0.25, 0.75)),
    ]
    first = interactions[0]
    assert (first.prompt, first.responses) == ("Fair?", ("Yes", "No"))
    assert (first.user, first.question, first.option_numbers) == (None, "fair?", (0, 1))


def test_shares_are_made_to_sum_to_one(tmp_path):
    interactions, _ = read(write(tmp_path, [row("Fair?", {"Chile": [0.6, 0.2]})]))

    assert interactions[0].human_scores == pytest.approx((0.75, 0.25))


@pytest.mark.parametrize("name", ["opinions.csv", "opinions.csv.gz"])
@pytest.mark.parametrize(
    "printed",
    ["defaultdict(<class 'list'>, {'Chile': [0.6, 0.4]})", "{'Chile': [0.6, 0.4]}"],
)
def test_plain_and_packed_files_and_both_printed_kinds_are_read(tmp_path, printed, name):
    interactions, _ = read(write(tmp_path, [row("Fair?", printed)], name=name))

    assert [i.culture for i in interactions] == ["Chile"]


def test_options_keep_their_commas_quotes_and_brackets_and_numbers_become_text(tmp_path):
    options = ["Yes, very", 'It\'s "so"', "[a, b]", 10, 2.5]
    shares = [0.2, 0.2, 0.2, 0.3, 0.1]

    interactions, _ = read(write(tmp_path, [row("Fair?", {"Chile": shares}, options)]))

    assert interactions[0].responses == ("Yes, very", 'It\'s "so"', "[a, b]", "10", "2.5")


def test_with_letters_every_order_puts_another_option_first_and_shares_move_along(tmp_path):
    path = write(tmp_path, [row("Fair?", {"Chile": [0.5, 0.3, 0.2]}, ["Yes", "No", "DK/Refused"])])

    interactions, _ = read(path, options_as="letters", num_option_orders=2)

    assert [i.interaction_id for i in interactions] == ["q1:Chile:0", "q1:Chile:1"]
    first, second = interactions
    assert first.prompt == "Fair?\nA. Yes\nB. No\nC. DK/Refused"
    assert second.prompt == "Fair?\nA. No\nB. DK/Refused\nC. Yes"
    assert first.responses == second.responses == ("A", "B", "C")
    assert second.human_scores == (0.3, 0.2, 0.5)
    assert second.option_numbers == (1, 2, 0)
    assert second.refusals == (False, True, False)
    whole, _ = read(path, options_as="letters", num_option_orders=9)
    assert len(whole) == 3


@pytest.mark.parametrize(
    ("option", "refusal"),
    [
        ("DK/Refused", True),
        ("Don't know", True),
        ("No answer/refused", True),
        ("Missing; Not available", True),
        ("Other missing; Multiple answers Mail (EVS)", True),
        ("Neither (VOL)", False),
        ("No", False),
        ("Refused to pay", False),
        ("Hard to say", False),
        ("Other (VOL)", False),
    ],
)
def test_what_is_a_refusal(option, refusal):
    assert is_refusal(option) is refusal


def test_samples_that_are_not_national_are_left_out_and_counted_or_cultures_of_their_own(tmp_path):
    selections = {"China": [0.6, 0.4], "China (Non-national sample)": [0.1, 0.9]}
    path = write(tmp_path, [row("Fair?", selections)])

    interactions, notes = read(path)
    both, _ = read(path, national_only=False)

    assert [i.culture for i in interactions] == ["China"]
    reason = "distribution of a Non-national sample (data.national_only)"
    assert notes.skipped == {("", reason): 1}
    assert [i.culture for i in both] == ["China", "China (Non-national sample)"]


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ("[]", "missing distribution"),
        ("None", "missing distribution"),
        ("[0.0, 0.0]", "distribution of zeros"),
        ("[1.0]", "shares and options differ in number"),
        ("[nan, 1.0]", "distribution with a share that is not finite"),
        ("[inf, 1.0]", "distribution with a share that is not finite"),
    ],
)
def test_a_distribution_that_is_none_is_dropped_and_counted(tmp_path, shares, reason):
    rows = [row("Fair?", "{'Chile': " + shares + ", 'Israel': [0.5, 0.5]}"), *many(1)]

    interactions, notes = read(write(tmp_path, rows))
    nowhere, alone = read(write(tmp_path, rows[:1]))

    assert [i.interaction_id for i in interactions] == ["q1:Israel", "q2:Chile", "q2:Israel"]
    assert notes.skipped == {("Chile", reason): 1}
    # A culture of which nothing is left shows no counts of its own.
    assert [i.culture for i in nowhere] == ["Israel"]
    assert alone.skipped == {("", f"Chile: {reason}"): 1}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(" ", {"Chile": [0.6, 0.4]}), "empty question"),
        (row("One?", {"Chile": [1.0]}, ["Yes"]), "question with fewer than 2 options"),
        (row("Same?", {"Chile": [0.5, 0.5]}, ["Yes", "Yes"]), "question with equal options"),
        (row("None?", {"Chile": [0.5, 0.5]}, ["Yes", " "]), "question with an empty option"),
    ],
)
def test_a_question_that_asks_nothing_is_skipped_and_counted(tmp_path, bad, reason):
    interactions, notes = read(write(tmp_path, [bad, *many(1)]))

    assert {i.interaction_id for i in interactions} == {"q2:Chile", "q2:Israel"}
    assert notes.skipped == {("", reason): 1}


def test_a_distribution_given_twice_counts_once(tmp_path):
    rows = [row("Fair?", {"Chile": [0.6, 0.4]}), row("Fair? ", {"Chile": [0.6, 0.4]})]

    interactions, notes = read(write(tmp_path, rows))

    assert [i.interaction_id for i in interactions] == ["q1:Chile"]
    assert notes.skipped == {("Chile", "distribution given twice"): 1}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (
            row("Fair?", "nonsense"),
            "line 2: selections = 'nonsense': must be a printed dict of country -> shares",
        ),
        (
            row("Fair?", "defaultdict(<class 'list'>, __import__('os').getcwd())"),
            "line 2: selections = \"defaultdict(<class 'list'>, __import__('os').getcwd())\": "
            "must be a printed dict of country -> shares",
        ),
        (
            row("Fair?", "{'Chile': 0.5}"),
            "line 2: selections['Chile'] = 0.5: must be a list of shares",
        ),
        (
            row("Fair?", {"Chile": [0.6, "much"]}),
            "line 2: selections['Chile'] = 'much': a share must be a number",
        ),
        (
            row("Fair?", {"Chile": [1.2, 0.4]}),
            "line 2: selections['Chile'] = 1.2: a share must be from 0 to 1",
        ),
        (
            row("Fair?", {"Chile": [-0.1, 0.4]}),
            "line 2: selections['Chile'] = -0.1: a share must be from 0 to 1",
        ),
        (
            row("Fair?", {" ": [0.6, 0.4]}),
            "line 2: selections = ' ': a country must be text, not blank",
        ),
        (
            row("Fair?", {"Chile": [0.6, 0.4]}, "Yes, No"),
            "line 2: options = 'Yes, No': must be a printed list",
        ),
        (
            row("Fair?", {"Chile": [0.6, 0.4]}, ["Yes", None]),
            "line 2: options = \"['Yes', None]\": option 2 is null: must be text or a number",
        ),
    ],
)
def test_a_bad_row_is_named_with_file_line_field_value_and_rule(tmp_path, bad, problem):
    path = write(tmp_path, [bad])

    with pytest.raises(InputError) as error:
        load_preferences(config(path), tmp_path / "cache")

    assert str(error.value).splitlines() == [
        "the data cannot be used: 1 problem",
        f"  {path}, {problem}",
    ]


def test_a_duplicate_question_with_other_shares_is_named_with_both_lines(tmp_path):
    rows = [row("Fair?", {"Chile": [0.6, 0.4]}), row("Fair?", {"Chile": [0.5, 0.5]})]
    path = write(tmp_path, rows)

    with pytest.raises(InputError) as error:
        read(path)

    assert error.value.problems == (
        f"{path}, line 3: question = 'Fair?': duplicate, also at {path}, line 2, with other "
        "shares of 'Chile'",
    )


def test_a_csv_with_other_columns_is_named_with_its_own(tmp_path):
    path = write(tmp_path, [("Fair?", "Yes")], header=("question", "answer"))

    with pytest.raises(InputError) as error:
        read(path)

    assert error.value.problems == (
        f"{path}: no columns 'selections', 'options'; it has 'question', 'answer'",
    )


def test_a_country_without_test_questions_is_named_with_those_that_have_some(tmp_path):
    rows = [*many(20), row("Only here?", {"Honduras": [0.9, 0.1]})]

    with pytest.raises(InputError) as error:
        load_preferences(config(write(tmp_path, rows)), tmp_path / "cache")

    sides = [p for p in error.value.problems if p.startswith("Honduras: ")]
    assert sides in (
        ["Honduras: 1 training pairs of 1 users (or questions), 0 test pairs of 0: must have both"],
        ["Honduras: 0 training pairs of 0 users (or questions), 1 test pairs of 1: must have both"],
    )
    assert error.value.problems[-1] == (
        "name in data.cultures only cultures that have both: Chile, Israel"
    )


@pytest.mark.parametrize("path", ["no/such.csv", "nobody/no-such-opinions"])
def test_a_path_that_is_nothing_is_named(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    with pytest.raises(InputError, match=path):
        open_opinions(config(path))


def test_pairs_need_a_gap_and_every_option_is_scored_all_the_same(tmp_path):
    three = ["Yes", "No", "Maybe"]
    rows = [row(f"{n}?", {"Chile": [0.5, 0.26, 0.24]}, three) for n in range(20)]

    data = load_preferences(config(write(tmp_path, rows)), tmp_path / "cache")

    assert sum(map(len, data.sides)) == 2 * 20
    assert data.counts["Chile"].ties == 20
    assert len(data.texts) == 3 * 20
    opinions = data.opinions
    assert opinions.shares.reshape(-1, 3).sum(axis=1) == pytest.approx(np.ones(20))
    shown = [data.texts[int(text)].response for text in opinions.texts[:3]]
    assert shown == three
    assert opinions.is_test.sum() == 3  # 15 % of 20
    assert opinions.is_train.sum() == 14  # of the other 17, 3 are held out for choices
    assert not (opinions.is_train & opinions.is_test).any()


def test_a_question_is_on_one_side_in_every_country_and_whatever_samples_are_read(tmp_path):
    rows = [
        *many(30),
        *(row(f"n{n}?", {"China (Old national sample)": [0.9, 0.1]}) for n in (0, 1)),
    ]
    path = write(tmp_path, rows)
    sides = []
    for settings in ({"cultures": ["Chile"]}, {}, {"options_as": "letters"}):
        data = load_preferences(config(path, **settings), tmp_path / "cache")
        opinions = data.opinions
        test = set(opinions.question_codes[opinions.is_test].tolist())
        assert not test & set(opinions.question_codes[~opinions.is_test].tolist())
        sides.append(test)

    assert sides[0] == sides[1] == sides[2]


def test_the_fingerprint_knows_the_shares(tmp_path):
    prints = set()
    for share in (0.6, 0.7):
        rows = [*many(20, ("Chile",)), row("Last?", {"Chile": [share, 1 - share]})]
        path = write(tmp_path, rows)
        prints.add(load_preferences(config(path), tmp_path / "cache").fingerprint)

    assert len(prints) == 2


@needs_sample
def test_the_published_counts_per_country_are_found(tmp_path):
    interactions, notes = read(SAMPLE, national_only=False)

    with (SHARED / "counts_per_country.csv").open() as stream:
        published = Counter()
        for each in csv.DictReader(stream):
            published[country_name(each["country"])] += int(each["questions"])
    found = Counter(i.culture for i in interactions)
    for (culture, _), count in notes.skipped.items():
        found[culture] += count
    assert found == published
    assert sum(found.values()) == 14_481
    assert sum(n for (_, reason), n in notes.skipped.items() if reason.endswith("zeros")) == 18


@needs_sample
def test_the_papers_countries_have_pairs_and_opinions_on_both_sides(tmp_path):
    data = load_preferences(OpinionsConfig(source="opinions", path=str(SAMPLE)), tmp_path)

    counts = {culture: count.interactions for culture, count in data.counts.items() if culture}
    assert counts == {
        "Chile": 171,
        "South Africa": 184,
        "New Zealand": 67,
        "Australia": 198,  # 199 with the distribution of zeros
        "Mexico": 293,
        "Israel": 149,
        "Canada": 223,
    }
    assert data.counts["Australia"].skipped == {"distribution of zeros": 1}
    assert sum(data.counts[""].skipped.values()) == 154 + 1_276 + 43
    assert min(count.test_users for name, count in data.counts.items() if name) >= 17
