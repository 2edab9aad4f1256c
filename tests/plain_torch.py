"""Ops said once more in plain torch, for those whose declaration names no torch form of one line.

Each function takes the op's arrays in order, as tensors or None, and its attributes by name.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def _first(x: Any, layout: str) -> Any:
    return x if layout[1] == "C" else x.movedim(-1, 1)


def _back(x: Any, layout: str) -> Any:
    return x if layout[1] == "C" else x.movedim(1, -1)


def _padded(x: Any, padding: Any, value: float = 0.0) -> Any:
    return F.pad(x, [p for pair in reversed(padding) for p in pair], value=value)


def _transposed(linear: Callable[[Any], Any], shape: Any, g: Any) -> Any:
    """The transpose of a linear function of an array of this shape, applied to g."""
    x = torch.zeros(shape, dtype=g.dtype, requires_grad=True)
    return torch.autograd.grad(linear(x), x, g, create_graph=True)[0]


def conv(x: Any, w: Any, b: Any, *, stride: Any, padding: Any, layout: str, **attrs: Any) -> Any:
    f = {1: F.conv1d, 2: F.conv2d}[len(stride)]
    return _back(f(_padded(_first(x, layout), padding), w, b, stride, 0, **attrs), layout)


def conv_input_grad(g: Any, w: Any, *, size: Any, **attrs: Any) -> Any:
    channels = w.shape[1] * attrs["groups"]
    shape = (channels, *size) if attrs["layout"][1] == "C" else (*size, channels)
    return _transposed(lambda x: conv(x, w, None, **attrs), (g.shape[0], *shape), g)


def conv_weight_grad(x: Any, g: Any, *, kernel: Any, **attrs: Any) -> Any:
    c = attrs["layout"].index("C")
    shape = (g.shape[c], x.shape[c] // attrs["groups"], *kernel)
    return _transposed(lambda w: conv(x, w, None, **attrs), shape, g)


def windows(x: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any, value: float = 0.0,
            layout: str) -> Any:  # fmt: skip
    x = _padded(_first(x, layout), padding, value)
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    return x if layout[1] == "C" else x.movedim(1, 1 + len(kernel))


def fold(g: Any, *, size: Any, layout: str, **attrs: Any) -> Any:
    shape = (*g.shape[:2], *size) if layout[1] == "C" else (g.shape[0], *size, g.shape[-3])
    return _transposed(lambda x: windows(x, layout=layout, **attrs), shape, g)


def max_pool(x: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any, layout: str) -> Any:
    x = _padded(_first(x, layout), padding, -torch.inf)
    return _back(F.max_pool2d(x, kernel, stride, 0, dilation), layout)


def avg_pool(
    x: Any, *, kernel: Any, stride: Any, padding: Any, include_pad: bool, layout: str
) -> Any:
    def total(x: Any) -> Any:
        return F.avg_pool2d(_padded(x, padding), kernel, stride, divisor_override=1)

    x = _first(x, layout)
    counted = torch.ones_like(x)
    count = kernel[0] * kernel[1] if include_pad else total(counted)
    return _back(total(x) / count, layout)


def batch_norm(x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, training: bool, axis: int,
               momentum: float, epsilon: float, unbiased: bool) -> Any:  # fmt: skip
    x = x.movedim(axis, 1)
    new_mean, new_var = mean.detach().clone(), var.detach().clone()
    if training:  # torch writes into the statistics
        y = F.batch_norm(x, new_mean, new_var, scale, bias, True, momentum, epsilon)
        if not unbiased:
            batch = x.detach().var([a for a in range(x.ndim) if a != 1], correction=0)
            new_var = (1 - momentum) * var.detach() + momentum * batch
    else:  # and derives nothing by them
        y = x.movedim(1, -1).sub(mean).div((var + epsilon).sqrt()).mul(scale).add(bias)
        y = y.movedim(-1, 1)
    return y.movedim(1, axis), new_mean, new_var


def layer_norm(x: Any, scale: Any, bias: Any, *, axes: int, epsilon: float) -> Any:
    return F.layer_norm(x, x.shape[-axes:], scale, bias, epsilon)


def rnn(x: Any, w: Any, u: Any, b: Any, c: Any, *, activation: str) -> Any:
    cell = torch.nn.RNN(x.shape[2], w.shape[0], nonlinearity=activation, batch_first=True)
    zero = torch.zeros(w.shape[0], dtype=x.dtype)
    weights = dict(weight_ih_l0=w, weight_hh_l0=u, bias_ih_l0=zero if b is None else b,
                   bias_hh_l0=zero if c is None else c)  # fmt: skip
    outputs, last = torch.func.functional_call(cell, weights, (x,))
    return outputs, last[0]


def cross_entropy(logits: Any, labels: Any, *, reduction: str, ignore_index: int | None) -> Any:
    ignored = -100 if ignore_index is None else ignore_index  # the cases' labels are classes
    return F.cross_entropy(logits.movedim(-1, 1), labels, reduction=reduction, ignore_index=ignored)


def take(x: Any, indices: Any, *, axis: int) -> Any:
    return x[(slice(None),) * axis + (indices,)]


def take_grad(g: Any, indices: Any, *, axis: int, size: int) -> Any:
    shape = (*g.shape[:axis], size, *g.shape[axis + indices.ndim :])
    return _transposed(lambda x: take(x, indices, axis=axis), shape, g)


def slice_axis(x: Any, *, axis: int, start: int, stop: int, step: int) -> Any:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def pad(x: Any, *, low: Any, high: Any, interior: Any, value: float) -> Any:
    for axis, i in enumerate(interior):
        gaps = torch.full((*x.shape[:axis], x.shape[axis], i, *x.shape[axis + 1 :]), value).to(x)
        x = torch.cat([x.unsqueeze(axis + 1), gaps], axis + 1).flatten(axis, axis + 1)
        x = x.narrow(axis, 0, x.shape[axis] - i)
    return _padded(x, list(zip(low, high, strict=True)), value)


def zeros_like(x: Any) -> Any:
    return torch.zeros_like(x)


def ones_like(x: Any) -> Any:
    return torch.ones_like(x)


def _stepped(optimizer: Any, p: Any, g: Any, lr: Any, state: dict[str, Any], **options: Any) -> Any:
    """The parameter after one step of torch's own optimizer, and its state."""
    p = p.detach().clone().requires_grad_()
    p.grad = g.detach().clone()
    made = optimizer([p], lr=lr.item(), **options)
    made.state[p].update(state)
    made.step()
    return p.detach(), made.state[p]


