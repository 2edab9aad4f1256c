"""PyTorch modules -> Graph, through torch.export, once in each mode.

What a module does while training and what it does in evaluation are exported apart and laid side by
side: where they differ in nothing but the flag of a dropout or a batch norm, that flag is left open
(``training=MODE``); a flag that is the same in both stays what it is (a frozen BatchNorm). Any
other difference is refused, because one Graph would be wrong in one of the modes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trivium.check import check
from trivium.frameworks.torch import aten_nn, aten_shape  # noqa: F401  (they fill the table)
from trivium.frameworks.torch.arrays import array_of, tensor_of
from trivium.frameworks.torch.aten import Reader
from trivium.frameworks.torch.exported import (
    as_size,
    dtype_of,
    is_count,
    is_size,
    name_of,
    of_an_operator,
    scope_of,
)
from trivium.graph import MODE, OPS, Graph, UnsupportedError, Value
from trivium.nn.module import GraphModule
from trivium.shape import Dim
from trivium.transforms.replay import prune

if TYPE_CHECKING:
    import torch


def read(module: torch.nn.Module, *examples: Any, training: bool | None = None) -> GraphModule:
    """The Graph and the parameters of ``module``, for inputs like ``examples`` (tensors or arrays).

    The first axis of every input is left open wherever the module does not fix it. ``training``
    True or False reads the module in that mode alone, for one whose two modes differ in more than
    dropout and batch norm. Parameters keep the names of ``module.state_dict()``.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("from_torch needs PyTorch: pip install torch") from error

    tensors = [_as_tensor(torch, module, e) for e in examples]
    modes = (True, False) if training is None else (training,)
    exported = _export(module, tensors, modes)
    flags = _flags(module, *exported) if len(exported) > 1 else {}
    program = exported[0]
    graph = Graph(type(module).__name__)
    own = ((p, m) for p, m in module.named_modules() if not type(m).__module__.startswith("torch."))
    graph.classes = {path: type(m).__name__ for path, m in own}
    arrays: dict[str, Any] = {}
    sources, dims = _inputs(graph, module, program, arrays)
    reader = Reader(graph, dims, flags, type(module).__name__, both=training is None)
    with graph:
        results = reader.run(program.graph, sources)
    graph.outputs = _outputs(graph, module, program, results)
    renamed = _plain_rnns(graph, arrays)
    prune(graph)
    names = {v.name: renamed.get(v.name, v.name) for v in graph.of_kind("param", "state")}
    return GraphModule(check(graph), {n: array_of(arrays[n]) for n in names}, names)


def _plain_rnns(graph: Graph, arrays: dict[str, Any]) -> dict[str, str]:
    """An nn.RNN of one layer with the names of our layer: ``weight_ih`` for ``weight_ih_l0``.

    Its second bias, zero and not trained, is how one bias is written in torch: it is left out. The
    result is our new names -> torch's.
    """
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "rnn":
            continue
        last = node.inputs[4]
        fixed = last if last is not None and not (last.kind == "param" and last.trainable) else None
        if fixed is not None and not arrays[fixed.name].any():
            node.inputs = (*node.inputs[:4], None)
        for v in node.inputs[1:]:
            if v is None or v.kind not in ("param", "state") or not v.name.endswith("_l0"):
                continue
            old, plain = v.name, v.name.removesuffix("_l0")
            if f"{plain}_l1" not in arrays:  # one of several layers keeps its number
                v.name, renamed[plain], arrays[plain] = plain, old, arrays[old]
    return renamed


# -- arrays ----------------------------------------------------------------------------------------
def _as_tensor(torch: Any, module: Any, example: Any) -> Any:
    if isinstance(example, torch.Tensor):
        return example
    if isinstance(example, (np.ndarray, np.generic)):
        first = next(iter(module.parameters()), None)
        return tensor_of(example).to(None if first is None else first.device)
    raise UnsupportedError(
        f"an example of type {type(example).__name__}",
        type(module).__name__,
        "examples are tensors or arrays; wrap the module in one that takes each tensor by itself",
    )


