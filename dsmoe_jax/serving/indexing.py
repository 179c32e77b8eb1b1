"""Index of a bundle: chosen by measured time at a promised recall, and kept in it.

Owns the probe queries, the choice for every scenario and the files of what was chosen. A bundle
without one is searched exactly. What indexes do is `retrieval/`'s.

Letters: S scenarios, V rows of the corpus, Q probe queries, M interests, D a vector.
"""

import pathlib
import tempfile
from typing import Any

import numpy as np
from jaxtyping import Float

from dsmoe_jax import optional, runlog
from dsmoe_jax.retrieval import checks, host
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import requests, towers

_PROBES = 256


def open_indexes(bundle: bundle_lib.Bundle) -> list[host.Searcher]:
    """What searches the item vectors of a bundle: one of each scenario, or one in all.

    Raises:
      ValueError: When an index needs FAISS and it is not installed, or its file does not fit.
    """
    vectors_SVD = bundle.load("item_vectors")
    choices = bundle.manifest.get("indexes") or [{"name": "exact"}] * len(vectors_SVD)
    found: list[host.Searcher] = []
    for s, (choice, item_VD) in enumerate(zip(choices, vectors_SVD, strict=True)):
        if choice["name"] == "exact":
            found.append(host.HostIndex(item_VD))
        else:
            path = bundle.root / _file(s)
            optional.require("faiss", extra="cpu", what=f"{path}: ")
            # Only a bundle that has such an index needs FAISS.
            from dsmoe_jax.retrieval import ann

            found.append(ann.AnnIndex.open(path, item_VD, choice["parameters"]))
    return found


def make_index(
    path: str | pathlib.Path, *, min_recall: float, k: int = 100, seed: int = 0
) -> bundle_lib.Bundle:
    """Chooses the index of every scenario and keeps it in the bundle, with curve and probes.

    Args:
      path: The bundle's folder.
      min_recall: Least recall of the exact lists of k, in (0, 1].
      k: List length.
      seed: Of the probes and the builds.

    Raises:
      ValueError: On vectors that cannot be searched, duplicate ids, without FAISS, or when the
        bundle was exported or changed meanwhile; nothing is written then.
    """
    bundle = bundle_lib.Bundle.open(path)
    optional.require("faiss", extra="cpu", what="index: ")
    from dsmoe_jax.retrieval import choice as choice_lib

    raw_id_V = bundle.load("items_raw_id")
    arrays: dict[str, np.ndarray] = {}
    files: dict[str, pathlib.Path] = {}
    described: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for s, item_VD in enumerate(bundle.load("item_vectors")):
            name = f"item vectors of {bundle.scenarios[s]}"
            checks.check_vectors(item_VD, raw_id_V, name=name)
            probe_QMD = make_probes(bundle, s, seed=seed)
            chosen = choice_lib.choose(item_VD, probe_QMD, k=k, min_recall=min_recall, seed=seed)
            described.append(chosen.to_json())
            arrays[f"probes_{s}"] = probe_QMD
            if chosen.index is not None:
                files[_file(s)] = pathlib.Path(scratch) / _file(s)
                chosen.write_index(files[_file(s)])
            point = chosen.point
            called = f"{point.name} {point.parameters}" if point.parameters else point.name
            runlog.say(
                f"{bundle.scenarios[s] if bundle.manifest['item_uses_scenario'] else 'all'}: "
                f"{called}, recall {point.recall:.4f}, "
                f"{point.cpu_ms:.2f} ms of CPU a query; exact {chosen.curve[0].cpu_ms:.2f} ms"
            )
        return bundle_lib.extend(bundle, arrays, files, {"indexes": described})


def make_probes(
    bundle: bundle_lib.Bundle, scenario: int, *, seed: int
) -> Float[np.ndarray, "Q M D"]:
    """Vectors of known users in a scenario, of those that test days asked for where there are any.

    Where one index serves all scenarios, users ask in the one that they asked in.
    """
    asked_Q2 = bundle.load("test_queries")
    if bundle.manifest["item_uses_scenario"] and (asked_Q2[:, 1] == scenario).any():
        asked_Q2 = asked_Q2[asked_Q2[:, 1] == scenario]
    rng = np.random.default_rng([seed, scenario])
    chosen = np.sort(rng.choice(len(asked_Q2), min(_PROBES, len(asked_Q2)), replace=False))
    user_Q, scenario_Q = asked_Q2[chosen].T
    if bundle.manifest["item_uses_scenario"]:
        scenario_Q = np.full_like(scenario_Q, scenario)
    encoder = requests.Encoder(bundle)
    encoded = encoder.encode({requests.USER: bundle.load("users_raw_id")[user_Q]})
    users = encoded.read(np.arange(len(user_Q)), scenario_Q)
    tower, _ = towers.make_towers(bundle)
    return tower(users, scenario_Q)


def _file(scenario: int) -> str:
    return f"index_{scenario}.faiss"
