"""Routes that read what is served, and those that change it.

Owns their forms. Who may use them is the guard's to say.
"""

import http
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, Protocol, runtime_checkable

import fastapi
import pydantic

from dsmoe_jax.serving import facts, live, shadow, wire

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

    items: list[dict[str, Any]]


class OldItems(pydantic.BaseModel, extra="forbid"):
    """Raw ids of items."""

    item_ids: list[int | str]


@runtime_checkable
class TakesItems(Protocol):
    """A retriever whose items can change."""

    def upsert_items(self, columns: Any) -> int:
        """Adds items or replaces their features; returns how many."""
        ...

    def remove_items(self, raw_ids: Any) -> int:
        """Removes items; returns how many there were."""
        ...


def make_reading(source: live.Live, limits: wire.Limits) -> fastapi.APIRouter:
    """Routes that change nothing."""
    router = fastapi.APIRouter(prefix="/v1", tags=["read"])

    @router.get("/info")
    def info() -> dict[str, Any]:
        """The bundle in use: method, data, scenarios, results, and what a query may name."""
        return facts.describe(source.current.retriever, limits)

    @router.get("/items")
    def items(item_ids: ItemIds) -> dict[str, Any]:
        """Features of items by raw id; those that the bundle does not know are left out."""
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
    source: live.Live, shadows: shadow.Shadows, changed: Callable[[live.Served], None]
) -> fastapi.APIRouter:
    """Routes that change what is served.

    Args:
      source: What answers.
      shadows: The candidate.
      changed: Told of what answers after a change.
    """
    router = fastapi.APIRouter(prefix="/v1", tags=["change"])

    @router.post("/bundle")
    def swap(body: BundlePath) -> dict[str, Any]:
        """Verifies and warms a bundle, then puts it in place of the one in use."""
        return _tell(source.swap(_resolve(body.path)), source, changed)

    @router.post("/bundle/rollback")
    def roll_back() -> dict[str, Any]:
        """Puts the bundle before the one in use in its place again."""
        return _tell(source.roll_back(), source, changed)

    @router.post("/shadow")
    def start_shadow(body: Candidate) -> dict[str, Any]:
        """Sends a share of the queries to a candidate too, in the background."""
        shadows.start(live.open_warm(_resolve(body.path)), body.share)
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
        names = dict.fromkeys(name for item in body.items for name in item)
        columns = {name: [item.get(name) for item in body.items] for name in names}
        count = _changeable(source).upsert_items(columns)
        changed(source.current)
        return {"items": count}

    @router.delete("/items")
    def remove(body: OldItems) -> dict[str, int]:
        """Takes items out of all lists."""
        count = _changeable(source).remove_items(body.item_ids)
        changed(source.current)
        return {"items": count}

    return router


def _tell(
    served: live.Served, source: live.Live, changed: Callable[[live.Served], None]
) -> dict[str, Any]:
    changed(served)
    previous = source.previous
    return {"bundle": served.digest, "previous": previous.digest if previous else None}


def _changeable(source: live.Live) -> TakesItems:
    retriever = source.current.retriever
    if not isinstance(retriever, TakesItems):
        raise ValueError("items: expected a retriever whose items can change, got a fixed one")
    return retriever


def _resolve(path: str) -> pathlib.Path:
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"path: expected a folder, got no home in {path!r}") from None
