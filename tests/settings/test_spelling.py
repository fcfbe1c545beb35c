"""Names as people spell them."""

import pytest

from scpo_ray.settings.spelling import (
    keys_spelled_once,
    looking_alike,
    nearest_names,
    plain_name,
    spelled_once,
)

ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


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


@pytest.mark.parametrize(
    "spelling",
    [
        "Côte d'Ivoire",
        " Côte d'Ivoire\n",
        "Côte \t d'Ivoire",
        "Co\u0302te d'Ivoire",
        "Côte\u00a0d'Ivoire",
        "\ufeffCôte\u3000d'Ivoire\u200b",
        "\u202eCôte\u202c \u2066d'Ivoire\u2069",
        "Cô\u034fte\u061c d'\u2062Ivoire\ufe0f",
    ],
)
def test_a_name_has_one_spelling_whatever_its_blanks_and_accents_are(spelling):
    assert plain_name(spelling) == "Côte d'Ivoire"


@pytest.mark.parametrize(
    "name", ["Chile", "chile", "Çorum", "می\u200cخواهم", "中国", "U.S.", ENGLAND]
)
def test_a_name_keeps_its_letters_and_their_case(name):
    assert plain_name(name) == name


def test_names_are_spelled_and_each_is_there_once():
    assert spelled_once([" A", "B ", 3], "cultures") == ["A", "B", 3]
    assert keys_spelled_once({" A": 1, "B": 2}, "users") == {"A": 1, "B": 2}
    with pytest.raises(ValueError, match=r"users must name each culture once, got \['A', 'A '\]"):
        keys_spelled_once({"A": 1, "A ": 2}, "users")


@pytest.mark.parametrize(
    "alike",
    [
        ["Chile", "chile", "CHILE"],
        ["STRASSE", "Straße"],
        ["Istanbul", "İstanbul", "ıstanbul"],
        ["U.S.", "U.S"],
        ["Ｍexico", "Mexico"],
        ["Guinea\u2010Bissau", "Guinea-Bissau", "Guinea–Bissau"],
        ["Cote d’Ivoire", "Cote d'Ivoire"],
        ["Mex\u200dico", "Mexico"],
    ],
)
def test_names_that_look_alike_are_found_together(alike):
    assert looking_alike(["Peru", *alike, "U.K.", "."]) == [alike]
