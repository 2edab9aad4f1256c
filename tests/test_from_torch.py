"""PyTorch -> Graph: the Graph on NumPy in float64 against the module itself in double."""

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import trivium as tv  # noqa: E402
from trivium import dtype as dt  # noqa: E402
from trivium.frameworks.torch.read import read  # noqa: E402
from trivium.graph import MODE, UnsupportedError  # noqa: E402
from trivium.graph.text import parse  # noqa: E402
from trivium.interpret import Interpreter  # noqa: E402
from trivium.transforms.grad import pullback  # noqa: E402
from trivium.transforms.replay import specialize  # noqa: E402

torch.set_num_threads(1)


class Does(nn.Module):
    """A module that does ``function(self, *inputs)`` with the given children and tensors."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def tuples(result):
    return list(result) if isinstance(result, (tuple, list)) else [result]


def in_double(module):
    module = copy.deepcopy(module)
    for p in module.parameters():  # deepcopy drops the graph, not this
        p.grad = None
    return module.double()


def arguments(graph, model, inputs):
    """The arrays for a Graph's inputs, in double."""
    data, held = iter(inputs), dict(model.named_parameters("param", "state"))
    for v in graph.inputs:
        if v.kind == "data":
            array = np.asarray(next(data))
        elif v.kind == "rng":
            array = np.array([1, 2], np.uint64)
        else:
            array = np.asarray(held[v.name].data)
        yield array.astype(np.float64) if v.dtype.is_floating else array


def agree(
    module, *examples, batches=(1, 3, 5), modes=(False, True), gradients=True, tolerance=1e-9
):
    """Read the module once; it is the same at these batch sizes, in these modes, with gradients."""
    model = read(module, *examples)
    graph = model.graph
    assert parse(str(graph)).same_as(graph)
    for mode in modes:
        for batch in batches:
            inputs = [
                resized(e, batch, v.shape, seed)
                for seed, (e, v) in enumerate(zip(examples, graph.of_kind("data"), strict=True))
            ]
            source = in_double(module)
            if source.training != mode:
                source.train(mode)
            theirs = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
            want = tuples(source(*(t.clone() if t.is_floating_point() else t for t in theirs)))
            ours = list(arguments(graph, model, [x.numpy() for x in inputs]))
            got = Interpreter(graph, floating=dt.float64, training=mode)(*ours)
            for w, g in zip(want, got[: len(graph.outputs)], strict=True):
                np.testing.assert_allclose(g, w.detach().numpy(), rtol=tolerance, atol=tolerance)
            states = dict(source.named_buffers())
            for state, new in zip(graph.updates, got[len(want) :], strict=True):
                np.testing.assert_allclose(new, states[state.name].numpy(), rtol=tolerance)
            if gradients:
                same_gradients(graph, source, theirs, want, ours, mode, tolerance)
    return model


def resized(example, batch, shape, seed):
    """An example with another batch; still what kind of numbers it was."""
    if not shape or isinstance(shape[0], int):
        return example
    rng = np.random.default_rng(seed + 17 * batch)
    new = (batch, *example.shape[1:])
    if example.is_floating_point():
        return torch.from_numpy(rng.normal(size=new).astype(np.float32))
    pick = rng.integers(0, example.numel(), size=int(np.prod(new)))
    return example.reshape(-1)[torch.from_numpy(pick)].reshape(new)


def same_gradients(graph, source, theirs, want, ours, mode, tolerance):
    wanted = [(w, i) for i, w in enumerate(want) if w.is_floating_point()]
    cotangents = [
        torch.from_numpy(np.random.default_rng(i).normal(size=tuple(w.shape))) for w, i in wanted
    ]
    torch.autograd.backward(
        [w for w, _ in wanted if w.requires_grad],
        [c for c, (w, _) in zip(cotangents, wanted, strict=True) if w.requires_grad],
    )
    tensors = dict(source.named_parameters())
    tensors |= {n.removesuffix("_l0"): p for n, p in source.named_parameters()}
    data = [v.name for v in graph.of_kind("data")]
    tensors |= dict(zip(data, theirs, strict=True))
    floating = [v for v in graph.of_kind("data") if v.dtype.is_floating]
    names = [v.name for v in (*graph.trained(), *floating)]
    back = pullback(specialize(graph, training=mode), names)
    results = Interpreter(back, floating=dt.float64)(*ours, *(c.numpy() for c in cotangents))
    slopes = results[len(want) : len(want) + len(names)]  # then what states become
    for name, g in zip(names, slopes, strict=True):
        t = tensors[name].grad
        expected = np.zeros(tensors[name].shape) if t is None else t.numpy()
        np.testing.assert_allclose(g, expected, rtol=tolerance, atol=tolerance, err_msg=name)


