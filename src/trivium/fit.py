"""Training: one step as one call, and Keras's compile, fit, evaluate, predict on every Module."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from trivium import optim
from trivium.data import batches, row_count, whole
from trivium.demands import Demands
from trivium.engines import get as engine_named
from trivium.graph import Graph
from trivium.metrics import metric_function
from trivium.nn.held import changes, in_mode
from trivium.nn.losses import loss_function
from trivium.nn.module import GraphModule, Module, Parameter, restructure, trace
from trivium.nn.parameter import captured, take_over
from trivium.recent import Recent
from trivium.shape import ShapeError
from trivium.tensor import Tensor, asarray, spec_of

_DOUBLE = np.dtype(np.float64)


def _array(x: Any, double: bool = False) -> Any:
    """Any array as NumPy's, in its dtype; but NumPy's own float64 only where the model has it."""
    if type(x) is not np.ndarray:
        x = asarray(x).numpy()
    return x.astype(np.float32) if x.dtype is _DOUBLE and not double else x


def _double(model: Module) -> bool:
    """Does the model compute in float64 somewhere?"""
    held = model.named_parameters("param", "state")
    given = model.graph.of_kind("data") if isinstance(model, GraphModule) else []
    return any(v.dtype == "float64" for v in (*(p for _, p in held), *given))


class TrainStep:
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
        self.model, self.loss = model, loss_function(loss)
        self.optimizer, self.engine = optim.get(optimizer), engine_named(engine)
        if device not in (None, "cpu"):
            raise ValueError(f"device {device!r}: the training engines run on the CPU today")
        self.threads = threads
        self._trainer: Any = None
        self._params: dict[str, Parameter] = {}
        self._behind = self._outdated = self._warned = False
        self._like: list[tuple[Any, Any]] = []  # shape and dtype of the arrays of the last step
        self._steps = 0
        self._memory: dict[str, Any] = {}  # the optimizer's, of trainers before this one
        self._wide = False  # does the model compute in float64 somewhere?
        self._changes = changes()  # of modules' attributes, when the step was traced

    def __call__(self, x: Any, y: Any) -> float:
        arrays: Sequence[Any] = (*x, y) if isinstance(x, tuple) else (x, y)
        if self._changes != changes():
            self._look_again()
        if not self._as_before(arrays):
            arrays = self._admitted(arrays)
        if self._outdated:
            self._trainer.load({name: p.data for name, p in self._params.items()})
            take_over(self._params.values(), self)
            self._outdated = False
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
            self._wide = _double(self.model)
        arrays = [_array(a, self._wide) for a in given]
        row_count(dict(zip(_names(len(arrays)), arrays, strict=True)), 1)
        if self._trainer is None:
            self._start(arrays)
        self._demands.sizes(arrays)
        self._like = [(a.shape, a.dtype) for a in arrays]
        return arrays

    def check(self, x: Any, y: Any) -> None:
        """Raise where numbers in ``x`` or ``y`` are nothing that the model or the loss can take."""
        self._wide = self._wide or _double(self.model)
        if self._changes != changes():
            self._look_again()
        arrays = [_array(a, self._wide) for a in ((*x, y) if isinstance(x, tuple) else (x, y))]
        if self._trainer is None:
            self._admitted([a[:1] for a in arrays])
        self._demands.sizes(arrays)
        self._demands.numbers(arrays)

    def _warn(self, loss: float, arrays: Sequence[Any]) -> None:
        self._warned = True
        bad = [name for name, p in self._params.items() if not _finite(p.data)]
        wrong = [n for n, a in zip(_names(len(arrays)), arrays, strict=True) if not _finite(a)]
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

        _takes(self.model, len(arrays) - 1)
        specs = [spec_of(a, batch=True) for a in arrays]
        self._changes = changes()
        name = type(model).__name__
        self._trace = partial(trace, compute, *specs, training=True, name=name)
        graph = self._graph = self._trace()
        self._demands = Demands(graph, _names(len(arrays)))
        before, self._params = self._params, captured(graph)
        gone = {n for n, p in before.items() if self._params.get(n) is not p}
        self._memory = {k: a for k, a in self._memory.items() if k.rpartition("/")[0] not in gone}
        values = {name: p.data for name, p in self._params.items()}
        update = self.optimizer.update()
        self._trainer = self.engine.trainer(graph, values, update, self.threads)
        if self._memory:
            self._trainer.remember(self._memory)
        self._outdated = False
        take_over(self._params.values(), self)

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
        return _source(self.engine.name, self._trainer)

    def fetch(self) -> None:
        """Bring the model's arrays up to date; its parameters ask for it when they are read."""
        if self._behind:
            self._behind = False
            for name, array in self._trainer.values().items():
                p = self._params[name]
                p.fetched(array)

    def changed(self) -> None:
        """A parameter was given other numbers; the next step starts from them."""
        self.fetch()
        self._outdated = True

    def refrozen(self) -> None:
        """A parameter was frozen or is trained again: the next step is made for that.

        What the optimizer keeps of every parameter stays.
        """
        self.fetch()
        if self._trainer is not None:
            self._memory |= self._trainer.memory()
            self._trainer, self._like = None, []


