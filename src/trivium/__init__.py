"""Trivium: one model, every framework, and the evidence that it is still the same model."""

import trivium.ops  # noqa: F401  (fills the registry)
from trivium import data, fit, nn, optim
from trivium.convert import (
    emit, from_keras, from_mxnet, from_onnx, from_torch, load, save, to_jax, to_keras, to_mxnet,
    to_onnx, to_tensorflow, to_torch, verify,
)  # fmt: skip
from trivium.dtype import (
    bfloat16, bool_, float16, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32,
    uint64,
)  # fmt: skip
from trivium.engines import engines
from trivium.fit import Callback, History, TrainStep, compile
from trivium.graph import MODE, Graph, GraphError, UnsupportedError
from trivium.nn.module import seed, trace
from trivium.ops.control import cond, scan
from trivium.ops.elementwise import (
    abs, add, cast, divide, equal, erf, exp, expm1, gelu, greater, greater_equal, leaky_relu, less,
    less_equal, log, log1p, logical_and, logical_not, logical_or, maximum, minimum, multiply,
    negative, not_equal, pow, relu, sigmoid, sign, silu, softplus, sqrt, square, stop_gradient,
    subtract, tanh, where,
)  # fmt: skip
from trivium.ops.conv import conv
from trivium.ops.creation import ones_like, zeros_like
from trivium.ops.index import embedding, one_hot, take
from trivium.ops.linalg import linear, matmul
from trivium.ops.loss import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from trivium.ops.norm import batch_norm, layer_norm
from trivium.ops.pool import avg_pool, max_pool
from trivium.ops.random import dropout, random_uniform
from trivium.ops.recurrent import rnn
from trivium.ops.reduce import argmax, log_softmax, logsumexp, max, mean, min, softmax, sum
from trivium.ops.shape import (
    broadcast_to, concat, expand_dims, flatten, flip, pad, reshape, squeeze, stack, transpose,
)  # fmt: skip
from trivium.session import Session, variable
from trivium.shape import Dim, ShapeError
from trivium.tensor import Spec, Tensor, arange, asarray, full, no_grad, ones, placeholder, zeros
from trivium.text import parse
from trivium.functional import grad, value_and_grad
from trivium.verify import Report, VerificationError

astype = cast
permute_dims = transpose
__version__ = "0.1.0"

__all__ = [
    "Callback", "Dim", "Graph", "GraphError", "History", "MODE", "Report", "Session", "ShapeError",
    "Spec", "Tensor", "TrainStep", "UnsupportedError", "VerificationError", "abs", "add", "arange",
    "argmax", "asarray", "astype", "avg_pool", "batch_norm", "bfloat16",
    "binary_cross_entropy_with_logits", "bool_", "broadcast_to", "cast", "compile", "concat",
    "cond", "conv", "cross_entropy", "data", "divide", "dropout", "embedding", "emit", "engines",
    "equal", "erf", "exp", "expand_dims", "expm1", "fit", "flatten", "flip", "float16", "float32",
    "float64", "from_keras", "from_mxnet", "from_onnx", "from_torch", "full", "gelu", "grad",
    "greater", "greater_equal", "int16", "int32", "int64", "int8", "layer_norm", "leaky_relu",
    "less", "less_equal", "linear", "load", "log", "log1p", "log_softmax", "logical_and",
    "logical_not", "logical_or", "logsumexp", "matmul", "max", "max_pool", "maximum", "mean", "min",
    "minimum", "mse_loss", "multiply", "negative", "nn", "no_grad", "not_equal", "one_hot", "ones",
    "ones_like", "optim", "pad", "parse", "permute_dims", "placeholder", "pow", "random_uniform",
    "relu", "reshape", "rnn", "save", "scan", "seed", "sigmoid", "sign", "silu", "softmax",
    "softplus", "sqrt", "square", "squeeze", "stack", "stop_gradient", "subtract", "sum", "take",
    "tanh", "to_jax", "to_keras", "to_mxnet", "to_onnx", "to_tensorflow", "to_torch", "trace",
    "transpose", "uint16", "uint32", "uint64", "uint8", "value_and_grad", "variable", "verify",
    "where", "zeros", "zeros_like",
]  # fmt: skip
