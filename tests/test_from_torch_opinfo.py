"""PyTorch's own samples of its operators, each in a module of its own: an independent judge.

Whatever is carried must be what torch computes, with its gradient. What is refused is refused by
name, and at least half of the samples of every operator here are carried.
"""

import re
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch.testing's samples need it: pip install expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
from torch import nn  # noqa: E402
from torch.utils import _pytree  # noqa: E402

from trivium.frameworks.torch.read import read  # noqa: E402
from trivium.graph import UnsupportedError  # noqa: E402
from trivium.interpret import Interpreter  # noqa: E402
from trivium.transforms.grad import pullback  # noqa: E402

FLOATING = re.findall(
    r"\S+",
    "add sub mul div pow rsub maximum minimum exp log sigmoid tanh sqrt rsqrt abs neg erf log1p "
    "clamp sum mean amax amin var std logsumexp softmax log_softmax matmul bmm addmm baddbmm "
    "permute transpose squeeze unsqueeze cat stack narrow select expand reshape view flatten split "
    "chunk unbind flip roll repeat movedim tril triu where masked_fill index_select "
    "nn.functional.relu nn.functional.gelu nn.functional.silu nn.functional.softplus "
    "nn.functional.elu nn.functional.hardtanh nn.functional.leaky_relu nn.functional.linear "
    "nn.functional.layer_norm nn.functional.group_norm nn.functional.conv2d "
    "nn.functional.max_pool2d nn.functional.avg_pool2d nn.functional.adaptive_avg_pool2d "
    "nn.functional.mse_loss nn.functional.scaled_dot_product_attention nn.functional.pad "
    "sin cos tan asin acos atan sinh cosh asinh acosh atanh atan2 exp2 log2 log10 erfc floor ceil "
    "round trunc fmod remainder isnan isinf isfinite gather cumsum argmin tile "
    "linalg.vector_norm nn.functional.prelu nn.functional.hardshrink nn.functional.softshrink "
    "nn.functional.tanhshrink nn.functional.threshold nn.functional.softmin "
    "nn.functional.normalize",
)
INTEGER = re.findall(
    r"\S+",
    "add sub mul div where eq ne lt ge sum argmax cat stack permute masked_fill floor_divide fmod "
    "remainder cumsum argmin",
)
REFUSED_MORE_OFTEN = {
    "roll",
    "gather",  # of other sizes than what it picks from
    "linalg.vector_norm",  # of the orders 0, 6, -inf
    "nn.functional.max_pool2d",
    "nn.functional.avg_pool2d",
    "nn.functional.adaptive_avg_pool2d",
}
VARIANTS = {"", "no_rounding_mode", "constant"}
CASES = [(n, torch.float64) for n in FLOATING] + [(n, torch.int64) for n in INTEGER]


class Applies(nn.Module):
    """One operator on the tensors of one sample; everything else in it is fixed."""

    def __init__(self, op, leaves, spec):
        super().__init__()
        self.op, self.leaves, self.spec = op, leaves, spec

    def forward(self, *tensors):
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, torch.Tensor) else x for x in self.leaves]
        first, args, kwargs = _pytree.tree_unflatten(leaves, self.spec)
        result = self.op(first, *args, **kwargs)
        return tuple(result) if isinstance(result, (list, tuple)) else result


def compare(op, sample):
    leaves, spec = _pytree.tree_flatten((sample.input, tuple(sample.args), dict(sample.kwargs)))
    tensors = [x.detach().clone() for x in leaves if isinstance(x, torch.Tensor)]
    module = Applies(op, leaves, spec)
    graph = read(module, *tensors, training=False).graph
    if graph.of_kind("rng"):  # dropout: the same distribution, not the same bits
        return
    inputs = [t.requires_grad_(t.is_floating_point()) for t in tensors]
    want = module(*inputs)
    want = list(want) if isinstance(want, tuple) else [want]
    arrays = [t.detach().numpy() for t in tensors]
    for g, w in zip(Interpreter(graph)(*arrays), want, strict=True):
        assert g.dtype == w.detach().numpy().dtype
        np.testing.assert_allclose(g, w.detach().numpy(), rtol=1e-9, atol=1e-12)
    floating = [w for w in want if w.requires_grad]
    if not floating:
        return
    rng = np.random.default_rng(0)
    seeds = [np.asarray(rng.normal(size=tuple(w.shape))) for w in want if w.is_floating_point()]
    pairs = zip((w for w in want if w.is_floating_point()), seeds, strict=True)
    pairs = [(w, torch.from_numpy(s)) for w, s in pairs if w.requires_grad]
    torch.autograd.backward([w for w, _ in pairs], [s for _, s in pairs])
    names = [v.name for v in graph.of_kind("data")]
    found = Interpreter(pullback(graph, names))(*arrays, *seeds)[len(want) :]
    for g, t in zip(found, inputs, strict=True):
        if t.requires_grad:
            expected = np.zeros(t.shape) if t.grad is None else t.grad.numpy()
            np.testing.assert_allclose(g, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name, dtype", CASES, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_samples_of(name, dtype):
    info = next(o for o in op_db if o.name == name and o.variant_test_name in VARIANTS)
    samples = [
        s
        for s in info.sample_inputs("cpu", dtype)
        if all(
            t.numel() for t in _pytree.tree_leaves((s.input, s.args)) if isinstance(t, torch.Tensor)
        )
    ]
    carried, refused = 0, []
    for sample in samples[:: len(samples) // 7 | 1]:  # spread; odd, as settings often alternate
        try:
            compare(info.op, sample)
            carried += 1
        except UnsupportedError as error:
            refused.append(str(error))
    assert carried and (carried >= len(refused) or name in REFUSED_MORE_OFTEN), refused
