"""Ray as the tests start it, in this process and below it: nobody else gets in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.clusters import end_all_started
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    yield
    end_all_started()


@pytest.fixture(scope="session")
def shared_ray(tiny_reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray of this process's, for all tests whose subject is not its start or loss.

    A command that a test calls in this process finds itself joined to it.
    """
    import ray

    from scpo_ray.launch.ray_cluster import connect

    connect(tiny_config(tiny_reward_model, tmp_path_factory.mktemp("unused")))
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
