"""Graph -> ONNX: the inference form of a Graph, with its parameters, as a ModelProto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.frameworks.onnx import IR_VERSION, OPSET, OUTPUTS, package
from trivium.frameworks.onnx.lower import Writer, prepared
from trivium.graph import Graph, UnsupportedError
from trivium.transforms.replay import specialize

LIMIT = 2**31 - 2**20  # protobuf cannot write a message of 2 GB


def write(graph: Graph, values: Mapping[str, Any], name: str = "") -> Any:
    """``graph`` in inference mode, its parameters from ``values``, as an ``onnx.ModelProto``.

    Open sizes become named dimensions, parameters initializers under their own names, and node
    names carry the scope ("layer1.0.conv1/Conv_3"). What ONNX cannot say exactly is an
    UnsupportedError.
    """
    onnx = package()
    inference = specialize(graph, training=False)
    inference.updates = {}
    inference = prepared(inference)
    writer = Writer(inference)
    helper = onnx.helper
    weights = [writer.parameter(v, values) for v in inference.of_kind("param", "state")]
    if sum(len(w.raw_data) for w in weights) > LIMIT:
        raise UnsupportedError(
            "weights of 2 GB and more do not fit into one ModelProto", graph.name,
            "save the model in another format",
        )  # fmt: skip
    writer.write(inference)
    outputs = writer.results(inference)
    proto = helper.make_graph(
        writer.nodes,
        name or graph.name,
        [writer.info(v, v.name) for v in inference.of_kind("data")],
        [writer.info(v, n) for v, n in zip(inference.outputs, outputs, strict=True)],
        initializer=weights,
    )
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="trivium"
    )
    model.ir_version = IR_VERSION
    if isinstance(graph.structure, tuple):
        model.metadata_props.add(key=OUTPUTS, value="named")
    return model
