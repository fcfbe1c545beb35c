import re
from dataclasses import replace

import pytest

from scpo_ray.records import InputError
from scpo_ray.report.written import write_answer
from tests.results import comparison, example, run_result


def test_the_answer_is_a_markdown_table_with_what_to_do(tmp_path):
    results, summary = comparison()

    [path] = write_answer(results, summary, tmp_path / "report.md")

    text = path.read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "Macro mean (140 pairs, 9 users)",
        "Chile (140 pairs, 9 users)",
        "Israel (140 pairs, 9 users)",
        "Mexico (140 pairs, 9 users)",
    ]
    assert len({row.count("|") for row in rows}) == 1
    assert "| scpo; 62.7 \\[56.7, 68.7\\] | clear | +4.1 \\[+1.1, +7.1\\] |" in rows[2]
    assert re.search(
        r"^- Chile: use \w+, or (the cheapest of )?\w+.*, which (is|are) as good", text, re.M
    )


def test_names_of_the_data_cannot_break_the_table(tmp_path):
    names = ("a|b", "<b>*x*</b>", "new\nline")
    results, summary = comparison(cultures=names, seeds=(0,))

    text = write_answer(results, summary, tmp_path / "report.md")[0].read_text()

    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert r"a\|b (" in text and r"\<b\>\*x\*\</b\> (" in text and "new line (" in text


def test_latex_has_the_answer_and_the_example_pairs_with_rewards_scores_f_and_w(tmp_path):
    results, summary = comparison(methods=("global", "scpo"), seeds=(0,))
    pairs = [
        replace(
            example("Chile", kind, "50 % & more_of #1 [x] {y} ~ ^ \\ − …"),
            ref_rewards=(0.31, 0.73),
            human_scores=(80, 40),
        )
        for kind in ("kept", "dropped", "down-weighted")
    ]
    results = [replace(r, examples=pairs if r.method == "scpo" else []) for r in results]

    _, path = write_answer(results, summary, tmp_path / "report.md", latex=True)

    text = path.read_text()
    assert text.count(r"\begin{table*}") == 3 and text.count(r"\bottomrule") == 3
    assert "0.31 / 0.73 & 80 / 40 & 1 & 1.00 \\\\" in text
    assert "0.31 / 0.73 & 80 / 40 & 0 & 0.00 \\\\" in text
    assert "0.31 / 0.73 & 80 / 40 & 1 & 0.68 \\\\" in text
    assert r"50 \% \& more\_of \#1 {[}x] \{y\} \textasciitilde{} \textasciicircum{}" in text


def test_a_run_alone_is_written_too(tmp_path):
    [path] = write_answer([run_result()], None, tmp_path / "report.md")

    assert "Chile: scpo, seed 0 (140 pairs, 9 users)" in path.read_text()


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot be written"):
        write_answer([run_result()], None, tmp_path / "file" / "report.md")
