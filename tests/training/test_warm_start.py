"""A state in the rows of other vocabularies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import features
from dsmoe_jax.models import registry
from dsmoe_jax.nn import tables
from dsmoe_jax.training import (
    large_tables,
    optimizer,
    row_sparse,
    sharding,
    train_state,
    warm_start,
)
from tests import tiny, tiny_features
from tests.models import small

MESH = sharding.make_mesh(tiny.one_device())
ADAM = optimizer.Dense(optimizer.make_optimizer(1e-3, 0.0))
B, G = 6, 3


def make_spec(**num_ids):
    """Item ids, an author and tags, of the given numbers of ids."""
    sizes = {"user_id": 4, "item_id": 5, "author": 3, "tag": 4} | num_ids
    return features.FeatureSpec(
        scenarios=("A", "B"),
        user_sparse=(features.SparseFeature("user_id", sizes["user_id"]),),
        user_dense=(),
        user_bags=(),
        item_sparse=(
            features.SparseFeature("item_id", sizes["item_id"]),
            features.SparseFeature("author", sizes["author"]),
        ),
        item_dense=(),
        item_bags=(features.BagFeature("tag", sizes["tag"], 2),),
        sequences=(features.SequenceFeature("history", ("item_id",), 3),),
        embedding_dim=2,
    )


def make_state(model, updater=ADAM, averaged=False, seed=0):
    """A state whose every number is another."""
    constants = {name: np.zeros(shape) for name, shape in model.constant_shapes.items()}
    key = jax.random.key(seed)
    state = train_state.init_state(
        model, updater, key=key, mesh=MESH, constants=constants, averaged=averaged
    )
    leaves, structure = jax.tree.flatten(state)
    first, filled = 1, []
    for leaf in leaves:
        values = np.arange(first, first + leaf.size).reshape(leaf.shape) % 9973
        filled.append(jnp.asarray(values, leaf.dtype))
        first += leaf.size
    return jax.tree.unflatten(structure, filled)


def carry(
    old_model, new_model, ids, *, updater=ADAM, old_updater=None, averaged=False, pad=None, **how
):
    """An old state carried over into a new one; both, and the initial one.

    `pad` adds rows to leaves of the initial one by their path.
    """
    old = make_state(old_model, old_updater or updater, averaged)
    fresh = jax.tree.map(lambda leaf: -leaf, make_state(new_model, updater, averaged, seed=1))
    sources = warm_start.find_sources(
        warm_start.find_blocks(old_model),
        warm_start.find_blocks(new_model),
        ids,
        warm_start.count_rows(new_model, updater),
    )
    fresh = jax.tree_util.tree_map_with_path(pad, fresh) if pad else fresh
    fresh = jax.device_put(fresh, sharding.replicated(MESH))
    return old, fresh, warm_start.carry_over(old, fresh, sources, **how)


def make_dssm(**num_ids):
    return small.SMALL_MATCHERS["dssm"].make(make_spec(**num_ids))


def same(**sizes):
    """Ids that stay as they are."""
    return {name: np.arange(n, dtype=np.int32) for name, n in sizes.items()}


# Items 1..4 become 3, 1, unknown, 4; a fifth is new. Author 2 stays and author 1 goes; 1 and 3 are
# new. Of the tags 1..3 the third comes first.
IDS = {
    "user_id": np.array([0, 0, 1, 3], np.int32),
    "item_id": np.array([0, 2, 0, 1, 4, 0], np.int32),
    "author": np.array([0, 0, 2, 0], np.int32),
    "tag": np.array([0, 3, 1, 2, 0], np.int32),
}
SIZES = {"item_id": 6, "author": 4, "tag": 5}


def test_rows_follow_their_ids_and_new_ones_keep_the_initial_values():
    old, fresh, got = carry(make_dssm(), make_dssm(**SIZES), IDS)

    def of(state, side, name):
        return np.asarray(state.params["embedder"][f"{side}_tables"][name])

    before, initial, after = (of(s, "item", "item_id") for s in (old, fresh, got))
    expected = [before[0], before[2], initial[2], before[1], before[4], initial[5]]
    np.testing.assert_array_equal(after, expected)
    before, initial, after = (of(s, "user", "user_id") for s in (old, fresh, got))
    np.testing.assert_array_equal(after, [before[0], initial[1], before[1], before[3]])
    # Author and tag share a table: ids 0..2 and 0..3 before, 0..3 and 0..4 now.
    before, initial, after = (of(s, "item", tables.SMALL_FIELDS) for s in (old, fresh, got))
    expected = [before[0], initial[1], before[2], initial[3]]
    expected += [before[3], before[6], before[4], before[5], initial[8]]
    np.testing.assert_array_equal(after, expected)


def test_moments_and_averages_follow_and_counts_and_statistics_are_taken_over():
    old, fresh, got = carry(make_dssm(), make_dssm(**SIZES), IDS, averaged=True)
    for read in (
        lambda s: s.opt_state[1][0].mu,
        lambda s: s.opt_state[1][0].nu,
        lambda s: s.average.params,
    ):
        before, initial, after = (
            np.asarray(read(s)["embedder"]["item_tables"]["item_id"]) for s in (old, fresh, got)
        )
        assert not np.array_equal(
            before, np.asarray(old.params["embedder"]["item_tables"]["item_id"])
        )
        expected = [before[0], before[2], initial[2], before[1], before[4], initial[5]]
        np.testing.assert_array_equal(after, expected)
        tower = read(got)["user_tower"]
        jax.tree.map(np.testing.assert_array_equal, tower, read(old)["user_tower"])
    assert got.opt_state[1][0].count == old.opt_state[1][0].count and got.step == old.step
    jax.tree.map(np.testing.assert_array_equal, got.model_state, old.model_state)
    jax.tree.map(np.testing.assert_array_equal, got.average.model_state, old.average.model_state)


def test_rows_that_pad_a_table_to_the_devices_come_from_none():
    _, _, got = carry(make_dssm(), make_dssm(**SIZES), IDS)

    def pad(path, leaf):
        is_table = jax.tree_util.keystr(path).endswith("['item_tables']['item_id']")
        return jnp.pad(leaf, ((0, 2), (0, 0))) if is_table else leaf

    _, _, padded = carry(make_dssm(), make_dssm(**SIZES), IDS, pad=pad)
    for whole, part in zip(jax.tree.leaves(padded), jax.tree.leaves(got), strict=True):
        if part.ndim:
            assert not np.asarray(whole)[part.shape[0] :].any()
            whole = whole[: part.shape[0]]
        np.testing.assert_array_equal(np.asarray(whole), np.asarray(part))


def test_a_learning_rate_schedule_starts_anew():
    falling = optimizer.Dense(optimizer.make_optimizer(optimizer.make_schedule(1e-3, 5), 0.0))
    old, fresh, got = carry(make_dssm(), make_dssm(**SIZES), IDS, updater=falling)
    counts = [s.opt_state[1][1].count for s in (old, fresh, got)]
    assert counts[2] == counts[1] != counts[0]
    assert got.opt_state[1][0].count == old.opt_state[1][0].count
    # An optimiser without a schedule is carried over into one that has it.
    _, fresh, got = carry(make_dssm(), make_dssm(**SIZES), IDS, updater=falling, old_updater=ADAM)
    assert got.opt_state[1][1].count == fresh.opt_state[1][1].count


def test_what_an_earlier_model_does_not_know_can_be_zero():
    old, _, got = carry(make_dssm(), make_dssm(**SIZES), IDS, keeps_fresh=False)
    before, after = (np.asarray(s.params["embedder"]["item_tables"]["item_id"]) for s in (old, got))
    zero = np.zeros(2)
    np.testing.assert_array_equal(after, [before[0], before[2], zero, before[1], before[4], zero])


def test_a_large_table_updated_by_rows_takes_its_rows_state_along():
    sizes = {"user_id": 5000}
    old_model, new_model = make_dssm(**sizes), make_dssm(**(sizes | {"user_id": 5200}))
    ids = same(item_id=5, author=3, tag=4)
    ids["user_id"] = np.arange(5200, dtype=np.int32)[::-1] % 5000
    ids["user_id"][0] = 0

    def updater(model, schedule=1e-3):
        return row_sparse.RowSparse(model.spec, schedule, 0.0, min_rows=4096)

    old, fresh, got = carry(
        old_model, new_model, ids, updater=updater(new_model), old_updater=updater(old_model)
    )
    [name] = large_tables.names(new_model.spec, 4096)
    for part in ("mean_VE", "square_VE"):
        before, initial, after = (
            np.asarray(getattr(s.opt_state.rows[name], part)) for s in (old, fresh, got)
        )
        known = ids["user_id"] > 0
        np.testing.assert_array_equal(
            after[1:5200][known[1:]], before[ids["user_id"]][1:][known[1:]]
        )
        np.testing.assert_array_equal(after[1:5200][~known[1:]], initial[1:5200][~known[1:]])
    slots = [np.asarray(s.opt_state.rows[name].slot_V) for s in (fresh, got)]
    np.testing.assert_array_equal(*slots)


def test_a_table_that_becomes_large_is_updated_by_rows_with_the_moments_it_had():
    old_model, new_model = make_dssm(tag=4000), make_dssm(tag=4200)
    ids = same(user_id=4, item_id=5, author=3)
    ids["tag"] = np.where(np.arange(4200) < 4000, np.arange(4200), 0).astype(np.int32)
    old, _, got = carry(
        old_model,
        new_model,
        ids,
        updater=row_sparse.RowSparse(new_model.spec, 1e-3, 0.0, min_rows=4096),
        old_updater=row_sparse.RowSparse(old_model.spec, 1e-3, 0.0, min_rows=4096),
    )
    before = old.opt_state.dense[1][0].mu["embedder"]["item_tables"][tables.SMALL_FIELDS]
    after = got.opt_state.rows["item_tables/tag"].mean_VE
    # The author's three ids open the shared table.
    np.testing.assert_array_equal(after[:4000], before[3:])
    old_tables, new_tables = (s.params["embedder"]["item_tables"] for s in (old, got))
    np.testing.assert_array_equal(new_tables["tag"][:4000], old_tables[tables.SMALL_FIELDS][3:])
    np.testing.assert_array_equal(
        new_tables[tables.SMALL_FIELDS], old_tables[tables.SMALL_FIELDS][:3]
    )


def test_a_feature_that_changes_its_place_in_the_input_is_refused():
    ids = same(user_id=4, item_id=5, tag=4)
    ids["author"] = np.where(np.arange(4200) < 4000, np.arange(4200), 0).astype(np.int32)
    with pytest.raises(ValueError, match=r"got 'author' in another place.* from 4,096 ids on"):
        carry(make_dssm(author=4000), make_dssm(author=4200), ids)


def test_another_architecture_is_refused_by_its_first_parameter():
    wider = dataclasses.replace(small.SMALL_MATCHERS["dssm"], hidden_dims=(9,)).make(make_spec())
    ids = same(user_id=4, item_id=5, author=3, tag=4)
    with pytest.raises(
        ValueError, match=r"expected params/item_tower.* of shape \[.*9\] as before"
    ):
        carry(make_dssm(), wider, ids)


def test_row_sparse_rates_count_the_steps_of_their_schedule():
    model = make_dssm(user_id=5000)
    schedule = optimizer.make_schedule(1e-3, 5)
    state = make_state(model, row_sparse.RowSparse(model.spec, schedule, 0.0, min_rows=4096))
    dense = state.opt_state.dense
    assert row_sparse._count_taken(dense, jnp.int32(7)) == dense[1][1].count != 7
    assert row_sparse._count_taken(ADAM.init({"x": jnp.zeros(2)}), jnp.int32(7)) == 7


class Renumbering:
    """Old ids by new ones for every feature of a spec; some new ids were not there before."""

    def __init__(self, spec, grown, seed=0):
        rng = np.random.default_rng(seed)
        self.num_ids = {}
        self.old_of_new, self.new_of_old = {}, {}
        for group in ("user_sparse", "user_bags", "item_sparse", "item_bags"):
            for feature in getattr(spec, group):
                old, new = feature.num_ids, feature.num_ids + grown.get(feature.name, 0)
                place = np.concatenate([[0], 1 + rng.permutation(new - 1)[: old - 1]])
                back = np.zeros(new, np.int32)
                back[place] = np.arange(old)
                self.new_of_old[feature.name], self.old_of_new[feature.name] = place, back
                self.num_ids[feature.name] = new

    def spec(self, spec):
        groups = {
            group: tuple(
                dataclasses.replace(f, num_ids=self.num_ids[f.name]) for f in getattr(spec, group)
            )
            for group in ("user_sparse", "user_bags", "item_sparse", "item_bags")
        }
        return dataclasses.replace(spec, **groups)

    def columns(self, names, ids):
        parts = [self.new_of_old[n][np.asarray(ids[..., i])] for i, n in enumerate(names)]
        return jnp.asarray(np.stack(parts, axis=-1), jnp.int32) if parts else ids

    def users(self, spec, users):
        sequences = {
            s.name: users.sequences[s.name]._replace(
                ids_BLF=self.columns(s.fields, users.sequences[s.name].ids_BLF)
            )
            for s in spec.sequences
        }
        return users._replace(
            sparse_BF=self.columns([f.name for f in spec.user_sparse], users.sparse_BF),
            bags={n: jnp.asarray(self.new_of_old[n])[ids] for n, ids in users.bags.items()},
            sequences=sequences,
        )

    def items(self, spec, items):
        return items._replace(
            sparse_VF=self.columns([f.name for f in spec.item_sparse], items.sparse_VF),
            bags={n: jnp.asarray(self.new_of_old[n])[ids] for n, ids in items.bags.items()},
        )

    def constant(self, name, value):
        """A constant of the old items, for the new ones; one of ids holds new ids."""
        axis = name.rpartition("_")[2].index("V")
        value = np.take(np.asarray(value), self.old_of_new["item_id"], axis=axis)
        kind, _, rest = name.partition("_")
        if kind in ("sparse", "bag"):
            return jnp.asarray(self.new_of_old[rest.rpartition("_")[0]])[value].astype(jnp.int32)
        return jnp.asarray(value)


# One of each kind of tables: of fields, of items alone, of bags and towers, of histories, of one
# table for all scenarios, and a teacher that attends. The others are for -m slow.
KINDS = ("dsmoe", "dsmoe_plus", "dssm_per_scenario", "fism", "hstu", "m5", "mmoe_din", "sass")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
        for name in (*sorted(registry.MATCHERS), *sorted(registry.RANKERS))
    ],
)
def test_every_method_scores_renumbered_ids_as_before(name):
    is_matcher = name in registry.MATCHERS
    config = (small.SMALL_MATCHERS if is_matcher else small.SMALL_RANKERS)[name]
    # The number of items stays, since FISM divides by a deviation over all of them.
    spec = tiny_features.make_spec()
    if is_matcher and config.scenario_histories:
        joined = features.SequenceFeature(
            features.SCENARIO_HISTORIES, ("item_id",), 12, per_scenario=True
        )
        spec = dataclasses.replace(spec, sequences=(*spec.sequences, joined))
    grown = {"user_id": 3, "age": 2, "city": 10, "category": 4, "kind": 1, "tag": 2, "interest": 1}
    renumbering = Renumbering(spec, grown)
    new_spec = renumbering.spec(spec)
    old_model, new_model = config.make(spec), config.make(new_spec)
    users, items = tiny_features.make_users(spec, B), tiny_features.make_items(spec, (B, G))
    scenario_B = tiny_features.make_scenarios(spec, B)
    variables = tiny_features.make_variables(old_model, users, items, scenario_B)
    params = variables.pop("params")
    old = train_state.TrainState(jnp.int32(7), params, variables, ADAM.init(params))
    shapes = jax.eval_shape(train_state.make_init(new_model, ADAM, False), jax.random.key(0))
    fresh = jax.device_put(
        jax.tree.map(lambda leaf: jnp.full(leaf.shape, 5, leaf.dtype), shapes),
        sharding.replicated(MESH),
    )
    sources = warm_start.find_sources(
        warm_start.find_blocks(old_model),
        warm_start.find_blocks(new_model),
        renumbering.old_of_new,
        warm_start.count_rows(new_model, ADAM),
    )
    got = warm_start.carry_over(old, fresh, sources)
    constants = {
        key: renumbering.constant(key, value)
        for key, value in variables.get("constants", {}).items()
    }
    tracked = {**got.model_state, **({"constants": constants} if constants else {})}
    expected, _ = old_model.apply(
        train_state.Frozen(params, variables).variables, users, items, scenario_B, train=False
    )
    found, _ = new_model.apply(
        train_state.Frozen(got.params, tracked).variables,
        renumbering.users(spec, users),
        renumbering.items(spec, items),
        scenario_B,
        train=False,
    )
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert np.ptp(np.asarray(expected)) > 0