def _names(count: int) -> list[str]:
    """What the arrays of a batch are called: x and y, or x0, x1, y."""
    return ["x", "y"] if count == 2 else [*(f"x{i}" for i in range(count - 1)), "y"]


def _finite(array: Any) -> bool:
    return array.dtype.kind in "biu" or bool(np.isfinite(array.astype(np.float64)).all())


def _takes(model: Module, count: int) -> None:
    """Raise unless ``model.forward`` takes so many inputs."""
    try:
        inspect.signature(model.forward).bind(*range(count))
    except TypeError as error:
        raise TypeError(f"{model!r} got {count} inputs: {error}") from None


class History:
    """What ``fit`` returns: ``.history["loss"]``, one entry per epoch.

    With ``validation_data`` also ``["val_loss"]`` and each metric of it, ``["val_accuracy"]``; on
    the training data none is computed: the step gives its loss alone. ``.history["batch_loss"]``
    has one entry per step.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def add(self, logs: Mapping[str, float]) -> None:
        """The numbers of one more epoch."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        last = {k: v[-1] for k, v in self.history.items() if v and k != "batch_loss"}
        return f"History({', '.join(f'{k}={v:.4g}' for k, v in last.items())})"


class Callback:
    """Override what you need; return True from ``on_epoch_end`` or ``on_batch_end`` to stop."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before an epoch."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> bool | None:
        """After an epoch, with its numbers."""

    def on_batch_end(self, batch: int, logs: Mapping[str, float]) -> bool | None:
        """After a step, with its loss; ``batch`` counts from 0 in each epoch."""


class TerminateOnNaN(Callback):
    """Stops as soon as a loss is not finite."""

    def on_batch_end(self, batch: int, logs: Mapping[str, float]) -> bool | None:
        """True where the loss is nan or infinite."""
        return not math.isfinite(logs["loss"])


def compile_(self: Module, optimizer: str | optim.Optimizer = "adam", loss: Any = "cross_entropy",
             metrics: Sequence[Any] = (), engine: str | None = None) -> Module:  # fmt: skip
    """Choose what ``fit`` trains with: optimizer, loss, metrics and engine, by name or object."""
    step = self.training_setup = TrainStep(self, loss, optimizer, engine)
    self.metrics = {
        (m if isinstance(m, str) else m.__name__): metric_function(m, step.loss) for m in metrics
    }
    return self


def _setup(model: Module) -> TrainStep:
    step: TrainStep | None = model.training_setup
    if step is None:
        raise ValueError("call model.compile(optimizer=..., loss=...) first")
    return step


def _rows(model: Module, x: Any, y: Any, batch_size: int) -> list[Any]:
    """The arrays of ``x`` and ``y``, which have as many rows as each other."""
    double = _double(model)
    arrays = [_array(a, double) for a in ((*x, y) if isinstance(x, tuple) else (x, y))]
    row_count(dict(zip(_names(len(arrays)), arrays, strict=True)), batch_size)
    return arrays


def fit(self: Module, x: Any, y: Any, *, epochs: int = 1, batch_size: int = 32,
        validation_data: tuple[Any, Any] | None = None, callbacks: Sequence[Callback] = (),
        shuffle: bool = True, verbose: bool = True, seed: int = 0) -> History:  # fmt: skip
    """Train on ``x``, ``y``: shuffled batches, ``epochs`` times; shows its progress.

    ``x`` is a tuple where the model has several inputs. All labels are looked at before the first
    step.
    """
    whole("epochs", epochs)
    step, history = _setup(self), History()
    arrays = _rows(self, x, y, batch_size)
    if validation_data is not None:
        _rows(self, *validation_data, batch_size)
    step.check(tuple(arrays[:-1]), arrays[-1])
    self.train()
    with _bar(epochs * -(-len(arrays[-1]) // batch_size), verbose) as advance:
        for epoch in range(epochs):
            for c in callbacks:
                c.on_epoch_begin(epoch)
            total, seen = 0.0, 0
            batch_losses = history.history.setdefault("batch_loss", [])
            stop = False
            for k, (*bx, by) in enumerate(
                batches(*arrays, batch_size=batch_size, shuffle=shuffle, seed=seed + epoch)
            ):
                loss = step(tuple(bx), by)
                batch_losses.append(loss)
                total += loss * len(by)
                seen += len(by)
                advance(f"epoch {epoch + 1}/{epochs}  loss {total / seen:.4f}")
                if stop := any([c.on_batch_end(k, {"loss": loss}) for c in callbacks]):
                    break
            logs = {"loss": total / seen}
            if validation_data is not None:
                found = self.evaluate(*validation_data, batch_size=batch_size)
                logs |= {f"val_{k}": v for k, v in found.items()}
                self.train()
            history.add(logs)
            if any([c.on_epoch_end(epoch, logs) for c in callbacks]) or stop:
                break
    self.eval()
    return history


class _bar:
    """A progress bar on a terminal, silence elsewhere."""

    def __init__(self, total: int, verbose: bool):
        self.total, self.verbose = total, verbose

    def __enter__(self) -> Callable[[str], None]:
        if not self.verbose:
            return lambda text: None
        from rich import progress as p

        self._progress = p.Progress(
            p.TextColumn("{task.description}"), p.BarColumn(), p.MofNCompleteColumn(),
            p.TimeElapsedColumn(),
        )  # fmt: skip
        self._progress.start()
        task = self._progress.add_task("", total=self.total)
        shown, done = 0.0, 0

        def advance(text: str) -> None:
            nonlocal shown, done
            now, done = time.monotonic(), done + 1
            if now - shown > 0.1 or done == self.total:  # redrawing costs more than a small step
                self._progress.update(task, description=text, completed=done)
                shown = now

        return advance

    def __exit__(self, *_: object) -> None:
        if self.verbose:
            self._progress.stop()


def predict(self: Module, x: Any, *, batch_size: int = 256) -> Any:
    """The outputs for ``x`` in inference mode, as one NumPy array; a tuple for several inputs."""
    double = _double(self)
    arrays = [_array(a, double) for a in (x if isinstance(x, tuple) else (x,))]
    row_count(dict(zip([*_names(len(arrays) + 1)[:-1]], arrays, strict=True)), batch_size)
    _takes(self, len(arrays))
    with in_mode(False):
        parts = [np.asarray(self(*part)) for part in batches(*arrays, batch_size=batch_size)]
    return np.concatenate(parts)


def evaluate(self: Module, x: Any, y: Any, *, batch_size: int = 256) -> dict[str, float]:
    """Loss and metrics on ``x``, ``y`` in inference mode."""
    step = _setup(self)
    _rows(self, x, y, batch_size)
    prediction = predict(self, x, batch_size=batch_size)
    loss = step.loss(asarray(prediction), asarray(_array(y, _double(self))))
    logs = {"loss": float(loss)}
    return logs | {name: float(metric(prediction, y)) for name, metric in self.metrics.items()}


def summary(self: Module) -> str:
    """A table of the parameters, printed and returned."""
    rows = [(n, p.shape, p.data.size) for n, p in self.named_parameters("param", "state")]
    lines = [f"{n:<40} {s!s:<20} {c:>10,}" for n, s, c in rows]
    trained = sum(p.data.size for p in self.parameters() if p.requires_grad)
    lines.append(f"{trained:,} trained parameters, {sum(r[2] for r in rows) - trained:,} others")
    text = "\n".join(lines)
    print(text)
    return text


# Keras's habits, lent to every Module from here: nn/ stands below engines and cannot know them.
for _name, _method in dict(compile=compile_, fit=fit, predict=predict, evaluate=evaluate,
                           summary=summary).items():  # fmt: skip
    setattr(Module, _name, _method)


def _source(engine: str, compiled: Any) -> str:
    if engine != "native":
        raise ValueError(f"engine {engine!r} compiles nothing that could be shown; 'native' does")
    if compiled is None:
        raise ValueError("nothing is compiled yet: the first call decides the sizes")
    text: str = compiled.source
    return text


class Compiled:
    """A function that an engine runs; see :func:`compile`."""

    def __init__(self, function: Callable[..., Any], engine: str | None, threads: int | None):
        self._function, self._engine, self._threads = function, engine_named(engine), threads
        self._made = Recent(64)
        self._last: Any = None

    def __call__(self, *args: Any) -> Any:
        arrays = [np.asarray(a) for a in args]
        key = tuple([(a.dtype.str, a.shape) for a in arrays])
        made = self._made.get(key, lambda: self._compiled(arrays))
        if made[0] != (now := changes()):  # an attribute of some module was set meanwhile
            graph = self._trace(arrays)
            made[:] = [now, graph, *made[2:]] if graph.same_as(made[1]) else self._compiled(arrays)
        _, graph, run, demands = made
        if demands.of_numbers:
            demands.numbers(arrays)
        self._last = run
        values = {name: p.data for name, p in captured(graph).items()}
        return restructure(graph, [Tensor(a) for a in run(values, arrays)])

    def _trace(self, arrays: list[Any]) -> Graph:
        return trace(self._function, *arrays, training=False)

    def _compiled(self, arrays: list[Any]) -> list[Any]:
        """What modules' attributes were at the time, the Graph, what runs it, and its demands."""
        now, graph = changes(), self._trace(arrays)
        demands = Demands(graph, [v.name for v in graph.of_kind("data")])
        return [now, graph, self._engine.function(graph, self._threads), demands]

    @property
    def source(self) -> str:
        """What the native engine ran last, as loops that can be read."""
        return _source(self._engine.name, self._last)


def compile(
    function: Callable[..., Any], engine: str | None = None, threads: int | None = None
) -> Any:
    """``function`` (or a module) traced once per shape and run by an engine; same numbers as eager.

    On the native engine, the default, ``.source`` shows the loops that were compiled.

    >>> import trivium as tv
    >>> fast = tv.compile(lambda x: tv.tanh(x) * 2)
    >>> fast(tv.asarray([0.0, 1.0]))
    tensor([0.       , 1.5231884])
    >>> print(fast.source)
    # phase 0: one task
    # multiply: results in lanes along i
    for i in range(2):
        multiply_1[i] = tanh(x0[i]) * 2.0
    <BLANKLINE>
    """
    return Compiled(function, engine, threads)


__all__ = ["Callback", "GraphModule", "History", "TrainStep", "compile", "fit"]
