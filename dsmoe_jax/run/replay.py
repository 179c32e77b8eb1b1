"""Replay: a run's test queries asked of its bundle, and recall beside `results.json`.

Owns how the queries are asked, of the retriever in this process or of a running service; the
arithmetic of recall is the evaluation's.

Letters: Q queries of a scenario, T retrieved list length.
"""

import json
import math
import os
import pathlib
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dsmoe_jax import runlog
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import metrics
from dsmoe_jax.run import results
from dsmoe_jax.run import workdir as workdir_lib
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import requests, retriever

# Users of one request, and seconds that a service has for it.
_USERS, _TIMEOUT_S = 64, 60.0
# What a service wants to be brought, where it has a token; its own variable.
_TOKEN = "DSMOE_TOKEN"

# Raw user ids and a scenario to item ids [Q, T], 0 past the end of a list.
Ask = Callable[[list[Any], str], np.ndarray]


class Replay(NamedTuple):
    """Recall of a run's test queries, as replayed and as recorded; None without queries.

    Attributes:
      num_queries: All of them.
      replayed, recorded: By cut-off, then by scenario and "macro".
    """

    num_queries: int
    replayed: dict[int, dict[str, float | None]]
    recorded: dict[int, dict[str, float | None]]

    @property
    def is_equal(self) -> bool:
        """Whether all numbers are equal to the last digit."""
        return self.replayed == self.recorded

    def loses(self, share: float) -> bool:
        """Whether some recall is below the recorded one by more than a share of it."""
        pairs = [
            (self.replayed[k][name], value)
            for k, row in self.recorded.items()
            for name, value in row.items()
        ]
        return any(
            value is not None and (got is None or got < (1 - share) * value) for got, value in pairs
        )

    def lines(self) -> list[str]:
        """A table, and whether the numbers are equal."""
        names = next(iter(self.recorded.values()))
        lines = [
            f"{self.num_queries:,} test queries, recall in %",
            " ".join([f"{'':<24}", *(f"{name:>9}" for name in names)]),
        ]
        for k in self.recorded:
            for label, row in (("replayed", self.replayed), ("results.json", self.recorded)):
                values = [f"{_percent(row[k][name]):>9}" for name in names]
                lines.append(" ".join([f"recall@{k:<4} {label:<12}", *values]))
        verdict = "equal to the last digit" if self.is_equal else "NOT equal"
        return [*lines, f"recall of the replay and of results.json: {verdict}"]


def replay(path: pathlib.Path, workdir: pathlib.Path, url: str = "") -> Replay:
    """Asks all test queries of a run.

    Args:
      path: The bundle.
      workdir: The run's folder, with its `config.json` and `results.json`.
      url: The address of a service that serves the bundle; empty asks the bundle in this process.

    Raises:
      ValueError: When they do not belong together, or the service answers something else.
    """
    store, recorded = _read_run(workdir)
    served = retriever.Retriever.load(path)
    _check_same(served.bundle, store, recorded, workdir)
    cuts: list[int] = recorded["k"]
    ask = _ask_service(served, url, cuts[-1]) if url else _ask_retriever(served, cuts[-1])
    table = store.queries("test")
    rows_QC, columns = np.asarray(table.rows_QC), store.columns
    scenario_Q, user_Q = rows_QC[:, columns["scenario"]], rows_QC[:, columns["user"]]
    found: dict[int, list[metrics.Estimate]] = {k: [] for k in cuts}
    with runlog.bar(total=len(rows_QC), desc="replay", unit="query") as bar:
        for s, name in enumerate(served.scenarios):
            query_Q = np.flatnonzero(scenario_Q == s)
            users = np.asarray(store.users_raw_id)[user_Q[query_Q]].tolist()
            item_QT = _ask_all(ask, users, name, cuts[-1], bar)
            relevant = metrics.take_rows(table.relevant, query_Q)
            hit_QT = metrics.find_members(item_QT, relevant)
            for k in cuts:
                recall_Q = metrics.hits_at_k(hit_QT, k) / np.diff(relevant.indptr)
                found[k].append(metrics.estimate(recall_Q))
    return Replay(
        len(rows_QC),
        {k: _as_row(served.scenarios, estimates) for k, estimates in found.items()},
        {k: _recorded_row(recorded, f"recall@{k}") for k in cuts},
    )


