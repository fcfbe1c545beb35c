"""Cultures' models made once for the room."""

import pytest

from tests.serve.made_models import write_culture


@pytest.fixture(scope="package")
def models(tmp_path_factory, tiny_reward_model):
    """Three cultures as adapters (True), three as whole models (False)."""
    folder = tmp_path_factory.mktemp("cultures")
    cultures = ["Chile", "Mexico", "New Zealand"]
    return {
        adapters: {
            culture: write_culture(
                folder / kind / culture, tiny_reward_model, seed=seed, adapters=adapters
            )
            for seed, culture in enumerate(cultures)
        }
        for kind, adapters in (("adapters", True), ("whole", False))
    }
