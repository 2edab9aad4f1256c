"""A traced TensorFlow function, walked operator by operator.

What stands for a tensor is a Value, an array that is known (it may hold open sizes, Dims) or a
variable, Held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype
from trivium.frameworks.tensorflow.sizes import fold
from trivium.frameworks.words import Call
from trivium.graph import Graph, Type, UnsupportedError, Value
from trivium.shape import Dim

CALLED = {"PartitionedCall", "StatefulPartitionedCall"}
IDLE = {"Identity", "IdentityN", "EnsureShape"}
SILENT = {"NoOp", "Assert", "PrintV2"}
"""What gives nothing and changes no number."""
_SAME = {"use_cudnn_on_gpu", "validate_indices", "validate_shape", "shape_hint", "unknown_batch"}
"""Attributes that say how numbers are computed, never which."""


class Walk:
    """One function on its way into a Graph."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.calls: dict[Value, Call] = {}
        self.op: Any = None

    def run(self, traced: Any, items: Sequence[Any]) -> list[Any]:
        """All operators that results or variables need; the outputs."""
        env = dict(zip((t.name for t in traced.inputs), items, strict=True))
        for op in _needed(traced):
            if not op.outputs or op.outputs[0].name not in env:
                given, self.op = [env[t.name] for t in op.inputs], op
                env |= zip((t.name for t in op.outputs), self.operator(op, given), strict=True)
        return [env[t.name] for t in traced.outputs]

    def operator(self, op: Any, given: list[Any]) -> Sequence[Any]:
        """What one operator gives."""
        if op.type in CALLED:
            inside = op.graph._get_function(op.get_attr("f").name).graph
            # TensorFlow adds outputs to what was differentiated.
            return self.run(inside, given)[: len(op.outputs)]
        if op.type in IDLE or op.type in SILENT:
            return given[: len(op.outputs)]
        attrs = {a.name: plain(op.get_attr(a.name)) for a in op.op_def.attr
                 if a.name not in _SAME | _inferred(op.op_def)}  # fmt: skip
        try:
            if (known := fold(op.type, given, attrs)) is not None:
                return [known]
            call = Call(op.type, dict(enumerate(given)) | attrs, ())
            results = self.translate(call, given, attrs)
        except (TypeError, ValueError, LookupError) as error:
            if isinstance(error, UnsupportedError):
                raise
            raise self.refuse(f"the operator {op.type}: {error}") from error
        for value, tensor in zip(results, op.outputs, strict=True):
            if isinstance(value, Value) and not fits(value.type, tensor):
                there = f"{tensor.dtype.name}{tensor.shape}"
                raise self.refuse(f"{op.type}, {there} in TensorFlow and {value.type} here")
        if results and isinstance(results[0], Value):
            self.calls.setdefault(results[0], call)
        return results

    def translate(self, call: Call, given: list[Any], attrs: dict[str, Any]) -> Sequence[Any]:
        """What an operator is here: nothing but a call that was noted."""
        return self.nobody()

    def nobody(self) -> list[Value]:
        """Values that nothing here makes."""
        sizes = [() if t.shape.rank is None else t.shape for t in self.op.outputs]
        types = [Type(self.dtype(t), tuple(Dim("batch") if s is None else s for s in shape))
                 for t, shape in zip(self.op.outputs, sizes, strict=True)]  # fmt: skip
        return [Value(self.graph, t, None, i) for i, t in enumerate(types)]

    def dtype(self, tensor: Any) -> DType:
        """A tensor's dtype, if there is such a one here."""
        try:
            return as_dtype(tensor.dtype.name)
        except TypeError:
            what = f"a tensor of dtype {tensor.dtype.name}"
            raise UnsupportedError(what, f"{self.graph.name}, {tensor.op.name}") from None

    def refuse(self, what: str, remedy: str = "") -> UnsupportedError:
        """The error that says that this operator cannot be carried."""
        remedy = remedy or "write it with functions that are carried (docs/coverage.md)"
        return UnsupportedError(what, f"{self.graph.name}, {self.op.name}", remedy)


def _needed(traced: Any) -> Iterator[Any]:
    """The operators that results, or what has to happen, depend on; in their order."""
    todo, seen = [*(t.op for t in traced.outputs), *traced.control_outputs], set()
    while todo:
        op = todo.pop()
        if op.name not in seen:
            seen.add(op.name)
            todo += [t.op for t in op.inputs] if op.type not in SILENT else []
    return (op for op in traced.get_operations() if op.name in seen and op.type not in SILENT)


def fits(kind: Type, tensor: Any) -> bool:
    """Is this the type of a tensor, whose sizes may be unknown there?"""
    sizes = kind.shape if tensor.shape.rank is None else tuple(tensor.shape)
    alike = (b is None or a == b or isinstance(a, Dim)
             for a, b in zip(kind.shape, sizes, strict=False))  # fmt: skip
    return kind.dtype == str(tensor.dtype.name) and len(kind.shape) == len(sizes) and all(alike)


def plain(value: Any) -> Any:
    """An attribute of an operator as Python says it; float32's digits."""
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        return float(str(np.float32(value)))
    return DType(value.name) if hasattr(value, "as_numpy_dtype") else value


def _inferred(op_def: Any) -> set[str]:
    """The attributes that the inputs say: their types, and how many they are."""
    return {n for a in op_def.input_arg for n in (a.type_attr, a.type_list_attr, a.number_attr)}


def told(op: Any, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that are not at their default."""
    defaults = {a.name: a.default_value for a in op.op_def.attr if a.HasField("default_value")}
    said = {k: _default(v) for k, v in defaults.items()}
    return {k: v for k, v in attrs.items() if said.get(k) is None or v != said[k]}


def _default(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "list":
        several = value.list
        return tuple(map(plain, [*several.i, *several.f, *several.b, *several.s]))
    return None if kind == "type" else plain(getattr(value, kind))
