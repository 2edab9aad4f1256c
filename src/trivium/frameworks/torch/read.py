"""PyTorch modules -> Graph, through torch.export, once in each mode.

What a module does while training and what it does in evaluation are exported apart and laid side by
side: where they differ in nothing but the flag of a dropout or a batch norm, that flag is left open
(``training=MODE``); a flag that is the same in both stays what it is (a frozen BatchNorm). Any
other difference is refused, because one Graph would be wrong in one of the modes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trivium.frameworks.torch import aten_math, aten_nn, aten_shape  # noqa: F401  (they fill a table)
from trivium.frameworks.torch.arrays import array_of, tensor_of
from trivium.frameworks.torch.aten import Reader
from trivium.frameworks.torch.exported import as_size, counts_only, dtype_of
from trivium.frameworks.torch.exporting import export, offered
from trivium.frameworks.torch.modes import compared, drop_paths
from trivium.graph import OPS, Graph, UnsupportedError, Value
from trivium.graph.check import check
from trivium.nn.module import GraphModule
from trivium.shape import Dim, axis_name
from trivium.transforms.replay import prune

if TYPE_CHECKING:
    import torch


def read(module: torch.nn.Module, *examples: Any, training: bool | None = None) -> GraphModule:
    """The Graph and the parameters of ``module``, for inputs like ``examples`` (tensors or arrays).

    Every size of the inputs is left open wherever the module leaves it open: ``batch``, then
    ``length`` or ``height`` and ``width``. ``training`` True or False reads the module in that mode
    alone, for one whose two modes differ in more than dropout and batch norm. Parameters keep the
    names of ``module.state_dict()``.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("from_torch needs PyTorch: pip install torch") from error

    try:
        inspect.signature(module.forward).bind(*examples)
    except TypeError as error:
        name = type(module).__name__
        raise ValueError(
            f"{name}.forward() and {len(examples)} examples: {error}; pass an example array or "
            "tensor for each of its inputs"
        ) from None
    tensors = [_as_tensor(torch, module, e) for e in examples]
    modes = (True, False) if training is None else (training,)
    programs, opened = export(module, tensors, modes, offered(tensors))
    batches = {(i, axis) for i, axis in opened if axis == 0}
    try:
        return _graph_module(module, programs, training)
    except UnsupportedError:
        if opened == batches:
            raise
    # Something has no op for an open size: then it is read for the sizes that it was given.
    programs, _ = export(module, tensors, modes, batches)
    return _graph_module(module, programs, training)


def _graph_module(module: Any, programs: Sequence[Any], training: bool | None) -> GraphModule:
    """What was exported, in one mode or in both, as our Graph with its parameters."""

    program, name = programs[0], type(module).__name__
    if training is None:
        flags = compared(name, *programs)
    else:
        flags = drop_paths(program, True) if training else {}
    graph = Graph(name)
    own = ((p, m) for p, m in module.named_modules() if not type(m).__module__.startswith("torch."))
    graph.classes = {path: type(m).__name__ for path, m in own}
    arrays: dict[str, Any] = {}
    sources, dims = _inputs(graph, module, program, arrays)
    reader = Reader(graph, dims, flags, name, both=training is None)
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
            for axis, s in enumerate(value.shape):
                if not isinstance(s, int) and s.node.expr.is_Symbol:
                    wish = axis_name(axis, value.ndim)
                    alike = sum(str(d).startswith(wish) for d in dims.values())
                    name = f"{wish}_{alike}" if alike else wish
                    dims.setdefault(str(s.node.expr), Dim(name))
                    if axis:
                        graph.sizes[str(dims[str(s.node.expr)])] = s.node.hint
            shape = tuple(as_size(s, dims) for s in value.shape)
            name = node.name + "_" * (node.name in taken)
            sources[node] = graph.input("data", dtype_of(value.dtype), shape, name)
    by_tensor: dict[int, Value] = {}
    order = {name: i for i, name in enumerate(held)}
    first: dict[int, str] = {}  # a tied parameter is one input, under its first name
    for name, tensor in held.items():
        first.setdefault(id(tensor), name)
    for node, spec in sorted(specs, key=lambda s: order.get(s[1].target, len(order))):
        if spec.kind == InputKind.USER_INPUT or counts_only(node):
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
        odd = [k for k in nested if not isinstance(k, str)]
        if odd:
            what = f"outputs whose names are no words: {odd[0]!r}"
            raise UnsupportedError(what, type(module).__name__, "give them names")
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
