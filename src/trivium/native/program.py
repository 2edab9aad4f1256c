"""Programs: compiled Graphs that run. One for each set of sizes, parameters shared by all."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.graph import OPS, Graph
from trivium.native import cache
from trivium.native.build import ALIGN, ARENA, FIRST, HELD, POOL, Array, Build, Recipe, assemble
from trivium.native.loader import Code
from trivium.native.prepare import prepared
from trivium.native.target import Target, host

_RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_word = ctypes.c_uint64.from_address
_HEADER = object.__basicsize__


def _first_word(array: Any) -> int:
    # The address of an array's data is the first field of NumPy's public PyArrayObject.
    word: int = _word(id(array) + _HEADER).value
    return word


def _asked(array: Any) -> int:
    address: int = array.ctypes.data
    return address


_probe = np.zeros(3)
# ``array.ctypes.data`` takes 1.5 microseconds, a fifth of a small model's whole step; the word
# takes a tenth of one. It is used where it is seen to be the same.
address_of = _first_word if _first_word(_probe) == _asked(_probe) else _asked


def room(size: int) -> Any:
    """Zeroed bytes that begin on a cache line."""
    raw = np.zeros(size + ALIGN, np.uint8)
    start = -address_of(raw) % ALIGN
    return raw[start : start + size]


def empty(array: Array) -> Any:
    """Room for a result, in the caller's hands from then on."""
    return np.empty(array.shape, as_dtype(array.dtype).numpy)


class View:
    """An array in a program's memory: read as a copy, written in place, however its axes lie."""

    def __init__(self, memory: Any, array: Array):
        kind = as_dtype(array.dtype).numpy
        raw = memory[array.at : array.at + array.nbytes].view(kind)
        split = raw.reshape([extent + spare for _, _, extent, spare in array.axes])
        split = split[(*(slice(extent) for _, _, extent, _ in array.axes), ...)]
        # Parts of one logical axis, outermost first, are neighbours after this transposition.
        order = sorted(range(len(array.axes)), key=lambda k: (array.axes[k][0], -array.axes[k][1]))
        self.split, self.shape = split.transpose(order), array.shape

    def read(self) -> Any:
        """A copy in the logical order."""
        return np.array(self.split, order="C").reshape(self.shape)

    def write(self, value: Any) -> None:
        """Put these numbers there."""
        self.split[...] = np.reshape(np.broadcast_to(value, self.shape), self.split.shape)


def _foreign(graph: Graph) -> bool:
    """Has it an op from outside the house, of which the name does not say what it means?"""
    inner = (a for n in graph.nodes for a in n.attrs.values() if isinstance(a, Graph))
    house = (OPS[n.op].__module__.startswith("trivium.ops.") for n in graph.nodes)
    return not all(house) or any(map(_foreign, inner))


class Program:
    """A Graph without open sizes, compiled (or found in the cache) and loaded."""

    def __init__(self, graph: Graph, held: bool, target: Target | None = None,
                 layouts: Mapping[str, Any] | None = None, keep: bool = True):  # fmt: skip
        self._target, self._graph, self._held, self._layouts = target, graph, held, layouts
        said = prepared(graph, held) if keep and _foreign(graph) else graph
        key = cache.key_of(f"{held}{layouts}{said}", target) if keep else ""
        found = cache.load(key) if keep else None
        if found is None:
            build = self._build()
            self.recipe: Recipe = build.recipe
            code = assemble(build.text(), build.target)
            if keep:
                cache.save(key, cache.packed(self.recipe, code))
        else:
            self.recipe, code = cache.unpacked(found)
            if self.recipe.kernels:
                self.recipe.nodes = prepared(graph, held).nodes
        names = [f"run_{k}" for k in range(len(self.recipe.kernels) + 1)]
        self._code = Code(code, names)
        self._runs = [_RUN(self._code.addresses[n]) for n in names]

    def _build(self) -> Build:
        return Build(self._graph, self._held, self._target or host(), self._layouts)

    @property
    def source(self) -> str:
        """The loops that were compiled, to be read."""
        return self._build().source


class Frame:
    """What one call at a time needs: a program's temporary arrays and its list of addresses."""

    def __init__(self, program: Program, held: Any):
        recipe = program.recipe
        self.program, self.recipe, self.held = program, recipe, held
        self.arena = room(max(recipe.arena, 1))
        self.args = (ctypes.c_void_p * (FIRST + recipe.slots))()
        self.args[HELD] = address_of(held) if held is not None else None
        self.args[ARENA] = address_of(self.arena)
        self.address = ctypes.addressof(self.args)
        self.slots: Sequence[Any] = ()  # the caller's arrays,
        self.own: list[Any] = []  # and those that stay the same from call to call
        for array, value in recipe.constants:
            View(self.arena, array).write(value)
        errors = recipe.errors
        self.errors = self.arena[errors.at : errors.at + errors.nbytes].view(np.int32)
        self.run = program._runs[0] if not recipe.kernels else self._segments

    def view(self, array: Array) -> View:
        """An array in this frame's memory."""
        return View(self.held if array.place == "held" else self.arena, array)

    def call(self, pool: int, slots: Sequence[Any]) -> None:
        """Everything once; ``slots`` are contiguous arrays, inputs and outputs."""
        args = self.args
        args[POOL] = pool
        for k, a in enumerate(slots, FIRST):
            args[k] = address_of(a)
        self.slots = slots
        self.run(self.address)
        if self.recipe.checks:
            self.check()

    def check(self) -> None:
        """Raise where an index was out of range."""
        if self.errors.any():
            first = int(np.flatnonzero(self.errors)[0])
            self.errors[:] = 0
            raise IndexError(self.recipe.checks[first])

    def _segments(self, address: int) -> None:
        """Native segments with NumPy kernels between them."""
        for k, run in enumerate(self.program._runs):
            run(address)
            if self.recipe.checks and self.errors.any():
                return
            if k < len(self.recipe.kernels):
                self._kernel(*self.recipe.kernels[k])

    def _kernel(self, index: int, reads: list[Array], writes: list[Array]) -> None:
        node = self.recipe.nodes[index]
        slots = [*self.slots, *self.own]
        values = iter([slots[a.at] if a.place in ("input", "output") else self.view(a).read()
                       for a in reads])  # fmt: skip
        arrays = [None if v is None else next(values) for v in node.inputs]
        with np.errstate(all="ignore"):
            results = OPS[node.op].evaluate(arrays, node.attrs)
        for a, r in zip(writes, results, strict=True):
            if a.place == "output":
                slots[a.at][...] = r
            else:
                self.view(a).write(r)


class Frames:
    """Frames of one program that no call uses now; several threads may call at once."""

    def __init__(self, program: Program):
        self.program = program
        self._free: list[Frame] = []
        self._lock = threading.Lock()

    def take(self) -> Frame:
        """A frame for one call."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return Frame(self.program, None)

    def give(self, frame: Frame) -> None:
        """It is free again."""
        with self._lock:
            if len(self._free) < 4:
                self._free.append(frame)
