"""torch.export of a module, with every size open that the module leaves open.

Every axis is offered as open. An axis stays so unless the exporter finds that the module fixes it
(a weight, an assert, ``len(x)``), or that what it saw holds under a condition on it only (a branch,
a slice that is cut at the end, a view whose sizes have to divide): that axis is closed again, and
the module is read for the size it was given.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from trivium.frameworks.torch.exported import of_an_operator
from trivium.graph import UnsupportedError

Axis = tuple[int, int]
"""Which input, and which axis of it."""


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by its ordinary operators.

    Torch's fast path is one operator for a whole encoder layer, of another arithmetic, which knows
    no row without a word.
    """
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def as_it_was(module: Any) -> Iterator[None]:
    """Every submodule's mode, and the plain numbers it keeps, as they were, afterwards.

    A number that a call changes (``self.calls += 1``) is nothing that a graph could hold: that the
    model is read as it stands now is said.
    """
    before = [(m, _plain(m)) for m in module.modules()]
    try:
        yield
    finally:
        for m, kept in before:
            now = _plain(m)
            counts = [k for k, v in kept.items() if type(v) in (int, float) and now.get(k) != v]
            if counts:
                warnings.warn(
                    f"a call of {type(m).__name__} changes its {', '.join(counts)}: the model is "
                    "read as it is now, and what it read of that number stays; keep such a count "
                    "in a buffer or outside of forward()",
                    stacklevel=6,
                )
            for k, v in kept.items():
                if now.get(k) is not v:
                    vars(m)[k] = v


def _plain(module: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if type(v) in (int, float, bool, str)}


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """torch.export so that it assumes nothing about the batch and keeps the plain operators."""
    import torch
    from torch.fx.experimental import _config

    functional: Any = torch.nn.functional
    verify = functional._verify_batch_size
    names = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    loud = {log: log.level for log in map(logging.getLogger, names)}
    # It refuses to train on one row, which would make "not 1" a condition of the whole export.
    functional._verify_batch_size = lambda size: None
    try:
        # Without backed_size_oblivious the exporter takes "the batch is not 1" for granted, and a
        # model that asks (squeeze, broadcasting by hand) is silently fixed to the other answer.
        oblivious = _config.patch(backed_size_oblivious=True)
        with plain_attention(), oblivious, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for log in loud:  # an export that fails is tried again with less left open
                log.setLevel(logging.CRITICAL)
            yield
    finally:
        for log, level in loud.items():
            log.setLevel(level)
        functional._verify_batch_size = verify


def offered(tensors: Sequence[Any]) -> set[Axis]:
    """The axes to try: one element is no size of a batch's kind but a channel, or broadcasts."""
    return {(i, a) for i, t in enumerate(tensors) for a, s in enumerate(t.shape) if s > 1 or a == 0}


def export(
    module: Any, tensors: Sequence[Any], modes: Sequence[bool], opened: set[Axis]
) -> tuple[list[Any], set[Axis]]:
    """One exported program per mode, with the same axes open in each, and these axes."""
    why: dict[Axis, str] = {}
    while True:
        try:
            with _exporting():
                programs = [_export_mode(module, tensors, opened, mode, why) for mode in modes]
        except _Failed as failed:
            raise _why(module, tensors, failed.mode, failed.error) from failed.error
        found = [_closed(p, tensors, opened) for p in programs if p is not None]
        fixed = {k: reason for ints, _ in found for k, reason in ints.items()}
        conditions = {k: reason for _, asked in found for k, reason in asked.items()}
        why |= fixed | conditions
        alike = all(ints.keys() == fixed.keys() for ints, _ in found)
        if len(found) == len(programs) and alike and not conditions:
            break
        closed = fixed.keys() | conditions.keys()
        if not closed:  # an error: perhaps not with the batch alone
            closed = {k for k in opened if k[1]} or opened
        opened = opened - closed
    batch = next((t.shape[0] for t in tensors if t.ndim), None)
    for (i, axis), reason in why.items():
        if axis == 0 and tensors[i].shape[0] == batch:
            warnings.warn(
                f"{type(module).__name__} is read for inputs of exactly the size "
                f"{tuple(tensors[i].shape)} (input {i}): {reason}",
                stacklevel=4,
            )
    return programs, opened - why.keys()


