"""What a function does while training beside what it does otherwise.

Both are read. What may differ is a batch norm: its node in the Graph of inference is left open
(``MODE``), with the momentum and the variance that the training function's assignments have. Then
the two have to be the same numbers, or the model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import MODE, Graph, UnsupportedError
from trivium.interpret import Interpreter
from trivium.shape import subs

Numbers = dict[str, Any]


def joined(evaluation: Graph, training: Graph, values: Numbers) -> Graph:
    """One Graph that is ``evaluation`` and, with its mode on, ``training``."""
    if not evaluation.same_as(training):
        rates, norms = _rates(training, values), []
        for node in (n for n in evaluation.nodes if n.op == "batch_norm"):
            for state, new in zip(node.inputs[3:], node.outputs[1:], strict=True):
                if state is not None and state.name in rates:
                    node.attrs |= {"training": MODE, "momentum": rates[state.name]}
                    state.kind, state.trainable = "state", True
                    evaluation.updates[state] = new
                    norms.append(node)
        wanted = _numbers(training, values)
        for unbiased in (False, True):
            for node in norms:
                node.attrs["unbiased"] = unbiased
            if norms and _close(_numbers(evaluation, values), wanted):
                break
        else:
            raise UnsupportedError(
                "training and inference differ in more than batch norm", evaluation.name,
                "read one mode: lambda x: model(x, training=False)",
            )  # fmt: skip
    return evaluation


def _numbers(graph: Graph, values: Mapping[str, Any]) -> Numbers:
    """Outputs by their places and new states by their names, while training, at one point."""
    dims = {name: 3 + i for i, name in enumerate(sorted(graph.dims()))}
    rng, inputs = np.random.default_rng(5), []
    for v in graph.inputs:
        shape = tuple(int(subs(s, dims)) for s in v.shape)
        drawn = rng.standard_normal(shape) if v.kind == "data" and v.dtype.is_floating else None
        inputs.append(values[v.name] if v.kind != "data" else
                      np.zeros(shape, v.dtype.numpy) if drawn is None else drawn)  # fmt: skip
    found = Interpreter(graph, dt.float64, True)(*inputs)
    names = [*map(str, range(len(graph.outputs))), *(v.name for v in graph.updates)]
    return dict(zip(names, found, strict=True))


def _rates(graph: Graph, values: Numbers) -> dict[str, float]:
    """How much of a batch enters each state: 1 less what one more of the state adds to the new."""
    names = [v.name for v in graph.updates]
    more = values | {n: values[n].astype(np.float64) + 1 for n in names}
    before, after = _numbers(graph, values), _numbers(graph, more)
    return {n: round(float(1 - np.mean(after[n] - before[n])), 7) for n in names}


def _close(a: Numbers, b: Numbers) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[n], b[n], 1e-6, 1e-8) for n in a)
