"""What an op is: one record that says everything about it, made where the op is declared.

An op is declared by a Python function whose signature is its schema: arrays are positional
(``None`` by default when they may be left out, ``*xs`` when there may be any number), attributes
are keyword-only. The body of a :func:`primitive` is its meaning on NumPy arrays; the body of a
:func:`composite` is its meaning in other ops. See ``ops/elementwise.py`` for the plainest examples
and CONTRIBUTING.md for how to add one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType, as_dtype
from trivium.framework import FRAMEWORKS
from trivium.graph import OPS, Graph, GraphError, Operators, Type, Value, current
from trivium.recent import Recent
from trivium.shape import Dim, ShapeError, broadcast, possible
from trivium.traits import Traits

BODIES = 64  # of a composite, for as many different types and attributes
Rule = Callable[..., Any]
_TRAITS = {f.name for f in fields(Traits)}


@dataclass(frozen=True)
class Refused:
    """Why a framework has no exact form of an op, or none with some attributes."""

    reason: str
    when: Callable[[Mapping[str, Any]], bool] | None = None
    """With which attributes; with others the framework's own function writes the op."""
    remedy: str = ""


class By:
    """A form that depends on an attribute: ``By("ties", first="...", share="...")``.

    A composite's body is written for a value that has no form, and a primitive is refused.
    """

    def __init__(self, attribute: str, lines: Mapping[Any, str | Refused] | None = None,
                 **more: str | Refused):  # fmt: skip
        self.attribute = attribute
        self.lines: dict[Any, str | Refused] = {**(lines or {}), **more}


CORNERS = ("ties", "edge")
"""Attributes that say which gradient is meant at a corner. No output depends on them, so they are
nothing to a format without gradients.

``ties``: of equal extrema the "first" gets the gradient, or all "share" it in equal parts, or
"each" gets the whole. ``edge``: at a bound itself the slope is that "inside" it, or "outside".
"""


def corner(name: str, word: str, words: Sequence[str], x: Type) -> str:
    """A corner's attribute, checked; integers have no gradient, and so the first word always."""
    if word not in words:
        raise TypeError(f"{name}={word!r} is not one of {', '.join(words)}")
    return word if x.dtype.is_floating else words[0]


@dataclass(frozen=True)
class Sample:
    """A random array for a conformance case: its shape, dtype and range."""

    shape: tuple[int, ...]
    dtype: DType = dt.float32
    low: float = -2.0
    high: float = 2.0

    def array(self, rng: np.random.Generator, floating: DType = dt.float32) -> np.ndarray:
        """Draw it; ``floating`` replaces float32, so that one case serves float64 too."""
        if self.dtype == dt.bool_:
            return rng.random(self.shape) < 0.5
        if self.dtype.is_integer:
            return rng.integers(int(self.low), int(self.high), self.shape, self.dtype.numpy)
        # Distinct values, well apart: finite differences must not cross a kink or a tie.
        count = int(np.prod(self.shape))
        grid = (rng.permutation(count) + rng.uniform(0.3, 0.7, count)) / max(count, 1)
        values = self.low + (self.high - self.low) * grid
        return values.reshape(self.shape).astype(
            (floating if self.dtype == dt.float32 else self.dtype).numpy
        )


def S(*shape: int, dtype: Any = dt.float32, low: float = -2.0, high: float = 2.0) -> Sample:
    """A Sample, briefly: ``S(2, 3)`` or ``S(4, dtype="int64", low=0, high=5)``."""
    return Sample(shape, as_dtype(dtype), low, high)


@dataclass(frozen=True)
class Case:
    """One way to call an op, for the conformance suite."""

    arrays: tuple[Sample | None, ...]
    attrs: dict[str, Any]


def case(*arrays: Sample | None, **attrs: Any) -> Case:
    """A conformance case: ``case(S(2, 3), axis=1)``."""
    return Case(arrays, attrs)