def _export_mode(
    module: Any, tensors: Sequence[Any], opened: set[Axis], mode: bool, why: dict[Axis, str]
) -> Any:
    import torch

    tensors = [t.detach().clone() for t in tensors]  # the collection goes by identity
    sizes = torch.export.ShapesCollection()
    for i, t in enumerate(tensors):
        if axes := {axis: torch.export.Dim.AUTO for k, axis in opened if k == i}:
            sizes[t] = axes
    try:
        with as_it_was(module):
            if module.training != mode:  # else as it is: a child may be frozen by its own eval()
                module.train(mode)
            return torch.export.export(
                module, tuple(tensors), dynamic_shapes=sizes if opened else None, strict=False
            )
    except Exception as error:
        reason = _first_line(error)
        if opened:  # perhaps it can be exported for this size
            if not any(axis for _, axis in opened):
                why |= dict.fromkeys(opened, reason)
            return None
        raise _Failed(mode, error) from error


class _Failed(Exception):
    """An export failed, whatever was left open; said outside, where torch is as it was."""

    def __init__(self, mode: bool, error: Exception):
        super().__init__(mode, error)
        self.mode, self.error = mode, error


def _why(module: Any, tensors: Sequence[Any], mode: bool, error: Exception) -> UnsupportedError:
    """What to say of a module that cannot be exported: perhaps it cannot be called either."""
    when, name = "training" if mode else "evaluating", type(module).__name__
    if own := _own_error(module, tensors, mode):
        shapes = ", ".join(f"{str(t.dtype)[6:]}{tuple(t.shape)}" for t in tensors)
        return UnsupportedError(
            f"a call of the model itself fails while {when}, with {shapes}: {_first_line(own)}",
            name,
            "give examples that it can be called with"
            + (", or read it with training=False" if mode else ""),
        )
    reason = _first_line(error)
    if "data-dependent" in reason or "data dependent" in reason:
        remedy = (
            "no branch, loop or size of Python's may depend on what is in a tensor: use torch.where"
        )
    else:
        remedy = (
            "write that line in operations of torch on tensors; torch.export.export(model, "
            "examples, strict=False) says more"
        )
    return UnsupportedError(f"torch.export cannot follow it while {when}: {reason}", name, remedy)


def _own_error(module: Any, tensors: Sequence[Any], mode: bool) -> Exception | None:
    """What a call of the module raises; the call leaves it, and the chance, as they were."""
    import torch

    held = {n: b.clone() for n, b in module.named_buffers()}
    try:
        with as_it_was(module), torch.random.fork_rng(devices=[]), torch.no_grad():
            if module.training != mode:
                module.train(mode)
            torch.func.functional_call(module, held, tuple(t.detach().clone() for t in tensors))
    except Exception as error:
        return error
    return None


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    return line or type(error).__name__


def _closed(
    program: Any, tensors: Sequence[Any], opened: set[Axis]
) -> tuple[dict[Axis, str], dict[Axis, str]]:
    """The axes that the exporter has fixed, and those that are open under a condition only."""
    fixed: dict[Axis, str] = {}
    conditions: dict[Axis, str] = {}
    by_symbol: dict[Any, list[Axis]] = {}
    given: dict[Any, int] = {}
    environment: Any = None
    values = user_values(program)
    for i, axis in sorted(opened):
        size = values[i].shape[axis]
        if isinstance(size, int) or size.node.expr.is_Integer:
            fixed[i, axis] = f"the model fixes the size {size}"
        elif size.node.expr.is_Symbol:
            by_symbol.setdefault(size.node.expr, []).append((i, axis))
            given[size.node.expr] = tensors[i].shape[axis]
            environment = size.node.shape_env
        else:
            conditions[i, axis] = f"the model does something else unless it is {size}"
    for guard in environment.guards if environment else ():
        expression = environment.simplify(guard.expr)  # equal sizes have become one symbol
        if of_an_operator(guard, expression, given):
            continue
        asked = {k for s in expression.free_symbols for k in by_symbol.get(s, ())}
        for k in {k for k in asked if k[1]} or asked:  # a batch only where nothing else is asked of
            conditions.setdefault(k, f"the model does something else unless {expression}")
    return fixed, conditions


def user_values(program: Any) -> list[Any]:
    """The placeholders' tensors of what a call passes."""
    names = set(program.graph_signature.user_inputs)
    return [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
