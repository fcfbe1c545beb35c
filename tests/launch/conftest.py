"""Ray as the tests start it, in this process and below it: nobody else gets in."""

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.launch.clusters import end_all_started

# Before Ray is imported, which reads them once. A head listens on every interface of the machine;
# one started by hand asks for no token unless told to, and a node that does cannot talk to one
# that does not.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    yield
    end_all_started()
