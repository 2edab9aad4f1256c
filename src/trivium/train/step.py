"""One training step (forward, gradients, update) as one call on any engine."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from trivium import optim
from trivium.data import row_count
from trivium.demands import Demands
from trivium.engines import get as engine_named
from trivium.engines.compiled import source_of
from trivium.nn.held import changes
from trivium.nn.losses import loss_function
from trivium.nn.module import GraphModule, Module, trace
from trivium.nn.parameter import captured
from trivium.shape import ShapeError
from trivium.tensor import asarray, spec_of
from trivium.train.owner import EngineOwner

_DOUBLE = np.dtype(np.float64)


def numbers(x: Any, double: bool = False) -> Any:
    """Any array as NumPy's, in its dtype; but NumPy's own float64 only where the model has it."""
    if type(x) is not np.ndarray:
        x = asarray(x).numpy()
    return x.astype(np.float32) if x.dtype is _DOUBLE and not double else x


def is_wide(model: Module) -> bool:
    """Does the model compute in float64 somewhere?"""
    held = model.named_parameters("param", "state")
    given = model.graph.of_kind("data") if isinstance(model, GraphModule) else []
    return any(v.dtype == "float64" for v in (*(p for _, p in held), *given))


class TrainStep(EngineOwner):
    """One training step (forward, gradients, update) as one call on any engine.

    ``step(x, y) -> loss``, the loss before the step; ``x`` is a tuple where the model has several
    inputs. ``model.state_dict()`` sees every update. A batch that does not fit the model or the
    loss is refused before the engine has it, in the same words on all of them. A loss that is not
    finite is a warning, once.

    >>> import trivium as tv
    >>> model = tv.nn.Linear(1)
    >>> step = TrainStep(model, "mse", tv.optim.SGD(0.5))
    >>> x = np.float32([[0.0], [1.0]])
    >>> losses = [step(x, 3 * x + 2) for _ in range(30)]
    >>> losses[-1] < 1e-2 * losses[0]
    True
    """

    def __init__(
        self,
        model: Module,
        loss: str | Callable[..., Any],
        optimizer: str | optim.Optimizer,
        engine: str | None = None,
        threads: int | None = None,
        device: Any = None,
    ):
        super().__init__(engine_named(engine), threads)
        self.model, self.loss = model, loss_function(loss)
        self.optimizer = optim.get(optimizer)
        if device not in (None, "cpu"):
            raise ValueError(f"device {device!r}: the training engines run on the CPU today")
        self._warned = False
        self._like: list[tuple[Any, Any]] = []  # shape and dtype of the arrays of the last step
        self._steps = 0
        self._wide = False  # does the model compute in float64 somewhere?
        self._changes = changes()  # of modules' attributes, when the step was traced

    def __call__(self, x: Any, y: Any) -> float:
        arrays: Sequence[Any] = (*x, y) if isinstance(x, tuple) else (x, y)
        if self._changes != changes():
            self._look_again()
        if not self._as_before(arrays):
            arrays = self._admitted(arrays)
        if self._outdated:
            self._load()
        if self._demands.of_numbers:
            self._demands.numbers(arrays)
        loss: float = self._trainer.step(arrays, self.optimizer.lr)
        self._behind = True
        self._steps += 1
        if not -math.inf < loss < math.inf and not self._warned:
            self._warn(loss, arrays)
        return loss

    def _as_before(self, arrays: Sequence[Any]) -> bool:
        """Are these arrays as those of the last step, which were as they should be?"""
        if len(arrays) != len(self._like):
            return False
        for a, (shape, dtype) in zip(arrays, self._like, strict=True):
            if type(a) is not np.ndarray or a.dtype is not dtype or a.shape != shape:
                return False
        return True

    def _admitted(self, given: Sequence[Any]) -> list[Any]:
        """The arrays as the engine takes them, once they are seen to fit; makes it the first time.

        What is wrong with them is said here, before any engine has them.
        """
        if self._trainer is None:
            self._wide = is_wide(self.model)
        arrays = [numbers(a, self._wide) for a in given]
        row_count(dict(zip(batch_names(len(arrays)), arrays, strict=True)), 1)
        if self._trainer is None:
            self._start(arrays)
        self._demands.sizes(arrays)
        self._like = [(a.shape, a.dtype) for a in arrays]
        return arrays

    def check(self, x: Any, y: Any) -> None:
        """Raise where numbers in ``x`` or ``y`` are nothing that the model or the loss can take."""
        self._wide = self._wide or is_wide(self.model)
        if self._changes != changes():
            self._look_again()
        arrays = [numbers(a, self._wide) for a in ((*x, y) if isinstance(x, tuple) else (x, y))]
        if self._trainer is None:
            self._admitted([a[:1] for a in arrays])
        self._demands.sizes(arrays)
        self._demands.numbers(arrays)

    def _warn(self, loss: float, arrays: Sequence[Any]) -> None:
        self._warned = True
        bad = [name for name, p in self._params.items() if not _finite(p.data)]
        wrong = [n for n, a in zip(batch_names(len(arrays)), arrays, strict=True) if not _finite(a)]
        parameter = f"the first parameter that is not finite is {bad[0]!r}" if bad else (
            "all parameters are finite")  # fmt: skip
        batch = f"; neither is {wrong[0]}, the batch itself" if wrong else ""
        warnings.warn(
            f"the loss of step {self._steps} is {loss}; {parameter}{batch}", RuntimeWarning, 3
        )

    def _start(self, arrays: list[Any]) -> None:
        model, loss = self.model, self.loss

        def compute(*args: Any) -> Any:
            *inputs, target = args
            return loss(model(*inputs), target)

        takes(self.model, len(arrays) - 1)
        specs = [spec_of(a, batch=True) for a in arrays]
        self._changes = changes()
        name = type(model).__name__
        self._trace = partial(trace, compute, *specs, training=True, name=name)
        graph = self._graph = self._trace()
        self._demands = Demands(graph, batch_names(len(arrays)))
        before, self._params = self._params, captured(graph)
        gone = {n for n, p in before.items() if self._params.get(n) is not p}
        self._memory = {k: a for k, a in self._memory.items() if k.rpartition("/")[0] not in gone}
        self._hand_over(graph, self.optimizer.update())

    def _look_again(self) -> None:
        """An attribute of some module was set: unless the step is still the same, make another.

        What the optimizer keeps of the parameters that stay stays.
        """
        now = changes()
        if self._trainer is not None:
            try:
                graph = self._trace()
                found = captured(graph).items()
                same = graph.same_as(self._graph) and all(self._params[n] is p for n, p in found)
            except (ShapeError, TypeError, ValueError):
                same = False  # the next batch may fit it; if not, that is said then
            if not same:
                self.refrozen()
        self._changes = now

    def __getstate__(self) -> dict[str, Any]:
        """What a copy starts from: the model as it is, and what the optimizer has gathered."""
        kept = ("model", "loss", "optimizer", "engine", "threads", "_steps", "_warned")
        memory = self._memory | ({} if self._trainer is None else self._trainer.memory())
        return {k: vars(self)[k] for k in kept} | {"_memory": memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._trainer, self._params, self._like = None, {}, []
        self._behind = self._outdated = self._wide = False
        self._changes = changes()

    @property
    def source(self) -> str:
        """What the native engine runs, as loops that can be read (after the first step)."""
        return source_of(self.engine.name, self._trainer)

    def refrozen(self) -> None:
        """A parameter was frozen or is trained again: the next step is made for that."""
        super().refrozen()
        self._like = []


def batch_names(count: int) -> list[str]:
    """What the arrays of a batch are called: x and y, or x0, x1, y."""
    return ["x", "y"] if count == 2 else [*(f"x{i}" for i in range(count - 1)), "y"]


def _finite(array: Any) -> bool:
    return array.dtype.kind in "biu" or bool(np.isfinite(array.astype(np.float64)).all())


def takes(model: Module, count: int) -> None:
    """Raise unless ``model.forward`` takes so many inputs."""
    try:
        inspect.signature(model.forward).bind(*range(count))
    except TypeError as error:
        raise TypeError(f"{model!r} got {count} inputs: {error}") from None
