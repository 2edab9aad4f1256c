"""A multi-layer perceptron on handwritten digits."""

import habits

import trivium as tv


def make():
    return tv.nn.Sequential(tv.nn.Linear(32), tv.relu, tv.nn.Linear(10))


loss = tv.cross_entropy
settings = dict(lr=0.1, epochs=3, batch_size=64)


def data():
    x, y, _, _ = tv.data.digits()
    return x.reshape(len(x), 64), y


if __name__ == "__main__":
    habits.show(make, loss, *data(), **settings)
