"""A Graph as JAX functions on nested parameters, in source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import DType
from trivium.frameworks.jax.helpers import HELPERS
from trivium.frameworks.layer import LayerForm, weights
from trivium.frameworks.ways import FIRST, square
from trivium.frameworks.writing.blocks import Block, Layer, leaf
from trivium.frameworks.writing.classes import Body, Class
from trivium.frameworks.writing.code import (
    Code,
    Flag,
    Member,
    Statement,
    Target,
    array_source,
    joined,
)
from trivium.frameworks.writing.functional import (
    Arguments,
    Called,
    Calls,
    CallWriter,
    Own,
    Stateful,
    either,
    flagged,
    keywords,
    linear,
    looped,
    nested,
    new_shape,
    passes,
    plain_padding,
    scan,
    select,
    slice_axis,
    snake,
    tupled,
)
from trivium.frameworks.writing.source import Emitted, Emitter, with_sizes
from trivium.frameworks.writing.writer import Writer
from trivium.graph import MODE, OPS, Graph, Node, UnsupportedError, Value, quoted
from trivium.op import Refused

NARROW = {"int64": "int32", "uint64": "uint32"}
"""JAX has 32 bits unless told otherwise; said here, so that it does not happen silently."""


# -- layers: functions of (params, x) --------------------------------------------------------------
def _statistics(node: Node) -> bool:
    return node.inputs[3] is not None and node.inputs[3].kind == "state"


FORMS = [  # a layer is its arrays: calls say all else
    LayerForm("conv", "conv(...)", weights("w", "b")),
    LayerForm("linear", "linear(...)", weights("weight", "bias")),
    LayerForm("batch_norm", "batch_norm(...)", when=_statistics,
              weights=weights("scale", "bias", "running_mean", "running_var")),
    LayerForm("layer_norm", "layer_norm(...)", weights("scale", "bias"),
              when=lambda node: len(node.inputs) > 1 and node.inputs[1] is not None),
    LayerForm("embedding", "embedding(...)", weights("weight")),
    LayerForm("rnn", "rnn(...)", weights("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
]  # fmt: skip


def _conv_keywords(a: Mapping[str, Any]) -> Code:
    return keywords({
        "stride": (square(a["stride"]), 1), "padding": (plain_padding(a["padding"]), 0),
        "dilation": (square(a["dilation"]), 1), "groups": (a["groups"], 1),
        "layout": (None if a["layout"] in FIRST else a["layout"], None),
    })  # fmt: skip


def _norm_keywords(a: Mapping[str, Any]) -> Code:
    return keywords({
        "axis": (a["axis"], 1), "momentum": (a["momentum"], 0.1), "epsilon": (a["epsilon"], 1e-5),
        "unbiased": (a["unbiased"], True),
    })  # fmt: skip


def _mode(training: Any) -> Code:
    return [Flag("training")] if training is MODE else [", training=True"] if training else []


def _activation(a: Mapping[str, Any]) -> Code:
    if a["activation"] == "tanh":
        return []
    module = "jax.nn" if a["activation"] in ("relu", "sigmoid") else "jnp"
    return [f", activation={module}.{a['activation']}"]


# -- calls -----------------------------------------------------------------------------------------
def _conv(target: Target, node: Node) -> Code:
    arrays = [target.array(v) for v in node.inputs if v is not None]
    return ["convolution(", *joined(arrays), *_conv_keywords(node.attrs), ")"]


def _pool(target: Target, node: Node) -> Code:
    a = node.attrs
    more = keywords({
        "stride": (square(a["stride"]), square(a["kernel"])),
        "padding": (plain_padding(a["padding"]), 0),
        "dilation": (square(a.get("dilation", (1,))), 1),
        "include_pad": (a.get("include_pad", True) or plain_padding(a["padding"]) == 0, True),
        "axis": (1 if a["layout"][-1] == "C" else 2, 2),
    })  # fmt: skip
    kernel = target.literal(square(a["kernel"]))
    dilated = node.op == "max_pool" and square(a["dilation"]) != 1
    name = "dilated_max_pool" if dilated else node.op
    return [f"{name}(", *target.array(node.inputs[0]), f", {kernel}", *more, ")"]


def _dropout(target: Target, node: Node) -> Code:
    a = node.attrs
    return [
        "dropout(",
        *target.array(node.inputs[0]),
        f", {a['rate']}",
        Flag("rng"),
        *_mode(a["training"]),
        ")",
    ]


def _reduce(target: Target, node: Node) -> Code:
    x, a = node.inputs[0], node.attrs
    assert x is not None
    whole = len(a["axis"]) == len(x.shape)
    if not whole and target.template(node) is not None:
        return target.by_line(node)
    axis = "" if whole else target.literal(square(a["axis"]))
    keep = (", " if axis else "") + "keepdims=True" if a["keepdims"] else ""
    if (ties := a.get("ties", "share")) != "share":
        more = ", ".join(filter(None, (axis, keep.removeprefix(", "))))
        return [f"{node.op}_{ties}(", *target.array(x), f", {more})" if more else ")"]
    return [*target.array(x), f".{node.op}({axis}{keep})"]


def _transpose(target: Target, node: Node) -> Code:
    axes = node.attrs["axes"]
    if axes == tuple(reversed(range(len(axes)))):
        return [*target.array(node.inputs[0]), ".T"]
    return [*target.array(node.inputs[0]), f".transpose({', '.join(map(str, axes))})"]


def _reshape(target: Target, node: Node) -> Code:
    return [
        *target.array(node.inputs[0]),
        ".reshape(",
        *joined(new_shape(target, node.attrs["shape"])),
        ")",
    ]


def _flatten(target: Target, node: Node) -> Code:
    start = node.attrs["start"]
    return ["flatten(", *target.array(node.inputs[0]), ")" if start == 1 else f", {start})"]


def _pad(target: Target, node: Node) -> Code:
    x, a = node.inputs[0], node.attrs
    assert x is not None
    if any(a["interior"]) or any(p < 0 for p in (*a["low"], *a["high"])):
        config = tuple(zip(a["low"], a["high"], a["interior"], strict=True))
        number = f"jnp.array({target.literal(a['value'])}, {target.literal(x.dtype)})"
        return ["lax.pad(", *target.array(x), f", {number}, {config})"]
    pairs = tuple(zip(a["low"], a["high"], strict=True))
    tail = f", constant_values={target.literal(a['value'])})" if a["value"] else ")"
    return ["jnp.pad(", *target.array(x), f", {pairs}{tail}"]


def _constant(target: Target, node: Node) -> Code:
    array = node.attrs["value"]
    if (
        array.dtype.name in NARROW
        and array.astype(NARROW[array.dtype.name]).tolist() != array.tolist()
    ):
        raise UnsupportedError(
            f"a constant beyond {NARROW[array.dtype.name]} in JAX source", node.scope
        )
    return [f"jnp.array({_finite(array_source(array))}, {target.literal(node.out.dtype)})"]


def _finite(source: str) -> str:
    return re.sub(r"\b(inf|nan)\b", r"jnp.\1", source)


def _take_grad(target: Target, node: Node) -> Code:
    g, indices = node.inputs
    a = node.attrs
    zeros: Code = [
        "jnp.zeros(",
        *target.attribute(node.out.shape),
        f", {target.literal(node.out.dtype)})",
    ]
    at: Code = [".at[", ":, " * a["axis"], *target.array(indices), "]"]
    return [*zeros, *at, ".add(", *target.array(g), ")"]


def _cond(target: Any, node: Node) -> Code:
    names = [
        target.step(node.attrs[k], f"{leaf(node.scope) or 'cond'}_{k}")
        for k in ("then", "otherwise")
    ]
    condition, *operands = [target.array(v) for v in node.inputs]
    return ["lax.cond(", *joined([condition, [names[0]], [names[1]], *operands]), ")",
            "[0]" * (len(node.outputs) == 1)]  # fmt: skip


class Jax(Calls):
    """JAX source: functions of (params, x)."""

    name = "jax"
    forms = FORMS
    holds = False
    helpers = HELPERS
    lacks = frozenset({"float64"})
    reserved = frozenset(
        {"jax", "jnp", "lax", "math", "params", "state", "training", "rng", "keys", "i"}
    )
    functions = {  # noqa: RUF012
        "conv": _conv, "max_pool": _pool, "avg_pool": _pool, "dropout": _dropout, "linear": linear,
        "sum": _reduce, "mean": _reduce, "max": _reduce, "min": _reduce, "transpose": _transpose,
        "reshape": _reshape, "flatten": _flatten, "pad": _pad, "constant": _constant,
        "slice_axis": slice_axis, "select": select,
        "take_grad": _take_grad, "scan": scan, "cond": _cond,
    }  # fmt: skip

    def prepare(self, graph: Graph) -> Graph:
        """Without float64."""
        for v in (*graph.inputs, *(v for n in graph.nodes for v in n.outputs)):
            if v.dtype in self.lacks:
                raise UnsupportedError(
                    "float64 in JAX source, which is float32 there unless x64 is on",
                    v.node.scope if v.node else v.name, "cast the model to float32",
                )  # fmt: skip
        return graph

    def lowers(self, node: Node) -> bool:
        """Dropout that is off, and norms without parameters, are decomposed."""
        if node.op == "dropout" and node.attrs["training"] is False:
            return False
        if node.op == "layer_norm" and node.inputs[1:] in ((), (None,), (None, None)):
            return False
        return super().lowers(node)

    def expression(self, node: Node) -> Code:
        """A layer whose arrays are no layer's own parameters gets them in a dict."""
        form = next((f for f in self.forms if f.op == node.op), None)
        if form is None or node.op in self.functions:
            return super().expression(node)
        arrays = dict(zip(OPS[node.op].arrays, node.inputs, strict=False))
        entries = [
            [f'"{w.theirs}": ', *self.array(v)]
            for w in form.weights
            if (v := arrays.get(w.array)) is not None
        ]
        return self.layer(node, ["{", *joined(entries), "}"])

    def literal(self, value: Any) -> str:
        """Dtypes by name, 64-bit integers as the 32-bit ones they are."""
        if isinstance(value, DType):
            return f'"{NARROW.get(value, value)}"'
        if isinstance(value, float) and not np.isfinite(value):
            return f"jnp.{value}".replace("jnp.-", "-jnp.")
        return super().literal(value)

    def class_name(self, words: Sequence[str]) -> str:
        """``basic_block``."""
        name = snake(words)
        return f"{name}_model" if self.taken(name) else name

    def makes(self, dtypes: set[DType]) -> bool:
        """Layers are functions of their arrays."""
        return True

    def constructor(self, form: LayerForm, arguments: dict[str, Any]) -> Code:
        """Nothing is declared: the arrays say it all."""
        return []

    def parameter(self, value: Value) -> Code:
        """Nothing is declared."""
        return []

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """``conv(params["conv1"], x, stride=2)``."""
        node = layer.node
        code = self.layer(node, [member])
        if node.op == "rnn":
            return either(node.outputs, code)
        if node.op == "batch_norm" and node.attrs["training"] is not False:
            return [Stateful([node.outputs[0]], code, effect=True, state=member)]
        return [Statement([node.outputs[0]], code)]

    def results(self, node: Node) -> list[Value | None]:
        """A batch norm in inference leaves its statistics as they were, and gives one array."""
        alone = node.op == "batch_norm" and node.attrs["training"] is False
        return [node.outputs[0]] if alone else list(node.outputs)

    def layer(self, node: Node, params: Code) -> Code:
        """The call of a layer's function."""
        a = node.attrs
        x = node.inputs[1] if node.op == "embedding" else node.inputs[0]
        start: Code = [f"{node.op}(", *params, ", ", *self.array(x)]
        match node.op:
            case "conv":
                return [*start, *_conv_keywords(a), ")"]
            case "batch_norm":
                end = ")[0]" if a["training"] is False else ")"
                return [*start, *_mode(a["training"]), *_norm_keywords(a), end]
            case "layer_norm":
                return [*start, *keywords({"epsilon": (a["epsilon"], 1e-5)}), ")"]
            case "rnn":
                return [*start, *_activation(a), ")"]
        return [*start, ")"]

    def inner(self, graph: Graph) -> Emitter:
        """An emitter for an inner Graph."""
        return Functions(graph, self)

    def function(self, emitter: Emitter, cls: Class) -> str:
        """The step of a scan, a branch of a cond: a tuple of results."""
        return _function(emitter, cls, inner=True)

    def render(self, emitter: Emitter) -> str:
        """Imports, then the functions, inner ones first."""
        emitter.settle()
        parts = [_function(emitter, cls) for cls in emitter.classes]
        body = "\n\n\n".join([*self.steps.values(), *parts])
        return "import jax\nimport jax.numpy as jnp\nfrom jax import lax\n\n\n" + body


