"""A convolutional network on handwritten digits: conv, pool, conv, pool, dense, dense."""

import habits

import trivium as tv


class CNN(tv.nn.Module):
    def __init__(self):
        self.conv1 = tv.nn.Conv2d(8, 3, padding=1)
        self.conv2 = tv.nn.Conv2d(16, 3, padding=1)
        self.pool = tv.nn.MaxPool2d(2)
        self.fc1 = tv.nn.Linear(32)
        self.fc2 = tv.nn.Linear(10)

    def forward(self, x):
        x = self.pool(tv.relu(self.conv1(x)))
        x = self.pool(tv.relu(self.conv2(x)))
        return self.fc2(tv.relu(self.fc1(tv.flatten(x, start=1))))


make = CNN
loss = tv.cross_entropy
settings = dict(lr=0.1, epochs=2, batch_size=32)


def data():
    x, y, _, _ = tv.data.digits()
    return x, y


if __name__ == "__main__":
    habits.show(make, loss, *data(), **settings)
