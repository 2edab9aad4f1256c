"""A layer's call on symbolic tensors: what it records, and what would go wrong unseen."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trivium.graph import UnsupportedError


@contextlib.contextmanager
def nodes_kept(model: Any) -> Iterator[None]:
    """The layers of ``model`` forget afterwards the calls that were made to follow them."""
    lists = [n for la in model._flatten_layers() for n in (la._inbound_nodes, la._outbound_nodes)]
    lengths = [len(n) for n in lists]
    try:
        yield
    finally:
        for nodes, length in zip(lists, lengths, strict=True):
            del nodes[length:]


def called(
    keras: Any,
    layer: Any,
    call: Any,
    args: Any,
    kwargs: Any,
    *,
    path: str,
    training: bool,
    symbols: Sequence[tuple[Any, Any]],
) -> Any:
    """The symbolic outputs of ``call``, a part of ``layer``.

    Meanwhile the value of every variable is the symbol that goes with it: what would compute with
    its number right away, and so bake it into the Graph, fails.
    """
    with keras.StatelessScope(collect_losses=True) as scope:
        scope.state_mapping.update(before := {id(v): t for t, v in symbols})
        try:
            # What a layer's own __call__ would do: layers inside take their mode from here.
            layer._get_call_context().training = training
            outputs = call(*args, **kwargs)
        except Exception as error:
            if type(layer).__module__.startswith("keras.src."):
                raise UnsupportedError(f"the layer {type(layer).__name__}", path) from error
            line = str(error).strip().partition("\n")[0].partition(". ")[0]
            raise UnsupportedError(
                f"{type(layer).__name__} cannot be followed symbolically ({line})", path,
                "write its call with keras.ops and layers, applied to its inputs",
            ) from error  # fmt: skip
        finally:
            layer._maybe_reset_call_context()
    if scope.losses:
        raise UnsupportedError(f"{type(layer).__name__} calls add_loss", path)
    if scope.state_mapping != before:
        raise UnsupportedError(
            f"{type(layer).__name__} assigns to a variable, or draws random numbers, in its call",
            path,
        )
    return outputs


def behind(outputs: Iterable[Any], env: Mapping[int, Any], keras: Any) -> list[Any]:
    """The recorded nodes that ``outputs`` need, each after those that it reads."""
    ordered: list[Any] = []
    seen: set[int] = set()
    stack = [(t, False) for t in reversed(list(outputs))]
    while stack:
        tensor, done = stack.pop()
        if not isinstance(tensor, keras.KerasTensor) or id(tensor) in env:
            continue
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if done:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((tensor, True))
            stack += [(t, False) for t in reversed(node.input_tensors)]
    check_order(ordered)
    return ordered


def check_order(ordered: Sequence[Any]) -> None:
    """Statistics change in the order of the calls, so they have to be met in that order."""
    last: dict[int, int] = {}
    for node in ordered:
        index = node.operation._inbound_nodes.index(node)
        state = getattr(node.operation, "non_trainable_variables", ())
        if state and index < last.get(id(node.operation), index):
            raise UnsupportedError(
                "a layer with statistics called several times side by side", node.operation.name
            )
        last[id(node.operation)] = index


def objective(model: Any) -> str:
    """What of the training objective the model holds: its first regularizer or constraint."""
    for v, kind in itertools.product(model.weights, ("regularizer", "constraint")):
        if (found := getattr(v, kind, None)) is not None:
            return f"{kind} {type(found).__name__} of {v.path}"
    layers = [la for la in model._flatten_layers() if getattr(la, "activity_regularizer", None)]
    return f"activity regularizer of {layers[0].name}" if layers else ""
