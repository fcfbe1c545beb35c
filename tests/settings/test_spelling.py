"""Names as people spell them."""

import pytest

from scpo_ray.settings.spelling import nearest_names


@pytest.mark.parametrize(
    ("name", "known", "shown"),
    [
        ("CHILE", ["Chile", "Peru"], "'Chile'"),
        ("xyz", ["Peru", "Chile"], "'Chile', 'Peru'"),
        ("xyz", list("hgfedcba"), "'a', 'b', 'c', 'd', 'e'"),
        ("xyz", [], "none"),
    ],
)
def test_nearest_names_ignore_case_and_never_leave_the_reader_without_any(name, known, shown):
    assert nearest_names(name, known) == shown
