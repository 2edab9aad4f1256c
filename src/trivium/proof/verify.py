"""Evidence that two models are the same: outputs, every gradient, training steps.

Two witnesses for each model: itself, running in its own framework, and our reading of it in
float64. They have to agree before anything else counts: a model that differs from its reading was
*misread*. Then the two readings have to agree with each other. How far two of them may be apart is
not taken from any model's error: it is how far the reading itself moves at that point when its
parameters and inputs are moved by one rounding and it is computed in its own dtypes. So the verdict
is the same whichever model is called the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from trivium import dtype as dt
from trivium.frameworks.runner import Runner
from trivium.graph import OPS, Graph, Node, Value
from trivium.proof import facts
from trivium.proof.divergence import first_difference
from trivium.proof.inputs import Points, feed_masks
from trivium.proof.report import Report, Row
from trivium.proof.witness import Group, Seen, Side, Witness, equal, error, magnitude
from trivium.transforms.replay import replay

FACTOR = 16.0
"""How many times as far as the moved reading a model may be from its reading."""
FLOOR = 32.0
"""In units of the dtype's eps: what rounding may cost where the reading happened not to move."""
CLEAR = 8.0
"""Up to so many times the floor an error needs no second opinion on how far rounding goes."""
CEILING = 1e-3
"""From here on the point sits on a kink, and a limit is at most three times the movement."""
_WHO = ("source", "target")
MOST = 0.25
"""A limit beyond this would compare nothing."""
POINTS = 6
"""How many points a disagreement in gradients is looked for at."""


