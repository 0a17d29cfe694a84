"""What an ONNX file may not contain: other files, loops that may never end, functions that call themselves, huge maps.

An ONNX file is a program, so that one from elsewhere may read files, or take any time or memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from features.limits import MODEL_TENSOR

LOOPS = frozenset(["Loop", "Scan", "SequenceMap"])
LARGEST_FILE = (1 << 31) - 1  # bytes, the most that a protocol buffer can have
LARGEST_BATCH = 4096  # frames that a network takes at once, if it says


def check_program(onnx: Any, model: Any) -> None:
    """Raise a ValueError for a parsed file with one of these, before anything interprets it."""
    calls: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for function in model.functions:
        nodes = list(_all_nodes(function.node))
        _check_nodes(onnx, nodes)
        calls[function.domain, function.name] = {(node.domain, node.op_type) for node in nodes}
    _check_nodes(onnx, list(_all_nodes(model.graph.node)))
    _check_tensors(onnx, model.graph)
    while calls:  # remove functions that call none of the others, until none is left
        callable_first = [name for name, called in calls.items() if not called & calls.keys()]
        if not callable_first:
            raise ValueError("a function that calls itself")
        for name in callable_first:
            del calls[name]


def check_sizes(inferred: Any) -> None:
    """Raise a ValueError if a tensor whose shape is known has more than `MODEL_TENSOR` numbers, for one frame."""
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(max(dim, 1) for dim in dims) > MODEL_TENSOR:
            shape = "x".join(str(dim or "?") for dim in dims)
            raise ValueError(
                f"the tensor {value.name[:80]!a} has the shape {shape}, more than {MODEL_TENSOR:,} numbers"
            )


def _all_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes with those of their branches."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def _check_nodes(onnx: Any, nodes: Iterable[Any]) -> None:
    for node in nodes:
        if node.op_type in LOOPS:
            raise ValueError(f"the operator {node.op_type}, which may never end")
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(onnx, tensor)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                _check_tensor(onnx, sparse.values)
                _check_tensor(onnx, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                _check_tensors(onnx, graph)


def _check_tensors(onnx: Any, graph: Any) -> None:
    for tensor in graph.initializer:
        _check_tensor(onnx, tensor)
    for sparse in graph.sparse_initializer:
        _check_tensor(onnx, sparse.values)
        _check_tensor(onnx, sparse.indices)


def _check_tensor(onnx: Any, tensor: Any) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
        raise ValueError("its weights are in other files, and should be inside it")
