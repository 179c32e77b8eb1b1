"""Numbers of every component that decides published ones, from fixed seeds on small inputs.

`python -m tests.golden.golden [COMPONENT ...]` writes `COMPONENT.json` anew, of all components by
default. It refuses where numbers and the component's version in `compare/numerics.py` do not
change together: a step that is merely faster leaves both alone, another objective or initialisation
changes both. A file keeps a digest of the numbers of every version there was.

Baselines of other libraries have no numbers here.
"""

import hashlib
import itertools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from dsmoe_jax.baselines import catalogue
from dsmoe_jax.compare import numerics
from dsmoe_jax.models import registry
from tests.golden import protocol, trained, training

FOLDER = pathlib.Path(__file__).parent
# Of a number, and of the largest number of its name.
TOLERANCE = 5e-5

Numbers = dict[str, list[float] | list[int]]
Record = dict[str, Any]

COMPUTE: dict[str, Callable[[], dict[str, Any]]] = {
    "data": protocol.data,
    "training": training.training,
    "evaluation": protocol.evaluation,
    "baselines": protocol.baselines,
    **{name: trained.of_matcher(name) for name in registry.MATCHERS},
    **{name: trained.of_ranker(name) for name in registry.RANKERS},
}
EXTERNAL = tuple(catalogue.EXTERNAL)


class RefusedError(ValueError):
    """Numbers and version of a component that do not change together."""


def compute(component: str) -> Numbers:
    """The numbers of a component, as they would be written."""
    return {name: to_list(value) for name, value in sorted(COMPUTE[component]().items())}


def to_list(value: Any) -> list[float] | list[int]:
    """All numbers of an array in their order; of floats the digits that float32 can tell apart."""
    flat = np.asarray(value).reshape(-1)
    if flat.dtype.kind in "iub":
        return [int(number) for number in flat]
    return [float(f"{number:.9g}") for number in flat.astype(np.float64)]


def digest(numbers: Numbers) -> str:
    """Twelve hexadecimal digits."""
    canonical = json.dumps(numbers, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def differences(fresh: Numbers, expected: Numbers) -> list[str]:
    """What differs by more than float error, in words; integers must be equal."""
    found = []
    for name in sorted(fresh.keys() | expected.keys()):
        if name not in fresh or name not in expected:
            found.append(f"{name}: only among the {'fresh' if name in fresh else 'expected'}")
            continue
        got, want = (np.asarray(numbers[name]) for numbers in (fresh, expected))
        if got.shape != want.shape:
            found.append(f"{name}: {len(got)} numbers, expected {len(want)}")
            continue
        exact = "f" not in (got.dtype.kind, want.dtype.kind)
        relative = 0.0 if exact else TOLERANCE
        wrong = ~np.isclose(got, want, rtol=relative, atol=relative * np.abs(want).max(initial=0))
        if wrong.any():
            first = int(wrong.argmax())
            found.append(
                f"{name}: {int(wrong.sum())} of {len(got)}, first [{first}]: {got[first]}, "
                f"expected {want[first]}"
            )
    return found


def check_numbers(component: str, fresh: Numbers, record: Record) -> None:
    """Refuses numbers that are not those of the file.

    Raises:
      RefusedError: With what to do if that is meant.
    """
    found = differences(fresh, record["numbers"])
    if found:
        raise RefusedError(
            f"numbers of {component} moved: if that is meant, bump VERSIONS[{component!r}] in "
            f"compare/numerics.py and run python -m tests.golden.golden {component}; records of "
            "the comparison made with the old version are then run anew\n" + "\n".join(found)
        )


def check_record(component: str, record: Record, version: int) -> None:
    """Refuses a file that contradicts itself or the version.

    Raises:
      RefusedError: With what is wrong.
    """
    if record["component"] != component:
        raise RefusedError(f"{component}: the file is of {record['component']!r}")
    if record["version"] != version:
        raise RefusedError(
            f"{component}: the file is of version {record['version']}, compare/numerics.py says "
            f"{version}; run python -m tests.golden.golden {component}"
        )
    history = record["history"]
    if list(history) != [str(number) for number in range(1, version + 1)]:
        raise RefusedError(f"{component}: history of versions {list(history)}, not 1 to {version}")
    digests = list(history.values())
    if digests[-1] != digest(record["numbers"]):
        raise RefusedError(
            f"{component}: the last digest is {digests[-1]}, that of the numbers is "
            f"{digest(record['numbers'])}; the file was edited by hand"
        )
    for number, (old, new) in enumerate(itertools.pairwise(digests), start=1):
        if old == new:
            raise RefusedError(
                f"{component}: versions {number} and {number + 1} have the same numbers; take the "
                "bump back"
            )


def check_files(folder: pathlib.Path, versions: dict[str, int], external: tuple[str, ...]) -> None:
    """Refuses a component without a file, other libraries apart, and a file without a component.

    Raises:
      RefusedError: With their names.
    """
    files = {path.stem for path in folder.glob("*.json")}
    wanted = set(versions) - set(external)
    if files != wanted:
        raise RefusedError(
            f"components without a file: {sorted(wanted - files)}; files without a component that "
            f"has numbers: {sorted(files - wanted)}"
        )


def read(folder: pathlib.Path, component: str) -> Record:
    """The file of a component."""
    record: Record = json.loads((folder / f"{component}.json").read_text())
    return record


def update(folder: pathlib.Path, component: str, version: int, fresh: Numbers) -> bool:
    """Writes a component's numbers where they and the version changed; whether it did.

    Raises:
      RefusedError: Where one changed without the other.
    """
    history: dict[str, str] = {}
    if (folder / f"{component}.json").exists():
        record = read(folder, component)
        moved, history = differences(fresh, record["numbers"]), record["history"]
        if version == record["version"]:
            if not moved:
                return False
            raise RefusedError(
                f"numbers of {component} moved: bump VERSIONS[{component!r}] in "
                "compare/numerics.py, then run this again\n" + "\n".join(moved)
            )
        if not moved:
            raise RefusedError(f"numbers of {component} are unchanged: take the bump back")
    if version != len(history) + 1:
        raise RefusedError(
            f"VERSIONS[{component!r}]: expected {len(history) + 1}, the next one, got {version}"
        )
    write(folder, component, version, {**history, str(version): digest(fresh)}, fresh)
    return True


def write(
    folder: pathlib.Path, component: str, version: int, history: dict[str, str], numbers: Numbers
) -> None:
    """Writes a file, one line for each name of numbers."""
    head = {"component": component, "version": version, "history": history}
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in numbers.items()]
    text = json.dumps(head, indent=1)[:-2] + ',\n "numbers": {\n' + ",\n".join(lines) + "\n }\n}\n"
    (folder / f"{component}.json").write_text(text)


def main(components: list[str]) -> int:
    """Writes what changed, tells of each component and returns the number of refusals."""
    jax.config.update("jax_platforms", "cpu")
    # As tests do: most of the time is compilation, and its costly passes change no result.
    jax.config.update("jax_disable_most_optimizations", True)
    # Grain reads absl flags, which nobody parses here.
    flags.FLAGS.mark_as_parsed()
    unknown = sorted(set(components) - set(COMPUTE))
    if unknown:
        print(f"components with numbers: expected some of {sorted(COMPUTE)}, got {unknown}")
        return len(unknown)
    refused = 0
    for component in components or COMPUTE:
        try:
            written = update(FOLDER, component, numerics.VERSIONS[component], compute(component))
            print(f"{component}: {'written' if written else 'unchanged'}")
        except RefusedError as error:
            refused += 1
            print(error)
    return refused


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
