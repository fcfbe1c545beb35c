"""Who would get what: cultures' and mixtures' picks side by side, as one HTML page."""

from pathlib import Path

from scpo_ray.report.cells import Cell, Row, Table
from scpo_ray.report.overviews import JudgedPrompt, Steering
from scpo_ray.report.page import render
from scpo_ray.storage.disk import whole_file


def write_steering_page(found: Steering, title: str, path: Path) -> Path:
    """One self-contained HTML file; `path`, which is there whole or not at all.

    Raises: InputError if it cannot be written.
    """
    page = render(
        "steering.html.jinja",
        [],
        title=title,
        lead=_lead(found),
        agreement=_agreement(found),
        examples=[_example(prompt) for prompt in found.examples],
        judges=found.judges,
    )
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _lead(found: Steering) -> list[str]:
    sentences = [
        f"{found.num_prompts:,} prompts; for {found.num_parted:,} of them the "
        f"{len(found.judges)} judges do not all pick the same response."
    ]
    if found.truncated:
        sentences.append(f"{found.truncated:,} responses were cut at a model's maximum length.")
    return sentences


def _agreement(found: Steering) -> Table:
    rows = [
        Row(judge, "", "", [Cell(f"{100 * found.agreement[judge][o]:.1f}") for o in found.judges])
        for judge in found.judges
    ]
    columns = [(judge, "") for judge in found.judges]
    return Table("The same pick, % of the prompts", "judge", columns, rows)


def _example(prompt: JudgedPrompt) -> dict[str, object]:
    """What the template shows; each response with who picks it and what it is worth to whom."""
    return {
        "place": prompt.place,
        "parted": f"{prompt.parted:.2f}",
        "turns": prompt.turns,
        "responses": [
            {
                "text": response,
                "pickers": [judge for judge, pick in prompt.picks.items() if pick == place],
                "worth": [(judge, f"{of[place]:+.2f}") for judge, of in prompt.values.items()],
            }
            for place, response in enumerate(prompt.responses)
        ],
    }
