"""What every framework's source means is what the Graph means: ops, models, gradients, steps.

What a framework refuses, the declarations say: of everything else the numbers have to be right.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import trivium as tv
from coverage_table import target_of
from emit_suite import BESIDE, CASES, MODELS, UPDATES, WIDER, Bound, bound, draw, one_node
from trivium import nn
from trivium.framework import FRAMEWORKS
from trivium.frameworks.words import Vocabulary
from trivium.frameworks.writing.code import Target
from trivium.graph import OPS, Graph, Node, UnsupportedError
from trivium.op import By, Case, Op, Refused
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import specialize
from trivium.transforms.unroll import unrolled, unrolls

# Small models, many compilations; and TensorFlow need not greet.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SOURCES = [name for name, f in FRAMEWORKS.items() if f.source]
WAYS = [*SOURCES, "mxnet hybridized"]
each_source = pytest.mark.parametrize("source", SOURCES)


def judged(way: str) -> Bound:
    """The framework, asked in this way."""
    framework = bound(way.partition(" ")[0])
    if way.endswith("hybridized"):
        plain = framework.runner

        def hybridized(block: Any, weights: Any) -> Any:
            block.hybridize(static_alloc=True)
            return plain(block, weights)

        framework.runner = hybridized
    return framework


def refusal(source: str, graph: Graph) -> str:
    """The declared reason why a Graph has no source there; empty where there is none."""
    target = target_of(source)
    assert target is not None
    values = [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]
    if lacking := [v.dtype for v in values if v.dtype in target.lacks]:
        return f"{lacking[0]} in"
    if "scan" not in target.functions and any(map(unrolls, graph.nodes)):
        graph = unrolled(graph)
    whole = target.prepare(specialize(graph, training=False))
    for node in decompose(whole, target.lowers).nodes:
        form = OPS[node.op].lowering(source, node.attrs)
        if isinstance(form, Refused) and not is_layer(target, node):
            return form.reason
    return ""


def is_layer(target: Target, node: Node) -> bool:
    """Has the node parameters that a layer may hold?"""
    held = any(v is not None and v.kind in ("param", "state") for v in node.inputs)
    return held and any(f.op == node.op for f in target.forms)


def model_of(op: Op, case: Case) -> Graph:
    """The case as a model, which has an input: what reads no array has one beside it."""
    graph = one_node(op, case)
    if not graph.of_kind("data"):
        with graph:
            graph.outputs.append(tv.tanh(graph.input("data", "float32", BESIDE, "beside")))
    return graph


def asked(way: str) -> Iterator[Any]:
    """Every case of every op, but those in which a framework draws numbers of its own.

    What is drawn, :func:`test_dropout` counts.
    """
    for op, i, case in CASES:
        if not (op.random and op.is_composite and case.attrs["training"]):
            yield pytest.param(way, model_of(op, case), case, id=f"{way}-{op.name}-{i}")


def models(way: str) -> Iterator[Any]:
    """Every model."""
    for name, make in (MODELS | WIDER).items():
        module, specs, _ = make()
        yield pytest.param(way, tv.trace(module, *specs), name, id=f"{way}-{name}")


def split(params: Any) -> tuple[list[Any], list[Any]]:
    """What the declarations let through, and what they refuse."""
    passed: list[Any] = []
    refused: list[Any] = []
    for param in params:
        way, graph, _ = param.values
        (refused if refusal(way.partition(" ")[0], graph) else passed).append(param)
    return passed, refused


OPS_CASES, NO_OPS = split(p for way in WAYS for p in asked(way))
ALL_MODELS, NO_MODELS = split(p for way in WAYS for p in models(way))


@pytest.mark.parametrize(("way", "graph", "case"), OPS_CASES)
def test_op(way: str, graph: Graph, case: Case) -> None:
    judged(way).op(graph, case)


@pytest.mark.parametrize(("way", "graph", "name"), ALL_MODELS)
def test_model(way: str, graph: Graph, name: str) -> None:
    judged(way).model(name)


@pytest.mark.parametrize(
    ("way", "graph", "_"), [p for p in NO_OPS + NO_MODELS if p.values[0] in SOURCES]
)
def test_what_the_declarations_refuse(way: str, graph: Graph, _: Any) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(refusal(way, graph))):
        judged(way).emit(graph)


@each_source
@pytest.mark.parametrize("optimizer", UPDATES)
def test_ten_steps(source: str, optimizer: str) -> None:
    bound(source).trains(optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_dropout(way: str) -> None:
    judged(way).dropout()


@each_source
@pytest.mark.parametrize("name", ["mlp", "residual", "rnn"])
def test_golden(source: str, name: str) -> None:
    bound(source).golden(name)


@each_source
def test_source_stands_alone(source: str) -> None:
    module, specs, _ = MODELS["residual"]()
    assert "import trivium" not in bound(source).emit(tv.trace(module, *specs)).source


def test_a_reason_is_found_in_the_declarations() -> None:
    rnn = nn.RNN(3)
    layer = tv.trace(rnn, ("float32", ("batch", 4, 2)))
    bare = one_node(OPS["rnn"], OPS["rnn"].cases[0])
    assert refusal("torch", layer) == "" and "a loop" in refusal("torch", bare)
    assert refusal("jax", one_node(OPS["cast"], OPS["cast"].cases[1])) == "float64 in"
    assert refusal("jax", bare) == ""


# -- a line that a function stands before ----------------------------------------------------------
def overridden(source: str) -> list[str]:
    """The ops that have both a line and a function that writes them."""
    target = target_of(source)
    assert target is not None
    return [n for n in target.functions if isinstance(OPS[n].lowerings.get(source), (str, By))]


def written(framework: str, op: Op) -> None:
    emitted = FRAMEWORKS[framework].at("emit").emit
    for case in op.cases:
        with contextlib.suppress(UnsupportedError):
            emitted(model_of(op, case))


def read_again(framework: str, op: Op) -> None:
    """The cases, written by the line, made a model and read."""
    record = FRAMEWORKS[framework]
    for case in op.cases:
        graph = one_node(op, case)
        # The function may be there for such a case; what a reader warns of is not asked.
        with contextlib.suppress(UnsupportedError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = record.at("run").build(graph, {})[0]
            record.at("open").opened(model, *draw(graph, case))


@pytest.mark.parametrize("framework", [s for s in SOURCES if overridden(s)])
def test_a_line_before_which_a_function_stands_is_still_said(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function fills it for some nodes, or the reader reads it: else it is dead text."""
    both = overridden(framework)
    filled, read = set(), set()

    def fill(target: Target, line: str, node: Node, fill: Any = Target.fill) -> Any:
        filled.add((node.op, line))
        return fill(target, line, node)

    def understood(words: Vocabulary, *call: Any, read_: Any = Vocabulary.read) -> Any:
        for found in read_(words, *call):
            read.add((found[0].name, found[0].lowering(words.framework, found[2])))
            yield found

    monkeypatch.setattr(Target, "fill", fill)
    monkeypatch.setattr(Vocabulary, "read", understood)
    kind = type(target_of(framework))
    for name in both:
        op = OPS[name]
        written(framework, op)
        nodes = [one_node(op, case).nodes[-1] for case in op.cases]
        lines = {op.lowering(framework, node.attrs) for node in nodes}
        if lines <= {line for n, line in filled if n == name}:
            continue
        with monkeypatch.context() as patch:
            rest = {k: f for k, f in kind.functions.items() if k != name}
            patch.setattr(kind, "functions", rest)
            read_again(framework, op)
        unsaid = lines - {line for n, line in filled | read if n == name}
        assert not unsaid, f"{framework}, {name}: {unsaid}"
