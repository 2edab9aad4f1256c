"""Evidence that two models are the same: outputs, every gradient, training steps, against float64.

The judge is the float64 oracle of the source's Graph. A target is accepted where its float32 error
is at most a small constant times the *source framework's own* float32 error, plus a floor that only
the dtype decides: there are no tolerances per op. Gradients come from each side's own
differentiation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.frameworks.runner import Pulled, Runner
from trivium.graph import Graph, Node
from trivium.inputs import dims_of, draw, draw_masks, feed_masks
from trivium.interpret import Interpreter
from trivium.report import Report, Row
from trivium.transforms.grad import pullback
from trivium.transforms.replay import replay, specialize

FACTOR = 8.0
"""How many times the source's own error a target may have."""
FLOOR = 64 * float(np.finfo(np.float32).eps)
"""Relative error that float32 rounding alone explains, where the source happened to have less."""
CEILING = 1e-3
"""From here on the source's error excuses only three times as much: it sits on a kink itself."""
POINTS = 6
"""How many points a disagreement in gradients is looked for at."""


@dataclass
class Side:
    """A model as the comparison needs it: its Graph, its numbers, and itself running."""

    name: str
    graph: Graph
    values: Mapping[str, Any]
    runner: Runner
    differentiable: bool = True
    rebuild: Callable[[Graph], Runner] | None = None
    """Another Graph with the same parameters, built in the same framework."""


