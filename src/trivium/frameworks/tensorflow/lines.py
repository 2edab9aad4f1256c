"""The lines of the declarations backwards: each is traced, and what it becomes is looked for.

A line (``tf.nn.gelu({x})``) traced on its op's own cases says of which operators it is made, and
where they have the op's attributes. What is found is traced once more, on the types at hand: only
if that gives the very same operators is it our op.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.tensorflow.run import load_tensorflow
from trivium.frameworks.tensorflow.sizes import Held
from trivium.frameworks.tensorflow.walk import Walk
from trivium.frameworks.words import Call, Hole, filled, lines
from trivium.graph import OPS, Graph, Type, Value
from trivium.op import Op
from trivium.shape import Dim

_LAYERS = {
    "batch_norm": "tf.nn.batch_normalization({x}, {running_mean}, {running_var}, {bias}, {scale}, "
    "{epsilon})"
}
"""What the source has as layers, and people write."""


_ANY = Hole("")
"""Sizes and places, which are others for other types."""


class Line(NamedTuple):
    """An op, the attributes that it has wherever this is found, and the call that it is."""

    op: Op
    fixed: dict[str, Any]
    call: Call
    text: str

    @property
    def plain(self) -> bool:
        """Is it one operator, whose attributes are the op's?"""
        parts = self.call.given.values()
        return not self.fixed and not any(isinstance(v, Call) or v is _ANY for v in parts)


def words() -> dict[str, list[Line]]:
    """For each operator the ops whose lines end in it; what says more comes first."""
    return _words(frozenset(OPS))


@functools.lru_cache(maxsize=1)
def _words(ops: frozenset[str]) -> dict[str, list[Line]]:
    """The same for the ops that there are now."""
    more: Any = [(OPS[n], {"training": False, "axis": -1}, t) for n, t in _LAYERS.items()]
    found: dict[str, dict[str, Line]] = {}
    for op, fixed, text in (*lines("tensorflow"), *more):
        for case in op.cases:
            types = tuple(s and Type(as_dtype(s.dtype), s.shape) for s in case.arrays)
            attrs = op.defaults | case.attrs | fixed
            if (call := traced(op, text, attrs, types)) is not None:
                free: set[str] = set()
                call = _opened(call, attrs, free)
                rest = {k: v for k, v in attrs.items() if k not in free}
                line = Line(op, rest, call, text)
                found.setdefault(call.name, {})[str(line)] = line
    return {name: sorted(of.values(), key=lambda line: -str(line.call).count("Call("))
            for name, of in found.items()}  # fmt: skip


def _opened(item: Any, attrs: Mapping[str, Any], free: set[str]) -> Any:
    """The call with a hole wherever an attribute stands."""
    if isinstance(item, Call):
        given = {k: _opened(v, attrs, free) for k, v in item.given.items()}
        return Call(item.name, given, ())
    for name, value in attrs.items():
        if not isinstance(item, Hole) and value is not None and alike(item, value):
            free.add(name)
            return Hole(name)
    return _ANY if isinstance(item, np.ndarray) and item.ndim and item.dtype.kind != "f" else item


_kept: dict[Any, Call | None] = {}


def traced(op: Op, text: str, attrs: Mapping[str, Any], types: Any) -> Call | None:
    """What a line becomes on these types, with holes for its arrays; kept."""
    key = (op.name, str(attrs), types)
    if key not in _kept:
        _kept[key] = _traced(op, text, attrs, types)
    return _kept[key]


def _traced(op: Op, text: str, attrs: Mapping[str, Any], types: Any) -> Call | None:
    tf, graph = load_tensorflow(), Graph()
    held = {a: graph.input("data", t.dtype, t.shape, a)
            for a, t in zip(op.arrays, types, strict=False) if t}  # fmt: skip
    specs = [tf.TensorSpec([None if isinstance(s, Dim) else s for s in v.shape], str(v.dtype))
             for v in held.values()]  # fmt: skip
    walk, names = Walk(graph), {a: a if a in held else "None" for a in op.arrays}
    try:
        full, _ = op.settle(types, attrs)
        full |= {k: (v,) if isinstance(full[k], tuple) and isinstance(v, int) else v
                 for k, v in attrs.items() if v is not None}  # as it was said: -1  # fmt: skip
        source = f"lambda {', '.join(held)}: {filled(op, text, names, full)}"
        function = tf.function(eval(source, {"tf": tf}), autograph=False)  # our declaration
        (out,) = walk.run(function.get_concrete_function(*specs).graph, list(held.values()))
    except Exception:  # a helper of the source, or types that TensorFlow does not take
        return None
    holes = {v: Hole(a) for a, v in held.items()}

    def tree(item: Any) -> Any:
        if isinstance(item, Call):
            return Call(item.name, {k: tree(v) for k, v in item.given.items()}, ())
        if isinstance(item, Value):
            return holes[item] if item in holes else tree(walk.calls[item])
        return item

    found = tree(out)
    return found if isinstance(found, Call) else None


def match(wanted: Any, item: Any, calls: Mapping[Value, Call], found: dict[str, Any]) -> bool:
    """Is it such a call? What stands in the holes goes to ``found``."""
    if isinstance(wanted, Hole):
        return wanted is _ANY or alike(found.setdefault(wanted.name, item), item)
    if isinstance(wanted, Call):
        call = calls.get(item) if isinstance(item, Value) else item
        return isinstance(call, Call) and call.name == wanted.name and all(
            k in call.given and match(w, call.given[k], calls, found)
            for k, w in wanted.given.items()
        )  # fmt: skip
    return alike(wanted, item)


def alike(a: Any, b: Any) -> bool:
    """The same Value, or the same numbers to float32's digits."""
    if isinstance(a, (Value, Held)) or isinstance(b, (Value, Held)):
        return a is b
    x, y = (np.ravel(np.float32(i) if isinstance(i, float) else i) for i in (a, b))
    return (x.dtype == bool) == (y.dtype == bool) and np.array_equal(x, y)
