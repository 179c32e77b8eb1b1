"""Events of requests: raw histories as ids, in the place of what a bundle knows.

Letters: B requests, C columns of a row, E events, F fields of an event, W windows of a row, X
windows of all rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.serving import values

# Of an event whose mapping names none.
NO_SCENARIO = -1
LAST_S = 2**31 - 1
_TIME = "time"


class Events(NamedTuple):
    """Raw events in ids.

    Attributes:
      ids_EF: 0 in the first field where an event is unknown.
      time_E: Unix seconds, 0 where none is given.
      scenario_E: Scenario ids, `NO_SCENARIO` where none is given.
    """

    ids_EF: Int[np.ndarray, "E F"]
    time_E: Int[np.ndarray, "E"]
    scenario_E: Int[np.ndarray, "E"]


def encode(
    flat: list[Any],
    vocabularies: Mapping[str, values.Vocabulary],
    scenarios: Sequence[str],
    where: str,
) -> Events:
    """Ids, times and scenarios of raw events.

    Args:
      flat: Raw ids, or mappings of fields, `time` and `scenario`.
      vocabularies: Of each field of an event, in their order.
      scenarios: Names by scenario id.
      where: What a message calls them.

    Raises:
      ValueError: On what is no event.
    """
    fields = tuple(vocabularies)
    E = len(flat)
    ids_EF = np.zeros((E, len(fields)), np.int32)
    time_E, scenario_E = np.zeros(E, np.int64), np.full(E, NO_SCENARIO)
    is_mapping = [isinstance(event, Mapping) for event in flat]
    if len(fields) > 1 and not all(is_mapping):
        raise ValueError(f"{where}: expected events as mappings of {', '.join(fields)}")
    for n, name in enumerate(fields):
        raw = [e.get(name) if m else e for e, m in zip(flat, is_mapping, strict=True)]
        ids_EF[:, n] = vocabularies[name].encode(raw, where)
    if any(is_mapping):
        number = {name: s for s, name in enumerate(scenarios)}
        allowed = {*fields, _TIME, "scenario"}
        for n, event in enumerate(flat):
            if not is_mapping[n]:
                continue
            if unknown := [key for key in event if key not in allowed]:
                raise ValueError(
                    f"{where}: expected events with {', '.join(sorted(allowed))}, got "
                    f"{unknown[0]!r}"
                )
            name = event.get("scenario")
            if name is not None:
                if not isinstance(name, str) or name not in number:
                    raise ValueError(
                        f"{where}: scenario: expected one of {', '.join(scenarios)}, got "
                        f"{values.show(name)}{values.hint(name, scenarios)}"
                    )
                scenario_E[n] = number[name]
        times = [e.get(_TIME) if m else None for e, m in zip(flat, is_mapping, strict=True)]
        value_E = np.nan_to_num(values.read_numbers(times, f"{where}: {_TIME}"))
        if ((value_E < 0) | (value_E > LAST_S)).any():
            raise ValueError(f"{where}: {_TIME}: expected unix seconds from 0 to {LAST_S}")
        time_E = value_E.astype(np.int64)
    return Events(ids_EF, time_E, scenario_E)


def place(
    sequences: dict[str, tuple[np.ndarray, np.ndarray]],
    of: store_lib.Windows,
    columns: Mapping[str, int],
    rows_BC: Int[np.ndarray, "B C"],
    given_B: np.ndarray,
    key_E: np.ndarray,
    ids_EF: np.ndarray,
    time_E: np.ndarray,
) -> None:
    """Makes a sequence of the given events, and of what is stored of the other requests.

    Args:
      sequences: Events by name, of which this one is replaced.
      of: The sequence's windows in a row.
      columns: Column index by name.
      rows_BC: Rows of the requests, which point into the sequence then.
      given_B: Which requests bring events.
      key_E: row * windows + window of the given events, ascending.
      ids_EF: Their ids.
      time_E: Their times.
    """
    start_BW, stop_BW = of.read(rows_BC, columns)  # views
    W = start_BW.shape[1]
    stored_EF, stored_time_E = sequences[of.sequence]
    length_BW = np.where(given_B[:, None], 0, stop_BW - start_BW)
    new_BW = np.bincount(key_E, minlength=len(rows_BC) * W).reshape(-1, W)
    total_X = (length_BW + new_BW).ravel()
    last_X = np.cumsum(total_X)
    first_X = last_X - total_X
    joined_EF = np.zeros((int(total_X.sum()), stored_EF.shape[1]), np.int32)
    joined_time_E = np.zeros(len(joined_EF), np.int32)
    old_X = length_BW.ravel()
    from_E = np.arange(int(old_X.sum())) + np.repeat(
        start_BW.ravel() - (np.cumsum(old_X) - old_X), old_X
    )
    to_E = np.arange(len(from_E)) + np.repeat(first_X - (np.cumsum(old_X) - old_X), old_X)
    joined_EF[to_E], joined_time_E[to_E] = stored_EF[from_E], stored_time_E[from_E]
    new_X = new_BW.ravel()
    to_E = np.arange(len(key_E)) + np.repeat(first_X - (np.cumsum(new_X) - new_X), new_X)
    joined_EF[to_E], joined_time_E[to_E] = ids_EF, time_E
    sequences[of.sequence] = joined_EF, joined_time_E
    start_BW[:], stop_BW[:] = first_X.reshape(-1, W), last_X.reshape(-1, W)
