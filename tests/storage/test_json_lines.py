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
    ("line", "problem"),
    [
        (b'{"a"', "line 2: not JSON"),
        (b"", "line 2: not JSON"),
        (b"\xff", "line 2: not JSON"),
        (b"\0\0", "line 2: not JSON"),
        (b"3", "line 2: not an object"),
        (b"[1]", "line 2: not an object"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, problem):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')

    with pytest.raises(InputError) as error:
        read_json_lines(path)

    assert str(error.value) == f"{path}: damaged\n  {problem}"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x\.jsonl: cannot be written\n  No such file"):
        append_json_lines(tmp_path / "none" / "x.jsonl", LINES)


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
