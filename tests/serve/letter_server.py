"""A whole server of `LetterRewards`, to be run: its processes start at once, having no models.

python -m tests.serve.letter_server [--fault]
"""

import sys

from scpo_ray.records import InputError
from scpo_ray.serve.logs import log_as_json
from scpo_ray.serve.server import Served
from scpo_ray.serve.service import Source
from scpo_ray.serve.supervisor import listen, supervise
from scpo_ray.settings.serve import ServeConfig
from tests.serve.double import LetterRewards

TOKEN = "a-token-of-the-tests"
CONFIG = ServeConfig(receive_timeout_s=0.5, gather_ms=1)


class SlowLetters(LetterRewards):
    """A second for a hundred items."""

    def rewards(self, items):
        self.gate.clear()
        self.gate.wait(len(items) / 100)
        self.gate.set()
        return super().rewards(items)


def letters(device):
    return Source(lambda: {"Chile": "chile:1", "Mexico": "mexico:1"}, lambda models: SlowLetters())


def fault(device):
    raise InputError("models that cannot be used", ["Chile: none"])


if __name__ == "__main__":
    log_as_json()
    served = Served(fault if "--fault" in sys.argv else letters, TOKEN, CONFIG)
    try:
        with listen("127.0.0.1", 0) as listener:
            supervise(served, ["one", "two"], listener)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
