"""Tensor: an array with a memory of how it was made, for eager work and ``backward()``.

One dispatch serves both ways of working: an op called on Tensors computes at once with NumPy and,
where a gradient is wanted, remembers itself; the same op called while a Graph is being built adds a
node, and Tensors that it meets are captured, parameters by name and everything else as constants.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType, as_dtype
from trivium.graph import OPS, Graph, Operators, Type, Value, current
from trivium.op import Op, lift, set_eager
from trivium.shape import Dim, Shape, as_shape
from trivium.transforms.grad import vjp_of

_recording: contextvars.ContextVar[bool] = contextvars.ContextVar("recording", default=True)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Nothing computed in this context is remembered for ``backward()``.

    >>> w = asarray([1.0], requires_grad=True)
    >>> with no_grad():
    ...     y = w * 2
    >>> y.requires_grad
    False
    """
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class _Step:
    """One remembered application of an op."""

    __slots__ = ("arrays", "attrs", "inputs", "op", "outputs")

    def __init__(self, op: Op, inputs: Sequence[Tensor | None], attrs: Any, outputs: Sequence[Any]):
        self.op, self.inputs, self.attrs, self.outputs = op, inputs, attrs, outputs
        # The numbers as they are now: a parameter may have others by the time of backward().
        self.arrays = [None if t is None else Tensor(t.data) for t in inputs]


