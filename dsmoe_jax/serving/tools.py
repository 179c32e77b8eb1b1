"""What one looks at, checks and makes of a bundle from the command line.

Owns the texts of `dsmoe bundle verify`, `show`, `push` and `onnx`.
"""

import datetime
import pathlib
import textwrap
import time
from collections.abc import Sequence
from typing import Any

from dsmoe_jax import features, optional
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import onnx_feeds, parity, push, requests, retriever, vector_stores

_WIDTH = 100
# How a manifest's `remove_seen` reads.
_LEFT_OUT = {
    "none": "nothing",
    "positives": 'what the user had a positive with ("seen")',
    "shown": 'all that the user was shown ("shown")',
}


def verify(path: pathlib.Path) -> str:
    """One line on a bundle whose files all have the hashes of its manifest.

    Raises:
      ValueError: Naming the first file that is missing or differs.
    """
    bundle = bundle_lib.Bundle.open(path)
    files = bundle.manifest["files"]
    return f"{path}: ok, {len(files)} files, {_megabytes(files)}, digest {bundle.digest[:12]}"


def show(path: pathlib.Path, *, today: datetime.date | None = None) -> list[str]:
    """What a bundle is, in lines; its hashes are not checked.

    Raises:
      ValueError: When there is no bundle.
    """
    bundle = bundle_lib.Bundle.open(path, verify=False)
    manifest = bundle.manifest
    num_scenarios, num_rows, dim = bundle.load("item_vectors").shape
    known = len(bundle.load("users_raw_id")) - 1
    per = "for each scenario" if num_scenarios > 1 else "for all scenarios"
    about = {
        "bundle": f"{path}, format {manifest['format']}, digest {bundle.digest[:12]}, "
        f"{_megabytes(manifest['files'])} in {len(manifest['files'])} files",
        "method": _join(manifest["method"], manifest.get("variant")),
        "exported": f"{manifest['date']} with "
        + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "data": f"{manifest['dataset']}, {manifest['data_hash'][:12]}",
        **_describe_split(manifest),
        "scenarios": ", ".join(bundle.scenarios),
        "items": f"{num_rows - 1:,}, vectors of {dim} numbers {per}" + _describe_changes(bundle),
        "users": f"{known:,} known",
        "towers": _describe_towers(manifest, today or datetime.date.today()),
        "index": _describe_index(manifest),
        "lists": f"leave out {_LEFT_OUT[manifest['remove_seen']]} by default",
        **_describe_requests(bundle),
        **_describe_recall(manifest["results"]),
    }
    return [line for name, text in about.items() for line in _wrap(name, text)]


def write_onnx(path: pathlib.Path, out: pathlib.Path, k: int) -> tuple[list[str], bool]:
    """Writes a bundle's ONNX file and compares its lists with the exact ones of known users.

    Returns:
      Lines on it, and whether all lists are equal.

    Raises:
      ValueError: When the bundle's towers are a program, or a library is missing.
    """
    optional.require("onnx", "onnxruntime", extra="onnx", what="onnx: ")
    import onnxruntime

    from dsmoe_jax.serving import onnx_graph

    served = retriever.Retriever.load(path)
    file = onnx_graph.write_onnx(served.bundle, out, k=k)
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    load_ms = 1e3 * (time.perf_counter() - start)
    users, overlaps = parity.choose_users(served.encoder.known_users()), []
    for name in served.scenarios:
        columns = {requests.USER: users}
        feeds = onnx_feeds.feeds(served.bundle, columns, name, encoder=served.encoder)
        item_id, score = session.run(["item_id", "score"], feeds)
        found = [ids[row > float("-inf")].tolist() for ids, row in zip(item_id, score, strict=True)]
        probes = parity.probe(served, users, name, k, removes=True)
        overlaps.append(parity.compare(served, probes, found))
    size = file.stat().st_size / 1e6
    inputs = ", ".join(entry.name for entry in session.get_inputs())
    lines = [f"wrote {file}, {size:.1f} MB, loads in {load_ms:.0f} ms", f"inputs: {inputs}"]
    return [*lines, *_tell(overlaps, len(users), k, "onnxruntime")], _all_exact(overlaps)


