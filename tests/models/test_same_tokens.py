"""Pairs that become one and the same to a model are left out, counted and said."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scpo_ray.models.same_tokens as module
from scpo_ray.commands.health import data_health
from scpo_ray.experiment import load_inputs
from scpo_ray.inputs import open_run_dir
from scpo_ray.models.same_tokens import (
    check_pairs_left,
    have_same_tokens,
    mostly_unknown,
    told_apart,
)
from scpo_ray.records import CultureCounts, InputError, Pairs, PreferenceData, Tokens
from scpo_ray.report.listings import data_tables
from tests.models.test_rendering import CHAT_TEMPLATE, changed_tokenizer
from tests.models.test_templates import ALTERNATING
from tests.tiny import tiny_config


def tokens_of(*texts: list[int], types: bool = False) -> Tokens:
    flat = np.array([token for text in texts for token in text], dtype=np.int32)
    return Tokens(
        input_ids=flat,
        token_type_ids=np.zeros(len(flat), np.int8) if types else None,
        offsets=np.cumsum([0, *map(len, texts)], dtype=np.int64),
        truncated=np.zeros(len(texts), dtype=np.bool_),
    )


def pairs_of(*pairs: tuple[int, int], cultures: tuple[int, ...] = ()) -> Pairs:
    chosen, rejected = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    numbers = np.arange(len(chosen))
    codes = np.array(cultures or [0] * len(chosen), dtype=np.int32)
    first, second = numbers.astype(np.int16), numbers.astype(np.int16)
    scores = np.ones(len(chosen), np.float32), np.zeros(len(chosen), np.float32)
    return Pairs(
        numbers, chosen, rejected, first, second, *scores, codes, numbers, ("Chile", "Peru")
    )


def test_pairs_are_the_same_where_every_token_is():
    tokens = tokens_of([1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 2], [], [])

    same = have_same_tokens(pairs_of((0, 1), (0, 2), (0, 3), (4, 5), (3, 4), (2, 2)), tokens)

    assert same.tolist() == [True, False, False, True, False, True]


def test_token_types_tell_two_texts_apart():
    tokens = tokens_of([1, 2], [1, 2], [1, 2], types=True)
    types = np.array([0, 1, 0, 1, 0, 0], dtype=np.int8)

    same = have_same_tokens(pairs_of((0, 1), (0, 2)), replace(tokens, token_type_ids=types))

    assert same.tolist() == [True, False]


TEXTS = st.lists(st.lists(st.integers(0, 1), max_size=4), min_size=1, max_size=8)


@given(texts=TEXTS, data=st.data(), chunk=st.integers(1, 9))
def test_it_is_what_comparing_one_by_one_says_in_chunks_of_any_size(texts, data, chunk):
    place = st.integers(0, len(texts) - 1)
    pairs = data.draw(st.lists(st.tuples(place, place), max_size=8))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TOKENS_PER_CHUNK", chunk)
        same = have_same_tokens(pairs_of(*pairs), tokens_of(*texts))
        unknown = mostly_unknown(tokens_of(*texts), 1)

    assert same.tolist() == [texts[i] == texts[j] for i, j in pairs]
    assert unknown.tolist() == [2 * sum(text) > len(text) for text in texts]


def counts(train: int, dev: int, test: int) -> CultureCounts:
    return CultureCounts(9, 9, 9, 9, 9, 9, train, dev, test, 0, 0, 0.5, 0, {}, {})


def made_data() -> tuple[PreferenceData, Tokens]:
    """Texts 0 and 1 are the same tokens, so are 4 and 5; Chile has 2 + 2 + 1 pairs, Peru 2 + 2."""
    tokens = tokens_of([5, 6], [5, 6], [5, 7], [5, 8], [1, 1], [1, 1])
    data = PreferenceData(
        train=pairs_of((0, 1), (2, 3), (4, 5), (2, 3), cultures=(0, 0, 1, 1)),
        dev=pairs_of((0, 1), (3, 2), cultures=(0, 0)),
        test=pairs_of((3, 2), (4, 5), (5, 4), cultures=(0, 1, 1)),
        texts=[],  # type: ignore[arg-type]  # none is read
        interaction_ids=[],
        cultures=("Chile", "Peru"),
        counts={"Chile": counts(2, 2, 1), "Peru": counts(2, 0, 2)},
        warnings=("said before",),
        fingerprint="0123456789abcdef",
    )
    return data, tokens


def test_what_is_left_out_is_counted_and_warned_of():
    data, tokens = made_data()

    left = told_apart(data, tokens, unknown_id=9)

    assert [len(pairs) for pairs in left.sides] == [2, 1, 1]
    chile, peru = left.counts["Chile"], left.counts["Peru"]
    assert (chile.train_pairs, chile.dev_pairs, chile.test_pairs) == (1, 1, 1)
    assert (chile.same_tokens_train, chile.same_tokens_dev, chile.same_tokens_test) == (1, 1, 0)
    assert (chile.train_users, chile.dev_users, chile.test_users) == (1, 1, 1)
    assert chile.train_test_texts == 2
    assert (peru.train_pairs, peru.test_pairs) == (1, 0)
    assert (peru.same_tokens_train, peru.same_tokens_test) == (1, 2)
    assert left.warnings[0] == "said before"
    assert [line.partition(" are left out")[0] for line in left.warnings[1:]] == [
        "Chile: 1 training, 1 dev and 0 test pairs",
        "Peru: 1 training, 0 dev and 2 test pairs",
    ]
    assert left.fingerprint != data.fingerprint
    assert len(left.fingerprint) == 16


def test_where_all_can_be_told_apart_nothing_changes():
    data, _ = made_data()

    assert told_apart(data, tokens_of([1], [2], [3], [4], [5], [6]), unknown_id=None) == data


def test_texts_of_unknown_tokens_are_warned_of():
    data, tokens = made_data()

    left = told_apart(data, tokens, unknown_id=1)

    # Peru has texts 2 and 3, and 4 and 5, which are unknown: not more than half
    assert not [line for line in left.warnings if "unknown tokens: " in line]
    data = replace(data, train=data.train.take(np.array([0, 1, 2])))
    assert told_apart(data, tokens, unknown_id=1).warnings[1] == (
        "Peru: 2 of 2 texts are mostly unknown tokens: the model's vocabulary is not of their "
        "language or script"
    )


def test_a_culture_without_pairs_left_is_named():
    data, tokens = made_data()

    with pytest.raises(InputError) as caught:
        check_pairs_left(told_apart(data, tokens, unknown_id=None))

    assert caught.value.title == "cultures without pairs that the model can tell apart"
    assert caught.value.problems[0] == (
        "Peru: 1 of 2 training pairs and 2 of 2 test pairs become the same tokens: must have "
        "others on both sides"
    )
    assert caught.value.problems[-1].endswith("only cultures that have both: Chile")


def test_many_pairs_are_compared_in_one_go():
    rng = np.random.default_rng(0)
    lengths = np.full(2_000, 64)
    tokens = Tokens(
        rng.integers(0, 2, int(lengths.sum()), dtype=np.int32),
        None,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(2_000, dtype=np.bool_),
    )
    sides = rng.integers(0, 2_000, (20_000, 2))

    same = have_same_tokens(pairs_of(*map(tuple, sides)), tokens)

    # 64 random bits: equal only where it is one text
    np.testing.assert_array_equal(same, sides[:, 0] == sides[:, 1])


# Whole inputs


def rows(num_unknown: int) -> list[dict[str, object]]:
    """Ten users of either culture; of North the last pairs are words that nobody knows."""
    return [
        {
            "prompt": "лебедь рак щука да воз" if num_unknown == 10 else f"about {user}",
            "chosen": "щука"
            if culture == "North" and user < num_unknown
            else f"answer {culture} {user}",
            "rejected": "рак"
            if culture == "North" and user < num_unknown
            else f"art {culture} {user}",
            "culture": culture,
            "user": f"{culture}-{user}",
        }
        for culture in ("North", "South")
        for user in range(10)
    ]


def config_of(model, folder, lines, **settings):
    folder.mkdir(exist_ok=True)
    file = folder / "preferences.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny_config(model, folder / "runs", model={"path": str(model), **settings})
    data = {
        "source": "preferences",
        "train_files": [str(file)],
        "split": {"by": "user", "test_size": 0.3, "dev_size": 0},
        "columns": {"user": "user"},
    }
    return type(config).model_validate(config.model_dump(mode="json") | {"data": data})


def test_pairs_of_an_unknown_script_leave_training_and_test(tiny_reward_model, tmp_path):
    inputs, plain = (
        load_inputs(config, open_run_dir(config)).data
        for config in (
            config_of(tiny_reward_model, tmp_path / str(number), rows(number)) for number in (4, 0)
        )
    )

    north = inputs.counts["North"]
    assert north.same_tokens_train + north.same_tokens_test == 4
    assert north.train_pairs + north.test_pairs == 6
    assert len(inputs.train) + len(inputs.test) == 16
    assert len(plain.train) + len(plain.test) == 20
    assert inputs.counts["South"] == plain.counts["South"]


def test_the_data_command_shows_them_whatever_is_left(tiny_reward_model, tmp_path):
    config = config_of(tiny_reward_model, tmp_path, rows(10))

    health = data_health(config)

    assert (health.counts["North"].train_pairs, health.counts["North"].test_pairs) == (0, 0)
    assert any("mostly unknown tokens" in line for line in health.warnings)
    cells = [list(column.cells) for column in data_tables(health)[0].columns]
    train, test = (
        getattr(health.counts["North"], f"same_tokens_{side}") for side in ("train", "test")
    )
    assert [f"10\n({train} + 0 + {test})", "0"] in cells
    with pytest.raises(InputError, match="North: .* become the same tokens"):
        load_inputs(config, open_run_dir(config))


def test_a_template_that_drops_what_differs_leaves_no_pair(tiny_reward_model, tmp_path):
    template = CHAT_TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
    model = changed_tokenizer(tiny_reward_model, tmp_path / "model", chat_template=template)
    lines = rows(0)
    lines[0] |= {"chosen": "<think> answer </think> art", "rejected": "<think> a </think> art"}
    config = config_of(model, tmp_path, lines, renderer="chat")

    data = load_inputs(config, open_run_dir(config)).data

    north = data.counts["North"]
    assert north.same_tokens_train + north.same_tokens_test == 1


def test_a_refused_conversation_is_named_by_file_and_line(tiny_reward_model, tmp_path):
    template = ALTERNATING.replace("<|turn|>", "[CLS]").replace("</s>", "[SEP]")
    model = changed_tokenizer(tiny_reward_model, tmp_path / "model", chat_template=template)
    lines = rows(0)
    said = {"role": "user", "content": "about art"}
    lines[3] |= {"prompt": [{"role": "system", "content": "a"}, said]}
    lines[7] |= {"prompt": [said, said]}
    config = config_of(model, tmp_path, lines, renderer="chat")

    with pytest.raises(InputError) as caught:
        load_inputs(config, open_run_dir(config))

    # Each row has two texts; the other rows are read to their end.
    assert caught.value.title == f"model.path = {model}: 4 of 40 texts cannot be rendered"
    assert list(caught.value.problems) == [
        "preferences.jsonl:4: No system here",
        "preferences.jsonl:8: Roles must alternate",
    ]


def test_at_most_twenty_refused_conversations_are_named(tiny_reward_model, tmp_path):
    model = changed_tokenizer(
        tiny_reward_model, tmp_path / "model", chat_template="{{ raise_exception('never') }}"
    )
    config = config_of(model, tmp_path, [*rows(0), *rows(0)[:3]], renderer="chat")

    with pytest.raises(InputError) as caught:
        load_inputs(config, open_run_dir(config))

    # 20 rows and 3 again: 23 interactions with the same texts
    lines = [f"preferences.jsonl:{number}: never" for number in range(1, 21)]
    assert list(caught.value.problems) == [*lines, "and 3 more"]