class Tensor(Operators):
    """An array of numbers on the embedded engine.

    >>> w = asarray([2.0, 3.0], requires_grad=True)
    >>> (w * w).sum().backward()
    >>> w.grad
    tensor([4., 6.])
    """

    __slots__ = ("_grad", "_index", "_step", "data", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data: np.ndarray[Any, Any] = np.asarray(data)
        self.requires_grad = requires_grad
        self._grad: Tensor | None = None
        self._step: _Step | None = None
        self._index = 0

    @property
    def dtype(self) -> DType:  # type: ignore[override]
        """The type of its elements."""
        return as_dtype(self.data.dtype)

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        """Its sizes, a tuple of ints."""
        shape: Shape = self.data.shape
        return shape

    @property
    def grad(self) -> Tensor | None:
        """What ``backward()`` has added up here."""
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._grad = value

    def __repr__(self) -> str:
        body = np.array2string(self.data, separator=", ", prefix="tensor(")
        kind = "" if self.dtype in (dt.float32, dt.int64, dt.bool_) else f", dtype={self.dtype}"
        return f"tensor({body}{kind})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.data, dtype, copy=copy) if copy else np.asarray(self.data, dtype)

    def __reduce__(self) -> Any:
        # A copy remembers nothing of how it was made, as after detach().
        return _copied, (self.data, self.requires_grad and self._step is None, self._grad)

    def numpy(self) -> Any:
        """Its numbers as a NumPy array that shares its memory."""
        return self.data

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def item(self) -> Any:
        """The number in a tensor of one element."""
        return self.data.item()

    def __float__(self) -> float:
        return float(self.data.item())

    def __int__(self) -> int:
        return int(self.data.item())

    def __index__(self) -> int:
        return self.data.__index__()

    def __bool__(self) -> bool:
        return bool(self.data.item())

    def tolist(self) -> Any:
        """Its numbers as nested lists."""
        return self.data.tolist()

    def detach(self) -> Tensor:
        """The same numbers without memory of how they were made."""
        return Tensor(self.data)

    def capture(self, graph: Graph) -> Value:
        """What this is inside a Graph that meets it while being built: a constant.

        The body of a control-flow node takes it as one more input.
        """
        if graph.inner:
            name = graph.unused(f"outer_{len(graph.captured)}")
            return graph.input("data", self.dtype, self.shape, name)
        if self.requires_grad:
            raise ValueError(
                "a tensor that wants a gradient entered a Graph from outside, where no gradient "
                "can reach it; pass it as an argument or make it a Parameter of the module"
            )
        return lift(graph, self.data, None)

    def backward(self, gradient: Any = None) -> None:
        """Add to ``.grad`` of every tensor that wants one the gradient of this scalar.

        ``gradient`` is the cotangent of a tensor that is no scalar.
        """
        if not self.requires_grad:
            raise ValueError("backward() of a tensor behind which nothing wants a gradient")
        if gradient is None and self.data.size == 1:
            gradient = np.ones_like(self.data)
        if gradient is None or np.shape(gradient) != self.shape:
            raise ValueError(f"backward() of shape {self.shape} needs a gradient of that shape")
        grads: dict[int, Any] = {id(self): asarray(gradient, self.dtype)}
        with no_grad():
            for step, outputs in _steps_back(self):
                gs = [
                    grads.pop(id(t)) if id(t) in grads else Tensor(np.zeros_like(d))
                    for t, d in zip(outputs, step.outputs, strict=True)
                ]
                ys = tuple(Tensor(d) for d in step.outputs)
                one = len(ys) == 1
                found = vjp_of(
                    step.op,
                    gs[0] if one else tuple(gs),
                    ys[0] if one else ys,
                    step.arrays,
                    step.attrs,
                )
                for x, g in zip(step.inputs, found, strict=True):
                    if x is not None and g is not None and x.requires_grad:
                        grads[id(x)] = grads[id(x)] + g if id(x) in grads else g
                        if x._step is None:
                            add = grads.pop(id(x))
                            x._grad = add.detach() if x._grad is None else x._grad + add
            if self._step is None:
                add = grads[id(self)]
                self._grad = add if self._grad is None else self._grad + add


def _copied(data: Any, requires_grad: bool, grad: Tensor | None) -> Tensor:
    tensor = Tensor(data, requires_grad)
    tensor._grad = grad
    return tensor


def _steps_back(root: Tensor) -> list[tuple[_Step, list[Tensor | None]]]:
    """Every remembered step behind ``root``, last first, with the outputs still of use."""
    outputs: dict[int, list[Tensor | None]] = {}
    order: list[_Step] = []
    seen: set[int] = set()
    stack: list[tuple[Tensor, bool]] = [(root, False)]
    while stack:
        tensor, done = stack.pop()
        step = tensor._step
        if step is None:
            continue
        if done:
            order.append(step)
            continue
        outputs.setdefault(id(step), [None] * len(step.outputs))[tensor._index] = tensor
        if id(step) in seen:
            continue
        seen.add(id(step))
        stack.append((tensor, True))
        stack += [(x, False) for x in step.inputs if x is not None and x.requires_grad]
    return [(s, outputs[id(s)]) for s in reversed(order)]


def _apply(op: Op, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    first = next((a.dtype for a in arrays if isinstance(a, Tensor)), None)
    inputs = [None if a is None else _as_tensor(a, first) for a in arrays]
    if op.promotes:
        kind = dt.promote(*(t.dtype for t in inputs if t is not None))
        inputs = [t if t is None or t.dtype == kind else OPS["cast"](t, dtype=kind) for t in inputs]
    types = [None if t is None else Type(t.dtype, t.shape) for t in inputs]
    attrs, _ = op.settle(types, attrs)
    if op.checks:
        op.check([None if t is None else t.data for t in inputs], types, attrs)
    wanted = _recording.get() and any(t is not None and t.requires_grad for t in inputs)
    if wanted and op.is_composite and op.gradient is None:
        return op.function(*inputs, **attrs)
    with np.errstate(all="ignore"):
        results = op.evaluate([None if t is None else t.data for t in inputs], attrs)
    outputs = tuple(Tensor(r) for r in results)
    if wanted:
        step = _Step(op, inputs, attrs, [t.data for t in outputs])
        for i, t in enumerate(outputs):
            if t.dtype.is_floating:
                t._step, t._index, t.requires_grad = step, i, True
    return op.given(outputs)


set_eager(_apply)


def _as_tensor(item: Any, like: DType | None) -> Tensor:
    if isinstance(item, Tensor):
        return item
    if isinstance(item, (bool, int, float)):
        return Tensor(np.array(item, dt.of_scalar(item, like).numpy))
    tensor: Tensor = asarray(item)
    return tensor


def asarray(item: Any, dtype: Any = None, *, requires_grad: bool = False) -> Any:
    """A tensor of these numbers: nested lists, NumPy arrays, anything with DLPack or ``__array__``.

    Python floats become float32.

    >>> asarray([[1, 2], [3, 4]]).dtype
    'int64'
    """
    if isinstance(item, Value):
        return item if dtype is None else item.astype(dtype)
    if isinstance(item, Tensor):
        data = item.data
    elif isinstance(item, np.ndarray) or not hasattr(item, "__dlpack__"):
        data = np.asarray(item)
        if dtype is None and data.dtype == np.float64 and not hasattr(item, "dtype"):
            dtype = dt.float32
    else:
        data = _foreign(item)
    if dtype is not None:
        data = data.astype(as_dtype(dtype).numpy, copy=False)
    as_dtype(data.dtype)  # refuses strings, objects, complex
    if isinstance(item, Tensor) and data is item.data and not requires_grad:
        return item
    return Tensor(data, requires_grad)


def is_array(item: list[Any]) -> bool:
    """Is this list an array, nested or of floats? A flat one of whole numbers may be a setting."""
    leaves = item
    while leaves and all(isinstance(leaf, list) for leaf in leaves):
        leaves = [x for leaf in leaves for x in leaf]
    numbers = all(isinstance(leaf, (bool, int, float)) for leaf in leaves)
    return numbers and (leaves is not item or any(isinstance(leaf, float) for leaf in leaves))


def _foreign(item: Any) -> Any:
    """The numbers of another framework's array, shared where that can be."""
    item = item.detach() if hasattr(item, "detach") else item
    if "bfloat16" not in str(item.dtype):
        return np.from_dlpack(item)
    # Neither NumPy nor its DLPack has this type; float32 holds every one of its numbers.
    plain = item.cpu().float() if hasattr(item, "float") else item
    return np.asarray(plain).astype(dt.bfloat16.numpy)


def full(shape: Any, value: Any, *, dtype: Any = None) -> Any:
    """An array of this shape filled with ``value``; sizes may be Dims while a Graph is built."""
    return OPS["full"](shape=shape, value=value, dtype=dtype)


def zeros(shape: Any, *, dtype: Any = None) -> Any:
    """Zeros, float32 unless said otherwise."""
    return full(shape, 0, dtype=dtype or dt.float32)


def ones(shape: Any, *, dtype: Any = None) -> Any:
    """Ones, float32 unless said otherwise."""
    return full(shape, 1, dtype=dtype or dt.float32)


def arange(start: Any, stop: Any = None, step: int = 1, *, dtype: Any = None) -> Any:
    """``start, start + step, ...`` before ``stop``, int64 by default; one argument is a stop.

    >>> arange(3)
    tensor([0, 1, 2])
    """
    if stop is None:
        start, stop = 0, start
    return OPS["arange"](stop=stop, start=start, step=step, dtype=dtype or dt.int64)


class Spec:
    """What an argument will be, without numbers: ``Spec("float32", ("batch", 3))``."""

    def __init__(self, dtype: Any, shape: Any):
        self.dtype, self.shape = as_dtype(dtype), as_shape(shape)

    def __repr__(self) -> str:
        return f"Spec({self.dtype!r}, {self.shape})"


def spec_of(item: Any, batch: bool = False) -> Spec:
    """The Spec of an example array (or a Spec itself); ``batch`` leaves its first size open."""
    if isinstance(item, Spec):
        return item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        return Spec(*item)
    array = item if isinstance(item, Operators) else asarray(item)
    shape = array.shape
    return Spec(array.dtype, (Dim("batch"), *shape[1:]) if batch and shape else shape)


def placeholder(dtype: Any, shape: Any, name: str | None = None) -> Value:
    """A data input of the Graph that is being built (TF1's word for it)."""
    graph = current()
    if graph is None:
        raise RuntimeError("placeholder() wants a Graph around it: with trivium.Graph() as g: ...")
    name = name or graph.unused(f"x{len(graph.of_kind('data'))}")
    return graph.input("data", dtype, shape, name)
