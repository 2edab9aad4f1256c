"""What JAX writes out is our op again, where it is exactly that.

A jaxpr has no name for a mean, a variance, a softmax, a gelu, a layer norm. But each op's line, and
each other way to write it, can be traced in JAX and read by the same reader: where a Graph holds
just that, node for node on the same types, it holds the op.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.frameworks.jax.primitives import number_of
from trivium.frameworks.jax.run import load_jax
from trivium.frameworks.words import Vocabulary, lines
from trivium.graph import OPS, Graph, Node, Type, Value
from trivium.op import Op
from trivium.recent import Recent
from trivium.shape import ShapeError, broadcast
from trivium.transforms.replay import prune, replay

Trace = Callable[[Callable[..., Any], Sequence[Type]], Graph]
"""Reads what a function of JAX computes on arrays of these types."""
TRIES = 64  # sets of attributes that are tried for one place


@dataclass(frozen=True)
class Idiom:
    """One way to write an op in JAX: ``say(attrs, arrays)`` on JAX's arrays, None where absent."""

    op: Op
    say: Callable[[Mapping[str, Any], Sequence[Any]], Any]


# -- ways to write ---------------------------------------------------------------------------------
def _line(op: Op, words: Vocabulary) -> Idiom:
    names = [f"v{i}" for i in range(len(op.arrays))]

    def say(attrs: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        jax = load_jax()
        scope = {"jax": jax, "jnp": jax.numpy, "lax": jax.lax, **dict(zip(names, arrays))}  # noqa: B905
        return eval(words.text(op, attrs, names) or "", scope)  # our own declaration

    return Idiom(op, say)


def _norm(fast: bool, folded: bool, root: bool) -> Idiom:
    """A layer norm: its variance from the mean of squares or not, its scale folded into 1 / std or
    not, divided by the root or not. Flax's is the first of both."""

    def say(attrs: Mapping[str, Any], arrays: Sequence[Any]) -> Any:
        jax = load_jax()
        jnp, lax = jax.numpy, jax.lax
        x, scale, bias = (*arrays, None, None)[:3]
        last = tuple(range(x.ndim - attrs["axes"], x.ndim))
        if fast:
            mean = x.mean(last)
            var = jnp.maximum(0.0, lax.square(x).mean(last) - lax.square(mean))
            mean, var = (jnp.expand_dims(v, last) for v in (mean, var))
        else:
            mean, var = x.mean(last, keepdims=True), x.var(last, keepdims=True)
        spread = var + attrs["epsilon"]
        if root:
            y = (x - mean) / jnp.sqrt(spread)
        elif folded and scale is not None:
            y, scale = (x - mean) * (lax.rsqrt(spread) * scale), None
        else:
            y = (x - mean) * lax.rsqrt(spread)
        y = y if scale is None else y * scale
        return y if bias is None else y + bias

    return Idiom(OPS["layer_norm"], say)


@functools.cache
def _idioms(words: Vocabulary) -> list[Idiom]:
    ways = [(True, True, False), (True, False, False), (False, False, False), (False, False, True)]
    composites = {op.name: op for op, _, _ in lines("jax") if op.is_composite and not op.variadic}
    return [*(_line(op, words) for op in composites.values()), *(_norm(*way) for way in ways)]


def _cases(op: Op) -> Iterator[tuple[list[Type | None], dict[str, Any]]]:
    """The types and attributes of an op's own cases, with fewer of its arrays too."""
    for case in op.cases:
        types = [None if s is None else Type(s.dtype, s.shape) for s in case.arrays]
        yield from ((types[:n], case.attrs) for n in range(op.required, len(types) + 1))


# -- what is written the same way ------------------------------------------------------------------
class Written:
    """Finds the ops in Graphs that ``trace`` has read."""

    def __init__(self, trace: Trace, words: Vocabulary):
        self.trace = trace
        self.known: list[tuple[Idiom, Graph]] = []
        """Idioms as they are read on the types of a case, what is small first."""
        self.patterns = Recent(1024)
        found = []
        for idiom in _idioms(words):
            for types, attrs in _cases(idiom.op):
                pattern = self._read(idiom, types, attrs)
                if pattern is not None and len(pattern.nodes) > 1:
                    found.append((idiom, pattern))
        for idiom, pattern in sorted(found, key=lambda f: len(f[1].nodes)):
            plain = self.found(pattern)  # with what is smaller in it
            op = plain.outputs[0].node
            if op is not None and op.op != idiom.op.name:
                self.known.append((idiom, plain))

    def found(self, graph: Graph, among: int | None = None) -> Graph:
        """The Graph, with the ops in it that are written out there; of the first ``among`` ones."""
        seen: dict[Any, Sequence[Value]] = {}

        def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value]:
            attrs = {k: self.found(a, among) if isinstance(a, Graph) else a
                     for k, a in node.attrs.items()}  # fmt: skip
            op, values, attrs = _plainer(OPS[node.op], values, attrs)
            key = (op.name, tuple(map(id, values)), repr(sorted(attrs.items())))
            alone = op.random or any(hasattr(a, "nodes") or hasattr(a, "tobytes")
                                     for a in attrs.values())  # fmt: skip
            if key in seen and not alone:
                return seen[key]
            made: Sequence[Value] = op.append(new, values, attrs, node.origin)
            if len(made) == 1:
                made = [self._op(made[0], among)]
            seen[key] = made
            return made

        return prune(replay(graph, rule)[0])

    def _op(self, value: Value, among: int | None) -> Value:
        """The op that a Value is, by any idiom; else the Value itself."""
        for i, (idiom, pattern) in reversed(list(enumerate(self.known[:among]))):
            bound: dict[Value, Value] = {}
            if not _same(pattern.outputs[0], value, bound, False):
                continue
            arrays = [bound.get(v) for v in pattern.inputs]
            for attrs in _attributes(idiom.op, arrays, bound, value):
                exact = self._exact(i, [None if a is None else a.type for a in arrays], attrs)
                env: dict[Value, Value] = {}
                if exact is None or not _same(exact.outputs[0], value, env, True):
                    continue
                if [env.get(v) for v in exact.inputs] == arrays:
                    result: Value = idiom.op(*arrays, **attrs)
                    return result
        return value

    def _exact(self, i: int, types: Sequence[Any], attrs: Mapping[str, Any]) -> Graph | None:
        def make() -> Graph | None:
            pattern = self._read(self.known[i][0], types, attrs)
            return None if pattern is None else self.found(pattern, i)

        graph: Graph | None = self.patterns.get((i, tuple(types), repr(attrs)), make)
        return graph

    def _read(self, idiom: Idiom, types: Sequence[Any], attrs: Mapping[str, Any]) -> Graph | None:
        present = [t is not None for t in types]

        def function(*given: Any) -> Any:
            it = iter(given)
            return idiom.say(full, [next(it) if here else None for here in present])

        try:
            full = idiom.op.normalize(types, attrs)
            return self.trace(function, [t for t in types if t is not None])
        except Exception:  # an attribute that JAX does not take, a size that it asks about
            return None


