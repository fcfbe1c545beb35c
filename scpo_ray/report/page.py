"""Results as one HTML page and as pictures. Formats numbers and computes none."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from scpo_ray.records import CultureCounts, InputError
from scpo_ray.report import pictures
from scpo_ray.report.answer import comparison_answer, run_answer
from scpo_ray.report.answer_picture import answer_figure, behind_lines
from scpo_ray.report.cells import (
    NONE,
    percent,
    points,
    run_name,
    shortened,
    strip,
    unit_of,
)
from scpo_ray.report.confidence import best_of_n_tables, confidence_tables
from scpo_ray.report.examples import examples_of
from scpo_ray.report.findings import lead
from scpo_ray.report.opinion_answer import opinion_answer, shown_questions
from scpo_ray.report.order import control_evaluations, in_order, trained_on
from scpo_ray.report.page_tables import (
    comparison_tables,
    opinion_tables,
    run_tables,
    selection_table,
)
from scpo_ray.report.pictures import Picture, label
from scpo_ray.results import (
    ComparisonResult,
    RunResult,
)
from scpo_ray.settings.documents import write_yaml
from scpo_ray.settings.methods import method_order
from scpo_ray.storage.disk import whole_file

log = logging.getLogger(__name__)

MAX_OPTIONS = 8
"""Of a question shown with its answers."""
MAX_CULTURES_WITHIN = 30
MAX_CHARACTERS_WITHIN = 1_500_000
"""Of the figures: the rest of a page of 30 cultures takes less than half a million."""
MAX_PAGE_CHARACTERS = 2_000_000
MAX_TOPIC_CHARACTERS = 100_000
"""Of a topic that stays within a larger page, or one of more cultures."""


def write_report(
    results: Sequence[RunResult],
    comparison: ComparisonResult | None,
    path: Path,
    *,
    pictures_dir: Path | None = None,
) -> Path:
    """One HTML file that refers to nothing outside it; where there is much, what is folded stands
    beside it (`write_page`).

    Args:
        results: runs, in any order; those of `comparison` where there is one.
        comparison: methods side by side; None shows each run as a row of its own.
        pictures_dir: where the page's figures are written as PNG files, too.

    Returns: `path`; the file is there whole or not at all.
    Raises: InputError if there is nothing to show or a place cannot be written.
    """
    if not results and comparison is None:
        raise InputError(f"{path}: nothing to report", ["results: must hold a run, got none"])
    results = in_order(results, comparison.cultures if comparison else ())
    drawn = _drawn(results, comparison)
    tested = {culture for result in results for culture in result.evaluation}
    num_cultures = max(len(tested), len(comparison.cultures) if comparison else 0)
    values = _values(results, comparison) | {"num_cultures": num_cultures}
    size = write_page(path, "report.html.jinja", drawn, num_cultures=num_cultures, values=values)
    if pictures_dir is not None:
        save_pictures(drawn, pictures_dir)
    # The commands say where it is.
    log.debug("%s: %d runs, %.1f MB", path, len(results), size / 1e6)
    return path


def save_pictures(drawn: Sequence[Picture], folder: Path) -> list[Path]:
    """Figures as PNG files in `folder`, by their names: the same runs give the same."""
    paths = []
    for picture in drawn:
        paths.append(folder / f"{picture.name}.png")
        with whole_file(paths[-1]) as part:
            pictures.save_png(picture.figure, part)
    return paths


@dataclass(frozen=True)
class Shown:
    """A figure as the page has it: `svg` is the picture itself, or a reference to its file."""

    section: str
    subject: str
    svg: Markup


@dataclass(frozen=True)
class Topic:
    """What is folded under a title. `token`: what no text that is escaped can hold."""

    id: str
    title: str
    body: str

    @property
    def token(self) -> str:
        return f"<!--topic {self.id}-->"


def write_page(
    path: Path,
    template: str,
    drawn: Sequence[Picture],
    *,
    num_cultures: int,
    values: Mapping[str, Any],
) -> int:
    """A page of this package at `path`: `template` with its figures and `values`, escaped.

    Of more than `MAX_CULTURES_WITHIN` cultures, or more than `MAX_CHARACTERS_WITHIN` characters,
    the figures stand in a folder beside it. Of more cultures, or a page of more than
    `MAX_PAGE_CHARACTERS`, a topic of more than `MAX_TOPIC_CHARACTERS` is a page beside it and the
    fold has a link. What is under no topic, as the answer, stays. Returns: the page's characters.
    """
    svgs = {p.name: pictures.to_svg(p.figure, title=p.title, key=p.name) for p in drawn}
    folder = path.with_name(f"{path.stem}_pictures")
    is_small = num_cultures <= MAX_CULTURES_WITHIN
    inline = is_small and sum(map(len, svgs.values())) <= MAX_CHARACTERS_WITHIN
    figures = [
        Shown(p.section, p.subject, Markup(svgs[p.name] if inline else _reference(folder, p)))
        for p in drawn
    ]
    topics: list[Topic] = []
    shared = {"inks": pictures.INKS, "figures": figures, "legends": _legends(drawn), **values}
    page = _rendered(template, shared, topics)
    if is_small and len(page) + sum(len(t.body) for t in topics) <= MAX_PAGE_CHARACTERS:
        apart = []
    else:
        apart = [t for t in topics if len(t.body) > MAX_TOPIC_CHARACTERS]
    for topic in topics:
        beside = path.with_name(f"{path.stem}_{topic.id}.html")
        body = topic.body
        if topic in apart:
            within = {
                **shared,
                "topic": topic.title,
                "of_topic": Markup(body),
                "page": quote(path.name),
            }
            with whole_file(beside) as part:
                part.write_text(_rendered("topic.html.jinja", within, []), encoding="utf-8")
            body = (
                f'<p><a href="{quote(beside.name)}">{escape(topic.title)}, on its own page</a></p>'
            )
        page = page.replace(topic.token, body, 1)
    if not inline:
        for picture in drawn:
            with whole_file(folder / f"{picture.name}.svg") as part:
                part.write_text(pictures.standing_alone(svgs[picture.name]), encoding="utf-8")
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return len(page)


def _reference(folder: Path, picture: Picture) -> str:
    source = f"{quote(folder.name)}/{picture.name}.svg"
    size = 'width="{:.0f}" height="{:.0f}"'.format(*(100 * picture.figure.get_size_inches()))
    return (
        f'<img class="figure" loading="lazy" {size} src="{source}" alt="{escape(picture.title)}">'
    )


def _rendered(template: str, values: Mapping[str, Any], topics: list[Topic]) -> str:
    """The page with each topic's token in place of its body; the topics are added to `topics`."""

    def apart(id: str, title: str, body: str) -> Markup:
        topics.append(Topic(id, title, _shown(body)))
        return Markup(topics[-1].token)

    loader = PackageLoader("scpo_ray.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"label": label, "percent": percent, "points": points, "strip": strip}
    environment.filters |= {"shortened": shortened, "trained_on": trained_on}
    environment.filters |= {"yaml": write_yaml}
    script = environment.get_template("page.js").render()
    return _shown(
        environment.get_template(template).render(
            contents=[], script=Markup(script), apart=apart, **values
        )
    )


def _shown(page: str) -> str:
    # HTML has no control characters and no lone surrogates; the texts of a data set may.
    return re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", page)


def _legends(drawn: Sequence[Picture]) -> dict[str, Markup]:
    """Section -> what its lines mean: those that are drawn there."""
    names: dict[str, list[str]] = {}
    for picture in drawn:
        names.setdefault(picture.section, []).extend(picture.names)
    legends = {}
    for section, of in names.items():
        methods = sorted(dict.fromkeys(of), key=method_order)
        figure = pictures.legend_figure(methods) if methods else None
        legends[section] = Markup(
            pictures.to_svg(figure, title="Legend", key=f"legend-{section}") if figure else ""
        )
    return legends


def _drawn(results: Sequence[RunResult], comparison: ComparisonResult | None) -> list[Picture]:
    """Every figure of the page, in its order."""
    if comparison is None:
        return pictures.draw(results, None)
    drawn = []
    for name, with_behind in (("answer", False), ("behind", True)):
        rows = behind_lines(comparison, with_behind=with_behind)
        if rows:
            title = "How far the other methods are behind the best, by culture"
            drawn.append(Picture(name, f"{name}-01", title, answer_figure(rows)))
    return [*drawn, *pictures.draw(results, comparison)]


def _values(results: Sequence[RunResult], comparison: ComparisonResult | None) -> dict[str, Any]:
    unit = unit_of(results)
    answer, advice = (
        comparison_answer(comparison, unit) if comparison else run_answer(results, unit)
    )
    of_opinions, said_of_opinions = opinion_answer(results, comparison)
    return {
        "title": comparison.experiment if comparison else results[0].experiment,
        "lead": lead(results, comparison),
        "answer": answer,
        "advice": advice,
        "results": results,
        "comparison": comparison,
        "tables": comparison_tables(results, comparison) if comparison else run_tables(results),
        "opinions": opinion_tables(results, comparison),
        "opinion_answer": of_opinions,
        "opinion_lead": said_of_opinions,
        "questions": shown_questions(results),
        "max_options": MAX_OPTIONS,
        "confidence": confidence_tables(results, unit),
        "best_of_n": best_of_n_tables(results, unit),
        "selection": selection_table(results),
        "examples": examples_of(results),
        "data": _data(results),
        "warnings": list(dict.fromkeys(w for r in results for w in r.warnings)),
        "told": [(run_name(r), sentence) for r in results for sentence in r.told],
        "unit": unit,
        "max_cultures": pictures.MAX_CULTURES,
        "matrix_side": pictures.matrix_side(len({r.method for r in results} - {"global"})),
        "names": {
            "cultures": comparison.cultures if comparison else [],
            "methods": comparison.methods if comparison else [],
        },
    }


def _data(results: Sequence[RunResult]) -> dict[tuple[str, str], tuple[CultureCounts, int | None]]:
    """(data fingerprint, culture) -> counts and truncated texts, each said once, in page order."""
    order = list(control_evaluations(results))
    found = {
        (r.fingerprints.get("data", NONE), culture): (counts, r.truncated_texts.get(culture))
        for r in reversed(results)
        for culture, counts in r.data.items()
    }

    def place(key: tuple[str, str]) -> tuple[str, int, str]:
        fingerprint, culture = key
        return fingerprint, order.index(culture) if culture in order else len(order), culture

    return {key: found[key] for key in sorted(found, key=place)}
