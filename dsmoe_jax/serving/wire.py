"""What `POST /v1/retrieve` takes and gives: JSON, its types, limits and schema.

Owns the refusal of a body before the retriever sees it. What a request's own fields mean is in
`requests.py`.
"""

import dataclasses
import http
from typing import Annotated, Any

import msgspec

from dsmoe_jax.serving import lists as lists_lib
from dsmoe_jax.serving import retriever as retriever_lib

_REF = "#/components/schemas/{name}"
_EXCLUDE = (
    "Left out of every list: item ids, 'seen' (what the user is known to have clicked), 'shown' "
    "(all that the user was shown), 'usual' (as when the model was evaluated), or null for nothing"
)

Id = int | str


def _say(description: str) -> Any:
    return msgspec.Meta(description=description)


class RefusedError(Exception):
    """A request that is not answered, with its status and reason."""

    def __init__(self, status: http.HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request, and all that are waited for, may ask for.

    Attributes:
      k: Items of a list.
      users: Users of a request.
      events: Entries of any list of a user, such as the history.
      ids: Item ids that a request excludes or allows, and values of a filter.
      bytes: The body.
      waiting: Requests that are answered at once; more are sent away.
      time_s: Seconds until a request is given up.
    """

    k: int = 1000
    users: int = 1000
    events: int = 10_000
    ids: int = 100_000
    bytes: int = 4_000_000
    waiting: int = 256
    time_s: float = 10.0


class Query(msgspec.Struct, forbid_unknown_fields=True):
    """Users, and what their lists may hold."""

    users: Annotated[
        list[dict[str, Any]],
        _say("user_id, features and histories, all optional; GET /v1/info lists the fields"),
    ]
    scenario: Annotated[str | list[str], _say("A scenario, several, or 'all'")] = retriever_lib.ALL
    k: Annotated[int, _say("Items of a list, at least 1")] = 50
    exclude: Annotated[str | list[Id] | None, _say(_EXCLUDE)] = lists_lib.USUAL
    allow: Annotated[list[Id] | None, _say("Item ids, of which alone lists are made")] = None
    filter: Annotated[
        dict[str, list[Id]] | None,
        _say("Values of item features, of which an item must have one each"),
    ] = None


class ItemList(msgspec.Struct):
    """One user's list in one scenario, best first; shorter than k where fewer items match."""

    user_id: Any
    user: Annotated[str, _say("known, from_history or cold")]
    scenario: str
    items: list[Any]
    scores: list[float]
    unknown_events: Annotated[int, _say("Given events that training did not know")]


class Reply(msgspec.Struct):
    """Lists, all scenarios of a user side by side, and the digest of the bundle they are from."""

    bundle: str
    lists: list[ItemList]


class Refusal(msgspec.Struct):
    """Why a request was not answered, in one line."""

    error: str


_decoder = msgspec.json.Decoder(Query)
_encoder = msgspec.json.Encoder()


def decode(body: bytes, limits: Limits) -> Query:
    """The query in a body.

    Raises:
      RefusedError: When it is no JSON (400), not of this form (422) or outside a limit (400).
    """
    try:
        query = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RefusedError(http.HTTPStatus.UNPROCESSABLE_ENTITY, f"body: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RefusedError(
            http.HTTPStatus.BAD_REQUEST, f"body: expected JSON: {one_line(error)}"
        ) from None
    _check(query, limits)
    return query


def encode(value: Any) -> bytes:
    """JSON of an answer or refusal."""
    return _encoder.encode(value)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def schemas() -> dict[str, Any]:
    """JSON schemas by name, for an OpenAPI document."""
    _, found = msgspec.json.schema_components((Query, Reply, Refusal), ref_template=_REF)
    return found


def _check(query: Query, limits: Limits) -> None:
    if query.k < 1:
        raise RefusedError(
            http.HTTPStatus.BAD_REQUEST, f"k: expected 1 to {limits.k}, got {query.k}"
        )
    _check_limit("k", query.k, limits.k)
    _check_limit("users", len(query.users), limits.users)
    for name, listed in (("exclude", query.exclude), ("allow", query.allow)):
        if isinstance(listed, list):
            _check_limit(name, len(listed), limits.ids)
    for name, values in (query.filter or {}).items():
        _check_limit(f"filter: {name}", len(values), limits.ids)
    for user in query.users:
        for name, value in user.items():
            if isinstance(value, list):
                _check_limit(f"users: {name}", len(value), limits.events)


def _check_limit(name: str, got: int, most: int) -> None:
    if got > most:
        raise RefusedError(
            http.HTTPStatus.BAD_REQUEST, f"{name}: expected at most {most}, got {got}"
        )