class GraphRunner:
    """A Graph on NumPy, in float32 or, as the oracle, in float64."""

    def __init__(self, graph: Graph, values: Mapping[str, Any], floating: dt.DType | None = None):
        self.graph, self.floating = graph, floating
        self._values = dict(values)
        self._made: dict[Any, Any] = {}

    def values(self) -> dict[str, Any]:
        """Every parameter and state."""
        return dict(self._values)

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        self._values |= values

    def _arrays(self, graph: Graph, given: Sequence[Any]) -> list[Any]:
        it = iter(given)
        key = np.zeros(2, np.uint64)
        return [
            next(it) if v.kind == "data" else key if v.kind == "rng" else self._values[v.name]
            for v in graph.inputs
        ]

    def outputs(self, inputs: Sequence[Any], training: bool = False) -> list[Any]:
        """The outputs."""
        if training not in self._made:
            self._made[training] = Interpreter(self.graph, self.floating, training)
        return list(
            self._made[training](*self._arrays(self.graph, inputs))[: len(self.graph.outputs)]
        )

    def pull(
        self, inputs: Sequence[Any], cotangents: Sequence[Any], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by our own derivation."""
        params = [v.name for v in self.graph.trained()]
        floats = [v for v in self.graph.of_kind("data") if v.dtype.is_floating]
        key = ("pull", training)
        if key not in self._made:
            special = specialize(self.graph, training=training)
            back = pullback(special, params + [v.name for v in floats])
            self._made[key] = (back, Interpreter(back, self.floating))
        back, run = self._made[key]
        found = run(*self._arrays(back, [*inputs, *cotangents]))
        n = len(self.graph.outputs)
        outputs, rest = found[:n], found[n : len(back.outputs)]
        states = dict(zip((v.name for v in back.updates), found[len(back.outputs) :], strict=True))
        given = iter(rest[len(params) :])
        return Pulled(
            outputs,
            dict(zip(params, rest, strict=False)),
            [next(given) if v.dtype.is_floating else None for v in self.graph.of_kind("data")],
            states,
        )


def _error(got: Any, want: Any, group: float) -> float:
    """The largest absolute error over the largest magnitude (and a little of the whole group's)."""
    if np.shape(got) != np.shape(want):
        return float("inf")
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.size == 0:
        return 0.0
    # Where the oracle itself is infinite or no number, the other has to be the same.
    strange = ~np.isfinite(want)
    if not np.array_equal(np.isnan(got), np.isnan(want)) or not np.array_equal(
        got[strange & ~np.isnan(want)], want[strange & ~np.isnan(want)]
    ):
        return float("inf")
    got, want = np.where(strange, 0, got), np.where(strange, 0, want)
    scale = max(float(np.max(np.abs(want))), 1e-3 * group, 1e-30)
    return float(np.max(np.abs(got - want))) / scale


def _magnitude(arrays: Sequence[Any]) -> float:
    finite = [
        np.abs(a[np.isfinite(a)]).max() for a in arrays if a is not None and np.isfinite(a).any()
    ]
    return float(max(finite, default=0.0))


class _Comparison:
    def __init__(self, a: Side, b: Side, report: Report):
        self.a, self.b, self.report = a, b, report
        self.oracle = GraphRunner(a.graph, a.values, dt.float64)

    def rows(self, kind: str, case: str, want: Mapping[str, Any], a: Mapping[str, Any],
             b: Mapping[str, Any]) -> None:  # fmt: skip
        group = _magnitude([np.asarray(w, np.float64) for w in want.values()])
        for name, w in want.items():
            if w is None:
                continue
            if name not in b:
                self.report.rows.append(
                    Row(kind, f"{name} (missing there)", case, 0.0, float("inf"), 0.0)
                )
                continue
            source = _error(a[name], w, group) if name in a else 0.0
            limit = FACTOR * source + FLOOR if np.isfinite(source) else FLOOR
            if _magnitude([np.asarray(w)]) > 1e-3 * group:  # a source on a kink is little excuse
                limit = min(limit, max(CEILING, 3 * source))
            self.report.rows.append(Row(kind, name, case, source, _error(b[name], w, group), limit))

    def parameters(self) -> None:
        """Every parameter and state arrived, bit for bit (an ONNX session shows none)."""
        mine, theirs = self.a.runner.values(), self.b.runner.values()
        for name, array in mine.items() if theirs else ():
            same = name in theirs and np.array_equal(array, theirs[name], equal_nan=True)
            self.report.rows.append(
                Row("parameter", name, "values", 0.0, 0.0 if same else float("inf"), 0.0)
            )

    def outputs(self, inputs: Sequence[Any], case: str) -> None:
        want, a, b = (
            _numbered(s.outputs(inputs, training=False))
            for s in (self.oracle, self.a.runner, self.b.runner)
        )
        self.rows("output", case, want, a, b)

    def gradients(
        self, points: Iterator[Sequence[Any]], case: str, training: bool, kind: str = "gradient"
    ) -> None:
        """Outputs, states and gradients at ``points``, until every row has agreed at one of them.

        A gradient jumps where a ReLU or a maximum changes sides, and in a large model some
        activation is always within rounding of that. Such a point says nothing about what lies
        behind the kink, so a row fails only if it fails at every one of several points: a wrong
        gradient does.
        """
        best: dict[tuple[str, str, str], Row] = {}
        tried = 0
        while not tried or (tried < POINTS and not all(r.ok for r in best.values())):
            tried += 1
            before, self.report.rows = self.report.rows, []
            self._gradients_at(next(points), case, training, kind)
            for row in self.report.rows:
                key = (row.kind, row.case, row.name)
                if key not in best or (row.ok and not best[key].ok):
                    best[key] = row
            self.report.rows = before
        if tried > 1 and all(r.ok for r in best.values()):
            self.report.notes.append(f"{case}: kinks within rounding, compared at {tried} points")
        self.report.rows += best.values()

    def _gradients_at(self, inputs: Sequence[Any], case: str, training: bool, kind: str) -> None:
        cts = _cotangents(self.oracle.outputs(inputs, training))
        want, a, b = (
            s.pull(inputs, cts, training) for s in (self.oracle, self.a.runner, self.b.runner)
        )
        if training:
            self.rows(
                "training",
                case,
                _numbered(want.outputs),
                _numbered(a.outputs),
                _numbered(b.outputs),
            )
            self.rows("state", case, want.states, a.states, b.states)
        self.rows(kind, case, want.parameters, a.parameters, b.parameters)
        names = [v.name for v in self.a.graph.of_kind("data")]
        inside = (dict(zip(names, p.inputs, strict=False)) for p in (want, a, b))
        self.rows(kind, f"{case}, inputs", *inside)

    def steps(self, points: Iterator[Sequence[Any]], count: int) -> None:
        """``count`` steps of gradient descent along the oracle's path, a fresh batch for each.

        Every side starts each step from the oracle's parameters and states, so that rounding does
        not compound into chaos; what is compared is each step's gradient and what the states
        became.
        """
        sides: list[Runner] = [self.oracle, self.a.runner, self.b.runner]
        before = [s.values() for s in sides]
        now = self.oracle.values()
        for k in range(count):
            self.gradients(points, f"step {k + 1}", True, kind="step")
            inputs = next(points)
            pulled = self.oracle.pull(inputs, _cotangents(self.oracle.outputs(inputs, True)), True)
            norm, size = _norm(pulled.parameters.values()), _norm(now[n] for n in pulled.parameters)
            rate = 0.01 * size / max(norm, 1e-12)
            new = {n: now[n] - rate * g for n, g in pulled.parameters.items()} | pulled.states
            now |= {n: np.asarray(a, now[n].dtype) for n, a in new.items()}
            for side in sides:
                side.load(now)
        for side, start in zip(sides, before, strict=True):
            side.load(start)


def _norm(arrays: Iterable[Any]) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays)))


def _numbered(outputs: Sequence[Any]) -> dict[str, Any]:
    return {str(i): o for i, o in enumerate(outputs)}


