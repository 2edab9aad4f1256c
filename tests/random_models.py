"""Random models: ops of the registry on parameters and data, judged by the oracle in float64.

There is no list of ops here: the registry has them, their cases say what arrays and attributes they
take, and their type rules decide what is legal. Sizes 0 and 1, broadcasting, values and parameters
that are used again come by chance. ``make fuzz`` draws 2,000; ``fuzz.py`` runs and judges them.

How far an engine may be from the oracle is measured, not chosen: the same graph is run a few times
with every inexact result rounded up or down by chance (CESTAC: Vignes, "A stochastic arithmetic for
reliable scientific computation", 1993). A graph that this moves far says nothing, and is not drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import trivium as tv
from trivium.graph import OPS, Graph, Value
from trivium.graph.check import check
from trivium.op import Op, Sample
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import replay, specialize
from trivium.transforms.step import training_step

SIZES = [0, 1, 1, 2, 2, 3, 3, 4, 5, 7]
NAMES = ["lr", "count", "optimizer/count", "rng", "p0/m", "weight", "x0"]  # and p0, p1, ...
RUNS = 3  # with other roundings
STEPS = 2
LARGE = 1e3  # numbers stay below
OPTIMIZERS = [
    tv.optim.SGD(0.05),
    tv.optim.SGD(0.05, momentum=0.9),
    tv.optim.Adam(0.05, epsilon=0.1),  # a small epsilon makes a sign of every rounding
]
ALL = [op for op in OPS.values() if isinstance(op, Op) and not op.random]


@dataclass
class Model:
    """A Graph, the numbers of its parameters and states, and the arrays of its data inputs."""

    graph: Graph
    values: dict[str, Any]
    data: list[Any]
    optimizer: Any

    @property
    def has_ties(self) -> bool:
        """Are there whole numbers among its floating ones? Then some are equal, or 0."""
        arrays = [a for a in (*self.values.values(), *self.data) if a.dtype.kind == "f"]
        return any(a.size and (a == np.round(a)).all() for a in arrays)

    @functools.cached_property
    def outputs(self) -> Limits | None:
        """What the outputs are, and how near to that an engine has to come."""
        return limits(forward(self))

    @functools.cached_property
    def steps(self) -> Limits | None:
        """The same for the losses of a few steps, and what they make of parameters and states."""
        return limits(trained(self))

    def __str__(self) -> str:
        shown = {n: a.tolist() for n, a in self.values.items()}
        data = [a.tolist() for a in self.data]
        return f"{self.graph}\n{shown!s:.300}\n{data!s:.200}\n{self.optimizer}"


# -- the oracle, exact and with roundings by chance ------------------------------------------------
def rounded(x: Any, rng: np.random.Generator) -> Any:
    """float64 numbers as float32 ones: the exact ones as they are, others up or down."""
    near = x.astype(np.float32)
    other = np.nextafter(near, np.where(x > near, np.float32(np.inf), np.float32(-np.inf)))
    moved = (near != x) & np.isfinite(near) & (rng.random(x.shape) < 0.5)
    return np.where(moved, other, near).astype(np.float64)


def evaluated(graph: Graph, env: dict[Any, Any], rng: np.random.Generator | None) -> list[Any]:
    """The results of a float64 Graph; with ``rng`` every result is rounded."""
    env = {None: None} | env
    for node in graph.nodes:
        with np.errstate(all="ignore"):
            outputs = OPS[node.op].evaluate([env[v] for v in node.inputs], node.attrs)
        for v, a in zip(node.outputs, outputs, strict=True):
            a = np.asarray(a)
            env[v] = rounded(a, rng) if rng is not None and a.dtype == np.float64 else a
    return [env[v] for v in graph.results()]


def plain(graph: Graph, training: bool) -> Graph:
    """In float64 and written out in primitives, so that each of their results can be rounded."""
    return decompose(specialize(graph, {}, training, tv.float64), keep=lambda node: False)


def wide(a: Any) -> Any:
    return a.astype(np.float64) if a.dtype.kind == "f" else a


Run = Callable[[np.random.Generator | None], list[Any]]


def forward(model: Model) -> Run:
    """The outputs in inference."""
    graph = plain(model.graph, False)
    graph.updates = {}
    data = iter(model.data)
    env = {v: wide(next(data) if v.kind == "data" else model.values[v.name]) for v in graph.inputs}
    return lambda rng: evaluated(graph, env, rng)


def trained(model: Model) -> Run:
    """The loss of each step, and what the parameters and states have become."""
    step = plain(training_step(loss_of(model.graph), model.optimizer.update()), True)
    data = iter(model.data)
    lr = np.asarray(np.float32(model.optimizer.lr), np.float64)
    start: dict[Any, Any] = {}
    for v in step.inputs:
        given = {"data": lambda: next(data), "hyper": lambda: lr}.get(v.kind or "")
        zeros = np.zeros(v.shape, v.dtype.numpy)
        start[v] = wide(given() if given else model.values.get(v.name, zeros))

    def run(rng: np.random.Generator | None) -> list[Any]:
        env, losses = dict(start), []
        for _ in range(STEPS):
            loss, *new = evaluated(step, env, rng)
            losses.append(loss)
            env |= zip(step.updates, new, strict=True)
        return [*losses, *(env[v] for v in step.inputs if v.name in model.values)]

    return run


def loss_of(graph: Graph) -> Graph:
    """The graph with one output: its floating outputs, each weighted by its place, summed up."""
    graph, _ = replay(graph)
    with graph:
        total: Any = None
        for v in graph.outputs:
            if v.dtype.is_floating:
                weights = np.cos(np.arange(v.size)).reshape(v.shape).astype(np.float32)
                part = tv.sum(v * weights if v.size and v.size < 1000 else v)
                total = part if total is None else total + part
        assert total is not None
        graph.outputs = [total]
    return graph


class Wrong(AssertionError):
    """Numbers, or a gradient, are not what they have to be."""


Limits = list[tuple[Any, float]]


def limits(run: Run) -> Limits | None:
    """Each result of a run and how far from it a float32 engine may be; None: too uncertain."""
    exact = run(None)
    others = [run(np.random.default_rng(k)) for k in range(RUNS)]
    found = []
    for k, x in enumerate(exact):
        if x.dtype.kind != "f":
            if any((o[k] != x).any() for o in others):
                return None
            found.append((x, 0.0))
            continue
        scale = max(1.0, float(np.abs(x).max(initial=0)))
        spread = max(float(np.abs(o[k] - x).max(initial=0)) for o in others)
        limit = 16 * spread + 64 * np.finfo(np.float32).eps * scale
        if not np.isfinite(limit) or scale > LARGE or limit > 0.01 * scale:
            return None
        found.append((x, limit))
    return found


# -- drawing ---------------------------------------------------------------------------------------
class Draw:
    """One random model in the making: a Graph, and what its Values are, exact and rounded."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.graph = rng, Graph("model")
        self.arrays: dict[Value, list[Any]] = {}  # the exact numbers, then those of RUNS roundings
        self.values: dict[str, Any] = {}
        self.data: list[Any] = []

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def input(self, sample: Sample) -> Value:
        """A new parameter or data input."""
        rng = self.rng
        kind = "param" if sample.dtype.is_floating and rng.random() < 0.6 else "data"
        array = sample.array(rng)
        if rng.random() < 0.1 and sample.low < 0 < sample.high and sample.dtype.is_floating:
            array = np.round(array)  # zeros, and numbers that are equal
        wish = f"{kind[0]}{len(self.graph.inputs)}"
        if rng.random() < 0.1:
            wish = self.pick(NAMES)
        value = self.graph.input(kind, sample.dtype, sample.shape, self.graph.unused(wish))
        if kind == "data":
            self.data.append(array)
        else:
            self.values[value.name] = array
        self.arrays[value] = [wide(array)] * (RUNS + 1)
        return value

    def node(self) -> bool:
        """One more op on values there are, or on new inputs; False if it was not legal."""
        op = self.pick(ALL)
        case = self.pick(op.cases)
        free = self.rng.random() < 0.5
        sizes: dict[int, int] = {}
        made = len(self.graph.inputs), len(self.data)
        values = [None if s is None else self.argument(s, sizes, free) for s in case.arrays]
        attrs = {k: self.attribute(v, sizes, values) for k, v in case.attrs.items()}
        if self.append(op, values, attrs):
            return True
        for v in self.graph.inputs[made[0] :]:
            self.values.pop(v.name, None)
            del self.arrays[v]
        del self.graph.inputs[made[0] :], self.data[made[1] :]
        return False

    def append(self, op: Op, values: list[Any], attrs: dict[str, Any]) -> bool:
        graph = self.graph
        count = len(graph.nodes)
        try:
            op.trace(graph, *op.bind(values, attrs))
            for node in graph.nodes[count:]:
                if any(v.size > 2000 for v in node.outputs):
                    raise ValueError("too large")
                self.run(node)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
            # What a case's arrays and attributes became by chance is no call of this op.
            for node in graph.nodes[count:]:
                for v in node.outputs:
                    self.arrays.pop(v, None)
            del graph.nodes[count:]
            return False
        return True

    def run(self, node: Any) -> None:
        """The numbers of a new node; ValueError where they say too little to compare by them."""
        part = Graph("part")
        ins = {v: part.input("data", *v.type, f"x{k}") for k, v in
               enumerate(dict.fromkeys(v for v in node.inputs if v is not None))}  # fmt: skip
        part.outputs = list(
            OPS[node.op].append(part, [ins.get(v) for v in node.inputs], node.attrs)
        )
        part = plain(part, False)
        runs = []
        for k in range(RUNS + 1):
            rng = np.random.default_rng(k) if k else None
            arrays = [self.arrays[v][k] for v in ins]
            runs.append(evaluated(part, dict(zip(part.inputs, arrays, strict=True)), rng))
        if [r.shape for r in runs[0]] != [v.shape for v in node.outputs]:
            raise AssertionError(f"{node}: {node.inputs} {node.attrs} {node.outputs}")
        for v, results in zip(node.outputs, zip(*runs, strict=True), strict=True):
            exact = results[0]
            if v.dtype.is_floating:
                if not np.isfinite(exact).all():
                    raise ValueError("no number")
                spread = max(float(np.abs(r - exact).max(initial=0)) for r in results)
                if (
                    not spread
                    < 1e-4 * max(1.0, float(np.abs(exact).max(initial=0)))
                    <= 1e-4 * LARGE
                ):
                    raise ValueError("too uncertain")
            elif any((r != exact).any() for r in results):
                raise ValueError("undecided")
            self.arrays[v] = list(results)

    def argument(self, sample: Sample, sizes: dict[int, int], free: bool) -> Value:
        """A value that fits a case's array: any one, or one of the shape that the case implies."""
        there = [v for v in self.arrays if v.dtype == sample.dtype]
        if not free:
            there = [v for v in there if _unified(sample.shape, v.shape, sizes) is not None]
        if there and self.rng.random() < 0.85 and not sample.dtype.is_integer:
            late = int(len(there) * self.rng.random() ** 0.5)  # rather one of the last
            v = there[late]
            sizes |= _unified(sample.shape, v.shape, sizes) or {}
            return v
        for s in sample.shape:
            if s not in sizes:
                sizes[s] = self.pick(SIZES)
        shape = tuple(sizes[s] for s in sample.shape)
        if self.rng.random() < 0.1:
            shape = tuple(1 if self.rng.random() < 0.5 else s for s in shape)
        high = sample.high
        if sample.dtype.is_integer:
            high = max(sizes.get(int(high), int(high)), int(sample.low) + 1)
        return self.input(replace(sample, shape=shape, high=high))

    def attribute(self, item: Any, sizes: dict[int, int], values: list[Any]) -> Any:
        """An attribute like the case's: itself, its sizes as they are now, or another of its kind.

        Whether it is legal the op's own rule will say.
        """
        rng = self.rng
        if isinstance(item, bool):
            return bool(rng.random() < 0.5)
        if isinstance(item, int):
            return self.pick([item, sizes.get(item, item), int(rng.integers(-3, 4))])
        if isinstance(item, float):
            return self.pick([item, item / 2])
        if isinstance(item, tuple) and all(isinstance(i, int) for i in item):
            shapes = [v.shape for v in values if v is not None] or [()]
            shape = self.pick(shapes)
            rank = len(shape)
            other = self.pick([v.shape for v in self.arrays] or [()])
            wishes = [
                item,
                tuple(sizes.get(i, i) for i in item),
                tuple(int(i) for i in rng.permutation(rank)),
                tuple(int(i) for i in rng.permutation(rank)[: rng.integers(rank + 1)]),
                tuple(int(i) for i in rng.integers(0, 3, len(item))),
                tuple(int(i) for i in rng.integers(-1, 3, rank)),
                tuple(shape[i] for i in rng.permutation(rank)),
                (*shape[: (k := int(rng.integers(rank + 1)))], -1),
                (*shape[:k], 1, *shape[k:]),
                tuple(self.pick(SIZES) if s == 1 else s for s in (*((1,) * k), *shape)),
                other,
                (-1,),
            ]
            return self.pick(wishes)
        if isinstance(item, tuple):
            return tuple(self.attribute(i, sizes, values) for i in item)
        return item


