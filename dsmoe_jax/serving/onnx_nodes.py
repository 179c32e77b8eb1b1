"""Nodes, constants and inputs of an ONNX graph in the making.

Owns how a graph is put together, not what it computes (`onnx_graph.py`).

Letters: B queries, L events, E a table's width, X values.
"""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """Nodes, constants and inputs of a graph in the making; values are known by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """All constants."""
        return list(self._constants.values())

    def put(self, array: Any, name: str = "") -> str:
        """A constant; one that has a name is written once."""
        name = name or f"constant_{len(self._constants)}"
        if name not in self._constants:
            array = np.ascontiguousarray(array)
            if array.dtype.kind == "U":
                text = [value.encode() for value in array.ravel().tolist()]
                tensor = helper.make_tensor(name, onnx.TensorProto.STRING, array.shape, text)
            else:
                tensor = numpy_helper.from_array(array, name)
            self._constants[name] = tensor
        return name

    def take(self, name: str, kind: int, *more: str) -> str:
        """An input [B, ...]."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["B", *more]))
        return name

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output."""
        name = name or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def add_pair(self, operator: str, *inputs: str, **attributes: Any) -> tuple[str, str]:
        """A node with two outputs."""
        name = f"{operator}_{len(self.nodes)}"
        first, second = f"{name}_first", f"{name}_second"
        self.nodes.append(helper.make_node(operator, inputs, [first, second], name, **attributes))
        return first, second

    def encode(self, raw: str, raw_X: np.ndarray, default: int = 0) -> str:
        """Ids of raw values, by a vocabulary whose row 0 is unknown."""
        kind = "int64s" if raw_X.dtype.kind == "i" else "strings"
        return self.add(
            "LabelEncoder",
            raw,
            domain="ai.onnx.ml",
            default_int64=default,
            values_int64s=list(range(1, len(raw_X))),
            **{f"keys_{kind}": raw_X[1:].tolist()},
        )

    def shift(self, ids: str, first_row: int) -> str:
        """Ids as rows of a table that other features share."""
        return self.add("Add", ids, self.put(np.int64(first_row))) if first_row else ids

    def widen(self, value: str, axis: int) -> str:
        """One more axis."""
        return self.add("Unsqueeze", value, self.put(np.array([axis])))

    def narrow(self, value: str, axis: int) -> str:
        """One axis less."""
        return self.add("Squeeze", value, self.put(np.array([axis])))

    def total(self, value: str, *, keepdims: int = 1) -> str:
        """The sum over the last axis."""
        return self.add("ReduceSum", value, self.put(np.array([-1])), keepdims=keepdims)

    def cast(self, value: str, kind: int) -> str:
        """The values as another type."""
        return self.add("Cast", value, to=kind)

    def pool(self, table: str, row_BL: str, weight_BL: str) -> str:
        """[B, E]: the weighted sum of rows of a table."""
        pooled = self.add("MatMul", self.widen(weight_BL, 1), self.add("Gather", table, row_BL))
        return self.narrow(pooled, 1)
