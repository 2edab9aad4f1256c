"""Our ops as torch.nn layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.frameworks.layer import LayerForm, Weight, given, square
from trivium.graph import MODE, Node

_WEIGHT, _BIAS = Weight("w", "weight", "weight"), Weight("b", "bias", "bias")


def symmetric(padding: Any) -> Any:
    """(low, high) pairs as torch's one number per axis; None when low and high differ."""
    return square(tuple(a for a, _ in padding)) if all(a == b for a, b in padding) else None


def _conv(rank: int) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        x, w, b = (*node.inputs, None)[:3]
        a = node.attrs
        padding = symmetric(a["padding"])
        if (
            x is None
            or w is None
            or len(x.shape) != rank + 2
            or padding is None
            or a["layout"][1] != "C"
        ):
            return None
        return {
            "in_channels": w.shape[1] * a["groups"],
            "out_channels": w.shape[0],
            "kernel_size": square(w.shape[2:]),
        } | given(
            stride=(square(a["stride"]), 1), padding=(padding, 0),
            dilation=(square(a["dilation"]), 1), groups=(a["groups"], 1),
            bias=(b is not None, True),
        )  # fmt: skip

    return LayerForm("conv", f"nn.Conv{rank}d", write, weights=(_WEIGHT, _BIAS))


def _linear(node: Node) -> Mapping[str, Any]:
    w = node.inputs[1]
    assert w is not None
    bias = len(node.inputs) > 2 and node.inputs[2] is not None
    return {"in_features": w.shape[1], "out_features": w.shape[0]} | given(bias=(bias, True))


def _batch_norm(name: str, ranks: tuple[int, ...], unbiased: bool, whole: bool) -> LayerForm:
    """``whole``: with scale and offset or with neither, as torch's ``affine`` says it."""

    def write(node: Node) -> Mapping[str, Any] | None:
        x, scale, bias = node.inputs[:3]
        a = node.attrs
        if (
            x is None
            or len(x.shape) not in ranks
            or a["axis"] != 1
            or a["training"] is not MODE
            or a["unbiased"] != unbiased
            or whole != ((scale is None) == (bias is None))
        ):
            return None
        arguments = {"num_features": x.shape[1]} | given(
            eps=(a["epsilon"], 1e-5), momentum=(a["momentum"], 0.1)
        )
        if whole:
            return arguments | given(affine=(scale is not None, True))
        return arguments | given(scale=(scale is not None, True), offset=(bias is not None, True))

    names = dict(
        scale="weight", bias="bias", running_mean="running_mean", running_var="running_var"
    )
    return LayerForm(
        "batch_norm", name, write, weights=tuple(Weight(k, v, v) for k, v in names.items())
    )


def _layer_norm(node: Node) -> Mapping[str, Any] | None:
    x, scale, bias = (*node.inputs, None, None)[:3]
    if x is None or scale is None:
        return None
    shape = x.shape[len(x.shape) - node.attrs["axes"] :]
    return {"normalized_shape": shape[0] if len(shape) == 1 else shape} | given(
        eps=(node.attrs["epsilon"], 1e-5), bias=(bias is not None, True)
    )


def _embedding(node: Node) -> Mapping[str, Any] | None:
    w = node.inputs[0]
    return None if w is None else {"num_embeddings": w.shape[0], "embedding_dim": w.shape[1]}


def _rnn(node: Node) -> Mapping[str, Any] | None:
    w, bias = node.inputs[1], (*node.inputs, None, None)[3:5]
    if w is None or bias[0] is None:
        return None
    arguments = {"input_size": w.shape[1], "hidden_size": w.shape[0], "batch_first": True}
    return arguments | given(nonlinearity=(node.attrs["activation"], "tanh"))


def _pool(name: str, op: str) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        a = node.attrs
        padding = symmetric(a["padding"])
        if len(a["kernel"]) != 2 or padding is None or a["layout"] != "NCHW":
            return None
        arguments = {"kernel_size": square(a["kernel"])} | given(
            stride=(square(a["stride"]), square(a["kernel"])), padding=(padding, 0)
        )
        if op == "max_pool":
            return arguments | given(dilation=(square(a["dilation"]), 1))
        counted = a["include_pad"] or padding == 0
        return arguments | given(count_include_pad=(counted, True))

    return LayerForm(op, name, write)


