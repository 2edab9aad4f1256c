"""Frameworks share one process: whichever is imported first, each then computes, and the same.

They bring OpenMP, BLAS and protobuf libraries of their own, and a clash between these is a crash or
a deadlock rather than an exception. So each order runs in a process of its own, which is this file.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

ORDERS = [  # each framework comes first once and last once
    ("torch", "tensorflow", "jax", "mxnet"),
    ("mxnet", "torch", "tensorflow", "jax"),
    ("jax", "mxnet", "torch", "tensorflow"),
    ("tensorflow", "jax", "mxnet", "torch"),
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_any_order(order: tuple[str, ...]) -> None:
    missing = [name for name in order if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert run(*order).splitlines()[-1] == "all agree"


def test_mxnet_leaves_numpy_alone() -> None:
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("not installed: mxnet")
    assert run("numpy").splitlines()[-1] == "untouched"


def test_mxnet_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.frameworks.mxnet import load

    for name in [name for name in sys.modules if name.partition(".")[0] == "mxnet"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mxnet", None)
    with pytest.raises(ImportError, match="pip install --no-deps mxnet"):
        load.load()


def run(*args: str) -> str:
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "2",  # a single thread has nobody to clash with
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-X", "faulthandler", __file__, *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


# What follows runs in the other process: the gradient of a convolution, a product of matrices.

IMAGE = np.random.default_rng(0).standard_normal((4, 16, 32, 32), np.float32)
KERNEL = np.random.default_rng(1).standard_normal((32, 16, 3, 3), np.float32)
MATRIX = np.random.default_rng(2).standard_normal((256, 256), np.float32)

Use = Callable[[], tuple[Any, Any]]


def use_torch() -> Use:
    import torch

    def use() -> tuple[Any, Any]:
        kernel = torch.tensor(KERNEL, requires_grad=True)
        torch.nn.functional.conv2d(torch.tensor(IMAGE), kernel).square().mean().backward()
        assert kernel.grad is not None
        return kernel.grad, torch.tensor(MATRIX) @ torch.tensor(MATRIX)

    return use


def use_tensorflow() -> Use:
    import tensorflow as tf

    def use() -> tuple[Any, Any]:
        kernel = tf.Variable(KERNEL.transpose(2, 3, 1, 0))
        with tf.GradientTape() as tape:
            out = tf.nn.conv2d(IMAGE.transpose(0, 2, 3, 1), kernel, 1, "VALID")
            loss = tf.reduce_mean(tf.square(out))
        grad = tape.gradient(loss, kernel).numpy().transpose(3, 2, 0, 1)
        return grad, tf.constant(MATRIX) @ tf.constant(MATRIX)

    return use


def use_jax() -> Use:
    import jax

    def loss(kernel: jax.Array) -> jax.Array:
        return (jax.lax.conv(IMAGE, kernel, (1, 1), "VALID") ** 2).mean()

    return lambda: (jax.jit(jax.grad(loss))(KERNEL), jax.numpy.matmul(MATRIX, MATRIX))


def use_mxnet() -> Use:
    from trivium.frameworks.mxnet.load import load

    mx = load()

    def use() -> tuple[Any, Any]:
        kernel = mx.nd.array(KERNEL)
        kernel.attach_grad()
        with mx.autograd.record():
            out = mx.nd.Convolution(
                mx.nd.array(IMAGE), kernel, kernel=(3, 3), num_filter=32, no_bias=True
            )
            loss = out.square().mean()
        loss.backward()
        product = mx.nd.dot(mx.nd.array(MATRIX), mx.nd.array(MATRIX))
        return kernel.grad.asnumpy(), product.asnumpy()

    return use


def agree(order: list[str]) -> str:
    uses, results = [], []
    for name in order:
        uses.append(globals()[f"use_{name}"]())
        results.append(uses[-1]())
    results += [use() for use in uses]  # once more, now that all are there
    for result in results:
        for got, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-3, atol=1e-4)
    return "all agree"


def untouched() -> str:
    """MXNet after a plain import has failed: it works, and NumPy is what it was."""
    names = dict(vars(np))
    try:
        import mxnet  # noqa: F401
    except AttributeError as error:
        assert "np.PZERO" in str(error)
    from trivium.frameworks.mxnet.load import load

    mx = load()
    assert load() is mx
    for name, value in names.items():
        assert vars(np)[name] is value, name
    for name in ("PZERO", "float_", "product", "msort"):
        assert not hasattr(np, name), name

    three, four = np.array([3, 4])  # their repr is not a number's any more
    assert mx.nd.arange(12).reshape((three, four)).shape == (3, 4)
    variable = mx.sym.var("x", shape=(three, four))
    assert mx.sym.transpose(variable, axes=(three - 2, three - 3)).infer_shape()[1] == [(4, 3)]
    for dtype in ("float16", "float32", "float64", "uint8", "int8", "int32", "int64", "bool"):
        array = np.array([[0, 1], [1, 1]], dtype)
        back = mx.nd.array(array, dtype=dtype).asnumpy()
        assert back.dtype == array.dtype
        assert (back == array).all()
    return "untouched"


if __name__ == "__main__":
    print(untouched() if sys.argv[1:] == ["numpy"] else agree(sys.argv[1:]))