class _Comparison:
    """One side, or two, asked at one point after another; every answer becomes rows."""

    def __init__(self, a: Side, b: Side | None, report: Report):
        self.a, self.report = Witness(a), report
        self.b = None if b is None else Witness(b, self.a)
        self.floor = FLOOR * min(_eps(s.graph) for s in (a, b) if s is not None)
        self.usual: dict[str, float] = {}  # how large an output was where it was first seen

    def witnesses(self) -> list[Witness]:
        """Both, or the one there is."""
        return [self.a] if self.b is None else [self.a, self.b]

    def takes(self, inputs: Sequence[Any]) -> None:
        """Compute everything; raises where a model, or our reading of it, refuses these inputs."""
        for w in self.witnesses():
            w.probe.outputs(inputs)
            w.side.runner.outputs(inputs)

    def rows(self, kind: str, case: str, a: Seen, b: Seen | None) -> None:
        """One row for each name that either side has."""
        sides = [s for s in (a, b) if s is not None]
        if self._raised(kind, case, sides):
            return
        every = [w for s in sides for w in s.exact.values() if w is not None]
        group = magnitude([np.asarray(w, np.float64) for w in every])
        for name in dict.fromkeys(n for s in sides for part in (s.exact, s.real) for n in part):
            if any(s.exact.get(name) is None and name in s.exact for s in sides):
                continue  # an input that has no gradient
            lacking = [
                who
                for s, who in zip(sides, _WHO, strict=False)
                for part in (s.exact, s.real)
                if part.get(name) is None
            ]
            if lacking:
                self._missing(kind, name, case, lacking[0])
                continue
            if not all(_some_finite(s.exact[name]) for s in sides):
                self._nothing(kind, name, case, sides)
                continue
            size = group
            if kind == "output":  # what cancels to nothing is as exact as it usually is
                size = max(
                    group, 1e3 * self.usual.setdefault(name, magnitude([sides[0].exact[name]]))
                )
            self.report.rows.append(self._row(kind, name, case, sides, size))

    def _nothing(self, kind: str, name: str, case: str, sides: Sequence[Seen]) -> None:
        """Where no number is finite there is nothing to compare, but for that it is so in both."""
        arrays = [a for s in sides for a in (s.exact[name], s.real[name])]
        if any(map(_some_finite, arrays)):
            words = "finite numbers in one place, none in another"
            own = [_some_finite(s.real[name]) != _some_finite(s.exact[name]) for s in sides]
            who = [w for w, wrong in zip(_WHO, own, strict=False) if wrong] or [""]
            self.report.rows.append(Row.differs(kind, name, case, who, words))
            return
        note = f"{kind} {name}: no finite number, not compared [{case}]"
        self.report.notes += [note] * (note not in self.report.notes)

    def _raised(self, kind: str, case: str, sides: Sequence[Seen]) -> bool:
        """A model that cannot compute at a point where the other can differs from it."""
        said = [s.raised for s in sides]
        if all(said):
            note = f"{case}: no model takes these inputs ({said[0]})"
            self.report.notes += [note] * (note not in self.report.notes)
        elif any(said):
            who = {w: r for w, r in zip(_WHO, said, strict=False) if r}
            words = next(f"{w} raised {r}" for w, r in who.items())
            self.report.rows.append(Row.differs(kind, "all", case, who, words))
        return any(said)

    def _missing(self, kind: str, name: str, case: str, where: str) -> None:
        both = self.b is not None
        words = f"the {where} has none" if both else "the model and our reading do not both have it"
        self.report.rows.append(Row.differs(kind, name, case, [""] if both else _WHO[:1], words))

    def _row(self, kind: str, name: str, case: str, sides: list[Seen], group: float) -> Row:
        exact = [s.exact[name] for s in sides]
        moved = [s.moved.get(name) for s in sides]
        own = [
            error(s.real[name], w, group, m) for s, w, m in zip(sides, exact, moved, strict=True)
        ]
        apart = 0.0
        if len(sides) == 2 and exact[0] is not exact[1]:
            apart = max(error(exact[1], exact[0], group, moved[0]),
                        error(exact[0], exact[1], group, moved[1]))  # fmt: skip
        move = max(_finite(error(m, w, group, m)) for m, w in zip(moved, exact, strict=True))
        if max(*own, apart, 0.0) > CLEAR * self.floor and move > self.floor:
            # A misread model may itself be one that rounding shakes. Then the real one is not.
            real = [(s.shaken().get(name), s.real[name]) for s in sides]
            move = min(move, max(_finite(error(m, r, group, m)) for m, r in real))
        whole = np.asarray(exact[0]).dtype.kind in "iub"  # numbers that are counted are exact
        limit = FACTOR * move + (0.0 if whole else self.floor)
        if magnitude([np.asarray(w, np.float64) for w in exact]) > 1e-3 * group:
            limit = min(limit, max(CEILING, 3 * move))
        limit = min(limit, MOST)
        return Row(kind, name, case, own[0], own[1] if len(own) > 1 else 0.0, limit, apart)

    def ran(self) -> bool:
        """Was there an output? A report without one is no evidence, and says so."""
        seen = {r.name for r in self.report.rows if r.kind == "output"}
        count = len(self.a.side.graph.outputs)
        unseen = [n for n in map(str, range(count)) if not {n, "all"} & seen]
        for name in unseen:
            words = "no inputs were found that give a finite number: give an example"
            self.report.rows.append(Row.differs("output", name, "every point", [""], words))
        return not unseen

    def parameters(self) -> None:
        """Every parameter and state arrived, bit for bit."""
        if self.b is None:
            return
        mine, theirs = (_numbers(w.side) for w in (self.a, self.b))
        for name in dict.fromkeys([*mine, *theirs]):
            if name not in mine or name not in theirs:
                where = "source" if name not in mine else "target"
                self._missing("parameter", name, "values", where)
                continue
            what = ("parameter", name, "values")
            same = equal(mine[name], theirs[name])
            words = "" if same else _how_far(mine[name], theirs[name])
            self.report.rows.append(Row.same(*what) if same else Row.differs(*what, [""], words))

    def outputs(self, inputs: Sequence[Any], case: str, training: bool = False) -> None:
        """The outputs at one point."""
        seen = [w.outputs(inputs, training) for w in self.witnesses()]
        self.rows("output", case, seen[0], seen[1] if len(seen) > 1 else None)
        for s, w, who in zip(seen, self.witnesses(), _WHO, strict=False):
            if s.raised is None and not any(r.name == f"dtypes of {who}" for r in self.report.rows):
                self.report.rows.append(facts.dtypes(w.side, s.real, who))

    def longer(self, inputs: Sequence[Any] | None, training: bool = False) -> None:
        """The outputs where open sizes are larger, if the models take such."""
        if inputs is None:
            return
        seen = [w.outputs(inputs, training) for w in self.witnesses()]
        if said := next((s.raised for s in seen if s.raised), None):
            self.report.notes.append(f"larger sizes were not compared: {said}")
        else:
            self.rows("output", "larger sizes", seen[0], seen[1] if len(seen) > 1 else None)

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
        groups: list[Group] = []
        cts: list[Any] = []
        for w in self.witnesses():
            cts = cts if w.like else w.cotangents(inputs)
            groups.append(w.pull(inputs, cts, training))

        def both(what: str) -> tuple[Seen, Seen | None]:
            return groups[0][what], groups[1][what] if len(groups) > 1 else None

        if training:
            self.rows("training", case, *both("outputs"))
            self.rows("state", case, *both("states"))
        self.rows(kind, case, *both("parameters"))
        self.rows(kind, case, *both("inputs"))

    def steps(self, points: Iterator[Sequence[Any]], count: int) -> None:
        """``count`` steps of gradient descent along the reading's path, a fresh batch for each.

        The path starts a little beside the model's own parameters, since a model that begins with
        zeros hides what stands before them. Every witness starts each step from the same numbers,
        so that rounding does not compound into chaos; what is compared is each step's gradient and
        what the states became.
        """
        with _restored(self.witnesses()):
            now = beside(self.a)
            for k in range(count):
                for w in self.witnesses():
                    w.load(now)
                self.gradients(points, f"step {k + 1}", True, kind="step")
                pulled = self.a.pulled()
                norm = _norm(pulled.parameters.values())
                size = _norm(now[n] for n in pulled.parameters)
                rate = 0.01 * size / max(norm, 1e-12)
                now |= {n: _like(now[n], now[n] - rate * g) for n, g in pulled.parameters.items()}
                now |= {n: _like(now[n], a) for n, a in pulled.states.items() if n in now}


