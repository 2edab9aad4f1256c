"""How each framework trains, as its own users would write it: one class per framework.

Making the object imports the framework; ``step(workload)`` builds the model and its training step,
which is where a first step's time begins. All see the same shapes, loss, optimizer and batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bench.workloads import RATES, Contraction, Layer, Training, Workload


class Step(NamedTuple):
    """A step ready to run. What it returns may be a promise; ``value`` waits for it."""

    run: Callable[[Any, Any], Any]
    batches: list[tuple[Any, Any]]
    value: Callable[[Any], float] = float
    parameters: Callable[[], int] = int  # how many numbers it trains


class Unfit(Exception):
    """This peer has no such workload."""


def training(workload: Workload) -> Training:
    """The workload, when it is a training step."""
    if isinstance(workload, Training):
        return workload
    raise Unfit("trains; single contractions are not measured")


class Trivium:
    """Ours, through the public functions, on any of our engines."""

    def __init__(self, threads: int, variant: str):
        import trivium as tv

        self.tv, self.threads, self.engine = tv, threads, variant
        self.version = tv.__version__

    def step(self, workload: Workload) -> Step:
        """NumPy arrays in, the loss out."""
        tv, batches = self.tv, workload.data()
        if isinstance(workload, Contraction):
            op, attrs = tv.graph.OPS[workload.op], workload.attrs
            run = tv.compile(lambda x, y: op(x, y, **attrs), self.engine, self.threads)
            return Step(run, batches, lambda out: float(np.asarray(out).flat[0]))
        nn = tv.nn
        kinds = {
            "dense": nn.Linear, "conv": nn.Conv2d, "pool": nn.MaxPool2d, "relu": nn.ReLU,
            "flatten": nn.Flatten, "rnn": lambda hidden: nn.RNN(hidden, last=True),
        }  # fmt: skip
        model = nn.Sequential(*(kinds[kind](*args) for kind, *args in workload.chain))
        loss = "mse" if workload.classes is None else "cross_entropy"
        optimizers = {"sgd": tv.optim.SGD, "adam": tv.optim.Adam}
        optimizer = optimizers[workload.optimizer](RATES[workload.optimizer])
        step = tv.TrainStep(model, loss, optimizer, engine=self.engine, threads=self.threads)
        return Step(step, batches, float, lambda: sum(p.data.size for p in model.parameters()))


class Numpy:
    """NumPy's BLAS, for the product of matrices."""

    def __init__(self, threads: int, variant: str):
        self.version = np.__version__

    def step(self, workload: Workload) -> Step:
        """``np.matmul``."""
        if workload.name != "matmul":
            raise Unfit("has no such op")
        return Step(np.matmul, workload.data(), lambda out: float(out.flat[0]))


