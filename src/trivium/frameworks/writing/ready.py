"""A Graph made ready to be written down: states in turn, arrays as formulas, numbers in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype, bool_, int64
from trivium.frameworks.writing.blocks import parent
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value
from trivium.op import run
from trivium.shape import Dim
from trivium.transforms.replay import prune, replay

Array = np.ndarray[Any, Any]

FEW = 32
"""An array of at most so many numbers is written as a list even where it follows a pattern."""
MANY = 1000
"""An array of more numbers that follows none is not written, but goes with the model."""


def in_turn(graph: Graph) -> Graph:
    """A batch norm called again goes on from what its last call collected.

    In the Graph it reads the outputs of that call; here it reads the state itself, as in frameworks
    whose layers hold their statistics.
    """
    stands: dict[Value | None, Value] = {}  # what a batch norm made of a state -> the state
    last: dict[Value, Value] = {}  # state -> what its last batch norm makes of it

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        if node.op != "batch_norm" or node.attrs["training"] is False:
            return None
        states = [stands.get(old, v) for old, v in zip(node.inputs[3:], values[3:], strict=True)]
        outputs: tuple[Value, ...] = OPS["batch_norm"].append(
            new, [*values[:3], *states], node.attrs, node.origin
        )
        for old, made, before, state in zip(
            node.inputs[3:], outputs[1:], node.outputs[1:], states, strict=False
        ):
            if state is None or state.kind != "state":
                continue
            if state in last and old not in stands:
                raise UnsupportedError(
                    f"two batch norms that collect {state.name} side by side", node.scope
                )
            stands[before], last[state] = state, made
        return outputs

    new, _ = replay(graph, rule)
    for state, made in last.items():
        if new.updates.get(state) is not made:
            where = made.node.scope if made.node else ""
            raise UnsupportedError(
                f"the statistic {state.name} is not updated by its last batch norm", where
            )
    return new


# -- numbers ---------------------------------------------------------------------------------------
def is_number(value: Value | None) -> bool:
    """Is it a ``full`` without axes, whose value is known?"""
    return (
        value is not None and value.node is not None and value.node.op == "full"
        and value.shape == () and not isinstance(value.node.attrs["value"], Dim)
    )  # fmt: skip


def _plainly(value: Any, dtype: DType) -> Any:
    """A number as Python writes one of this dtype: the shortest decimal that rounds to it."""
    if isinstance(value, Dim):
        return value
    if dtype == bool_:
        return bool(value)
    return float(str(value)) if dtype.is_floating else int(value)


def numbers_where_used(graph: Graph) -> Graph:
    """Every number made anew beside each node that reads it, in that node's scope.

    An op of numbers alone is a number too: Python would compute it in Python's own precision, and
    give no array where a function wants one.
    """

    def number(new: Graph, dtype: DType, value: Any) -> Value:
        attrs = {"shape": (), "value": _plainly(value, dtype), "dtype": dtype}
        made: Value = OPS["full"].append(new, (), attrs)[0]
        return made

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        if node.op == "full":
            attrs = node.attrs | {"value": _plainly(node.attrs["value"], node.attrs["dtype"])}
            return list(OPS["full"].append(new, (), attrs, node.origin))
        if node.op == "constant" and node.out.shape == ():
            return [number(new, node.out.dtype, node.attrs["value"])]
        if values and all(map(is_number, values)) and [v.shape for v in node.outputs] == [()]:
            alone = Graph("number")
            with alone:
                copies = [number(alone, v.dtype, v.node.attrs["value"])
                          for v in values if v is not None and v.node is not None]  # fmt: skip
                alone.outputs = list(OPS[node.op].append(alone, copies, node.attrs))
            with np.errstate(all="ignore"):
                (value,) = run(alone, [])
            return [number(new, node.out.dtype, np.asarray(value)[()])]
        fresh = [number(new, v.dtype, v.node.attrs["value"])
                 if v is not None and v.node is not None and v.node.op == "full" and v.shape == ()
                 else v for v in values]  # fmt: skip
        outputs: Sequence[Value] = OPS[node.op].append(new, fresh, node.attrs, node.origin)
        return outputs

    new, _ = replay(graph, rule)
    return prune(new)


# -- arrays ----------------------------------------------------------------------------------------
def arrays_written(graph: Graph) -> tuple[Graph, dict[str, Array]]:
    """Constants as formulas where they follow a pattern; the large others as states, by name.

    The numbers of a formula are bit for bit those of the array.
    """
    kept: dict[str, Array] = {}
    names = {v.name for v in graph.inputs}

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        array = node.attrs["value"] if node.op == "constant" else np.zeros(())
        if array.size <= FEW:
            return None
        if (made := _formula(array)) is not None:
            return [made]
        if array.size <= MANY:
            return None
        name = _free(".".join(filter(None, (node.scope, "constant"))), {*names, *kept})
        kept[name] = array
        return [new.input("state", node.out.dtype, node.out.shape, name=name)]

    return replay(graph, rule)[0], kept


def _free(wish: str, names: set[str]) -> str:
    """``wish``, or the first of ``wish_1``, ``wish_2``, ... that nothing is called yet."""
    scopes = {s for n in names for s in _around(n)}
    name, n = wish, 0
    while name in names or name in scopes:
        name, n = f"{wish}_{n + 1}", n + 1
    return name


def _around(name: str) -> list[str]:
    above = parent(name)
    return [above, *_around(above)] if above else []


def _formula(array: Array) -> Any:
    """The array in ops, if it is one number, counts, or is cut by a diagonal; else None."""
    core = array
    for axis in range(array.ndim):  # an axis along which nothing changes is of size 1
        first = core.take([0], axis)
        core = first if _same(np.broadcast_to(first, core.shape), core) else core
    varying = tuple(n for n in core.shape if n != 1)
    if len(varying) > 2:
        return None
    flat = core.reshape(varying)
    if not varying:
        attrs = {"value": _plainly(flat[()], _dtype(array)), "dtype": _dtype(array)}
        return OPS["full"](shape=array.shape, **attrs)
    made = _counted(flat)
    made = _cut(flat) if made is None else made
    if made is None:
        return None
    made = made if varying == core.shape else OPS["reshape"](made, shape=core.shape)
    return made if core.shape == array.shape else OPS["broadcast_to"](made, shape=array.shape)


def _dtype(array: Array) -> DType:
    return as_dtype(array.dtype)


def _same(a: Array, b: Array) -> bool:
    """Bit for bit."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _indices(shape: tuple[int, ...]) -> list[Any]:
    """0, 1, 2, ... along each axis, to be broadcast against each other."""
    rows = OPS["arange"](stop=shape[0], dtype=int64)
    if len(shape) == 1:
        return [rows]
    return [OPS["reshape"](rows, shape=(shape[0], 1)), OPS["arange"](stop=shape[1], dtype=int64)]