class _restored:
    """The witnesses' numbers as they were, afterwards."""

    def __init__(self, witnesses: Sequence[Witness]):
        self.witnesses = witnesses

    def __enter__(self) -> None:
        self.before = [(w, dict(w.side.values) | w.side.runner.values()) for w in self.witnesses]

    def __exit__(self, *_: object) -> None:
        for w, start in self.before:
            w.load(start)


def beside(witness: Witness, seed: int = 5) -> dict[str, Any]:
    """Every floating number that the model holds, moved by about a tenth of its size at random.

    A parameter is moved by 0.01 at least, and a state that is zero by 0.1.
    """
    rng = np.random.default_rng(seed)
    now: dict[str, Any] = {}
    for v in witness.side.graph.of_kind("param", "state"):
        array = np.asarray(witness.side.values[v.name])
        now[v.name] = array
        if not v.dtype.is_floating or not array.size:
            continue
        wide, noise = array.astype(np.float64), 0.1 * rng.standard_normal(array.shape)
        if v.kind == "param":
            size = max(float(np.sqrt(np.mean(np.square(wide)))), 0.1)
            now[v.name] = _like(array, wide + size * noise)
        else:  # a variance stays positive; a gate that is shut opens
            now[v.name] = _like(array, np.where(wide == 0, noise, wide * (1 + np.tanh(noise))))
    return now


def _like(array: Any, new: Any) -> Any:
    return np.asarray(new).astype(np.asarray(array).dtype)


def _eps(graph: Graph) -> float:
    """The coarsest eps of the dtypes that the model works in, float32's at least."""
    coarse = [float(np.finfo(np.float32).eps)]
    kinds = {v.dtype for n in graph.nodes for v in n.outputs} | {v.dtype for v in graph.inputs}
    coarse += [dt.eps(d) for d in kinds if d.is_floating]
    return max(coarse)


