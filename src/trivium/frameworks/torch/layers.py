"""Our ops as torch.nn layers."""

from __future__ import annotations

from trivium.frameworks.layer import CHANNELS_FIRST, SPATIAL, LayerForm, by_rank, weights
from trivium.graph import MODE, Node

RANKS = {1: (2, 3), 2: (4,), 3: (5,)}
STATISTICS = weights("scale", "bias", "running_mean", "running_var")


def _affine(node: Node) -> bool:
    """With scale and offset or with neither, as torch's ``affine`` says it."""
    return (node.inputs[1] is None) == (node.inputs[2] is None)


def _two_biases(node: Node) -> bool:
    """Both, or none; a second one that ours lacks stays at zero."""
    ih, hh = (*node.inputs, None, None)[3:5]
    return ih is not None or hh is None


def _batch_norms(name: str, unbiased: bool) -> list[LayerForm]:
    line = "(num_features={x.1}, eps={epsilon|1e-5}, momentum={momentum|0.1}"
    partly = ", scale={scale!there|True}, offset={bias!there|True})"
    fixed = {"axis": 1, "training": MODE, "unbiased": unbiased}
    whole = f"{'nn.' if unbiased else ''}{name}"
    return [
        *by_rank("batch_norm", f"{whole}#d{line}, affine={{scale!there|True}})", RANKS,
                 weights=STATISTICS, fixed=fixed, when=_affine),
        *by_rank("batch_norm", f"Partial{name}#d{line}{partly}", RANKS,
                 weights=STATISTICS, fixed=fixed, when=lambda node: not _affine(node)),
    ]  # fmt: skip


def _plain(**names: str) -> list[LayerForm]:
    return [LayerForm(op, f"nn.{name}()") for op, name in names.items()]


_SCALED = "nn.LayerNorm(normalized_shape={scale.shape!square}, eps={epsilon|1e-5}, "
_WINDOW = ("kernel_size={kernel!each}, stride={stride!steps|None}, "
           "padding={padding!symmetric|0}, ")  # fmt: skip
IMAGES = {2: (4,)}

FORMS = [
    *by_rank("conv", "nn.Conv#d(in_channels={w.in}, out_channels={w.0}, "
             "kernel_size={w.kernel!each}, stride={stride!each|1}, padding={padding!symmetric|0}, "
             "dilation={dilation!each|1}, groups={groups|1}, bias={b!there|True})",
             SPATIAL, weights=weights("w", "b"), fixed=CHANNELS_FIRST),
    LayerForm("linear", "nn.Linear(in_features={weight.1}, out_features={weight.0}, "
              "bias={bias!there|True})", weights("weight", "bias")),
    *_batch_norms("BatchNorm", unbiased=True), *_batch_norms("BiasedBatchNorm", unbiased=False),
    LayerForm("layer_norm", _SCALED + "bias={bias!there|True})", weights("scale", "bias"),
              {"axes": lambda at: len(at.arrays["scale"].shape)},
              when=lambda node: len(node.inputs) > 1 and node.inputs[1] is not None),
    LayerForm("embedding", "nn.Embedding(num_embeddings={weight.0}, embedding_dim={weight.1})",
              weights("weight")),
    LayerForm("rnn", "nn.RNN(input_size={weight_ih.1}, hidden_size={weight_ih.0}, "
              "batch_first=True, nonlinearity={activation!gate|'tanh'}, bias={bias_ih!there|True})",
              weights(**{n: f"{n}_l0" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}),
              when=_two_biases),
    *by_rank("max_pool", f"nn.MaxPool#d({_WINDOW}dilation={{dilation!each|1}})", IMAGES,
             fixed=CHANNELS_FIRST),
    *by_rank("avg_pool", f"nn.AvgPool#d({_WINDOW}count_include_pad={{include_pad!counted|True}})",
             IMAGES, fixed=CHANNELS_FIRST),
    LayerForm("flatten", "nn.Flatten()", fixed={"start": 1}),
    LayerForm("dropout", "nn.Dropout(p={rate})"),
    LayerForm("softmax", "nn.Softmax(dim={axis})"),
    LayerForm("gelu", "nn.GELU(approximate={approximate|'none'})"),
    LayerForm("leaky_relu", "nn.LeakyReLU(negative_slope={slope|0.01})"),
    *_plain(relu="ReLU", tanh="Tanh", sigmoid="Sigmoid", silu="SiLU", softplus="Softplus",
            relu6="ReLU6", hardswish="Hardswish", hardsigmoid="Hardsigmoid", selu="SELU"),
    LayerForm("elu", "nn.ELU(alpha={alpha|1.0})"), LayerForm("celu", "nn.CELU(alpha={alpha|1.0})"),
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
