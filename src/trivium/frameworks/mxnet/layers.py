"""Our ops as Gluon layers. (What MXNet's operators are in ours is in ``operators.py``.)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from trivium.frameworks.layer import LayerForm, Weight, given, square
from trivium.frameworks.mxnet.cut import DETACHED
from trivium.graph import MODE, Graph, Node, Value

_WEIGHT, _BIAS = Weight("w", "weight", "weight"), Weight("b", "bias", "bias")
_RNN = {
    "weight_ih": "i2h_weight",
    "weight_hh": "h2h_weight",
    "bias_ih": "i2h_bias",
    "bias_hh": "h2h_bias",
}


def symmetric(padding: Any) -> Any:
    """(low, high) pairs as MXNet's one number per axis; None when low and high differ."""
    return tuple(a for a, _ in padding) if all(a == b for a, b in padding) else None


def often(graph: Graph) -> set[Value | None]:
    """Sums with these are written broadcast_add, because of what the way back makes of plain ones.

    MXNet 1.9.1 adds eight and more gradients of one array one after the other, each told to wait
    for the one before. The two of a plain sum are one copy twice, which is then made once, and what
    waited for the other is waiting for nothing: "control dep not found in graph". A reader's line
    may read it three times, hence four.
    """
    return {v for v, n in Counter(v for n in graph.nodes for v in n.inputs).items() if n >= 4}


# Input sizes are not said: Gluon learns them from the first batch, or from the parameters it loads.
def _conv(rank: int) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        x, w, b = (*node.inputs, None)[:3]
        a = node.attrs
        padding = symmetric(a["padding"])
        if x is None or w is None or padding is None:
            return None
        if len(x.shape) != rank + 2 or a["layout"][1] != "C":
            return None
        return {"channels": w.shape[0], "kernel_size": square(w.shape[2:])} | given(
            strides=(square(a["stride"]), 1), padding=(square(padding), 0),
            dilation=(square(a["dilation"]), 1), groups=(a["groups"], 1),
            use_bias=(b is not None, True),
        )  # fmt: skip

    return LayerForm("conv", f"nn.Conv{rank}D", write, weights=(_WEIGHT, _BIAS))


def bias_alone(node: Node) -> bool:
    """Is the bias of a dense layer trained and its weight is not?

    FullyConnected of MXNet 1.9.1 gives a gradient of zero for it then.
    """
    w, b = (*node.inputs, None)[1:3]
    return (
        b is not None and w is not None and (w.kind == "state" or not w.trainable)
        and not (b.kind == "state" or not b.trainable)
    )  # fmt: skip


def _dense(node: Node) -> Mapping[str, Any] | None:
    x, w, b = (*node.inputs, None)[:3]
    if x is None or w is None or len(x.shape) < 2 or bias_alone(node):
        return None
    arguments = {"units": w.shape[0]} | given(use_bias=(b is not None, True))
    return arguments | given(flatten=(len(x.shape) == 2, True))


def applications(graph: Graph, state: Value | None) -> list[Node]:
    """The batch norms that collect a running mean while training, in the order of their calls."""
    return [
        n for n in graph.nodes
        if n.op == "batch_norm" and n.attrs["training"] is MODE and n.inputs[3] is state
    ]  # fmt: skip


def _batch_norm(name: str, unbiased: bool, repeated: bool = False) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        scale, bias, state = node.inputs[1:4]
        a = node.attrs
        training = a["training"]
        if training is True or (a["unbiased"] if training is MODE else False) != unbiased:
            return None
        if repeated != (len(applications(node.outputs[0].graph, state)) > 1):
            return None
        word = {"unbiased": True} if repeated and unbiased else {}
        return word | given(
            axis=(a["axis"], 1), momentum=(round(1 - a["momentum"], 12), 0.9),
            epsilon=(a["epsilon"], 1e-5), center=(bias is not None, True),
            scale=(scale is not None, True), use_global_stats=(training is False, False),
        )  # fmt: skip

    names = dict(
        scale="weight", bias="bias", running_mean="running_mean", running_var="running_var"
    )
    theirs = dict(scale="gamma", bias="beta")
    weights = tuple(Weight(k, v, theirs.get(k, v)) for k, v in names.items())
    return LayerForm("batch_norm", name, write, weights=weights)


def _layer_norm(node: Node) -> Mapping[str, Any] | None:
    _, scale, bias = (*node.inputs, None, None)[:3]
    if scale is None or node.attrs["axes"] != 1:
        return None
    return given(epsilon=(node.attrs["epsilon"], 1e-5), center=(bias is not None, True))


def _embedding(node: Node) -> Mapping[str, Any] | None:
    w = node.inputs[0]
    return None if w is None else {"input_dim": w.shape[0], "output_dim": w.shape[1]}


def _rnn(node: Node) -> Mapping[str, Any] | None:
    w = node.inputs[2]
    if w is None:
        return None
    return {"hidden_size": w.shape[0], "activation": node.attrs["activation"], "layout": "NTC"}


