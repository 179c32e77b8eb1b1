"""What a step moves between eight devices: as much as its batch, whatever the tables."""

import dataclasses
import functools
import math

import jax
import pytest

from dsmoe_jax.capacity import abstract, collectives
from dsmoe_jax.config import schema
from dsmoe_jax.evaluation import evaluators
from dsmoe_jax.retrieval import exact
from dsmoe_jax.training import optimizer, row_sparse, sharding, train_state
from tests import tiny
from tests.bench import small_case

SMALL, LARGE = 32_768, 131_072
WIDTH = 4
TABLE_BYTES = SMALL * WIDTH * 4

HLO = """
HloModule jit_step, num_partitions=8
  %all-gather.3 = s32[64,8,1]{2,1,0} all-gather(%bitcast.1), channel_id=4, metadata={op_name="jit(step)/gather"}
  %ar = (f32[3,16]{1,0}, /*index=1*/bf16[], pred[2]{0}) all-reduce(%a, %b, %c), channel_id=1
  %get = f32[3,16]{1,0} get-tuple-element(%ar), index=0
  ROOT %reduce-scatter.1 = f32[8]{0} reduce-scatter(%x), dimensions={0}
  %p = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%y)
  %done = f32[4]{0} collective-permute-done(%p)
  %g = (f32[2]{0}, f32[16]{0}) all-gather-start(%z), dimensions={0}
  %fusion = f32[8]{0} fusion(%all-gather.3), calls=%all-reduce.clone
"""  # noqa: E501


def test_collectives_are_read_with_the_bytes_a_device_sends():
    found = collectives.read(HLO, devices=8)
    assert [(c.op, c.shapes, c.result_bytes, c.moved_bytes) for c in found] == [
        ("all-gather", ("s32[64,8,1]",), 2048, 1792),
        ("all-reduce", ("f32[3,16]", "bf16[]", "pred[2]"), 196, 343),
        ("reduce-scatter", ("f32[8]",), 32, 224),
        ("collective-permute", ("f32[4]",), 16, 16),
        ("all-gather", ("f32[16]",), 64, 56),
    ]
    assert collectives.total_by_op(found) == {
        "all-gather": 1848,
        "all-reduce": 343,
        "reduce-scatter": 224,
        "collective-permute": 16,
    }


def make_spec(rows):
    """The small case with as many users and items."""
    spec = small_case.make_spec()
    return dataclasses.replace(
        spec,
        user_sparse=(dataclasses.replace(spec.user_sparse[0], num_ids=rows), *spec.user_sparse[1:]),
        item_sparse=(dataclasses.replace(spec.item_sparse[0], num_ids=rows), *spec.item_sparse[1:]),
    )


CASES = {
    "dense": ("", False, False),
    "dense, average, teacher": ("", True, True),
    "row-sparse adam, average, teacher": ("adam", True, True),
    "row-sparse adagrad": ("adagrad", False, False),
}


@functools.cache
def compile_step(case, rows):
    method, averaged, taught = CASES[case]
    spec, mesh = make_spec(rows), sharding.make_mesh()
    updater = optimizer.Dense(optimizer.make_optimizer(1e-3, 1e-6))
    if method:
        updater = row_sparse.RowSparse(spec, 1e-3, 1e-6, method=method, mesh=mesh)
    setup = abstract.Setup(
        small_case.STUDENT.make(spec),
        updater,
        mesh,
        batch_size=64,
        num_negatives=4,
        teacher=small_case.TEACHER.make(spec) if taught else None,
        averaged=averaged,
    )
    return setup, setup.lower_step().compile()


@pytest.mark.parametrize("case", CASES)
def test_a_step_moves_as_much_whatever_the_tables(case):
    small, large = (
        collectives.read(compile_step(case, rows)[1].as_text(), devices=8)
        for rows in (SMALL, LARGE)
    )
    assert {(c.op, c.shapes) for c in large} == {(c.op, c.shapes) for c in small}
    assert collectives.total_by_op(large) == collectives.total_by_op(small)
    # Less than one device's share of one table.
    assert max(c.result_bytes for c in small) < TABLE_BYTES / 8
    assert any("f32" in shape for c in small for shape in c.shapes)


@pytest.mark.parametrize("case", CASES)
def test_no_device_holds_a_table_in_a_step(case):
    small, large = (compile_step(case, rows)[1].memory_analysis() for rows in (SMALL, LARGE))
    grown = (LARGE - SMALL) * WIDTH * 4
    # Dense gradients of both tables, in shares; row-sparse ones depend on the batch.
    shares = 0 if case.startswith("row-sparse") else 2 / 8
    temporary = large.temp_size_in_bytes - small.temp_size_in_bytes
    assert temporary <= 1.1 * shares * grown + 0.01 * grown


