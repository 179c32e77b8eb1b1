import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.matching import perscen

N, H = 8, 2


@functools.cache
def make(num_codes=N, commitment=0.25):
    layer = perscen.VectorQuantizer(num_codes, H, commitment)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, H)), train=True)
    return layer, variables


def with_codebook(variables, codebook_NH):
    return {**variables, "params": {"codebook": jnp.asarray(codebook_NH, jnp.float32)}}


def run(layer, variables, z_BH, *, train=False):
    (code_BH, loss_B), updated = layer.apply(
        variables, jnp.asarray(z_BH, jnp.float32), train=train, mutable=["codes"]
    )
    return code_BH, loss_B, {**variables, **updated}


def reseed(layer, variables, seed=0):
    _, updated = layer.apply(variables, jax.random.key(seed), method="reseed", mutable=True)
    return updated


LITERAL = [[0.0, 0.0], [2.0, 0.0]]


def test_nearest_code_and_loss():
    layer, variables = make(2)
    code_BH, loss_B, _ = run(layer, with_codebook(variables, LITERAL), [[1.5, 0.0], [0.5, 1.0]])
    np.testing.assert_allclose(code_BH, [[2.0, 0.0], [0.0, 0.0]], atol=1e-6)
    # 0.25 and 1.25, once for the codebook and a quarter for what it encodes.
    np.testing.assert_allclose(loss_B, [0.25 * 1.25, 1.25 * 1.25], rtol=1e-6)


def test_of_equally_near_codes_the_first_is_taken():
    layer, variables = make(2)
    code_BH, *_ = run(layer, with_codebook(variables, LITERAL), [[1.0, 0.0]])
    np.testing.assert_array_equal(code_BH, [[0.0, 0.0]])


def test_nearest_code_equals_a_search_over_distances():
    layer, variables = make()
    rng = np.random.default_rng(0)
    codebook_NH, z_BH = rng.normal(size=(N, H)), rng.normal(size=(40, H))
    code_BH, *_ = run(layer, with_codebook(variables, codebook_NH), z_BH)
    distance_BN = np.square(z_BH[:, None] - codebook_NH[None]).sum(axis=2)
    np.testing.assert_allclose(code_BH, codebook_NH[distance_BN.argmin(axis=1)], atol=1e-5)


def test_gradient_passes_straight_through():
    layer, variables = make(2)
    variables = with_codebook(variables, LITERAL)
    jacobian = jax.jacobian(lambda z_BH: layer.apply(variables, z_BH, train=False)[0])
    got = jacobian(jnp.asarray([[1.5, 0.3], [0.2, 0.1]]))
    np.testing.assert_array_equal(got, np.eye(4).reshape(2, 2, 2, 2))


def test_each_term_of_the_loss_moves_its_own_side():
    layer, variables = make(2)

    def loss(codebook_NH, z_BH):
        return layer.apply(with_codebook(variables, codebook_NH), z_BH, train=False)[1].sum()

    of_code, of_z = jax.grad(loss, argnums=(0, 1))(jnp.asarray(LITERAL), jnp.asarray([[1.5, 0.4]]))
    np.testing.assert_allclose(of_code, [[0.0, 0.0], [2 * 0.5, 2 * -0.4]], atol=1e-6)
    np.testing.assert_allclose(of_z, [[0.25 * 2 * -0.5, 0.25 * 2 * 0.4]], atol=1e-6)


def test_output_moves_no_code():
    layer, variables = make(2)

    def output(codebook_NH):
        return layer.apply(with_codebook(variables, codebook_NH), jnp.ones((1, H)), train=False)[0]

    gradient = jax.jacobian(output)(jnp.asarray(LITERAL))
    np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_training_counts_and_remembers_and_nothing_else_does():
    layer, variables = make()
    codebook_NH = np.arange(N)[:, None] * [[10.0, 0.0]]
    variables = with_codebook(variables, codebook_NH)
    assert not variables["codes"]["count"].any() and variables["codes"]["num_recent"] == 0
    z_BH = codebook_NH[[3, 3, 0, 7]] + 0.5
    *_, evaluated = run(layer, variables, z_BH)
    jax.tree.map(np.testing.assert_array_equal, evaluated["codes"], variables["codes"])
    *_, trained = run(layer, variables, z_BH, train=True)
    np.testing.assert_array_equal(trained["codes"]["count"], [1, 0, 0, 2, 0, 0, 0, 1])
    *_, trained = run(layer, trained, z_BH[::-1], train=True)
    np.testing.assert_array_equal(trained["codes"]["count"], [2, 0, 0, 4, 0, 0, 0, 2])
    assert trained["codes"]["count"].dtype == jnp.int32
    # One row of a batch, since eight batches fill a memory of eight; the latest comes first.
    assert trained["codes"]["num_recent"] == 2
    np.testing.assert_allclose(trained["codes"]["recent"][:2], z_BH[[3, 0]])


