"""What a line of a declaration writes, its reader reads: one truth, evaluated in both directions.

Every conformance case whose ops all have a line of the framework comes back as the same nodes with
the same attributes. What has a function or a layer instead comes back as the same function: the two
Graphs give the same numbers; or it is refused, for a reason.
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
from trivium.interpret import Interpreter
from trivium.op import CORNERS
from trivium.shape import Dim
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


UNREAD = {
    "torch": {"take_along_axis": "two open sizes that torch's export takes for one each",
              "cross_entropy": "a gather by two open sizes"},
    "tensorflow": {"max": "which of the equal ones counts, by one_hot", "min": "as max",
                   "take_along_axis": "a one_hot of integers", "take_grad": "a scatter",
                   "cond": "no reader of branches", "scan": "no reader of loops",
                   "rnn": "no reader of loops", "conv": "a stride beside a dilation",
                   "max_pool": "a stride beside a dilation",
                   "cross_entropy": "one operator with its own gradient",
                   "binary_cross_entropy_with_logits": "one function of many operators"},
}  # fmt: skip
"""Ops of which a case is written and refused by our own reader, and what it meets."""


def by_lines(framework: str, there: Graph) -> bool:
    """Is the Graph, as it is written, written by lines alone?"""
    nodes = [n for n in there.nodes if n.op != "full" or n.out.shape != ()]
    return bool(nodes) and all(by_a_line(framework, n) for n in nodes)


def numbers(graph: Graph, arrays: list[Any]) -> list[Any]:
    """What a Graph gives in inference, its open sizes those of these arrays."""
    dims = {str(s): n for v, a in zip(graph.of_kind("data"), arrays, strict=True)
            for s, n in zip(v.shape, a.shape, strict=True) if isinstance(s, Dim)}  # fmt: skip
    return list(Interpreter(specialize(graph, dims, training=False))(*arrays))


@pytest.mark.parametrize("framework", READ)
def test_lines_are_read_as_they_are_written(framework: str) -> None:
    pytest.importorskip({"mxnet": "numpy"}.get(framework, framework))
    wrong, count, refused = [], 0, set()
    for op, i, case in emit_suite.CASES:
        graph = emit_suite.one_node(op, case)
        if graph.of_kind("rng") or not graph.of_kind("data"):
            continue
        try:
            there = prepared(framework, graph)
        except UnsupportedError:
            continue  # tests/test_emit.py holds these to the declarations
        lines = by_lines(framework, there) and (framework, op.name) not in BACK
        arrays = emit_suite.draw(graph, case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                back = read_back(framework, graph, arrays)
                if lines and written(framework, back) != written(framework, there):
                    wrong.append(f"{op.name}-{i}: {back} for {there}")
                wanted = numbers(graph, arrays)
                for x, y in zip(numbers(back, arrays), wanted, strict=False):
                    emit_suite.near(np.asarray(x), np.asarray(y), what=f"{op.name}-{i}")
                count += 1
            except UnsupportedError as error:
                refused.add(op.name)
                if op.name not in UNREAD.get(framework, {}) and framework != "onnx":
                    wrong.append(f"{op.name}-{i}: {error}"[:300])
            except Exception as error:
                wrong.append(f"{op.name}-{i}: {type(error).__name__} {error}"[:300])
    assert not wrong, "\n".join(wrong)
    assert refused == set(UNREAD.get(framework, {})) or framework == "onnx"
    least = {"torch": 275, "keras": 275, "mxnet": 270, "onnx": 285, "tensorflow": 260}
    assert count >= least[framework]
