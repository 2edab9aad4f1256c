"""Models that are legal and awkward to write down: the order of calls, names, sharing, numbers.

Each entry makes a model and its example inputs. The batch is open; sizes are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import trivium as tv
from trivium import nn

Made = tuple[Any, list[np.ndarray[Any, Any]]]
OWN: dict[str, Callable[[], Made]] = {}
TORCH: dict[str, Callable[[], Made]] = {}


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def own(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A Module of ours: ``forward(self, ...)``, its parts given by ``parts(self)``."""

    def with_parts(*shapes: Any, **parts: Any) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                for name, make in parts.items():
                    setattr(self, name.removesuffix("_"), make() if callable(make) else make)

            def forward(self, *xs: Any) -> Any:
                return forward(self, *xs)

        Model.__name__ = Model.__qualname__ = forward.__name__.title().replace("_", "")
        OWN[forward.__name__] = lambda: (Model(), [numbers(*s) for s in shapes or ((2, 4),)])

    return with_parts


def linears(n: int, out: int = 4, **more: Any) -> Callable[[], list[Any]]:
    return lambda: [nn.Linear(out, **more) for _ in range(n)]


# -- lists -----------------------------------------------------------------------------------------
def interleaved(self: Any, x: Any) -> Any:
    for a, b in zip(self.first, self.second, strict=True):
        x = tv.relu(b(tv.tanh(a(x))))
    return x


own(interleaved)(first=linears(3), second=linears(3))


def interleaved_norms(self: Any, x: Any) -> Any:
    for conv, bn in zip(self.convs, self.bns, strict=True):
        x = tv.relu(bn(conv(x)))
    return tv.mean(x, axis=(2, 3))


own(interleaved_norms)(
    (2, 3, 6, 5),
    convs=lambda: [nn.Conv2d(3, 3, padding=1) for _ in range(3)],
    bns=lambda: [nn.BatchNorm2d() for _ in range(3)],
)


def reversed_list(self: Any, x: Any) -> Any:
    for layer in reversed(self.layers):
        x = tv.relu(layer(x))
    return x


own(reversed_list)(layers=linears(3))


def activated_list(self: Any, x: Any) -> Any:
    for layer in self.layers:
        x = tv.relu(layer(x))
    return x


own(activated_list)(layers=linears(3))


def plain_list(self: Any, x: Any) -> Any:
    for layer in self.layers:
        x = layer(x)
    return x


own(plain_list)(layers=linears(3))


def list_of_one(self: Any, x: Any) -> Any:
    return tv.relu(self.layers[0](x)) + self.head(x)


own(list_of_one)(layers=linears(1), head=lambda: nn.Linear(4))


def list_summed(self: Any, x: Any) -> Any:
    y = self.layers[0](x)
    for layer in self.layers[1:]:
        y = y * 0.5 + layer(x)
    return y


own(list_summed)(layers=linears(3))


def list_dense(self: Any, x: Any) -> Any:
    xs = [x]
    for layer in self.layers:
        xs.append(tv.relu(layer(tv.concat(*xs, axis=1))))
    return tv.concat(*xs, axis=1)


own(list_dense)(layers=linears(3))


def list_in_another_order(self: Any, x: Any) -> Any:
    for i in (2, 0, 1, 0):
        x = tv.tanh(self.layers[i](x))
    return x


own(list_in_another_order)(layers=linears(3))


def eleven_in_a_list(self: Any, x: Any) -> Any:
    for layer in self.layers:
        x = tv.tanh(layer(x))
    return x


own(eleven_in_a_list)(layers=linears(11))


def unused_first(self: Any, x: Any) -> Any:
    for layer in self.layers[1:]:
        x = tv.relu(layer(x))
    return x


own(unused_first)(layers=linears(3))


class Pair(nn.Module):
    def __init__(self, out: int = 4, activation: Any = tv.relu):
        self.a, self.b, self.activation = nn.Linear(out), nn.Linear(4), activation

    def forward(self, x: Any) -> Any:
        return x + self.b(self.activation(self.a(x)))


class Swapped(Pair):
    def forward(self, x: Any) -> Any:
        return x + self.a(self.activation(self.b(x)))


def interleaved_blocks(self: Any, x: Any) -> Any:
    for a, b in zip(self.left, self.right, strict=True):
        x = b(a(x))
    return x


own(interleaved_blocks)(
    left=lambda: [Pair() for _ in range(3)], right=lambda: [Pair(4, tv.tanh) for _ in range(3)]
)


