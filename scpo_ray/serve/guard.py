"""What stands before the routes: who may ask, how much and how slowly; and a line for each request.

Plain ASGI, so that a body is refused before it is read and not after.
"""

import asyncio
import base64
import binascii
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scpo_ray.serve.measures import Measures
from scpo_ray.settings.serve import ServeConfig

log = logging.getLogger(__name__)

OPEN_ROUTES = frozenset({"/health", "/ready"})
"""What an orchestrator asks, without a token."""

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}")


class RefusedError(Exception):
    """A request that reaches no route."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        self.status = status
        self.reason = reason
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(reason)


class Guard:
    """The app behind it sees whole bodies of requests that may be answered, and no others.

    Args:
        token: what a request must show, as Bearer token or as the password of Basic
            authentication (which tools send for a URL with a user in it); None: nothing, from
            this machine's own names alone.
        routes: paths that are counted by name; all others are counted together.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: ServeConfig,
        token: str | None,
        measures: Measures,
        routes: frozenset[str],
    ) -> None:
        self._app = app
        self._config = config
        self._token = token
        self._measures = measures
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        told: dict[str, Any] = scope["state"].setdefault("told", {})
        status = 500

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            try:
                self._check_caller(scope["path"], headers)
                body = await self._body(headers, receive)
                await self._app(scope, _replayed(body, receive), answered)
            except RefusedError as refused:
                await send_json(answered, refused.status, refused.reason, refused.headers)
        finally:
            seconds = time.perf_counter() - begun
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._measures.requests.labels(route, str(status)).inc()
            self._measures.request_seconds.labels(route).observe(seconds)
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "milliseconds": round(1_000 * seconds, 2),
                **told,
            }
            log.info("request", extra={"fields": fields})

    def _check_caller(self, path: str, headers: Headers) -> None:
        if self._token is None:
            # A page in this machine's browser may reach a server without a token by another name.
            name = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
            if name not in _LOCAL_NAMES:
                raise RefusedError(
                    421, "without a token only this machine's own names are answered"
                )
            return
        if path in OPEN_ROUTES:
            return
        shown = shown_token(headers.get("authorization", ""))
        if shown is None or not hmac.compare_digest(shown.encode(), self._token.encode()):
            said = "missing" if shown is None else "wrong"
            raise RefusedError(
                401,
                f"{said} token: send the header Authorization: Bearer TOKEN",
                www_authenticate='Bearer, Basic realm="scpo"',
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        most = self._config.max_body_bytes
        too_large = RefusedError(413, f"the body must be at most {most} bytes", connection="close")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(415, "the body must not be compressed", connection="close")
        length = headers.get("content-length", "")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if (
            length not in ("", "0") or "transfer-encoding" in headers
        ) and kind != "application/json":
            said = "the body must be JSON: send the header Content-Type: application/json"
            raise RefusedError(415, said, connection="close")
        if length.isdecimal() and int(length) > most:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.receive_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "the client went away within its body")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            most_s = self._config.receive_timeout_s
            raise RefusedError(
                408, f"the body must have come within {most_s:g} s", connection="close"
            ) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message; what comes after it is the connection's end."""
    is_read = False

    async def once() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def shown_token(authorization: str) -> str | None:
    """The token in an Authorization header; None if there is none in it."""
    kind, _, value = authorization.partition(" ")
    value = value.strip()
    if kind.lower() == "bearer":
        return value or None
    if kind.lower() == "basic":
        try:
            decoded = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, ValueError):
            return None
        return decoded.partition(":")[2] or None
    return None


async def send_json(send: Send, status: int, reason: str, headers: Mapping[str, str]) -> None:
    """An error as the routes write theirs."""
    body = json.dumps({"error": reason}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    all_headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **headers,
    }
    pairs = [(name.encode(), value.encode()) for name, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
