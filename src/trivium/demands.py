"""What a Graph demands of the data it is given, asked once, before any engine has it.

Engines differ in what they make of a wrong batch: one raises in words of its own, one broadcasts,
one clips a label to the last class. So the number, dtypes and sizes of the inputs are compared with
the Graph's here, and so is what its ops declare of the numbers in an array (``checks``), wherever
those numbers follow from the data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trivium.dtype import as_dtype
from trivium.graph import OPS, Graph, Node, Type, Value
from trivium.interpret import Interpreter
from trivium.recent import Recent
from trivium.shape import Dim, bind, subs
from trivium.traits import Check
from trivium.transforms.replay import prune, replay


class Demands:
    """The demands of a Graph whose data inputs are called ``names`` in what is said.

    >>> import numpy as np
    >>> import trivium as tv
    >>> loss = tv.trace(tv.cross_entropy, ("float32", ("batch", 3)), ("int64", ("batch",)))
    >>> demands = Demands(loss, ["scores", "y"])
    >>> demands.sizes([np.zeros((2, 3), "f"), np.zeros(4, int)])
    Traceback (most recent call last):
    trivium.shape.ShapeError: y has shape (4,), but 'batch' is already 2 elsewhere
    """

    def __init__(self, graph: Graph, names: Sequence[str]):
        self._data, self._names = graph.of_kind("data"), list(names)
        self._checks: list[tuple[Node, Check, Callable[[Sequence[Any]], Any]]] = []
        for node in graph.nodes:
            for name, check in OPS[node.op].checks.items():
                value = node.inputs[OPS[node.op].arrays.index(name)]
                if value is not None and _is_data(value):
                    self._checks.append((node, check, _reader(graph, value, self._data)))
        self._types = Recent(16)
        self.of_numbers = bool(self._checks)
        """Is anything demanded of the numbers, so that :meth:`numbers` has to be asked?"""

    def sizes(self, arrays: Sequence[Any]) -> None:
        """Raise unless the arrays are as many, of the dtypes and of the sizes that are wanted."""
        self._env(arrays)

    def _env(self, arrays: Sequence[Any]) -> dict[str, int]:
        if len(arrays) != len(self._data):
            wanted = ", ".join(self._names)
            raise TypeError(f"wants {len(self._data)} arrays ({wanted}), got {len(arrays)}")
        env: dict[str, int] = {}
        for name, value, array in zip(self._names, self._data, arrays, strict=True):
            dtype = as_dtype(array.dtype)
            if dtype != value.dtype and not (dtype.is_floating and value.dtype.is_floating):
                raise TypeError(f"{name} wants {value.dtype}, got {dtype}")
            bind(value.shape, array.shape, env, name)
        return env

    def numbers(self, arrays: Sequence[Any]) -> None:
        """Raise unless the arrays hold numbers that the Graph's ops can take."""
        shapes = tuple([a.shape for a in arrays])
        types = self._types.get(shapes, lambda: self._bound(arrays))
        for (node, check, read), those in zip(self._checks, types, strict=True):
            check(read(arrays), those, node.attrs)

    def _bound(self, arrays: Sequence[Any]) -> list[list[Type | None]]:
        env = self._env(arrays)

        def type_of(value: Value | None) -> Type | None:
            if value is None:
                return None
            shape = (subs(s, env) if isinstance(s, Dim) else s for s in value.shape)
            return Type(value.dtype, tuple(shape))

        return [[type_of(v) for v in node.inputs] for node, *_ in self._checks]


def _is_data(value: Value) -> bool:
    """Does a Value follow from the data alone?"""
    seen: set[Value] = set()
    stack = [value]
    while stack:
        v = stack.pop()
        if v.node is None and v.kind != "data":
            return False
        if v.node is not None and v not in seen:
            seen.add(v)
            stack += [x for x in v.node.inputs if x is not None]
    return True


def _reader(graph: Graph, value: Value, data: list[Value]) -> Callable[[Sequence[Any]], Any]:
    """What gives the numbers of ``value``, which follow from the data alone."""
    for place, v in enumerate(data):
        if v is value:
            return lambda arrays: arrays[place]
    part, env = replay(graph)
    part.outputs, part.updates = [env[value]], {}  # type: ignore[list-item]
    prune(part)
    part.inputs = [env[v] for v in data]  # type: ignore[misc]  # all: one may say an open size
    run = Interpreter(part, training=True)
    return lambda arrays: run(*arrays)[0]
