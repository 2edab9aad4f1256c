"""A Keras model, or the one in a ``.keras`` file, and our reading of it.

The model is read twice, training and not. Where the two differ in nothing but the flag of a dropout
or a batch norm, that flag is left open (``training=MODE``); all else is refused.

What belongs to the training objective (regularizers, constraints) is no part of a Graph.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from trivium.frameworks.keras.files import open_file
from trivium.frameworks.keras.read import Reader, load
from trivium.frameworks.keras.special import SPECIAL
from trivium.frameworks.keras.symbolic import nodes_kept, objective
from trivium.graph import MODE, Graph, UnsupportedError
from trivium.graph.check import check
from trivium.nn.module import GraphModule, Module


def opened(model: Any, *examples: Any, **options: Any) -> tuple[Any, Module]:
    """The model itself and our reading of it."""
    if isinstance(model, (str, Path)):
        model = open_file(load(), model)
    return model, read(model, *examples, **options)


def read(model: Any, *examples: Any, training: bool | None = None) -> GraphModule:
    """The Graph and the parameters of a Keras model (or layer).

    A subclassed model that was never called wants ``examples``, one for each argument of its call:
    arrays, or Specs where the model is built already. ``training`` True or False reads the model in
    that mode alone. Parameters are named "<layer>.weight", "<layer>.bias", ...; ``source_names``
    has Keras's own paths.
    """
    keras = load()
    if not isinstance(model, keras.Layer):
        raise TypeError(f"read() wants a Keras model or layer, got {type(model).__name__}")
    if not model.built and examples and all(isinstance(e, np.ndarray) for e in examples):
        model(*examples)
    if not model.built:
        raise UnsupportedError(
            "a model that is not built yet", model.name,
            "call it on a batch, give it an Input, or pass an example array here",
        )  # fmt: skip
    # Twice in the one mode: what differs between two readings was drawn at random on the way.
    modes = (True, False) if training is None else (training, training)
    with nodes_kept(model):
        readers = [Reader(keras, model, examples, mode, SPECIAL) for mode in modes]
    first = readers[0]
    _open_mode(model, first.graph, readers[1].graph)
    first.update_states()
    for variable in (v for v in model.weights if id(v) not in first.claimed):
        *scope, name = variable.path.split("/")  # nothing reads it: it is kept
        first.variable(variable, ".".join(scope), model, name)
    if beside := objective(model):
        warnings.warn(
            f"the {beside} of {model.name!r} is no part of a Graph and is left behind: it belongs "
            "to the training objective; add it to the loss where the model goes on being trained",
            stacklevel=4,
        )
    module = GraphModule(check(first.graph), first.arrays, first.source_names)
    claimed = {v.path: first.claimed[id(v)] for v in model.weights if id(v) in first.claimed}
    module.weight_maps = {path: weight for path, (_, weight) in claimed.items()}
    return module


def _open_mode(model: Any, graph: Graph, other: Graph) -> None:
    """Leave the flags open in which the training ``graph`` and the ``other`` one differ."""
    for a, b in zip(graph.nodes, other.nodes, strict=False):
        if a.op == b.op and a.attrs.get("training") is not b.attrs.get("training"):
            a.attrs["training"] = b.attrs["training"] = MODE
    if difference := graph.difference(other):
        raise UnsupportedError(
            f"the model computes something else while training ({difference})", model.name,
            "read it with training=True or training=False; draw random numbers by layers",
        )  # fmt: skip
