"""Service: a retriever over HTTP.

Owns the routes. `POST /v1/retrieve` has a decoder that is told its types and no framework around
it, which would cost as much as the rest; all others are FastAPI's, whose document describes both.

    GET  /                    the page
    GET  /docs /openapi.json  what follows, for readers and for programs
    GET  /healthz /readyz /metrics
    POST /v1/retrieve         lists of users in scenarios
    GET  /v1/info /v1/items /v1/sample_users /v1/users/{user_id}
    POST /v1/items, DELETE /v1/items
    POST /v1/bundle /v1/bundle/rollback
    POST /v1/shadow, DELETE /v1/shadow, GET /v1/compare
"""

import http
import importlib.resources
from typing import Any

import fastapi
import fastapi.exceptions
import starlette.exceptions
from fastapi.openapi import utils as openapi_utils

import dsmoe_jax
from dsmoe_jax.serving import (
    admin,
    api_page,
    batching,
    guard,
    live,
    live_recall,
    service_metrics,
    shadow,
    wire,
)

RETRIEVE = "/v1/retrieve"
_REFUSALS = (400, 401, 403, 404, 408, 409, 413, 422, 500, 503, 504)
# The page is one file: it loads nothing, and asks this server alone.
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Service:
    """What is served, and the application that serves it.

    Attributes:
      live: What answers.
      metrics: What is counted.
      app: The ASGI application, behind the guard.
      is_stopping: Whether connections are to end with their next answer.
    """

    def __init__(
        self,
        served: live.Served,
        *,
        token: str | None = None,
        limits: wire.Limits | None = None,
        recall_s: float = 300.0,
    ):
        """Starts the worker threads.

        Args:
          served: What answers at first.
          token: What requests under /v1/ must bring; None for nothing, and nothing can be changed.
          limits: What a request may ask for.
          recall_s: Seconds between measurements of the index's live recall, which is measured when
            something changes too; 0 for then alone.
        """
        limits = limits or wire.Limits()
        self.live, self.metrics = live.Live(served), service_metrics.Metrics()
        self.is_stopping = False
        self._shadows = shadow.Shadows()
        self._batcher = batching.Batcher(self.live, limits, self.metrics, self._shadows.offer)
        self._recall = live_recall.Watch(lambda: self.live.current, self.metrics, recall_s)
        self._recall.ask()
        self.app = guard.Guard(
            Switch(Retrieve(self._batcher, limits, self.metrics), self._make_app(limits)),
            token=token,
            limits=limits,
            metrics=self.metrics,
            stopping=lambda: self.is_stopping,
        )

    def close(self) -> None:
        """Ends the worker threads."""
        self._shadows.stop()
        self._batcher.close()
        self._recall.close()

    def _make_app(self, limits: wire.Limits) -> fastapi.FastAPI:
        app = fastapi.FastAPI(
            title="dsmoe_jax",
            description="Lists of items for users in scenarios.",
            version=dsmoe_jax.__version__,
            docs_url=None,
            redoc_url=None,
        )
        app.include_router(admin.make_reading(self.live, limits))
        app.include_router(admin.make_changing(self.live, self._shadows, self._recall.ask))
        _add_pages(app)
        self._add_health(app)
        for kind in (ValueError, OSError, live.BusyError, starlette.exceptions.HTTPException):
            app.add_exception_handler(kind, self._explain)
        app.add_exception_handler(fastapi.exceptions.RequestValidationError, self._explain)
        return app

    def _add_health(self, app: fastapi.FastAPI) -> None:
        @app.get("/healthz", tags=["operate"])
        async def health() -> dict[str, str]:
            """Whether the process answers."""
            return {"status": "ok"}

        @app.get("/readyz", tags=["operate"])
        async def ready() -> fastapi.Response:
            """Whether to send queries here: a bundle is warm, and the server is not stopping."""
            if self.is_stopping:
                refusal = wire.Refusal("stopping: no more queries are taken")
                return _json(wire.encode(refusal), http.HTTPStatus.SERVICE_UNAVAILABLE)
            return _json(wire.encode({"status": "ready", "bundle": self.live.current.digest}))

        @app.get("/metrics", tags=["operate"])
        def metrics() -> fastapi.Response:
            """Counts and times in Prometheus' text format."""
            return fastapi.Response(
                self.metrics.text(), headers={"content-type": service_metrics.CONTENT_TYPE}
            )

    async def _explain(self, _: fastapi.Request, error: Exception) -> fastapi.Response:
        """An error of any route but the lean one as a status and one line."""
        status, reason = http.HTTPStatus.UNPROCESSABLE_ENTITY, wire.one_line(error)
        headers = None
        if isinstance(error, live.BusyError):
            status = http.HTTPStatus.CONFLICT
        elif isinstance(error, fastapi.exceptions.RequestValidationError):
            first = error.errors()[0]
            if first["type"] == "json_invalid":
                status = http.HTTPStatus.BAD_REQUEST
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        elif isinstance(error, starlette.exceptions.HTTPException):
            status, reason = http.HTTPStatus(error.status_code), error.detail
            headers = error.headers
        self.metrics.refused(status)
        return _json(wire.encode(wire.Refusal(reason)), status, headers)


