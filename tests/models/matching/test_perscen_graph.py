import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.matching import perscen_graph

B, F, E = 5, 4, 3
WIDTH = F * E


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomise(variables, seed=1):
    leaves, tree = jax.tree.flatten(variables)
    return jax.tree.unflatten(
        tree, [draw(*leaf.shape, seed=seed + n) for n, leaf in enumerate(leaves)]
    )


def refine_naively(raw_FF):
    """One row, by sorting."""
    unit_FF = (raw_FF - raw_FF.min()) / (raw_FF.max() - raw_FF.min())
    np.fill_diagonal(unit_FF, 1)
    half = -(-unit_FF.size // 2)
    # The diagonal first, then by size, then by place.
    order = np.lexsort((np.arange(unit_FF.size), -unit_FF.ravel(), -np.eye(len(raw_FF)).ravel()))
    kept_FF = np.zeros(unit_FF.size, bool)
    kept_FF[order[:half]] = True
    kept_FF = kept_FF.reshape(unit_FF.shape)
    graph_FF = unit_FF * kept_FF
    return (graph_FF + graph_FF.T) / 2, kept_FF | kept_FF.T


def raise_naively(graph_FF, first_FF, support_FF):
    product_FF = graph_FF @ first_FF
    unit_FF = (product_FF - product_FF.min()) / (product_FF.max() - product_FF.min()) * support_FF
    return (unit_FF + unit_FF.T) / 2


def test_larger_half_is_marked():
    unit_BFF = jnp.asarray([[[0.0, 0.9, 0.1], [0.5, 0.0, 0.2], [0.3, 0.4, 0.0]]])
    expected = [[[True, True, False], [True, True, False], [False, False, True]]]
    np.testing.assert_array_equal(perscen_graph.keep_largest_half(unit_BFF), expected)


def test_of_equal_entries_the_first_in_row_order_are_marked():
    expected = [[[True, True, True], [False, True, False], [False, False, True]]]
    for value in (0.0, 0.3, 1.0):
        unit_BFF = jnp.full((1, 3, 3), value, jnp.float32)
        np.testing.assert_array_equal(perscen_graph.keep_largest_half(unit_BFF), expected)


# 182 fields have more entries than a 16-bit integer numbers.
@pytest.mark.parametrize("fields", [1, 2, 3, 4, 7, 182])
@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_exactly_half_is_marked_whatever_is_equal(fields, levels):
    rng = np.random.default_rng(fields)
    unit_BFF = rng.integers(0, levels, (3, fields, fields)).astype(np.float32) / max(levels - 1, 1)
    marked_BFF = np.asarray(perscen_graph.keep_largest_half(jnp.asarray(unit_BFF)))
    assert (marked_BFF.sum(axis=(1, 2)) == -(-(fields**2) // 2)).all()
    eye_FF = np.eye(fields, dtype=bool)
    for unit_FF, marked_FF in zip(unit_BFF, marked_BFF, strict=True):
        assert marked_FF[eye_FF].all()
        inside, outside = unit_FF[marked_FF & ~eye_FF], unit_FF[~marked_FF]
        if len(inside) and len(outside):
            assert inside.min() >= outside.max()


def test_refined_graph_equals_a_loop_over_rows():
    raw_BFF = draw(B, F, F)
    graph_BFF, support_BFF = perscen_graph.refine(raw_BFF)
    for b in range(B):
        graph_FF, support_FF = refine_naively(np.asarray(raw_BFF)[b])
        np.testing.assert_allclose(graph_BFF[b], graph_FF, atol=1e-6)
        np.testing.assert_array_equal(support_BFF[b], support_FF)


def test_graphs_of_every_order_are_symmetric_within_one_support():
    first_BFF, support_BFF = perscen_graph.refine(draw(B, 6, 6))
    diagonal_BF = np.diagonal(first_BFF, axis1=1, axis2=2)
    np.testing.assert_array_equal(diagonal_BF, np.ones((B, 6)))
    second_BFF = perscen_graph.raise_order(first_BFF, first_BFF, support_BFF)
    third_BFF = perscen_graph.raise_order(second_BFF, first_BFF, support_BFF)
    for graph_BFF in (first_BFF, second_BFF, third_BFF):
        np.testing.assert_array_equal(graph_BFF, np.swapaxes(graph_BFF, 1, 2))
        assert np.min(graph_BFF) >= 0 and np.max(graph_BFF) <= 1
        assert not np.asarray(graph_BFF)[~np.asarray(support_BFF)].any()


def test_no_gradient_passes_through_the_choice():
    raw_BFF, weight_BFF = draw(B, F, F), draw(B, F, F, seed=1)
    eye = np.eye(F, dtype=bool)[None]
    marked_BFF = perscen_graph.keep_largest_half(perscen_graph.scale_to_unit(raw_BFF))

    def with_choice_fixed(raw_BFF):
        low = raw_BFF.min(axis=(1, 2), keepdims=True)
        high = raw_BFF.max(axis=(1, 2), keepdims=True)
        kept_BFF = jnp.where(eye, 1, (raw_BFF - low) / (high - low)) * marked_BFF
        return (weight_BFF * kept_BFF).sum() / 2 + (weight_BFF.swapaxes(1, 2) * kept_BFF).sum() / 2

    expected = jax.grad(with_choice_fixed)(raw_BFF)
    got = jax.grad(lambda raw: (weight_BFF * perscen_graph.refine(raw)[0]).sum())(raw_BFF)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got).max() > 0


def test_rows_of_equal_entries_are_0_with_a_finite_gradient():
    flat_BFF = jnp.full((1, 3, 3), 2.0, jnp.float32)
    np.testing.assert_array_equal(perscen_graph.scale_to_unit(flat_BFF), np.zeros((1, 3, 3)))
    gradient = jax.grad(lambda raw: jnp.square(perscen_graph.scale_to_unit(raw)).sum())(flat_BFF)
    assert np.isfinite(gradient).all()


def test_generators_equal_perceptrons_that_read_a_one_hot():
    layer = perscen_graph.GraphGenerator(F, WIDTH)
    x_BI = draw(B, WIDTH)
    variables = randomise(layer.init(jax.random.key(0), x_BI))
    got_BFF = layer.apply(variables, x_BI)
    params = jax.tree.map(np.asarray, variables["params"])
    for f in range(F):
        units = slice(f * F, (f + 1) * F)
        one_hot_BF = np.eye(F, dtype=np.float32)[[f] * B]
        # What the other generators' one-hots are multiplied with is never used.
        of_one_hot_FF = np.zeros((F, F), np.float32)
        of_one_hot_FF[f] = params["bias_0"][units]
        kernel = np.concatenate([params["kernel_0"][:, units], of_one_hot_FF])
        hidden = np.concatenate([np.asarray(x_BI), one_hot_BF], axis=1) @ kernel
        for n in (1, 2):
            hidden = np.maximum(hidden, 0) @ params[f"kernel_{n}"][f] + params[f"bias_{n}"][f]
        np.testing.assert_allclose(got_BFF[:, f], hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_interactions_equal_a_loop_over_rows(layers):
    module = perscen_graph.FeatureGraph(F, E, layers)
    x_BI = draw(B, WIDTH, seed=2)
    variables = randomise(module.init(jax.random.key(0), x_BI))
    found = module.apply(variables, x_BI)
    generator = perscen_graph.GraphGenerator(F, WIDTH)
    raw_BFF = generator.apply({"params": variables["params"]["generator"]}, x_BI)
    assert len(found) == layers
    kernel_LEE = np.asarray(variables["params"]["kernel"])
    for b in range(B):
        field_FE = product_FE = np.asarray(x_BI)[b].reshape(F, E)
        graph_FF, support_FF = refine_naively(np.asarray(raw_BFF)[b])
        first_FF = graph_FF
        for layer in range(layers):
            if layer:
                graph_FF = raise_naively(graph_FF, first_FF, support_FF)
            read_FE = graph_FF @ field_FE @ kernel_LEE[layer]
            if layer < layers - 1:
                read_FE = np.where(read_FE > 0, read_FE, 0.01 * read_FE)
            product_FE = product_FE * read_FE
            np.testing.assert_allclose(
                found[layer][b], product_FE.ravel(), rtol=1e-3, atol=1e-3 * np.abs(product_FE).max()
            )


def test_candidates_keep_their_axis():
    module = perscen_graph.FeatureGraph(F, E, 2)
    x_BGI = draw(B, 2, WIDTH)
    variables = module.init(jax.random.key(0), x_BGI)
    flat = module.apply(variables, x_BGI.reshape(-1, WIDTH))
    for got, expected in zip(module.apply(variables, x_BGI), flat, strict=True):
        assert got.shape == x_BGI.shape
        np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    module = perscen_graph.FeatureGraph(F, E, 2)
    x_BI, weight_BI = draw(B, WIDTH), draw(B, WIDTH, seed=3)
    variables = randomise(module.init(jax.random.key(0), x_BI))

    def loss(variables):
        return sum((weight_BI * found).sum() for found in module.apply(variables, x_BI))

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(variables)):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
