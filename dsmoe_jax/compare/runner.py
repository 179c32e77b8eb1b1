"""Runs the cells of a comparison, each in a process of its own, and keeps their records.

Owns the folder of a comparison:

    stores/<hash>/            prepared data, shared by the cells of the same days
    cells/<name>/<identity>/  a cell's workdir; another configuration, data or numerics has another
    cells/<name>.lock         held by the process that runs the cell, whoever started it
    records/<name>.json       a finished cell
    failed/<name>.json        why a cell failed; it is tried again the next time

Every run resumes, so a list that was killed continues inside the cells where it stopped. A cell
that a killed list left running is asked to save and end: it would share its core with the next one,
at the cost of both where their minutes are counted. Cells of another list on the same folder (a
SLURM array) keep their locks: they are waited for, not run twice.

A list also continues from records alone, such as those in a repository: a teacher whose folder is
gone is trained again if an unfinished cell needs it.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from dsmoe_jax import runlog
from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import costs, numerics, plan, processes, progress, records
from dsmoe_jax.config import fingerprint
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.models import registry
from dsmoe_jax.run import results
from dsmoe_jax.training import interrupt

_POLL_S = 0.2


class _Store(NamedTuple):
    """Prepared data."""

    folder: pathlib.Path
    data_hash: str


class _Running(NamedTuple):
    """A cell's process."""

    number: int
    slot: int
    process: subprocess.Popen
    start_s: float


