"""Keras's habits, which every Module has: compile, fit, evaluate, predict, summary.

What they do stands above the engines, in ``trivium.train``; each method goes up that one stair when
it is called, so that ``nn`` is imported without an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

    from trivium.optim import Optimizer
    from trivium.train.fit import Callback, History


class Habits:
    """The methods of a Module that train it."""

    training_setup: Any = None
    """What ``compile`` chose: the step that ``fit`` takes."""
    metrics: Mapping[str, Callable[..., float]] = MappingProxyType({})
    """What ``evaluate`` computes beside the loss."""

    def compile(
        self,
        optimizer: str | Optimizer = "adam",
        loss: str | Callable[..., Any] = "cross_entropy",
        metrics: Sequence[str | Callable[..., float]] = (),
        engine: str | None = None,
    ) -> Self:
        """Choose what ``fit`` trains with: optimizer, loss, metrics and engine, by name or object.

        >>> import numpy as np, trivium as tv
        >>> model = tv.nn.Linear(1).compile(tv.optim.SGD(0.5), "mse")
        >>> x = np.float32([[0.0], [1.0]])
        >>> history = model.fit(x, 3 * x + 2, epochs=30, verbose=False)
        >>> history.history["loss"][-1] < 0.01
        True
        """
        from trivium.train import fit

        fit.prepare(self, optimizer, loss, metrics, engine)
        return self

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        shuffle: bool = True,
        verbose: bool = True,
        seed: int = 0,
    ) -> History:
        """Train on ``x``, ``y``: shuffled batches, ``epochs`` times; shows its progress.

        ``x`` is a tuple where the model has several inputs. All labels are looked at before the
        first step.
        """
        from trivium.train import fit

        return fit.fit(self, x, y, epochs=epochs, batch_size=batch_size,
                       validation_data=validation_data, callbacks=callbacks, shuffle=shuffle,
                       verbose=verbose, seed=seed)  # fmt: skip

    def evaluate(self, x: Any, y: Any, *, batch_size: int = 256) -> dict[str, float]:
        """Loss and metrics on ``x``, ``y`` in inference mode."""
        from trivium.train import fit

        return fit.evaluate(self, x, y, batch_size=batch_size)

    def predict(self, x: Any, *, batch_size: int = 256) -> np.ndarray[Any, Any]:
        """The outputs for ``x`` in inference mode, as one NumPy array.

        ``x`` is a tuple where the model has several inputs.
        """
        from trivium.train import fit

        found: np.ndarray[Any, Any] = fit.predict(self, x, batch_size=batch_size)
        return found

    def summary(self) -> str:
        """A table of the parameters, printed and returned."""
        from trivium.train import fit

        return fit.summary(self)