def _counted(array: Array) -> Any:
    """start + step * i (+ step * j), in whole numbers."""
    if array.dtype == np.bool_ or array.dtype.kind == "c" or not np.isfinite(array).all():
        return None
    start = array.flat[0]
    steps = [int(array.take(1, a).flat[0] - start) for a in range(array.ndim)]
    grid = np.tensordot(np.array(steps), np.indices(array.shape), 1)
    whole = float(start).is_integer() and float(np.abs(array).max()) < 2.0**24
    if not whole or not _same((int(start) + grid).astype(array.dtype), array):
        return None
    made: Any = None
    if array.ndim == 1:
        stop = int(start) + steps[0] * len(array)
        made = OPS["arange"](start=int(start), stop=stop, step=steps[0], dtype=int64)
    else:
        for step, i in zip(steps, _indices(array.shape), strict=True):
            term = i if step == 1 else i * step
            made = term if made is None else made + term
        made = made + int(start) if start else made
    return made if _dtype(array) == int64 else OPS["cast"](made, dtype=_dtype(array))


def _cut(array: Array) -> Any:
    """One number here, another there: up to a place, or on one side of a diagonal, or near it."""
    numbers = list({x.tobytes(): x for x in array.flat}.values())
    if len(numbers) != 2:
        return None
    grid = np.indices(array.shape)
    behind = grid[-1] - (grid[0] if array.ndim == 2 else 0)  # how far behind the diagonal, or start
    for there, here in (numbers, numbers[::-1]):
        place = np.array([x.tobytes() == there.tobytes() for x in array.flat]).reshape(array.shape)
        low, high = int(behind[place].min()), int(behind[place].max())
        if np.array_equal(place, (behind >= low) & (behind <= high)):
            hit = _between(array.shape, low, high, int(behind.min()), int(behind.max()))
            if array.dtype == np.bool_:
                return hit if there else OPS["logical_not"](hit)
            dtype = _dtype(array)
            branches = [OPS["full"](shape=(), value=_plainly(x, dtype), dtype=dtype)
                        for x in (there, here)]  # fmt: skip
            return OPS["where"](hit, *branches)
    return None


def _between(shape: tuple[int, ...], low: int, high: int, least: int, most: int) -> Any:
    """Where a place is ``low`` to ``high`` behind the diagonal; it is ``least`` to ``most``."""
    *rows, columns = _indices(shape)

    def beside(distance: int) -> Any:
        if not rows:
            return distance
        return rows[0] + distance if distance > 0 else rows[0] - -distance if distance else rows[0]

    if low == high and low not in (least, most):
        return OPS["equal"](columns, beside(low))
    conditions = [OPS["greater_equal"](columns, beside(low))] if low > least else []
    conditions += [OPS["less_equal"](columns, beside(high))] if high < most else []
    return conditions[0] if len(conditions) == 1 else OPS["logical_and"](*conditions)


__all__ = ["FEW", "MANY", "arrays_written", "in_turn", "is_number", "numbers_where_used"]
