"""What a model says beside its numbers: what is frozen, in which dtypes, how often dropout drops,
what its outputs are called, which sizes are open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import OPS, Graph
from trivium.proof.report import Row
from trivium.proof.witness import Side, equal
from trivium.shape import Dim


def _row(name: str, source: Any, target: Any, whose: str = "") -> Row:
    """A row that says whether two things are equal; ``whose`` was not read as it is."""
    what = ("said", name, "model")
    if source == target:
        return Row.same(*what)
    return Row.differs(*what, [whose], f"{_said(source)} against {_said(target)}")


def _said(item: Any) -> str:
    return "nothing" if item is None else str(item)


def rates(graph: Graph) -> list[float]:
    """The rates of the dropouts that are on while training, in the order they are called in."""
    found = (n for n in graph.nodes if OPS[n.op].drops and n.attrs["training"] is not False)
    each = (float(n.attrs[OPS[n.op].drops]) for n in found)
    return [rate for rate in each if rate]  # one of 0 drops nothing


def _names(graph: Graph) -> Any:
    """The outputs' names, where they have any, else how many there are."""
    named = isinstance(graph.structure, tuple)
    return graph.structure if named else len(graph.outputs)


def _open(graph: Graph) -> list[tuple[bool, ...]]:
    return [tuple(isinstance(s, Dim) for s in v.shape) for v in graph.of_kind("data")]


def compared(a: Graph, b: Graph, trains: bool) -> Iterator[Row]:
    """Two readings side by side; what only training asks for, if both are models that train."""
    yield _row("outputs", _names(a), _names(b))
    if trains:
        yield _row("dropout rates", rates(a), rates(b))
    for kind, of in (("dtype", _dtypes), ("trained", _trained))[: 1 + trains]:
        mine, theirs = of(a), of(b)
        differing = [n for n in mine if n in theirs and mine[n] != theirs[n]]
        for name in differing or ["every parameter"]:
            yield _row(f"{kind}: {name}", mine.get(name), theirs.get(name))
    for i, (v, x, y) in enumerate(zip(a.of_kind("data"), _open(a), _open(b), strict=False)):
        yield _row(f"open batch of input {v.name or i}", x[:1], y[:1])
    kinds = [[str(v.dtype) for v in g.of_kind("data")] for g in (a, b)]
    yield _row("dtypes of inputs", kinds[0], kinds[1])
    made = [[str(v.dtype) for v in g.outputs] for g in (a, b)]
    yield _row("dtypes of outputs", made[0], made[1])


def _trained(graph: Graph) -> dict[str, bool]:
    return {v.name: v.kind == "param" and v.trainable for v in graph.of_kind("param", "state")}


def _dtypes(graph: Graph) -> dict[str, str]:
    return {v.name: str(v.dtype) for v in graph.of_kind("param", "state")}


def itself(side: Side, inputs: Sequence[Any], whose: str) -> Iterator[Row]:
    """What the real model says, beside what was read of it: flags, dtypes, rates, names."""
    graph, runner = side.graph, side.runner
    if (says := getattr(runner, "trained", None)) is not None:
        yield from _both("trained", says(), _trained(graph), whose)
    if held := runner.values():
        # MXNet has no bool, JAX no int64: such numbers are compared, bit by bit, as they are.
        kinds = {n: dt.as_dtype(a.dtype) for n, a in held.items()}
        dtypes = {n: str(d) for n, d in kinds.items() if d.is_floating}
        yield from _both("dtype", dtypes, _dtypes(graph), whose)
        for name in side.values.keys() ^ held.keys():
            yield _row(
                f"parameter {name}", name in held or None, name in side.values or None, whose
            )
        for name, array in held.items():
            if not equal(array, side.values[name]):
                yield _row(f"numbers: {name}", "other numbers", "as read", whose)
    if (quiet := getattr(runner, "quiet", None)) is not None:
        with quiet() as dropped, contextlib.suppress(Exception):  # the rows of outputs say what
            runner.outputs(inputs, True)
        near = [[round(r, 6) for r in found] for found in (dropped, rates(graph))]
        yield _row("dropout rates", near[0], near[1], whose)
    names, read = getattr(runner, "structure", ()), _names(graph)
    if (names and (names := tuple(names))) or (names is None and isinstance(read, tuple)):
        yield _row("outputs", names or "no names", read, whose)


def dtypes(side: Side, outputs: Mapping[str, Any], whose: str) -> Row:
    """The dtypes that a real model's outputs have, beside those that were read."""
    lacks: Mapping[str, str] = getattr(side.runner, "lacks", {})
    read = [lacks.get(str(v.dtype), str(v.dtype)) for v in side.graph.outputs]
    real = [str(dt.as_dtype(np.asarray(a).dtype)) for a in outputs.values() if a is not None]
    real = [lacks.get(d, d) for d in real]
    return _row(f"dtypes of {whose}", real, read, whose)


def _both(kind: str, real: Mapping[str, Any], read: Mapping[str, Any], whose: str) -> Iterator[Row]:
    wrong = [n for n in read if n in real and real[n] != read[n]]
    for name in wrong or ["every parameter"]:
        yield _row(f"{kind}: {name}", real.get(name), read.get(name), whose)
