"""Who is asked: the real model in its own framework, our reading of it in float64, and that reading
moved by rounding, which says how much rounding can explain at this point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.frameworks.runner import Array, Pulled, Runner
from trivium.graph import Graph, UnsupportedError
from trivium.interpret import Interpreter
from trivium.shape import bind, subs
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize


@dataclass
class Side:
    """A model as the comparison needs it: our reading of it, its numbers, and itself running."""

    name: str
    graph: Graph
    values: Mapping[str, Any]
    runner: Runner
    ran_by: str = "NumPy"
    """What ran it, in words."""
    differentiable: bool = True
    rebuild: Callable[[Graph], Runner] | None = None
    """Another Graph with the same parameters, built in the same framework."""


class GraphRunner:
    """A Graph on NumPy: in its own dtypes or, as the oracle, in float64."""

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


def rounded(arrays: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """Every floating number but 0 moved to one of its two neighbours, at random."""
    signs = rng.integers(0, 2, 65521, np.int8) * np.int8(2) - np.int8(1)

    def moved(a: Array) -> Array:
        if a.dtype.kind != "f":
            return a
        flat = np.ascontiguousarray(a).reshape(a.shape)  # NumPy gives a single number an axis
        whole = flat.view(f"i{a.itemsize}")  # the next number is the next bits
        near = (whole + np.resize(signs, a.size).reshape(a.shape)).astype(whole.dtype).view(a.dtype)
        return np.where((a == 0) | ~np.isfinite(a), a, near)

    return [moved(np.asarray(a)) for a in arrays]


@dataclass
class Seen:
    """What one side gives at one point, by name: itself, its reading, and the reading moved."""

    real: dict[str, Array | None]
    exact: dict[str, Array | None]
    moved: dict[str, Array | None]
    raised: str | None = None
    """What the model said where it could not compute."""
    shaken: Callable[[], dict[str, Array | None]] = dict
    """The model itself at the moved point, asked only where the reading moves far."""


Group = dict[str, Seen]
"""By kind: outputs, states, gradients by parameters and by inputs."""


@dataclass
class Witness:
    """One side, asked at points. ``like``: the other side, whose reading is the same Graph."""

    side: Side
    like: Witness | None = None
    oracle: GraphRunner = field(init=False)
    probe: GraphRunner = field(init=False)

    def __post_init__(self) -> None:
        same = self.like is not None and self.like.side.graph is self.side.graph
        if same and self.like is not None:
            self.oracle, self.probe = self.like.oracle, self.like.probe
        else:
            self.like = None
            self.oracle = GraphRunner(self.side.graph, self.side.values, dt.float64)
            self.probe = GraphRunner(self.side.graph, self.side.values)
        self._last: tuple[Any, Any, Any] | None = None

    def load(self, values: Mapping[str, Any]) -> None:
        """Let the model and its reading take these numbers."""
        mine = {v.name: v for v in self.side.graph.of_kind("param", "state")}
        new = {
            n: np.asarray(a).astype(mine[n].dtype.numpy)
            for n, a in values.items()
            if n in mine and np.shape(a) == mine[n].shape  # of another shape: a row says so
        }
        self.side.runner.load({**self.side.values, **new})
        self._last = None
        if self.like is None:
            self.oracle.load(new)
            self.probe.load(new)

    def cotangents(self, inputs: Sequence[Any]) -> list[Any]:
        """Random numbers in the shapes and dtypes of the floating outputs, the same for each."""
        data = self.side.graph.of_kind("data")
        dims: dict[str, int] = {}
        for v, x in zip(data, inputs, strict=True):
            bind(v.shape, x.shape, dims, f"input {v.name!r}")
        shapes = [tuple(int(subs(s, dims)) for s in v.shape) for v in self.side.graph.outputs]
        return [
            np.random.default_rng(7 + i).standard_normal(shape).astype(v.dtype.numpy)
            for i, (v, shape) in enumerate(zip(self.side.graph.outputs, shapes, strict=True))
            if v.dtype.is_floating
        ]

    def outputs(self, inputs: Sequence[Any], training: bool = False) -> Seen:
        """The outputs at a point, by their numbers."""
        try:
            exact, moved = self._reading(inputs, training, "outputs")
        except Exception as error:  # a batch of 1, an index out of a table
            return Seen({}, {}, {}, f"our reading raised {_line(error)}")
        try:
            real = self.side.runner.outputs(inputs, training)
        except OWN:
            raise
        except Exception as error:
            return Seen({}, numbered(exact), numbered(moved), _line(error))
        shaken = self._shaken(inputs, lambda xs: self.side.runner.outputs(xs, training))
        return Seen(numbered(real), numbered(exact), numbered(moved), None,
                    lambda: numbered(shaken()))  # fmt: skip

    def pull(self, inputs: Sequence[Any], cotangents: Sequence[Any], training: bool) -> Group:
        """Outputs, states and gradients at a point."""
        kinds = ("outputs", "states", "parameters", "inputs")
        try:
            exact, moved = self._reading(inputs, training, "pull", cotangents)
        except Exception as error:
            said = f"our reading raised {_line(error)}"
            return {kind: Seen({}, {}, {}, said) for kind in kinds}
        try:
            real = self.side.runner.pull(inputs, cotangents, training)
        except OWN:
            raise
        except Exception as error:
            return {kind: Seen({}, {}, {}, _line(error)) for kind in kinds}

        shaken = self._shaken(inputs, lambda xs: self.side.runner.pull(xs, cotangents, training))

        def seen(of: Callable[[Pulled], dict[str, Any]]) -> Seen:
            return Seen(of(real), of(exact), of(moved), None, lambda: of(shaken()))

        group = {
            "outputs": seen(lambda p: numbered(p.outputs)),
            "states": seen(lambda p: dict(p.states)),
            "parameters": seen(lambda p: dict(p.parameters)),
            "inputs": seen(lambda p: {f"input {i}": g for i, g in enumerate(p.inputs)}),
        }
        # A state that the reading leaves alone has to stay as it is.
        inside = group["inputs"]
        for name, g in inside.exact.items():
            if g is not None and inside.real.get(name) is None and not np.any(g):
                inside.real[name] = np.zeros_like(g)  # no path leads there: torch says None
        states, held = group["states"], self.oracle.values()
        known = {v.name for v in self.side.graph.of_kind("state")}
        states.real = {n: a for n, a in states.real.items() if n in known}
        for name in known - states.exact.keys():
            states.exact[name] = states.moved[name] = held[name]
        for name in known - states.real.keys():  # it tells only of those that it changes
            states.real[name] = held[name]
        return group

    def _shaken(self, inputs: Sequence[Any], ask: Callable[[Sequence[Any]], Any]) -> Any:
        """The model itself with its inputs, and what of its numbers can be set, moved likewise."""

        @functools.cache
        def shaken() -> Any:
            runner, rng = self.side.runner, np.random.default_rng(13)
            before = runner.values()
            if not before:
                return ask(rounded(inputs, rng))
            runner.load(before | self._rounded(before, rng))
            try:
                return ask(rounded(inputs, rng))
            finally:
                runner.load(before)

        return shaken

    def _rounded(self, values: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The numbers that training changes, moved; a mask or a table is what it is."""
        graph = self.side.graph
        changing = [*graph.of_kind("param"), *graph.updates]
        names = [v.name for v in changing if v.name in values]
        return dict(zip(names, rounded([values[n] for n in names], rng), strict=True))

    def pulled(self) -> Pulled:
        """The reading's outputs and gradients at the last point where they were asked for."""
        assert self._last is not None
        exact: Pulled = self._last[2][0]
        return exact

    def _reading(self, inputs: Sequence[Any], training: bool, what: str, *more: Any) -> Any:
        """The reading at a point, exact and moved; kept for the other side, if it shares it."""
        if self.like is not None:
            kept = self.like._last
            if kept is not None and kept[0] is inputs and kept[1] == (training, what):
                return kept[2]
        exact = getattr(self.oracle, what)(inputs, *more, training)
        rng = np.random.default_rng(11)
        before = self.probe.values()
        self.probe.load(self._rounded(before, rng))
        moved = getattr(self.probe, what)(rounded(inputs, rng), *more, training)
        self.probe.load(before)
        self._last = (inputs, (training, what), (exact, moved))
        return exact, moved