def zero_gradient(*_: Any, **__: Any) -> None:
    """The VJP of an op that is flat wherever it is smooth (comparisons, argmax, ...)."""
    return None


R = TypeVar("R", bound=Rule)
_EACH_PLACE: set[Rule] = set()


def each_place(rule: R) -> R:
    """Mark a type rule: what has it works on each place by itself."""
    _EACH_PLACE.add(rule)
    return rule


@each_place
def elementwise(*types: Type, **_: Any) -> Type:
    """Type rule: the arrays broadcast, the dtype stays."""
    return Type(types[0].dtype, broadcast(*(t.shape for t in types if t is not None)))


@each_place
def comparison(*types: Type, **_: Any) -> Type:
    """Type rule: the arrays broadcast, the result is bool."""
    return Type(dt.bool_, elementwise(*types).shape)


@dataclass(eq=False)
class Op(Traits):
    """One op, whole. Calling it applies it: to a Value it adds a node, to a Tensor it computes."""

    name: str
    function: Callable[..., Any]
    is_composite: bool
    rule: Rule | None
    promotes: bool
    numpy: Callable[..., Any] | None
    gradient: Rule | None
    normal: Rule | None
    lowerings: dict[str, str | Refused | By]
    cases: list[Case]
    several: bool = False
    """Does a call give a tuple, even of one output?"""
    arrays: list[str] = field(default_factory=list)
    required: int = 0
    variadic: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    _bodies: Recent = field(default_factory=lambda: Recent(BODIES))

    def __post_init__(self) -> None:
        self.__doc__ = self.function.__doc__
        self.__name__ = self.__qualname__ = self.name
        self.__module__ = self.function.__module__
        self.__wrapped__ = self.function  # so that inspect.signature and help() see the schema
        for p in inspect.signature(self.function).parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                self.variadic = p.name
            elif p.kind is p.KEYWORD_ONLY:
                self.defaults[p.name] = p.default
            else:
                self.arrays.append(p.name)
                self.required += p.default is p.empty
        self.checks = {n: partial(self._inside, n) for n in self.bounds} | dict(self.checks)

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> Any:
        return _named, (self.name,)  # there is one of each: a copy of a model calls the same

    # -- declaring -----------------------------------------------------------------------------
    def vjp(self, function: Rule) -> Rule:
        """Declare the gradient: ``(g, y, *arrays, **attrs) -> one per array, or None``.

        ``g`` and ``y`` are tuples when the op has several outputs. What was broadcast is summed
        back by the caller.
        """
        self.gradient = function
        return function

    def check(self, arrays: Sequence[Any], types: Sequence[Any], attrs: Mapping[str, Any]) -> None:
        """Raise where these NumPy arrays are not what the op's declaration demands of them."""
        for name, check in self.checks.items():
            check(arrays[self.arrays.index(name)], types, attrs)

    def _inside(self, name: str, places: Any, types: Sequence[Any], attrs: Any) -> None:
        # Out of bounds: torch raises, jnp.take fills NaN, MXNet clips. We raise.
        low, high, what = self.bounds[name](*types, **attrs)
        if places.size and (places.min() < low or places.max() >= high):
            wrong = places[(places < low) | (places >= high)].ravel()[0]
            raise IndexError(f"{self.name}: index {wrong} is out of range for {what}")

    def lowering(self, framework: str, attrs: Mapping[str, Any]) -> str | Refused | None:
        """What is declared of a framework's form of this op, with these attributes."""
        form = self.lowerings.get(framework)
        if isinstance(form, By):
            return form.lines.get(attrs[form.attribute])
        fits = isinstance(form, Refused) and form.when is not None and not form.when(attrs)
        return None if fits else form

    def names(self, values: Sequence[Any]) -> list[str]:
        """What each of so many arrays is called in the signature."""
        return self.arrays + [self.variadic or ""] * (len(values) - len(self.arrays))

    # -- applying ------------------------------------------------------------------------------
    def __call__(self, *args: Any, **attrs: Any) -> Any:
        arrays, attrs = self.bind(args, attrs)
        graph = next((a.graph for a in arrays if isinstance(a, Value)), None)
        if (inner := current()) is not None:
            graph = inner
        if graph is None:
            return eager(self, arrays, attrs)
        return self.trace(graph, arrays, attrs)

    def bind(
        self, args: Sequence[Any], attrs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Sort a call into its arrays and its attributes; say what is wrong with it."""
        given = list(args)
        if self.variadic and len(given) == 1 and isinstance(given[0], (list, tuple)):
            given = list(given[0])
        rest = dict(attrs)
        if not self.variadic:  # f(x, 1): what follows the arrays are attributes, in their order
            by_place = dict(zip(self.defaults, given[len(self.arrays) :], strict=False))
            if twice := rest.keys() & by_place.keys():
                raise TypeError(f"{self.name}() got {', '.join(sorted(twice))} twice")
            rest |= by_place
            given = given[: len(self.arrays)] + given[len(self.arrays) + len(self.defaults) :]
        absent = [n for n in self.arrays[len(given) : self.required] if n not in rest]
        given += [rest.pop(name, None) for name in self.arrays[len(given) :]]
        unknown = rest.keys() - self.defaults.keys()
        missing = [
            k for k, v in self.defaults.items() if v is inspect.Parameter.empty and k not in rest
        ]
        if unknown or missing:
            wrong = (
                f"has no {', '.join(sorted(unknown))}" if unknown else f"needs {', '.join(missing)}"
            )
            raise TypeError(
                f"{self.name}() {wrong}; it is {self.name}{inspect.signature(self.function)}"
            )
        if absent or (len(given) > len(self.arrays) and not self.variadic):
            raise TypeError(f"{self.name}{inspect.signature(self.function)} got {len(args)} arrays")
        return given, {k: rest.get(k, v) for k, v in self.defaults.items()}

    def trace(self, graph: Graph, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
        """Add one node for this call to ``graph``; its output, or a tuple of them."""
        first = next((a.dtype for a in arrays if isinstance(a, Operators)), None)
        values = [None if a is None else lift(graph, a, first) for a in arrays]
        if self.promotes:
            values = _promoted(values)
        outputs = self.append(graph, values, attrs)
        return self.given(outputs)

    def given(self, outputs: tuple[Any, ...]) -> Any:
        """What a call gives: the output, or the tuple of them."""
        return outputs if self.several or len(outputs) > 1 else outputs[0]

    def append(
        self,
        graph: Graph,
        values: Sequence[Value | None],
        attrs: Mapping[str, Any],
        origin: Any = None,
    ) -> tuple[Value, ...]:
        """Add a node on Values that already have their final dtypes."""
        types = [None if v is None else v.type for v in values]
        attrs, out = self.settle(types, attrs, f" in {graph.scope}" if graph.scope else "")
        return graph.add(self.name, values, attrs, out, origin)

    def settle(
        self, types: Sequence[Type | None], attrs: Mapping[str, Any], where: str = ""
    ) -> tuple[dict[str, Any], list[Type]]:
        """The attributes spelled out and the types of the outputs; errors name the op."""
        try:
            full = self.normalize(types, attrs)
            out = self.infer(types, full)
            for t in out:
                possible(t.shape, t.dtype.itemsize)
            return full, out
        except (ShapeError, TypeError, ValueError) as error:
            if type(error) not in (ShapeError, TypeError, ValueError):
                raise
            raise type(error)(f"{self.name}{where}: {error}") from None

    def normalize(self, types: Sequence[Type | None], attrs: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with every number spelled out (an int stride becomes one per axis)."""
        full = {k: attrs.get(k, v) for k, v in self.defaults.items()}
        absent = [k for k, v in full.items() if v is inspect.Parameter.empty]
        if absent or attrs.keys() - full.keys():
            raise TypeError(f"has the attributes {', '.join(full)}, got {', '.join(attrs)}")
        return full | (self.normal(*types, **full) if self.normal else {})

    def infer(self, types: Sequence[Type | None], attrs: Mapping[str, Any]) -> list[Type]:
        """The types of the outputs."""
        if self.rule is None:
            return [v.type for v in self.body(types, attrs).outputs]
        result = self.rule(*types, **attrs)
        found = [result] if isinstance(result, Type) else list(result)
        for t in found:
            if any(isinstance(s, int) and s < 0 for s in t.shape):
                raise ShapeError(f"gives a negative size: {t}")
        return found

    def body(self, types: Sequence[Type | None], attrs: Mapping[str, Any]) -> Graph:
        """A composite's meaning on inputs of these types, as a Graph of its own."""
        key = (tuple(types), tuple((k, _key(v)) for k, v in attrs.items()))
        body: Graph = self._bodies.get(key, lambda: self._traced(types, attrs))
        return body

    def _traced(self, types: Sequence[Type | None], attrs: Mapping[str, Any]) -> Graph:
        graph = Graph(self.name)
        with graph:
            names = self.arrays + [f"{self.variadic}_{i}" for i in range(len(types))]
            values = [
                None if t is None else graph.input("data", *t, name=n)
                for t, n in zip(types, names, strict=False)
            ]
            result = self.function(*values, **attrs)
            many = isinstance(result, tuple)
            graph.outputs = [lift(graph, v, None) for v in (result if many else (result,))]
        return graph

    def elementwise(self, types: Sequence[Type | None], attrs: Mapping[str, Any]) -> bool:
        """Does it work on each place by itself? A composite does, if all of its body does."""
        if self.rule is not None:
            return self.rule in _EACH_PLACE
        body = self.body(types, attrs)
        return len(body.outputs) == 1 and all(
            (n.op == "full" and n.out.shape in ((), body.outputs[0].shape))
            or OPS[n.op].elementwise([None if v is None else v.type for v in n.inputs], n.attrs)
            for n in body.nodes
        )

    def evaluate(self, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The outputs on NumPy arrays; attributes normalized, no Dims left."""
        for name in self.bounds:
            self._inside(name, arrays[self.arrays.index(name)], arrays, attrs)
        if self.numpy is not None or not self.is_composite:
            result = (self.numpy or self.function)(*arrays, **attrs)
            return result if isinstance(result, tuple) else (result,)
        types = [None if a is None else Type(as_dtype(a.dtype), a.shape) for a in arrays]
        return tuple(run(self.body(types, attrs), [a for a in arrays if a is not None]))


def _named(name: str) -> Any:
    return OPS[name]


def _key(value: Any) -> Any:
    """An attribute as part of a key: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    return repr(value) if isinstance(value, float) else (type(value), value)


def run(graph: Graph, arrays: Sequence[Any]) -> list[Any]:
    """Evaluate a Graph without open sizes, node by node, on NumPy."""
    env: dict[Value | None, Any] = {None: None} | dict(zip(graph.inputs, arrays, strict=True))
    last = {v: node for node in graph.nodes for v in node.inputs}
    keep = set(graph.results())
    for node in graph.nodes:
        outputs = OPS[node.op].evaluate([env[v] for v in node.inputs], node.attrs)
        env |= zip(node.outputs, outputs, strict=True)
        for v in node.inputs:  # let go of what nobody reads any more
            if v is not None and last[v] is node and v not in keep:
                env.pop(v, None)
    return [env[v] for v in graph.results()]


def lift(graph: Graph, item: Any, like: DType | None) -> Value:
    """``item`` as a Value of ``graph``: numbers and arrays as constants, Tensors captured."""
    if isinstance(item, Value):
        if item.graph is graph:
            return item
        return _captured(graph, item, lambda: graph.input("data", *item.type, name=_fresh(graph)))
    if isinstance(item, (bool, int, float, Dim)):
        kind = dt.of_scalar(1 if isinstance(item, Dim) else item, like)
        attrs = {"shape": (), "value": item, "dtype": kind}
        return graph.add("full", (), attrs, [Type(kind, ())])[0]
    if hasattr(item, "capture"):
        value: Value = _captured(graph, item, lambda: item.capture(graph))
        return value
    array = np.asarray(item)
    return graph.add("constant", (), {"value": array}, [Type(as_dtype(array.dtype), array.shape)])[
        0
    ]


def _captured(graph: Graph, item: Any, make: Callable[[], Value]) -> Value:
    if id(item) not in graph.captured:
        graph.captured[id(item)] = (item, make())
    value = graph.captured[id(item)][1]
    # A state that was given a new value here is read as that, as it would be outside a Graph.
    return graph.updates.get(value, value) if value.kind == "state" else value


def _fresh(graph: Graph) -> str:
    return graph.unused(f"outer_{len(graph.captured)}")


def _promoted(values: list[Value | None]) -> list[Value | None]:
    """The same Values cast to their common dtype."""
    kind = dt.promote(*(v.dtype for v in values if v is not None))
    return [v if v is None or v.dtype == kind else OPS["cast"](v, dtype=kind) for v in values]


def _no_eager(op: Op, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    raise GraphError(f"{op.name} was called on plain arrays before trivium.tensor was imported")


_eager: list[Callable[[Op, Sequence[Any], Mapping[str, Any]], Any]] = [_no_eager]


def eager(op: Op, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """Compute now. ``tensor.py``, higher up, says how, through :func:`set_eager`."""
    return _eager[0](op, arrays, attrs)


def set_eager(function: Callable[[Op, Sequence[Any], Mapping[str, Any]], Any]) -> None:
    """Called once by ``tensor.py``."""
    _eager[0] = function


def _declare(
    is_composite: bool,
    *,
    rule: Rule | None = None,
    promotes: bool = False,
    numpy: Callable[..., Any] | None = None,
    vjp: Rule | None = None,
    normal: Rule | None = None,
    cases: Sequence[Case] = (),
    several: bool = False,
    name: str = "",
    **more: Any,
) -> Callable[[Callable[..., Any]], Op]:
    traits = {k: more.pop(k) for k in _TRAITS & more.keys()}
    lowerings: dict[str, str | Refused | By] = more
    if wrong := lowerings.keys() - set(FRAMEWORKS):
        raise TypeError(f"no framework {', '.join(wrong)}")

    def declare(function: Callable[..., Any]) -> Op:
        op = Op(
            name or function.__name__, function, is_composite, rule, promotes, numpy, vjp, normal,
            lowerings, list(cases), several, **traits,
        )  # fmt: skip
        if op.name in OPS:
            raise TypeError(f"op {op.name} is declared twice")
        OPS[op.name] = op
        return op

    return declare


def primitive(rule: Rule = elementwise, **record: Any) -> Callable[[Callable[..., Any]], Op]:
    """Declare an op by its meaning on NumPy arrays.

    ``rule`` gives the types of the outputs, ``promotes`` says that inputs are cast to one dtype,
    ``vjp`` the gradient, ``normal`` the spelled-out attributes, ``cases`` the conformance cases,
    each framework's keyword one line of its source (or the name of the ONNX operator), and what
    :class:`Traits` names what the op is like.
    """
    return _declare(False, rule=rule, **record)


def composite(**record: Any) -> Callable[[Callable[..., Any]], Op]:
    """Declare an op by its meaning in other ops: type, gradient and oracle follow from the body.

    ``numpy`` and ``vjp`` may give a faster equal form of what the body already says.
    """
    return _declare(True, **record)
