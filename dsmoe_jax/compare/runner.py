"""Runner of jobs, each in a process of its own: those of comparison, searches and simulations.

Owns the folder of a comparison:

    stores/<hash>/            prepared data, shared by the jobs of the same days
    jobs/<name>/<identity>/   a job's workdir; another configuration, data or numerics has another
    jobs/<name>.lock          held by the process of the job, whoever started it
    records/<name>.json       a finished job; <name>.parquet: its hits per query
    failed/<name>.json        why a job failed; it is tried again the next time

Every run resumes, so a runner that was killed continues inside the jobs where it stopped. A job
that a killed runner left running is asked to save and end: it would share its core with the next
one, at the cost of both where their minutes are counted. Jobs of another runner on the same folder
keep their locks: they are waited for, not run twice.

A runner also continues from records alone, such as those in a repository: a teacher whose folder is
gone is trained again if an unfinished job needs it.
"""

import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dsmoe_jax import runlog
from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import costs, numerics, plan, processes, progress, queries, records
from dsmoe_jax.compare import job as job_lib
from dsmoe_jax.config import fingerprint
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.run import results
from dsmoe_jax.training import interrupt

_POLL_S = 0.2


class _Running(NamedTuple):
    """A job's process."""

    number: int
    process: processes.Process
    start_s: float


