"""`scpo efficiency` from the file to its answer, its trials started on Ray."""

import json
import re

import pytest

from tests.launch.test_sweep import sweep_file
from tests.test_cli import in_process

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_the_shares_are_trained_on_and_the_pairs_that_scpo_needs_are_said(
    tiny_reward_model, tmp_path
):
    file = sweep_file(
        tmp_path,
        tiny_reward_model,
        {"train": {"max_steps": 2}},
        space={
            "culture": {"grid": ["North"]},
            "method": {"grid": ["finetune", "scpo"]},
            "data.data_fraction": {"grid": [0.5, 1.0]},
        },
    )

    outcome = in_process("efficiency", file)
    again = in_process("efficiency", file, "--json")

    assert outcome.code == 0, outcome.err
    assert len(re.findall(r"method=(?:finetune|scpo) +(?:0.5|1) +\d+ +\d", outcome.out)) == 4
    [needed] = re.findall(r"method=scpo\W* needs ([0-9.]+) \[", outcome.err)
    assert 0 < float(needed) <= 2
    assert again.code == 0, again.err
    [value, *_] = [curve["pairs_to_match"] for curve in json.loads(again.out)][1]
    assert f"{value:.2f}" == needed