def _plain(op: str, name: str) -> LayerForm:
    return LayerForm(op, name, lambda node: {})


RANKS = {1: (2, 3), 2: (4,), 3: (5,)}
WHOLE = ("nn.", "Biased")

FORMS = [
    *(_conv(n) for n in (1, 2, 3)),
    LayerForm("linear", "nn.Linear", _linear,
              weights=(Weight("weight", "weight", "weight"), Weight("bias", "bias", "bias"))),
    *(_batch_norm(f"{name}BatchNorm{n}d", ranks, not name.endswith("Biased"), name in WHOLE)
      for name in (*WHOLE, "Partial", "PartialBiased") for n, ranks in RANKS.items()),
    LayerForm("layer_norm", "nn.LayerNorm", _layer_norm,
              weights=(Weight("scale", "weight", "weight"), Weight("bias", "bias", "bias"))),
    LayerForm("embedding", "nn.Embedding", _embedding,
              weights=(Weight("weight", "weight", "weight"),)),
    LayerForm("rnn", "nn.RNN", _rnn, weights=tuple(
        Weight(n, n, f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))),
    _pool("nn.MaxPool2d", "max_pool"),
    _pool("nn.AvgPool2d", "avg_pool"),
    LayerForm("flatten", "nn.Flatten", lambda node: {} if node.attrs["start"] == 1 else None),
    LayerForm("dropout", "nn.Dropout",
              lambda node: {"p": node.attrs["rate"]} if node.attrs["training"] is MODE else None),
    LayerForm("softmax", "nn.Softmax", lambda node: {"dim": node.attrs["axis"]}),
    LayerForm("gelu", "nn.GELU",
              lambda node: given(approximate=(node.attrs["approximate"], "none"))),
    LayerForm("leaky_relu", "nn.LeakyReLU",
              lambda node: given(negative_slope=(node.attrs["slope"], 0.01))),
    _plain("relu", "nn.ReLU"), _plain("tanh", "nn.Tanh"), _plain("sigmoid", "nn.Sigmoid"),
    _plain("silu", "nn.SiLU"), _plain("softplus", "nn.Softplus"), _plain("relu6", "nn.ReLU6"),
    _plain("hardswish", "nn.Hardswish"), _plain("hardsigmoid", "nn.Hardsigmoid"),
    _plain("selu", "nn.SELU"),
    *(LayerForm(op, name, lambda node: given(alpha=(node.attrs["alpha"], 1.0)))
      for op, name in (("elu", "nn.ELU"), ("celu", "nn.CELU"))),
]  # fmt: skip

BIASED = '''
class BiasedBatchNorm{n}d(nn.BatchNorm{n}d):
    """Its running variance takes the batch's as it is, not times n / (n - 1) as PyTorch does."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
'''
EACH = '''
def {name}_each(x, dim, keepdim=False):
    """x.a{name}(dim), whose gradient equal {plural} get in full each: PyTorch's own is shared."""
    top = x.detach().a{name}(dim, keepdim=True)
    gap = x - top  # NaN where both are infinite: no gradient there
    y = top + torch.where(gap == 0, gap, 0).sum(dim, keepdim=True)
    return y if keepdim else y.squeeze(dim)
'''
PARTIAL = '''
class Partial{name}{n}d({base}{n}d):
    """With a scale alone or an offset alone: ``affine`` in PyTorch is both or neither."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1, scale=True, offset=True):
        super().__init__(num_features, eps, momentum)
        self.weight = self.weight if scale else None
        self.bias = self.bias if offset else None
'''
HELPERS = {f"BiasedBatchNorm{n}d": BIASED.format(n=n) for n in RANKS}
for _name, _base in (("BatchNorm", "nn.BatchNorm"), ("BiasedBatchNorm", "BiasedBatchNorm")):
    HELPERS |= {f"Partial{_name}{n}d": PARTIAL.format(name=_name, base=_base, n=n) for n in RANKS}
HELPERS |= {
    "max_each": EACH.format(name="max", plural="maxima"),
    "min_each": EACH.format(name="min", plural="minima"),
}
