"""Nested parameters and flat names: ``{"conv1": {"weight": w}}`` and ``{"conv1.weight": w}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name, in order.

    >>> flatten({"a": {"w": 1, "b": 2}, "c": 3})
    {'a.w': 1, 'a.b': 2, 'c': 3}
    """
    flat: dict[str, Any] = {}
    for key, item in tree.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= flatten(item, name + ".")
        else:
            flat[name] = item
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`.

    >>> nest({"a.w": 1, "c": 3})
    {'a': {'w': 1}, 'c': 3}
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *path, last = name.split(".")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{name!r} goes through {key!r}, which is itself a leaf")
        branch[last] = leaf
    return tree
