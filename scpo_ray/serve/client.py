"""The rewards of a server, asked for over HTTP as if its models were in this process."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from scpo_ray.records import InputError
from scpo_ray.serve.items import Reward, RewardItem
from scpo_ray.settings.shown import password_fault

_ITEMS = 256
_TIMEOUT_S = 120.0
_PATIENCE_S = 300.0
"""How long a server may be away or busy, in all, before the caller hears of it."""


class ServedRewards:
    """`CultureRewards` of a server (`scpo serve`, or the Ray Serve application).

    Args:
        url: as in "http://127.0.0.1:8000".
        token: the server's; None where it asks for none.

    Raises: InputError if no such server answers.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        fault = password_fault(url, is_uri=True)
        if fault is not None:
            raise InputError(f"the server's URL {fault}")
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        found = self._asked("/v1/cultures", None)
        self.cultures: tuple[str, ...] = tuple(row["culture"] for row in found["cultures"])

    def rewards(self, items: Sequence[RewardItem]) -> list[Reward]:
        """One reward per item, in their order.

        A server that is busy or starts again is asked again for a while.

        Raises: InputError with what the server says is wrong, or that it does not answer.
        """
        rewards = []
        for begin in range(0, len(items), _ITEMS):
            part = [_document(item) for item in items[begin : begin + _ITEMS]]
            answer = self._asked("/v1/rewards", {"items": part})
            rewards += [_reward(row) for row in answer["rewards"]]
        return rewards

    def _asked(self, path: str, document: Any) -> Any:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self._url + path, body, self._headers)
        end = time.monotonic() + _PATIENCE_S
        pause_s = 0.2
        while True:
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                said, wait_s = _refusal(error), float(error.headers.get("retry-after") or pause_s)
                if error.code not in (429, 503):
                    raise InputError(f"{self._url}{path}: {error.code}: {said}") from None
            except (OSError, ValueError) as error:
                said, wait_s = str(error), pause_s
            # The first request finds a wrong address; a later one a server that starts again.
            if body is None or time.monotonic() + wait_s > end:
                raise InputError(f"{self._url}{path}: no answer: {said}")
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, 10.0)


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason


def _document(item: RewardItem) -> dict[str, Any]:
    fields = {
        "response": item.response,
        "prompt": item.prompt,
        "messages": None if item.messages is None else [dict(m) for m in item.messages],
        "culture": item.culture,
        "mix": None if item.mix is None else dict(item.mix),
        "how": item.how,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _reward(row: dict[str, Any]) -> Reward:
    low, high = row["interval"] or (None, None)
    scales = {"standardised": row["standardised"], "probability": row["probability"]}
    return Reward(
        row["of"], row["reward"], **scales, low=low, high=high, truncated=row["truncated"]
    )
