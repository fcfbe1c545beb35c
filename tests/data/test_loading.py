import json
import logging
import multiprocessing
import resource
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from scpo_ray.data.hashes import text_hashes
from scpo_ray.data.loading import load_preferences, read_preferences
from scpo_ray.data.preferences import PreferencesConfig
from scpo_ray.data.rows import Notes, Place
from scpo_ray.data.synthetic import SyntheticConfig
from scpo_ray.data.table import (
    SPLIT_LABELS,
    CorruptTableError,
    open_table,
    write_table,
)
from scpo_ray.records import InputError, Interaction

SMALL = {"A": 12, "B": 8}


def _synthetic(**settings):
    return SyntheticConfig.model_validate(
        {"source": "synthetic", "users": SMALL, "interactions_per_user": 3} | settings
    )


def _row(culture, user, chosen="good answer", rejected="bad", **fields):
    row = {"culture": culture, "user": user, "prompt": "p", "chosen": chosen, "rejected": rejected}
    return row | fields


def _preferences(tmp_path, rows, **settings):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"user": "user"} | settings.pop("columns", {})
    return PreferencesConfig.model_validate(
        {"source": "preferences", "train_files": [str(path)], "columns": columns} | settings
    )


def _people(culture, num_users, **fields):
    return [
        _row(culture, f"{culture}{n}", f"good {n}", f"bad {n}", **fields) for n in range(num_users)
    ]


def _interaction(number, **fields):
    settings = {
        "interaction_id": f"i{number}",
        "culture": "A",
        "user": "u",
        "question": None,
        "prompt": f"p{number}",
        "responses": ("x", "y"),
        "human_scores": (2.0, 1.0),
    }
    return Interaction(**settings | fields)


def _placed(*interactions):
    return [(Place("file", n), interaction) for n, interaction in enumerate(interactions, 1)]


def _columns(pairs):
    return (
        pairs.interactions,
        pairs.chosen,
        pairs.rejected,
        pairs.culture_codes,
        pairs.cluster_codes,
    )


def test_chosen_and_rejected_index_the_texts_of_their_interaction(tmp_path):
    data = load_preferences(_preferences(tmp_path, _people("A", 20)), tmp_path / "cache")

    assert [len(pairs) for pairs in data.sides] == [14, 3, 3]
    for pairs in data.sides:
        for n in range(len(pairs)):
            user = data.interaction_ids[pairs.interactions[n]].removeprefix("data.jsonl:")
            assert data.texts[pairs.chosen[n]].response == f"good {int(user) - 1}"
            assert data.texts[pairs.rejected[n]].response == f"bad {int(user) - 1}"
    assert [text.prompt for text in data.texts[:3]] == ["p"] * 3
    assert len(data.interaction_ids[1:4]) == 3


def test_texts_are_numbered_densely_and_equal_texts_once(tmp_path):
    rows = [_row("A", f"u{n}") for n in range(10)]
    data = load_preferences(_preferences(tmp_path, rows), tmp_path / "cache")
    assert {text.response for text in data.texts} == {"good answer", "bad"}
    assert len(data.texts) == len(data.texts.hashes) == 2
    assert data.counts["A"].train_test_texts == 2
    assert "A: 2 texts stand in both training and test pairs" in data.warnings


def test_a_user_is_trained_on_chosen_on_or_tested(tmp_path):
    data = load_preferences(_synthetic(), tmp_path)
    users = [set(pairs.cluster_codes.tolist()) for pairs in data.sides]
    assert sum(map(len, users)) == len(set.union(*users)) == 20
    assert sum(count.test_users for count in data.counts.values()) == 3  # 15 % of 20
    # 15 % of each culture's others, rounded: A has 10 or 11 of them, B 6 or 7.
    assert [count.dev_users for count in data.counts.values()] == [2, 1]
    assert data.choice_pairs is data.dev


