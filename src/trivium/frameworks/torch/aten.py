"""ATen operators -> our ops: the reader that walks an exported graph, and the ordinary operators.

An op whose torch line calls the ATen operator ("F.silu({x})") is read by that line, backwards. What
is irregular is a function under :func:`aten`, whose parameters are the operator's own. An argument
that nobody names must be left at its default, or the operator is refused. Every result is held
against the type that torch says it has.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trivium.dtype import DType
from trivium.frameworks.torch.exported import (
    as_size,
    counts_only,
    dtype_of,
    is_count,
    is_number,
    is_size,
    name_of,
    of_an_operator,
    promotion,
    scope_of,
    sizes_equal,
    without_counts,
)
from trivium.frameworks.words import Call, Vocabulary, same
from trivium.graph import MODE, OPS, Graph, Type, UnsupportedError, Value
from trivium.op import Op, comparison
from trivium.shape import Dim

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
"""Irregular operators by name, overloads together."""


_IN_ORDER: set[str] = set()


def aten(*names: str, in_order: bool = False) -> Callable[[Handler], Handler]:
    """The decorated function reads these operators: ``(at, **arguments by their ATen names)``.

    ``in_order``: they keep the elements in their order, so where dtype and shape stay, nothing
    happens.
    """

    def enter(function: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = function
        if in_order:
            _IN_ORDER.update(names)
        return function

    return enter


def changes_nothing(node: Any) -> bool:
    """Are a node's numbers, dtype and shape those of its first argument?"""
    if node.op != "call_function" or not node.args or not hasattr(node.args[0], "meta"):
        return False
    name = name_of(node)
    if name in ("dropout", "dropout_"):
        return not node.args[1] or not node.args[2]
    if name not in _IN_ORDER or any(_writes(name_of(u)) for u in node.users):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return (before.dtype, str(before.shape)) == (after.dtype, str(after.shape))


def _writes(name: str) -> bool:
    """Does an operator of this name write into its first argument?"""
    return name.endswith("_") and not name.endswith("__")


@dataclass(frozen=True)
class DropPath:
    """``x * mask``, a mask of ``like``'s sizes that is 0 or 1/(1 - rate): a dropout of ones."""

    x: Any
    like: Any
    rate: float
    training: Any = MODE


HIDDEN = object()
"""What a node is that a DropPath stands for too."""


