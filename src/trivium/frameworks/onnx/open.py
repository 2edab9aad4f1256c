"""An ONNX model, or the one in a file, and our reading of it."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.onnx.load import load
from trivium.frameworks.onnx.operators import by_its_line
from trivium.frameworks.onnx.operators_nn import OPERATORS
from trivium.frameworks.onnx.read import DAMAGED, Call, Reader
from trivium.frameworks.onnx.sizes import fold
from trivium.graph import GraphError, UnsupportedError
from trivium.nn.module import GraphModule, Module


def opened(model: Any, *examples: Any, **options: Any) -> tuple[Any, Module]:
    """The checked ModelProto and our reading of it."""
    proto = load(model)
    return proto, read(proto, **options)


def meaning(call: Call) -> Any:
    """What a node makes: known numbers, or what its operator is in our ops; None: not known."""
    folded = fold(call)
    return OPERATORS.get(call.name, by_its_line)(call) if folded is None else folded


def read(source: Any) -> GraphModule:
    """The model in ``source``, a path or an ``onnx.ModelProto``, as a trainable module.

    Floating initializers become parameters (running statistics: states) under their own names;
    those that only make shapes become attributes. An operator without an exact meaning here, and a
    file that is not what it says, are refused with the node's name.
    """
    model = load(source)
    try:
        reader = Reader(model, meaning)
        graph = reader.read()
    except (GraphError, UnsupportedError):
        raise
    except DAMAGED as error:  # names that are no text, types that do not exist, ...
        raise GraphError(f"this ONNX model is damaged: {error}") from error
    return GraphModule(graph, reader.values, reader.source_names)
