"""Logistic regression: is a digit below five?"""

import habits
import numpy as np

import trivium as tv


def make():
    return tv.nn.Linear(1)


def loss(logits, targets):
    return tv.binary_cross_entropy_with_logits(logits, targets)


settings = dict(lr=0.1, epochs=5, batch_size=64)


def data():
    x, y, _, _ = tv.data.digits()
    return x.reshape(len(x), 64), (y < 5).astype(np.float32)[:, None]


if __name__ == "__main__":
    habits.show(make, loss, *data(), **settings)
