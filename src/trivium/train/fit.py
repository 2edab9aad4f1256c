"""What a Module's compile, fit, evaluate, predict and summary do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trivium.data import batches, row_count, whole
from trivium.nn.held import in_mode
from trivium.nn.module import Module
from trivium.tensor import asarray
from trivium.train.metrics import metric_function
from trivium.train.step import TrainStep, batch_names, is_wide, numbers, takes


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


def prepare(model: Any, optimizer: Any, loss: Any, metrics: Sequence[Any], engine: Any) -> None:
    """What ``model.compile`` does."""
    step = model.training_setup = TrainStep(model, loss, optimizer, engine)
    model.metrics = {
        (m if isinstance(m, str) else m.__name__): metric_function(m, step.loss) for m in metrics
    }


def _setup(model: Module) -> TrainStep:
    step: TrainStep | None = model.training_setup
    if step is None:
        raise ValueError("call model.compile(optimizer=..., loss=...) first")
    return step


def _rows(model: Module, x: Any, y: Any, batch_size: int) -> list[Any]:
    """The arrays of ``x`` and ``y``, which have as many rows as each other."""
    double = is_wide(model)
    arrays = [numbers(a, double) for a in ((*x, y) if isinstance(x, tuple) else (x, y))]
    row_count(dict(zip(batch_names(len(arrays)), arrays, strict=True)), batch_size)
    return arrays


def fit(model: Any, x: Any, y: Any, *, epochs: int, batch_size: int,
        validation_data: tuple[Any, Any] | None, callbacks: Sequence[Callback],
        shuffle: bool, verbose: bool, seed: int) -> History:  # fmt: skip
    """What ``model.fit`` does."""
    whole("epochs", epochs)
    step, history = _setup(model), History()
    arrays = _rows(model, x, y, batch_size)
    if validation_data is not None:
        _rows(model, *validation_data, batch_size)
    step.check(tuple(arrays[:-1]), arrays[-1])
    model.train()
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
                found = model.evaluate(*validation_data, batch_size=batch_size)
                logs |= {f"val_{k}": v for k, v in found.items()}
                model.train()
            history.add(logs)
            if any([c.on_epoch_end(epoch, logs) for c in callbacks]) or stop:
                break
    model.eval()
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


def predict(model: Any, x: Any, *, batch_size: int) -> Any:
    """What ``model.predict`` does."""
    double = is_wide(model)
    arrays = [numbers(a, double) for a in (x if isinstance(x, tuple) else (x,))]
    row_count(dict(zip([*batch_names(len(arrays) + 1)[:-1]], arrays, strict=True)), batch_size)
    takes(model, len(arrays))
    with in_mode(False):
        parts = [np.asarray(model(*part)) for part in batches(*arrays, batch_size=batch_size)]
    return np.concatenate(parts)


def evaluate(model: Any, x: Any, y: Any, *, batch_size: int) -> dict[str, float]:
    """What ``model.evaluate`` does."""
    step = _setup(model)
    _rows(model, x, y, batch_size)
    prediction = predict(model, x, batch_size=batch_size)
    loss = step.loss(asarray(prediction), asarray(numbers(y, is_wide(model))))
    logs = {"loss": float(loss)}
    return logs | {name: float(metric(prediction, y)) for name, metric in model.metrics.items()}


def summary(model: Any) -> str:
    """What ``model.summary`` does."""
    rows = [(n, p.shape, p.data.size) for n, p in model.named_parameters("param", "state")]
    lines = [f"{n:<40} {s!s:<20} {c:>10,}" for n, s, c in rows]
    trained = sum(p.data.size for p in model.parameters() if p.requires_grad)
    lines.append(f"{trained:,} trained parameters, {sum(r[2] for r in rows) - trained:,} others")
    text = "\n".join(lines)
    print(text)
    return text