def _some_finite(array: Any) -> bool:
    wide = np.asarray(array, np.float64)
    return wide.size == 0 or bool(np.isfinite(wide).any())


def _finite(number: float) -> float:
    return number if np.isfinite(number) else 0.0


def _numbers(side: Side) -> Mapping[str, Any]:
    """A model's own numbers; of one that shows none, those in its file."""
    return side.runner.values() or side.values


def _how_far(a: Any, b: Any) -> str:
    if np.shape(a) != np.shape(b):
        return f"shape {np.shape(a)} against {np.shape(b)}"
    far = np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)), initial=0.0)
    return f"numbers up to {far:.1e} apart"


def _norm(arrays: Iterable[Any]) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays)))


_EVERYWHERE = (("normal", 1), ("normal", 3), ("negative", 2), ("positive", 2), ("large", 2),
               ("zeros", 2))  # fmt: skip


def doubt(
    side: Side, examples: Sequence[Any] = (), gradients: bool = False, training: bool = False
) -> Report:
    """Is our reading of a model what the model itself computes, and what it says of itself?

    Outputs are compared on the examples, on inputs drawn at random, and beside the model's own
    parameters; ``gradients`` too, and two training steps. ``training``: the mode that was read,
    where it is one alone.
    """
    report = Report(side.name, "our reading", ran={side.name: side.ran_by})
    todo = _Comparison(side, None, report)
    where = Points(side.graph, examples, ask=todo.takes)
    sets = where.named((("normal", 3), ("negative", 2), ("positive", 2)))
    for label, inputs in sets:
        todo.outputs(inputs, label, training)
    todo.longer(where.longer(), training)
    if not todo.ran():
        return report
    report.rows += facts.itself(side, where.drawn("normal", 3), "source")
    if side.differentiable and side.graph.of_kind("param"):
        with _restored(todo.witnesses()):
            todo.a.load(beside(todo.a))
            todo.outputs(sets[-1][1], "beside its parameters", training)
    if gradients and side.differentiable and report.ok:
        _train(side, None, where, 2, report)
    _place(report, side, None, sets)
    return report


def compare_sides(
    a: Side, b: Side, examples: Sequence[Any] = (), gradients: bool = True, steps: int = 3
) -> Report:
    """The whole comparison of two models that take the same inputs."""
    shared = a.graph is b.graph
    report = Report(a.name, b.name, ran={a.name: a.ran_by} | {b.name: b.ran_by}, shared=shared)
    if not _same_inputs(a.graph, b.graph, report):
        return report
    todo = _Comparison(a, b, report)
    where = Points(a.graph, examples, b.graph, todo.takes)
    sets = where.named(_EVERYWHERE)
    for label, inputs in sets:
        todo.outputs(inputs, label)
    todo.longer(where.longer())
    if not todo.ran():
        return report
    todo.parameters()
    trains = a.differentiable and b.differentiable
    report.rows += [] if shared else facts.compared(a.graph, b.graph, trains)
    drawn = where.drawn("normal", 3)
    for side, whose in zip((a, b), _WHO, strict=True):
        report.rows += facts.itself(side, drawn, whose)
    if gradients and a.differentiable and b.differentiable:
        _train(a, b, where, steps, report)
    elif gradients:
        report.notes.append(
            "gradients were not compared: one side runs models and does not train them"
        )
    _place(report, a, b, sets)
    return report


