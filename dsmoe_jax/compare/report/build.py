"""Comparison report: everything that is finished, as Markdown, CSV, figures and one page.

Owns what a report holds and in which order. It is made from records alone, so that the records of
another machine give the same report.

    report.html  report.md  table1.csv ... table4.csv  fig2.png fig2.svg ...
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

from dsmoe_jax import optional, runlog
from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import plan, records
from dsmoe_jax.compare.report import (
    cost_table,
    findings,
    finished,
    formats,
    method_table,
    page,
    recall_table,
    sweeps,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the records of a comparison are, and what it consists of.

    Attributes:
      records: Folder of the records.
      config: `FILE:variant` of DSMOE itself.
      failed: Folder of the failed jobs' reasons, if any.
    """

    records: pathlib.Path
    config: str
    failed: pathlib.Path | None = None

    def systems(self, table: str) -> list[finished.System]:
        """The systems of a table or figure."""
        return finished.load(self.records, plan.systems_of(table, self.config))


def write(source: Source, folder: pathlib.Path) -> pathlib.Path:
    """Writes the report of what is finished; returns the page.

    Raises:
      ValueError: When DSMOE itself has no finished job.
    """
    made = make_tables(source)
    folder.mkdir(parents=True, exist_ok=True)
    for table in made:
        runlog.replace_text(folder / f"{table.name}.csv", formats.to_csv(table))
    notes = [*describe(source), *_failures(source), *_not_run(source)]
    report = page.Report(notes, find(source), made, _draw(source, folder))
    runlog.replace_text(folder / "report.md", page.to_markdown(report))
    path = folder / "report.html"
    runlog.replace_text(path, page.to_html(report))
    return path


def make_tables(source: Source) -> list[formats.Table]:
    """Every table of which something is finished, in the paper's order.

    Raises:
      ValueError: When DSMOE itself has no finished job.
    """
    main = source.systems("table2")
    compared = _by_days("table2", "Table 2: recall", main, with_paper=True)
    found = [method_table.make(), *compared, cost_table.make(source.systems("table3"))]
    # What to beat stands below every other table of recall too.
    others = [s for s in main if s.kind == "scored" and findings.knows_scenario(s)]
    ablated = source.systems("table4")
    if any(system.entries for system in ablated if system.name != plan.METHOD):
        found += _by_days("table4", "Table 4: ablations", ablated, others)
    for name, (axis_label, title) in sweeps.SWEPT.items():
        swept = [
            dataclasses.replace(system, label=f"{axis_label} = {system.label}")
            for system in on_first_days(source, name)
        ]
        found += _compare(f"{name}_recall", title, swept, others)
    decided = on_first_days(source, plan.DECIDED)
    found += _compare(plan.DECIDED, "What the paper leaves open", decided, others)
    teachers = recall_table.make_teachers(decided)
    return [*found, teachers] if teachers else found


def on_first_days(source: Source, table: str) -> list[finished.System]:
    """The systems of a table on the first choice of test days that DSMOE was tested on."""
    systems = source.systems(table)
    first = min(finished.own(systems).days)
    return [system.on_days(first) for system in systems]


def _compare(
    name: str, title: str, systems: Sequence[finished.System], others: Sequence[finished.System]
) -> list[formats.Table]:
    """A table of recall of systems on the same test days, none where DSMOE stands alone.

    Below them are others that were tested on these days.
    """
    if sum(bool(system.entries) for system in systems) < 2:
        return []
    chosen = [*systems, *_tested(others, finished.own(systems).days)]
    return [recall_table.make(name, title, chosen, with_paper=False)]


def _by_days(
    name: str,
    title: str,
    systems: Sequence[finished.System],
    others: Sequence[finished.System] = (),
    *,
    with_paper: bool = False,
) -> list[formats.Table]:
    """A table for every choice of test days that others than DSMOE were tested on, and for all.

    The first one may have DSMOE alone, and the paper's rows. Below the systems are others that were
    tested on the same days.
    """
    first, *more = sorted(finished.own(systems).days)
    compared = {day for system in systems if system.name != plan.METHOD for day in system.days}
    later = [day for day in more if day in compared]
    choices: list[tuple[tuple[int, ...], str, str]] = [((first,), "", "")]
    choices += [((n,), f"_drop{n}", f", the last {n} days left out") for n in later]
    if later:
        choices.append(((first, *later), "_pooled", ", the queries of all test days pooled"))
    return [
        recall_table.make(
            name + suffix,
            title + words,
            [system.on_days(*days) for system in systems] + _tested(others, days),
            with_paper=with_paper and not suffix,
        )
        for days, suffix, words in choices
    ]


def _tested(systems: Sequence[finished.System], days: Iterable[int]) -> list[finished.System]:
    """Systems on some choices of test days, those that were tested on all of them."""
    chosen = [system.on_days(*days) for system in systems]
    return [system for system in chosen if system.entries]


