"""One name for each country, whatever a survey calls it. Pure."""

import re

from scpo_ray.settings.spelling import plain_name

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


def country_and_sample(spelling: str) -> tuple[str, str | None]:
    """The country's one name, and which of its samples this is; None for the national one.

    "S. Africa (Non-national sample)" -> ("South Africa", "Non-national sample").
    """
    words = plain_name(spelling)
    match = _SAMPLE.fullmatch(words)
    country, sample = (match["country"], match["sample"]) if match else (words, None)
    return COUNTRY_ALIASES.get(country, country), sample