# -- layers ----------------------------------------------------------------------------------------
LAYERS = {
    "conv": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        (3, 4, 9, 8),
    ),
    "conv same": (
        nn.Conv2d(3, 5, (4, 2), padding="same", dilation=(1, 3), bias=False),
        (2, 3, 9, 8),
    ),
    "conv valid": (nn.Conv1d(3, 5, 4, padding="valid"), (2, 3, 9)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 4, 5)),
    "linear": (nn.Linear(5, 7), (3, 4, 5)),
    "linear no bias": (nn.Linear(5, 7, bias=False), (3, 5)),
    "max_pool": (nn.MaxPool2d(3, stride=2, padding=1), (2, 3, 8, 7)),
    "max_pool ceil": (nn.MaxPool2d((3, 2), stride=2, padding=(1, 0), ceil_mode=True), (2, 3, 8, 9)),
    # 5 = 2 windows of 2 at stride 3 and one that would begin in the padding: torch drops it
    "max_pool ceil drops": (nn.MaxPool1d(2, stride=3, padding=1, ceil_mode=True), (2, 3, 5)),
    "max_pool dilated": (nn.MaxPool1d(2, stride=1, dilation=3), (2, 3, 9)),
    "avg_pool": (nn.AvgPool2d(3, stride=2, padding=1), (2, 3, 8, 7)),
    "avg_pool uncounted": (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), (2, 3, 8, 7)),
    "avg_pool ceil": (nn.AvgPool2d(3, stride=2, ceil_mode=True), (2, 3, 8, 7)),
    "avg_pool ceil uncounted": (
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        (2, 3, 8, 7),
    ),
    "adaptive 1": (nn.AdaptiveAvgPool2d(1), (2, 3, 5, 7)),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 9, 8)),
    "adaptive max": (nn.AdaptiveMaxPool2d((3, 1)), (2, 3, 9, 8)),
    "batch_norm": (nn.BatchNorm2d(3, eps=1e-3, momentum=0.3), (4, 3, 2, 5)),
    "batch_norm plain": (nn.BatchNorm2d(3, affine=False), (4, 3, 2, 5)),
    "batch_norm untracked": (nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 2, 5)),
    "group_norm": (nn.GroupNorm(2, 6), (3, 6, 4, 5)),
    "instance_norm": (nn.InstanceNorm2d(3, affine=True), (2, 3, 4, 5)),
    "layer_norm": (nn.LayerNorm((4, 5), eps=1e-3), (3, 4, 5)),
    "layer_norm plain": (nn.LayerNorm(5, elementwise_affine=False), (3, 4, 5)),
    "rms_norm": (nn.RMSNorm(5, eps=1e-4), (3, 4, 5)),
    "flatten": (nn.Flatten(), (3, 4, 5)),
    "flatten part": (nn.Flatten(1, 2), (3, 4, 5, 6)),
    "unflatten": (nn.Flatten(0, 1), (3, 4, 5)),
    "softmax": (nn.Softmax(1), (3, 4, 5)),
    "log_softmax": (nn.LogSoftmax(-1), (3, 4, 5)),
    "pad": (nn.ZeroPad2d((1, 2, 0, 3)), (2, 3, 4, 5)),
    "pixel_shuffle": (nn.PixelShuffle(2), (2, 12, 3, 5)),
    "rnn": (nn.RNN(5, 4, batch_first=True), (3, 6, 5)),
    "rnn relu": (nn.RNN(5, 4, nonlinearity="relu", bias=False, batch_first=True), (3, 6, 5)),
    "rnn layers": (nn.RNN(5, 4, num_layers=2, batch_first=True), (3, 6, 5)),
    "prelu": (nn.PReLU(4), (3, 4, 5)),
    "prelu one": (nn.PReLU(), (3, 4, 5)),
    "relu6": (nn.ReLU6(), (3, 40)),
    "hardtanh": (nn.Hardtanh(-0.3, 0.7), (3, 40)),
    "softplus": (nn.Softplus(beta=2, threshold=1.5), (3, 40)),
    "leaky_relu": (nn.LeakyReLU(0.2), (3, 4)),
    "elu": (nn.ELU(0.7), (3, 4)),
    "gelu tanh": (nn.GELU("tanh"), (3, 4)),
    "glu": (nn.GLU(1), (3, 6, 5)),
} | {
    name.__name__: (name(), (3, 4))
    for name in (
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Tanh,
        nn.Mish,
        nn.SELU,
        nn.CELU,
        nn.LogSigmoid,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Softsign,
        nn.Tanhshrink,
        nn.Identity,
    )
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_same_in_both_modes_at_every_batch(name):
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    batches = (3, 5) if name == "batch_norm untracked" else (1, 3, 5)
    model = tolerance = (
        1e-6 if name == "Hardsigmoid" else 1e-9
    )  # torch's own constant 1/6 is a float32
    model = agree(layer, normal(*shape), batches=batches, tolerance=tolerance)
    names = {n for n in layer.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(model.source_names.values()) == names
    ours = {n for n, _ in model.named_parameters("param", "state")}
    assert ours == set(model.source_names)
    single = "weight_ih_l1" not in names  # an RNN of one layer needs no number
    assert ours == {n.removesuffix("_l0") if single else n for n in names}


def test_softplus_is_exact_on_both_sides_of_its_threshold():
    x = torch.linspace(-30, 30, 41).reshape(1, 41)
    layer = nn.Softplus()
    (got,) = read(layer, x.repeat(3, 1)).graph.outputs
    assert got.node.op == "softplus"
    agree(nn.Softplus(threshold=3), x.repeat(3, 1), batches=(2,))
    ours = Interpreter(read(layer, x.repeat(3, 1)).graph)(x.numpy())[0]
    np.testing.assert_array_equal(ours[0, -8:], layer(x).numpy()[0, -8:])


# -- functions -------------------------------------------------------------------------------------
FUNCTIONS = {
    "add alpha": lambda m, x, y: torch.add(x, y, alpha=3) - torch.sub(y, x, alpha=0.5),
    "scalars": lambda m, x, y: 2 - x * 3 + (1 / (y * y + 1)) ** 1.5 - (x + 4) / 2,
    "powers": lambda m, x, y: (
        x**2 + (x * x + 1) ** 0.5 + torch.rsqrt(y * y + 1) + torch.square(y) ** 3
    ),
    "exp": lambda m, x, y: (
        torch.exp(x) + torch.log(y.abs() + 1) + torch.sqrt(x * x + 1) + torch.erf(-y)
    ),
    "clamp": lambda m, x, y: x.clamp(-0.5, 0.7) + y.clamp(min=0.1) + x.clamp(max=0.3),
    "extrema": lambda m, x, y: torch.maximum(x, y) - torch.minimum(x, y + 1) + torch.max(x, y),
    "sum": lambda m, x, y: (
        x.sum(),
        x.sum(1),
        x.sum((0, 2), keepdim=True),
        y.mean(),
        y.mean(-1, keepdim=True),
    ),
    "amax": lambda m, x, y: (
        x.amax(1),
        x.amin((1, 2), keepdim=True),
        x.max(),
        x.max(1)[0],
        x.logsumexp(1),
    ),
    "positions": lambda m, x, y: (
        x.argmax(1),
        x.max(2)[1],
        x.max(2).values,
        x.argmax(1, keepdim=True),
    ),
    "var": lambda m, x, y: (x.var(1), x.std((1, 2), unbiased=False, keepdim=True)),
    "integers": lambda m, x, y: (
        (x > 0).sum(),
        (x > 0).to(x.dtype).mean(1),
        (x > y).to(x.dtype) * 2,
    ),
    "bools": lambda m, x, y: (x > 0) & (y < 1) | ~(x >= y) ^ (x != 0),
    "where": lambda m, x, y: torch.where(x > y, x, 0.0) + x.masked_fill(y > 0, -3.0),
    "view": lambda m, x, y: (
        x.view(x.size(0), -1),
        x.reshape(-1, 2),
        x.view(x.shape[0] * 5, 4),
        x.flatten(0, 1),
    ),
    "order": lambda m, x, y: (x.permute(2, 0, 1), x.transpose(1, -1), x.mT, x.movedim(0, 2)),
    "new axes": lambda m, x, y: (
        x.unsqueeze(1),
        x[:, None, ..., None],
        x[:, :1].squeeze(1),
        x.squeeze(1),
    ),
    "join": lambda m, x, y: (torch.cat([x, y], 1), torch.stack([x, y, x], -1)),
    "cut": lambda m, x, y: (
        x[:, 1:3],
        x[:, -2:],
        x[:, ::2],
        x[..., 1],
        x[:, -1],
        x.narrow(1, 1, 3),
        x[:, :99],
    ),
    "split": lambda m, x, y: (*x.split(2, 1), *y.chunk(2, 2), *x.split([1, 4], 1), *x.unbind(1)),
    "repeat": lambda m, x, y: (
        x.repeat(1, 2, 3),
        x.repeat_interleave(2, 1),
        x[:, :1].expand(-1, 3, -1),
    ),
    "flip": lambda m, x, y: (x.flip(1), x.roll(2, 1), x.roll((1, -1), (1, 2))),
    "matmul": lambda m, x, y: (x @ y.mT, torch.bmm(x.mT, y), torch.einsum("bij,bkj->bik", x, y)),
    "addmm": lambda m, x, y: torch.addmm(x[0, :, :1], x[0], y[0].t(), beta=0.5, alpha=2),
    "triangle": lambda m, x, y: (x.tril(), y.triu(1), x @ x.new_ones(4, 4).tril(-1)),
    "arange": lambda m, x, y: (
        x * torch.arange(4) + torch.arange(x.shape[0])[:, None, None] + torch.zeros_like(y)
    ),
    "sizes": lambda m, x, y: (
        torch.ones(x.shape[0], 3) * (x.shape[0] * 2) + torch.full((x.shape[0], 1), 1.5)
    ),
    "detach": lambda m, x, y: x * y.detach() + x.clone().contiguous(),
    "index": lambda m, x, y: (
        x[:, torch.tensor([3, 0, 0])],
        x.index_select(2, torch.tensor([1, 1, 2])),
    ),
    "softmax dtype": lambda m, x, y: F.softmax(x, 1, dtype=torch.float64).to(x.dtype),
    "mse": lambda m, x, y: (
        F.mse_loss(x, y),
        F.mse_loss(x, y, reduction="none"),
        F.l1_loss(x, y, reduction="sum"),
    ),
    "bce": lambda m, x, y: F.binary_cross_entropy_with_logits(x, torch.sigmoid(y)),
    "in place": lambda m, x, y: (
        (x * 1).add_(y).mul_(2).relu_() + y.clone().fill_(3) + (x + y).clamp_(min=0.2)
    ),
    "attention": lambda m, x, y: F.scaled_dot_product_attention(x, y, x + y),
    "attention causal": lambda m, x, y: F.scaled_dot_product_attention(
        x, y, x, is_causal=True, scale=0.3
    ),
    "attention mask": lambda m, x, y: (
        F.scaled_dot_product_attention(
            x, y, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril(1)
        )
        + F.scaled_dot_product_attention(x, x, y, attn_mask=(x @ y.mT))
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_the_same_at_every_batch(name):
    gradients = name not in ("bools",)
    agree(
        Does(FUNCTIONS[name]),
        normal(3, 5, 4),
        normal(3, 5, 4, seed=1),
        modes=(False,),
        gradients=gradients,
    )


def test_the_batch_itself_is_cut_and_taken_from():
    def cut(m, x):
        return x[1:], x[:-1], x[-1], x[::2], x[torch.arange(x.shape[0])]

    agree(Does(cut), normal(3, 5, 4), batches=(3, 5), modes=(False,))


def test_a_variance_takes_any_correction():
    agree(Does(lambda m, x: x.var(1, correction=1.3)), normal(3, 5), modes=(False,))


def test_an_rnn_over_its_first_axis_has_a_fixed_length():
    module = nn.RNN(5, 4)
    with pytest.warns(UserWarning, match="exactly the size"):
        model = read(module, normal(3, 6, 5))
    x = normal(3, 6, 5, seed=1)
    got = Interpreter(model.graph)(*arguments(model.graph, model, [x.numpy()]))
    np.testing.assert_allclose(got[0], module(x)[0].detach().numpy(), atol=1e-6)


def test_buffers_that_nothing_reads_are_kept():
    module = Does(
        lambda m, x: x + 1, unread=torch.zeros(3), numbers=torch.zeros(2, dtype=torch.long)
    )
    found = {v.name: (v.kind, v.dtype) for v in read(module, normal(3, 4)).graph.inputs}
    assert found == {"inputs_0": ("data", "float32"), "unread": ("state", "float32"),
                     "numbers": ("state", "int64")}  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_moves_the_classes_and_skips_what_torch_skips(reduction):
    def loss(m, logits, labels):
        return F.cross_entropy(logits, labels, reduction=reduction)

    labels = torch.tensor([[0, 2, 1], [3, -100, 0]])
    agree(Does(loss), normal(2, 4, 3), labels, batches=(2, 5), modes=(False,))
    agree(Does(loss), normal(2, 4), torch.tensor([1, 3]), batches=(2, 5), modes=(False,))
    ignoring = Does(lambda m, x, i: F.cross_entropy(x, i, reduction=reduction, ignore_index=1))
    agree(ignoring, normal(2, 4), torch.tensor([1, 3]), batches=(4,), modes=(False,))


def test_embedding_and_a_constant_table():
    table = nn.Embedding(11, 5)
    module = Does(
        lambda m, i: m.table(i) * torch.tensor([1.0, 2, 3, 4, 5]) + m.shift,
        table=table,
        shift=normal(5),
    )
    model = agree(module, torch.randint(0, 11, (3, 7)))
    assert [(v.kind, v.name) for v in model.graph.inputs] == [
        ("data", "inputs_0"),
        ("param", "table.weight"),
        ("state", "shift"),
    ]
    assert "constant" in {n.op for n in model.graph.nodes}


def test_arithmetic_between_dtypes_is_torchs():
    def mixed(m, x, i):
        return (
            i * 0.5 + x,
            i / 2,
            (i > 1) * x,
            i.double() + x,
            torch.stack([i, i * 2]),
            i.sum(),
            (i.to(x.dtype)).mean(0),
        )

    agree(Does(mixed), normal(3, 4), torch.arange(12).reshape(3, 4), gradients=False)


# -- whole models ----------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn1(self.conv1(x))
        out += x
        return self.act(out)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Block(), nn.MaxPool2d(2), Block())
        self.head = nn.Linear(3 * 4 * 3, 7)

    def forward(self, images):
        features = self.layers(images)
        return {"features": features, "logits": self.head(features.flatten(1))}


def test_scopes_names_structure_and_states():
    model = read(Net(), normal(2, 3, 8, 6))
    graph = model.graph
    scopes = [n.scope for n in graph.nodes if n.op != "reshape"]
    assert scopes[:4] == ["layers.0.conv1", "layers.0.bn1", "layers.0", "layers.0.act"]
    assert scopes[4] == "layers.1" and scopes[-1] == "head"
    assert graph.structure == ("features", "logits")
    assert [v.name for v in graph.of_kind("data")] == ["images"]
    assert model.source_names["layers.0.bn1.running_mean"] == "layers.0.bn1.running_mean"
    assert [v.name for v in graph.updates] == [
        f"layers.{i}.bn1.running_{s}" for i in (0, 2) for s in ("mean", "var")
    ]
    assert all(n.attrs["training"] is MODE for n in graph.nodes if n.op == "batch_norm")
    out = model.eval()(normal(5, 3, 8, 6).numpy())
    assert out["logits"].shape == (5, 7)


def test_a_residual_net_in_both_modes():
    module = Net()
    agree(Does(lambda m, x: m.net(x)["logits"], net=module), normal(2, 3, 8, 6), tolerance=1e-8)


def test_a_tied_parameter_is_one_input():
    module = Does(
        lambda m, i: F.linear(m.table(i), m.head.weight),
        table=nn.Embedding(9, 4),
        head=nn.Linear(4, 9, bias=False),
    )
    module.head.weight = module.table.weight
    model = agree(module, torch.randint(0, 9, (3, 5)))
    assert [n for n, _ in model.named_parameters()] == ["table.weight"]


def test_dropout_in_place_is_open_too():
    (node,) = read(nn.Dropout(0.3, inplace=True), normal(3, 4)).graph.nodes
    assert (node.op, node.attrs["training"]) == ("dropout", MODE)


def test_a_shared_layer_is_called_twice_under_one_name():
    module = Does(lambda m, x: m.fc(torch.tanh(m.fc(x))), fc=nn.Linear(4, 4))
    model = agree(module, normal(3, 4))
    assert [n.scope for n in model.graph.nodes if n.op == "linear"] == ["fc", "fc"]


def test_one_batch_norm_twice_updates_its_statistics_twice():
    agree(
        Does(lambda m, x: m.bn(m.bn(x) * 2 + 1), bn=nn.BatchNorm1d(4)), normal(5, 4), batches=(3, 5)
    )


class Frozen(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def test_a_frozen_batch_norm_stays_frozen():
    always = nn.Sequential(nn.Conv2d(3, 4, 1), Frozen(4))
    by_hand = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    by_hand[1].eval()
    always.train()
    for module in (always, by_hand):
        before = [m.training for m in module.modules()]
        model = read(module, normal(2, 3, 4, 5))
        assert [m.training for m in module.modules()] == before
        (norm,) = (n for n in model.graph.nodes if n.op == "batch_norm")
        assert norm.attrs["training"] is False and not model.graph.updates


def test_a_parameter_without_gradient_is_a_frozen_parameter():
    module = nn.BatchNorm2d(3)
    module.weight.requires_grad_(False)
    model = read(module, normal(2, 3, 4, 5))
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == [
        ("weight", False), ("bias", True)
    ]  # fmt: skip
    agree(module, normal(2, 3, 4, 5))


def test_dropout_is_open_unless_the_model_decides():
    def forward(m, x):
        x = F.dropout(m.drop(x), 0.4, training=False)
        return F.dropout(x, 0.1, m.training)

    graph = read(Does(forward, drop=nn.Dropout(0.3)), normal(3, 4)).graph
    found = [(n.attrs["rate"], n.attrs["training"], n.attrs["salt"]) for n in graph.nodes]
    assert found == [(0.3, MODE, 0), (0.1, MODE, 1)]
    assert [v.kind for v in graph.inputs] == ["data", "rng"]
    always = Does(lambda m, x: F.dropout(x, 0.2, training=True))
    with pytest.raises(UnsupportedError, match="in evaluation too"):
        read(always, normal(3, 4))
    (node,) = read(always, normal(3, 4), training=True).graph.nodes
    assert node.attrs["training"] is True


def test_dropout_that_evaluation_does_not_even_call():
    module = Does(lambda m, x: F.dropout(x, 0.3) * 2 if m.training else x * 2)
    graph = read(module, normal(3, 4)).graph
    assert [(n.op, n.attrs.get("training")) for n in graph.nodes if n.op != "full"] == [
        ("dropout", MODE),
        ("multiply", None),
    ]


def test_no_grad_stops_the_gradient():
    def forward(m, x):
        with torch.no_grad():
            scale = x.abs().mean(1, keepdim=True)
        return x / (scale + 1)

    agree(Does(forward), normal(3, 4))


def randomised(module):
    generator = torch.Generator().manual_seed(3)
    for name, b in module.named_buffers():
        if name.endswith("running_mean"):
            b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
        if name.endswith("running_var"):
            b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
    return module


def test_resnet18_in_both_modes():
    from zoo_shim import load_torchvision

    torch.manual_seed(0)
    module = randomised(load_torchvision().models.resnet18(num_classes=7))
    model = agree(module, normal(2, 3, 64, 64), batches=(3,), gradients=False, tolerance=1e-7)
    assert len(model.graph.updates) == 40
    scopes = {n.scope for n in model.graph.nodes}
    assert {"layer1.0.conv1", "layer4.1.bn2", "layer2.0.downsample.1", "fc"} <= scopes
    assert {n for n, _ in model.named_parameters("param", "state")} == {
        n for n in module.state_dict() if not n.endswith("num_batches_tracked")
    }


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 12)
        self.position = nn.Parameter(normal(1, 9, 12))
        self.encoder = nn.TransformerEncoderLayer(
            12, 3, 20, batch_first=True, dropout=0.1, activation="gelu"
        )
        self.norm = nn.LayerNorm(12)
        self.register_buffer("mask", torch.full((9, 9), float("-inf")).triu(1), persistent=False)

    def forward(self, tokens):
        n = tokens.shape[1]
        x = self.embed(tokens) + self.position[:, :n]
        return self.norm(self.encoder(x, src_mask=self.mask[:n, :n]))


def test_a_transformer_block():
    torch.manual_seed(0)
    model = agree(Transformer(), torch.randint(0, 13, (3, 7)), modes=(False,))
    rates = [n.attrs["training"] for n in model.graph.nodes if n.op == "dropout"]
    assert rates == [MODE] * 4  # one of them inside of the attention
    agree(
        nn.MultiheadAttention(12, 3, batch_first=True).requires_grad_(),
        *(normal(3, 5, 12, seed=i) for i in range(3)),
    )


def test_numpy_examples_and_a_batch_of_one():
    model = read(nn.Linear(4, 3), np.zeros((1, 4), np.float32))
    assert [v.shape[1:] for v in model.graph.of_kind("data")] == [(4,)]
    assert str(model.graph.of_kind("data")[0].shape[0]) == "batch"


def test_two_inputs_have_one_batch_only_when_the_model_says_so():
    together = read(Does(lambda m, x, y: x + y), normal(3, 4), normal(3, 4)).graph
    apart = read(Does(lambda m, x, y: (x, y.sum())), normal(3, 4), normal(3, 4)).graph
    assert [str(v.shape[0]) for v in together.inputs] == ["batch", "batch"]
    assert [str(v.shape[0]) for v in apart.inputs] == ["batch", "batch_1"]
    shared = read(Does(lambda m, x, y: x * y), normal(3, 4), normal(4)).graph
    assert shared.inputs[1].shape == shared.inputs[0].shape[1:]


def test_bfloat16_parameters():
    model = read(nn.Linear(4, 3).bfloat16(), normal(2, 4).bfloat16())
    assert {p.dtype for _, p in model.named_parameters()} == {"bfloat16"}


# -- a batch that the model fixes ------------------------------------------------------------------
@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda m, x: x.view(3, -1), "unless Eq"),
        (lambda m, x: x * 2 if x.shape[0] == 1 else x, "Ne"),
        (lambda m, x: x * 2 if x.shape[0] > 2 else x, ">"),
        (lambda m, x: x * int(x.shape[0]), "fixes the size 3"),
    ],
)
def test_a_size_that_the_model_fixes_is_said(function, reason):
    with pytest.warns(UserWarning, match=f"exactly the size.*{reason}"):
        model = read(Does(function), normal(3, 4))
    assert model.graph.inputs[0].shape[0] == 3


