"""One name for a country, whichever survey spelled it."""

import pytest

from scpo_ray.settings.countries import COUNTRY_ALIASES, country_and_sample, country_name
from scpo_ray.settings.data import PAPER_CULTURES


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("S. Africa", "South Africa"),
        ("South Africa", "South Africa"),
        ("Britain", "United Kingdom"),
        ("Great Britain", "United Kingdom"),
        ("Czech Rep.", "Czechia"),
        (" Mexico ", "Mexico"),
        ("S. Africa (Non-national sample)", "South Africa (Non-national sample)"),
    ],
)
def test_spellings_of_a_country_have_one_name(spelling, name):
    assert country_name(spelling) == name


@pytest.mark.parametrize("kind", ["Non-national sample", "Old national sample"])
def test_a_sample_that_is_not_national_is_told_from_the_country(kind):
    assert country_and_sample(f"India ({kind})") == ("India", kind)
    assert country_and_sample("India") == ("India", None)


def test_names_are_their_own_names():
    names = {*COUNTRY_ALIASES.values(), *PAPER_CULTURES}

    assert {country_name(name) for name in names} == names
