"""Messages are read in whatever shape they stand, and no other text is taken for messages."""

import json
import time

import numpy as np
import pytest

from scpo_ray.data.messages import messages_read, transcript
from scpo_ray.data.rows import BadField

LISTED = [{"role": "user", "content": 'it\'s "x"\n'}, {"role": "assistant", "content": "[é]"}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(LISTED),
        json.dumps(LISTED, indent=1),
        json.dumps(LISTED, separators=(",", ":"), ensure_ascii=False),
        " \n" + json.dumps(LISTED).replace('[{"', '[ {\t"') + "\n",
        json.dumps(LISTED, sort_keys=True),
        json.dumps([message | {"id": 1, "tool_calls": None} for message in LISTED]),
        repr(LISTED),
        repr(LISTED).replace("[{", "[\n {"),
        json.dumps(json.dumps(LISTED)),
        json.dumps(repr(LISTED)),
    ],
)
def test_a_list_of_messages_as_text_is_a_list_of_messages(text):
    read = messages_read("chosen", text)

    assert [{key: message[key] for key in ("role", "content")} for message in read] == LISTED


@pytest.mark.parametrize(
    "text",
    [
        str(np.array(LISTED, dtype=object)),  # as pandas writes a column of lists read from Parquet
        repr(np.array(LISTED, dtype=object)),
        repr(LISTED)[:-8],  # as a spreadsheet cuts a long cell
        json.dumps(LISTED)[:-8],
        repr(LISTED)[:-1] + ", *more]",
        "[" + repr({"role": "user", "content": "x"})[:-1] + ", 'n': 10 ** 5000}]",
        "[{'role': 'user', 'content': " + "[" * 5_000,
        "[{'role': 'user', 'content': '" + "x" * 1_000_000 + "'}]",
        "[{'role': 'user', 'content': __import__('os').getcwd()}]",
    ],
)
def test_what_begins_as_messages_and_cannot_be_read_is_refused(text):
    rule = "begins as a list of messages and cannot be read as one: write it as JSON"
    with pytest.raises(BadField, match=rule):
        messages_read("chosen", text)


@pytest.mark.parametrize(
    "text",
    [
        "[hello]",
        '[{"not": json',
        '[{"role": "cook"}]',
        '{"menu": {"role": "user", "content": "x"}}',
        '[{"id": 1, "meta": {"role": "user", "content": "x"}}]',
        "Write [{'role': 'user', 'content': 'x'}] into a file",
        "('role': 'x', 'content': 'y'",
        '"quoted"',
        "[" * 100_000,
        "",
    ],
)
def test_any_other_text_stays_the_text_it_is(text):
    assert messages_read("chosen", text) is text


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant: b", (("user", "a"), ("assistant", "b"))),
        (
            "Human: a\nb\n\nc\n\nAssistant:d\n\nHuman: e\n\nAssistant:",
            (("user", "a\nb\n\nc"), ("assistant", "d"), ("user", "e"), ("assistant", "")),
        ),
        ("Human: a\nAssistant: b\n", (("user", "a"), ("assistant", "b"))),
        ("Human: a\r\n\r\nAssistant: b", (("user", "a"), ("assistant", "b"))),
        # A label after a single line end is the reply's own where turns are parted by empty lines.
        ("Human: a\n\nAssistant: b\nHuman: c", (("user", "a"), ("assistant", "b\nHuman: c"))),
    ],
)
def test_a_transcript_is_its_turns(text, turns):
    assert transcript(text) == turns


@pytest.mark.parametrize("text", ["", "Human: a", "Assistant: b", "I am Human: \n\nAssistant: b"])
def test_other_texts_are_no_transcript(text):
    assert transcript(text) is None


@pytest.mark.parametrize("text", [" " * 10**6, "Human:" + "\n" * 10**6, "\t'" + " " * 10**6 + "x"])
def test_a_million_blanks_are_read_in_no_time(text):
    started = time.process_time()
    assert messages_read("chosen", text) is text
    assert transcript(text) is None
    assert time.process_time() - started < 5