def _read_run(workdir: pathlib.Path) -> tuple[store_lib.Store, dict[str, Any]]:
    """A run's store and results."""
    experiment, path = workdir_lib.read_config(workdir), workdir / results.FILE
    if not path.is_file():
        raise ValueError(f"{path}: expected the results of an evaluated run, found none")
    store = store_lib.Store.open(workdir_lib.find_store(experiment, workdir))
    return store, results.read(path)


def _check_same(
    bundle: bundle_lib.Bundle,
    store: store_lib.Store,
    recorded: dict[str, Any],
    workdir: pathlib.Path,
) -> None:
    """Refuses a bundle of other data or of another configuration.

    Raises:
      ValueError: Naming what differs.
    """
    manifest = bundle.manifest
    for what, expected, got in (
        ("data", store.data_hash, manifest["data_hash"]),
        ("configuration", recorded["config_hash"], manifest["config_hash"]),
        ("remove_seen", recorded["remove_seen"], manifest["remove_seen"]),
    ):
        if expected != got:
            raise ValueError(
                f"{bundle.root}: expected the bundle of {workdir}, {what} {expected[:12]}, got "
                f"{what} {got[:12]}"
            )


def _ask_all(
    ask: Ask, users: Sequence[Any], scenario: str, k: int, bar: Any
) -> Int[np.ndarray, "Q T"]:
    parts = [np.zeros((0, k), np.int64)]
    for start in range(0, len(users), _USERS):
        chosen = list(users[start : start + _USERS])
        item_QT = ask(chosen, scenario)
        parts.append(np.pad(item_QT, ((0, 0), (0, k - item_QT.shape[1]))))
        bar.update(len(chosen))
    return np.concatenate(parts)


def _ask_retriever(served: retriever.Retriever, k: int) -> Ask:
    wanted = served.want(k)

    def ask(users: list[Any], scenario: str) -> np.ndarray:
        encoded = served.encoder.encode({requests.USER: users})
        s = served.scenarios.index(scenario)
        row_Q, scenario_Q = np.arange(len(users)), np.full(len(users), s, np.int32)
        return served.search(encoded, wanted, row_Q, scenario_Q).item_QT

    return ask


def _ask_service(served: retriever.Retriever, url: str, k: int) -> Ask:
    address = url.rstrip("/") + "/v1/retrieve"
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"--url: expected an address like http://127.0.0.1:8000, got {url!r}")

    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(_TOKEN):
        headers["Authorization"] = f"Bearer {token}"

    def ask(users: list[Any], scenario: str) -> np.ndarray:
        body = {
            "users": [{requests.USER: user} for user in users],
            "scenario": scenario,
            "k": k,
            "exclude": served.usual_exclude,
        }
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                lists = json.load(answer)["lists"]
        except OSError as error:
            # Of a refusal, too, the reason is one.
            reason = getattr(error, "reason", error)
            raise ValueError(f"--url: expected lists from {address}, got {reason}") from None
        names = {entry["scenario"] for entry in lists}
        if len(lists) != len(users) or names != {scenario}:
            raise ValueError(
                f"{address}: expected {len(users)} lists of {scenario}, got {len(lists)} of "
                f"{', '.join(sorted(names)) or 'none'}"
            )
        item_QT = np.zeros((len(users), k), np.int64)
        for q, entry in enumerate(lists):
            ids = served.catalogue.rows(entry["items"], address)
            item_QT[q, : len(ids)] = ids
        return item_QT

    return ask


def _as_row(names: Sequence[str], estimates: list[metrics.Estimate]) -> dict[str, float | None]:
    """Means by scenario and macro, as `results.json` holds them."""
    means = [entry.mean for entry in (*estimates, metrics.macro(estimates))]
    return {
        name: None if math.isnan(mean) else mean
        for name, mean in zip((*names, "macro"), means, strict=True)
    }


def _recorded_row(recorded: dict[str, Any], metric: str) -> dict[str, float | None]:
    rows = {**recorded["scenarios"], "macro": recorded["macro"]}
    return {name: row[metric] for name, row in rows.items()}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.4f}"
