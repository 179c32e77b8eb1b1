"""Every matcher's bundle gives the evaluation protocol's lists, from raw values."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.models import registry
from dsmoe_jax.serving import retriever
from tests.models import small
from tests.serving import shop

# The prior of a method that has none by itself, of a folding one too.
PRIOR = " with a known prior"
NAMES = [*sorted(registry.MATCHERS), f"dsmoe{PRIOR}", f"mind{PRIOR}"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return shop.prepare(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module", params=NAMES)
def exported(request, store, tmp_path_factory):
    config = small.SMALL_MATCHERS[request.param.removesuffix(PRIOR)]
    if request.param.endswith(PRIOR):
        config = dataclasses.replace(config, known_prior=True)
    untrained = shop.Untrained(store, config)
    folder = tmp_path_factory.mktemp("bundles") / request.param
    untrained.export(folder)
    return untrained, retriever.Retriever.load(folder)


def hits(store, found, k):
    """Relevant items among the top k of every test query, from a frame of lists by raw ids."""
    queries = store.queries("test")
    row_of = {raw: row for row, raw in enumerate(store.items_raw_id.tolist())}
    user_Q = store.users_raw_id[queries.rows_QC[:, 0]].tolist()
    top = {
        (user, scenario): [row_of[item] for item in items]
        for user, scenario, items in found.filter(pl.col("rank") <= k)
        .group_by("user_id", "scenario")
        .agg("item_id")
        .iter_rows()
    }
    counts = []
    for q, user in enumerate(user_Q):
        scenario = store.spec.scenarios[queries.rows_QC[q, 1]]
        window = slice(*queries.relevant.indptr[q : q + 2])
        counts.append(len({*queries.relevant.items[window]} & {*top[user, scenario]}))
    return np.array(counts)


def test_lists_from_raw_ids_are_the_evaluations(exported):
    untrained, found = exported
    store = untrained.store
    users = sorted({*store.users_raw_id[store.queries("test").rows_QC[:, 0]].tolist()})
    lists = found.recommend(users, "all", 10)
    evaluation = untrained.evaluate()
    for k in (5, 10):
        np.testing.assert_array_equal(hits(store, lists, k), evaluation.hits[k])
