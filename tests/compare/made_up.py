"""Records of jobs that nobody ran, with recalls that are asked for."""

import json
import pathlib

import numpy as np

from dsmoe_jax.compare import hits as per_query
from dsmoe_jax.compare.report import formats

SCENARIOS = ("K1", "K2")
QUERIES = (400, 40)
RELEVANT = 4


def hits(means, seed: int) -> np.ndarray:
    """Hits of every query whose recall has these means by scenario."""
    rng = np.random.default_rng(seed)
    parts = [rng.binomial(RELEVANT, mean, n) for mean, n in zip(means, QUERIES, strict=True)]
    return np.concatenate(parts)


def system(means, seed: int = 0, noise: int = 0) -> dict:
    """A system; those of one seed and noise differ from query to query as little as they can."""
    Q = sum(QUERIES)
    hits_Q = hits(means, 1000 * seed + noise)
    queries = {
        "query": np.arange(Q),
        "scenario": np.repeat(np.arange(len(QUERIES)), QUERIES),
        "relevant": np.full(Q, RELEVANT),
        "hits@5": hits_Q,
        "hits@10": np.minimum(hits_Q + 1, RELEVANT),
    }
    recall = {
        name: float(hits_Q[queries["scenario"] == s].mean() / RELEVANT)
        for s, name in enumerate(SCENARIOS)
    }
    summary = {
        "scenarios": {
            name: {
                "share": n / sum(QUERIES),
                "queries": n,
                "recall@5": recall[name],
                "recall@10": recall[name],
            }
            for name, n in zip(SCENARIOS, QUERIES, strict=True)
        },
        "macro": {"recall@5": np.mean(list(recall.values())), "recall@10": 0.5},
    }
    return {**summary, "validation": summary, "queries": queries}


def record(system: str, systems: dict, *, seed: int = 0, days: int = 0, kind: str = "run") -> dict:
    """The record of a job."""
    split = {
        part: {"days": [f"{part}-{days}a", f"{part}-{days}b"], "examples": 1000}
        for part in ("train", "validation", "test")
    }
    return {
        "system": system,
        "kind": kind,
        "seed": seed,
        "dropped_days": days,
        "teacher_job": "",
        "config_hash": "c" * 12,
        "data_hash": "d" * 64,
        "numerics": {"data": 1, "training": 1, "evaluation": 1},
        "code_hash": "0" * 12,
        "wall_s": 90.0,
        "cores": 1,
        "dataset": "KuaiRand-Pure",
        "versions": {"jax": "1.2.3"},
        "device": "1 x cpu (2 cores)",
        "date": "2026-01-02",
        "split": split,
        "candidates": 7583,
        "seen_items_removed": True,
        "k": [5, 10],
        "params": {"dense": 250_000, "embedding": 500_000},
        "time_s": {"teacher": 50.0 if system == "dsmoe" else 0.0, "student": 30.0},
        "examples_per_s": 500.0,
        "costs": {
            "user": 4_000_000,
            "item": 2_000_000,
            "score": 500_000,
            "query": 1000,
            "corpus": 70_000_000,
            "indexes": 2,
        },
        "views": {
            "scenario_coefficients/user/forward": [[1.0, 0.5], [0.2, 1.0]],
            "gate_weights/user": [[0.2, 0.8], [0.6, 0.4]],
        },
        "systems": systems,
    }


def save(folder: pathlib.Path, entry: dict) -> None:
    """Writes a record where a runner would."""
    drop = f"-drop{entry['dropped_days']}" if entry["dropped_days"] else ""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{entry['system']}-seed{entry['seed']}{drop}.json"
    systems = {name: dict(system) for name, system in entry["systems"].items()}
    queries = {name: system.pop("queries") for name, system in systems.items()}
    if queries:
        per_query.write(path.with_suffix(".parquet"), path.stem, queries)
    teacher = {k: v for k, v in entry.get("teacher", {}).items() if k != "queries"}
    path.write_text(json.dumps({**entry, "systems": systems, "teacher": teacher or None}))


def save_comparison(folder: pathlib.Path, *, days: tuple[int, ...] = (0,)) -> None:
    """DSMOE with two seeds, two ablations, a value of each sweep and the built-in baselines."""
    for day in days:
        for seed in (0, 1):
            mine = {"dsmoe": system((0.4, 0.3), seed, day)}
            save(folder, record("dsmoe", mine, seed=seed, days=day))
        references = {
            "random": system((0.01, 0.01), 5, day),
            "popularity in scenario": system((0.2, 0.35), 6, day),
            "EASE + scenario prior": system((0.4, 0.3), 7, day),
        }
        save(folder, record("references", references, kind="scored", days=day))
    save(folder, record("no_sap", {"no_sap": system((0.1, 0.1), 8)}))
    save(folder, record("no_dsbn", {"no_dsbn": system((0.6, 0.3), 9)}))
    save(folder, record("rank1", {"rank1": system((0.35, 0.2), 10)}))
    save(folder, record("num_experts1", {"num_experts1": system((0.3, 0.2), 11)}))


def row_of(table: formats.Table, label: str) -> dict[str, formats.Value]:
    """The one row of a table with a label, by its columns' heads."""
    [row] = [row for row in table.rows if row[0].text == label]
    return dict(zip(table.heads, row, strict=True))