def _pool(rank: int, op: str) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        a = node.attrs
        padding = symmetric(a["padding"])
        plain = set(a.get("dilation", (1,))) == {1} and a["layout"][1] == "C"
        if len(a["kernel"]) != rank or padding is None or not plain:
            return None
        arguments = {"pool_size": square(a["kernel"])} | given(
            strides=(square(a["stride"]), square(a["kernel"])), padding=(square(padding), 0)
        )
        counted = a.get("include_pad", True) or not any(padding)
        return arguments | given(count_include_pad=(counted, True))

    return LayerForm(op, f"nn.{op[:3].capitalize()}Pool{rank}D", write)


def _global_average(node: Node) -> Mapping[str, Any] | None:
    x = node.inputs[0]
    images = x is not None and len(x.shape) == 4
    return {} if images and node.attrs == {"axis": (2, 3), "keepdims": True} else None


def _dropout(node: Node) -> Mapping[str, Any] | None:
    return {"rate": node.attrs["rate"]} if node.attrs["training"] is MODE else None


def _activation(op: str, name: str) -> LayerForm:
    return LayerForm(op, "nn.Activation", lambda node: {"activation": name})


def _softmax(node: Node) -> Mapping[str, Any] | None:
    last = node.attrs["axis"] == len(node.out.shape) - 1
    return {"function": "softmax"} if last else None


FORMS = [
    *(_conv(n) for n in (1, 2, 3)),
    LayerForm("linear", "nn.Dense", _dense,
              weights=(Weight("weight", "weight", "weight"), Weight("bias", "bias", "bias"))),
    _batch_norm("nn.BatchNorm", False),
    _batch_norm("UnbiasedBatchNorm", True),
    *(_batch_norm("RepeatedBatchNorm", unbiased, repeated=True) for unbiased in (False, True)),
    LayerForm("layer_norm", "nn.LayerNorm", _layer_norm,
              weights=(Weight("scale", "weight", "gamma"), Weight("bias", "bias", "beta"))),
    LayerForm("embedding", "nn.Embedding", _embedding,
              weights=(Weight("weight", "weight", "weight"),)),
    # save_parameters writes the parameters of a fused network as if it were unfused.
    LayerForm("rnn", "gluon.rnn.RNN", _rnn,
              weights=tuple(Weight(k, k, f"_unfused.0.{v}") for k, v in _RNN.items())),
    *(_pool(n, op) for op in ("max_pool", "avg_pool") for n in (1, 2, 3)),
    LayerForm("mean", "nn.GlobalAvgPool2D", _global_average),
    LayerForm("flatten", "nn.Flatten", lambda node: {} if node.attrs["start"] == 1 else None),
    LayerForm("dropout", "nn.Dropout", _dropout),
    LayerForm("gelu", "nn.GELU", lambda node: {} if node.attrs["approximate"] == "none" else None),
    LayerForm("silu", "nn.Swish", lambda node: {}),
    LayerForm("leaky_relu", "nn.LeakyReLU", lambda node: {"alpha": node.attrs["slope"]}),
    _activation("relu", "relu"), _activation("tanh", "tanh"), _activation("sigmoid", "sigmoid"),
    LayerForm("softplus", "Softplus", lambda node: {}),
    LayerForm("softmax", "nn.HybridLambda", _softmax),
]  # fmt: skip

_UNBIASED = '''
class UnbiasedBatchNorm(nn.BatchNorm):
    """Its running variance takes the batch's variance times n / (n - 1); Gluon's takes it as it is.

    What is collected is collected from two numbers per channel that have the mean and the variance
    wanted; the normalization itself, with momentum 1, collects nothing.
    """

    def hybrid_forward(self, F, x, gamma, beta, running_mean, running_var):
        others = {"axis": self._kwargs["axis"], "exclude": True}
        mean = F.mean(x, keepdims=True, **others)
        variance = F.mean(F.square(F.broadcast_sub(x, mean)), keepdims=True, **others)
        n = F.sum(F.ones_like(x), keepdims=True, **others)
        deviation = F.BlockGrad(F.sqrt(variance * n / (n - 1)))
        two = F.concat(mean - deviation, mean + deviation, dim=0)
        seen = F.BatchNorm(two, gamma, beta, running_mean, running_var, **self._kwargs)
        # MXNet collects on the way back, so the output has to depend on ``seen``: by zero.
        gamma = gamma + F.sum(F.zeros_like(seen), **others)
        plain = {**self._kwargs, "momentum": 1.0}
        return F.BatchNorm(x, gamma, beta, running_mean, running_var, **plain)
'''

