"""MXNet's operators that are layers of a network: they own parameters, move a window, recur.

With them the table of operators is whole: take it from here.
"""

from __future__ import annotations

from typing import Any

from trivium.frameworks.mxnet.operators import HANDLERS, UNREAD, Call, operator, transpose
from trivium.graph import MODE, OPS
from trivium.shape import Size

__all__ = ["HANDLERS", "UNREAD", "Call"]


@operator("FullyConnected")
def _fully_connected(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    if call.flag("flatten", True) and x.ndim != 2:
        x = OPS["flatten"](x, start=1)  # torch and Keras would work on the last axis
    return OPS["linear"](x, weight, None if call.flag("no_bias") else bias)


@operator("Convolution", "Convolution_v1")
def _convolution(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    n = x.ndim - 2
    call.only("layout", "None", "NCW", "NCHW", "NCDHW")
    if call.sizes("kernel") != tuple(weight.shape[2:]):
        raise call.refuse(f"whose weights have shape {weight.shape} names another kernel")
    stride, pad = call.sizes("stride", ()) or (1,) * n, call.sizes("pad", ()) or (0,) * n
    dilate = call.sizes("dilate", ()) or (1,) * n
    if not len(stride) == len(pad) == len(dilate) == n:
        raise call.refuse(f"moves along {n} axes, but has {dict(call.node.attrs)}")
    return OPS["conv"](
        x, weight, None if call.flag("no_bias") else bias,
        stride=stride, padding=pad, dilation=dilate, groups=call.whole("num_group", 1),
    )  # fmt: skip


@operator("Pooling", "Pooling_v1")
def _pooling(call: Call, x: Any) -> Any:
    n = x.ndim - 2
    kind = call.word("pool_type", "max")
    call.only("layout", "None", "NCW", "NCHW", "NCDHW")
    call.only("p_value", "None")
    if kind not in ("max", "avg"):
        raise call.refuse(f"with pool_type={kind!r} is not carried")
    kernel = call.sizes("kernel", ())
    stride = call.sizes("stride", ()) or (1,) * n  # not the kernel, as elsewhere
    pad = call.sizes("pad", ()) or (0,) * n
    convention = call.word("pooling_convention", "valid")
    counts = call.flag("count_include_pad", True)
    if call.flag("global_pool"):  # the kernel and all else are ignored
        if kind == "avg":
            return OPS["mean"](x, axis=tuple(range(2, x.ndim)), keepdims=True)
        if all(isinstance(s, int) for s in x.shape[2:]):
            return OPS["max_pool"](x, kernel=x.shape[2:])  # a tie's gradient goes to the first
        flat = OPS["max"](OPS["flatten"](x, start=2), axis=2, ties="first")
        return OPS["reshape"](flat, shape=(*x.shape[:2], *(1,) * n))
    if convention not in ("valid", "full") or not len(kernel) == len(stride) == len(pad) == n:
        raise call.refuse(f"with {dict(call.node.attrs)} is not carried")
    extra = [_ceil(call, *item) if convention == "full" else 0
             for item in zip(x.shape[2:], kernel, stride, pad, strict=True)]  # fmt: skip
    complete = all(e == 0 for e in extra)
    if kind == "avg" and counts and not complete:
        # Its gradient divides by the whole window, its output by the part that is there.
        raise call.refuse(
            "counts its padding and ends in a window that is not whole: the gradient of "
            "MXNet 1.9.1 is not that of its output",
            "set count_include_pad=False",
        )
    padding = tuple((p, p + e) for p, e in zip(pad, extra, strict=True))
    if kind == "max":
        return OPS["max_pool"](x, kernel=kernel, stride=stride, padding=padding)
    return OPS["avg_pool"](x, kernel=kernel, stride=stride, padding=padding, include_pad=counts)


def _ceil(call: Call, size: Size, kernel: int, stride: int, pad: int) -> Size:
    """The padding that completes a last window where the strides leave a rest."""
    last = -((kernel - size - 2 * pad) // stride) * stride  # where the last window begins
    inside = stride <= kernel - pad or (isinstance(last, int) and last < size + pad)
    if not inside:
        raise call.refuse("with pooling_convention='full' has windows that touch no element")
    return last + kernel - size - 2 * pad


_ACTIVATIONS = {"relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "softrelu": "softplus"}


@operator("Activation")
def _activation(call: Call, x: Any) -> Any:
    kind = call.word("act_type", "")
    if kind == "softsign":
        return x / (1 + abs(x))
    if kind not in _ACTIVATIONS:
        raise call.refuse(f"with act_type={kind!r} is not carried")
    return OPS[_ACTIVATIONS[kind]](x)


@operator("LeakyReLU")
def _leaky_relu(call: Call, x: Any, gamma: Any = None) -> Any:
    kind, slope = call.word("act_type", "leaky"), call.number("slope", 0.25)
    call.asked |= {"lower_bound", "upper_bound"}  # of the random slope, rrelu

    match kind:
        case "leaky":
            return OPS["leaky_relu"](x, slope=slope)
        case "gelu":
            return OPS["gelu"](x)
        case "elu":
            return OPS["elu"](x, alpha=slope)
        case "selu":
            # It multiplies by lambda (y + alpha) where the slope is y + lambda alpha.
            raise call.refuse(
                "with act_type='selu' has in MXNet 1.9.1 a gradient that is not that of its output",
                "use elu, and multiply by the scale",
            )
        case "prelu":
            # One slope for each channel, axis 1, or one for all.
            shape = (1, -1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (-1,)
            return OPS["where"](x > 0, x, x * gamma.reshape(shape))
    raise call.refuse(f"with act_type={kind!r} is not carried")


@operator("Dropout")
def _dropout(call: Call, x: Any) -> Any:
    if call.sizes("axes", ()):
        raise call.refuse("with one mask along several axes is not carried", "leave axes out")
    always = call.word("mode", "training") == "always"
    key = call.graph.key()
    salt = sum(node.op == "dropout" for node in call.graph.nodes)  # each draws its own numbers
    training = True if always else MODE
    return OPS["dropout"](x, key, rate=float(call.number("p", 0.5)), training=training, salt=salt)


@operator("BatchNorm", "BatchNorm_v1")
def _batch_norm(call: Call, x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
    if call.flag("output_mean_var"):
        raise call.refuse("with output_mean_var is not carried")
    call.only("min_calib_range", "None")
    call.only("max_calib_range", "None")
    # With fix_gamma, the operator's default, the stored gamma is not read: it counts as 1.
    scale = None if call.flag("fix_gamma", True) or call.frozen(gamma, 1) else gamma
    frozen = call.flag("use_global_stats")
    y, new_mean, new_var = OPS["batch_norm"](
        x, scale, None if call.frozen(beta, 0) else beta, mean, var,
        training=False if frozen else MODE, axis=call.whole("axis", 1),
        momentum=round(1 - call.number("momentum", 0.9), 12),
        epsilon=float(call.number("eps", 1e-3)), unbiased=False,
    )  # fmt: skip
    if not frozen:
        for state, new in ((mean, new_mean), (var, new_var)):
            if state.kind != "state":
                raise call.refuse(f"keeps a statistic in {state!r}, which is no auxiliary state")
            if state in call.graph.updates:
                # It collects while it goes backwards, so the last application counts first.
                raise call.refuse("is applied twice", "give each application a layer of its own")
            call.graph.updates[state] = new
    return y


@operator("LayerNorm")
def _layer_norm(call: Call, x: Any, gamma: Any, beta: Any) -> Any:
    if call.flag("output_mean_var"):
        raise call.refuse("with output_mean_var is not carried")
    axis = call.whole("axis", -1) % x.ndim
    order = (*(i for i in range(x.ndim) if i != axis), axis)
    if moved := axis != x.ndim - 1:
        x = transpose(x, order)
    scale, bias = (None if call.frozen(v, n) else v for v, n in ((gamma, 1), (beta, 0)))
    y = OPS["layer_norm"](x, scale, bias, epsilon=float(call.number("eps", 1e-5)))
    return transpose(y, tuple(order.index(i) for i in range(x.ndim))) if moved else y


# -- the fused recurrent network -----------------------------------------------------------------
@operator("_rnn_param_concat")
def _flat_parameters(call: Call, *_: Any) -> Any:
    raise call.refuse("is carried only as the parameters of RNN")


@operator("_zeros", "_ones", "_full")
def _filled(call: Call) -> Any:
    shape, value = call.sizes("shape", ()), {"_zeros": 0, "_ones": 1}.get(call.node.op)
    if not shape or 0 in shape:
        raise call.refuse(f"of shape {shape} has a size that only MXNet could infer",
                          "pass the state as an input of the block")  # fmt: skip
    value = call.number("value", 0) if value is None else value
    return OPS["full"](shape=shape, value=value, dtype=call.word("dtype", "float32"))


@operator("RNN", unread=(1, 2, 3, 4))
def _rnn(call: Call, x: Any, parameters: None, state: None, *more: Any) -> Any:
    mode = call.word("mode", "")
    if mode not in ("rnn_tanh", "rnn_relu"):
        raise call.refuse(f"with mode={mode!r} is not carried", "rnn_tanh and rnn_relu are")
    if call.whole("num_layers") != 1 or call.flag("bidirectional") or more:
        raise call.refuse("is carried with one layer and one direction only",
                          "stack several layers of one")  # fmt: skip
    if call.flag("use_sequence_length") or call.whole("projection_size") is not None:
        raise call.refuse("with sequence lengths or a projection is not carried")
    call.asked |= {"p", "state_outputs", "lstm_state_clip_min", "lstm_state_clip_max",
                   "lstm_state_clip_nan"}  # fmt: skip  # p is dropout between layers: there is one
    begin = call.symbol.nodes[call.node.inputs[2][0]]
    if begin.op != "_zeros":
        raise call.refuse(f"begins with {begin}, not with zeros", "call it without states")
    weights = _parameters(call)
    hidden = call.whole("state_size")
    if [w.shape for w in weights] != [(hidden, x.shape[2]), (hidden, hidden), (hidden,), (hidden,)]:
        raise call.refuse(f"has parameters of shapes {[w.shape for w in weights]}")
    swap = (1, 0, 2)  # time comes first there
    activation = mode.removeprefix("rnn_")
    outputs, last = OPS["rnn"](transpose(x, swap), *weights, activation=activation)
    return transpose(outputs, swap), OPS["expand_dims"](last, axis=0)


def _parameters(call: Call) -> list[Any]:
    """i2h_weight, h2h_weight, i2h_bias, h2h_bias: RNN reads them as one vector, in this order."""
    nodes = call.symbol.nodes
    joined = nodes[call.node.inputs[1][0]]
    flat = [nodes[i] for i, _ in joined.inputs]
    joins = joined.op in ("_rnn_param_concat", "Concat") and len(flat) == 4
    if not joins or any((n.op, n.attrs.get("shape")) != ("Reshape", "-1") for n in flat):
        raise call.refuse("has its parameters in one vector", "use gluon.rnn.RNN")
    return [call.variable(nodes[n.inputs[0][0]]) for n in flat]