# -- walking ---------------------------------------------------------------------------------------
class Reader:
    """Builds a Graph from an exported one, node by node. Handlers get it as ``at``."""

    def __init__(
        self,
        graph: Graph,
        dims: Mapping[str, Dim],
        flags: Mapping[Any, Any],
        model: str,
        both: bool,
    ):
        self.graph, self.dims, self.flags, self.model = graph, dims, flags, model
        self.both = both  # is the Graph to serve training and evaluation?
        self.values: dict[Any, Any] = {}  # exported node -> Value, or several
        self.roots: dict[Any, Any] = {}  # exported node -> the node whose memory it shares
        self.states: dict[Any, Value] = {}  # placeholder -> the input that it was at first
        self.node: Any = None
        self.dropouts = 0

    def run(self, exported: Any, sources: Mapping[Any, Value]) -> list[Any]:
        """All nodes of an exported graph; its outputs."""
        self.values |= sources
        self.states |= {n: v for n, v in sources.items() if n.op == "placeholder"}
        self.order = {n: i for i, n in enumerate(exported.nodes)}
        for node in exported.nodes:
            if node.op == "output":
                results = node.args[0]
                return [
                    self.value(a)
                    for a in (results if isinstance(results, (list, tuple)) else [results])
                ]
            if node.op == "call_function" and not is_count(node):
                self.call(node)
        raise UnsupportedError("an exported graph without outputs", self.model)

    def call(self, node: Any) -> None:
        """One operator."""
        self.node, name = node, name_of(node)
        special = self.flags.get(node)
        if special is HIDDEN:
            pass  # a part of what a DropPath does
        elif isinstance(special, DropPath):
            self.drop_path(node, special)
        elif name == "getitem":
            self.values[node] = self.value(node.args[0])[node.args[1]]
            whole = self.root(node.args[0])
            # Of an operator that made all of them anew (unsafe_split), each has its own memory.
            self.roots[node] = node if whole is node.args[0] else whole
        elif name == "wrap_with_set_grad_enabled":
            self.without_gradient(node)
        elif is_size(node):
            pass  # sizes are read where they are used
        else:
            with self.graph.within(scope_of(node) or self.graph.scope):
                self.operator(node, name)

    def operator(self, node: Any, name: str) -> None:
        handler = HANDLERS.get(name) or HANDLERS.get(name.rstrip("_"))
        try:
            if handler is not None:
                result = handler(self, **self.arguments(node, handler))
            elif (result := self.by_its_line(node)) is None:
                result = self.decomposed(node, name)
        except (TypeError, ValueError) as error:
            if isinstance(error, UnsupportedError):
                raise
            raise self.unsupported(f"{node.target}: {error}") from error
        self.values[node] = self.checked(node, result)
        aliases = name == "dropout" or any(
            r.alias_info is not None for r in node.target._schema.returns
        )
        tensors = [a for a in node.all_input_nodes if not is_number(a.meta.get("val"))]
        self.roots[node] = self.root(tensors[0]) if aliases and tensors else node
        if _writes(name):
            self.write(node, node.args[0])

    def drop_path(self, node: Any, path: DropPath) -> None:
        """Ones, some of them dropped, beside each of which a whole branch is kept or goes."""
        with self.graph.within(scope_of(node) or self.graph.scope):
            ones = self.full(self.type_of(path.like.meta["val"]).shape, 1, self.out.dtype)
            mask = self.dropped(ones, path.rate, path.training)
            self.values[node] = self.checked(node, self.value(path.x) * mask)

    def decomposed(self, node: Any, name: str) -> Any:
        """An operator that torch itself defines by others (einsum), read as those."""
        from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel
        from torch._subclasses.fake_tensor import FakeTensor
        from torch.fx.experimental import _config
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.fx.node import map_arg

        refusal = self.unknown(node)
        known = hasattr(node.target, "_schema") and name not in _NEVER_UNROLLED
        known = known and node not in self.flags  # the parts would be those of training alone
        if not known or not has_kernel(node.target.name(), "CompositeImplicitAutograd"):
            raise refusal
        inputs = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), FakeTensor)]

        def call(*tensors: Any) -> Any:
            given = dict(zip(inputs, tensors, strict=True))
            args, kwargs = (
                map_arg(a, lambda n: given.get(n, n.meta.get("val")))
                for a in (node.args, node.kwargs)
            )
            return node.target.decompose(*args, **kwargs)

        metas = [n.meta["val"] for n in inputs]
        environment: Any = metas[0].fake_mode.shape_env if metas else None
        guards = len(environment.guards) if environment else 0
        mode = metas[0].fake_mode if metas else contextlib.nullcontext()
        with mode, _config.patch(backed_size_oblivious=True):
            try:
                inner = make_fx(call)(*metas).graph
            except Exception as error:  # its parts are for sizes that are numbers, and the like
                raise refusal from error
        new = environment.guards[guards:] if environment else ()
        if not all(of_an_operator(g, environment.simplify(g.expr), {}) for g in new):
            raise refusal  # it would hold for some sizes only
        places = [n for n in inner.nodes if n.op == "placeholder"]
        outer, order = self.node, self.order
        try:
            results = self.run(
                inner, {p: self.values[n] for p, n in zip(places, inputs, strict=True)}
            )
        except UnsupportedError as error:
            self.node = outer
            raise self.unread(f"{node.target}, of which {_short(error.what)} is a part") from error
        finally:
            self.node, self.order = outer, order
        return results[0] if isinstance(results, list) and len(results) == 1 else results

    def arguments(self, node: Any, handler: Handler) -> dict[str, Any]:
        """The arguments by name; those that the handler does not name are at their defaults."""
        schema = node.target._schema.arguments
        given = dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs
        wanted = inspect.signature(handler).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
        bound = {}
        for argument in schema:
            has = argument.name in given
            item = given[argument.name] if has else argument.default_value
            if argument.name in _PLACEMENT:
                continue
            name = argument.name
            if name == "self" and "input" in wanted:
                name = "input"  # dropout(input), but dropout_(self)
            if name in wanted or takes_all:
                bound[name] = self.value(item)
            elif has and not _same(item, argument.default_value):
                raise self.unsupported(f"{node.target} with {argument.name}={item}")
        return bound

    def bound(self, node: Any) -> Call:
        """The call that a node is."""
        schema = [a for a in node.target._schema.arguments if a.name not in _PLACEMENT]
        given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False))
        given |= node.kwargs
        return Call(
            name_of(node).rstrip("_"),
            {a.name: self.plain(self.value(given[a.name])) for a in schema if a.name in given},
            [a.name for a in schema if not a.kwarg_only],
            {a.name: self.plain(a.default_value) for a in schema if a.has_default_value()},
        )

    def by_its_line(self, node: Any) -> Any:
        """What an op's torch line, read backwards, makes of a node; None where there is none."""
        if not hasattr(node.target, "_schema"):
            return None

        def call_of(value: Any) -> Call | None:
            made = (n for n, v in self.values.items() if v is value)
            found = next((n for n in made if hasattr(n.target, "_schema")), None)
            return None if found is None else self.bound(found)

        return words().translate(self.bound(node), call_of, self.suited)

    def unknown(self, node: Any) -> UnsupportedError:
        """No line or function reads this operator, or not with these arguments."""
        call = self.bound(node) if hasattr(node.target, "_schema") else None
        if call is None or not words().knows(call):
            return self.unread(node.target)
        asked = {k: v for k, v in call.given.items() if not isinstance(v, Value)}
        odd = [f"{k}={v}" for k, v in asked.items() if not same(v, call.defaults.get(k))]
        return self.unsupported(f"{node.target} with {', '.join(odd) or 'these arguments'}")

    def suited(self, op: Op, values: list[Any], attrs: Mapping[str, Any]) -> list[Any]:
        """Operands in the dtype that torch computes in: it takes roots of integers, too."""
        if op.promotes:
            values = self.promoted(*values)
            logical = values[0].dtype == "bool" and op.rule is not comparison
            self.require(not logical, "bools", "use & and |, or convert to numbers")
        try:
            _, types = op.settle([None if v is None else v.type for v in values], attrs)
            fits = types[0].dtype == self.out.dtype
        except TypeError:
            fits = False
        return (
            values if fits else [v if v is None else self.cast(v, self.out.dtype) for v in values]
        )

    @staticmethod
    def plain(item: Any) -> Any:
        """Lists as tuples, dtypes as ours."""
        if isinstance(item, (list, tuple)):
            return tuple(item)
        return dtype_of(item) if type(item).__name__ == "dtype" else item

    def value(self, item: Any) -> Any:
        """What an argument stands for: Values for nodes, Sizes for symbolic ints."""
        if hasattr(item, "all_input_nodes"):
            meta = item.meta.get("val")
            if is_number(meta):
                return as_size(meta, self.dims)
            if item not in self.values:
                raise self.unsupported(f"{item.target}, which no input stands for")
            return self.values[item]
        if isinstance(item, (list, tuple)):
            return [self.value(i) for i in item]
        return as_size(item, self.dims) if is_number(item) and not isinstance(item, bool) else item

    def checked(self, node: Any, result: Any) -> Any:
        """``result``, whose types are what torch says."""
        metas = node.meta["val"]
        pairs = (
            [(result, metas)]
            if not isinstance(metas, (list, tuple))
            else zip(result, metas, strict=True)
        )
        for value, meta in pairs:
            if value is None or meta is None:
                continue
            want = self.type_of(meta)
            fits = len(value.shape) == len(want.shape) and all(
                map(sizes_equal, value.shape, want.shape)
            )
            if value.dtype != want.dtype or not fits:
                raise self.unsupported(
                    f"{node.target}, which is {want} in torch but {value.type} here"
                )
        return result

    def type_of(self, meta: Any) -> Type:
        """The type of an exported tensor."""
        return Type(dtype_of(meta.dtype), tuple(as_size(s, self.dims) for s in meta.shape))

    def root(self, node: Any) -> Any:
        """The node whose memory ``node`` shares."""
        return self.roots.get(node, node)

    def write(self, node: Any, target: Any) -> None:
        """``target`` was written in place by ``node``: from here on it is the new value."""
        root = self.root(target)
        if root in self.states and self.states[root].kind in ("param", "state"):
            raise self.unsupported(
                f"{node.target} on {self.states[root].name}: a model that changes its own tensors",
                "keep such state outside of forward()",
            )
        now = self.order.get(node, 0)
        for other in [n for n in self.values if n is not target and n is not node]:
            if self.root(other) is root and any(
                self.order.get(u, now + 1) > now for u in other.users
            ):
                raise self.unsupported(
                    f"{node.target} in place, seen through the view {other.name}",
                    "write it without the underscore",
                )
        self.values[target] = self.values[node]

    def update(self, node: Any, new: Value) -> None:
        """The running statistic ``node`` becomes ``new``, here and after the step."""
        state = self.states.get(node)
        if state is None or state.kind != "state":
            raise self.unsupported(
                f"{self.node.target} with statistics that are no buffer of a module"
            )
        self.values[node] = self.graph.updates[state] = new

    def without_gradient(self, node: Any) -> None:
        """A ``with torch.no_grad()`` block, which is a graph of its own."""
        enabled, body, *args = without_counts(node)
        inner = getattr(body.graph.owning_module, body.target).graph
        places = [n for n in inner.nodes if n.op == "placeholder" and not counts_only(n)]
        order = self.order
        results = self.run(inner, dict(zip(places, map(self.value, args), strict=True)))
        self.order = order
        if not enabled:
            results = [OPS["stop_gradient"](r) for r in results]
        self.values[node] = results

    # -- for handlers ------------------------------------------------------------------------------
    def unsupported(self, what: str, remedy: str = "") -> UnsupportedError:
        """To be raised: ``what``, at the module of this node."""
        where = scope_of(self.node) or self.model if self.node is not None else self.model
        return UnsupportedError(what, where, remedy)

    def unread(self, what: Any) -> UnsupportedError:
        """To be raised: an operator that nothing here reads."""
        return self.unsupported(
            f"the operator {what}",
            "write it with operators that are carried (docs/coverage.md), or report it; to add it, "
            "see CONTRIBUTING.md: an op with this torch lowering, or a reader in frameworks/torch",
        )

    def require(self, holds: bool, what: str, remedy: str = "") -> None:
        """Refuse this operator with ``what`` unless ``holds``."""
        if not holds:
            raise self.unsupported(f"{self.node.target} with {what}", remedy)

    @property
    def out(self) -> Type:
        """The type that torch says the (first) result has."""
        meta = self.node.meta["val"]
        return self.type_of(meta[0] if isinstance(meta, (list, tuple)) else meta)

    def flag(self, given: bool) -> Any:
        """A training flag: MODE where the two modes differ in it."""
        return self.flags.get(self.node, given)

    def cast(self, value: Any, dtype: DType) -> Value:
        """``value``, a Value or a number, in this dtype."""
        if not isinstance(value, Value):
            return self.full((), value, dtype)
        done: Value = value if value.dtype == dtype else OPS["cast"](value, dtype=dtype)
        return done

    def full(self, shape: Any, value: Any, dtype: DType) -> Value:
        """An array of one number."""
        if isinstance(value, (int, float)) and dtype.is_floating:
            value = float(value)
        filled: Value = OPS["full"](shape=shape, value=value, dtype=dtype)
        return filled

    def dropped(self, x: Value, rate: float, flag: Any) -> Value:
        """``x`` with a part of it dropped, while ``flag`` says that this is training."""
        if rate == 0 or flag is False:
            return x
        self.require(rate < 1, f"a rate of {rate}", "a dropout that drops everything has no op")
        salt, self.dropouts = self.dropouts, self.dropouts + 1
        key = self.graph.key()
        done: Value = OPS["dropout"](x, key, rate=float(rate), training=flag, salt=salt)
        return done

    def promoted(self, *items: Any, dtype: DType | None = None) -> list[Value]:
        """Values and numbers in the dtype that torch promotes them to."""
        kind = dtype or promotion([i.type if isinstance(i, Value) else i for i in items])
        return [self.cast(i, kind) for i in items]


