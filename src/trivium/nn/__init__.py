"""Layers and models, defined without sizes; and the functions of ``torch.nn.functional``."""

from trivium.nn.layers import (
    RNN,
    AvgPool2d,
    BatchNorm,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    LayerNorm,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    Tanh,
)
from trivium.nn.module import GraphModule, Module, Parameter
from trivium.ops.activation import (
    celu,
    elu,
    glu,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    log_sigmoid,
    mish,
    prelu,
    relu6,
    selu,
    softmin,
    softshrink,
    softsign,
    tanhshrink,
    threshold,
)
from trivium.ops.attention import scaled_dot_product_attention
from trivium.ops.conv import conv
from trivium.ops.elementwise import gelu, leaky_relu, relu, sigmoid, silu, softplus, tanh
from trivium.ops.index import embedding, one_hot
from trivium.ops.linalg import linear
from trivium.ops.loss import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from trivium.ops.norm import batch_norm, layer_norm, normalize
from trivium.ops.pool import avg_pool, max_pool
from trivium.ops.random import dropout
from trivium.ops.recurrent import rnn
from trivium.ops.reduce import log_softmax, softmax

logsigmoid = log_sigmoid  # torch's spelling

__all__ = [
    "RNN", "AvgPool2d", "BatchNorm", "BatchNorm2d", "Conv2d", "Dropout", "Embedding", "Flatten",
    "GlobalAvgPool2d", "GraphModule", "Identity", "LayerNorm", "Linear", "MaxPool2d", "Module",
    "Parameter", "ReLU", "Sequential", "Tanh", "avg_pool", "batch_norm",
    "binary_cross_entropy_with_logits", "celu", "conv", "cross_entropy", "dropout", "elu",
    "embedding", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "layer_norm",
    "leaky_relu", "linear", "log_sigmoid", "log_softmax", "logsigmoid", "max_pool", "mish",
    "mse_loss", "normalize", "one_hot", "prelu", "relu", "relu6", "rnn",
    "scaled_dot_product_attention", "selu", "sigmoid", "silu", "softmax", "softmin", "softplus",
    "softshrink", "softsign", "tanh", "tanhshrink", "threshold",
]  # fmt: skip
