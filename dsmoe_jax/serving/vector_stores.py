"""Vector stores: LanceDB, Qdrant, Milvus and a Parquet file, each as `push.VectorStore`.

Owns what each of them calls an inner product, and how a bundle's rows are put into it. Their
libraries are extras, imported when a store is opened. Keys of hosted stores are read from the
environment: `LANCEDB_API_KEY`, `QDRANT_API_KEY`, `MILVUS_TOKEN`.

Letters: D a vector, X items.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl

from dsmoe_jax import optional
from dsmoe_jax.retrieval import host
from dsmoe_jax.serving import catalogue, push

# Rows of one call.
_BATCH = 500


class LanceStore:
    """A table of LanceDB, in a folder or at an address; one column per scenario."""

    # Its own default is L2, which is another order.
    metric = "dot"

    def __init__(self, uri: str, name: str, *, replace: bool):
        """Connects.

        Raises:
          ValueError: Without the library.
        """
        optional.require("lancedb", extra="lancedb", what="push to lancedb: ")
        import lancedb

        self._db = lancedb.connect(uri, api_key=os.environ.get("LANCEDB_API_KEY"))
        self._uri, self._name, self._replace = uri, name, replace
        self._table: Any = None

    def write(self, layout: push.Layout, parts: Iterator[pl.DataFrame]) -> None:
        """See `push.VectorStore`."""
        _check_free(
            self._name in self._db.list_tables(limit=10_000).tables,
            self._uri,
            self._name,
            self._replace,
        )
        mode = "overwrite" if self._replace else "create"
        for part in parts:
            data = part.drop("number").to_arrow()
            if self._table is None:
                self._table = self._db.create_table(self._name, data=data, mode=mode)
            else:
                self._table.add(data)

    def search(self, vector: str, query_D: np.ndarray, k: int) -> list[Any]:
        """See `push.VectorStore`."""
        query = self._table.search(query_D, vector_column_name=vector).distance_type(self.metric)
        found = query.select([catalogue.ITEM, "_distance"]).limit(k).to_list()
        return [row[catalogue.ITEM] for row in found]


class QdrantStore:
    """A collection of Qdrant: a point per item with a named vector per scenario.

    A point's id is the number of the item's row, since raw ids may be texts; the raw id and the
    features are its payload.
    """

    metric = "Dot"

    def __init__(self, uri: str, name: str, *, replace: bool):
        """Connects to `:memory:`, the address of a server, or a folder.

        Raises:
          ValueError: Without the library.
        """
        optional.require("qdrant_client", extra="qdrant", what="push to qdrant: ")
        import qdrant_client

        self._library = qdrant_client
        # A server's index would be searched approximately; a folder is always searched exactly.
        self._search_params = None
        if "://" in uri:
            self._search_params = qdrant_client.models.SearchParams(exact=True)
            # Whether the versions fit is asked in a thread, which cannot tell the caller.
            self._client = qdrant_client.QdrantClient(
                url=uri, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False
            )
        elif uri == ":memory:":
            self._client = qdrant_client.QdrantClient(uri)
        else:
            self._client = qdrant_client.QdrantClient(path=uri)
        self._uri, self._name, self._replace = uri, name, replace

    def write(self, layout: push.Layout, parts: Iterator[pl.DataFrame]) -> None:
        """See `push.VectorStore`."""
        client, models = self._client, self._library.models
        with _reached(self._uri, self._library.http.exceptions.ApiException):
            is_there = client.collection_exists(self._name)
        _check_free(is_there, self._uri, self._name, self._replace)
        if is_there:
            client.delete_collection(self._name)
        vectors = list(dict.fromkeys(layout.vectors))
        params = models.VectorParams(size=layout.dim, distance=models.Distance(self.metric))
        client.create_collection(self._name, vectors_config=dict.fromkeys(vectors, params))
        for part in parts:
            for rows in part.iter_slices(_BATCH):
                payloads = rows.drop("number", *vectors).to_dicts()
                points = models.Batch(
                    ids=rows["number"].to_list(),
                    payloads=payloads,
                    vectors={name: rows[name].to_list() for name in vectors},
                )
                client.upsert(self._name, points)

    def search(self, vector: str, query_D: np.ndarray, k: int) -> list[Any]:
        """See `push.VectorStore`."""
        found: Any = self._client.query_points(
            self._name,
            query=query_D.tolist(),
            using=vector,
            limit=k,
            with_payload=[catalogue.ITEM],
            search_params=self._search_params,
        )
        return [point.payload[catalogue.ITEM] for point in found.points]


class MilvusStore:
    """A collection of Milvus, with a vector field per scenario.

    A server takes four vector fields unless `proxy.maxVectorFieldNum` says otherwise.
    """

    metric = "IP"

    def __init__(self, uri: str, name: str, *, replace: bool):
        """Connects to a server, or to the file of Milvus Lite.

        Raises:
          ValueError: Without the library.
        """
        optional.require("pymilvus", extra="milvus", what="push to milvus: ")
        import pymilvus

        self._library = pymilvus
        with _reached(uri, pymilvus.MilvusException):
            self._client = pymilvus.MilvusClient(uri=uri, token=os.environ.get("MILVUS_TOKEN", ""))
        self._uri, self._name, self._replace = uri, name, replace

    def write(self, layout: push.Layout, parts: Iterator[pl.DataFrame]) -> None:
        """See `push.VectorStore`."""
        client, types = self._client, self._library.DataType
        is_there = client.has_collection(self._name)
        _check_free(is_there, self._uri, self._name, self._replace)
        if is_there:
            client.drop_collection(self._name)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("number", types.INT64, is_primary=True)
        index = client.prepare_index_params()
        for name in dict.fromkeys(layout.vectors):
            schema.add_field(name, types.FLOAT_VECTOR, dim=layout.dim)
            index.add_index(name, index_type="FLAT", metric_type=self.metric)
        client.create_collection(
            self._name, schema=schema, index_params=index, consistency_level="Strong"
        )
        for part in parts:
            for rows in part.iter_slices(_BATCH):
                client.insert(self._name, rows.to_dicts())

    def search(self, vector: str, query_D: np.ndarray, k: int) -> list[Any]:
        """See `push.VectorStore`."""
        [found] = self._client.search(
            self._name,
            data=[query_D.tolist()],
            anns_field=vector,
            limit=k,
            output_fields=[catalogue.ITEM],
            search_params={"metric_type": self.metric},
        )
        return [hit["entity"][catalogue.ITEM] for hit in found]


class ParquetFile:
    """A Parquet file, a column per scenario, for stores that load one.

    Written part by part, and searched in one scenario's vectors at a time: no more is held.
    """

    def __init__(self, uri: str, name: str, *, replace: bool):
        """Takes the path; the name is of stores that hold several tables."""
        self._path, self._name, self._replace = pathlib.Path(uri).expanduser(), name, replace
        self._vector = ""
        self._frame = pl.DataFrame()

    def write(self, layout: push.Layout, parts: Iterator[pl.DataFrame]) -> None:
        """See `push.VectorStore`."""
        _check_free(self._path.exists(), str(self._path), self._path.name, self._replace)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{self._path.name}.", dir=self._path.parent
        ) as folder:
            paths: list[pathlib.Path] = []
            for part in parts:
                paths.append(pathlib.Path(folder) / f"{len(paths):08d}.parquet")
                part.drop("number").write_parquet(paths[-1])
            whole = pathlib.Path(folder) / "whole.parquet"
            pl.scan_parquet(paths).sink_parquet(whole)
            os.replace(whole, self._path)
        self._vector = ""

    def search(self, vector: str, query_D: np.ndarray, k: int) -> list[Any]:
        """See `push.VectorStore`."""
        if vector != self._vector:
            self._frame = pl.read_parquet(self._path, columns=[catalogue.ITEM, vector])
            self._vector = vector
        score_X = host.score_rows(query_D[None], self._frame[vector].to_numpy())
        order_X = np.argsort(-score_X, kind="stable")[:k]
        found: list[Any] = self._frame[catalogue.ITEM].gather(order_X).to_list()
        return found


STORES: dict[str, Callable[..., push.VectorStore]] = {
    "lancedb": LanceStore,
    "qdrant": QdrantStore,
    "milvus": MilvusStore,
    "parquet": ParquetFile,
}


@contextlib.contextmanager
def _reached(uri: str, error_type: type[Exception]) -> Iterator[None]:
    """Tells in one line that nothing answers at an address."""
    try:
        yield
    except error_type as error:
        first = str(error).partition("\n")[0]
        raise OSError(f"{uri}: expected a store that answers, got {first}") from None


def _check_free(is_there: bool, uri: str, name: str, replace: bool) -> None:
    if is_there and not replace:
        raise ValueError(
            f"{uri}: expected no {name!r} yet, found one; name another or pass --replace"
        )
