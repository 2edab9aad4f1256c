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
from trivium.frameworks.jax.primitives import HANDLERS, IDLE, REMEDIES, number_of
from trivium.frameworks.jax.run import load_jax, name_of
from trivium.frameworks.jax.written import Written
from trivium.frameworks.words import Call, Vocabulary
from trivium.graph import OPS, Graph, Type, UnsupportedError, Value
from trivium.graph.check import check
from trivium.nn.module import GraphModule
from trivium.op import Op
from trivium.recent import Recent
from trivium.shape import Dim, Shape, Size, parse_size

SIGNS = {
    "add": "+", "add_any": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "neg": "-x",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and": "&", "or": "|",
    "not": "~x", "logistic": "sigmoid", "is_finite": "isfinite", "rem": "fmod",
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh",
    "atanh": "arctanh", "atan2": "arctan2", "xor": "logical_xor",
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
    arrays = {".".join(map(name_of, path)): np.asarray(a) for path, a in leaves}
    trained = {n: a.dtype.kind in "fV" for n, a in arrays.items()}

    def called(values: Mapping[str, Any], *inputs: Any) -> Any:
        given = jax.tree_util.tree_unflatten(tree, [values[n] for n in arrays])
        return function(given, *inputs), {}

    return GraphModule(
        traced_graph(jax, _name(function), called, arrays, trained, examples), arrays
    )


def _name(function: Any) -> str:
    """What a function is called; a method ``apply``, by its module."""
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "") if owner is None else type(owner).__name__
    return name.strip("<>") or "model"


def traced_graph(
    jax: Any, name: str, called: Callable[..., Any], arrays: Mapping[str, Any],
    trained: Mapping[str, bool], examples: Sequence[Any],
) -> Graph:  # fmt: skip
    """What ``called(values, *inputs)`` computes: its outputs, and what the values become."""
    closed, (outputs, after) = _traced(jax, called, arrays, examples)
    graph = Graph(name)
    held = {
        n: graph.input("param" if trained[n] else "state", as_dtype(a.dtype), a.shape, n)
        for n, a in arrays.items()
    }
    avals = closed.in_avals[len(held) :]
    data = [
        graph.input("data", _dtype(a), _shape(a), f"x{i}" if len(avals) > 1 else "x")
        for i, a in enumerate(avals)
    ]
    with graph:
        values = [held[n] for n in sorted(held)]  # as JAX flattens a dict
        found = Reader(jax, graph).run(closed.jaxpr, closed.consts, [*values, *data])
        new = dict(zip(sorted(after), found[len(found) - len(after) :], strict=True))
        graph.outputs = [_lifted(graph, v) for v in found[: len(found) - len(after)]]
        graph.updates = {held[n]: _lifted(graph, v) for n, v in new.items() if v is not held[n]}
    for value in graph.updates:
        if value.kind == "param":
            raise UnsupportedError(f"the parameter {value.name!r}, which a call assigns", name,
                                   "make it another Variable than nnx.Param")  # fmt: skip
    if isinstance(outputs, Mapping):
        graph.structure = tuple(sorted(outputs))  # as JAX flattens a dict
    elif isinstance(outputs, (tuple, list)):
        graph.structure = type(outputs) if type(outputs) in (tuple, list) else tuple
    return check(_placed(_written().found(graph)))


def _placed(graph: Graph) -> Graph:
    """A node that reads parameters belongs to where these are: ``layers.0`` of ``layers.0.w``."""
    for node in graph.nodes:
        held = [v.name for v in node.inputs if v is not None and v.kind in ("param", "state")]
        paths = {name.rpartition(".")[0] for name in held}
        node.scope = paths.pop() if len(paths) == 1 else ""
    return graph


@functools.cache
def _written() -> Written:
    return Written(_pattern, words())


def _pattern(function: Callable[..., Any], types: Sequence[Type]) -> Graph:
    """What a function computes on arrays of these types, in plain ops."""
    jax, scope, graph = load_jax(), None, Graph("pattern")
    specs = []
    for t in types:
        shape: Any = t.shape
        if any(isinstance(s, Dim) for s in shape):
            scope = scope or jax.export.SymbolicScope()
            shape = jax.export.symbolic_shape(f"({', '.join(map(str, shape))},)", scope=scope)
        specs.append(jax.ShapeDtypeStruct(shape, str(t.dtype)))
    closed = jax.make_jaxpr(function)(*specs)
    inputs = [graph.input("data", *t, name=f"x{i}") for i, t in enumerate(types)]
    with graph:
        found = Reader(jax, graph).run(closed.jaxpr, closed.consts, inputs)
        graph.outputs = [_lifted(graph, v) for v in found]
    return graph


