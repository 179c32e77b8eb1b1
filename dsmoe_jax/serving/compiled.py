"""Towers that do not fold: StableHLO by `jax.export`, for any batch size, and how to call it.

Owns the flat form of a tower's inputs, in which a program can be called without the model's code.
JAX promises to read a program for six months after it was written; item vectors and everything else
in a bundle do not expire.

Letters: B rows, M interests, D a vector, F features, P ids in a padded bag, L history length.
"""

import datetime
import functools
from typing import Any

import jax
import jax.export
import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.training import train_state

# What `jax.export` promises, see its documentation on compatibility.
LIFETIME = datetime.timedelta(days=180)
_PLATFORMS = ("cpu", "cuda", "tpu")
# Rows of one call; batches are padded to a power of two up to it, each of which compiles once.
_MOST_ROWS = 512

Flat = dict[str, Any]


def flatten_users(users: batch_lib.Users, scenario_B: Any) -> Flat:
    """The user side as arrays by name."""
    flat = {
        "sparse": users.sparse_BF,
        "dense": users.dense_BF,
        "time": users.time_B,
        "scenario": scenario_B,
        **{f"bag/{name}": ids for name, ids in users.bags.items()},
    }
    for name, sequence in users.sequences.items():
        flat |= {f"ids/{name}": sequence.ids_BLF, f"times/{name}": sequence.time_BL}
    return flat


def unflatten_users(flat: Flat) -> tuple[batch_lib.Users, Any]:
    """The inverse of `flatten_users`."""
    names = [name[4:] for name in flat if name.startswith("ids/")]
    users = batch_lib.Users(
        sparse_BF=flat["sparse"],
        dense_BF=flat["dense"],
        bags={name[4:]: ids for name, ids in flat.items() if name.startswith("bag/")},
        sequences={n: batch_lib.Sequence(flat[f"ids/{n}"], flat[f"times/{n}"]) for n in names},
        time_B=flat["time"],
    )
    return users, flat["scenario"]


def flatten_items(items: batch_lib.Items, scenario_B: Any) -> Flat:
    """The item side as arrays by name."""
    bags = {f"bag/{name}": ids for name, ids in items.bags.items()}
    return {"sparse": items.sparse_VF, "dense": items.dense_VF, "scenario": scenario_B, **bags}


def unflatten_items(flat: Flat) -> tuple[batch_lib.Items, Any]:
    """The inverse of `flatten_items`."""
    bags = {name[4:]: ids for name, ids in flat.items() if name.startswith("bag/")}
    return batch_lib.Items(flat["sparse"], flat["dense"], bags), flat["scenario"]


def export_tower(
    matcher: two_tower.Matcher, frozen: train_state.Frozen, side: str, example: Flat
) -> bytes:
    """The program of the "user" or "item" tower: `(variables, flat) -> vectors`.

    Args:
      matcher: The model.
      frozen: Its parameters and statistics, whose leaves in their order are `variables`.
      side: The tower.
      example: A batch in flat form, of any size.
    """
    leaves, tree = jax.tree.flatten(frozen.variables)
    unflatten: Any = unflatten_users if side == "user" else unflatten_items
    method = "embed_user" if side == "user" else "embed_item"

    def run(variables: list[jax.Array], flat: Flat) -> jax.Array:
        vectors: jax.Array
        vectors, _ = matcher.apply(
            jax.tree.unflatten(tree, variables), *unflatten(flat), train=False, method=method
        )
        return vectors

    [size] = jax.export.symbolic_shape("b")
    shapes = {
        name: jax.ShapeDtypeStruct((size, *np.shape(leaf)[1:]), leaf.dtype)
        for name, leaf in example.items()
    }
    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(run), platforms=_PLATFORMS)(leaves, shapes)
    return bytes(exported.serialize())


def expiry(today: datetime.date) -> str:
    """Until when JAX promises to read a program written today, as an ISO date."""
    return (today + LIFETIME).isoformat()


class _Program:
    """A tower's program with its variables on the device."""

    def __init__(self, bundle: bundle_lib.Bundle, side: str):
        path = bundle.root / f"{side}_tower.stablehlo"
        try:
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
        except (ValueError, RuntimeError):
            raise ValueError(
                f"{path}: expected a program that jax {jax.__version__} reads, got one of jax "
                f"{bundle.manifest['versions']['jax']}, promised until "
                f"{bundle.manifest['towers']['expires']}; export it again"
            ) from None
        count = bundle.manifest["towers"]["num_variables"]
        self._variables = [jax.device_put(bundle.load(f"variables_{n}")) for n in range(count)]
        self._run = jax.jit(exported.call)

    def __call__(self, flat: Flat) -> np.ndarray:
        rows = len(flat["scenario"])
        found = []
        for start in range(0, rows, _MOST_ROWS):
            part = {
                name: np.asarray(leaf[start : start + _MOST_ROWS]) for name, leaf in flat.items()
            }
            size = len(part["scenario"])
            padded = 1 << (size - 1).bit_length()
            part = {
                name: np.concatenate([leaf, np.repeat(leaf[:1], padded - size, axis=0)])
                for name, leaf in part.items()
            }
            found.append(np.asarray(self._run(self._variables, part))[:size])
        return np.concatenate(found)


class CompiledUserTower:
    """A user tower as a program; implements `towers.UserTower`."""

    def __init__(self, bundle: bundle_lib.Bundle):
        """Reads the program.

        Raises:
          ValueError: When this JAX cannot read it any more.
        """
        self._program = _Program(bundle, "user")

    def __call__(
        self, users: batch_lib.Users, scenario_B: Int[np.ndarray, "B"]
    ) -> Float[np.ndarray, "B M D"]:
        """See `towers.UserTower`."""
        return self._program(flatten_users(users, scenario_B))


class CompiledItemTower:
    """An item tower as a program, read when it is first asked; implements `towers.ItemTower`."""

    def __init__(self, bundle: bundle_lib.Bundle):
        self._bundle = bundle

    @functools.cached_property
    def _program(self) -> _Program:
        return _Program(self._bundle, "item")

    def __call__(self, items: batch_lib.Items, scenario: int) -> Float[np.ndarray, "N D"]:
        """See `towers.ItemTower`."""
        scenario_N = np.full(len(items.sparse_VF), scenario, np.int32)
        return self._program(flatten_items(items, scenario_N))