def _same(p: Value, v: Value, env: dict[Value, Value], exact: bool) -> bool:
    """Is a Value what a pattern says? ``exact``: attributes, numbers and types too."""
    if p in env:
        return env[p] is v
    env[p] = v
    a, b = p.node, v.node
    if a is None:
        return p.type == v.type if exact else p.dtype == v.dtype
    if b is None or a.op != b.op or p.index != v.index or len(a.inputs) != len(b.inputs):
        return False
    if exact and repr(sorted(a.attrs.items())) != repr(sorted(b.attrs.items())):
        return False
    pairs = zip(a.inputs, b.inputs, strict=True)
    return all(x is y if x is None or y is None else _same(x, y, env, exact) for x, y in pairs)


def _attributes(
    op: Op, arrays: Sequence[Value | None], env: Mapping[Value, Value], result: Value
) -> Iterator[dict[str, Any]]:
    """What an op's attributes may be here: the numbers and the axes of its parts are tried."""
    parts = [v.node for p, v in env.items() if p.node is not None and v.node is not None]
    numbers = [n for v in env.values() if isinstance(n := number_of(v), (int, float))]
    rank = max(len(a.shape) for a in arrays if a is not None)
    choices: dict[str, list[Any]] = {}
    for key, default in op.defaults.items():
        said = [c.attrs[key] for c in op.cases if key in c.attrs]
        near = [n.attrs[key] for n in parts if key in n.attrs]
        if isinstance(default, float):
            choices[key] = [float(n) for n in (*near, *numbers, default)]
        elif isinstance(default, int) and not isinstance(default, bool):
            choices[key] = [*range(rank + 1)]
        else:
            choices[key] = [
                *near,
                *said,
                *([] if default is inspect.Parameter.empty else [default]),
            ]
    types = [None if a is None else a.type for a in arrays]
    tried = set()
    for found in itertools.islice(itertools.product(*choices.values()), TRIES):
        try:
            attrs, out = op.settle(types, dict(zip(choices, found, strict=True)))
        except (TypeError, ValueError, LookupError):
            continue
        if out == [result.type] and repr(attrs) not in tried:
            tried.add(repr(attrs))
            yield attrs


# -- plainer, and the same numbers -----------------------------------------------------------------
def _plainer(
    op: Op, values: list[Value | None], attrs: dict[str, Any]
) -> tuple[Op, list[Value | None], dict[str, Any]]:
    """An op as one would write it: JAX spells out what broadcasts, and what keeps its axes."""
    types = [None if v is None else v.type for v in values]
    source = values[0].node if values and values[0] is not None else None
    shaped = op.name in ("reshape", "broadcast_to") and source is not None
    if shaped and source is not None and source.attrs.get("keepdims") is False:
        kept, inner = source.attrs | {"keepdims": True}, OPS[source.op]
        (made,) = inner.infer([v.type for v in source.inputs if v is not None], kept)
        if made.shape == attrs["shape"]:
            return inner, list(source.inputs), kept
    if len(values) > 1 and None not in values and not op.random and op.elementwise(types, attrs):
        shape = broadcast(*(v.shape for v in values if v is not None))
        for i, v in enumerate(values):
            others = [w.shape for j, w in enumerate(values) if j != i and w is not None]
            while v is not None and (inside := _spread(v)) is not None:
                if _broadcast(inside.shape, *others) != shape:
                    break
                values[i] = v = inside
    return op, values, attrs


def _spread(v: Value) -> Value | None:
    """What was made larger, or was given axes in front."""
    if v.node is None or v.node.op not in ("broadcast_to", "reshape"):
        return None
    x = v.node.inputs[0]
    assert x is not None
    front = len(v.shape) - len(x.shape)
    ones = v.node.op == "broadcast_to" or v.shape == (1,) * front + x.shape
    return x if ones and front >= 0 else None


def _broadcast(*shapes: Any) -> Any:
    try:
        return broadcast(*shapes)
    except ShapeError:
        return None


__all__ = ["Written"]
