"""`scpo efficiency` from the file to its answer, its trials started on Ray."""

import re

import pytest

from scpo_ray.sweep.store import load_sweep_result
from tests.launch.test_sweep import folder_of, states, sweep_file

pytestmark = [
    pytest.mark.ray,
    # Ray warns of settings of its own, and leaves files to the collector.
    pytest.mark.filterwarnings("ignore:::ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_the_shares_are_trained_on_and_the_pairs_that_scpo_needs_are_said(
    scpo, shared_ray, tiny_reward_model, tmp_path
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

    outcome = scpo("efficiency", file)

    assert outcome.code == 0, outcome.err
    result = load_sweep_result(folder_of(file))
    assert states(result) == ["finished"] * 4
    assert len(re.findall(r"method=(?:finetune|scpo) +(?:0.5|1) +\d+ +\d", outcome.out)) == 4
    # Two steps teach nothing, and that is said in place of a ratio.
    assert re.search(r"method=finetune is not shown to be better .*: nothing was", outcome.err)