def _unified(
    pattern: Sequence[int], shape: Sequence[Any], sizes: dict[int, int]
) -> dict[int, int] | None:
    """What a case's sizes have to be for an array of this shape; None where they cannot."""
    if len(pattern) != len(shape):
        return None
    found = dict(sizes)
    for s, n in zip(pattern, shape, strict=True):
        if found.setdefault(s, n) != n:
            return None
    return found


def draw(seed: int) -> Model:
    """The model of a seed."""
    rng = np.random.default_rng(seed)
    while True:
        made = Draw(rng)
        wanted = int(rng.integers(2, 10))
        for _ in range(40 * wanted):
            wanted -= made.node()
            if wanted <= 0:
                break
        model = finished(made)
        if model is None or model.outputs is None:
            continue
        try:
            if model.steps is not None:
                return model
        except Exception as error:
            raise Wrong(f"no gradient of\n{model}") from error


def finished(made: Draw) -> Model | None:
    """The drawn Graph with what nobody reads as its outputs; None if nothing can be trained."""
    graph = made.graph
    read = {v for n in graph.nodes for v in n.inputs}
    graph.outputs = [v for n in graph.nodes for v in n.outputs if v not in read]
    if graph.nodes and made.rng.random() < 0.3:
        graph.outputs.append(made.pick(list(made.arrays)))  # something that is read too
    states = [
        (v, w) for v in graph.of_kind("param") for n in graph.nodes for w in n.outputs
        if w.type == v.type
    ]  # fmt: skip
    if states and made.rng.random() < 0.3:
        state, new = made.pick(states)
        state.kind, graph.updates = "state", {state: new}
    if not graph.of_kind("param") or not any(v.dtype.is_floating for v in graph.outputs):
        return None
    return Model(check(graph), made.values, made.data, made.pick(OPTIMIZERS))