@pytest.mark.parametrize("case", CASES)
def test_arguments_of_a_step_are_shares_of_the_tables(case):
    setup, compiled = compile_step(case, LARGE)
    state = setup.state()
    tables = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.ndim and leaf.shape[0] == LARGE
    ]
    copies = 3 if "adagrad" not in case else 4
    assert len(tables) >= 2 * (copies + ("average" in case))
    for leaf in tables:
        assert leaf.sharding.shard_shape(leaf.shape)[0] == LARGE // 8
    inputs = (state, setup.frozen_teacher(), setup.corpus(), setup.batch())
    found = compiled.memory_analysis().argument_size_in_bytes
    # Beside these: the key, lambda and padding.
    assert sharding.bytes_per_device(inputs) == pytest.approx(found, rel=0.01)


def test_row_sparse_updates_move_no_moments():
    """[T, E] is reduced once for the rows, and once for the gradient of each of its lookups."""
    reductions = {1 + 64: 2, 1 + 64 * (5 + 5 + 3): 3}  # items are candidates and histories
    _, compiled = compile_step("row-sparse adagrad", SMALL)
    reduced = [
        shape
        for c in collectives.read(compiled.as_text(), devices=8)
        for shape in c.shapes
        if c.op == "all-reduce"
    ]
    for rows, times in reductions.items():
        assert reduced.count(f"f32[{rows},{WIDTH}]") == times


def test_tables_are_created_in_shares():
    mesh = sharding.make_mesh()
    temporary = []
    for rows in (SMALL, LARGE):
        spec = make_spec(rows)
        updater = row_sparse.RowSparse(spec, 1e-3, 1e-6, mesh=mesh)
        init = train_state.make_init(small_case.STUDENT.make(spec), updater, True)
        layout = sharding.state_sharding(mesh, jax.eval_shape(init, jax.random.key(0)))
        compiled = jax.jit(init, out_shardings=layout).lower(jax.random.key(0)).compile()
        assert not collectives.read(compiled.as_text(), devices=8)
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    # Random bits and values of a table or two, in shares.
    assert temporary[1] - temporary[0] < 4 / 8 * (LARGE - SMALL) * WIDTH * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("collectives") / "store")


def compile_embedding(store, rows, item_batch):
    spec, mesh = make_spec(rows), sharding.make_mesh()
    model = small_case.STUDENT.make(spec)
    setup = abstract.Setup(model, optimizer.Dense(optimizer.make_optimizer(1.0, 0.0)), mesh, 64, 4)
    evaluator = evaluators.MatcherEvaluator(
        store, spec, setup.corpus(), model, schema.EvalConfig(item_batch=item_batch), mesh
    )
    return evaluator.lower_embed_corpus(train_state.freeze(setup.state())).compile()


def test_the_corpus_is_embedded_in_chunks_that_move_and_hold_what_they_need(store):
    chunk = 1024
    small, large = (compile_embedding(store, rows, chunk) for rows in (SMALL, LARGE))
    found = [collectives.read(compiled.as_text(), devices=8) for compiled in (small, large)]
    assert {(c.op, c.shapes) for c in found[0]} == {(c.op, c.shapes) for c in found[1]}
    # The widest is one chunk's rows of the items' table: features are read where they lie.
    assert max(c.result_bytes for c in found[1]) == chunk * WIDTH * 4
    assert not any("s32" in shape for c in found[1] for shape in c.shapes if c.op == "all-reduce")
    memory = [compiled.memory_analysis() for compiled in (small, large)]
    assert memory[1].temp_size_in_bytes < memory[0].temp_size_in_bytes + 0.02 * TABLE_BYTES
    vectors = small_case.STUDENT.output_dim * 4 * LARGE // 8
    assert memory[1].output_size_in_bytes == pytest.approx(vectors, rel=0.01)


@pytest.mark.parametrize("keeper", exact.KEEPERS)
def test_a_sharded_search_moves_lists_only(keeper):
    mesh, k, queries = sharding.make_mesh(), 10, 16
    found = []
    for rows in (SMALL, LARGE):
        item_VD = jax.ShapeDtypeStruct((rows, 4), "float32", sharding=sharding.by_rows(mesh))
        query_QMD = jax.ShapeDtypeStruct(
            (queries, 1, 4), "float32", sharding=sharding.replicated(mesh)
        )
        compiled = exact._search.lower(
            query_QMD, item_VD, rows, k=k, chunk=4096, mesh=mesh, keeper=keeper
        ).compile()
        found.append(collectives.read(compiled.as_text(), devices=8))
        assert compiled.memory_analysis().temp_size_in_bytes < 2 * TABLE_BYTES
    assert {(c.op, c.shapes) for c in found[0]} == {(c.op, c.shapes) for c in found[1]}
    assert max(math.ceil(c.result_bytes) for c in found[1]) <= 2 * 8 * queries * k * 4