def push_items(
    path: pathlib.Path, to: str, uri: str, name: str, *, k: int, replace: bool
) -> tuple[list[str], bool]:
    """Pushes a bundle's items to a vector store and compares its lists with the exact ones.

    Returns:
      Lines on it, and whether all lists are equal.

    Raises:
      ValueError: When the store's library is missing, or the name is taken.
    """
    store: push.VectorStore = vector_stores.STORES[to](uri, name, replace=replace)
    served = retriever.Retriever.load(path)
    overlaps = push.push(served, store, k=k)
    lines = [f"pushed {len(served.item_ids):,} items to {to}, {uri}"]
    return [*lines, *_tell(overlaps, parity.NUM_USERS, k, to)], _all_exact(overlaps)


def _wrap(name: str, text: str) -> list[str]:
    """An entry, its further lines below its text."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{name:<12}",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _tell(overlaps: Sequence[parity.Overlap], users: int, k: int, what: str) -> list[str]:
    return [
        f"lists of {users} users from {what} beside the exact ones:",
        *(overlap.line(k) for overlap in overlaps),
    ]


def _all_exact(overlaps: Sequence[parity.Overlap]) -> bool:
    return all(overlap.is_exact for overlap in overlaps)


def _describe_split(manifest: dict[str, Any]) -> dict[str, str]:
    """The days of the data, of a run that was evaluated, and until when users are known."""
    found = {}
    split = manifest["results"].get("split", {})
    if split:
        found["days"] = "; ".join(
            f"{name} {entry['days'][0]} to {entry['days'][-1]}" for name, entry in split.items()
        )
        if zones := {entry["time_zone"] for entry in split.values() if "time_zone" in entry}:
            found["days"] += f" of {', '.join(zones)}"
    until_s = manifest["known_until_s"]
    if until_s:
        until = datetime.datetime.fromtimestamp(until_s, datetime.UTC)
        found["users until"] = f"{until:%Y-%m-%d %H:%M} UTC"
    return found


def _describe_changes(bundle: bundle_lib.Bundle) -> str:
    """Items that came, changed or went since the export."""
    if not bundle.has("changed_rows"):
        return ""
    changed, removed = (len(bundle.load(f"{name}_rows")) for name in ("changed", "removed"))
    return f"; since then {changed:,} added or changed, {removed:,} removed"


def _describe_towers(manifest: dict[str, Any], today: datetime.date) -> str:
    towers = manifest["towers"]
    if towers["kind"] == "arrays":
        return "arrays, which do not expire"
    left = (datetime.date.fromisoformat(towers["expires"]) - today).days
    state = f"{left} days left" if left >= 0 else "no longer promised to be readable"
    return f"a compiled program, promised to be readable until {towers['expires']}: {state}"


def _describe_index(manifest: dict[str, Any]) -> str:
    """Of every scenario, or once where all have the same."""
    told = [
        "exact"
        if choice["name"] == "exact"
        else f"{choice['name']}, recall@{choice['k']} {choice['recall']:.4f}"
        for choice in manifest.get("indexes", ())
    ]
    return "; ".join(told if len(set(told)) > 1 else told[:1]) or "exact"


def _describe_requests(bundle: bundle_lib.Bundle) -> dict[str, str]:
    """What the model reads of a request, and what filters may name."""
    spec, raw_spec = bundle.spec, bundle.raw_spec
    # The histories of scenarios follow from the history; see `requests.py`.
    own = {features.EXPOSURES: requests.SHOWN, "scenario_history": features.HISTORY}
    own[features.SCENARIO_HISTORIES] = features.HISTORY
    events = dict.fromkeys(own.get(s.name, s.name) for s in spec.sequences)
    groups: dict[str, tuple[Any, ...]] = {
        "categories": spec.user_sparse,
        "numbers": spec.user_dense,
        "bags": spec.user_bags,
        "filters": (*raw_spec.item_sparse[1:], *raw_spec.item_bags),
    }
    named = {name: ", ".join(f.name for f in group) for name, group in groups.items() if group}
    return {"requests": ", ".join([requests.USER, *events]), **named}


def _describe_recall(results: dict[str, Any]) -> dict[str, str]:
    found = {}
    for k in results.get("k", ()):
        name = f"recall@{k}"
        rows = {**results["scenarios"], "macro": results["macro"]}
        known = {key: row for key, row in rows.items() if row[name] is not None}
        found[name] = ", ".join(f"{key} {_percent(row, name)}" for key, row in known.items())
    return found or {"recall": "the run was not evaluated"}


def _percent(row: dict[str, Any], name: str) -> str:
    error = row.get(f"{name}_se")
    return f"{100 * row[name]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + " %"


def _megabytes(files: dict[str, dict[str, Any]]) -> str:
    return f"{sum(entry['bytes'] for entry in files.values()) / 1e6:.1f} MB"


def _join(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)
