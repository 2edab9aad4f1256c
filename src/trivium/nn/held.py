"""What a module holds, and the call that is under way: whose parameters have which names there.

A module holds what its attributes are, and what is in lists, tuples and dicts there. Whatever
else a ``forward`` computes with would have no name and be lost on saving, so it is refused.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol


def held(attributes: Mapping[str, Any], kinds: Any) -> Iterator[tuple[str, Any]]:
    """What is of these ``kinds`` in attributes, lists, tuples and dicts, by path.

    >>> list(held({"a": 1, "b": [2, "x", {"c": 3}]}, int))
    [('a', 1), ('b.0', 2), ('b.2.c', 3)]
    """
    entered: set[int] = set()  # the containers that lead here: one may hold itself

    def walk(path: str, item: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(item, kinds):
            yield path, item
        elif isinstance(item, (list, tuple, dict)) and id(item) not in entered:
            entered.add(id(item))
            inside = item.items() if isinstance(item, dict) else enumerate(item)
            for key, value in inside:
                yield from walk(f"{path}.{key}", value)
            entered.discard(id(item))

    for name, value in attributes.items():
        yield from walk(name, value)


class Holder(Protocol):
    """A module, as far as a call needs it."""

    _training: bool

    def _named(self) -> dict[str, Any]:
        """Everything that it holds, by path, itself under ""."""


class Call:
    """One call of a model from outside; the calls of modules inside belong to it."""

    def __init__(self, model: Holder):
        self.model = model
        self._look()
        self._first = self._named

    def _look(self) -> None:
        self._named = self.model._named()
        self._paths = {id(item): path for path, item in reversed(self._named.items())}

    def path(self, item: Any) -> str | None:
        """Where the model holds this module or parameter, perhaps only since the call began."""
        if id(item) not in self._paths:
            self._look()
        return self._paths.get(id(item))

    def need(self, item: Any, what: str) -> str:
        """Where the model holds this; an error unless it does. ``what`` it is, in words."""
        path = self.path(item)
        if path is None:
            raise ValueError(
                f"{what} is used in {self.model!r}, which does not hold it, so it would not be "
                f"trained or saved with it; make it an attribute in __init__ (a list, tuple or "
                f"dict of them will do)"
            )
        if self._first.get(path, item) is not item:
            raise ValueError(
                f"{path!r} is made anew in every call of {self.model!r}, so nothing that it "
                f"learns would stay; make it in __init__"
            )
        return path


_call: contextvars.ContextVar[Call | None] = contextvars.ContextVar("call", default=None)
_mode: contextvars.ContextVar[bool | None] = contextvars.ContextVar("mode", default=None)


def calling() -> Call | None:
    """The call that is under way in this thread, if there is one."""
    return _call.get()


@contextlib.contextmanager
def called(model: Holder) -> Iterator[None]:
    """Modules called in this context are parts of ``model``."""
    token = _call.set(Call(model))
    try:
        yield
    finally:
        _call.reset(token)


_count = itertools.count(1)
_changes = 0


def changed() -> None:
    """An attribute of some module was set, from which its forward may compute something else."""
    global _changes
    _changes = next(_count)  # each change a number of its own, whatever other threads change


def changes() -> int:
    """Another number after every change: what was compiled before it has to be looked at again."""
    return _changes


def mode() -> bool | None:
    """The mode that this thread is in, whatever modules are set to; None: as they are set."""
    return _mode.get()


@contextlib.contextmanager
def in_mode(training: bool) -> Iterator[None]:
    """Models called in this context, in this thread, train or do not; they stay as they are set."""
    token = _mode.set(training)
    try:
        yield
    finally:
        _mode.reset(token)
