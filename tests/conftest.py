"""What several test files share: the offline switch and the tiny models."""

import os
from pathlib import Path

import pytest

from tests.tiny import write_tiny_backbone, write_tiny_reward_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from threads, and two tests at once would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("models") / "backbone")


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_reward_model(tmp_path_factory.mktemp("models") / "global")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real preference data that lies beside the project; tests that need it skip elsewhere."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("SCPO_SHARED_DATA") or root.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("needs real data: set SCPO_SHARED_DATA to its folder")
    return folder