_REPEATED = '''
class RepeatedBatchNorm(nn.BatchNorm):
    """A batch norm for several calls, the last of which is also given what the others were given.

    MXNet collects on the way back, so the statistics of the last call would count first. Here the
    last call collects for all: with momentum 1 a normalization collects nothing, and two numbers
    per channel have the mean and the variance that all calls together come to.
    """

    def __init__(self, unbiased=False, **kwargs):
        super().__init__(**kwargs)
        self.unbiased = unbiased

    def hybridize(self, active=True, **kwargs):
        super().hybridize(False)  # not by itself, as its calls differ: with the block around it

    def statistics(self, F, x):
        others = {"axis": self._kwargs["axis"], "exclude": True}
        apart = F.broadcast_sub(x, F.mean(x, keepdims=True, **others))
        variance = F.mean(F.square(apart), **others)
        if self.unbiased:
            n = F.sum(F.ones_like(x), **others)
            variance = variance * n / (n - 1)
        return F.mean(x, **others), variance

    def hybrid_forward(self, F, x, *earlier, gamma, beta, running_mean, running_var):
        if earlier:
            calls = [self.statistics(F, call) for call in (*earlier, x)]
            shares = [self._kwargs["momentum"] ** i for i in reversed(range(len(calls)))]
            mean, variance = (
                sum(number * share for number, share in zip(numbers, shares)) / sum(shares)
                for numbers in zip(*calls)
            )
            deviation = F.BlockGrad(F.sqrt(variance))
            two = F.stack(mean - deviation, mean + deviation)
            kept = self._kwargs["momentum"] ** len(calls)
            whole = {**self._kwargs, "axis": 1, "momentum": kept}
            seen = F.BatchNorm(two, gamma, beta, running_mean, running_var, **whole)
            # The output has to depend on ``seen`` for the way back to lead there: by zero.
            gamma = gamma + F.sum(F.zeros_like(seen), axis=0)
        plain = {**self._kwargs, "momentum": 1.0}
        return F.BatchNorm(x, gamma, beta, running_mean, running_var, **plain)
'''

_LOG_SOFTMAX = '''
def log_softmax(F, x, axis=-1):
    """F.log_softmax to the last digit: given a temperature, even 1, MXNet leaves out oneDNN, whose
    logarithm is good for five digits.
    """
    return F.log_softmax(x, axis=axis, temperature=1.0)
'''

_SOFTPLUS = '''
def softplus(F, x):
    """log(1 + exp(x)) to the last digit: MXNet's softrelu is 0 below -17, and coarse above.

    The two halves are one number, but the slope of the first at 0 is 0, and of the second 1.
    """
    return F.relu(x) / 2 + F.maximum(x, 0) / 2 + F.log1p(F.exp(-F.abs(x)))
'''

_SOFTPLUS_LAYER = '''
class Softplus(gluon.HybridBlock):
    """softplus as a layer."""

    def hybrid_forward(self, F, x):
        return softplus(F, x)
'''

_SHARED = '''
def {name}_shared(F, x, axis, keepdims=False):
    """F.{name}, whose gradient equal {plural} share: F.{name} gives the whole to each of them."""
    hit = F.broadcast_equal(x, F.BlockGrad(F.{name}(x, axis=axis, keepdims=True)))
    total = F.sum(F.where(hit, x, F.zeros_like(x)), axis=axis, keepdims=keepdims)
    return total / F.sum(hit, axis=axis, keepdims=keepdims)
'''

_FIRST = '''
def {name}_first(F, x, axis, keepdims=False):
    """F.{name}, but a tie's gradient goes to the first: F.{name} gives the whole to each."""
    return F.pick(x, F.arg{name}(x, axis=axis), axis=axis, keepdims=keepdims)
'''

_HALVES = '''
def shared_{name}(F, x, y):
    """The {name}, but the two share the gradient of a tie: MXNet gives it all to x."""
    return F.broadcast_{name}(x, y) / 2 + F.broadcast_{name}(y, x) / 2
'''

_FLAT = '''
def flat_clip(F, x, low, high):
    """F.clip, but the gradient at the bounds themselves is 0: F.clip's is 1 there."""
    return F.where((x > low) * (x < high), x, F.BlockGrad(F.clip(x, low, high)))
'''

_ARRAY_OF = '''
def array_of(F, parameter):
    """A parameter of a layer inside, to compute with: hybrid_forward gets the block's own alone."""
    return parameter.data() if F is mx.nd else parameter.var()
'''

HELPERS = {
    "UnbiasedBatchNorm": _UNBIASED,
    "RepeatedBatchNorm": _REPEATED,
    "log_softmax": _LOG_SOFTMAX,
    "softplus": _SOFTPLUS,
    "Softplus": _SOFTPLUS_LAYER,
    "max_shared": _SHARED.format(name="max", plural="maxima"),
    "min_shared": _SHARED.format(name="min", plural="minima"),
    **{f"{name}_first": _FIRST.format(name=name) for name in ("max", "min")},
    **{f"shared_{name}": _HALVES.format(name=name) for name in ("maximum", "minimum")},
    "flat_clip": _FLAT,
    "array_of": _ARRAY_OF,
    "detached": DETACHED,
}