OWN = (UnsupportedError, ImportError, MemoryError)
"""What a runner says for itself, with a remedy; anything else is the model's."""


def _line(error: Exception) -> str:
    lines = [w for w in map(str.strip, str(error).split(chr(10))) if w] or [""]
    said = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return f"{type(error).__name__}: {said[:200]}"


def numbered(outputs: Sequence[Any]) -> dict[str, Any]:
    """Outputs by their numbers, as text."""
    return {str(i): o for i, o in enumerate(outputs)}


def magnitude(arrays: Sequence[Any]) -> float:
    """The largest finite absolute number."""
    finite = [
        np.abs(a[np.isfinite(a)]).max() for a in arrays if a is not None and np.isfinite(a).any()
    ]
    return float(max(finite, default=0.0))


def equal(a: Any, b: Any) -> bool:
    """The same numbers, bit for bit; no number is like another."""
    floating = dt.as_dtype(np.asarray(a).dtype).is_floating
    return bool(np.array_equal(a, b, equal_nan=floating))


def error(got: Any, want: Any, group: float, probe: Any = None) -> float:
    """The largest absolute error over the largest magnitude (and a little of the whole group's).

    Where ``want`` is infinite or no number, ``got`` has to be the same; where the ``probe`` is not
    finite though ``want`` is, the dtype cannot hold the number, and nothing is asked.
    """
    if np.shape(got) != np.shape(want):
        return float("inf")
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.size == 0:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        far = float(np.max(np.abs(got - want)))
    if np.isfinite(far):  # all of both is
        return far / _scale(want, group)
    asked = np.ones(want.shape, np.bool_)
    if probe is not None and np.shape(probe) == want.shape:
        asked = np.isfinite(np.asarray(probe, np.float64)) | ~np.isfinite(want)
    strange = ~np.isfinite(want)
    if not np.array_equal(np.isnan(got) & asked, np.isnan(want) & asked) or not np.array_equal(
        got[strange & ~np.isnan(want)], want[strange & ~np.isnan(want)]
    ):
        return float("inf")
    skip = strange | ~asked
    got, want = np.where(skip, 0, got), np.where(skip, 0, want)
    return float(np.max(np.abs(got - want))) / _scale(want, group)


def _scale(want: Array, group: float) -> float:
    return max(float(np.max(np.abs(want))), 1e-3 * group, 1e-36)