def _short(what: str) -> str:
    """What is refused of an operator that another is made of."""
    return what.removeprefix("the operator ")


_NEVER_UNROLLED = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
"""Torch would define these by one copy of a step for every moment."""

_PLACEMENT = {
    "device",
    "layout",
    "pin_memory",
    "non_blocking",
    "memory_format",
    "copy",
    "requires_grad",
}
"""Arguments that say where numbers lie, never which."""


def _same(a: Any, b: Any) -> bool:
    return (
        a == b
        or (a is None and b is None)
        or (list(a) == list(b) if isinstance(b, list) else False)
    )


# -- the lines of the declarations -----------------------------------------------------------------
_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "true_divide": "/", "divide": "/",
    "multiply": "*", "subtract": "-", "pow": "**", "neg": "-x", "negative": "-x", "matmul": "@",
    "mm": "@", "bmm": "@", "mv": "@", "dot": "@", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
    "gt": ">", "ge": ">=", "bitwise_and": "&", "bitwise_or": "|", "bitwise_not": "~x",
    "__and__": "&", "__or__": "|", "logical_and": "&", "logical_or": "|", "logical_not": "~x",
    "absolute": "abs", "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim",
    "tile": "repeat", "linalg_vector_norm": "vector_norm", "log_sigmoid": "logsigmoid",
    "concat": "cat", "concatenate": "cat",
}  # fmt: skip
"""What ATen calls a sign, or has a second name for."""


@functools.cache
def words() -> Vocabulary:
    """All torch lines."""
    return Vocabulary("torch", _SIGNS)