def test_memory_holds_as_many_vectors_as_there_are_codes():
    layer, variables = make()
    for step in range(11):
        *_, variables = run(layer, variables, np.full((3, H), step), train=True)
    assert variables["codes"]["num_recent"] == N
    np.testing.assert_array_equal(variables["codes"]["recent"][:, 0], np.arange(10, 2, -1))


@pytest.mark.parametrize(
    ("count_N", "expected"), [([2, 2, 0, 0], 2.0), ([1, 1, 1, 1], 4.0), ([5, 0, 0, 0], 1.0)]
)
def test_perplexity_is_the_number_of_codes_in_even_use(count_N, expected):
    layer, variables = make(4)
    codes = {**variables["codes"], "count": jnp.asarray(count_N, jnp.int32)}
    got = layer.apply({**variables, "codes": codes}, method="perplexity")
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def used(count_N, num_recent):
    """A quantiser after an epoch, its remembered vectors all distinct."""
    layer, variables = make()
    codes = {
        "count": jnp.asarray(count_N, jnp.int32),
        "recent": 100.0 + jnp.arange(N * H, dtype=jnp.float32).reshape(N, H),
        "num_recent": jnp.asarray(num_recent, jnp.int32),
    }
    return layer, {**variables, "codes": codes}


def test_unused_codes_become_remembered_vectors_and_used_ones_stay():
    count_N = [3, 0, 1, 0, 0, 9, 0, 1]
    layer, variables = used(count_N, num_recent=6)
    before_NH = variables["params"]["codebook"]
    after = reseed(layer, variables)
    after_NH = np.asarray(after["params"]["codebook"])
    unused = np.asarray(count_N) == 0
    np.testing.assert_array_equal(after_NH[~unused], before_NH[~unused])
    place = (after_NH[unused][:, 0] - 100) / H
    assert len(set(place)) == 4 and set(place) <= set(range(6))
    np.testing.assert_array_equal(after["codes"]["count"], np.zeros(N))
    np.testing.assert_array_equal(after["codes"]["recent"], variables["codes"]["recent"])


def test_seeds_are_drawn_with_the_key_alone():
    layer, variables = used([0] * 4 + [1] * 4, num_recent=8)
    first, again, other = (reseed(layer, variables, s)["params"]["codebook"] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_codes_in_use_are_never_re_seeded():
    layer, variables = used([1] * N, num_recent=8)
    after = reseed(layer, variables)
    np.testing.assert_array_equal(after["params"]["codebook"], variables["params"]["codebook"])
    np.testing.assert_array_equal(after["codes"]["count"], np.zeros(N))


@pytest.mark.parametrize("num_recent", [0, 2])
def test_codes_beyond_the_remembered_vectors_stay(num_recent):
    layer, variables = used([0] * N, num_recent)
    after_NH = reseed(layer, variables)["params"]["codebook"]
    changed_N = (after_NH != variables["params"]["codebook"]).any(axis=1)
    assert changed_N.sum() == num_recent


def test_counts_of_eight_devices_equal_those_of_one():
    layer, variables = make()
    z_BH = jnp.asarray(np.random.default_rng(0).normal(size=(32, H)), jnp.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    step = jax.jit(lambda z_BH: layer.apply(variables, z_BH, train=True, mutable=["codes"]))
    (_, loss_B), updated = step(z_BH)
    (_, sharded_B), sharded = step(jax.device_put(z_BH, rows))
    assert len(sharded_B.sharding.device_set) == 8
    np.testing.assert_allclose(sharded_B, loss_B, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), updated, sharded)