def _cotangents(outputs: Sequence[Any]) -> list[Any]:
    rng = np.random.default_rng(7)
    kinds = [(o.shape, dt.as_dtype(o.dtype)) for o in outputs]
    return [rng.standard_normal(s).astype(np.float32) for s, d in kinds if d.is_floating]


def compare_sides(
    a: Side, b: Side, examples: Sequence[Any] = (), gradients: bool = True, steps: int = 3
) -> Report:
    """The whole comparison of two models that take the same inputs."""
    report = Report(a.name, b.name)
    todo = _Comparison(a, b, report)
    graph = a.graph
    has_batch = "batch" in graph.dims()
    examples = [np.asarray(x) for x in examples]
    sets: list[tuple[str, list[Any]]] = []
    if examples:
        sets.append(("given", examples))
    for how, batch in (("normal", 1), ("normal", 3), ("negative", 2), ("large", 2), ("zeros", 2)):
        if has_batch or batch != 3 or not examples:
            label = f"{how}, batch {batch}" if has_batch else how
            sets.append((label, draw(graph, dims_of(graph, batch, examples), how)))
    for label, inputs in sets:
        todo.outputs(inputs, label)
    todo.parameters()
    if gradients and a.differentiable and b.differentiable:
        masked = any(n.op == "dropout" for n in graph.nodes)
        if masked:
            todo = _Comparison(_with_masks(a), _with_masks(b), report)
            report.notes.append(
                "dropout: both sides were built again to take the same masks as inputs"
            )

        def points(batch: int, first: Sequence[Any] = (), start: int = 1) -> Iterator[list[Any]]:
            for seed in itertools.count(start):
                drawn = draw(graph, dims_of(graph, batch, examples), "normal", seed)
                x = list(first) if first and seed == start else drawn
                yield x + (draw_masks(todo.a.graph, graph, x) if masked else [])

        todo.gradients(points(3, examples), "given" if examples else "normal, batch 3", True)
        todo.gradients(points(3), "normal, batch 3, inference", False)
        if has_batch and not any(n.op == "batch_norm" for n in graph.nodes):
            todo.gradients(points(1), "normal, batch 1", True)
        if steps and graph.of_kind("param"):
            todo.steps(points(3, start=100), steps)
    elif gradients:
        report.notes.append(
            "gradients were not compared: one side runs models and does not train them"
        )
    if not report.ok:
        bad = next(r for r in report.rows if not r.ok)
        # A Graph with dropout is compared in inference here: its masks are not at hand.
        inputs = next((x for label, x in sets if bad.case.startswith(label)), sets[0][1])
        report.first_divergence = divergence(
            a, b, inputs, training=bad.kind in ("training", "state")
        )
    return report


def _with_masks(side: Side) -> Side:
    """The same model with every dropout replaced by a multiplication with a mask it is given."""
    if side.rebuild is None:
        raise ValueError(f"{side.name} cannot be built again with dropout masks as inputs")
    graph = feed_masks(side.graph)
    runner = side.rebuild(graph)
    return replace(side, graph=graph, runner=runner)


def divergence(a: Side, b: Side, inputs: Sequence[Any], training: bool = False) -> str | None:
    """The first node of ``a`` whose numbers are others in ``b``.

    A model built from a Graph is built again with every node as an output; of any other, the
    numbers of ``a``'s nodes are looked for, in any order of axes, among those of its own nodes.
    """
    mine = _every_value(a, inputs, training)
    if b.graph is a.graph and b.rebuild is not None:
        there = b.rebuild(_with_every_output(a.graph)[0]).outputs(inputs, training)
        for (node, value), other in zip(mine, there, strict=True):
            if _error(other, value, 0.0) > 1e-4:
                return f"{node.op} in {node.scope or 'the top scope'}"
        return None
    theirs = [_fingerprint(v) for _, v in _every_value(b, inputs, training)]
    for node, value in mine:
        print_ = _fingerprint(value)
        if not any(_alike(print_, t) for t in theirs):
            return f"{node.op} in {node.scope or 'the top scope'}"
    return None


def _every_value(side: Side, inputs: Sequence[Any], training: bool) -> list[tuple[Any, Any]]:
    copy, nodes = _with_every_output(side.graph)
    run = GraphRunner(copy, side.runner.values(), dt.float64)
    return list(zip(nodes, run.outputs(inputs, training), strict=True))


def _with_every_output(graph: Graph) -> tuple[Graph, list[Node]]:
    """A copy whose outputs are the first output of every node, and those nodes."""
    copy, env = replay(graph)
    nodes = [n for n in graph.nodes if n.outputs[0].dtype.is_floating and n.op != "full"]
    copy.outputs = [env[n.outputs[0]] for n in nodes]  # type: ignore[misc]
    return copy, nodes


def _fingerprint(array: Any) -> Any:
    return np.sort(np.asarray(array, np.float64), axis=None)


def _alike(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-7, atol=1e-7 * _magnitude([a])))
