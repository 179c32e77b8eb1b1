"""Routes that read what is served, and those that change it.

Owns their forms. Who may use them is the guard's to say.
"""

import http
import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import fastapi
import pydantic

from dsmoe_jax.serving import facts, item_changes, live, shadow, wire

# Items that are described in one answer, and users of a sample.
_MOST_ITEMS, _MOST_USERS = 1000, 200

ItemIds = Annotated[list[str], fastapi.Query(alias="id", max_length=_MOST_ITEMS)]
UserCount = Annotated[int, fastapi.Query(ge=1, le=_MOST_USERS)]


class BundlePath(pydantic.BaseModel, extra="forbid"):
    """A bundle's folder on the server."""

    path: str


class Candidate(BundlePath):
    """A bundle to compare with the one in use, and its share of the queries."""

    share: float = pydantic.Field(0.1, gt=0.0, le=1.0)


class NewItems(pydantic.BaseModel, extra="forbid"):
    """Items with `item_id` and raw features; what is not given is unknown."""

    items: list[dict[str, Any]] = pydantic.Field(min_length=1)


class OldItems(pydantic.BaseModel, extra="forbid"):
    """Raw ids of items."""

    # Strictly: true is no 1.
    item_ids: list[pydantic.StrictInt | pydantic.StrictStr]


def make_reading(source: live.Live, limits: wire.Limits) -> fastapi.APIRouter:
    """Routes that change nothing."""
    router = fastapi.APIRouter(prefix="/v1", tags=["read"])

    @router.get("/info")
    def info() -> dict[str, Any]:
        """The bundle in use: method, data, scenarios, results, and what a query may name."""
        return facts.describe(source.current.retriever, limits)

    @router.get("/items")
    def items(item_ids: ItemIds) -> dict[str, Any]:
        """Features of items by raw id, null where unknown, and `removed` where no list holds one.

        Items that the bundle does not know are left out.
        """
        return {"items": facts.describe_items(source.current.retriever, list(item_ids))}

    @router.get("/sample_users")
    def sample_users(n: UserCount = 20) -> dict[str, Any]:
        """Known users with events, spread over all of them."""
        return {"users": facts.sample_users(source.current.retriever, n)}

    @router.get("/users/{user_id}")
    def user(user_id: str) -> dict[str, Any]:
        """A known user's last events, and what was clicked afterwards where the bundle knows."""
        retriever = source.current.retriever
        if not (row := facts.find_user(retriever, user_id)):
            raise fastapi.HTTPException(http.HTTPStatus.NOT_FOUND, f"user_id: unknown {user_id!r}")
        return facts.describe_user(retriever, row)

    return router


def make_changing(
    source: live.Live, shadows: shadow.Shadows, changed: Callable[[], object]
) -> fastapi.APIRouter:
    """Routes that change what is served.

    Args:
      source: What answers.
      shadows: The candidate.
      changed: Called after a change of what answers.
    """
    router = fastapi.APIRouter(prefix="/v1", tags=["change"])

    @router.post("/bundle")
    def swap(body: BundlePath) -> dict[str, Any]:
        """Verifies and warms a bundle, then puts it in place of the one in use.

        Items that were upserted or removed follow; where the bundle has an upserted id, its own
        item counts.
        """
        return _tell(source.swap(_resolve(body.path)), source, changed)

    @router.post("/bundle/rollback")
    def roll_back() -> dict[str, Any]:
        """Puts the bundle before the one in use in its place again, with items as they are now."""
        return _tell(source.roll_back(), source, changed)

    @router.post("/shadow")
    def start_shadow(body: Candidate) -> dict[str, Any]:
        """Sends a share of the queries to a candidate too, in the background."""
        shadows.start(source.open_candidate(_resolve(body.path)), body.share)
        return shadows.describe()

    @router.delete("/shadow")
    def stop_shadow() -> dict[str, bool]:
        """Ends the comparison."""
        return {"stopped": shadows.stop()}

    @router.get("/compare")
    def compare() -> dict[str, Any]:
        """The candidate's lists against those that were sent, scenario by scenario."""
        return shadows.describe()

    @router.post("/items")
    def upsert(body: NewItems) -> dict[str, int]:
        """Adds items by their features, or replaces those of the same id, without training."""
        count = source.upsert_items(body.items)
        changed()
        return {"items": count}

    @router.delete("/items")
    def remove(body: OldItems) -> dict[str, int]:
        """Takes items out of all lists; `removed` leaves out what had been taken out before."""
        count, removed = source.remove_items(body.item_ids)
        changed()
        return {"items": count, "removed": removed}

    return router


def _tell(
    applied: item_changes.Applied, source: live.Live, changed: Callable[[], object]
) -> dict[str, Any]:
    changed()
    previous = source.previous
    return {
        "bundle": source.current.digest,
        "previous": previous.digest if previous else None,
        "items": applied._asdict(),
    }


def _resolve(path: str) -> pathlib.Path:
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"path: expected a folder, got no home in {path!r}") from None