def describe(source: Source) -> list[str]:
    """What was run, and on what."""
    own = finished.own(source.systems("table2"))
    jobs = records.load_all(source.records)
    done = [job for job in jobs if job["systems"]]
    first = own.entries[0].record
    dates = sorted({job["date"] for job in done})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    versions: dict[str, set[str]] = {}
    for job in done:
        for name, value in job["versions"].items():
            versions.setdefault(name, set()).add(value)
    used = ", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in versions.items())
    days = "; ".join(
        f"{part} {entry['days'][0]} to {entry['days'][-1]} ({entry['examples']:,} positives)"
        for part, entry in first["split"].items()
    )
    hours = sum(map(_seconds, jobs)) / 3600
    return [
        f"{len(done)} finished jobs of {source.config}, {hours:.1f} hours of runs on "
        f"{records.join(done, 'device')}, {when}.",
        f"Data: {first['dataset']}, data hash {first['data_hash'][:12]}; {days}; "
        f"{first['candidates']:,} candidates in every scenario.",
        f"Versions: {used}.",
        "All systems are evaluated by one protocol on the same queries; epochs and settings were "
        f"chosen on validation days, test days are only reported.{_chosen_on(done)}",
        *_cut_short(jobs),
    ]


def _chosen_on(jobs: Sequence[records.Record]) -> str:
    """A sentence on test days of some jobs that are validation days of others; empty without."""
    validation, test = (
        {day for job in jobs for day in job["split"][part]["days"]}
        for part in ("validation", "test")
    )
    both = ", ".join(sorted(validation & test))
    if not both:
        return ""
    return (
        f" Of the test days, {both} are validation days of other jobs: settings were chosen on "
        "them."
    )


def _cut_short(jobs: Sequence[records.Record]) -> list[str]:
    """Which runs the minutes of their budget ended; empty where none."""
    named = {records.job_name(job): job for job in jobs}
    seconds = {name: _training_s(job) for name, job in named.items()}
    # A teacher's own record has no times, its students' have.
    taught = [job for job in jobs if job["teacher_job"] and "time_s" in job]
    seconds |= {job["teacher_job"]: job["time_s"]["teacher"] for job in taught}
    limited = {name: job for name, job in named.items() if job.get("max_minutes")}
    ended: dict[str, list[int]] = {}
    for name, job in limited.items():
        if seconds[name] >= 60 * job["max_minutes"] and job["epochs"] < job["max_epochs"]:
            ended.setdefault(job["system"], []).append(job["epochs"])
    if not ended:
        return []
    known = sorted({job["max_minutes"] for job in limited.values()})
    minutes = " or ".join(f"{m:g}" for m in known)
    epochs = "; ".join(f"{row} {', '.join(map(str, n))}" for row, n in ended.items())
    return [
        f"{sum(map(len, ended.values()))} of {len(limited)} runs used up their {minutes} minutes "
        "of training before their epochs, so that these compare at equal time on cores of this "
        f"speed and load, not at convergence. Epochs they did: {epochs}."
    ]


def _training_s(job: records.Record) -> float:
    """Of a job's own stages."""
    times = job.get("time_s", {})
    return float(times.get("pretraining", 0.0) + times.get("student", 0.0))


def _seconds(job: records.Record) -> float:
    """What a job took; `wall_s` knows of the last sitting alone."""
    evaluate_s: float = job.get("time_s", {}).get("evaluate", 0.0)
    return max(float(job["wall_s"]), _training_s(job) + evaluate_s)


def find(source: Source) -> list[str]:
    """What the numbers say that a reader may miss."""
    shared = _on_shared_days(source, "table2")
    compared = recall_table.compare(shared)
    beside = findings.beside_own(compared)
    days = finished.own(shared).days
    if len(days) > 1:
        # Settings may have been chosen on the other days.
        last = recall_table.compare([system.on_days(min(days)) for system in shared])
        beside = findings.beside_own(last) + beside
    return [
        *beside,
        *findings.below_popularity(compared),
        *findings.prior_gain(compared),
        *findings.ablations(recall_table.compare(_on_shared_days(source, "table4"))),
    ]


def _on_shared_days(source: Source, table: str) -> list[finished.System]:
    """The systems of a table on the test days that all of them share; without, on DSMOE's first."""
    systems = source.systems(table)
    shared = frozenset.intersection(*(system.days for system in systems if system.entries))
    days = shared or [min(finished.own(systems).days)]
    return [system.on_days(*days) for system in systems]


def _failures(source: Source) -> list[str]:
    paths = sorted(source.failed.glob("*.json")) if source.failed else []
    return [f"Failed: {path.stem}: {json.loads(path.read_text())['error']}" for path in paths]


def _not_run(source: Source) -> list[str]:
    """Other libraries' baselines that neither finished nor failed, likely for want of them."""
    found = [
        system.label
        for system in source.systems("table2")
        if system.name in catalogue.EXTERNAL and not system.entries
        if source.failed is None or not list(source.failed.glob(f"{system.name}-seed*.json"))
    ]
    if not found:
        return []
    command = optional.install(catalogue.EXTRA)
    return [f"Not run: {'; '.join(found)}. Install the extra baselines: {command}."]


def _draw(source: Source, folder: pathlib.Path) -> list[page.Picture]:
    pictures = []
    for name, (_, title) in sweeps.SWEPT.items():
        if sweeps.draw_sweep(folder / name, name, on_first_days(source, name)):
            pictures.append(page.Picture(folder / name, f"{title}; all else is DSMOE's own row."))
    own = finished.own(source.systems("fig4"))
    captions = {
        "fig4a": "Fig. 4a: cosine between the scenarios' SAP coefficients b_s, DSMOE's first seed. "
        "The paper shows one matrix and does not say of which layer.",
        "fig4b": "Fig. 4b: gate weights of the experts by scenario, DSMOE's first seed.",
    }
    drawn = {path.stem for path in sweeps.draw_scenarios(folder, own)}
    pictures += [
        page.Picture(folder / name, text) for name, text in captions.items() if name in drawn
    ]
    return pictures
