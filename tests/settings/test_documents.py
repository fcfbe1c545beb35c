"""YAML 1.2 in, within bounds; out, what every reader takes for the same."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scpo_ray.settings.documents import read_yaml, write_yaml

WORDS = ["on", "off", "yes", "no", "y", "n", "Y", "N", "On", "OFF", "Yes", "NO"]


@pytest.mark.parametrize("word", WORDS)
def test_only_true_and_false_are_booleans(word):
    assert read_yaml(f"{word}: {word}") == {word: word}
    assert read_yaml(f"[{word}, true, False]") == [word, True, False]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:30", "12:30"),
        ("2026-11-28", "2026-11-28"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-4", 1e-4),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("~", None),
        ("=", "="),
        ("1_000", "1_000"),
        ("!!str 5", "5"),
    ],
)
def test_scalars_are_those_of_version_1_2(text, value):
    found = read_yaml(text)

    assert found == value
    assert type(found) is type(value)


TEXTS = [*WORDS, "true", "null", "~", "1e-4", "0o14", "12:30", "010", "2026-11-28", "<<", "="]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_looks_like_something_else_is_quoted(text):
    written = write_yaml({text: [text]})

    assert written == f"'{text}':\n- '{text}'\n"


_SCALARS = st.text() | st.sampled_from(TEXTS) | st.integers(-(2**63), 2**63) | st.booleans()
_SCALARS |= st.none() | st.floats(allow_nan=False)


@given(st.dictionaries(st.text(), st.lists(_SCALARS) | _SCALARS))
def test_what_is_written_reads_back_equal_by_version_1_1_and_1_2(document):
    written = write_yaml(document)

    assert read_yaml(written) == document
    assert yaml.safe_load(written) == document


def test_what_is_written_steers_no_terminal():
    written = write_yaml({"name": "\x1b[2J \u202e \ud800"})

    assert written == 'name: "\\e[2J \\u202e \\uD800"\n'


ALIASES = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALIASES, "more than 5,000 values, aliases followed"),
        (MERGES, "more than 5,000 values, aliases followed"),
        ("a: &a [*a]", "an alias stands within"),
        ("[" * 100_000, "nested deeper than 50 levels"),
        ("{a: " * 60, "nested deeper than 50 levels"),
        ("- " * 10_000 + "x", "nested deeper than 50 levels"),
        ("[" + "1," * 100_000 + "1]", "more than 5,000 values"),
        ("x" * 1_000_000, "1,000,000 characters: settings have at most 250,000"),
        ("9" * 100_000, "a number of 100,000 characters"),
        ("0x" + "f" * 90, "is beyond 64 bits"),
        ("a: 1\na: 2", "'a' is set twice"),
        ("{1: a, 0x1: b}", "'1' is set twice"),
        ("[a", "while parsing a flow sequence"),
        ("? [a]\n: 1", "a name must be a text"),
        ("a: !!python/object/apply:os.system [ls]", "no tag"),
        ("!!timestamp x", "no tag"),
        ("!!bool yes", "'yes' is no bool"),
        ("!!int ''", "'' is no int"),
        ("*a", "undefined alias"),
        ("a: \x1b", "special characters are not allowed"),
        ("a: 1\n---\nb: 2", "single document"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_settings_file_is_refused_within_a_second_of_computing(text, reason):
    began = time.process_time()

    with pytest.raises(ValueError, match=reason):
        read_yaml(text)

    assert time.process_time() - began < 1


def test_merge_keys_and_aliases_are_followed():
    assert read_yaml("a: &a {p: 1}\nb: {<<: *a, q: 2}\nc: *a") == {
        "a": {"p": 1},
        "b": {"p": 1, "q": 2},
        "c": {"p": 1},
    }
