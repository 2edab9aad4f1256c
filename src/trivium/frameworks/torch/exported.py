"""What the nodes of an exported PyTorch graph say of themselves."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trivium.dtype import DType, as_dtype
from trivium.graph import Type, UnsupportedError
from trivium.shape import Dim, Size


def name_of(node: Any) -> str:
    """ "batch_norm" for a call of aten.batch_norm.default; else the target's own name."""
    if hasattr(node.target, "_schema"):
        return str(node.target._schema.name).removeprefix("aten::")
    return str(getattr(node.target, "__name__", node.target))


def scope_of(node: Any) -> str:
    """The path of the module that a node belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    if path.startswith("_empty_nn_module_stack"):
        return ""
    return re.sub(r"@\d+", "", path)  # the second call of a shared module is "fc@1"


def dtype_of(dtype: Any) -> DType:
    """Our dtype for torch's."""
    name = str(dtype).removeprefix("torch.")
    try:
        return as_dtype(name)
    except TypeError:
        raise UnsupportedError(
            f"the dtype {name}", "", "convert the model to a real dtype"
        ) from None


def is_count(node: Any) -> bool:
    """Does it only count batches (BatchNorm's num_batches_tracked += 1), which nothing reads?"""
    if node.op != "call_function" or name_of(node) != "add_" or not all(map(is_count, node.users)):
        return False
    counted = node.args[0]
    while counted.op == "call_function" and name_of(counted) == "add_":
        counted = counted.args[0]  # the layer was called more than once
    return bool(counted.op == "placeholder" and counted.name.endswith("num_batches_tracked"))


def counts_only(node: Any) -> bool:
    """Is it the counter of batches itself, an argument which nothing reads but to count?"""
    counter = node.op == "placeholder" and node.name.endswith("num_batches_tracked")
    return counter and all(is_count(u) or node not in _given(u) for u in node.users)


def without_counts(node: Any) -> list[Any]:
    """The arguments of a node; those of a block that is a graph of its own without its counters of
    batches, which it has while training alone.
    """
    return [*node.args[:2], *_given(node)] if _is_block(node) else list(node.args)


def _is_block(node: Any) -> bool:
    return name_of(node) == "wrap_with_set_grad_enabled"


def _given(node: Any) -> list[Any]:
    """What a node reads; of a block what it does not only count."""
    if not _is_block(node):
        return list(node.all_input_nodes)
    inner = getattr(node.graph.owning_module, node.args[1].target).graph
    places = (n for n in inner.nodes if n.op == "placeholder")
    return [x for x, p in zip(node.args[2:], places, strict=True) if not counts_only(p)]


_OPERATORS = tuple(
    f"/torch/{part}"
    for part in (
        "_ops.py",
        "_meta_registrations.py",
        "_decomp/",
        "_subclasses/",
        "_prims_common/",
        "_refs/",
        "_export/",  # an index that is within bounds
    )
)


def is_number(meta: Any) -> bool:
    """Is it a size, or a truth about sizes, and no tensor?"""
    return type(meta).__name__ in ("SymInt", "int", "SymBool", "bool")


def is_size(node: Any) -> bool:
    """Is it a node that works on sizes, or asserts something of them, and not on tensors?"""
    return node.op == "call_function" and (
        name_of(node) == "_assert_tensor_metadata" or is_number(node.meta.get("val"))
    )


def of_an_operator(guard: Any, expression: Any, given: Mapping[Any, int]) -> bool:
    """Is this asked inside of an operator, and not by the model, and so of all larger sizes too?

    Kernels are chosen by "not 1", images have to be as large as a window. The result is the same
    either way: :meth:`Reader.checked` holds its type against ours with the size open, what depends
    on a size being 1 (squeeze) is refused, and where a window is larger than the image there is no
    result. ``given`` says for each open size how large it was.
    """
    asked_in = getattr(guard.sloc.framework_loc, "filename", "").replace("\\", "/")
    if not any(part in asked_in for part in _OPERATORS):
        return False
    not_one = {("Unequality", 1), ("StrictGreaterThan", 1), ("GreaterThan", 2)}
    form = (type(expression).__name__, expression.args[-1] if expression.args else None)
    if form in not_one:
        return True
    symbols = sorted(expression.free_symbols, key=str)
    if not all(s in given for s in symbols):
        return False
    return all(
        bool(expression.subs({s: given[s] * times + more * (i + 1) for i, s in enumerate(symbols)}))
        for times, more in ((1, 0), (1, 1), (1, 2), (2, 1), (3, 2), (7, 5), (16, 3))
    )


def as_size(item: Any, dims: Mapping[str, Dim]) -> Size:
    """The Size that a SymInt, or an int, stands for."""
    if isinstance(item, int):
        return item

    def walk(e: Any) -> Size:
        kind = type(e).__name__
        if e.is_Integer:
            return int(e)
        if e.is_Symbol and str(e) in dims:
            return dims[str(e)]
        if e.is_Add:
            return functools.reduce(lambda a, b: a + b, map(walk, e.args))
        if e.is_Mul and not any(f.is_Rational and not f.is_Integer for f in e.args):
            return functools.reduce(lambda a, b: a * b, map(walk, e.args))
        if e.is_Pow and e.exp.is_Integer and e.exp > 0:
            return functools.reduce(lambda a, b: a * b, [walk(e.base)] * int(e.exp))
        if kind in ("FloorDiv", "CleanDiv"):
            return walk(e.args[0]) // walk(e.args[1])
        if kind in ("Mod", "PythonMod"):
            return walk(e.args[0]) % walk(e.args[1])  # type: ignore[operator]
        raise UnsupportedError(
            f"the size {e}", "", "sizes are sums, products and floor quotients of open sizes"
        )

    return walk(item.node.expr)


def sizes_equal(a: Size, b: Size) -> bool:
    """Equal, or equal at several sizes: a quotient can be written in more than one way."""
    if a == b:
        return True
    names = {n for s in (a, b) if isinstance(s, Dim) for n in s.names()}
    if not names:
        return False
    trials = (
        {n: k * (i + 1) for i, n in enumerate(sorted(names))} for k in (1, 2, 3, 5, 7, 12, 30)
    )
    return all(_at(a, t) == _at(b, t) for t in trials)


def _at(size: Size, env: Mapping[str, Size]) -> Size:
    return size.subs(env) if isinstance(size, Dim) else size


def promotion(items: Sequence[Any]) -> DType:
    """The dtype that torch takes operands of these Types, and numbers beside them, to."""
    import torch

    def meta(shape: tuple[int, ...], dtype: Any) -> Any:
        return torch.empty(shape, dtype=dtype, device="meta")

    def result_type(a: Any, b: Any) -> Any:
        rank = max(getattr(a, "ndim", 0), getattr(b, "ndim", 0))
        return meta((1,) * rank, torch.result_type(a, b))

    metas: list[Any] = [
        meta((1,) * min(len(i.shape), 1), getattr(torch, i.dtype)) if isinstance(i, Type)
        else 1 if isinstance(i, Dim) else i
        for i in items
    ]  # fmt: skip
    return dtype_of(functools.reduce(result_type, metas[1:], metas[0]).dtype)