def sgd_update(p: Any, g: Any, velocity: Any, lr: Any, **options: Any) -> Any:
    state = {} if velocity is None else {"momentum_buffer": velocity.detach().clone()}
    p, state = _stepped(torch.optim.SGD, p, g, lr, state, **options)
    return p if velocity is None else (p, state["momentum_buffer"])


def adam_update(p: Any, g: Any, m: Any, v: Any, count: Any, lr: Any, *, beta1: float, beta2: float,
                epsilon: float, decoupled: bool, weight_decay: float) -> Any:  # fmt: skip
    held = {"step": count - 1, "exp_avg": m, "exp_avg_sq": v}
    p, state = _stepped(
        torch.optim.AdamW if decoupled else torch.optim.Adam, p, g, lr,
        {k: t.detach().clone() for k, t in held.items()},
        betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay,
    )  # fmt: skip
    return p, state["exp_avg"], state["exp_avg_sq"]


def one_hot(indices: Any, *, classes: int, dtype: Any) -> Any:
    """F.one_hot, in the dtype that is asked for."""
    return F.one_hot(indices, classes).to(dtype)


def select(x: Any, *, axis: int, index: int) -> Any:
    return x.select(axis, index)


def where(condition: Any, x: Any, y: Any) -> Any:
    return torch.where(condition, x, y)


def constant(*, value: Any) -> Any:
    return torch.tensor(value)