class Nested(nn.Module):
    def __init__(self) -> None:
        self.rows = [Pair(3), Pair(5)]
        self.norms = [nn.LayerNorm(), nn.LayerNorm()]

    def forward(self, x: Any) -> Any:
        for row, norm in zip(self.rows, self.norms, strict=True):
            x = row(norm(x))
        return x


def nested_lists(self: Any, x: Any) -> Any:
    for block in self.blocks:
        x = tv.tanh(block(x)) + x
    return x


own(nested_lists)(blocks=lambda: [Nested(), Nested()])


def two_stages_by_turns(self: Any, x: Any) -> Any:
    for _ in range(2):
        x = self.stages[1].a(tv.relu(self.stages[0].a(x)))
        x = self.stages[1].b(tv.tanh(self.stages[0].b(x)))
    return x


own(two_stages_by_turns)(stages=lambda: [Pair(), Pair()])


# -- one structure, other attributes ---------------------------------------------------------------
def other_attributes(self: Any, x: Any) -> Any:
    for block in self.blocks:
        x = block(x)
    return tv.mean(x, axis=(2, 3))


class Windowed(nn.Module):
    def __init__(self, **settings: Any):
        self.conv, self.bn = nn.Conv2d(4, 3, **settings), nn.BatchNorm2d(
            epsilon=1e-3 * settings["dilation"], momentum=0.1 * settings["dilation"]
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return nn.max_pool(tv.relu(self.bn(self.conv(x))), kernel=2, stride=1)


own(other_attributes)(
    (2, 4, 13, 12),
    blocks=lambda: [
        Windowed(padding=p, dilation=d, groups=g) for p, d, g in ((1, 1, 1), (2, 2, 2), (1, 2, 4))
    ],
)


def other_bodies(self: Any, x: Any) -> Any:
    return self.fourth(self.third(self.second(self.first(x))))


own(other_bodies)(
    first=Pair, second=Swapped, third=lambda: Pair(5), fourth=lambda: Pair(4, tv.tanh)
)


class Scaled(nn.Module):
    def __init__(self, by: float, axis: int, swap: bool = False):
        self.lin, self.by, self.axis, self.swap = nn.Linear(4), by, axis, swap

    def forward(self, x: Any) -> Any:
        y = self.lin(x) * self.by
        y = tv.softmax(y, axis=self.axis)
        return x - y if self.swap else y - x


def other_numbers(self: Any, x: Any) -> Any:
    for block in self.blocks:
        x = block(x)
    return x


own(other_numbers)(
    (2, 4, 4),
    blocks=lambda: [Scaled(0.5, 1), Scaled(2.0, 2), Scaled(0.5, 1, swap=True), Scaled(2.0, 1)],
)


class Crossing(nn.Module):
    """Two inputs, two outputs: blocks that differ only in what is crossed."""

    def __init__(self, crossed: bool):
        self.a, self.b, self.crossed = nn.Linear(4), nn.Linear(4), crossed

    def forward(self, x: Any, y: Any) -> Any:
        u, v = tv.tanh(self.a(x)), tv.relu(self.b(y))
        return (v + x, u - y) if self.crossed else (u + x, v - y)


def crossings(self: Any, x: Any, y: Any) -> Any:
    for block in self.blocks:
        x, y = block(x, y)
        y, x = block_of(self)(y, x)
    return x - 2 * y


def block_of(self: Any) -> Any:
    return self.shared


own(crossings)(
    (2, 4),
    (2, 4),
    blocks=lambda: [Crossing(False), Crossing(True), Crossing(False)],
    shared=lambda: Crossing(True),
)


# -- called twice ----------------------------------------------------------------------------------
def called_twice(self: Any, x: Any) -> Any:
    x = self.block(x)
    return self.lin(tv.relu(self.lin(self.block(tv.tanh(x)))))


own(called_twice)(block=Pair, lin=lambda: nn.Linear(4))


def norm_called_twice(self: Any, x: Any) -> Any:
    x = self.bn(self.a(x))
    return self.bn(tv.relu(self.b(x)))


own(norm_called_twice)(
    (4, 4), a=lambda: nn.Linear(4), b=lambda: nn.Linear(4), bn=lambda: nn.BatchNorm()
)


class Normed(nn.Module):
    def __init__(self) -> None:
        self.lin, self.bn = nn.Linear(4), nn.BatchNorm()

    def forward(self, x: Any) -> Any:
        return tv.relu(self.bn(self.lin(x)))


def normed_block_twice(self: Any, x: Any) -> Any:
    return self.block(self.block(x) + x)


own(normed_block_twice)((4, 4), block=Normed)


def shared_between(self: Any, x: Any) -> Any:
    return self.right(self.left(x))


class Holder(nn.Module):
    def __init__(self, held: Any):
        self.held, self.lin = held, nn.Linear(4)

    def forward(self, x: Any) -> Any:
        return tv.tanh(self.lin(self.held(x)))


def _two_holders() -> Made:
    model: Any = nn.Module()
    shared = nn.Linear(4)

    class SharedBetween(nn.Module):
        def __init__(self) -> None:
            self.left, self.right = Holder(shared), Holder(shared)

        def forward(self, x: Any) -> Any:
            return self.right(self.left(x))

    del model
    return SharedBetween(), [numbers(2, 4)]


OWN["shared_between"] = _two_holders


def dropouts(self: Any, x: Any) -> Any:
    for layer, drop in zip(self.layers, self.drops, strict=True):
        x = drop(tv.relu(layer(x)))
    return x


own(dropouts)(layers=linears(2), drops=lambda: [nn.Dropout(0.1), nn.Dropout(0.2)])


# -- names -----------------------------------------------------------------------------------------
WORDS = (
    "x", "y", "self", "import", "lambda", "F", "nn", "torch", "tf", "jnp", "jax", "mx", "gluon",
    "keras", "layers", "ops", "name", "params", "prefix", "state", "inputs", "rng", "float",
    "half", "type", "add", "weight", "bias", "collect_params", "hybridize", "submodules",
    "variables", "with_name_scope", "_modules", "add_module", "T_destination", "3d", "a1_b2",
)  # fmt: skip


class Named(nn.Module):
    """Every part called what somebody else calls something."""

    def __init__(self) -> None:
        for word in WORDS:
            setattr(self, word, nn.Linear(4))

    def forward(self, x: Any) -> Any:
        for word in WORDS:
            x = x + tv.tanh(vars(self)[word](x))
        return x


OWN["named"] = lambda: (Named(), [numbers(2, 4)])


class NamedBlocks(nn.Module):
    def __init__(self) -> None:
        for word in WORDS:
            setattr(self, word, Pair())

    def forward(self, x: Any) -> Any:
        for word in WORDS:
            x = vars(self)[word](x)
        return x


OWN["named_blocks"] = lambda: (NamedBlocks(), [numbers(2, 4)])


class NamedLists(nn.Module):
    def __init__(self) -> None:
        for word in ("name", "lambda", "float", "self", "layers", "params"):
            setattr(self, word, [nn.Linear(4), nn.Linear(4)])

    def forward(self, x: Any) -> Any:
        for i in range(2):
            for word in ("name", "lambda", "float", "self", "layers", "params"):
                x = tv.tanh(vars(self)[word][i](x))
        return x


OWN["named_lists"] = lambda: (NamedLists(), [numbers(2, 4)])


class FreeNames(nn.Module):
    """Parameters of no layer, under words that are taken."""

    WORDS = ("x", "F", "name", "lambda", "shape", "value", "params", "data", "self", "float", "T")

    def __init__(self) -> None:
        self.lin = nn.Linear(4)

    def forward(self, x: Any) -> Any:
        x = self.lin(x)
        for word in self.WORDS:
            x = x * self.param(word, (4,), nn.layers.ones)
        return x + self.param("scale", (), nn.layers.ones)


OWN["free_names"] = lambda: (nn.Sequential(FreeNames(), FreeNames()), [numbers(2, 4)])


class linear(nn.Module):
    def __init__(self) -> None:
        self.linear = nn.Linear(4)

    def forward(self, x: Any) -> Any:
        return tv.tanh(self.linear(x))


class conv(linear):
    def forward(self, x: Any) -> Any:
        return tv.relu(self.linear(x))


class LayerNorm(conv):
    def forward(self, x: Any) -> Any:
        return tv.sigmoid(self.linear(x)) + x


class Module(conv):
    def forward(self, x: Any) -> Any:
        return x - tv.sigmoid(self.linear(x))


def clashing_classes(self: Any, x: Any) -> Any:
    return self.d(self.c(self.b(self.a(x))))


own(clashing_classes)(a=linear, b=conv, c=LayerNorm, d=Module)


def same_class_name(self: Any, x: Any) -> Any:
    return self.b(self.a(x))


def _same_name() -> tuple[Any, Any]:
    def one(f: Any) -> Any:
        class Block(nn.Module):
            def __init__(self) -> None:
                self.lin = nn.Linear(4)

            def forward(self, x: Any) -> Any:
                return f(self.lin(x))

        return Block

    return one(tv.tanh), one(tv.relu)


own(same_class_name)(a=_same_name()[0], b=_same_name()[1])


# -- operands that are numbers ---------------------------------------------------------------------
BINARY = ("add", "subtract", "multiply", "divide", "pow", "maximum", "minimum")
COMPARED = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")


def number_first(self: Any, x: Any) -> Any:
    x = tv.exp(self.lin(x))
    found = [getattr(tv, n)(1.5, x) for n in BINARY]
    found += [tv.where(getattr(tv, n)(1.0, x), x, 2.0) for n in COMPARED]
    return tv.concat(*found, axis=1)


own(number_first)(lin=lambda: nn.Linear(4))


def number_last(self: Any, x: Any) -> Any:
    x = tv.exp(self.lin(x))
    found = [getattr(tv, n)(x, 1.5) for n in BINARY]
    found += [tv.where(getattr(tv, n)(x, 1.0), 0.0, x) for n in COMPARED]
    return tv.concat(*found, axis=1)


own(number_last)(lin=lambda: nn.Linear(4))


def numbers_alone(self: Any, x: Any) -> Any:
    x = self.lin(x)
    two, half = (tv.full((), v) for v in (2.0, 0.5))
    found = [getattr(tv, n)(two, half) for n in BINARY]
    y = x
    for v in found:
        y = y + v * x
    return y * tv.where(x > 0, tv.maximum(two, half), tv.exp(half)) + tv.where(x < 0, 1.0, 0.0)


own(numbers_alone)(lin=lambda: nn.Linear(4))


def integers(self: Any, x: Any) -> Any:
    at = tv.cast(x > 0, dtype="int64") + 1
    second = tv.where(at == 1, -1.0, tv.where(tv.less(2, at), 0.5, 1.0))
    counted = tv.cast(tv.maximum(3, at * 2) - 1, dtype="float32")
    y = self.table(tv.minimum(at + 1, 3)) * tv.expand_dims(second + counted, axis=2)
    return y * tv.expand_dims(x, axis=2)


own(integers)(table=lambda: nn.Embedding(5, 4))


def batch_times(self: Any, x: Any) -> Any:
    b, n, c = x.shape
    y = self.lin(x.reshape((b * n, c)))
    return tv.sum(y.reshape((b, n, c)), axis=1)


own(batch_times)((2, 16, 4), lin=lambda: nn.Linear(4))


def batch_times_in_block(self: Any, x: Any) -> Any:
    b = x.shape[0]
    y = self.block(x.reshape((b * 4, 4)))
    y = self.block(tv.transpose(y, axes=(1, 0)).reshape((4 * b, 4)))
    return y.reshape((b, 16))


own(batch_times_in_block)((2, 16), block=Pair)


# -- norms without scale or offset -----------------------------------------------------------------
def bare_norms(self: Any, x: Any) -> Any:
    for layer, bn in zip(self.layers, self.bns, strict=True):
        x = tv.tanh(bn(layer(x)))
    return x


class BareNorm(nn.Module):
    """A batch norm with a scale, an offset, both or neither."""

    def __init__(self, scale: bool, offset: bool, unbiased: bool = True):
        self.parts, self.unbiased = (scale, offset), unbiased

    def forward(self, x: Any) -> Any:
        c = (x.shape[1],)
        scale = self.param("weight", c, nn.layers.ones) if self.parts[0] else None
        bias = self.param("bias", c, nn.layers.zeros) if self.parts[1] else None
        mean = self.param("running_mean", c, nn.layers.zeros, "state")
        var = self.param("running_var", c, nn.layers.ones, "state")
        y, new_mean, new_var = tv.batch_norm(
            x, scale, bias, mean, var, training=self.training, axis=1, unbiased=self.unbiased
        )
        if self.training is not False:
            mean.assign(new_mean)
            var.assign(new_var)
        return y


for _unbiased in (True, False):
    own(bare_norms)(
        (4, 4),
        layers=linears(4, bias=False),
        bns=lambda u=_unbiased: [BareNorm(s, o, u) for s in (True, False) for o in (True, False)],
    )
    OWN[f"bare_norms_{'un' * _unbiased}biased"] = OWN.pop("bare_norms")


# -- constants -------------------------------------------------------------------------------------
def causal_mask(self: Any, x: Any) -> Any:
    n = x.shape[1]
    q, k = self.q(x), self.k(x)
    scores = tv.matmul(q, tv.transpose(k, axes=(0, 2, 1)))
    mask = tv.asarray(np.triu(np.full((n, n), -np.inf, np.float32), 1))
    return tv.matmul(tv.softmax(scores + mask, axis=-1), x)


own(causal_mask)((2, 40, 4), q=lambda: nn.Linear(4), k=lambda: nn.Linear(4))


def causal_bools(self: Any, x: Any) -> Any:
    n = x.shape[1]
    scores = tv.matmul(self.q(x), tv.transpose(x, axes=(0, 2, 1)))
    keep = tv.asarray(np.tril(np.ones((n, n), np.bool_)))
    return tv.matmul(tv.softmax(tv.where(keep, scores, -1e9), axis=-1), x)


own(causal_bools)((2, 40, 4), q=lambda: nn.Linear(4))


def table_of_numbers(self: Any, x: Any) -> Any:
    table = np.random.default_rng(3).standard_normal((300, 4)).astype(np.float32)
    ids = np.random.default_rng(4).integers(0, 300, 1200)
    return self.lin(x) + tv.mean(tv.take(tv.asarray(table), tv.asarray(ids), axis=0), axis=0)


own(table_of_numbers)(lin=lambda: nn.Linear(4))


def regular_numbers(self: Any, x: Any) -> Any:
    y = self.lin(x) + tv.asarray(np.arange(1200, dtype=np.float32))
    y = y * tv.asarray(np.eye(1200, dtype=np.float32)[7] + 1)
    rows = tv.asarray(np.repeat(np.arange(30), 40).reshape(30, 40))
    cols = tv.asarray(np.tile(np.arange(40), 30).reshape(30, 40))
    near = tv.cast(tv.asarray(np.abs(np.subtract.outer(np.arange(30), np.arange(40))) < 4),
                   dtype="float32")  # fmt: skip
    grid = tv.cast(rows * 2 - cols, dtype="float32") * near
    return y + tv.asarray(np.full((1200,), 0.25, np.float32)) + grid.reshape((1, 1200))


own(regular_numbers)(lin=lambda: nn.Linear(1200))


def constant_in_blocks(self: Any, x: Any) -> Any:
    for block in self.blocks:
        x = block(x)
    return x


class WithConstant(nn.Module):
    def __init__(self, seed: int):
        self.lin, self.seed = nn.Linear(4), seed

    def forward(self, x: Any) -> Any:
        table = np.random.default_rng(self.seed).standard_normal((4, 301)).astype(np.float32)
        return self.lin(x) + tv.sum(tv.matmul(x, tv.asarray(table)), axis=1, keepdims=True)


own(constant_in_blocks)(blocks=lambda: [WithConstant(1), WithConstant(1), WithConstant(2)])


# -- torch's own containers ------------------------------------------------------------------------
def torch_models() -> dict[str, Callable[[], Made]]:
    """The same kinds of trouble as torch users write them."""
    import torch
    from torch import nn as tnn

    made: dict[str, Callable[[], Made]] = {}

    def torch_model(forward: Callable[..., Any]) -> Callable[..., Any]:
        def with_parts(*shapes: Any, **parts: Any) -> None:
            def make() -> Made:
                class Model(tnn.Module):
                    def __init__(self) -> None:
                        super().__init__()
                        for name, part in parts.items():
                            setattr(self, name, part())

                    def forward(self, *xs: Any) -> Any:
                        return forward(self, *xs)

                Model.__name__ = forward.__name__.title().replace("_", "")
                torch.manual_seed(0)
                return Model(), [numbers(*s) for s in shapes or ((3, 4),)]

            made[forward.__name__] = make

        return with_parts

    def lins(n: int, **more: Any) -> Any:
        return lambda: tnn.ModuleList([tnn.Linear(4, 4, **more) for _ in range(n)])

    def torch_activated(self: Any, x: Any) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x

    torch_model(torch_activated)(layers=lins(3))

    def torch_interleaved(self: Any, x: Any) -> Any:
        for a, b in zip(self.first, self.second, strict=True):
            x = b(torch.tanh(a(x)))
        return x

    torch_model(torch_interleaved)(first=lins(3), second=lins(3))

    def torch_interleaved_chains(self: Any, x: Any) -> Any:
        for a, b in zip(self.first, self.second, strict=True):
            x = b(a(x))
        return x

    torch_model(torch_interleaved_chains)(
        first=lambda: tnn.ModuleList(
            [tnn.Sequential(tnn.Linear(4, 4), tnn.ReLU()) for _ in range(2)]
        ),
        second=lambda: tnn.ModuleList(
            [tnn.Sequential(tnn.Linear(4, 4), tnn.Tanh()) for _ in range(2)]
        ),
    )

    def torch_dict(self: Any, x: Any) -> Any:
        found = [torch.relu(self.branches[k](x)) for k in ("left", "lambda", "x", "left")]
        return torch.cat([*found, self.by["0"](x), self.by["1"](x)], 1)

    torch_model(torch_dict)(
        branches=lambda: tnn.ModuleDict({k: tnn.Linear(4, 4) for k in ("left", "lambda", "x")}),
        by=lambda: tnn.ModuleDict({k: tnn.Linear(4, 4) for k in ("1", "0")}),
    )

    def torch_sequential_in_loop(self: Any, x: Any) -> Any:
        for stage in self.stages:
            y = x
            for layer in stage:
                y = layer(y)
            x = x + y
        return x

    torch_model(torch_sequential_in_loop)(
        stages=lambda: tnn.ModuleList(
            [
                tnn.Sequential(tnn.Linear(4, 4), tnn.ReLU(), tnn.Linear(4, 4)),
                tnn.Sequential(tnn.Linear(4, 4), tnn.Tanh(), tnn.Linear(4, 4)),
                tnn.Sequential(tnn.Linear(4, 4), tnn.ReLU(), tnn.Linear(4, 4)),
            ]
        )
    )

    def torch_sequential_in_parts(self: Any, x: Any) -> Any:
        y = self.body[:2](x)
        return self.body[2:](y) + y

    torch_model(torch_sequential_in_parts)(
        body=lambda: tnn.Sequential(
            tnn.Linear(4, 4), tnn.ReLU(), tnn.Linear(4, 4), tnn.Sigmoid(), tnn.Linear(4, 4)
        )
    )

    def torch_shared_in_sequential(self: Any, x: Any) -> Any:
        return self.body(x)

    def shared() -> Any:
        layer = tnn.Linear(4, 4)
        return tnn.Sequential(layer, tnn.ReLU(), layer, tnn.Tanh(), tnn.Linear(4, 4))

    torch_model(torch_shared_in_sequential)(body=shared)

    def torch_norms(self: Any, x: Any) -> Any:
        for conv, bn, plain in zip(self.convs, self.bns, self.plain, strict=True):
            x = plain(torch.relu(bn(conv(x))))
        return self.bns[0](x).mean((2, 3))

    torch_model(torch_norms)(
        (3, 4, 5, 6),
        convs=lambda: tnn.ModuleList([tnn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]),
        bns=lambda: tnn.ModuleList([tnn.BatchNorm2d(4) for _ in range(2)]),
        plain=lambda: tnn.ModuleList(
            [tnn.BatchNorm2d(4, affine=False, momentum=m) for m in (0.1, 0.3)]
        ),
    )

    def torch_numbers_first(self: Any, x: Any) -> Any:
        x = self.lin(x)
        five = torch.tensor(0.5)
        return (
            torch.maximum(five, x)
            + torch.minimum(x, five)
            + torch.where(x > 0, 1.0, x)
            + (torch.clamp(x, -0.1, 0.2) ** 2 + 2**x + 1 / (x.abs() + 1))
        )

    torch_model(torch_numbers_first)(lin=lambda: tnn.Linear(4, 4))

    def torch_mask(self: Any, x: Any) -> Any:
        n = x.shape[1]
        keep = torch.tril(torch.ones(n, n, dtype=torch.bool))
        scores = self.q(x) @ x.transpose(1, 2)
        return scores.masked_fill(~keep, float("-inf")).softmax(-1) @ x

    torch_model(torch_mask)((2, 40, 4), q=lambda: tnn.Linear(4, 4))

    class Positions(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(1, 400, 4), persistent=False)
            self.register_buffer("ids", torch.arange(400), persistent=False)

        def forward(self, x: Any) -> Any:
            return x + self.table[:, self.ids[: x.shape[1]]]

    def torch_positions(self: Any, x: Any) -> Any:
        return self.lin(self.positions(x))

    torch_model(torch_positions)((2, 400, 4), positions=Positions, lin=lambda: tnn.Linear(4, 4))
    return made
