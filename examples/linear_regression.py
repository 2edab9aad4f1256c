"""Linear regression: y = 3x + 2, learnt from a thousand points."""

import habits
import numpy as np

import trivium as tv


def make():
    return tv.nn.Linear(1)


loss = tv.mse_loss
settings = dict(lr=0.05, epochs=10, batch_size=100)


def data():
    x = np.random.default_rng(0).random((1000, 1), dtype=np.float32)
    return x, 3 * x + 2


if __name__ == "__main__":
    habits.show(make, loss, *data(), **settings)
