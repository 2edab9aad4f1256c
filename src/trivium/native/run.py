"""The native engine as the rest of the house sees it: a trainer, and a function."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.graph import Graph
from trivium.interpret import bound_dims
from trivium.native.build import FIRST, POOL, axes_of
from trivium.native.program import Frame, Frames, Program, address_of, empty, room
from trivium.native.threads import pool
from trivium.recent import Recent
from trivium.transforms.replay import specialize
from trivium.transforms.step import COUNT, Update, count_name, initial_slots, training_step

KEPT = 16  # specialisations of a Graph by the sizes of its inputs


def _address(pool_threads: int | None, program: Program) -> int:
    return pool(pool_threads).address if program.recipe.parallel else 0


def _fitting(array: Any, value: Any, dtype: np.dtype[Any]) -> Any:
    """The array, contiguous, aligned and of the dtype that the Graph wants."""
    if type(array) is np.ndarray and array.dtype is dtype and array.flags.carray:
        return array
    array = np.asarray(array)
    if array.dtype != dtype:
        if not (as_dtype(array.dtype).is_floating and value.dtype.is_floating):
            raise TypeError(f"input {value.name!r} wants {value.dtype}, got {array.dtype}")
        array = array.astype(dtype)
    return array if array.flags.carray else np.require(array, dtype, ("C", "A", "W"))


class _Fixed:
    """A trainer's program for one set of input sizes, ready to be called again and again."""

    def __init__(self, frame: Frame, arrays: Sequence[Any]):
        self.frame, self.run, self.args = frame, frame.run, frame.args
        self.address, self.checks = frame.address, bool(frame.recipe.checks)
        self.parallel = frame.recipe.parallel
        loss = frame.recipe.outputs[0]
        memory = frame.held if loss.place == "held" else frame.arena
        kind = ctypes.c_double if loss.dtype == "float64" else ctypes.c_float
        self.loss = kind.from_address(address_of(memory) + loss.at)
        self.expected = [(k, a.dtype, a.shape) for k, a in enumerate(arrays, FIRST)]

    def takes(self, arrays: Sequence[Any]) -> bool:
        """Pass these arrays to the next run, if they are just as it wants them."""
        args = self.args
        for a, (k, dtype, shape) in zip(arrays, self.expected, strict=True):
            if (
                type(a) is not np.ndarray
                or a.dtype is not dtype
                or a.shape != shape
                or not a.flags.carray
            ):
                return False
            args[k] = address_of(a)
        self.frame.slots = arrays
        return True


