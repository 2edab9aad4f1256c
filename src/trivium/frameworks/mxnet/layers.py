"""Our ops as Gluon layers. (What MXNet's operators are in ours is in ``operators.py``.)"""

from __future__ import annotations

from collections import Counter

from trivium.frameworks.layer import CHANNELS_FIRST, SPATIAL, LayerForm, by_rank, weights
from trivium.frameworks.mxnet.cut import DETACHED
from trivium.frameworks.ways import WAYS, array
from trivium.graph import MODE, Graph, Node, Value

WAYS["matrix"] = array(lambda x, at: len(x.shape) == 2)


def often(graph: Graph) -> set[Value | None]:
    """Sums with these are written broadcast_add, because of what the way back makes of plain ones.

    MXNet 1.9.1 adds eight and more gradients of one array one after the other, each told to wait
    for the one before. The two of a plain sum are one copy twice, which is then made once, and what
    waited for the other is waiting for nothing: "control dep not found in graph". A reader's line
    may read it three times, hence four.
    """
    return {v for v, n in Counter(v for n in graph.nodes for v in n.inputs).items() if n >= 4}


def bias_alone(node: Node) -> bool:
    """Is the bias of a dense layer trained and its weight is not?

    FullyConnected of MXNet 1.9.1 gives a gradient of zero for it then.
    """
    w, b = (*node.inputs, None)[1:3]
    return (
        b is not None and w is not None and (w.kind == "state" or not w.trainable)
        and not (b.kind == "state" or not b.trainable)
    )  # fmt: skip


def _dense(node: Node) -> bool:
    x = node.inputs[0]
    return x is not None and len(x.shape) > 1 and not bias_alone(node)


def applications(graph: Graph, state: Value | None) -> list[Node]:
    """The batch norms that collect a running mean while training, in the order of their calls."""
    return [
        n for n in graph.nodes
        if n.op == "batch_norm" and n.attrs["training"] is MODE and n.inputs[3] is state
    ]  # fmt: skip


def _batch_norm(name: str, unbiased: bool | None, words: str = "") -> LayerForm:
    """``unbiased`` None: said by a word; without training there is no difference."""

    def fits(node: Node) -> bool:
        again = len(applications(node.outputs[0].graph, node.inputs[3])) > 1
        corrected = node.attrs["unbiased"] and node.attrs["training"] is MODE
        return again if unbiased is None else not again and corrected == unbiased

    line = (
        f"{name}({words}axis={{axis|1}}, momentum={{momentum!rest|0.9}}, epsilon={{epsilon|1e-5}}, "
        "center={bias!there|True}, scale={scale!there|True}, "
        "use_global_stats={training!frozen|False})"
    )
    held = weights("running_mean", "running_var", scale="gamma", bias="beta")
    settled = {} if unbiased is None else {"unbiased": unbiased}
    return LayerForm("batch_norm", line, held, when=fits, settled=settled)


_WINDOW = ("pool_size={kernel!each}, strides={stride!steps|None}, "
           "padding={padding!symmetric|0}")  # fmt: skip
_GATES = {"weight_ih": "i2h_weight", "weight_hh": "h2h_weight", "bias_ih": "i2h_bias",
          "bias_hh": "h2h_bias"}  # fmt: skip

# Input sizes are not said: Gluon learns them from the first batch, or from the parameters it loads.
FORMS = [
    *by_rank("conv", "nn.Conv#D(channels={w.0}, kernel_size={w.kernel!each}, "
             "strides={stride!each|1}, padding={padding!symmetric|0}, dilation={dilation!each|1}, "
             "groups={groups|1}, use_bias={b!there|True})",
             SPATIAL, weights=weights("w", "b"), fixed=CHANNELS_FIRST),
    LayerForm("linear", "nn.Dense(units={weight.0}, use_bias={bias!there|True}, "
              "flatten={x!matrix|True})", weights("weight", "bias"), when=_dense),
    _batch_norm("nn.BatchNorm", False), _batch_norm("UnbiasedBatchNorm", True),
    _batch_norm("RepeatedBatchNorm", None, "unbiased={unbiased|False}, "),
    LayerForm("layer_norm", "nn.LayerNorm(epsilon={epsilon|1e-5}, center={bias!there|True})",
              weights(scale="gamma", bias="beta"),
              when=lambda node: len(node.inputs) > 1 and node.inputs[1] is not None),
    LayerForm("embedding", "nn.Embedding(input_dim={weight.0}, output_dim={weight.1})",
              weights("weight")),
    # save_parameters writes the parameters of a fused network as if it were unfused.
    LayerForm("rnn", "gluon.rnn.RNN(hidden_size={weight_hh.0}, activation={activation!gate}, "
              "layout='NTC')", weights(**{k: f"_unfused.0.{v}" for k, v in _GATES.items()})),
    *by_rank("max_pool", f"nn.MaxPool#D({_WINDOW})", SPATIAL,
             fixed=CHANNELS_FIRST | {"dilation": lambda at: (1,) * at.n}),
    *by_rank("avg_pool", f"nn.AvgPool#D({_WINDOW}, count_include_pad={{include_pad!counted|True}})",
             SPATIAL, fixed=CHANNELS_FIRST),
    LayerForm("mean", "nn.GlobalAvgPool2D()", rank=4, fixed={"axis": (2, 3), "keepdims": True}),
    LayerForm("flatten", "nn.Flatten()", fixed={"start": 1}),
    LayerForm("dropout", "nn.Dropout(rate={rate})"),
    LayerForm("gelu", "nn.GELU()"), LayerForm("silu", "nn.Swish()"),
    LayerForm("leaky_relu", "nn.LeakyReLU(alpha={slope})"),
    *(LayerForm(op, f"nn.Activation(activation='{op}')") for op in ("relu", "tanh", "sigmoid")),
    LayerForm("softplus", "Softplus()"),
    LayerForm("softmax", "nn.HybridLambda(function='softmax')",
              fixed={"axis": lambda at: len(at.x.shape) - 1}),
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
