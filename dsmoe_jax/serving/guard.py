"""Guard: who may ask, how much and how many at once, before a route sees a request.

Owns the token, the size of a body, the number of requests that are answered at once and the time
that a body may take. Bodies are read here, whole.
"""

import asyncio
import hmac
import http
from collections.abc import Callable
from typing import Any

from dsmoe_jax.serving import service_metrics, wire

_API = "/v1/"
# What any may ask; all else but reading changes what is served, which needs a token.
_ASKING = "/v1/retrieve"
_READING = ("GET", "HEAD", "OPTIONS")
_JSON = (b"content-type", b"application/json")
_HEADERS_OF = {
    http.HTTPStatus.UNAUTHORIZED: [(b"www-authenticate", b"Bearer")],
    http.HTTPStatus.SERVICE_UNAVAILABLE: [(b"retry-after", b"1")],
    http.HTTPStatus.METHOD_NOT_ALLOWED: [(b"allow", b"POST")],
    # The rest of the body is not read.
    http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE: [(b"connection", b"close")],
    http.HTTPStatus.REQUEST_TIMEOUT: [(b"connection", b"close")],
}


class Guard:
    """ASGI middleware."""

    def __init__(
        self,
        app: Any,
        token: str | None,
        limits: wire.Limits,
        metrics: service_metrics.Metrics,
        stopping: Callable[[], bool],
    ):
        """Wraps an application.

        Args:
          app: It.
          token: What a request must bring; None for nothing.
          limits: Of bodies, requests at once and time.
          metrics: Where refusals are counted.
          stopping: Whether connections are to end with their next answer.
        """
        self._app, self._limits, self._metrics, self._stopping = app, limits, metrics, stopping
        self._token = f"Bearer {token}".encode() if token else None
        self._at_once = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _ending(send) if self._stopping() else send
        self._at_once += 1
        try:
            self._check_access(scope)
            body = await self._read(scope, receive)
        except wire.RefusedError as refused:
            await refuse(send, refused, self._metrics)
        else:
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._at_once -= 1

    def _check_access(self, scope: Any) -> None:
        path: str = scope["path"]
        if not path.startswith(_API):
            return
        if self._token:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._token):
                raise wire.RefusedError(
                    http.HTTPStatus.UNAUTHORIZED,
                    "authorization: expected the header Authorization: Bearer TOKEN",
                )
        elif path != _ASKING and scope["method"] not in _READING:
            raise wire.RefusedError(
                http.HTTPStatus.FORBIDDEN,
                f"{path}: changes what is served, and this server has no token; start it with "
                "--token_file or DSMOE_TOKEN",
            )
        if self._at_once > self._limits.waiting:
            raise wire.RefusedError(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"busy: {self._limits.waiting} requests are waiting already; try again",
            )

    async def _read(self, scope: Any, receive: Any) -> bytes:
        most, time_s = self._limits.bytes, self._limits.time_s
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        parts: list[bytes] = []
        # What announces too much is refused unread.
        size = int(announced) if announced.isdigit() and int(announced) > most else 0
        more = True
        try:
            async with asyncio.timeout(time_s):
                while more and size <= most:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            raise wire.RefusedError(
                http.HTTPStatus.REQUEST_TIMEOUT, f"body: expected all of it within {time_s:g} s"
            ) from None
        if size > most:
            raise wire.RefusedError(
                http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"body: expected at most {most:,} bytes, got more",
            )
        return b"".join(parts)


async def refuse(send: Any, refused: wire.RefusedError, metrics: service_metrics.Metrics) -> None:
    """Sends why a request is not answered."""
    metrics.refused(refused.status)
    body = wire.encode(wire.Refusal(str(refused)))
    await respond(send, body, _HEADERS_OF.get(refused.status, []), refused.status)


async def respond(
    send: Any, body: bytes, headers: list[tuple[bytes, bytes]], status: int = http.HTTPStatus.OK
) -> None:
    """Sends JSON."""
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": int(status)}
    await send({**start, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Any) -> Any:
    """Gives a body that was read already."""
    is_given = False

    async def again() -> Any:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _ending(send: Any) -> Any:
    """Ends the connection after the answer: the client's next request goes elsewhere."""

    async def ending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return ending
