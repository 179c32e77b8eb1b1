"""Record of a finished job: the little that tables, figures and comparisons are made from.

Owns its schema and its currency. A record holds one or several `systems` (a run has one, the
built-in baselines several), each with recall per scenario on test and validation days; hits per
test query are in a file beside it (`hits.py`). A job is done while its record has today's hashes of
configuration and data and today's versions of the components that decide its numbers
(`numerics.VERSIONS`). The hash of the code that made it is provenance and is never compared; so are
the versions of Python and of libraries.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import numpy as np

from dsmoe_jax import runlog
from dsmoe_jax.compare import hits, numerics, plan
from dsmoe_jax.run import results as results_lib

Record = dict[str, Any]
# What a record takes over from results.json.
_KEPT = (
    *("dataset", "versions", "device", "date", "split", "candidates", "seen_items_removed", "k"),
    *("params", "time_s", "examples_per_s"),
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides a job's numbers: configuration, prepared data and versions of components."""

    config_hash: str
    data_hash: str
    numerics: dict[str, int]

    @property
    def stamp(self) -> str:
        """Name of the folder of a job's runs with this identity."""
        text = json.dumps(self.numerics, sort_keys=True)
        components = hashlib.sha256(text.encode()).hexdigest()
        return "-".join(value[:12] for value in (self.config_hash, self.data_hash, components))


def is_current(record: Record, identity: Identity) -> bool:
    """Whether a record was made by this configuration, data and versions of components."""
    return all(record.get(name) == value for name, value in dataclasses.asdict(identity).items())


def load(path: pathlib.Path) -> Record | None:
    """A record, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def load_all(folder: pathlib.Path, pattern: str = "*.json") -> list[Record]:
    """The records of a folder, in alphabetical order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def join(found: Iterable[Record], key: str) -> str:
    """The different values of an entry, in order."""
    return ", ".join(sorted({str(record[key]) for record in found}))


def job_name(record: Record) -> str:
    """Name of the job that a record is of."""
    return plan.job_name(record["system"], record["seed"], record["dropped_days"])


def make(job: plan.Job, identity: Identity, workdir: pathlib.Path, **more: Any) -> Record:
    """Reads what a finished job left in its workdir; `more` is what that does not say."""
    record: Record = {
        "system": job.system.name,
        "kind": job.system.kind,
        "seed": job.seed,
        "dropped_days": job.dropped_days,
        "teacher_job": job.teacher,
        **dataclasses.asdict(identity),
        "code_hash": numerics.code_hash(),
        **more,
    }
    if job.system.kind in ("run", "teacher"):
        record |= _read_course(job, workdir)
    if job.system.kind == "teacher":
        return {**record, "systems": {}}
    found = json.loads((workdir / results_lib.FILE).read_text())
    record |= {name: found[name] for name in _KEPT if name in found}
    if job.system.kind != "run":
        record["systems"] = found["systems"]
        return record
    with np.load(workdir / results_lib.ARRAYS_FILE) as arrays:
        views = {name: np.round(arrays[name], 5).tolist() for name in arrays if "/" in name}
    teacher = found["teacher"]
    taught = teacher and {
        **summarise(teacher),
        "params": teacher["params"],
        "minus_student": teacher[f"minus_student_recall@{found['k'][0]}"],
    }
    systems = {job.system.name: summarise(found)}
    return {**record, "views": views, "systems": systems, "teacher": taught}


def keep_hits(job: plan.Job, workdir: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the hits that a finished job left in its workdir to their place beside its record."""
    if job.system.kind == "run":
        with np.load(workdir / results_lib.ARRAYS_FILE) as arrays:
            # The others are tables of the model.
            of_queries = {name: array for name, array in arrays.items() if "/" not in name}
        hits.write(path, job.name, {job.system.name: of_queries})
    elif job.system.kind != "teacher":
        shutil.copyfile(workdir / hits.FILE, path)


def _read_course(job: plan.Job, workdir: pathlib.Path) -> Record:
    """How many epochs the job's own stage did, and what it was allowed."""
    experiment, stage = job.experiment, "teacher" if job.system.kind == "teacher" else "student"
    allowed = experiment.teacher if stage == "teacher" else experiment.train
    score = f"eval/macro/recall@{experiment.eval.k[0]}"
    return {
        "epochs": len(runlog.read_scores(workdir, stage, score)),
        "max_epochs": allowed.max_epochs,
        "max_minutes": allowed.max_minutes,
    }


def summarise(summary: dict[str, Any]) -> dict[str, Any]:
    """Recall of a system per scenario and macro, on test and on validation days."""

    def recalls(row: dict[str, Any]) -> dict[str, Any]:
        kept = ("share", "queries")
        return {k: v for k, v in row.items() if k in kept or k.startswith("recall@")}

    def keep(part: dict[str, Any]) -> dict[str, Any]:
        scenarios = {name: recalls(row) for name, row in part["scenarios"].items()}
        return {"scenarios": scenarios, "macro": recalls(part["macro"])}

    return {**keep(summary), "validation": keep(summary["validation"])}
