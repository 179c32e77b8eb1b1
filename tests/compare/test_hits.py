import json

import numpy as np

from dsmoe_jax.compare import hits


def make(query_Q, hits_Q):
    Q = len(query_Q)
    return hits.PerQuery(np.array(query_Q), np.arange(Q) % 3, np.full(Q, 4), {5: np.array(hits_Q)})


def test_text_gives_the_same_numbers_back():
    queries = make([2, 3, 900, 901], [0, 4, 1, 2])
    back = hits.decode(json.loads(json.dumps(hits.encode(queries))))
    np.testing.assert_array_equal(back.query_Q, queries.query_Q)
    np.testing.assert_array_equal(back.scenario_Q, queries.scenario_Q)
    np.testing.assert_array_equal(back.recall(5), [0, 1, 0.25, 0.5])


def test_seven_thousand_queries_take_few_bytes():
    rng = np.random.default_rng(0)
    Q = 7000
    queries = hits.PerQuery(
        np.arange(Q), np.sort(rng.integers(0, 4, Q)), np.ones(Q, int), {5: rng.random(Q) < 0.2}
    )
    assert sum(map(len, hits.encode(queries).values())) < 2500


def test_large_counts_are_kept():
    queries = hits.PerQuery(np.arange(1), np.zeros(1, int), np.array([70_000]), {5: [300]})
    queries = queries._replace(hits={5: np.array([300])})
    back = hits.decode(hits.encode(queries))
    assert back.relevant_Q[0] == 70_000
    assert back.hits[5][0] == 300