def _traced(jax: Any, called: Any, params: Mapping[str, Any], examples: Sequence[Any]) -> Any:
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
    # 0.044715, not the digits that float32 adds to it
    number = float(str(array)) if array.dtype.kind == "f" else array.item()
    full: Value = OPS["full"](shape=(), value=number, dtype=as_dtype(array.dtype))
    return full


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that a result comes from: a key that is advanced is none of ours."""
    wanted, kept = {v for v in jaxpr.outvars if not hasattr(v, "val")}, []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            kept.append(eqn)
            wanted |= {v for v in eqn.invars if not hasattr(v, "val")}
    return kept[::-1]


def _is_key(aval: Any) -> bool:
    return not isinstance(aval.dtype, np.dtype)


def _folded(value: Value) -> Value:
    """A number that is made of numbers alone."""
    node, numbers = value.node, []
    for v in node.inputs if node is not None and value.shape == () else ():
        number = None if v is None else number_of(v)
        if v is None or number is None or isinstance(number, Dim):
            return value
        numbers.append(np.asarray(number, v.dtype.numpy))
    if node is None or not numbers or len(node.outputs) > 1:
        return value
    (found,) = OPS[node.op].evaluate(numbers, node.attrs)
    return _lifted(value.graph, np.asarray(found, value.dtype.numpy))


_MEANINGS = Recent(4096)
"""What our lines are in JAX, by their text and the types."""


class Reader:
    """One jaxpr on its way into a Graph; handlers get it as ``at``."""

    def __init__(self, jax: Any, graph: Graph):
        self.jax, self.graph = jax, graph
        self.eqn: Any = None

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """All equations; the outputs."""
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= zip(jaxpr.invars, inputs, strict=True)
        for eqn in _needed(jaxpr):
            values = [self.value(env, v) for v in eqn.invars]
            results = self.equation(eqn, values)
            env |= zip(eqn.outvars, results, strict=True)
        return [self.value(env, v) for v in jaxpr.outvars]

    def value(self, env: Mapping[Any, Any], item: Any) -> Any:
        """What stands for a variable; a literal as a Value."""
        found = item.val if hasattr(item, "val") else env[item]
        if isinstance(found, Value) or _is_key(item.aval):
            return found
        return _lifted(self.graph, np.asarray(found, item.aval.dtype))

    def equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        """What one primitive gives."""
        self.eqn, name = eqn, eqn.primitive.name
        given = {k: v for k, v in eqn.params.items() if k not in IDLE and v is not None}
        inner = next((given[k] for k in ("jaxpr", "call_jaxpr") if k in given), None)
        if inner is not None and name not in HANDLERS:
            return self.called(inner, values)
        if any(_is_key(v.aval) for v in (*eqn.invars, *eqn.outvars)):
            raise self.refuse(
                f"random numbers, which {name} draws",
                "nnx.Dropout is carried; else pass what is drawn as an input",
            )
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
            said = ", ".join(f"{k}={v}" for k, v in given.items() if len(str(v)) <= 40)
            raise self.refuse(f"the primitive {name}" + f" with {said}" * bool(said))
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        for value, var in zip(results, eqn.outvars, strict=True):
            wants = (_dtype(var.aval), _shape(var.aval))
            if (value.dtype, tuple(value.shape)) != wants:
                raise self.refuse(f"{name}, which is {wants} in JAX and {value.type} here")
        return list(map(_folded, results))

    def called(self, closed: Any, values: list[Any]) -> list[Any]:
        """What a function inside gives: an op of ours, if it is exactly that; else read."""
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        name = self.eqn.params.get("name") or jaxpr.debug_info.func_name or ""
        whole = not consts and all(isinstance(v, Value) for v in values)  # and no key
        op = self.op_of(name.strip("_"), values) if whole else None
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
        names = ", ".join(f"v{i}" for i in range(len(values)))
        types = tuple(str(v.aval) for v in eqn.invars)
        for op, attrs, text in lines:
            line = eval(f"lambda {names}: {text}", scope)  # our own declaration
            if _MEANINGS.get((text, types), functools.partial(self.meaning, line)) == wanted:
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
        other = "write it with functions that are carried (docs/coverage.md)"
        remedy = remedy or REMEDIES.get(self.eqn.primitive.name, other)
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