class Functions(Emitter):
    """Blocks become calls of functions that take their own part of the parameters."""

    def sub_block(self, body: Body, block: Block) -> None:
        """``y, state["layer1"] = layer1(params["layer1"], x, training=training)``."""
        inner = self.body(block)
        member = Member(self.member_name(body.block, block.path))
        parts: list[Code] = [[member]]
        parts += [[v] for v in block.inputs]
        code: Code = [Called(inner), "(", *joined(parts), Arguments(inner)]
        code += [
            Flag(n) for n in ("rng", "training") if any(passes(s.code, n) for s in inner.statements)
        ]
        code.append(")")
        outputs = list(block.outputs)
        if any(isinstance(s, Stateful) for s in inner.statements):
            body.statements.append(Stateful(outputs, code, effect=True, state=member))  # type: ignore[arg-type]
        else:
            body.statements.append(Statement(outputs, code))  # type: ignore[arg-type]


class _Writer(CallWriter):
    def __init__(self, emitter: Emitter, cls: Class):
        super().__init__(emitter, cls)
        passed = [
            p
            for s in self.body.statements
            for p in s.code
            if isinstance(p, Flag) and p.name == "rng"
        ]
        self.keys = {id(p): i for i, p in enumerate(passed)}
        self.assigned: set[str] = set()  # members whose new state is there already
        self.stateful = [s.state.name for s in self.body.statements if isinstance(s, Stateful)]

    def member(self, member: Member) -> str:
        """``params["layer1"]["0"]``."""
        name, path = member.name, self.body.block.path
        if isinstance(member, Own) and path:
            if not name.startswith(path + "."):
                raise UnsupportedError(
                    f"JAX source that reads {name} in {path}, outside its own scope"
                )
            name = name[len(path) + 1 :]
        at = _indexed(name)
        return f"merged(params{at}, state{at})" if name in self.assigned else f"params{at}"

    def flag(self, flag: Flag) -> str:
        """Every use of the key is another key."""
        return (
            f"keys[{self.keys[id(flag)]}]"
            if flag.name == "rng" and len(self.keys) > 1
            else flag.name
        )

    def statement(self, s: Statement, following: Sequence[Any]) -> None:
        """A new state is assigned, so its statement has a line of its own."""
        if not isinstance(s, Stateful):
            super().statement(s, following)
            block = any(isinstance(p, Arguments) for p in s.code)
            if (
                block and isinstance(first := following[0], str) and s.code[0] == first
            ):  # a line each
                self.flush([v for v in s.outputs if v is not None])
            return
        text, depth = self.text(s.code)
        used = [p for p in s.code if isinstance(p, Value)]
        if self.pending and (len(text) > 72 or depth > 3):
            self.flush(used)
            text, _ = self.text(s.code)
        for p in used:
            self.pending.pop(p, None)
            self.left[p] -= 1
        used = self.ending(s, used)
        names = [
            self.name_for(v, used, s) if v is not None and self.left.get(v) else "_"
            for v in s.outputs
        ]
        self.lines.append(f"{', '.join(names)}, state{_indexed(s.state.name)} = {text}")
        self.assigned.add(s.state.name)

    def results(self, root: bool) -> None:
        """The return, with the new state where there is one."""
        line = self.lines.pop().removeprefix("return ")
        several = len(self.body.block.outputs) != 1
        if not self.stateful:
            self.lines.append(f"return {line}")
        elif not root:
            self.lines.append(f"return {line}, state")
        else:
            y = f"({line})" if several and line[0] not in "{[" else line
            moded = any(passes(s.code, "training") for s in self.body.statements)
            if moded and not several and not y.isidentifier():
                self.lines.append(f"y = {y}")
                y = "y"
            self.lines.append(
                f"return ({y}, state) if training else {y}" if moded else f"return {y}, state"
            )


