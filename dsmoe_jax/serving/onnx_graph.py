"""One ONNX file of a bundle whose towers are arrays: raw values and a scenario in, items out.

Owns the graph, which is `towers.py` in ONNX's operators, written by hand: no converter, no JAX. Any
runtime of opset 17 runs it without this library. What it is fed is `onnx_feeds.py`'s.

    <feature>              [B] a category's raw value, or [B] a number (NaN where there is none), or
                           [B, P] raw values of a bag
    history, shown, ...    [B, L] raw item ids, oldest first; `shown` are the sequence `exposures`,
                           `scenario_history` are positives in the query's own scenario; of a log
                           with several fields `<log>.<field>`
    scenario               [B] names; another name ends the run with an error
    removed                [B, R] raw ids of items that a list must not hold
    -> item_id, score      [B, k] best first; a blank and -inf where fewer items are left

Text and int64 as the bundle's vocabularies. Matrices are padded anywhere with the blank, "" or -1
(the smallest int64 where -1 is a value); what training did not know counts as a blank. Every user
is scored by the tower: the retriever's list of a cold user, the scenario's prior, is not in here.

Letters: B queries, S scenarios, V rows of the corpus (row 0 is padding), L events, P values of a
bag, I a perceptron's input, F hidden units, E a slot's width, D a vector, X values.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dsmoe_jax.retrieval import host
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import catalogue, onnx_feeds, onnx_nodes, requests

_OPSET, _ML_OPSET, _IR_VERSION = 17, 3, 8
# What Protocol Buffers can hold in one message.
_MOST_BYTES = 2**31 - 1
_TYPES = {"i": onnx.TensorProto.INT64, "U": onnx.TensorProto.STRING}


def write_onnx(bundle: bundle_lib.Bundle, path: str | os.PathLike[str], *, k: int) -> pathlib.Path:
    """Writes the graph of a bundle beside its place, then renames it there.

    Args:
      bundle: A bundle whose towers are arrays.
      path: The file.
      k: Items of a list; all where there are fewer.

    Returns:
      The file.

    Raises:
      ValueError: When its towers are a program or encode histories, k is below 1 or one file cannot
        hold it.
    """
    if bundle.manifest["towers"]["kind"] != "arrays":
        raise ValueError(
            f"{bundle.root}: expected towers that fold into arrays for ONNX, got the compiled "
            f"program of {bundle.manifest['method']}"
        )
    if "history" in bundle.manifest["towers"]["user"]:
        raise ValueError(
            f"{bundle.root}: expected means of histories for ONNX, got the encoder "
            f"{bundle.manifest['towers']['user']['history']['kind']!r}; train with "
            "features.history_encoder='mean'"
        )
    if k < 1:
        raise ValueError(f"k: expected an integer >= 1, got {k}")
    model = _Writer(bundle).write(k)
    size = model.ByteSize()
    if size > _MOST_BYTES:
        raise ValueError(
            f"{path}: expected a graph of at most {_MOST_BYTES:,} bytes, which one ONNX file holds,"
            f" got {size:,}"
        )
    onnx.checker.check_model(model)
    file = pathlib.Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(model.SerializeToString())
    os.replace(partial, file)
    return file


class _Writer:
    """A bundle's graph."""

    def __init__(self, bundle: bundle_lib.Bundle):
        self._bundle, self._graph = bundle, onnx_nodes.Graph()
        form = bundle.manifest["towers"]["user"]
        self._linear: dict[str, Any] | None = form["linear"]
        self._slots: list[dict[str, Any]] = form["slots"]
        self._reads = onnx_feeds.list_reads(bundle)
        exact = [host.HostIndex(item_VD) for item_VD in bundle.load("item_vectors")]
        self._items = catalogue.open_catalogue(bundle, requests.Encoder(bundle), exact)
        # Row 0 of the graph's items is padding, as in the bundle.
        self._rows_V = np.append(0, self._items.live_rows())
        self._raw_id_V = self._items.raw_id_V[self._rows_V]
        self._events: dict[str, tuple[list[str], str, str]] = {}

    def write(self, k: int) -> onnx.ModelProto:
        """The model."""
        graph, bundle = self._graph, self._bundle
        names = np.array(["", *bundle.scenarios])
        raw = graph.take("scenario", onnx.TensorProto.STRING)
        ids = graph.add("Sub", graph.encode(raw, names, len(names)), graph.put(np.int64(1)))
        # Looks a scenario's number up under itself, where an unknown one has no place.
        every = graph.put(np.arange(len(bundle.scenarios)))
        scenario = graph.add("Gather", every, ids, name="known_scenario")
        self._read_events()
        pooled = {
            bag["sequence"]: self._pool(bag) for bag in (self._linear or {"bags": []})["bags"]
        }
        parts = [self._sum_factors(pooled, scenario)] if self._linear else []
        embedded = self._embed(pooled) if self._slots else ""
        item_id, score = self._rank(*self._score(parts, embedded, scenario), k)
        raw_V = self._raw_id_V
        width = [min(k, len(raw_V) - 1)]
        outputs = [
            helper.make_tensor_value_info(item_id, _TYPES[raw_V.dtype.kind], ["B", *width]),
            helper.make_tensor_value_info(score, onnx.TensorProto.FLOAT, ["B", *width]),
        ]
        made = helper.make_graph(
            graph.nodes, "retrieval", graph.inputs, outputs, initializer=graph.constants
        )
        model = helper.make_model(
            made,
            opset_imports=[
                helper.make_opsetid("", _OPSET),
                helper.make_opsetid("ai.onnx.ml", _ML_OPSET),
            ],
            ir_version=_IR_VERSION,
            producer_name="dsmoe_jax",
        )
        manifest = bundle.manifest
        said = {name: str(manifest[name]) for name in ("method", "dataset", "digest")}
        helper.set_model_props(model, {**said, "scenarios": "\n".join(bundle.scenarios)})
        return model

    def _read_events(self) -> None:
        """Of every sequence its fields' ids, which of its events count, and their ages."""
        graph, bundle = self._graph, self._bundle
        for sequence in self._reads.sequences:
            ids = []
            for field in sequence.fields:
                raw_X = onnx_feeds.vocabulary(bundle, field)
                name = onnx_feeds.name_of(sequence, field)
                taken = graph.take(name, _TYPES[raw_X.dtype.kind], f"L_{sequence.name}")
                ids.append(graph.encode(taken, raw_X))
            is_event = graph.add("Greater", ids[0], graph.put(np.int64(0)))
            count = graph.cast(is_event, onnx.TensorProto.INT64)
            from_end = graph.add("CumSum", count, graph.put(np.int64(1)), reverse=1)
            age = graph.add("Sub", from_end, graph.put(np.int64(1)))
            is_recent = graph.add("Less", age, graph.put(np.int64(sequence.max_len)))
            counts = graph.add("And", is_event, is_recent)
            self._events[sequence.name] = ids, graph.cast(counts, onnx.TensorProto.FLOAT), age

    def _pool(self, bag: dict[str, Any]) -> str:
        """A sequence pooled as the linear form does it, [B, D]."""
        graph = self._graph
        [ids, *_], counts, age = self._events[bag["sequence"]]
        recency, floor, extra = (
            graph.put(np.float32(bag[name])) for name in ("recency", "floor", "extra")
        )
        faded = graph.add("Pow", recency, graph.cast(age, onnx.TensorProto.FLOAT))
        weight = graph.add("Mul", graph.add("Max", faded, floor), counts)
        square = graph.add("Add", graph.total(graph.add("Mul", weight, weight)), extra)
        norm = graph.add("Sqrt", graph.add("Max", square, graph.put(np.float32(1.0))))
        table = graph.put(self._bundle.load(bag["table"]), bag["table"])
        return graph.pool(table, ids, graph.add("Div", weight, norm))

    def _sum_factors(self, pooled: dict[str, str], scenario: str) -> str:
        """User vectors of the linear form, [B, D]."""
        graph, load = self._graph, self._bundle.load
        form = self._bundle.manifest["towers"]["user"]["linear"]
        kind = graph.add("Gather", graph.put(load("linear_kind")), scenario)
        sums = graph.add("Sum", kind, *pooled.values())
        # [a, 1], and the last 1 of a user.
        pads, one = graph.put(np.array([0, 0, 0, 1])), graph.put(np.float32(1.0))
        taste = graph.add("Pad", sums, pads, one)
        product = graph.add("MatMul", taste, graph.put(load("linear_covariance")))
        variance = graph.total(graph.add("Mul", product, taste))
        least = graph.put(np.float32(form["least_variance"]))
        deviation = graph.add("Sqrt", graph.add("Max", variance, least))
        scale = graph.add("Gather", graph.put(load("linear_scale")[:, None]), scenario)
        scaled = graph.add("Mul", taste, graph.add("Div", scale, deviation))
        return graph.add("Pad", scaled, pads, one)

    def _embed(self, pooled: dict[str, str]) -> str:
        """A perceptron's input, [B, I]: all slots side by side."""
        graph, blocks = self._graph, []
        for slot in self._slots:
            kind, name, row = slot["kind"], slot["name"], slot["first_row"]
            table_XE = self._bundle.load(slot["table"])
            if kind == "dense":
                number = graph.widen(self._standardise(name), 1)
                blocks.append(graph.add("Mul", number, graph.put(table_XE[row][None])))
                continue
            if kind == "pooled":
                blocks.append(pooled[name])
                continue
            table = graph.put(table_XE, slot["table"])
            if kind == "sparse":
                raw_X = onnx_feeds.vocabulary(self._bundle, name)
                ids = graph.encode(graph.take(name, _TYPES[raw_X.dtype.kind]), raw_X)
                blocks.append(graph.add("Gather", table, graph.shift(ids, row)))
            elif kind == "bag":
                ids, counts = self._read_bag(name)
                blocks.append(graph.pool(table, graph.shift(ids, row), self._mean(counts)))
            else:
                fields, counts, _ = self._events[name]
                ids = graph.shift(fields[slot["column"]], row)
                blocks.append(graph.pool(table, ids, self._mean(counts)))
        return graph.add("Concat", *blocks, axis=1)

    def _standardise(self, name: str) -> str:
        """A number as training saw it; 0 where there is none."""
        graph, moments = self._graph, self._bundle.manifest["dense"][name]
        number = graph.take(name, onnx.TensorProto.DOUBLE)
        if moments["transform"] == "log1p":
            number = graph.add("Log", graph.add("Add", number, graph.put(np.float64(1.0))))
        number = graph.add("Sub", number, graph.put(np.float64(moments["mean"])))
        number = graph.add("Div", number, graph.put(np.float64(moments["std"])))
        number = graph.cast(number, onnx.TensorProto.FLOAT)
        missing = graph.add("IsNaN", number)
        return graph.add("Where", missing, graph.put(np.float32(0.0)), number)

    def _read_bag(self, name: str) -> tuple[str, str]:
        """Ids [B, P] of a bag, and which count: its first distinct ones, as in a request."""
        graph = self._graph
        [bag] = [bag for bag in self._reads.bags if bag.name == name]
        raw_X = onnx_feeds.vocabulary(self._bundle, name)
        ids = graph.encode(graph.take(name, _TYPES[raw_X.dtype.kind], f"P_{name}"), raw_X)
        is_same = graph.add("Equal", graph.widen(ids, 2), graph.widen(ids, 1))
        same = graph.cast(is_same, onnx.TensorProto.INT64)
        earlier = graph.add("Trilu", same, graph.put(np.int64(-1)), upper=0)
        zero = graph.put(np.int64(0))
        is_first = graph.add("Equal", graph.total(earlier, keepdims=0), zero)
        is_new = graph.add("And", is_first, graph.add("Greater", ids, zero))
        count = graph.cast(is_new, onnx.TensorProto.INT64)
        place = graph.add("CumSum", count, graph.put(np.int64(1)))
        is_within = graph.add("LessOrEqual", place, graph.put(np.int64(bag.max_len)))
        counts = graph.add("And", is_new, is_within)
        return ids, graph.cast(counts, onnx.TensorProto.FLOAT)

    def _mean(self, counts_BL: str) -> str:
        """Weights of a mean over what counts."""
        graph = self._graph
        number = graph.add("Max", graph.total(counts_BL), graph.put(np.float32(1.0)))
        return graph.add("Div", counts_BL, number)

    def _score(self, parts: Sequence[str], embedded: str, scenario: str) -> tuple[str, str]:
        """Scores [B, V], grouped by scenario, and the query of each row; "" in their own order.

        Queries of a scenario are scored together, so that no matrix is copied for each of them.
        """
        graph, copies = self._graph, len(self._items.indexes)
        if self._slots:
            copies = max(copies, len(self._bundle.load("user_first")))
        if copies == 1:
            return self._score_in(0, parts, embedded), ""
        rows, scores = [], []
        for s in range(copies):
            is_here = graph.add("Equal", scenario, graph.put(np.int64(s)))
            row = graph.narrow(graph.add("NonZero", is_here), 0)
            here = [graph.add("Gather", part, row) for part in (*parts, embedded) if part]
            own = here[-1] if embedded else ""
            scores.append(self._score_in(s, here[: len(parts)], own))
            rows.append(row)
        return graph.add("Concat", *scores, axis=0), graph.add("Concat", *rows, axis=0)

    def _score_in(self, s: int, parts: Sequence[str], embedded: str) -> str:
        """Scores of users in one scenario."""
        graph, parts = self._graph, list(parts)
        if embedded:
            parts.append(self._run_perceptron(s, embedded))
        user = graph.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        s = s if len(self._items.indexes) > 1 else 0
        item_VD = self._items.index(s).vectors(self._rows_V)
        return graph.add("MatMul", user, graph.put(item_VD.T, f"items_{s}"))

    def _run_perceptron(self, s: int, input_BI: str) -> str:
        graph = self._graph

        def load(name: str) -> str:
            array_SX = self._bundle.load(f"user_{name}")
            row = s if len(array_SX) > 1 else 0
            return graph.put(array_SX[row], f"user_{name}_{row}")

        slope = graph.put(self._bundle.load("user_slope"), "user_slope")
        hidden = graph.add("Add", graph.add("MatMul", input_BI, load("first")), load("first_bias"))
        hidden = graph.add("PRelu", hidden, slope)
        return graph.add("Add", graph.add("MatMul", hidden, load("second")), load("second_bias"))

    def _rank(self, score: str, query: str, k: int) -> tuple[str, str]:
        """Names of the outputs: the k best raw ids of every query, and their scores."""
        graph, raw_V = self._graph, self._raw_id_V
        removed = graph.take("removed", _TYPES[raw_V.dtype.kind], "R")
        ids = graph.encode(removed, raw_V)
        if query:
            ids = graph.add("Gather", ids, query)
        # Row 0, padding, is removed from every list.
        ids = graph.add("Pad", ids, graph.put(np.array([0, 1, 0, 0])))
        never = graph.put(np.float32(-np.inf))
        gone = graph.add("Expand", never, graph.add("Shape", ids))
        score = graph.add("ScatterElements", score, ids, gone, axis=1)
        length = graph.put(np.array([min(k, len(raw_V) - 1)]))
        best, item = graph.add_pair("TopK", score, length)
        if query:
            # Back to the order of the queries: what sorts a permutation is its inverse.
            _, place = graph.add_pair("TopK", query, graph.add("Shape", query), largest=0)
            best, item = (graph.add("Gather", ranked, place) for ranked in (best, item))
        score = graph.add("Identity", best, name="score")
        is_none = graph.add("IsInf", score, detect_positive=0)
        blank = graph.put(np.asarray(onnx_feeds.blank(raw_V), raw_V.dtype))
        raw = graph.add("Gather", graph.put(raw_V), item)
        return graph.add("Where", is_none, blank, raw, name="item_id"), score