def test_nobody_is_held_out_for_choices_where_none_is_asked_for(tmp_path):
    data = load_preferences(_synthetic(split={"dev_size": 0}), tmp_path)
    held_out = load_preferences(_synthetic(), tmp_path)

    assert len(data.dev) == 0 and data.choice_pairs is data.test
    np.testing.assert_array_equal(data.test.interactions, held_out.test.interactions)
    assert len(data.train) == len(held_out.train) + len(held_out.dev)
    assert data.fingerprint != held_out.fingerprint


def test_a_culture_of_too_few_people_for_three_sides_is_warned_of(tmp_path):
    data = load_preferences(_synthetic(users={"A": 30, "B": 4}, split={"seed": 1}), tmp_path)

    count = data.counts["B"]
    assert (count.train_users, count.dev_users) == (4 - count.test_users, 0)
    assert [w for w in data.warnings if "too few" in w] == [
        f"B: {count.train_users} training users (or questions) are too few to hold out 15 % for "
        "choices: nothing can be chosen for it (data.split.dev_size)"
    ]


def test_a_second_load_parses_nothing_and_gives_the_same(tmp_path):
    config = _preferences(tmp_path, _people("A", 20))
    first = load_preferences(config, tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    written = cached.stat().st_mtime_ns

    second = load_preferences(config, tmp_path / "cache")

    assert cached.stat().st_mtime_ns == written
    assert second.fingerprint == first.fingerprint
    assert second.counts == first.counts
    for one, two in zip(_columns(first.train), _columns(second.train), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_changed_file_is_read_anew_and_changes_the_fingerprint(tmp_path):
    first = load_preferences(_preferences(tmp_path, _people("A", 20)), tmp_path / "cache")
    changed = [*_people("A", 19), _row("A", "A19", "better", "bad 19")]
    second = load_preferences(_preferences(tmp_path, changed), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_does_not_depend_on_where_the_data_lies(tmp_path):
    prints = set()
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        config = _preferences(tmp_path / folder, _people("A", 20))
        prints.add(load_preferences(config, tmp_path / folder / "cache").fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("spoil", [lambda b: b[:-50], lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_damaged_cache_file_is_rebuilt_and_said_so(tmp_path, caplog, spoil):
    first = load_preferences(_synthetic(), tmp_path)
    (cached,) = tmp_path.iterdir()
    whole = cached.read_bytes()
    cached.unlink()
    cached.write_bytes(spoil(whole))

    with caplog.at_level(logging.WARNING):
        second = load_preferences(_synthetic(), tmp_path)

    assert "damaged and read anew" in caplog.text
    assert second.fingerprint == first.fingerprint
    assert cached.read_bytes() == whole


def test_a_table_of_another_format_is_corrupt(tmp_path, monkeypatch):
    write_table(_placed(_interaction(0)), tmp_path / "t.arrow", Notes())
    monkeypatch.setattr("scpo_ray.data.table.FORMAT_NUMBER", 99)
    with pytest.raises(CorruptTableError, match="format"):
        open_table(tmp_path / "t.arrow")


def test_a_writer_that_stops_midway_leaves_nothing(tmp_path):
    def rows():
        yield from _placed(_interaction(0))
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_table(rows(), tmp_path / "t.arrow", Notes())
    assert list(tmp_path.iterdir()) == []


def test_a_table_gives_back_what_was_written_over_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("scpo_ray.data.table.BATCH_ROWS", 2)
    history = (("system", "s"), ("user", "ü"), ("assistant", ""))
    interactions = [
        _interaction(0),
        _interaction(1, history=history, responses=("a", "b", "c"), human_scores=(1.0, 2.0, 2.0)),
        _interaction(2, user=None, question="q", split="test"),
        _interaction(3, user=None, culture="B/../🙂", split="train"),
        _interaction(4, prompt="p0", question="q"),
    ]
    notes = Notes(users=["first", "u"])
    write_table(_placed(*interactions), tmp_path / "t.arrow", notes)

    table = open_table(tmp_path / "t.arrow")

    assert [_read_back(table, row) for row in range(len(table))] == interactions
    assert table.users == ("first", "u")
    assert table.offsets.tolist() == [0, 2, 5, 7, 9, 11]
    # users 0 and 1, question 2, then the interactions
    assert table.cluster_codes.tolist() == [1, 1, 2, 3 + 3, 1]
    assert table.text(1, 2).response == "c"
    # p0 with x stands in the first and the last interaction
    assert table.text_hashes[0] == table.text_hashes[9]
    assert len(set(table.text_hashes.tolist())) == 9


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "ab", "responses": ("c", "z")}, {"prompt": "a", "responses": ("bc", "z")}),
        ({"history": (("user", "ab"),)}, {"history": (("use", "rab"),)}),
    ],
)
def test_texts_that_are_cut_elsewhere_are_other_texts(one, other):
    first, second = (text_hashes(_interaction(0, **fields)) for fields in (one, other))
    assert not set(first) & set(second)


def test_duplicate_ids_are_named_with_both_places(tmp_path):
    rows = [row | {"id": n % 9} for n, row in enumerate(_people("A", 10))]
    config = _preferences(tmp_path, rows, columns={"id": "id"})
    with pytest.raises(InputError) as error:
        load_preferences(config, tmp_path / "cache")
    file = tmp_path / "data.jsonl"
    assert error.value.problems == (f"{file}, line 10: duplicate id '0', also at {file}, line 1",)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_user_in_two_cultures_is_named_with_both_places(tmp_path):
    config = _preferences(tmp_path, [_row("A", "u"), _row("A", "v"), _row("B", "u")])
    with pytest.raises(InputError) as error:
        load_preferences(config, tmp_path / "cache")
    (problem,) = error.value.problems
    file = tmp_path / "data.jsonl"
    assert f"{file}, line 3: user 'u' is in culture 'B', but in 'A' at {file}, line 1" in problem


def test_data_of_which_every_row_is_skipped_is_refused_with_the_reasons(tmp_path):
    config = _preferences(tmp_path, [_row("A", "u", prompt="")])
    with pytest.raises(InputError) as error:
        load_preferences(config, tmp_path / "cache")
    assert error.value.problems == ("A: empty prompt: 1",)


def test_an_unknown_culture_is_refused_with_the_nearest_names(tmp_path):
    config = _preferences(tmp_path, _people("Chile", 10), cultures=["Chili"])
    with pytest.raises(InputError, match="data.cultures: no culture 'Chili'.*nearest: 'Chile'"):
        load_preferences(config, tmp_path / "cache")


def test_names_that_a_source_spells_in_several_ways_are_one(tmp_path):
    path = tmp_path / "table"
    rows = [
        (Place("f", n), replace(_interaction(n), culture=culture, user=user, question=None))
        for n, (culture, user) in enumerate([("A", "u1"), (" A", "u1 "), ("Me\u0301xico", "u2")])
    ]
    notes = Notes(users=["u2", "u2\n", "u1"], skipped=Counter({("A", "x"): 1, ("A ", "x"): 2}))

    write_table(rows, path, notes)

    table = open_table(path)
    assert (table.cultures, table.users) == (("A", "M\u00e9xico"), ("u2", "u1"))
    assert table.user_codes.tolist() == [1, 1, 0]
    assert table.skipped == {"A": {"x": 3}}


def test_names_that_differ_by_case_alone_are_warned_of(tmp_path):
    rows = [*_people("Chile", 10), *_people("chile", 10)]
    data = load_preferences(_preferences(tmp_path, rows, cultures=["Chile"]), tmp_path / "cache")
    assert data.cultures == ("Chile",)
    (warning,) = [each for each in data.warnings if each.startswith("cultures")]
    assert warning.endswith("look alike, and count apart: 'Chile', 'chile'")


@pytest.mark.parametrize("scores", [(1.0,), (1.0, 2.0, 3.0), (1.0, float("nan"))])
def test_scores_of_any_source_are_finite_and_one_for_each_response(tmp_path, scores):
    with pytest.raises(InputError) as error:
        write_table(_placed(_interaction(1, human_scores=scores)), tmp_path / "table", Notes())
    rule = "must be finite, one for each of 2 responses"
    assert error.value.problems == (f"file, line 1: scores = {list(scores)}: {rule}",)


def test_a_row_with_so_many_responses_that_its_pairs_fill_the_memory_is_named(tmp_path):
    rows = [_row("A", f"u{n}") | {"r": ["x", "y"], "s": [1, 2]} for n in range(5)]
    rows[3] |= {"r": [f"r{n}" for n in range(50_000)], "s": list(range(50_000))}
    config = _preferences(tmp_path, rows, columns={"responses": "r", "scores": "s"})
    with pytest.raises(InputError) as error:
        load_preferences(config, tmp_path / "cache")
    what = "50000 responses make 1249975000 pairs: must be at most 256"
    assert error.value.problems == (f"{tmp_path / 'data.jsonl'}, line 4: {what}",)


def test_a_text_says_where_it_was_read(tmp_path):
    rows = [_row("A", f"u{n}", f"good {n}") for n in range(10)]
    data = load_preferences(_preferences(tmp_path, rows), tmp_path / "cache")
    places = {data.texts[t].response: data.texts.place(t) for t in range(len(data.texts))}
    assert places["good 7"] == "data.jsonl, line 8"


@pytest.mark.parametrize(
    ("rows", "settings", "refusal"),
    [
        ([("A", 20), ("B", 1)], {}, "B: 1 training pairs of 1 users (or questions), 0 test pairs"),
        ([("A", 1)], {}, "data.split: one user only, cannot be split into train and test"),
        ([("A", 2)], {"split": {"test_size": 0.9}}, "data.split: test_size 0.9 of 2 leaves none"),
        ([("A", 20)], {"split": {"by": "question"}, "columns": {"question": "q"}}, "data.split: o"),
        ([("A", 20)], {"cultures": ["A", "Atlantis"]}, "data.cultures: no culture 'Atlantis' in"),
    ],
)
def test_data_is_shown_whatever_a_training_would_refuse(tmp_path, rows, settings, refusal):
    people = [row | {"q": "one"} for culture, num in rows for row in _people(culture, num)]
    config = _preferences(tmp_path, people, **settings)

    data = read_preferences(config, tmp_path / "cache")

    assert data.refusals[0].startswith(refusal)
    assert [data.counts[culture].interactions for culture, _ in rows] == [num for _, num in rows]
    with pytest.raises(InputError) as error:
        load_preferences(config, tmp_path / "cache")
    assert error.value.problems == data.refusals


@pytest.mark.parametrize(
    ("split", "cause"),
    [
        ({"dev_size": 0.95}, "; data.split.dev_size = 0.95 takes 3 for dev"),
        ({"dev_size": 0, "test_size": 0.2}, None),
    ],
)
def test_a_dev_share_that_leaves_no_training_user_is_named(tmp_path, split, cause):
    config = _preferences(tmp_path, _people("A", 4), split=split)

    refusals = read_preferences(config, tmp_path / "cache").refusals

    if cause is None:
        assert not refusals
    else:
        assert len(refusals) == 1 and refusals[0].endswith(f"must have both{cause}")
        assert "0 training pairs of 0 users" in refusals[0]


def test_one_user_cannot_be_split(tmp_path):
    with pytest.raises(InputError, match="one user only"):
        load_preferences(_preferences(tmp_path, [_row("A", "u")]), tmp_path / "cache")


def test_a_test_share_that_leaves_no_training_user_is_refused(tmp_path):
    config = _preferences(tmp_path, _people("A", 2), split={"test_size": 0.9})
    with pytest.raises(InputError, match="test_size 0.9 of 2 leaves none to train on"):
        load_preferences(config, tmp_path / "cache")


def test_a_culture_without_test_user_is_named_with_its_counts(tmp_path):
    rows = [*_people("A", 20), _row("B", "lonely")]
    with pytest.raises(InputError) as error:
        load_preferences(_preferences(tmp_path, rows), tmp_path / "cache")
    problem, hint = error.value.problems
    assert problem.startswith("B: 1 training pairs of 1 users (or questions), 0 test pairs of 0")
    assert hint.endswith("both: A")
    config = _preferences(tmp_path, rows, cultures=["A"])
    assert load_preferences(config, tmp_path / "cache").cultures == ("A",)


def test_a_culture_with_ties_alone_has_no_pair(tmp_path):
    rows = [_row("A", f"u{n}") | {"r": ["x", "y"], "s": [5, 5]} for n in range(20)]
    config = _preferences(tmp_path, rows, columns={"responses": "r", "scores": "s"})
    with pytest.raises(InputError, match="A: 0 training pairs of 14 users"):
        load_preferences(config, tmp_path / "cache")


def test_only_selected_cultures_have_pairs_and_their_split_does_not_change(tmp_path):
    everyone = load_preferences(_synthetic(), tmp_path)
    only_b = load_preferences(_synthetic(cultures=["B"]), tmp_path)

    assert everyone.cultures == ("A", "B")
    assert only_b.cultures == ("B",)
    assert list(only_b.counts) == ["B"]
    of_b = everyone.test.culture_codes == 1
    np.testing.assert_array_equal(everyone.test.interactions[of_b], only_b.test.interactions)
    assert only_b.counts["B"] == everyone.counts["B"]
    assert set(only_b.train.culture_codes) == {0}


def test_questions_are_split_alike_in_all_cultures(tmp_path):
    rows = [
        _row(culture, f"{culture}{n}", f"good {culture} {n}", q=f"q{n % 10}")
        for culture in "AB"
        for n in range(30)
    ]
    config = _preferences(
        tmp_path, rows, columns={"user": None, "question": "q"}, split={"by": "question"}
    )
    data = load_preferences(config, tmp_path / "cache")

    test_questions = [
        set(data.test.cluster_codes[data.test.culture_codes == code]) for code in (0, 1)
    ]
    assert test_questions[0] == test_questions[1]
    assert len(test_questions[0]) == 2  # 15 % of 10, rounded up
    assert not test_questions[0] & set(data.train.cluster_codes)
    dev = [set(data.dev.cluster_codes[data.dev.culture_codes == code]) for code in (0, 1)]
    assert dev[0] == dev[1] and len(dev[0]) == 1 and not dev[0] & set(data.train.cluster_codes)


def test_folds_together_test_every_user_once(tmp_path):
    tested, chosen_on = [], []
    for fold in range(4):
        data = load_preferences(_synthetic(split={"num_folds": 4, "fold": fold}), tmp_path)
        chosen_on.append(np.unique(data.dev.cluster_codes).tolist())
        assert {culture: count.test_users for culture, count in data.counts.items()} == {
            "A": 3,
            "B": 2,
        }
        tested.append(np.unique(data.test.cluster_codes).tolist())
        assert not set(data.train.cluster_codes) & {*tested[-1], *chosen_on[-1]}
    assert sorted(sum(tested, [])) == list(range(20))
    # The next fold is chosen on, whatever dev_size is.
    assert chosen_on == [*tested[1:], tested[0]]


def test_a_source_that_labels_nothing_cannot_be_split_by_its_labels(tmp_path):
    with pytest.raises(InputError, match='does not say which part is "test"'):
        load_preferences(_synthetic(split={"by": "source"}), tmp_path)


def test_data_fractions_keep_whole_users_nested_and_the_test_set_as_it_is(tmp_path):
    data = {f: load_preferences(_synthetic(data_fraction=f), tmp_path) for f in (0.25, 0.5, 1.0)}

    users = {f: set(d.train.cluster_codes.tolist()) for f, d in data.items()}
    assert users[0.25] < users[0.5] < users[1.0]
    for fraction, d in data.items():
        np.testing.assert_array_equal(d.test.interactions, data[1.0].test.interactions)
        np.testing.assert_array_equal(d.dev.interactions, data[1.0].dev.interactions)
        for culture, count in d.counts.items():
            whole = data[1.0].counts[culture].train_users
            assert count.train_users == max(1, int(fraction * whole + 0.5))


def test_counts_are_those_of_the_rows(tmp_path):
    def row(n, **fields):
        scored = {"r": [f"long {n}", f"b{n}", f"long {n}", f"d{n}"], "s": [4, 3, 2, 3]}
        return {"culture": "A", "user": f"u{n}", "prompt": "p"} | scored | fields

    rows = [*map(row, range(20)), row(0, prompt=" "), row(1, r=["x", "", "x", ""])]
    config = _preferences(tmp_path, rows, columns={"responses": "r", "scores": "s"})

    count = load_preferences(config, tmp_path / "cache").counts["A"]

    # 6 response pairs a person: b = d in score, one equal text, the long one wins 2 and loses 2.
    assert (count.users, count.train_users, count.dev_users, count.test_users) == (20, 14, 3, 3)
    assert (count.interactions, count.responses) == (21, 82)
    assert (count.train_pairs, count.dev_pairs, count.test_pairs) == (14 * 4, 3 * 4, 3 * 4)
    assert (count.ties, count.equal_texts) == (20, 21)
    assert count.longer_chosen_share == 0.5
    assert count.train_test_texts == 0
    assert count.skipped == {"empty prompt": 1, "empty response": 2}


@pytest.mark.parametrize(
    ("chosen", "mark"),
    [("['tea', 'rice']", "list"), ("(tea)", "brackets"), ("\u201ctea\u201d", "quotes")],
)
def test_a_format_that_gives_the_chosen_away_is_warned_of(tmp_path, chosen, mark):
    rows = [_row("A", f"u{n}", chosen, "rice, (or) tea's") for n in range(60)]
    data = load_preferences(_preferences(tmp_path, rows), tmp_path / "cache")
    assert data.counts["A"].format_differences[mark] == 1.0
    assert any(f"chosen responses have {mark} more often" in w for w in data.warnings)

    few = load_preferences(_preferences(tmp_path, rows[:40]), tmp_path / "cache")
    assert not any("more often" in w for w in few.warnings)


def test_a_single_test_user_is_warned_of(tmp_path):
    data = load_preferences(_preferences(tmp_path, _people("A", 5)), tmp_path / "cache")
    assert data.warnings == ("A: one test user only, so its results have no interval",)


@pytest.mark.parametrize(
    "name", ["a/b", "..", "../../etc", "🇨🇱 Chile", "x" * 300, "Korea, Rep. of"]
)
def test_odd_culture_names_are_names(tmp_path, name):
    data = load_preferences(_preferences(tmp_path, _people(name, 10)), tmp_path / "cache")
    assert data.cultures == (name,)
    assert [path.parent for path in tmp_path.rglob("*.arrow")] == [tmp_path / "cache"]


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the interactions cannot be written"):
        load_preferences(_synthetic(), tmp_path / "file" / "cache")


def test_a_disk_that_is_full_is_the_users_to_mend(tmp_path):
    # A limit on the size of files fails a write as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, before[1]))
    try:
        with pytest.raises(InputError, match="the interactions cannot be written"):
            load_preferences(_synthetic(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_build_one_cache_at_once_all_get_the_data(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        prints = pool.map(_fingerprint_in, [tmp_path] * 4)
    assert len(set(prints)) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".arrow"]


def _fingerprint_in(cache_dir):
    return load_preferences(_synthetic(), cache_dir).fingerprint


def _read_back(table, row):
    user, question = int(table.user_codes[row]), int(table.question_codes[row])
    label = int(table.split_labels[row])
    responses = range(table.offsets[row + 1] - table.offsets[row])
    texts = [table.text(row, response) for response in responses]
    return Interaction(
        interaction_id=table.columns["interaction_id"][row].as_py(),
        culture=table.cultures[table.culture_codes[row]],
        user=table.users[user] if user >= 0 else None,
        question=table.questions[question] if question >= 0 else None,
        prompt=texts[0].prompt,
        responses=tuple(text.response for text in texts),
        human_scores=tuple(table.human_scores[table.offsets[row] : table.offsets[row + 1]]),
        history=texts[0].history,
        split=SPLIT_LABELS[label] if label >= 0 else None,
    )
