"""An MXNet Symbol as data: its JSON, checked before anything is made of it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.graph import UnsupportedError


@dataclass(frozen=True)
class SymbolNode:
    """One entry of a Symbol: an operator applied, or a variable (``op`` is "null")."""

    index: int
    op: str
    name: str
    attrs: Mapping[str, str]
    inputs: Sequence[tuple[int, int]]  # (node, which of its outputs)
    states: frozenset[int]  # positions of inputs that the operator changes: auxiliary states

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"


@dataclass(frozen=True)
class Symbol:
    """Nodes in an order in which each reads only earlier ones, and the outputs."""

    nodes: Sequence[SymbolNode]
    heads: Sequence[tuple[int, int]]


def plain(text: str) -> Any:
    """What an attribute's text says: a number, a tuple; ValueError where it is but a word.

    >>> plain("(3L, 3L)"), plain("-inf")
    ((3, 3), -inf)
    """
    if re.fullmatch(r"[+-]?(inf|nan)", text):
        return float(text)
    if len(text) > 4096:
        raise ValueError(text[:80])
    try:
        found = ast.literal_eval(re.sub(r"(?<=\d)L\b", "", text))  # Python 2 wrote (3L, 3L)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(text[:80]) from error
    return tuple(found) if isinstance(found, list) else found


def parse_symbol(text: str, where: str) -> Symbol:
    """The Symbol in ``text``, what ``Symbol.tojson()`` or a ``-symbol.json`` file holds."""

    def wrong(what: str, place: str = where) -> UnsupportedError:
        return UnsupportedError(f"this is no MXNet symbol: {what}", place, "export it again")

    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(f"not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        raise wrong("it has no list of nodes")
    nodes: list[SymbolNode] = []
    for index, item in enumerate(data["nodes"]):
        try:
            nodes.append(_node(index, item))
        except (KeyError, TypeError, ValueError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise wrong(what, f"{where}, node {index}") from None
    try:
        heads = [_entry(item, len(nodes))[:2] for item in data.get("heads") or ()]
    except (TypeError, ValueError) as error:
        raise wrong(str(error), f"{where}, heads") from None
    if not heads:
        raise wrong("it has no outputs", f"{where}, heads")
    return Symbol(nodes, heads)


def _node(index: int, item: Any) -> SymbolNode:
    if not isinstance(item, dict):
        raise TypeError(f"it is {type(item).__name__}, not an object")
    # "attrs" since MXNet 1.0, before that "attr" and, first of all, "param".
    attrs: dict[str, str] = {}
    for key in ("param", "attr", "attrs"):
        attrs |= item.get(key) or {}
    texts = [item["op"], item["name"], *attrs, *attrs.values()]
    if not all(isinstance(t, str) for t in texts):
        raise TypeError("op, name and attributes are strings")
    entries = [_entry(entry, index) for entry in item["inputs"]]
    if item["op"] == "null" and entries:
        raise ValueError("a variable has inputs")
    states = frozenset(i for i, (_, _, version) in enumerate(entries) if version)
    return SymbolNode(index, item["op"], item["name"], attrs, [e[:2] for e in entries], states)


def _entry(item: Any, limit: int) -> tuple[int, int, int]:
    if not isinstance(item, list) or len(item) not in (2, 3):
        raise TypeError(f"{item!r} does not name an output of a node")
    numbers = [*item, 0][:3]
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise TypeError(f"{item!r} does not name an output of a node")
    if numbers[0] >= limit:
        raise ValueError(f"it reads node {numbers[0]}, which does not come before it")
    return numbers[0], numbers[1], numbers[2]