# -- refused ---------------------------------------------------------------------------------------
class CountsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen.add_(x.sum((0, 1)))
        return x + self.seen


REFUSED = {
    "unknown operator": (Does(lambda m, x: torch.cumprod(x, 1)), "aten.cumprod"),
    "where it is": (
        nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose1d(5, 2, 3)),
        r"conv_transpose1d.*at 1",
    ),
    "modes differ": (
        Does(lambda m, x: x * 2 if m.training else x * 3),
        "training and evaluation differ",
    ),
    "data decides": (Does(lambda m, x: x if x.sum() > 0 else -x), "torch.export cannot follow"),
    "padding_idx": (
        Does(lambda m, x: m.e((x > 0).long()), e=nn.Embedding(5, 3, padding_idx=0)),
        "padding_idx=0.*at e",
    ),
    "squeeze of the batch": (Does(lambda m, x: x[:, :1, :1].squeeze()), "open size"),
    "state": (CountsItself(), "seen"),
    "written view": (
        Does(lambda m, x: [v := x * 1, v[:, 0].mul_(2), v + 1][-1]),
        "through the view",
    ),
    "divisor": (
        Does(lambda m, x: F.avg_pool2d(x[None], 2, divisor_override=3)),
        "divisor_override",
    ),
    "uneven": (nn.AdaptiveAvgPool1d(3), "unequal size"),
    "nested output": (Does(lambda m, x: (x, (x, x))), "an output that is no tensor"),
    "a number": (Does(lambda m, x: (x, x.shape[1])), "an output that is no tensor"),
    "initial state": (
        Does(lambda m, x: m.r(x, x[:, :1].mT.reshape(1, -1, 4)), r=nn.RNN(4, 4, batch_first=True)),
        "initial state",
    ),
    "two directions": (nn.RNN(4, 4, bidirectional=True, batch_first=True), "two directions"),
    "lstm": (nn.LSTM(4, 4, batch_first=True), "aten.lstm"),
    "padding mode": (nn.ReflectionPad1d(1), "pad"),
    "rounding": (Does(lambda m, x: torch.div(x, 2, rounding_mode="floor")), "rounding_mode=floor"),
    "dropout of channels": (nn.Dropout1d(0.2), "feature_dropout"),
    "dropout of all": (nn.Dropout(1.0), "rate of 1.0"),
    "random": (Does(lambda m, x: x + torch.rand_like(x)), "aten.rand_like"),
    "complex": (Does(lambda m, x: torch.fft.fft(x).abs()), "fft"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    module, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(module, normal(3, 5, 4))


def test_one_mode_alone():
    module = Does(lambda m, x: x * 2 if m.training else x * 3)
    for mode, factor in ((True, 2), (False, 3)):
        model = read(module, normal(3, 4), training=mode)
        x = np.ones((2, 4), np.float32)
        np.testing.assert_array_equal(Interpreter(model.graph)(x)[0], factor * x)


# -- what may differ between training and evaluation -----------------------------------------------
class DropsPaths(nn.Module):
    """As timm and torchvision ("empty") and transformers ("floor") drop a whole branch."""

    def __init__(self, how, rate=0.25):
        super().__init__()
        self.body, self.how, self.keep = nn.Linear(4, 4), how, 1 - rate

    def forward(self, x):
        y = self.body(x)
        if not self.training:
            return x + y
        sizes = (x.shape[0],) + (1,) * (x.ndim - 1)
        if self.how == "empty":
            return x + y * y.new_empty(sizes).bernoulli_(self.keep).div_(self.keep)
        return x + y.div(self.keep) * (self.keep + torch.rand(sizes, dtype=y.dtype)).floor_()


@pytest.mark.parametrize("how", ["empty", "floor"])
def test_a_branch_dropped_by_chance_is_a_dropout_of_ones(how):
    model = DropsPaths(how)
    ours = read(model, normal(64, 3, 4))
    (node,) = [n for n in ours.graph.nodes if n.op == "dropout"]
    assert node.attrs["rate"] == 0.25 and node.attrs["training"] is MODE
    assert [str(s) for s in node.out.shape] == ["batch", "1", "1"]
    x = normal(64, 3, 4)
    with torch.no_grad():
        branch, want = model.body(x).numpy(), model.eval()(x).numpy()
    np.testing.assert_allclose(np.asarray(ours.eval()(x.numpy())), want, 1e-5, 1e-6)
    # Training: every row has its branch whole, grown by 1/keep, or not at all.
    got = np.asarray(ours.train()(x.numpy())) - x.numpy()
    kept = np.abs(got - branch / 0.75).max((1, 2)) < 1e-5
    gone = np.abs(got).max((1, 2)) < 1e-6
    assert (kept | gone).all() and kept.any() and gone.any()
    again = read(model, normal(3, 4), training=True)
    assert [n.attrs["training"] for n in again.graph.nodes if n.op == "dropout"] == [True]


def test_a_mask_that_is_not_scaled_is_no_dropout():
    class Unscaled(DropsPaths):
        def forward(self, x):
            y = self.body(x)
            return y * torch.empty_like(y).bernoulli_(0.5) if self.training else y

    with pytest.raises(UnsupportedError, match="training and evaluation differ"):
        read(Unscaled("empty"), normal(3, 4))


class Attends(nn.Module):
    """As BERT does: another rate while evaluating, and copies that change no number."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.qkv, self.rate = nn.Linear(4, 12), rate

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 2
        if self.training:
            scores, v = scores.contiguous().clone(), v.to(v.dtype).expand(v.shape)
        weights = scores.softmax(-1)
        weights = F.dropout(weights, self.rate if self.training else 0.0, self.training)
        return (weights @ v).view(x.shape)


def test_copies_and_a_rate_of_none_are_no_difference():
    model = read(Attends(), normal(3, 5, 4))
    assert [n.attrs["training"] for n in model.graph.nodes if n.op == "dropout"] == [MODE]
    source, x = Attends().eval(), normal(2, 7, 4, seed=1)
    ours = read(source, normal(3, 5, 4)).eval()
    np.testing.assert_allclose(np.asarray(ours(x.numpy())), source(x).detach(), 1e-5, 1e-6)


def test_a_copy_that_is_written_to_is_a_difference():
    class Writes(nn.Module):
        def forward(self, x):
            x = x * 2
            y = x.clone() if self.training else x
            y.add_(1)
            return x + y

    with pytest.raises(UnsupportedError, match="training and evaluation differ"):
        read(Writes(), normal(3, 4))


def test_one_mode_by_the_public_name():
    class Two(nn.Module):
        def forward(self, x):
            return x * 2 if self.training else x * 3

    with pytest.raises(UnsupportedError, match="training=False"):
        tv.from_torch(Two(), normal(2, 4))
    for training, factor in ((False, 3), (True, 2)):
        ours = tv.from_torch(Two(), normal(2, 4), training=training)
        np.testing.assert_allclose(np.asarray(ours(np.ones((2, 4), "f"))), factor)
