import gzip
import json
import os
from pathlib import Path

import pytest

from scpo_ray.data.loading import load_preferences
from scpo_ray.data.prism import PrismConfig, open_prism
from scpo_ray.data.rows import Notes
from scpo_ray.records import InputError
from scpo_ray.settings.data import PAPER_CULTURES

ROOT = Path(__file__).parents[2]
SAMPLE = Path(os.environ.get("SCPO_SHARED_DATA", ROOT.parent / "shared" / "data")) / "prism_like"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no sample data at {SAMPLE}")


def _user(name, country="Chile"):
    return {"user_id": name, "location": {"reside_country": country}}


def _utterance(number, interaction="i0", conversation="c0", user="u0", **fields):
    return {
        "utterance_id": f"ut{number}",
        "interaction_id": interaction,
        "conversation_id": conversation,
        "user_id": user,
        "turn": 0,
        "user_prompt": f"prompt of {interaction}",
        "model_response": f"reply {number}",
        "score": number % 100 + 1,
        "if_chosen": False,
        **fields,
    }


def _write(folder, survey, utterances):
    folder.mkdir(exist_ok=True)
    (folder / "survey.jsonl").write_text("".join(json.dumps(row) + "\n" for row in survey))
    with gzip.open(folder / "utterances.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in utterances)
    return folder


def _read(folder, history=False):
    notes = Notes()
    config = PrismConfig(path=str(folder), history=history)
    interactions = [interaction for _, interaction in open_prism(config).read(notes)]
    return interactions, notes


def test_utterances_of_an_interaction_need_not_be_adjacent(tmp_path):
    rows = [
        _utterance(0),
        _utterance(2, "i1", "c1", "u1"),
        _utterance(1),
        _utterance(3, "i1", "c1", "u1"),
    ]
    folder = _write(tmp_path, [_user("u0"), _user("u1", "Israel")], rows)

    interactions, notes = _read(folder)

    assert not notes.num_problems
    assert [(i.interaction_id, i.culture, i.user) for i in interactions] == [
        ("i0", "Chile", "u0"),
        ("i1", "Israel", "u1"),
    ]
    assert interactions[0].responses == ("reply 0", "reply 1")
    assert interactions[0].human_scores == (1.0, 2.0)
    assert interactions[0].history == ()


def test_history_is_the_earlier_prompts_with_the_replies_their_user_chose(tmp_path):
    rows = [
        _utterance(0, "first", turn=0),
        _utterance(1, "first", turn=0, if_chosen=True),
        _utterance(2, "second", turn=1, if_chosen=True),
        _utterance(3, "second", turn=1),
    ]
    folder = _write(tmp_path, [_user("u0")], rows)

    (first, second), notes = _read(folder, history=True)

    assert not notes.num_problems
    assert first.history == ()
    assert second.history == (("user", "prompt of first"), ("assistant", "reply 1"))
    assert second.prompt == "prompt of second"
    assert [i.history for i in _read(folder, history=False)[0]] == [(), ()]


def test_history_without_a_chosen_reply_is_a_problem(tmp_path):
    rows = [_utterance(n, f"i{n // 2}", turn=n // 2) for n in range(4)]
    _, notes = _read(_write(tmp_path, [_user("u0")], rows), history=True)
    assert "if_chosen is true for 0 replies of 'i0': must be 1" in notes.problems[0]


def test_all_survey_users_are_in_the_split_also_those_without_interactions(tmp_path):
    survey = [_user("silent"), _user("u0"), _user("nowhere", None), _user("u1")]
    rows = [_utterance(0, user="u0"), _utterance(1, user="u0")]
    rows += [_utterance(n, "i1", "c1", "nowhere") for n in (2, 3)]

    interactions, notes = _read(_write(tmp_path, survey, rows))

    assert notes.users == ["silent", "u0", "nowhere", "u1"]
    assert [i.user for i in interactions] == ["u0"]
    assert notes.skipped == {
        ("", "user without country"): 1,
        ("", "interaction of a user without country"): 1,
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"score": None}, "score = null: must be a number"),
        ({"score": "80"}, "score = '80': must be a number"),
        ({"score": True}, "score = True: must be a number"),
        ({"score": float("nan")}, "score = nan: must be finite"),
        ({"score": float("inf")}, "score = inf: must be finite"),
        ({"score": 10**400}, "must be finite"),
        ({"user_prompt": None}, "user_prompt = null: must be text"),
        ({"model_response": 3}, "model_response = 3: must be text"),
        ({"user_id": "stranger"}, "user_id = 'stranger': is not in the survey"),
        ({"interaction_id": " "}, "interaction_id = ' ': must be text, not blank"),
        ({"utterance_id": "ut0"}, "duplicate utterance_id 'ut0', also at"),
        ({"user_id": "u1"}, "user_id = 'u1': differs within interaction 'i0'"),
        ({"user_prompt": "another"}, "user_prompt = 'another': differs within interaction 'i0'"),
    ],
)
def test_a_bad_utterance_is_named_with_file_line_field_and_value(tmp_path, changes, problem):
    rows = [_utterance(0), _utterance(1) | changes]
    folder = _write(tmp_path, [_user("u0"), _user("u1")], rows)

    with pytest.raises(InputError) as error:
        load_preferences(PrismConfig(path=str(folder), cultures=None), tmp_path / "cache")

    assert len(error.value.problems) == 1
    assert f"{folder / 'utterances.jsonl.gz'}, line 2: " in error.value.problems[0]
    assert problem in error.value.problems[0]


