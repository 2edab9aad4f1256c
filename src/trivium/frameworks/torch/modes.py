"""What a module does while training beside what it does in evaluation.

Both are exported, and laid side by side. What may differ is the flag of a batch norm, a dropout
that is not there in evaluation, a whole branch that is dropped by chance (DropPath), and operators
that change no number. The differences are left open (``MODE``); any other is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from trivium.frameworks.torch.aten import HIDDEN, DropPath, changes_nothing
from trivium.frameworks.torch.exported import (
    counts_only,
    is_count,
    is_size,
    name_of,
    scope_of,
    without_counts,
)
from trivium.graph import MODE, UnsupportedError

_FLAG = {
    "batch_norm": 5, "instance_norm": 5, "rnn_tanh": 6, "rnn_relu": 6, "rrelu": 3,
    "lstm": 6, "gru": 6,
    "alpha_dropout": 2, "feature_dropout": 2, "feature_alpha_dropout": 2,
    "scaled_dot_product_attention": 4,
}  # fmt: skip
"""Where an operator says whether it is training (or, attention, at what rate it drops)."""


def compared(model: str, train: Any, evaluation: Any) -> dict[Any, Any]:
    """The nodes of the training graph that mean something else in evaluation, and what."""
    flags = {} if drop_paths(evaluation, MODE) else drop_paths(train, MODE)
    _align(train.graph_module, evaluation.graph_module, {}, flags, model)
    return flags


# -- branches dropped by chance --------------------------------------------------------------------
def drop_paths(program: Any, training: Any) -> dict[Any, Any]:
    """Multiplications with a mask of chance, and the nodes that make the mask.

    timm and torchvision write ``x * x.new_empty(sizes).bernoulli_(keep).div_(keep)``, transformers
    and older models ``x.div(keep) * (keep + torch.rand(sizes)).floor_()``.
    """
    found: dict[Any, Any] = {}
    for node in program.graph.nodes:
        if name_of(node) in ("mul", "mul_") and len(node.all_input_nodes) == 2:
            for x, mask in (node.args, node.args[::-1]):
                made = _mask(mask)
                if made is None:
                    continue
                like, keep, scaled, inside = made
                if not scaled:
                    if name_of(x) not in ("div", "div_") or x.args[1] != keep:
                        continue
                    x, inside = x.args[0], [*inside, x]
                readers = {u for n in inside for u in n.users if not is_size(u)}
                if 0 < keep <= 1 and readers <= {*inside, node}:
                    # 1 - keep has the noise of the subtraction that made keep of the rate
                    found[node] = DropPath(x, like, round(1 - keep, 12), training)
                    found |= dict.fromkeys(inside, HIDDEN)
                    break
    return found


def _mask(node: Any) -> tuple[Any, float, bool, list[Any]] | None:
    """What gives a mask's sizes, the chance to keep, is it scaled by it, and the nodes; or None."""
    name, inside = name_of(node), [node]
    scaled = name in ("div", "div_") and isinstance(node.args[1], float)
    if scaled:
        keep = node.args[1]
        node = node.args[0]
        inside.append(node)
        name = name_of(node)
    if name in ("bernoulli", "bernoulli_") and len(node.args) > 1:
        if not scaled or node.args[1] != keep:
            return None  # the mean would not be 1: no dropout
        start = node.args[0]
        return start, keep, True, [*inside, start]
    if name in ("floor", "floor_") and not scaled:
        added = node.args[0]
        parts = added.args if name_of(added) in ("add", "add_") else ()
        drawn = next((p for p in parts if name_of(p) in ("rand", "rand_like")), None)
        keep = next((p for p in parts if isinstance(p, float)), None)
        if drawn is not None and keep is not None:
            return drawn, keep, False, [*inside, added, drawn]
    return None


# -- side by side ----------------------------------------------------------------------------------
def _told(graph: Any, flags: Mapping[Any, Any]) -> Iterator[Any]:
    """The nodes that have to have a partner."""
    for node in graph.nodes:
        if not (
            is_count(node)
            or is_size(node)
            or changes_nothing(node)
            or counts_only(node)
            or flags.get(node) is HIDDEN
        ):
            yield node


def _align(left: Any, right: Any, pairs: dict[Any, Any], flags: dict[Any, Any], model: str) -> None:
    """Pair the nodes of two exported graphs in their order; refuse them at the first difference."""
    ahead = deque(_told(right.graph, {}))
    for a in _told(left.graph, flags):
        if isinstance(flags.get(a), DropPath):
            pairs[a] = pairs[_behind(flags[a].x)]
            continue
        if name_of(a) in ("dropout", "dropout_") and not (ahead and _agree(a, ahead[0], pairs, {})):
            flags[a] = MODE
            pairs[a] = pairs[_behind(a.args[0])]
            continue
        b = ahead.popleft() if ahead else None
        if b is None or not _agree(a, b, pairs, flags):
            raise _differ(a, b, model)
        if a.op == "get_attr" and hasattr(body := getattr(left, a.target), "graph"):
            _align(body, getattr(right, b.target), pairs, flags, model)
        pairs[a] = b
    if ahead:
        raise _differ(None, ahead[0], model)


def _behind(node: Any) -> Any:
    """The node whose numbers these are."""
    while changes_nothing(node):
        node = node.args[0]
    return node


def _agree(a: Any, b: Any, pairs: dict[Any, Any], flags: dict[Any, Any]) -> bool:
    """Do two nodes do the same with the same, but perhaps for a flag that is on while training?"""
    if a.op != b.op or (a.op == "call_function" and str(a.target) != str(b.target)):
        return False
    mine, theirs = (without_counts(n) for n in (a, b))
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
            return hasattr(y, "all_input_nodes") and pairs.get(_behind(x)) is _behind(y)
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
