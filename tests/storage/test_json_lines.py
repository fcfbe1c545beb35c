import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_ray.records import InputError
from scpo_ray.storage.json_lines import append_json_lines, read_json_lines

LINES = [{"a": 1}, {"b": "\u2028 é\n", "c": [None, True]}, {}]


def test_what_is_added_is_read_in_order(tmp_path):
    path = tmp_path / "x.jsonl"

    append_json_lines(path, LINES[:1])
    append_json_lines(path, [])
    append_json_lines(path, LINES[1:])

    assert read_json_lines(path) == LINES
    assert path.read_text().count("\n") == 3


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    append_json_lines(path, LINES)
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        caplog.clear()

        assert read_json_lines(path) == LINES[:whole]
        assert ("cut short by a crash" in caplog.text) == (
            content[:length][-1:] not in (b"", b"\n")
        )
        append_json_lines(path, [{"next": 1}])
        assert read_json_lines(path) == [*LINES[:whole], {"next": 1}]


@pytest.mark.parametrize(
    "line",
    [
        b'{"a"',
        b"",
        b"\xff",
        b"\0\0",
        b"3",
        b"[1]",
        b'{"a": 2}',
        b'{"a": 2, "crc32": "00000000"}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_left_out_and_said_or_refused_with_the_remedy(tmp_path, caplog, line):
    path = tmp_path / "x.jsonl"
    append_json_lines(path, [{"a": 1}, {"a": 3}])
    first, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, third, b""]))

    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]
    assert f"{path}: line 2 is not what was written: left out" in caplog.text

    with pytest.raises(InputError) as error:
        read_json_lines(path, remedy="do this")
    assert str(error.value) == f"{path}: damaged\n  line 2: not what was written\n  do this"


def test_a_line_with_any_byte_changed_is_another_line_or_the_same_object(tmp_path):
    path = tmp_path / "x.jsonl"
    append_json_lines(path, [{"a": 1.25, "b": "text"}])
    whole = path.read_bytes()

    for place in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert read_json_lines(path) in ([], [{"a": 1.25, "b": "text"}])


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x\.jsonl: cannot be written\n  No such file"):
        append_json_lines(tmp_path / "none" / "x.jsonl", LINES)
    with pytest.raises(InputError, match=r"cannot be written\n  Is a directory"):
        append_json_lines(tmp_path, LINES)


@settings(max_examples=50)
@given(
    st.lists(
        st.dictionaries(
            st.text(),
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        )
    )
)
def test_any_lines_come_back_as_they_were(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"

    append_json_lines(path, lines)

    assert read_json_lines(path) == lines
