"""A recurrent network that reads a digit row by row."""

import habits

import trivium as tv


class RowReader(tv.nn.Module):
    def __init__(self):
        self.rnn = tv.nn.RNN(32, last=True)
        self.head = tv.nn.Linear(10)

    def forward(self, x):
        return self.head(self.rnn(x))


make = RowReader
loss = tv.cross_entropy
settings = dict(lr=0.05, epochs=3, batch_size=64)


def data():
    x, y, _, _ = tv.data.digits()
    return x[:, 0], y


if __name__ == "__main__":
    habits.show(make, loss, *data(), **settings)
