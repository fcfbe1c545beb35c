"""A real run of TRL's GRPO on two cultures' rewards."""

import importlib.util
from pathlib import Path

import pytest

from scpo_ray.serve.rewards import trl

pytest.importorskip("trl", reason="needs TRL: pip install scpo-ray[rl]")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "grpo.py"
STEPS = 30


@pytest.fixture(scope="module")
def story():
    spec = importlib.util.spec_from_file_location("grpo_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_each_cultures_reward_rises_and_the_others_is_told(story, tmp_path):
    models = story.train_cultures(tmp_path, users=40, steps=120)
    function = trl(models, device="cpu", report_all=True)

    log = story.train_policy(function, tmp_path, steps=STEPS)

    found = story.curves(log)
    for culture in story.CULTURES:
        own = found[f"reward/{culture}"]
        assert story.window(own, STEPS - 5, STEPS) > story.window(own, 0, 5) + 0.3
        (other,) = set(story.CULTURES) - {culture}
        assert any(value is not None for value in found[f"reward/{culture}/by/{other}"])
    assert log[-1]["rewards/culture_reward/mean"] > log[0]["rewards/culture_reward/mean"]
