"""Documentation made from the published records, from the registry and from the commands' help.

Owns which blocks there are; pages say by markers where they stand (`generated.py`).
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

from dsmoe_jax.compare import estimates, plan
from dsmoe_jax.compare.report import (
    build,
    dots,
    findings,
    formats,
    generated,
    method_table,
    plus,
    recall_table,
    sweeps,
)
from dsmoe_jax.compare.simulation import designs, page_section

MAKER = "compare"
PUBLISHED = pathlib.Path("docs/results/records")
TABLES = (
    *("table2", "table2_drop2", "table2_pooled", "table3", "table4", "table4_drop2"),
    *("table4_pooled", "fig2_recall", "fig3_recall", plan.DECIDED, "teachers"),
)
EXAMPLES = ("quickstart", "own_data", "own_method")
POPULARITY, UNTAUGHT = "popularity in scenario", "undistilled"


# Commands that use what a run left.
SERVING_COMMANDS = ("demo", "export", "index", "recommend", "serve", "bundle")


class Documents:
    """The blocks that the records of a comparison and of the simulation give.

    Attributes:
      blocks: A function for each, which makes it when it is asked for.
    """

    def __init__(self, source: build.Source, simulation: pathlib.Path, plus_inputs: build.Source):
        self._source, self._simulation = source, simulation
        texts = {
            "summary": lambda: formats.to_markdown(self.summarise()),
            "limits": lambda: formats.bullets(self.list_limits()),
            "run": lambda: formats.bullets(build.describe(source)),
            "findings": lambda: formats.bullets(build.find(source)),
            "plus_run": lambda: formats.bullets(build.describe(plus_inputs)),
            "plus_short": lambda: plus.say(plus.load(plus_inputs)),
            "plus_findings": lambda: formats.bullets(plus.find(plus.load(plus_inputs))),
            "methods": lambda: formats.to_markdown(method_table.make()),
            "main_help": lambda: formats.code(_print("dsmoe_jax", "--help")),
            "plan_help": lambda: formats.code(_print("dsmoe_jax", "plan", "--help")),
            "serving_help": _show_serving_help,
            # The page has a title of its own.
            "config": lambda: _print("dsmoe_jax.config.reference").partition("\n")[2].strip(),
        }
        texts |= {name: functools.partial(_show_code, name) for name in EXAMPLES}
        self.blocks: dict[str, Callable[[], generated.Block]] = {
            **{name: functools.partial(_as_block, make) for name, make in texts.items()},
            **{name: functools.partial(self.show_table, name) for name in TABLES},
            "plus": lambda: _show_table(plus.make_recall(plus.load(plus_inputs))),
            "plus_leads": lambda: _show_table(plus.make_leads(plus.load(plus_inputs))),
            "plus_users": lambda: _show_table(plus.show_users(plus_inputs)),
            "plus_earlier": lambda: _show_tables(plus.show_earlier(plus_inputs)),
            "plus_parts": lambda: _show_table(plus.show_parts(plus_inputs)),
            "plus_shown": lambda: _show_tables(plus.show_shown(plus_inputs)),
            "recall": self.draw_recall,
            "changes": functools.partial(self.draw_changes, "changes", "table4", plan.DECIDED),
            **{name: functools.partial(self.draw_changes, name, name) for name in sweeps.SWEPT},
            "taught": self.draw_teachers,
            "products": self.draw_products,
            **{w.name: functools.partial(self.show_world, w) for w in designs.WORLDS},
        }

    @functools.cached_property
    def tables(self) -> dict[str, formats.Table]:
        """Every table of the comparison by its name."""
        return {table.name: table for table in build.make_tables(self._source)}

    @functools.cached_property
    def compared(self) -> dict[str, list[recall_table.Compared]]:
        """The systems of tables on the last test days, on which nothing was chosen."""
        tables = ("table2", "table4", plan.DECIDED, *sweeps.SWEPT)
        return {t: recall_table.compare(build.on_first_days(self._source, t)) for t in tables}

    def show_table(self, name: str) -> generated.Block:
        """A table under its title, with its numbers in a file."""
        return _show_table(self.tables[name])

    def summarise(self) -> formats.Table:
        """DSMOE, the best baselines and method beside it, itself untaught, and popularity."""
        rows = self._ranked()
        [own], [untaught], [popular] = (
            [entry for entry in rows if entry.system.name == name]
            for name in (plan.METHOD, UNTAUGHT, POPULARITY)
        )
        baselines = [e for e in rows if e.system.kind != "run"]
        methods = [e for e in rows if e.system.kind == "run" and e not in (own, untaught)]
        shares = {n: row["share"] for n, row in own.system.entries[0].summary["scenarios"].items()}
        ends = max(shares, key=lambda name: shares[name]), min(shares, key=lambda n: shares[n])
        k = min(own.estimates)
        heads = ["", f"recall@{k} in %, mean of scenarios", "minus DSMOE, in points"]
        heads += (f"in {name}, {100 * shares[name]:.0f} % of clicks" for name in ends)
        made = []
        for entry in (own, *baselines[:2], untaught, *methods[:1], popular):
            means = [entry.estimates[k][name].mean for name in (estimates.MACRO, *ends)]
            whole, *parts = map(recall_table.percent, means)
            made.append((_label(entry), whole, _difference(entry), *parts))
        return formats.Table("summary", "", tuple(heads), formats.cells(made))

    def list_limits(self) -> list[str]:
        """What speaks against the method, in three sentences that the numbers make."""
        rows = self._ranked()
        [untaught] = [entry for entry in rows if entry.system.name == UNTAUGHT]
        above = [e.system.label for e in rows[: rows.index(untaught)] if e.system.kind != "run"]
        layers = [
            f"{entry.system.label} {_difference(entry)}"
            for entry in self.compared["table4"]
            if entry.system.name in ("no_sap", "no_dsbn")
        ]
        return [
            " ".join(findings.beside_own(self.compared["table2"])),
            "The teacher makes the difference. DSMOE without one, with hyper-parameters searched "
            f"for that case, minus DSMOE: {_difference(untaught)} points; baselines above it: "
            f"{', '.join(above) or 'none'}.",
            f"Its own layers, minus DSMOE, in points: {'; '.join(layers)}.",
        ]

    def _ranked(self) -> list[recall_table.Compared]:
        """Table 2 and DSMOE without its teacher, the best first."""
        untaught = [e for e in self.compared[plan.DECIDED] if e.system.name == UNTAUGHT]
        return sorted([*self.compared["table2"], *untaught], key=lambda e: -_macro(e).mean)

    def draw_recall(self) -> generated.Block:
        """Macro recall of DSMOE and of what stands beside it."""
        rows = [entry for entry in self._ranked() if entry.system.name != "random"]
        found = []
        for entry in rows:
            mean, reach = 100 * _macro(entry).mean, 196 * _macro(entry).error
            kind = "baselines" if entry.system.kind != "run" else "other methods"
            kind = "DSMOE" if entry.system.name in (plan.METHOD, UNTAUGHT) else kind
            found.append(dots.Dot(_label(entry), mean, mean - reach, mean + reach, kind))
        candidates = rows[0].system.entries[0].record["candidates"]
        k = min(rows[0].estimates)
        label = (
            f"clicked videos that are among the {k} retrieved of {candidates:,}, in %\n"
            f"(macro recall@{k}; line: 95 % over queries)"
        )
        return dots.block("recall", "DSMOE beside other methods and baselines", label, found)

    def draw_changes(self, name: str, *tables: str) -> generated.Block:
        """What changes of DSMOE do, on the same queries."""
        axis_label, title = sweeps.SWEPT.get(name, ("", "What a change of DSMOE does"))
        prefix = f"{axis_label} = " if axis_label else ""
        found = []
        for entry in itertools.chain(*(self.compared[table] for table in tables)):
            if entry.intervals and entry.system.kind == "run":
                interval = entry.intervals[min(entry.intervals)][estimates.MACRO]
                value, low, high = (100 * end for end in interval)
                found.append(dots.Dot(prefix + entry.system.label, value, low, high))
        label = "macro recall minus DSMOE's, in points; line: 95 %, paired"
        return dots.block(name, title, label, found)

    def draw_teachers(self) -> generated.Block:
        """Macro recall of teachers and of their students."""
        found = []
        for system in build.on_first_days(self._source, plan.DECIDED):
            taught = [entry for entry in system.entries if entry.record.get("teacher")]
            metric = f"recall@{system.entries[0].record['k'][0]}" if taught else ""
            for kind, label, summaries in (
                ("teachers", f"teacher of: {system.label}", [e.record["teacher"] for e in taught]),
                ("students", system.label, [entry.summary for entry in taught]),
            ):
                values = [100 * summary["macro"][metric] for summary in summaries]
                found += [dots.over_seeds(label, values, kind)] if values else []
        label = "macro recall (%); line: ± one standard deviation over seeds"
        return dots.block("taught", "Teachers and their students", label, found)

    def draw_products(self) -> generated.Block:
        """Multiplications of a forward pass."""
        table = self.tables["table3"]
        column = table.heads.index("GMACs of a forward pass")
        found = [
            dots.Dot(label, float(text), kind="DSMOE" if label == "DSMOE" else "other methods")
            for label, text in ((row[0].text, row[column].text) for row in table.rows)
            if text not in ("", "not run") and not label.startswith("paper")
        ]
        label = "10⁹ multiplications of a forward pass of 4,096 pairs"
        found.sort(key=lambda dot: dot.value)
        return dots.block("products", "What a method computes", label, found, scale="log")

    def show_world(self, world: designs.World) -> generated.Block:
        """A world whose true scores are known: a figure, then its table and answers."""
        records = page_section.load(self._simulation, (world,))
        found = [
            dots.over_seeds(
                arm.label.strip("_").replace("**", ""),
                [100 * page_section.macro(record) for record in records[world.name][arm.name]],
                "bounds and teacher" if arm.kind in ("truth", "truncated", "teacher") else "DSMOE",
            )
            for arm in world.arms
        ]
        label = "macro recall (%); line: ± one standard deviation over worlds"
        block = dots.block(world.name, world.title, label, found)
        text = f"{block.text}\n\n{page_section.section(records, (world,))}"
        return dataclasses.replace(block, text=text)


def _show_tables(tables: list[formats.Table]) -> generated.Block:
    shown = [_show_table(table) for table in tables]
    files = {name: text for block in shown for name, text in block.files.items()}
    return generated.Block("\n\n".join(block.text for block in shown), files)


def _show_table(table: formats.Table) -> generated.Block:
    # Other versions of NumPy sum in another order.
    rounded = tuple(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()}
        for record in table.records
    )
    name = f"{table.name}.csv"
    text = f"## {table.title}\n\n{formats.to_markdown(table)}\n\n[As CSV]({name})"
    return generated.Block(
        text, {name: formats.to_csv(dataclasses.replace(table, records=rounded))}
    )


def _show_code(example: str) -> str:
    path = pathlib.Path("examples") / f"{example}.py"
    return f"`{path}`:\n\n```python\n{path.read_text().strip()}\n```"


def _as_block(make: Callable[[], str]) -> generated.Block:
    return generated.Block(make())


def _label(entry: recall_table.Compared) -> str:
    return "DSMOE without a teacher" if entry.system.name == UNTAUGHT else entry.system.label


def _macro(entry: recall_table.Compared) -> estimates.Estimate:
    return entry.estimates[min(entry.estimates)][estimates.MACRO]


def _difference(entry: recall_table.Compared) -> str:
    """Macro recall minus DSMOE's; empty for DSMOE."""
    if not entry.intervals:
        return ""
    return entry.intervals[min(entry.intervals)][estimates.MACRO].points


def _show_serving_help() -> str:
    """What the commands after training answer to `--help`."""
    texts = [_print("dsmoe_jax", name, "--help") for name in SERVING_COMMANDS]
    return "\n\n".join(formats.code(text) for text in texts)


def _print(module: str, *arguments: str) -> str:
    """What a module prints when it is run, in lines of a fixed width."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "COLUMNS": "100", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ValueError(f"{module}: expected exit status 0, got {done.returncode}: {done.stderr}")
    return done.stdout.strip()
