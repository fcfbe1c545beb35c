"""The answer as text for others to take over: Markdown for a pull request, LaTeX for a paper."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from scpo_ray.report.answer import comparison_answer, run_answer
from scpo_ray.report.cells import NONE, Cell, Row, Table, shortened, unit_of
from scpo_ray.report.examples import examples_of
from scpo_ray.report.findings import lead
from scpo_ray.report.order import in_order
from scpo_ray.results import ComparisonResult, ExamplePair, RunResult
from scpo_ray.storage.disk import whole_file

LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{MINUS SIGN}": "$-$",
    "–": "--",
    "…": r"\dots{}",
    # Behind the end of a row a bracket would be read as its height.
    "[": "{[}",
    "×": r"$\times$",
}
MAX_TEXT = 220
"""Characters of a prompt or a response in a printed table."""


def write_answer(
    results: Sequence[RunResult],
    comparison: ComparisonResult | None,
    path: Path,
    *,
    latex: bool = False,
) -> list[Path]:
    """The answer table of a page at `path`, in Markdown; with `latex` beside it as .tex, too.

    Args: as for `page.write_report`.
    Returns: the files. Raises: InputError if one cannot be written.
    """
    results = in_order(results, comparison.cultures if comparison else ())
    unit = unit_of(results)
    table, advice = run_answer(results, unit)
    if comparison is not None:
        table, advice = comparison_answer(comparison, unit)
    title = comparison.experiment if comparison else results[0].experiment
    said = lead(results, comparison)[0]
    texts = {path: markdown(title, said, table, advice)}
    if latex:
        texts[path.with_suffix(".tex")] = tex(said, table, advice, examples_of(results))
    for place, text in texts.items():
        with whole_file(place) as part:
            part.write_text(_clean(text), encoding="utf-8")
    return list(texts)


def markdown(title: str, said: str, table: Table, advice: Sequence[str]) -> str:
    """A heading, what was run, the table and what to do; names of the data cannot break it."""
    lines = [f"## {_md(title)}", "", _md(said), ""]
    if table.rows:
        head = [table.corner, *(name for name, _ in table.columns)]
        rows = [_cells(row) for row in table.rows]
        lines += [f"| {' | '.join(map(_md, line))} |" for line in (head, ["---"] * len(head))]
        lines += [f"| {' | '.join(map(_md, row))} |" for row in rows]
        lines += ["", "Differences are in points of accuracy on the same test pairs. In brackets:"]
        lines += ["95 % intervals; those of what the best gains hold for all methods at once.", ""]
    lines += [f"- {_md(sentence)}" for sentence in advice]
    return "\n".join(lines) + "\n"


def tex(
    said: str, table: Table, advice: Sequence[str], examples: Mapping[str, Sequence[ExamplePair]]
) -> str:
    """Floats for a paper (packages booktabs and array): the answer, and the example pairs.

    The examples are as in the paper's Tables 13 and 14: what the filter F kept and dropped, and
    what the weight W took down, with both rewards of the global model and people's scores.
    """
    parts = ["% \\usepackage{booktabs,array}", f"% {_clean(said)}"]
    parts += [f"% {_clean(sentence)}" for sentence in advice]
    if table.rows:
        head = [table.corner, *(name for name, _ in table.columns)]
        rows = [_cells(row) for row in table.rows]
        layout = "l" * len(head)
        parts.append(_float(f"{table.title}.", "answer", layout, head, rows))
    pairs = [example for of in examples.values() for example in of]
    of_filter = [p for p in pairs if p.kind in ("kept", "dropped")]
    of_weight = [p for p in pairs if p.kind == "down-weighted"]
    for name, caption, some in (
        ("filter", "Training pairs that the filter F kept and dropped.", of_filter),
        ("weight", "Training pairs that the weight W takes down.", of_weight),
    ):
        if some:
            text = r">{\raggedright\arraybackslash}p{0.2\linewidth}"
            layout = f"l{3 * text}rrcr"
            head = ["culture", "prompt", "chosen", "rejected", "rewards", "scores", "F", "W"]
            parts.append(_float(caption, name, layout, head, [_example(p) for p in some]))
    return "\n\n".join(parts) + "\n"


def _example(pair: ExamplePair) -> list[str]:
    texts = [shortened(text, MAX_TEXT) for text in (pair.prompt, pair.chosen, pair.rejected)]
    rewards, scores = pair.ref_rewards, pair.human_scores
    return [
        pair.culture,
        *texts,
        NONE if rewards is None else f"{rewards[0]:.2f} / {rewards[1]:.2f}",
        NONE if scores is None else f"{scores[0]:g} / {scores[1]:g}",
        "0" if pair.kind == "dropped" else "1",
        f"{pair.weight:.2f}",
    ]


def _float(
    caption: str, name: str, layout: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    lines = [
        r"\begin{table*}\centering\small",
        f"\\caption{{{_latex(caption)}}}\\label{{tab:{name}}}",
        f"\\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        *(f"{' & '.join(map(_latex, line))} \\\\" for line in (head,)),
        r"\midrule",
        *(f"{' & '.join(map(_latex, row))} \\\\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    name = f"{row.name} ({row.size})" if row.size else row.name
    return [name, *map(_joined, row.cells)]


def _joined(cell: Cell) -> str:
    """An interval stands behind its number, all else apart."""
    return cell.main + "".join(f" {x}" if x.startswith("[") else f"; {x}" for x in cell.lines)


def _clean(text: str) -> str:
    """Without what no file of text should hold: control characters and lone surrogates."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", text)


def _md(text: str) -> str:
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in " ".join(_clean(text).split()))
