"""One name for each country, whatever a survey calls it. Pure."""

import re
from collections.abc import Sequence
from typing import Any

COUNTRY_ALIASES = {
    "Bosnia Herzegovina": "Bosnia and Herzegovina",
    "Britain": "United Kingdom",
    "Czech Rep.": "Czechia",
    "Czech Republic": "Czechia",
    "Great Britain": "United Kingdom",
    "Hong Kong SAR": "Hong Kong",
    "Macau SAR": "Macau",
    "Palest. ter.": "Palestinian territories",
    "Russian Federation": "Russia",
    "S. Africa": "South Africa",
    "S. Korea": "South Korea",
    "Taiwan ROC": "Taiwan",
    "U.K.": "United Kingdom",
    "U.S.": "United States",
    "Viet Nam": "Vietnam",
}
"""A survey's spelling -> the name used here, which is PRISM's where PRISM has the country. The
surveys' British samples leave out Northern Ireland, which is a culture of its own in them."""

_SAMPLE = re.compile(r"(?P<country>.*\S)\s+\((?P<sample>[^()]*\bsample)\)")


def country_name(spelling: str) -> str:
    """The one name; a sample that is not national keeps its kind in brackets."""
    country, sample = country_and_sample(spelling)
    return country if sample is None else f"{country} ({sample})"


def country_names(spellings: Sequence[Any], setting: str) -> list[Any]:
    """The one name of each; what is no text stays, for whoever checks it.

    Raises: ValueError if two are the same country.
    """
    names = [country_name(each) if isinstance(each, str) else each for each in spellings]
    texts = [name for name in names if isinstance(name, str)]
    if len(set(texts)) < len(texts):
        raise ValueError(f"{setting} must name each country once, got {list(spellings)}")
    return names


def country_and_sample(spelling: str) -> tuple[str, str | None]:
    """The country's one name, and which of its samples this is; None for the national one.

    "S. Africa (Non-national sample)" -> ("South Africa", "Non-national sample").
    """
    words = " ".join(spelling.split())
    match = _SAMPLE.fullmatch(words)
    country, sample = (match["country"], match["sample"]) if match else (words, None)
    return COUNTRY_ALIASES.get(country, country), sample
