"""JAX functions -> Graph: a jaxpr, read primitive by primitive.

What JAX calls by name inside (``jax.nn.silu``, ``jax.nn.softmax``) is one of our ops where its
line, traced on the same types, gives the very same jaxpr; otherwise what is inside is read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype
from trivium.frameworks.jax.primitives import HANDLERS, IDLE
from trivium.frameworks.jax.run import load_jax, name_of
from trivium.frameworks.words import Call, Vocabulary
from trivium.graph import OPS, Graph, UnsupportedError, Value
from trivium.graph.check import check
from trivium.nn.module import GraphModule
from trivium.op import Op
from trivium.shape import Shape, Size, parse_size
from trivium.transforms.replay import prune

SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "neg": "-x", "eq": "==",
    "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and": "&", "or": "|", "not": "~x",
    "logistic": "sigmoid", "is_finite": "isfinite", "rem": "fmod",
}  # fmt: skip
"""What jaxprs call a sign, or another name of."""


@functools.cache
def words() -> Vocabulary:
    """All JAX lines."""
    return Vocabulary("jax", SIGNS)


def read(function: Callable[..., Any], params: Any, *examples: Any) -> GraphModule:
    """``function(params, *examples)`` as a module; ``params`` are nested dicts, lists and tuples.

    Parameters are named by their paths ("layers.0.w"). The first size of the examples is open where
    the function takes any; every number of it is read, nothing of it is kept.
    """
    jax = load_jax()
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [".".join(map(name_of, path)) for path, _ in leaves]
    arrays = [np.asarray(a) for _, a in leaves]

    def called(values: Sequence[Any], *inputs: Any) -> Any:
        return function(jax.tree_util.tree_unflatten(tree, list(values)), *inputs)

    closed, outputs = _traced(jax, called, [a for _, a in leaves], examples)
    graph = Graph(getattr(function, "__name__", "model").strip("<>") or "model")
    held = [graph.input("param" if a.dtype.kind in "fV" else "state", as_dtype(a.dtype), a.shape, n)
            for n, a in zip(names, arrays, strict=True)]  # fmt: skip
    avals = closed.in_avals[len(held) :]
    data = [
        graph.input("data", _dtype(a), _shape(a), f"x{i}" if len(avals) > 1 else "x")
        for i, a in enumerate(avals)
    ]
    with graph:
        found = Reader(jax, graph).run(closed.jaxpr, closed.consts, [*held, *data])
        graph.outputs = [_lifted(graph, v) for v in found]
    if isinstance(outputs, Mapping):
        graph.structure = tuple(sorted(outputs))  # as JAX flattens a dict
    elif isinstance(outputs, (tuple, list)):
        graph.structure = type(outputs) if type(outputs) in (tuple, list) else tuple
    return GraphModule(check(prune(graph)), dict(zip(names, arrays, strict=True)))


def _traced(jax: Any, called: Any, params: Sequence[Any], examples: Sequence[Any]) -> Any:
    """The jaxpr, its batch open if it can be, and the outputs as they are nested."""
    (batch,) = jax.export.symbolic_shape("batch")
    kinds = [(tuple(x.shape), np.asarray(x).dtype) for x in examples]
    first = next((shape[0] for shape, _ in kinds if shape), None)
    fixed = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds]
    opened = [
        jax.ShapeDtypeStruct((batch, *shape[1:]) if shape and shape[0] == first else shape, dtype)
        for shape, dtype in kinds
    ]
    make = jax.make_jaxpr(called, return_shape=True)
    with contextlib.suppress(Exception):  # a size that it asks about: it is read for this one
        return make(params, *opened)
    try:
        return make(params, *fixed)
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise UnsupportedError(f"a function that JAX cannot trace: {line}", remedy="jax.jit it "
                               "first: what jit takes is read") from error  # fmt: skip


def _size(size: Any) -> Size:
    return int(size) if isinstance(size, (int, np.integer)) else parse_size(str(size))


def _shape(aval: Any) -> Shape:
    return tuple(map(_size, aval.shape))


def _dtype(aval: Any) -> DType:
    return as_dtype(aval.dtype)


def _lifted(graph: Graph, item: Any) -> Value:
    if isinstance(item, Value):
        return item
    array = np.asarray(item)
    if array.ndim:
        constant: Value = OPS["constant"](value=array)
        return constant
    full: Value = OPS["full"](shape=(), value=array.item(), dtype=as_dtype(array.dtype))
    return full


class Reader:
    """One jaxpr on its way into a Graph; handlers get it as ``at``."""

    def __init__(self, jax: Any, graph: Graph):
        self.jax, self.graph = jax, graph
        self.eqn: Any = None

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """All equations; the outputs."""
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= zip(jaxpr.invars, inputs, strict=True)
        for eqn in jaxpr.eqns:
            values = [self.value(env, v) for v in eqn.invars]
            results = self.equation(eqn, values)
            env |= zip(eqn.outvars, results, strict=True)
        return [self.value(env, v) for v in jaxpr.outvars]

    def value(self, env: Mapping[Any, Any], item: Any) -> Any:
        """What stands for a variable; a literal as a Value."""
        found = item.val if hasattr(item, "val") else env[item]
        if isinstance(found, Value):
            return found
        return _lifted(self.graph, np.asarray(found, item.aval.dtype))

    def equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        """What one primitive gives."""
        self.eqn, name = eqn, eqn.primitive.name
        given = {k: v for k, v in eqn.params.items() if k not in IDLE and v is not None}
        inner = next((given[k] for k in ("jaxpr", "call_jaxpr") if k in given), None)
        if inner is not None and name not in HANDLERS:
            return self.called(inner, values)
        try:
            if (handler := HANDLERS.get(name)) is not None:
                result = handler(self, *values, **given)
            else:
                arrays = {str(i): v for i, v in enumerate(values)}
                call = Call(name, arrays | given, tuple(arrays))
                result = words().translate(call, lambda value: None)
        except (TypeError, ValueError, LookupError) as error:
            if isinstance(error, UnsupportedError):
                raise
            raise self.refuse(f"{name}: {error}") from error
        if result is None:
            raise self.refuse(f"the primitive {name} with {given}")
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        for value, var in zip(results, eqn.outvars, strict=True):
            wants = (_dtype(var.aval), _shape(var.aval))
            if (value.dtype, tuple(value.shape)) != wants:
                raise self.refuse(f"{name}, which is {wants} in JAX and {value.type} here")
        return results

    def called(self, closed: Any, values: list[Any]) -> list[Any]:
        """What a function inside gives: an op of ours, if it is exactly that; else read."""
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        name = self.eqn.params.get("name") or jaxpr.debug_info.func_name or ""
        op = self.op_of(name.strip("_"), values) if not consts else None
        if op is not None:
            return [op]
        before = self.eqn
        found = self.run(jaxpr, consts, values)
        self.eqn = before
        return found

    def op_of(self, name: str, values: list[Any]) -> Any:
        """The op whose line, traced on these types, is this very function, derivative included."""
        lines = [
            line
            for op, fixed, _ in words().lines.get(SIGNS.get(name, name), ())
            if len(op.arrays) == len(values)
            for attrs in _candidates(op, fixed, values)
            if (line := (op, attrs, words().text(op, attrs, [f"v{i}" for i in range(9)])))[2]
        ]
        if not lines:
            return None
        eqn, scope = self.eqn, {"jax": self.jax, "jnp": self.jax.numpy, "lax": self.jax.lax}
        bound = eqn.primitive.get_bind_params(eqn.params)
        inside, params = bound if isinstance(bound, tuple) else ((), bound)  # before JAX 0.9

        def itself(*xs: Any) -> Any:
            return eqn.primitive.bind(*inside, *xs, **params)

        wanted = self.meaning(itself)
        for op, attrs, text in lines:
            names = ", ".join(f"v{i}" for i in range(len(values)))
            if self.meaning(eval(f"lambda {names}: {text}", scope)) == wanted:  # our declaration
                return op(*values, **attrs)
        return None

    def meaning(self, function: Callable[..., Any]) -> str:
        """The jaxpr of a function on the types at hand, with its derivative if it has one."""
        jax = self.jax
        specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.eqn.invars]
        smooth = all(np.dtype(s.dtype).kind == "f" for s in specs)

        def both(xs: Any, ts: Any) -> Any:
            out = _first(function(*xs))
            return out, jax.jvp(lambda *a: _first(function(*a)), xs, ts) if smooth else out

        try:
            return str(jax.make_jaxpr(both)(tuple(specs), tuple(specs)))
        except Exception:
            return ""

    def refuse(self, what: str, remedy: str = "") -> UnsupportedError:
        """The error that says that this equation cannot be carried."""
        remedy = remedy or "write it with functions that are carried (docs/coverage.md)"
        return UnsupportedError(what, self.graph.name, remedy)


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


def _candidates(op: Op, fixed: Mapping[str, Any], values: list[Any]) -> Iterator[dict[str, Any]]:
    """Attributes to try: every axis, the defaults, and what the op's own cases say."""
    rank = len(values[0].shape)
    choices: dict[str, list[Any]] = {}
    for key, default in op.defaults.items():
        if key in fixed:
            choices[key] = [fixed[key]]
        elif key == "axis":
            choices[key] = list(range(rank))
        else:
            said = [c.attrs[key] for c in op.cases if key in c.attrs]
            choices[key] = [v for v in (default, *said) if not isinstance(v, type)]
    for found in itertools.product(*choices.values()):
        yield dict(zip(choices, found, strict=True))


__all__ = ["Reader", "read"]