# -- exporting -------------------------------------------------------------------------------------
@contextlib.contextmanager
def _modes_kept(module: Any) -> Iterator[None]:
    """Every submodule's mode as it was, afterwards."""
    before = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, mode in before:
            m.training = mode


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """torch.export so that it assumes nothing about the batch and keeps the plain operators."""
    import torch
    from torch.fx.experimental import _config

    functional: Any = torch.nn.functional
    fast = torch.backends.mha.get_fastpath_enabled()
    verify = functional._verify_batch_size
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator for a whole encoder layer
    # It refuses to train on one row, which would make "not 1" a condition of the whole export.
    functional._verify_batch_size = lambda size: None
    try:
        # Without backed_size_oblivious the exporter takes "the batch is not 1" for granted, and a
        # model that asks (squeeze, broadcasting by hand) is silently fixed to the other answer.
        with _config.patch(backed_size_oblivious=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        functional._verify_batch_size = verify
        torch.backends.mha.set_fastpath_enabled(fast)


def _export(module: Any, tensors: Sequence[Any], modes: Sequence[bool]) -> list[Any]:
    """One exported program per mode, with the same first axes open in each."""
    opened = {i for i, t in enumerate(tensors) if t.ndim}
    why: dict[int, str] = {}
    while True:
        with _exporting():
            programs = [_export_mode(module, tensors, opened, mode, why) for mode in modes]
        fixed = {i: reason for p in programs for i, reason in _conditions(p, opened).items()}
        if not fixed and all(p is not None for p in programs):
            break
        why |= fixed
        opened = opened - fixed.keys() if fixed else set()
    batch = next((t.shape[0] for t in tensors if t.ndim), None)
    for i, reason in why.items():
        if tensors[i].shape[0] == batch:
            warnings.warn(
                f"{type(module).__name__} is read for inputs of exactly the size "
                f"{tuple(tensors[i].shape)} (input {i}): {reason}",
                stacklevel=3,
            )
    return programs


def _export_mode(
    module: Any, tensors: Sequence[Any], opened: set[int], mode: bool, why: dict[int, str]
) -> Any:
    import torch

    tensors = [t.detach().clone() for t in tensors]  # the collection goes by identity
    sizes = torch.export.ShapesCollection()
    for i in opened:
        sizes[tensors[i]] = {0: torch.export.Dim.AUTO}
    try:
        with _modes_kept(module):
            if module.training != mode:  # else as it is: a child may be frozen by its own eval()
                module.train(mode)
            return torch.export.export(
                module, tuple(tensors), dynamic_shapes=sizes if opened else None, strict=False
            )
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        if opened:  # perhaps it can be exported for this size
            why |= dict.fromkeys(opened, reason)
            return None
        raise UnsupportedError(
            f"torch.export cannot follow it while {'training' if mode else 'evaluating'}: {reason}",
            type(module).__name__,
            "Python may not branch on what is in a tensor",
        ) from error


def _conditions(program: Any, opened: set[int]) -> dict[int, str]:
    """The inputs whose open size holds only under a condition, with that condition."""
    if program is None:
        return {}
    fixed: dict[int, str] = {}
    by_symbol: dict[Any, list[int]] = {}
    environment: Any = None
    for i, value in enumerate(_user_values(program)):
        if i in opened and not isinstance(size := value.shape[0], int) and size.node.expr.is_Symbol:
            by_symbol.setdefault(size.node.expr, []).append(i)
            environment = size.node.shape_env
        elif i in opened:
            fixed[i] = f"the model fixes the size {as_size(size, {})}"
    for guard in environment.guards if environment else ():
        expression = environment.simplify(guard.expr)  # equal sizes have become one symbol
        for symbol in expression.free_symbols:
            for i in by_symbol.get(symbol, ()) if not of_an_operator(guard, expression) else ():
                fixed.setdefault(i, f"the model does something else unless {expression}")
    return fixed


def _user_values(program: Any) -> list[Any]:
    names = set(program.graph_signature.user_inputs)
    return [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]


# -- the two modes side by side --------------------------------------------------------------------
_FLAG = {
    "batch_norm": 5, "instance_norm": 5, "rnn_tanh": 6, "rnn_relu": 6, "rrelu": 3, "dropout": 2,
    "alpha_dropout": 2, "feature_dropout": 2, "feature_alpha_dropout": 2,
    "scaled_dot_product_attention": 4,
}  # fmt: skip
"""Where an operator says whether it is training (or, attention, at what rate it drops)."""


def _flags(module: Any, train: Any, evaluation: Any) -> dict[Any, Any]:
    """The nodes of the training graph whose flag is another in evaluation, each with MODE."""
    flags: dict[Any, Any] = {}
    _align(train.graph_module, evaluation.graph_module, {}, flags, type(module).__name__)
    return flags


def _align(left: Any, right: Any, pairs: dict[Any, Any], flags: dict[Any, Any], model: str) -> None:
    """Pair the nodes of two exported graphs in their order; refuse them at the first difference."""
    ahead = deque(n for n in right.graph.nodes if not is_count(n) and not is_size(n))
    for a in (n for n in left.graph.nodes if not is_count(n) and not is_size(n)):
        if name_of(a) == "dropout" and a.args[2] and not (ahead and name_of(ahead[0]) == "dropout"):
            flags[a] = MODE  # written as "if self.training: dropout": evaluation has no such node
            pairs[a] = pairs[a.args[0]]
            continue
        b = ahead.popleft() if ahead else None
        if b is None or not _agree(a, b, pairs, flags):
            raise _differ(a, b, model)
        if a.op == "get_attr" and hasattr(body := getattr(left, a.target), "graph"):
            _align(body, getattr(right, b.target), pairs, flags, model)
        pairs[a] = b
    if ahead:
        raise _differ(None, ahead[0], model)


def _agree(a: Any, b: Any, pairs: dict[Any, Any], flags: dict[Any, Any]) -> bool:
    """Do two nodes do the same with the same, but perhaps for a flag that is on while training?"""
    if a.op != b.op or (a.op == "call_function" and str(a.target) != str(b.target)):
        return False
    mine, theirs = list(a.args), list(b.args)
    at = _FLAG.get(name_of(a).rstrip("_"))
    if at is not None and max(len(mine), len(theirs)) > at:
        defaults = [argument.default_value for argument in a.target._schema.arguments]
        mine += defaults[len(mine) : at + 1]
        theirs += defaults[len(theirs) : at + 1]
        if mine[at] and not theirs[at]:
            flags[a] = MODE
            theirs[at] = mine[at]

    def same(x: Any, y: Any) -> bool:
        if hasattr(x, "all_input_nodes"):
            if is_size(x):  # an expression of the inputs' sizes, which both exports name alike
                return is_size(y) and str(x.meta["val"]) == str(y.meta["val"])
            return pairs.get(x) is y
        if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
            return len(x) == len(y) and all(map(same, x, y))
        return type(x) is type(y) and bool(x == y or x != x)

    return same(mine, theirs) and same(sorted(a.kwargs.items()), sorted(b.kwargs.items()))


def _differ(a: Any, b: Any, model: str) -> UnsupportedError:
    both = " against ".join(f"{n.target}" if n is not None else "nothing" for n in (a, b))
    return UnsupportedError(
        f"training and evaluation differ in more than dropout and batch norm: {both}",
        scope_of(a or b) or model,
        "read it in one mode: from_torch(..., training=False)",
    )


# -- inputs and outputs ----------------------------------------------------------------------------
def _inputs(
    graph: Graph, module: Any, program: Any, arrays: dict[str, Any]
) -> tuple[dict[Any, Value], dict[str, Dim]]:
    """Inputs of ``graph`` for the placeholders, their tensors in ``arrays``, Dims by symbol."""
    import torch
    from torch.export.graph_signature import InputKind

    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    held = dict(module.named_parameters(remove_duplicate=False))
    held |= dict(module.named_buffers(remove_duplicate=False))
    specs = [(nodes[s.arg.name], s) for s in program.graph_signature.input_specs]
    taken = {s.target for _, s in specs}
    dims: dict[str, Dim] = {}
    sources: dict[Any, Value] = {}
    for node, spec in specs:
        if spec.kind == InputKind.USER_INPUT:
            value = node.meta["val"]
            for s in value.shape:
                if not isinstance(s, int) and s.node.expr.is_Symbol:
                    name = f"batch_{len(dims)}" if dims else "batch"
                    dims.setdefault(str(s.node.expr), Dim(name))
            shape = tuple(as_size(s, dims) for s in value.shape)
            name = node.name + "_" * (node.name in taken)
            sources[node] = graph.input("data", dtype_of(value.dtype), shape, name)
    by_tensor: dict[int, Value] = {}
    order = {name: i for i, name in enumerate(held)}
    first: dict[int, str] = {}  # a tied parameter is one input, under its first name
    for name, tensor in held.items():
        first.setdefault(id(tensor), name)
    for node, spec in sorted(specs, key=lambda s: order.get(s[1].target, len(order))):
        counts = str(spec.target).endswith("num_batches_tracked") and all(map(is_count, node.users))
        if spec.kind == InputKind.USER_INPUT or counts:
            continue
        fixed = spec.kind == InputKind.CONSTANT_TENSOR or spec.persistent is False
        if fixed or spec.target not in held:
            if spec.target not in held and spec.target not in program.constants:
                raise UnsupportedError(f"an input of kind {spec.kind.name}", str(spec.target))
            tensor = held.get(spec.target, program.constants.get(spec.target))
            with graph:
                (sources[node],) = OPS["constant"].append(graph, (), {"value": array_of(tensor)})
            continue
        tensor = held[spec.target]
        if id(tensor) not in by_tensor:
            kind = "param" if isinstance(tensor, torch.nn.Parameter) else "state"
            trainable = kind == "state" or tensor.requires_grad
            name, dtype = first[id(tensor)], dtype_of(tensor.dtype)
            shape = tuple(tensor.shape)
            by_tensor[id(tensor)] = graph.input(kind, dtype, shape, name, trainable)
            arrays[name] = tensor
        sources[node] = by_tensor[id(tensor)]
    return sources, dims


def _outputs(graph: Graph, module: Any, program: Any, results: Sequence[Any]) -> list[Value]:
    from torch.utils import _pytree

    nested = _pytree.tree_unflatten(list(results), program.call_spec.out_spec)
    if isinstance(nested, Mapping):
        graph.structure, nested = tuple(nested), list(nested.values())
    elif isinstance(nested, (tuple, list)):
        graph.structure = type(nested) if type(nested) in (tuple, list) else tuple
        nested = list(nested)
    else:
        nested = [nested]
    for item in nested:
        if not isinstance(item, Value):
            raise UnsupportedError(
                f"an output that is no tensor but {type(item).__name__}",
                type(module).__name__,
                "return a tensor, a flat tuple or a flat dict of tensors",
            )
    return nested
