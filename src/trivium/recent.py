"""Recent: what was made lately, by key. The one way in which the house keeps what it can remake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """At most ``kept`` things by key; the one that was not asked for longest goes first.

    Keys are held, so an object may be one: no other can come to have its ``id`` meanwhile. Several
    threads may ask at once. A copy, deep or pickled, starts empty.

    >>> squares = Recent(2)
    >>> [squares.get(n, lambda: n * n) for n in (1, 2, 1, 3)], list(squares)
    ([1, 4, 1, 9], [1, 3])
    """

    def __init__(self, kept: int):
        self.kept = kept
        self._made: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made for ``key``, made now if it is not there."""
        with self._lock:
            if key in self._made:
                found = self._made[key] = self._made.pop(key)  # now the last to go
                return found
        made = make()  # outside the lock: it may take long, and ask here again
        with self._lock:
            made = self._made.setdefault(key, made)  # another thread may have been first
            while len(self._made) > self.kept:
                del self._made[next(iter(self._made))]
        return made

    def __iter__(self) -> Any:
        with self._lock:
            return iter(list(self._made))

    def __len__(self) -> int:
        return len(self._made)

    def last(self) -> Any:
        """What was asked for last, or None."""
        with self._lock:
            return next(reversed(self._made.values()), None)

    def __reduce__(self) -> Any:
        return Recent, (self.kept,)
