"""What a line of a declaration writes, its reader reads: one truth, evaluated in both directions.

Every conformance case whose ops all have a line of the framework comes back as the same nodes with
the same attributes. (What has a function or a layer instead is judged by its numbers elsewhere.)
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

import emit_suite
from trivium.framework import FRAMEWORKS
from trivium.frameworks.words import pattern, whole
from trivium.frameworks.writing.code import Target
from trivium.frameworks.writing.source import Emitter
from trivium.graph import OPS, Graph, UnsupportedError
from trivium.op import CORNERS
from trivium.transforms.replay import specialize

READ = tuple(f.name for f in FRAMEWORKS.values() if f.kinds and f.name != "jax")
"""JAX has 32 bits, so its cases are others: tests/test_from_jax.py."""
BACK = {  # what comes back as something else, and why
    (
        "torch",
        "softsign",
    ): "F.softsign is made of other operators, and those are exported",
    ("torch", "linear"): "F.linear of no parameters is exported as a product",
    (
        "torch",
        "take_along_axis",
    ): "gather asks for no equal sizes: the export leaves two open",
    ("torch", "tanhshrink"): "F.tanhshrink is made of other operators",
    ("torch", "softmin"): "F.softmin is made of other operators",
    ("torch", "normalize"): "F.normalize is made of other operators",
    ("keras", "zeros_like"): "Keras records its shape and forgets whose it was",
    ("keras", "ones_like"): "Keras records its shape and forgets whose it was",
}


def prepared(framework: str, graph: Graph) -> Graph:
    """The Graph as the framework's source says it, node for node."""
    if framework == "onnx":
        from trivium.frameworks.onnx import lower

        return lower.prepared(specialize(graph, training=False))
    module = importlib.import_module(f"trivium.frameworks.{framework}.emit")
    found = (c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Target))
    target = next(c for c in found if c.name == framework and c.__module__ == module.__name__)
    emitter = getattr(module, "FunctionEmitter", Emitter)
    done: Graph = emitter(graph, target()).graph
    return done


def by_a_line(framework: str, node: Any) -> bool:
    """Is the node written by a line that is a call of the framework's own?"""
    op = OPS[node.op]
    line = op.lowering(framework, node.attrs)
    if framework != "onnx":
        module = importlib.import_module(f"trivium.frameworks.{framework}.emit")
        targets = [
            c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Target)
        ]
        if any(node.op in c.functions for c in targets if c.name == framework):
            return False
        if line is not None and isinstance(line, str) and line.partition("(")[0].isidentifier():
            return False  # a helper that comes along in the source
    return isinstance(line, str) and pattern(whole(op, line)) is not None


def read_back(framework: str, graph: Graph, arrays: list[Any]) -> Graph:
    """The Graph that our reader makes of what was written."""
    opened = importlib.import_module(f"trivium.frameworks.{framework}.open").opened
    if framework == "onnx":
        from trivium.frameworks.onnx.emit import write

        found: Graph = opened(write(graph, {}, "g"))[1].graph
        return found
    built = importlib.import_module(f"trivium.frameworks.{framework}.run").build(graph, {})[0]
    if framework == "torch":
        from trivium.frameworks.torch.arrays import tensor_of

        arrays = [tensor_of(a) for a in arrays]
    if framework == "jax":
        built = built.function, built.params
    done: Graph = opened(built, *arrays)[1].graph
    return done


def written(framework: str, graph: Graph) -> list[tuple[str, str]]:
    """The nodes in any order; ONNX has float32's digits, and no word on gradients at corners."""

    def said(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(said, value))
        return float(np.float32(value)) if isinstance(value, float) else value

    def attrs(node: Any) -> dict[str, Any]:
        return {k: said(v) for k, v in node.attrs.items()
                if framework != "onnx" or k not in CORNERS}  # fmt: skip

    return sorted((n.op, str(sorted(attrs(n).items()))) for n in graph.nodes)


def serves(framework: str, op: Any, case: Any) -> Graph | None:
    """The Graph as it is written, if lines write all of it."""
    graph = emit_suite.one_node(op, case)
    try:
        there = prepared(framework, graph)
    except (UnsupportedError, ImportError):
        return None
    nodes = [n for n in there.nodes if n.op != "full" or n.out.shape != ()]
    return there if nodes and all(by_a_line(framework, n) for n in nodes) else None


@pytest.mark.parametrize("framework", READ)
def test_lines_are_read_as_they_are_written(framework: str) -> None:
    pytest.importorskip({"mxnet": "numpy"}.get(framework, framework))
    wrong, count = [], 0
    for op, i, case in emit_suite.CASES:
        if all(s is None for s in case.arrays) or (framework, op.name) in BACK:
            continue
        there = serves(framework, op, case)
        if there is None:
            continue
        count += 1
        graph = emit_suite.one_node(op, case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                back = read_back(framework, graph, emit_suite.draw(graph, case))
                if written(framework, back) != written(framework, there):
                    wrong.append(f"{op.name}-{i}: {back} for {there}")
            except Exception as error:
                wrong.append(f"{op.name}-{i}: {type(error).__name__} {error}"[:300])
    assert not wrong, "\n".join(wrong)
    assert count >= {"torch": 90, "keras": 70, "mxnet": 30, "onnx": 60, "tensorflow": 60}[framework]