def _same_inputs(a: Graph, b: Graph, report: Report) -> bool:
    """Do both take as many inputs, of as many axes and like kinds? Else that is the difference."""
    mine, theirs = ([(v.name, v.dtype, v.shape) for v in g.of_kind("data")] for g in (a, b))
    fit = len(mine) == len(theirs) and all(
        len(x[2]) == len(y[2])
        and x[1].is_floating == y[1].is_floating
        and all(s == t for s, t in zip(x[2], y[2], strict=True) if type(s) is type(t) is int)
        for x, y in zip(mine, theirs, strict=True)
    )
    if not fit:
        words = " against ".join(
            ", ".join(f"{d}[{', '.join(map(str, s))}]" for _, d, s in side) or "none"
            for side in (mine, theirs)
        )
        report.rows.append(Row.differs("inputs", "all", "model", [""], words))
        report.first_divergence = f"the inputs: {words}"
    return fit


def _train(a: Side, b: Side | None, where: Points, steps: int, report: Report) -> None:
    """Gradients in both modes and training steps."""
    todo, masks = _Comparison(a, b, report), None
    todo.gradients(where.stream(3), "normal, batch 3, inference", False)
    if facts.rates(a.graph):
        quiet = _Comparison(*_each(a, b, _no_dropout, _quiet), report)
        quiet.gradients(where.stream(3, given=True), "nothing dropped", True)
        todo = quiet
        if b is not None:  # a model alone has nobody to share its masks with
            todo = _Comparison(*_each(a, b, feed_masks, _rebuilt), report)
            masks = todo.a.side.graph
            report.notes.append("dropout: both sides were built again, the same masks as inputs")
    label = "given" if where.examples else "normal, batch 3"
    todo.gradients(where.stream(3, given=True, masked=masks), label, True)
    if where.has_batch and not any(n.op == "batch_norm" for n in a.graph.nodes):
        todo.gradients(where.stream(1, masked=masks), "normal, batch 1", True)
    if steps and a.graph.trained():
        todo.steps(where.stream(3, start=100, masked=masks), steps)


def _each(
    a: Side, b: Side | None, change: Callable[[Graph], Graph], made: Callable[[Side, Graph], Side]
) -> tuple[Side, Side | None]:
    """Both sides with their Graphs changed; one Graph stays one Graph."""
    new = change(a.graph)
    if b is None:
        return made(a, new), None
    return made(a, new), made(b, new if b.graph is a.graph else change(b.graph))


def _no_dropout(graph: Graph) -> Graph:
    """Every dropout passing everything on."""

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Any:
        return [values[0]] if OPS[node.op].drops else None

    plain, _ = replay(graph, rule)
    plain.inputs = [v for v in plain.inputs if v.kind != "rng"]
    return plain


def _quiet(side: Side, graph: Graph) -> Side:
    """The model itself with its dropouts passed over; built again where it has no way to."""
    if getattr(side.runner, "quiet", None) is None:
        return _rebuilt(side, graph)
    return replace(side, graph=graph, runner=cast(Runner, _Quiet(side.runner)))


class _Quiet:
    """A runner whose dropouts pass everything on."""

    def __init__(self, runner: Any):
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def outputs(self, *args: Any) -> Any:
        """See Runner."""
        with self.runner.quiet():
            return self.runner.outputs(*args)

    def pull(self, *args: Any) -> Any:
        """See Runner."""
        with self.runner.quiet():
            return self.runner.pull(*args)


def _rebuilt(side: Side, graph: Graph) -> Side:
    """Another Graph with the same parameters, such as one that is given its masks."""
    if side.rebuild is None:
        raise ValueError(f"{side.name} cannot be built again with dropout masks as inputs")
    return replace(side, graph=graph, runner=side.rebuild(graph))


def _place(report: Report, a: Side, b: Side | None, sets: Sequence[tuple[str, Any]]) -> None:
    """Name where the two first differ."""
    if report.ok or report.first_divergence:
        return
    bad = next(r for r in report.rows if not r.ok)
    inputs = next((x for label, x in sets if bad.case.startswith(label)), sets[0][1])
    training = bad.kind in ("training", "state")
    found = None
    if bad.kind not in ("said", "parameter"):
        found = first_difference(a, b, inputs, training, report.misread)
    report.first_divergence = found or f"{bad.kind} {bad.name}" + (
        f" ({bad.detail})" if bad.detail else ""
    )
