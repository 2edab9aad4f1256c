"""One training run in each of three habits. The examples give the model; the loops are here.

Each returns the loss of every step. The batches are the same in all three: in order, unshuffled.
"""

import numpy as np

import trivium as tv


def pytorch(make, loss, x, y, *, lr, epochs, batch_size):
    """Eager: every line computes at once, and the loop is yours."""
    tv.seed(0)
    model = make()
    model.build(x[:1])
    optimizer = tv.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for bx, by in tv.data.batches(x, y, batch_size=batch_size):
            optimizer.zero_grad()
            value = loss(model(bx), tv.asarray(by))
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses


def keras(make, loss, x, y, *, lr, epochs, batch_size):
    """compile and fit: the loop is the library's."""
    tv.seed(0)
    model = make()
    model.compile(optimizer=tv.optim.SGD(lr, momentum=0.9), loss=loss)
    history = model.fit(x, y, epochs=epochs, batch_size=batch_size, shuffle=False, verbose=False)
    return history.history["batch_loss"]


def tf1(make, loss, x, y, *, lr, epochs, batch_size):
    """Define a Graph, then run parts of it in a Session."""
    tv.seed(0)
    model = make()
    with tv.Graph() as graph:
        inputs = tv.placeholder("float32", ("batch", *x.shape[1:]), name="inputs")
        targets = tv.placeholder(str(y.dtype), ("batch", *y.shape[1:]), name="targets")
        value = loss(model(inputs), targets)
        train = tv.optim.SGD(lr, momentum=0.9).minimize(value)
    session = tv.Session(graph)
    losses = []
    for _ in range(epochs):
        for bx, by in tv.data.batches(x, y, batch_size=batch_size):
            losses.append(float(session.run(train, feed_dict={inputs: bx, targets: by})))
    return losses


def show(make, loss, x, y, **settings):
    """Train in all three habits and print how the losses went."""
    for habit in (pytorch, keras, tf1):
        losses = habit(make, loss, x, y, **settings)
        print(f"{habit.__name__:8} loss {losses[0]:.6f} -> {np.mean(losses[-5:]):.6f}")
