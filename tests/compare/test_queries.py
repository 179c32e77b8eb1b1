"""What is known of the users of test queries."""

import numpy as np
import pytest

from dsmoe_jax.compare import queries
from dsmoe_jax.data import store as store_lib
from tests import tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("store") / "store")


def test_positives_are_counted_user_by_user(store):
    known = queries.read(store)
    columns, rows_QC = store.columns, np.asarray(store.queries("test").rows_QC)
    user_N = store.train_NC[:, columns["user"]].tolist()
    users = rows_QC[:, columns["user"]].tolist()
    assert known.trained_Q.tolist() == [user_N.count(user) for user in users]
    start_Q1, stop_Q1 = store_lib.Windows("history").read(rows_QC, columns)
    assert known.events_Q.tolist() == [
        len(range(*pair)) for pair in zip(start_Q1[:, 0], stop_Q1[:, 0], strict=True)
    ]
    assert len(set(known.trained_Q.tolist())) > 1


def test_the_file_is_written_once_for_a_store(store, tmp_path):
    assert queries.load(tmp_path, 2) is None
    queries.keep(tmp_path, 2, store)
    found, wanted = queries.load(tmp_path, 2), queries.read(store)
    assert found.data_hash == store.data_hash
    np.testing.assert_array_equal(found.events_Q, wanted.events_Q)
    [path] = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    queries.keep(tmp_path, 2, store)
    assert path.stat().st_mtime_ns == before
    other = wanted._replace(data_hash="other")
    np.savez(path, **other._asdict())
    queries.keep(tmp_path, 2, store)
    assert queries.load(tmp_path, 2).data_hash == store.data_hash
