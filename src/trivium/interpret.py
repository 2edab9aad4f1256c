"""The oracle: a Graph evaluated on NumPy, in its own dtypes or wholly in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType
from trivium.graph import Graph
from trivium.op import run
from trivium.recent import Recent
from trivium.shape import Dim, ShapeError, bind, subs
from trivium.transforms.replay import specialize


def bound_dims(graph: Graph, arrays: Sequence[Any]) -> dict[str, int]:
    """What the open sizes of ``graph`` are for these arrays, one per input."""
    env: dict[str, int] = {}
    for value, array in zip(graph.inputs, arrays, strict=True):
        bind(value.shape, array.shape, env, f"input {value.name!r}")
    return env


def traced_dims(graph: Graph, args: tuple[Any, ...]) -> dict[str, Any]:
    """What the Graph's open sizes are for these arguments, themselves perhaps traced and open."""
    env: dict[str, Any] = {}
    for value, arg in zip(graph.of_kind("data"), args, strict=True):
        if arg.dtype != value.dtype and not (arg.dtype.is_floating and value.dtype.is_floating):
            raise TypeError(f"input {value.name!r} wants {value.dtype}, got {arg.dtype}")
        if len(arg.shape) != len(value.shape):
            raise ShapeError(f"input {value.name!r} wants shape {value.shape}, got {arg.shape}")
        if all(isinstance(s, int) for s in arg.shape):
            bind(value.shape, arg.shape, env, f"input {value.name!r}")
            continue
        for want, got in zip(value.shape, arg.shape, strict=True):
            if isinstance(want, Dim) and want == Dim(n := next(iter(want.names()))):
                env.setdefault(n, got)
        for want, got in zip(value.shape, arg.shape, strict=True):
            if subs(want, env) != got:
                raise ShapeError(f"input {value.name!r} wants shape {value.shape}, got {arg.shape}")
    return env


class Interpreter:
    """A Graph made callable on NumPy arrays: ``Interpreter(graph)(*inputs) -> [results]``.

    ``floating="float64"`` computes every floating Value in float64. Specialisations by size are
    kept. The results are the outputs and then what the states become.
    """

    def __init__(self, graph: Graph, floating: DType | None = None, training: bool | None = None):
        self.graph, self.floating, self.training = graph, floating, training
        self._special = Recent(64)

    def __call__(self, *arrays: Any) -> list[Any]:
        arrays = tuple(np.asarray(a) for a in arrays)
        if len(arrays) != len(self.graph.inputs):
            raise TypeError(f"{self.graph!r} got {len(arrays)} arrays")
        for value, array in zip(self.graph.inputs, arrays, strict=True):
            got = dt.as_dtype(array.dtype)
            if got != value.dtype and not (got.is_floating and value.dtype.is_floating):
                raise TypeError(f"input {value.name!r} wants {value.dtype}, got {got}")
        dims = bound_dims(self.graph, arrays)
        special: Graph = self._special.get(
            tuple(sorted(dims.items())),
            lambda: specialize(self.graph, dims, self.training, self.floating),
        )
        cast = [
            a.astype(v.dtype.numpy, copy=False) for v, a in zip(special.inputs, arrays, strict=True)
        ]
        with np.errstate(all="ignore"):
            return [np.asarray(r) for r in run(special, cast)]
