"""Parameter: a named tensor of a module, which may be trained elsewhere, or frozen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from trivium.dtype import as_dtype
from trivium.graph import Graph, Value, current
from trivium.nn.held import calling
from trivium.op import lift
from trivium.shape import ShapeError
from trivium.tensor import Tensor, asarray


def narrowed(data: Any) -> np.ndarray[Any, Any]:
    """Numbers as an array: NumPy's own float64 as float32, every other dtype as it is."""
    array = np.asarray(data)
    return array.astype(np.float32) if array.dtype == np.float64 else array


class Owner(Protocol):
    """Who trains a parameter elsewhere."""

    def fetch(self) -> None:
        """Bring the parameters up to date."""

    def changed(self) -> None:
        """A parameter was given other numbers from outside."""

    def refrozen(self) -> None:
        """A parameter was frozen, or is trained again."""


def take_over(parameters: Iterable[Parameter], owner: Owner) -> None:
    """From now on ``owner`` trains these; whoever did before starts from its numbers again."""
    parameters = list(parameters)
    before = {id(p.owner): p.owner for p in parameters if p.owner not in (None, owner)}
    for other in before.values():
        if other is not None:
            other.changed()
    for p in parameters:
        p.owner = owner


class Parameter(Tensor):
    """A named tensor of a module: ``kind`` "param" is trained by gradient, "state" is not.

    A param with ``requires_grad=False`` is frozen: it stays as it is, on every engine. One that is
    a module's attribute is called as that.
    """

    __slots__ = ("_array", "_trainable", "kind", "name", "owner")

    def __init__(self, data: Any, name: str = "", kind: str = "param", requires_grad: bool = True):
        if isinstance(data, str):
            raise TypeError(
                f"the numbers come first: Parameter(array), or Parameter(array, {data!r})"
            )
        self.owner: Owner | None = None
        self.name, self.kind, self._trainable = name, kind, False
        if isinstance(data, (bool, int, float, list, tuple)):
            data = asarray(data).data  # Python's floats are float32, as everywhere
        super().__init__(data, requires_grad=kind == "param" and requires_grad)

    @property
    def requires_grad(self) -> bool:
        """Is it trained? Setting it freezes the parameter, or has it trained again."""
        return self._trainable

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        if flag and self.kind != "param":
            raise ValueError(f"{self.name} is a {self.kind}: no gradient changes it")
        dtype = as_dtype(self._array.dtype)
        if flag and not dtype.is_floating:
            raise TypeError(f"{self.name} is {dtype}: gradients are of floating arrays")
        changes, self._trainable = flag != self._trainable, bool(flag)
        if changes and self.owner is not None:
            self.owner.refrozen()

    def requires_grad_(self, flag: bool = True) -> Parameter:
        """Freeze it (False) or have it trained (True); the parameter itself."""
        self.requires_grad = flag
        return self

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """Its numbers, fetched from the engine that trains it if they are newer there."""
        if self.owner is not None:
            self.owner.fetch()
        self._path()
        return self._array

    @data.setter
    def data(self, new: np.ndarray[Any, Any]) -> None:
        old = getattr(self, "_array", None)
        if old is not None:  # other numbers, but the same parameter: NumPy's float64 is narrowed
            if np.shape(new) != old.shape:
                raise ShapeError(f"{self.name} has shape {old.shape}, got {np.shape(new)}")
            new = np.asarray(new, old.dtype)
        self._array = new
        if self.owner is not None:
            self.owner.changed()

    def fetched(self, array: Any) -> None:
        """Take what its owner has. Written into, it would be lost: ``p.data = array`` is seen."""
        self._array = np.asarray(array, self._array.dtype).view()  # JAX has 32 bits: as it was
        self._array.flags.writeable = False

    def capture(self, graph: Graph) -> Value:
        """An input of the Graph, under its name; an argument that is called so gives way."""
        frozen = self.kind == "param" and not self.requires_grad
        array, path = self._array, self._path()
        if not path:
            raise ValueError(
                "a parameter that no module holds wants a name in a Graph: Parameter(array, 'w'); "
                "one that is a module's attribute is called as that"
            )
        for v in graph.inputs:
            if v.name == path and v.kind not in ("param", "state"):
                graph.rename(v, graph.unused(v.name))  # what is passed goes by its place
        return graph.input(self.kind, array.dtype, array.shape, path, trainable=not frozen)

    def __reduce__(self) -> Any:
        # Not its owner: who trains this one does not train a copy of it.
        return _copied, (self.data, self.name, self.kind, self.requires_grad, self._grad)

    def _path(self) -> str:
        """Its name in the model that is being called, which has to hold it; else its own."""
        call = calling()
        return self.name if call is None else call.need(self, f"the parameter {self.name!r}")

    def assign(self, new: Any) -> None:
        """Take new numbers, or, inside a Graph that is being built, say what the state becomes."""
        if new.shape != self.shape or new.dtype != self.dtype:
            raise ShapeError(f"{self.name} is {self.dtype}{self.shape}, got {new.dtype}{new.shape}")
        graph = current()
        if graph is None:
            self.data = np.asarray(new.data if isinstance(new, Tensor) else new)
        else:
            lift(graph, self, None)
            _, value = graph.captured[id(self)]
            graph.updates[value] = lift(graph, new, None)


def captured(graph: Graph) -> dict[str, Parameter]:
    """The parameters that a traced Graph met, by name."""
    return {v.name: p for p, v in graph.captured.values() if isinstance(p, Parameter)}


def _copied(data: Any, name: str, kind: str, wanted: bool, grad: Tensor | None) -> Parameter:
    parameter = Parameter(data, name, kind, wanted)
    parameter._grad = grad
    return parameter