class Switch:
    """Sends queries one way and everything else the other."""

    def __init__(self, retrieve: "Retrieve", rest: Any):
        self._retrieve, self._rest = retrieve, rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on."""
        if scope["type"] == "http" and scope["path"] == RETRIEVE:
            await self._retrieve(scope, receive, send)
            return
        if scope["type"] == "http":
            # A body is JSON whatever a client calls it, on every route: curl calls it a form.
            others = [header for header in scope["headers"] if header[0] != b"content-type"]
            scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        await self._rest(scope, receive, send)


class Retrieve:
    """The lean route, an ASGI application: decode, wait, encode."""

    def __init__(
        self,
        batcher: batching.Batcher,
        limits: wire.Limits,
        metrics: service_metrics.Metrics,
    ):
        self._batcher, self._limits, self._metrics = batcher, limits, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a query."""
        message = await receive()
        try:
            if scope["method"] != "POST":
                method = scope["method"]
                raise wire.RefusedError(
                    http.HTTPStatus.METHOD_NOT_ALLOWED, f"method: expected POST, got {method}"
                )
            query = wire.decode(message.get("body", b""), self._limits)
            call, answers = await self._batcher.answer(query)
        except wire.RefusedError as refused:
            await guard.refuse(send, refused, self._metrics)
            return
        except ValueError as error:
            status = http.HTTPStatus.UNPROCESSABLE_ENTITY
            unfit = wire.RefusedError(status, wire.one_line(error))
            await guard.refuse(send, unfit, self._metrics)
            return
        users = query.users
        each = call.queries // len(users) if users else 1
        lists = [
            wire.ItemList(
                users[n // each].get("user_id"),
                answer.user,
                answer.scenario,
                answer.item_ids,
                answer.scores,
                answer.unknown_events,
            )
            for n, answer in enumerate(answers)
        ]
        parts = (
            ("queue", call.queue_s),
            ("tower", call.times.tower_s),
            ("search", call.times.search_s),
        )
        timing = ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in parts)
        body = wire.encode(wire.Reply(call.served.digest, lists))
        await guard.respond(send, body, [(b"server-timing", timing.encode())])


def _add_pages(app: fastapi.FastAPI) -> None:
    page = importlib.resources.files("dsmoe_jax.serving") / "page" / "index.html"
    headers = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"}
    index = page.read_text(encoding="utf-8")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page() -> fastapi.responses.HTMLResponse:
        return fastapi.responses.HTMLResponse(index, headers=headers)

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    def show_routes() -> fastapi.responses.HTMLResponse:
        return fastapi.responses.HTMLResponse(api_page.render(app.openapi()), headers=headers)

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(app: fastapi.FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the lean route and what a refusal looks like."""
    document = openapi_utils.get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
    )

    def body(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    retrieve = {
        "tags": ["ask"],
        "summary": "Retrieve",
        "description": "Lists of items for users in scenarios.",
        "operationId": "retrieve",
        "requestBody": {"required": True, "content": body("Query")},
        "responses": {"200": {"description": "Lists", "content": body("Reply")}},
    }
    document["paths"] = {RETRIEVE: {"post": retrieve}, **document["paths"]}
    components = document["components"]
    components["schemas"] = {**wire.schemas(), **components["schemas"]}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    components["responses"] = {
        "Refused": {"description": "Why it is not answered", "content": body("Refusal")}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if not path.startswith("/v1/"):
                continue
            operation["security"] = [{"token": []}]
            for status in _REFUSALS:
                operation["responses"][str(status)] = {"$ref": "#/components/responses/Refused"}
    return document


def _json(body: bytes, status: int = http.HTTPStatus.OK, headers: Any = None) -> fastapi.Response:
    return fastapi.Response(body, int(status), headers, media_type="application/json")