class WorkList:
    """The cells of a comparison in their folder."""

    def __init__(
        self,
        cells: Sequence[plan.Cell],
        folder: pathlib.Path,
        published: pathlib.Path | None = None,
    ):
        """Prepares the data and finds out which cells are done.

        Args:
          cells: In the order in which they are run; a teacher comes before its students. One that
            is not done and whose library is not installed is left out.
          folder: Of the comparison.
          published: Folder of the records; `<folder>/records` without one.

        Raises:
          ValueError: When a configuration or its data are refused.
        """
        self.cells, self.folder = list(cells), folder
        self.records = published or folder / "records"
        for path in (self.records, folder / "cells", folder / "stores", folder / "failed"):
            path.mkdir(parents=True, exist_ok=True)
        self._index = {cell.name: n for n, cell in enumerate(self.cells)}
        self._cores = 0
        self._orphans: set[int] = set()
        self._stores: dict[str, _Store] = {}
        self._identities: dict[str, records.Identity] = {}
        missing = catalogue.list_missing()
        self.states = [progress.CellState(c.name, c.row.kind) for c in self.cells]
        for cell, state in zip(self.cells, self.states, strict=True):
            cell.experiment.validate()
            record = self.read(cell)
            if record is not None:
                state.state, state.seconds = "done", record["wall_s"]
            elif cell.row.name in missing:
                state.state, state.note = "left out", "its library is not installed"
            elif (failure := records.load(self._failure_path(cell))) is not None:
                state.state, state.note = "failed", failure["error"]
        for cell, state in zip(self.cells, self.states, strict=True):
            if cell.teacher and state.state != "done":
                teacher = self._index[cell.teacher]
                if self.states[teacher].state == "done" and not self._is_kept(self.cells[teacher]):
                    kind = self.cells[teacher].row.kind
                    self.states[teacher] = progress.CellState(cell.teacher, kind)

    def read(self, cell: plan.Cell) -> records.Record | None:
        """The record of a cell, or None where there is none or it is not current."""
        record = records.load(self.records / f"{cell.name}.json")
        current = record is not None and records.is_current(record, self.identity(cell))
        return record if current else None

    def identity(self, cell: plan.Cell) -> records.Identity:
        """What decides the cell's numbers."""
        if cell.name not in self._identities:
            self._identities[cell.name] = records.Identity(
                fingerprint.config_hash(cell.experiment),
                self._store(cell).data_hash,
                numerics.of(_components(cell)),
            )
        return self._identities[cell.name]

    def workdir(self, cell: plan.Cell) -> pathlib.Path:
        """Where the cell runs."""
        return self.folder / "cells" / cell.name / self.identity(cell).stamp

    def command(self, cell: plan.Cell) -> list[str]:
        """The cell's process."""
        module = "dsmoe_jax.compare.baseline_job" if cell.row.kind == "scored" else "dsmoe_jax.main"
        command = [sys.executable, "-m", module, *cell.arguments]
        command.append(f"--workdir={self.workdir(cell)}")
        command.append(f"--config.data.store_dir={self._store(cell).folder}")
        if cell.row.kind == "scored":
            command.append(f"--system={cell.row.name}")
        if cell.row.kind == "teacher":
            command.append("--mode=teacher")
        if cell.teacher:
            teacher = self.workdir(self.cells[self._index[cell.teacher]])
            command.append(f"--config.teacher.from_workdir={teacher}")
        return command

    def run(self, workers: int, only: int | None = None) -> list[progress.CellState]:
        """Runs every cell that is not done; a failed cell does not keep the others from running.

        Args:
          workers: Processes at a time, which share the cores.
          only: Index of the one cell to run, with the teacher that it needs if it is not done; None
            runs all.

        Returns:
          Where the cells that it was to run stand.

        Raises:
          stop_lib.InterruptedRunError: When asked to stop; what was done stays.
        """
        wanted = list(range(len(self.cells)))
        if only is not None:
            teacher = self.cells[only].teacher if self.states[only].state != "done" else ""
            wanted = [*([self._index[teacher]] if teacher else []), only]
        for index in wanted:
            if self.states[index].state == "failed":
                self.states[index] = progress.CellState(
                    self.cells[index].name, self.cells[index].row.kind
                )
        states = [self.states[index] for index in wanted]
        view = progress.View(states, workers)
        self._cores = len(processes.cores_of(0, workers))
        with interrupt.StopRequest() as stop, contextlib.ExitStack() as stack:
            stack.callback(view.clear)
            self._run_all(wanted, workers, view, stop)
        return states

    def _run_all(
        self, wanted: list[int], workers: int, view: progress.View, stop: interrupt.StopRequest
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
                return
            busy = {entry.slot for entry in running}
            for slot in set(range(workers)) - busy:
                started = self._start_next(left, slot, workers)
                if started is not None:
                    running.append(started)
                    left.remove(started.number)
                    view.tell(f"started {self.cells[started.number].name}")
            if time.perf_counter() - drawn_s > 1.0:
                drawn_s = time.perf_counter()
                for entry in running:
                    state = self.states[entry.number]
                    state.seconds = drawn_s - entry.start_s
                    state.note = processes.last_line(self._log(self.cells[entry.number]))
                view.show()
            time.sleep(_POLL_S)

    def _start_next(self, left: list[int], slot: int, workers: int) -> _Running | None:
        """Starts the first cell that can be: its teacher is done and nobody else runs it."""
        for index in list(left):
            cell, state = self.cells[index], self.states[index]
            teacher = self.states[self._index[cell.teacher]] if cell.teacher else None
            if teacher is not None and teacher.state == "failed":
                state.state, state.note = "failed", f"its teacher {teacher.name} failed"
                left.remove(index)
                continue
            if teacher is not None and teacher.state != "done":
                continue
            lock_path = self.folder / "cells" / f"{cell.name}.lock"
            with processes.lock(lock_path) as lock:
                if lock is None:
                    # Once: a second request ends a run before it has saved.
                    if index not in self._orphans and processes.stop_orphan(lock_path):
                        self._orphans.add(index)
                    continue
                record = self.read(cell)  # another list may have finished it
                if record is not None and (cell.row.kind != "teacher" or self._is_kept(cell)):
                    state.state, state.seconds = "done", record["wall_s"]
                    left.remove(index)
                    continue
                if cell.row.kind != "teacher" and (self.workdir(cell) / results.FILE).exists():
                    # It ended after the list that started it had been killed.
                    self._keep(cell, state)
                    left.remove(index)
                    continue
                state.state, state.seconds = "running", 0.0
                process = self._start(cell, slot, workers, lock)
                return _Running(index, slot, process, time.perf_counter())
        return None

    def _start(self, cell: plan.Cell, slot: int, workers: int, lock: int) -> subprocess.Popen:
        workdir = self.workdir(cell)
        for old in workdir.parent.glob("*-*-*") if workdir.parent.exists() else ():
            if old != workdir:
                shutil.rmtree(old)
        if cell.row.kind == "teacher":
            # Until it is trained again, its students wait for it in every list.
            (self.records / f"{cell.name}.json").unlink(missing_ok=True)
        workdir.mkdir(parents=True, exist_ok=True)
        return processes.start(
            self.command(cell), self._log(cell), slot=slot, workers=workers, lock=lock
        )

    def _finish(self, entry: _Running, view: progress.View) -> None:
        cell, state = self.cells[entry.number], self.states[entry.number]
        state.seconds = time.perf_counter() - entry.start_s
        if entry.process.returncode:
            state.state = "failed"
            state.note = f"{processes.last_line(self._log(cell))} (see {self._log(cell)})"
            runlog.replace_text(self._failure_path(cell), json.dumps({"error": state.note}) + "\n")
            view.tell(f"{cell.name}: failed, {state.note}")
            return
        record = self._keep(cell, state)
        view.tell(f"{cell.name}: {_describe(record)}{progress.clock(state.seconds)} min")

    def _keep(self, cell: plan.Cell, state: progress.CellState) -> records.Record:
        """Writes the record of a cell that is finished."""
        counted = None
        if cell.row.kind == "run":
            counted = costs.count(cell.experiment, self._store(cell).folder)
        record = records.make(
            cell,
            self.identity(cell),
            self.workdir(cell),
            wall_s=round(state.seconds, 1),
            cores=self._cores,
            costs=counted,
        )
        runlog.replace_text(self.records / f"{cell.name}.json", json.dumps(record) + "\n")
        self._failure_path(cell).unlink(missing_ok=True)
        state.state, state.note = "done", ""
        return record

    def _is_kept(self, teacher: plan.Cell) -> bool:
        """Whether a finished teacher's folder is still there for its students."""
        # The folder comes first: another list removes the record before it makes the folder anew.
        return self.workdir(teacher).exists() and self.read(teacher) is not None

    def _log(self, cell: plan.Cell) -> pathlib.Path:
        return self.workdir(cell) / "log.txt"

    def _failure_path(self, cell: plan.Cell) -> pathlib.Path:
        return self.folder / "failed" / f"{cell.name}.json"

    def _store(self, cell: plan.Cell) -> _Store:
        """The cell's data, prepared at most once by this process."""
        settings = json.dumps(fingerprint.as_dict(cell.experiment)["data"], sort_keys=True)
        name = hashlib.sha256(settings.encode()).hexdigest()[:12]
        if name not in self._stores:
            folder = self.folder / "stores" / name
            with processes.lock(folder.with_suffix(".lock"), wait=True):
                cell.experiment.data.prepare(str(folder))
            self._stores[name] = _Store(folder, store_lib.Store.open(folder).data_hash)
        return self._stores[name]


def _components(cell: plan.Cell) -> list[str]:
    """Components that decide the cell's numbers."""
    if cell.row.kind == "scored":
        return catalogue.components(cell.row.name)
    return registry.components(
        cell.experiment,
        student=cell.row.kind == "run",
        teacher=cell.row.kind == "teacher" or bool(cell.teacher),
    )


def _describe(record: dict[str, Any]) -> str:
    """The validation and test score of a finished cell's best system."""
    if not record["systems"]:
        return ""
    metric = f"recall@{record['k'][0]}"
    best = max(record["systems"].values(), key=lambda s: s["validation"]["macro"][metric])
    values = [100 * part["macro"][metric] for part in (best["validation"], best)]
    return f"macro {metric} validation {values[0]:.1f} %, test {values[1]:.1f} %, "