class Torch:
    """PyTorch: eager, channels last, or torch.compile of model and loss."""

    def __init__(self, threads: int, variant: str):
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.variant, self.version = torch, variant, torch.__version__

    def layer(self, layer: Layer) -> Any:
        """torch wants to know what comes in."""
        nn, size = self.torch.nn, layer.takes[0]

        class LastOfRNN(nn.RNN):
            """The outputs are (batch, time, hidden)."""

            def forward(self, x: Any) -> Any:
                return super().forward(x)[0][:, -1]

        return {
            "rnn": lambda: LastOfRNN(layer.takes[1], *layer.args, batch_first=True),
            "dense": lambda: nn.Linear(size, *layer.args),
            "conv": lambda: nn.Conv2d(size, *layer.args),
            "pool": lambda: nn.MaxPool2d(*layer.args),
            "relu": nn.ReLU,
            "flatten": nn.Flatten,
        }[layer.kind]()

    def step(self, workload: Workload) -> Step:
        """zero_grad, loss, backward, step."""
        torch, w = self.torch, training(workload)
        model = torch.nn.Sequential(*(self.layer(layer) for layer in w.layers()))
        batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in w.data()]
        if self.variant == "channels-last":
            if not w.images:
                raise Unfit("images only")
            last = torch.channels_last
            model = model.to(memory_format=last)
            batches = [(x.to(memory_format=last), y) for x, y in batches]
        functional = torch.nn.functional
        criterion = functional.mse_loss if w.classes is None else functional.cross_entropy
        optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
        optimizer = optimizers[w.optimizer](model.parameters(), RATES[w.optimizer])

        def loss_of(x: Any, y: Any) -> Any:
            return criterion(model(x), y)

        if self.variant == "compile":
            loss_of = torch.compile(loss_of)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = loss_of(x, y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Step(step, batches, float, lambda: sum(p.numel() for p in model.parameters()))


class Keras:
    """What TensorFlow and JAX share: the model in Keras 3, images with channels last."""

    def __init__(self, backend: str):
        os.environ.update(KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3")
        import keras

        self.keras = keras
        keras.utils.set_random_seed(0)

    def build(self, w: Training) -> tuple[Any, Any, Any]:
        """Model, loss and optimizer."""
        keras, layers = self.keras, self.keras.layers
        kinds = {
            "dense": layers.Dense, "conv": layers.Conv2D, "pool": layers.MaxPooling2D,
            "relu": lambda: layers.Activation("relu"), "flatten": layers.Flatten,
            "rnn": layers.SimpleRNN,
        }  # fmt: skip
        shape = (*w.shape[1:], w.shape[0]) if w.images else w.shape
        chain = [kinds[kind](*args) for kind, *args in w.chain]
        model = keras.Sequential([keras.Input(shape), *chain])
        losses = keras.losses
        loss = (
            losses.MeanSquaredError()
            if w.classes is None
            else losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        optimizers = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
        optimizer = optimizers[w.optimizer](RATES[w.optimizer])
        optimizer.build(model.trainable_variables)
        return model, loss, optimizer

    def batches(self, w: Training) -> list[tuple[Any, Any]]:
        """The batches with channels last."""
        return [(x.transpose(0, 2, 3, 1).copy() if w.images else x, y) for x, y in w.data()]


class Tensorflow(Keras):
    """TensorFlow: a tf.function with a GradientTape."""

    def __init__(self, threads: int, variant: str):
        super().__init__("tensorflow")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        self.tf, self.version = tf, tf.__version__

    def step(self, workload: Workload) -> Step:
        """One graph for the whole step."""
        tf, w = self.tf, training(workload)
        model, loss_of, optimizer = self.build(w)
        variables = model.trainable_variables

        @tf.function
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(y, model(x, training=True))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        batches = [(tf.constant(x), tf.constant(y)) for x, y in self.batches(w)]
        return Step(step, batches, float, model.count_params)


class Jax(Keras):
    """JAX: the Keras model made functional and jitted whole, its buffers donated."""

    def __init__(self, threads: int, variant: str):
        super().__init__("jax")
        import jax

        self.jax, self.version = jax, jax.__version__

    def step(self, workload: Workload) -> Step:
        """value_and_grad and update under one jit."""
        jax, w = self.jax, training(workload)
        model, loss_of, optimizer = self.build(w)

        def forward(train: Any, fixed: Any, x: Any, y: Any) -> Any:
            out, fixed = model.stateless_call(train, fixed, x, training=True)
            return loss_of(y, out), fixed

        def update(state: Any, x: Any, y: Any) -> Any:
            train, fixed, slots = state
            (loss, fixed), grads = jax.value_and_grad(forward, has_aux=True)(train, fixed, x, y)
            train, slots = optimizer.stateless_apply(slots, grads, train)
            return (train, fixed, slots), loss

        update = jax.jit(update, donate_argnums=0)
        held = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        state = tuple([v.value for v in variables] for variables in held)

        def step(x: Any, y: Any) -> Any:
            nonlocal state
            state, loss = update(state, x, y)
            return loss

        batches = [(jax.numpy.asarray(x), jax.numpy.asarray(y)) for x, y in self.batches(w)]
        return Step(step, batches, float, model.count_params)


class Mxnet:
    """MXNet 1.9: a hybridized block with static memory, and Gluon's Trainer."""

    def __init__(self, threads: int, variant: str):
        from trivium.frameworks.mxnet.load import load

        self.mx = load()
        self.version = self.mx.__version__

    def step(self, workload: Workload) -> Step:
        """record, backward, trainer.step."""
        mx, w = self.mx, training(workload)
        gluon, nn = mx.gluon, mx.gluon.nn
        kinds = {
            "dense": nn.Dense, "conv": nn.Conv2D, "pool": nn.MaxPool2D,
            "relu": lambda: nn.Activation("relu"), "flatten": nn.Flatten,
            "rnn": lambda hidden: (
                gluon.rnn.RNN(hidden, activation="tanh", layout="NTC"),
                nn.HybridLambda(lambda F, x: F.slice_axis(x, axis=1, begin=-1, end=None)),
                nn.Flatten(),
            ),
        }  # fmt: skip
        model = nn.HybridSequential()
        for kind, *args in w.chain:
            made = kinds[kind](*args)
            model.add(*made if isinstance(made, tuple) else (made,))
        # L2Loss has a factor 1/2; a weight of 2 makes it the mean squared error.
        loss_of = gluon.loss.L2Loss(weight=2) if w.classes is None else gluon.loss.SoftmaxCELoss()
        model.initialize()
        for block in (model, loss_of):
            block.hybridize(static_alloc=True, static_shape=True)
        batches = [(mx.nd.array(x), mx.nd.array(y)) for x, y in w.data()]
        model(batches[0][0])
        rate = {"learning_rate": RATES[w.optimizer]}
        trainer = gluon.Trainer(model.collect_params(), w.optimizer, rate)

        def step(x: Any, y: Any) -> Any:
            with mx.autograd.record():
                loss = loss_of(model(x), y)
            loss.backward()
            trainer.step(w.batch)
            return loss

        def value(loss: Any) -> float:
            mx.nd.waitall()
            return float(loss.mean().asscalar())

        held = model.collect_params().values()
        return Step(step, batches, value, lambda: sum(int(np.prod(p.shape)) for p in held))


class Peer(NamedTuple):
    """How a name is made: its class, the variant, the modules it needs and how to get them."""

    make: Callable[[int, str], Any]
    variant: str
    needs: tuple[str, ...]
    remedy: str
    default: bool = True


_TORCH, _MXNET = "pip install torch", "pip install --no-deps mxnet && pip install requests"
PEERS = {
    "torch": Peer(Torch, "", ("torch",), _TORCH),
    "torch-channels-last": Peer(Torch, "channels-last", ("torch",), _TORCH),
    "torch-compile": Peer(Torch, "compile", ("torch",), _TORCH),
    "tensorflow": Peer(Tensorflow, "", ("tensorflow", "keras"), "pip install tensorflow-cpu keras"),
    "jax": Peer(Jax, "", ("jax", "keras"), "pip install jax keras"),
    "mxnet": Peer(Mxnet, "", ("mxnet",), _MXNET),
    "numpy": Peer(Numpy, "", (), "pip install numpy", default=False),
}


def find(name: str) -> Peer:
    """The peer of this name; ``trivium:ENGINE`` is ours on that engine."""
    ours, _, engine = name.partition(":")
    return (
        Peer(Trivium, engine, (), "pip install --editable .") if ours == "trivium" else PEERS[name]
    )