def _indexed(name: str) -> str:
    return "".join(f'["{part}"]' for part in name.split("."))


def _function(emitter: Emitter, cls: Class, inner: bool = False) -> str:
    writer = _Writer(emitter, cls)
    root = not inner and emitter.root in cls.bodies
    moded = flagged(cls, "training") > 0
    arguments = [] if inner else ["params"]
    arguments += [*writer.argument_names(), *cls.signature(writer.literal)]
    arguments += ["training=False"] if moded else []
    arguments += ["rng=None" if moded else "rng"] if writer.keys else []
    lines = []
    if root and writer.stateful and moded:
        lines.append(
            '"""With ``training=True`` -> (y, the new running statistics, nested as in params)."""'
        )
    if root and (paths := emitter.frozen()):
        some = f"frozen(params, {', '.join(map(quoted, paths))})"
        lines.append(f"params = {some if paths != [''] else 'lax.stop_gradient(params)'}")
    if (n := len(writer.keys)) > 1:
        split = f"keys = jax.random.split(rng, {n})"
        lines.append(split + (f" if training else [None] * {n}" if moded else ""))
    if writer.stateful:
        lines.append(f"state = {nested(writer.stateful)}")
    writer.write()
    if inner:
        writer.lines[-1] = tupled(writer.lines[-1], len(cls.body.block.outputs))
    else:
        writer.results(root)
    lines += looped(writer.lines)
    return f"def {cls.name}({', '.join(arguments)}):\n" + "\n".join("    " + line for line in lines)


def emit(graph: Graph) -> Emitted:
    """The source of a JAX function ``f(params, *inputs)`` that means this Graph."""
    emitted = with_sizes(lambda g: Functions(g, Jax()).run(), graph)
    imports = [f"import {m}\n" for m in ("itertools", "math") if f"{m}.prod" in emitted.source]
    emitted.source = "".join(imports) + "\n" * bool(imports) + emitted.source
    return emitted


__all__ = ["FORMS", "Jax", "Refused", "Writer", "emit"]