def test_a_missing_field_is_named(tmp_path):
    row = _utterance(0)
    del row["score"]
    _, notes = _read(_write(tmp_path, [_user("u0")], [row]))
    (problem,) = notes.problems
    file = tmp_path / "utterances.jsonl.gz"
    assert problem.startswith(f"{file}, line 1: no column 'score'; it has 'utterance_id',")


@pytest.mark.parametrize(
    ("survey", "problem"),
    [
        ([_user("u0"), _user("u0")], "line 2: duplicate user_id 'u0', also at"),
        ([{"user_id": "u0"}], "line 1: no column 'location'; it has 'user_id'"),
        ([{"user_id": "u0", "location": "Chile"}], "line 1: location = 'Chile': must be an object"),
        ([_user(None)], "line 1: user_id = null: must be text"),
        ([], "the file is empty: it has no rows"),
    ],
)
def test_a_bad_survey_stops_before_the_utterances(tmp_path, survey, problem):
    folder = _write(tmp_path, survey, [_utterance(0), _utterance(1)])
    with pytest.raises(InputError) as error:
        _read(folder)
    assert len(error.value.problems) == 1
    assert problem in error.value.problems[0]


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(InputError) as error:
        open_prism(PrismConfig(path=str(tmp_path)))
    assert len(error.value.problems) == 2
    assert "survey.jsonl: no such file" in error.value.problems[0]


@pytest.mark.parametrize("path", ["/nowhere/prism/like", "nobody/no-such-data"])
def test_a_path_that_is_no_folder_and_no_reachable_hub_data_set_is_named(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"data.path = {path}: neither a local folder nor a hub"):
        open_prism(PrismConfig(path=path))


@needs_sample
def test_the_sample_is_split_as_the_paper_does(tmp_path):
    from datasets import Dataset

    data = load_preferences(PrismConfig(path=str(SAMPLE)), tmp_path)

    survey = [json.loads(line) for line in (SAMPLE / "survey.jsonl").read_text().splitlines()]
    library = Dataset.from_list(survey).train_test_split(test_size=0.15, seed=0)
    assert data.cultures == PAPER_CULTURES
    for culture in PAPER_CULTURES:
        of_culture = [
            row["user_id"]
            for row in library["test"]
            if row["location"]["reside_country"] == culture
        ]
        assert data.counts[culture].test_users == len(of_culture)
        assert data.counts[culture].users == 16
    interactions = {count.interactions for count in data.counts.values()}
    assert min(interactions) > 250
    assert data.texts[int(data.train.chosen[0])].history == ()


@needs_sample
def test_the_samples_pairs_are_those_of_its_scores(tmp_path):
    data = load_preferences(PrismConfig(path=str(SAMPLE), cultures=["Chile"]), tmp_path)

    countries, scores = {}, {}
    for line in (SAMPLE / "survey.jsonl").read_text().splitlines():
        row = json.loads(line)
        countries[row["user_id"]] = row["location"]["reside_country"]
    with gzip.open(SAMPLE / "utterances.jsonl.gz", "rt") as stream:
        for line in stream:
            row = json.loads(line)
            if countries[row["user_id"]] == "Chile":
                reply = (row["model_response"], row["score"])
                scores.setdefault(row["interaction_id"], []).append(reply)
    expected = sorted(
        (name, chosen, rejected)
        for name, replies in scores.items()
        for chosen, high in replies
        for rejected, low in replies
        if high > low and chosen != rejected
    )
    found = sorted(
        (
            data.interaction_ids[pairs.interactions[n]],
            data.texts[int(pairs.chosen[n])].response,
            data.texts[int(pairs.rejected[n])].response,
        )
        for pairs in data.sides
        for n in range(len(pairs))
    )
    assert found == expected