class Runner:
    """Jobs in their folder."""

    def __init__(
        self, jobs: Sequence[plan.Job], folder: pathlib.Path, published: pathlib.Path | None = None
    ):
        """Prepares the data and finds out which jobs are done.

        Args:
          jobs: In the order in which they are run; a teacher comes before its students. One that is
            not done and whose library is not installed is left out.
          folder: Of the comparison.
          published: Folder of the records; `<folder>/records` without one.

        Raises:
          ValueError: When a configuration or its data are refused.
        """
        # A node of a cluster may start elsewhere.
        self.jobs, self.folder = list(jobs), folder.absolute()
        folder = self.folder
        self.records = published or folder / "records"
        for path in (self.records, folder / "jobs", folder / "stores", folder / "failed"):
            path.mkdir(parents=True, exist_ok=True)
        self._index = {job.name: n for n, job in enumerate(self.jobs)}
        self._cores = 0
        self._orphans: set[int] = set()
        self._stores: dict[str, store_lib.Store] = {}
        self._identities: dict[str, records.Identity] = {}
        missing = catalogue.list_missing()
        self.states = [progress.JobState(job.name, job.system.kind) for job in self.jobs]
        for job, state in zip(self.jobs, self.states, strict=True):
            record = self.read(job)
            if record is not None:
                state.state, state.seconds = "done", record["wall_s"]
            elif job.system.name in missing:
                state.state, state.note = "left out", "its library is not installed"
            elif (failure := records.load(self._failure_path(job))) is not None:
                state.state, state.note = "failed", failure["error"]
        for job, state in zip(self.jobs, self.states, strict=True):
            if job.teacher and state.state != "done":
                teacher = self._index[job.teacher]
                if self.states[teacher].state == "done" and not self._is_kept(self.jobs[teacher]):
                    self.states[teacher] = progress.JobState(job.teacher, "teacher")

    def read(self, job: plan.Job) -> records.Record | None:
        """The record of a job, or None where there is none or it is not current."""
        record = records.load(self._record_path(job))
        current = record is not None and records.is_current(record, self.identity(job))
        return record if current else None

    def identity(self, job: plan.Job) -> records.Identity:
        """What decides the job's numbers."""
        if job.name not in self._identities:
            self._identities[job.name] = records.Identity(
                fingerprint.config_hash(job.experiment),
                self.store(job).data_hash,
                numerics.of(job.components),
            )
        return self._identities[job.name]

    def workdir(self, job: plan.Job) -> pathlib.Path:
        """Where the job runs."""
        return self.folder / "jobs" / job.name / self.identity(job).stamp

    def task(self, job: plan.Job) -> job_lib.Task:
        """What the job's process is told."""
        overrides = {**job.overrides, "data.store_dir": str(self.store(job).root)}
        if job.teacher:
            teacher = self.workdir(self.jobs[self._index[job.teacher]])
            overrides["teacher.from_workdir"] = str(teacher)
        return job_lib.Task(
            name=job.name,
            kind=job.system.kind,
            system=job.system.name,
            config=job.system.config,
            overrides=overrides,
            lock=str(self._lock_path(job)),
            starter=os.getpid(),
            more=dict(job.more),
        )

    def run(
        self,
        machine: processes.Machine,
        only: int | None = None,
        watch: Callable[[progress.View], None] | None = None,
    ) -> list[progress.JobState]:
        """Runs every job that is not done; a failed job does not keep the others from running.

        Args:
          machine: Where jobs run.
          only: Index of the one job to run, with the teacher that it needs if it is not done; None
            runs all.
          watch: Called about once a second and at the end.

        Returns:
          Where the jobs that it was to run stand.

        Raises:
          interrupt.InterruptedRunError: When asked to stop; what was done stays.
        """
        wanted = list(range(len(self.jobs)))
        if only is not None:
            teacher = self.jobs[only].teacher if self.states[only].state != "done" else ""
            wanted = [*([self._index[teacher]] if teacher else []), only]
        for index in wanted:
            if self.states[index].state == "failed":
                job = self.jobs[index]
                self.states[index] = progress.JobState(job.name, job.system.kind)
        states = [self.states[index] for index in wanted]
        view = progress.View(states, machine.workers)
        self._cores = machine.cores
        try:
            with interrupt.Interrupt() as stop:
                self._run_all(wanted, machine, view, stop, watch or (lambda view: None))
        finally:
            view.clear()
        return states

    def _run_all(
        self,
        wanted: list[int],
        machine: processes.Machine,
        view: progress.View,
        stop: interrupt.Interrupt,
        watch: Callable[[progress.View], None],
    ) -> None:
        running: list[_Running] = []
        drawn_s = 0.0
        while True:
            for entry in [e for e in running if e.process.poll() is not None]:
                running.remove(entry)
                self._finish(entry, view)
            if stop.requested:
                processes.stop([entry.process for entry in running])
                raise interrupt.InterruptedRunError("stopped; the same command continues")
            left = [index for index in wanted if self.states[index].state == "left"]
            if not left and not running:
                watch(view)
                return
            ready = self._take_ready(left, machine.workers - len(running))
            now_s = time.perf_counter()
            files = [self._write_task(self.jobs[index]) for index in ready]
            started = machine.start(files) if files else []
            for index, process in zip(ready, started, strict=True):
                running.append(_Running(index, process, now_s))
                view.tell(f"started {self.jobs[index].name}")
            if now_s - drawn_s > 1.0:
                drawn_s = now_s
                for entry in running:
                    state = self.states[entry.number]
                    state.seconds = drawn_s - entry.start_s
                    state.note = processes.last_line(self._log(self.jobs[entry.number]))
                watch(view)
                view.show()
            time.sleep(_POLL_S)

    def _take_ready(self, left: Sequence[int], free: int) -> list[int]:
        """The first jobs that can start: their teacher is done and nobody else runs them."""
        ready: list[int] = []
        for index in left:
            if len(ready) == free:
                break
            job, state = self.jobs[index], self.states[index]
            teacher = self.states[self._index[job.teacher]] if job.teacher else None
            if teacher is not None and teacher.state == "failed":
                state.state, state.note = "failed", f"its teacher {teacher.name} failed"
            elif teacher is None or teacher.state == "done":
                lock_path = self._lock_path(job)
                with processes.lock(lock_path) as lock:
                    if lock is None:
                        # Once: a second request ends a run before it has saved.
                        if index not in self._orphans and processes.stop_orphan(lock_path):
                            self._orphans.add(index)
                    elif not self._is_done(job, state):
                        state.state, state.seconds = "running", 0.0
                        ready.append(index)
        return ready

    def _is_done(self, job: plan.Job, state: progress.JobState) -> bool:
        """Whether another runner finished the job, or its process did after its own was killed."""
        record = self.read(job)
        if record is not None and (job.system.kind != "teacher" or self._is_kept(job)):
            state.state, state.seconds = "done", record["wall_s"]
        elif (self.workdir(job) / results.FILE).exists() and job.system.kind != "teacher":
            self._keep(job, state)
        return state.state == "done"

    def _write_task(self, job: plan.Job) -> pathlib.Path:
        """Makes the job's folder, and the file for its process."""
        workdir = self.workdir(job)
        for old in workdir.parent.glob("*-*-*") if workdir.parent.exists() else ():
            if old != workdir:
                shutil.rmtree(old)
        if job.system.kind == "teacher":
            # Until it is trained again, its students wait for it in every runner.
            self._record_path(job).unlink(missing_ok=True)
        workdir.mkdir(parents=True, exist_ok=True)
        job_lib.write(workdir / job_lib.FILE, self.task(job))
        return workdir / job_lib.FILE

    def _finish(self, entry: _Running, view: progress.View) -> None:
        job, state = self.jobs[entry.number], self.states[entry.number]
        status = entry.process.poll()
        state.seconds = time.perf_counter() - entry.start_s
        if status == processes.TAKEN:
            state.state, state.seconds = "left", 0.0
            return
        if status:
            state.state = "failed"
            state.note = f"{processes.last_line(self._log(job))} (see {self._log(job)})"
            runlog.replace_text(self._failure_path(job), json.dumps({"error": state.note}) + "\n")
            view.tell(f"{job.name}: failed, {state.note}")
            return
        record = self._keep(job, state)
        view.tell(f"{job.name}: {_describe(record)}{progress.clock(state.seconds)} min")

    def _keep(self, job: plan.Job, state: progress.JobState) -> records.Record:
        """Writes the record of a job that is finished; a search has none, its journal goes on."""
        state.state, state.note = "done", ""
        self._failure_path(job).unlink(missing_ok=True)
        if job.system.kind == "search":
            return {"systems": {}}
        more: records.Record = {"wall_s": round(state.seconds, 1), "cores": self._cores}
        is_run = job.system.kind == "run"
        more["costs"] = costs.count(job.experiment, self.store(job)) if is_run else None
        record = records.make(job, self.identity(job), self.workdir(job), **more)
        path = self._record_path(job)
        records.keep_hits(job, self.workdir(job), path.with_suffix(".parquet"))
        queries.keep(self.records, job.dropped_days, self.store(job))
        runlog.replace_text(path, json.dumps(record) + "\n")
        return record

    def _is_kept(self, teacher: plan.Job) -> bool:
        """Whether a finished teacher's folder is still there for its students."""
        # The folder comes first: another runner removes the record before it makes the folder anew.
        return self.workdir(teacher).exists() and self.read(teacher) is not None

    def _record_path(self, job: plan.Job) -> pathlib.Path:
        return self.records / f"{job.name}.json"

    def _lock_path(self, job: plan.Job) -> pathlib.Path:
        return self.folder / "jobs" / f"{job.name}.lock"

    def _log(self, job: plan.Job) -> pathlib.Path:
        return processes.log_of(self.workdir(job) / job_lib.FILE)

    def _failure_path(self, job: plan.Job) -> pathlib.Path:
        return self.folder / "failed" / f"{job.name}.json"

    def store(self, job: plan.Job) -> store_lib.Store:
        """The job's data, prepared at most once by this process."""
        settings = json.dumps(fingerprint.as_dict(job.experiment)["data"], sort_keys=True)
        name = hashlib.sha256(settings.encode()).hexdigest()[:12]
        if name not in self._stores:
            folder = self.folder / "stores" / name
            with processes.lock(folder.with_suffix(".lock"), wait=True):
                job.experiment.data.prepare(str(folder))
            self._stores[name] = store_lib.Store.open(folder)
        return self._stores[name]


def _describe(record: records.Record) -> str:
    """The validation and test score of a finished job's best system."""
    if not record["systems"]:
        return ""
    metric = f"recall@{record['k'][0]}"
    best = max(record["systems"].values(), key=lambda s: s["validation"]["macro"][metric])
    values = [100 * part["macro"][metric] for part in (best["validation"], best)]
    return f"macro {metric} validation {values[0]:.1f} %, test {values[1]:.1f} %, "