class NativeTrainer:
    """The whole training step, forward, backward and update, as one call of machine code."""

    def __init__(self, graph: Graph, values: Mapping[str, Any], update: Update,
                 threads: int | None = None):  # fmt: skip
        self._graph = training_step(graph, update)
        self._params = [v.name for v in graph.of_kind("param", "state")]
        self._start: dict[str, Any] | None = dict(values) | initial_slots(self._graph, graph)
        self._threads = threads
        self._data = self._graph.of_kind("data")
        self._dtypes = [v.dtype.numpy for v in self._data]
        self._lr, self._key = np.zeros((), np.float32), np.zeros(2, np.uint64)
        own = {"rng": self._key, "hyper": self._lr}
        self._own = {v.name: own[v.kind] for v in self._graph.inputs if v.kind in own}
        self._held: Any = None
        self._layouts: dict[str, Any] = {}
        self._fixed = Recent(KEPT)
        self._last: _Fixed | None = None
        self._random = bool(self._graph.of_kind("rng"))
        self._lock = threading.Lock()
        self._rate = 0.0

    def step(self, inputs: Sequence[Any], lr: float) -> float:
        """One step on a batch; the loss before it."""
        with self._lock:
            if lr != self._rate:
                self._rate = self._lr[...] = lr
            fixed = self._last
            if fixed is None or not fixed.takes(inputs):
                inputs = [
                    _fitting(a, v, d)
                    for a, v, d in zip(inputs, self._data, self._dtypes, strict=True)
                ]
                fixed = self._last = self._for_sizes(inputs)
                fixed.takes(inputs)
            if fixed.parallel:
                fixed.args[POOL] = pool(self._threads).address  # another one after a fork
            fixed.run(fixed.address)
            if fixed.checks:
                fixed.frame.check()
            if self._random:
                self._key[1] += 1
            return fixed.loss.value

    def _for_sizes(self, arrays: Sequence[Any]) -> _Fixed:
        sizes = tuple([a.shape for a in arrays])
        fixed: _Fixed = self._fixed.get(sizes, lambda: self._specialised(arrays))
        return fixed

    def _specialised(self, arrays: Sequence[Any]) -> _Fixed:
        given = dict(zip((v.name for v in self._data), arrays, strict=True)) | self._own
        shaped = [given.get(v.name, _Shaped(v.shape)) for v in self._graph.inputs]
        special = specialize(self._graph, bound_dims(self._graph, shaped), True)
        program = Program(special, True, layouts=dict(self._layouts))
        recipe = program.recipe
        if self._held is None:
            self._held = room(max(recipe.held, 1))
            for v, a in zip(self._graph.inputs, recipe.inputs, strict=True):
                if a.place == "held":
                    self._layouts[v.name] = axes_of(a)
        frame = Frame(program, self._held)
        self._views = {
            v.name: frame.view(a)
            for v, a in zip(self._graph.inputs, recipe.inputs, strict=True)
            if a.place == "held"
        }
        if self._start is not None:
            for name, value in self._start.items():
                self._views[name].write(value)
            self._start = None
        slot = FIRST + len(self._data)
        for v in self._graph.inputs:  # the trainer's own inputs follow the caller's, and stay
            if v.name in self._own:
                frame.args[slot] = address_of(self._own[v.name])
                frame.own.append(self._own[v.name])
                slot += 1
        return _Fixed(frame, arrays)

    @property
    def source(self) -> str:
        """The loops of the step as it was last compiled, to be read."""
        if self._last is None:
            raise ValueError("nothing is compiled yet: the first step decides the sizes")
        return self._last.frame.program.source

    def values(self) -> dict[str, Any]:
        """Every parameter and state, by name."""
        with self._lock:
            if self._start is not None:
                return {n: self._start[n] for n in self._params}
            return {n: self._views[n].read() for n in self._params}

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from these parameters and states; the optimizer's slots stay."""
        with self._lock:
            if self._start is not None:
                self._start |= {n: values[n] for n in self._params}
                return
            for n in self._params:
                self._views[n].write(values[n])

    def memory(self) -> dict[str, Any]:
        """What the optimizer keeps, its count of steps too."""
        with self._lock:
            start = self._start
            held = self._views if start is None else start
            own = [n for n in held if n not in self._params]
            kept = {n: self._views[n].read() if start is None else start[n] for n in own}
            return kept | {COUNT: kept[count_name(kept)]}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Begin with what another trainer kept; what it did not starts anew."""
        with self._lock:
            assert self._start is not None, "before the first step"
            own = self._start.keys() - set(self._params)
            self._start |= {n: a for n, a in memory.items() if n in own}
            self._key[1] = int(memory[COUNT])


class _Shaped:
    """Stands for an array of which only the shape is asked."""

    def __init__(self, shape: Any):
        self.shape = shape


class NativeFunction:
    """A Graph in inference: ``f(values, inputs) -> outputs``, NumPy in and out."""

    def __init__(self, graph: Graph, threads: int | None = None):
        self._graph, self._threads = graph, threads
        self._frames = Recent(KEPT)

    def __call__(self, values: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
        given = iter(inputs)
        arrays = []
        for v in self._graph.inputs:
            held = np.zeros(2, np.uint64) if v.kind == "rng" else None
            item = next(given) if v.kind == "data" else held if held is not None else values[v.name]
            arrays.append(_fitting(item, v, v.dtype.numpy))
        sizes = tuple([a.shape for a in arrays])
        frames: Frames = self._frames.get(sizes, lambda: self._specialised(arrays))
        program = frames.program
        outputs = [empty(a) for a in program.recipe.outputs]
        slots: list[Any] = [None] * program.recipe.slots
        places = (*program.recipe.inputs, *program.recipe.outputs)
        for a, array in zip(places, (*arrays, *outputs), strict=True):
            slots[a.at] = array
        frame = frames.take()
        try:
            frame.call(_address(self._threads, program), slots)
        finally:
            frames.give(frame)
        return outputs

    def _specialised(self, arrays: Sequence[Any]) -> Frames:
        special = specialize(self._graph, bound_dims(self._graph, arrays), False)
        special.updates = {}
        return Frames(Program(special, False))

    @property
    def source(self) -> str:
        """The loops that were last run, to be read."""
        frames: Frames | None = self._frames.last()
        if frames is None:
            raise ValueError("nothing is compiled yet: the first call decides the sizes")
        return frames.program.source


Function = Callable[[Mapping[str, Any], Sequence[Any]], list[Any]]
