"""Tracing a model with every size open that it leaves open, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trivium.graph import Graph
from trivium.nn.module import trace
from trivium.shape import Dim, Size, axis_name
from trivium.tensor import Spec, asarray, spec_of
from trivium.transforms.replay import specialize

Axis = tuple[int, int]


def open_trace(function: Callable[..., Any], *examples: Any, name: str | None = None) -> Graph:
    """The Graph of a function or module on inputs like ``examples``, arrays or Specs.

    The first size of an array is ``batch``. Another stays open (``length``, ``height``, ...) where
    the model can be traced with it open and is then, at the size of the example, the same Graph: no
    weight fixes it, and nothing in the model asks for it as a number. What a Spec says stays.

    >>> import numpy as np
    >>> import trivium as tv
    >>> mean = lambda x: tv.sum(x, axis=1) / x.shape[1]
    >>> open_trace(mean, np.zeros((2, 5), np.float32)).inputs[0].shape
    (batch, length)
    """
    shapes: list[list[Size]] = []
    arrays: dict[int, Any] = {}
    for i, example in enumerate(examples):
        said = isinstance(example, Spec) or (isinstance(example, tuple) and len(example) == 2)
        arrays |= {} if said else {i: asarray(example)}
        shapes.append(list(spec_of(example, batch=True).shape))

    def traced(opened: dict[Axis, Size]) -> Graph:
        kinds = [spec_of(x).dtype for x in examples]
        sizes = [
            tuple(opened.get((i, a), s) for a, s in enumerate(shape))
            for i, shape in enumerate(shapes)
        ]
        return trace(function, *map(Spec, kinds, sizes), name=name)

    opened: dict[Axis, Size] = {}
    graph, given = traced(opened), dict[str, int]()
    axes = [(i, a) for i, x in arrays.items() for a in range(1, x.ndim) if x.shape[a] > 1]
    for i, a in axes:
        size = arrays[i].shape[a]
        alike = [(j, b) for j, b in axes if arrays[j].shape[b] == size and (j, b) not in opened]
        if (i, a) not in alike:
            continue
        wish = axis_name(a, arrays[i].ndim)
        word = f"{wish}_{n}" if (n := sum(k.startswith(wish) for k in given)) else wish
        for group in ([(i, a)], alike) if len(alike) > 1 else ([(i, a)],):
            wider = opened | dict.fromkeys(group, Dim(word))
            try:
                attempt = traced(wider)
            except Exception:  # whatever forward() makes of a size that is no number
                continue
            if specialize(attempt, {word: size}).same_as(graph):
                opened, graph = wider, attempt
                given[word] = size
                break
    graph.sizes = given
    return graph
