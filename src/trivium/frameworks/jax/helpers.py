"""The small functions that emitted JAX source brings along, each only when it is called."""

HELPERS = {
    "frozen": '''
def frozen(params, *paths):
    """The parameters, no gradient for those at or below these paths.

    An optimizer may change what has no gradient (weight decay): leave them out of it as well.
    """
    for path in paths:
        first, _, rest = path.partition(".")
        inner = params[first]
        params = {**params, first: frozen(inner, rest) if rest else lax.stop_gradient(inner)}
    return params
''',
    "conv": '''
def conv(params, x, stride=1, padding=0, dilation=1, groups=1, layout=None):
    """The convolution of images x (N, C, *size); weight (out, in / groups, *kernel)."""
    weight, bias = params["weight"], params.get("bias")
    return convolution(x, weight, bias, stride, padding, dilation, groups, layout)
''',
    "convolution": '''
def convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, layout=None):
    """Padding is one number or (low, high) per axis; ``layout`` says where the channels are."""
    axes = "DHW"[5 - x.ndim :]
    layout = layout or f"NC{axes}"
    stride, dilation = ((v,) * len(axes) if isinstance(v, int) else v for v in (stride, dilation))
    padding = ((padding, padding),) * len(axes) if isinstance(padding, int) else padding
    y = lax.conv_general_dilated(
        x, weight, stride, padding, rhs_dilation=dilation, feature_group_count=groups,
        dimension_numbers=(layout, f"OI{axes}", layout),
    )
    if bias is None:
        return y
    return y + (bias if layout[-1] == "C" else bias.reshape(-1, *(1,) * len(axes)))
''',
    "linear": '''
def linear(params, x):
    """x @ weight.T + bias on the last axis."""
    y = x @ params["weight"].T
    return y + params["bias"] if "bias" in params else y
''',
    "batch_norm": '''
def batch_norm(params, x, training=False, axis=1, momentum=0.1, epsilon=1e-5, unbiased=True):
    """Normalise over all axes but one -> (y, the running statistics, new ones when training)."""
    others = tuple(a for a in range(x.ndim) if a != axis)
    mean, var = params["running_mean"], params["running_var"]
    state = {"running_mean": mean, "running_var": var}
    if training:
        mean, var = x.mean(others), x.var(others)
        n = x.size // x.shape[axis]
        new = {"running_mean": mean, "running_var": var * n / (n - 1) if unbiased else var}
        state = {k: (1 - momentum) * state[k] + momentum * lax.stop_gradient(new[k]) for k in state}
    mean, var = jnp.expand_dims(mean, others), jnp.expand_dims(var, others)
    y = (x - mean) / jnp.sqrt(var + epsilon)
    if "weight" in params:
        y = y * jnp.expand_dims(params["weight"], others)
    if "bias" in params:
        y = y + jnp.expand_dims(params["bias"], others)
    return y, state
''',
    "merged": '''
def merged(params, state):
    """The parameters, with the state that a call before has left."""
    return {
        k: merged(v, state.get(k, {})) if isinstance(v, dict) else state.get(k, v)
        for k, v in params.items()
    }
''',
    "layer_norm": '''
def layer_norm(params, x, epsilon=1e-5):
    """Normalise over the last axes, as many as the parameters have."""
    axes = tuple(range(-params["weight"].ndim, 0))
    y = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + epsilon)
    y = y * params["weight"]
    return y + params["bias"] if "bias" in params else y
''',
    "embedding": '''
def embedding(params, ids):
    """Rows of the table; NaN where an id is out of range."""
    return jnp.take(params["weight"], ids, axis=0)
''',
    "rnn": '''
def rnn(params, x, activation=jnp.tanh):
    """An Elman network over x (batch, time, in) -> (all outputs, the last one), from zeros."""

    def step(h, given):
        h = h @ params["weight_hh"].T
        h = activation(given + h + params["bias_hh"] if "bias_hh" in params else given + h)
        return h, h

    given = x @ params["weight_ih"].T
    given = given + params["bias_ih"] if "bias_ih" in params else given
    start = jnp.zeros((x.shape[0], params["weight_hh"].shape[0]), x.dtype)
    last, outputs = lax.scan(step, start, given.swapaxes(0, 1))
    return outputs.swapaxes(0, 1), last
''',
    "max_pool": '''
def max_pool(x, kernel, stride=None, padding=0, axis=2):
    """The largest of each window along the axes from ``axis`` on; pads count as -inf."""
    return pool(x, -jnp.inf, lax.max, kernel, stride, padding, axis)
''',
    "avg_pool": '''
def avg_pool(x, kernel, stride=None, padding=0, include_pad=True, axis=2):
    """The mean of each window along the axes from ``axis`` on, pads counted or not."""
    total = pool(x, 0.0, lax.add, kernel, stride, padding, axis)
    if include_pad:
        return total / (kernel ** (x.ndim - 2) if isinstance(kernel, int) else math.prod(kernel))
    return total / pool(jnp.ones_like(x), 0.0, lax.add, kernel, stride, padding, axis)
''',
    "pool": '''
def pool(x, start, combine, kernel, stride, padding, axis):
    """``combine`` over windows: numbers are for every axis of the images, or one each."""
    n = x.ndim - 2
    sizes = [(v,) * n if isinstance(v, int) else v for v in (kernel, stride or kernel)]
    kernel, stride = ((1,) * axis + v + (1,) * (2 - axis) for v in sizes)
    padding = ((padding, padding),) * n if isinstance(padding, int) else padding
    padding = ((0, 0),) * axis + padding + ((0, 0),) * (2 - axis)
    return lax.reduce_window(x, start, combine, kernel, stride, padding)
''',
    "dilated_max_pool": '''
def dilated_max_pool(x, kernel, stride=None, padding=0, dilation=1, axis=2):
    """max_pool over spread windows, tap by tap: JAX has no gradient of a dilated reduce_window."""
    n = x.ndim - 2
    kernel, stride, dilation = (
        (v,) * n if isinstance(v, int) else v for v in (kernel, stride or kernel, dilation)
    )
    padding = ((padding, padding),) * n if isinstance(padding, int) else padding
    padding = ((0, 0),) * axis + padding + ((0, 0),) * (2 - axis)
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    taps = []
    for tap in itertools.product(*map(range, kernel)):
        index = [slice(None)] * axis
        for a, (t, k, s, d) in enumerate(zip(tap, kernel, stride, dilation)):
            index.append(slice(t * d, x.shape[axis + a] - (k - 1 - t) * d, s))
        taps.append(x[tuple(index)])
    taps = jnp.stack(taps)
    return jnp.take_along_axis(taps, taps.argmax(0, keepdims=True), 0)[0]
''',
    "absolute": '''
def absolute(x):
    """jnp.abs, but its gradient at 0 is 0: JAX's own is 1 there."""
    return x * jnp.sign(x)
''',
    **{
        f"first_{name}": f'''
def first_{name}(x, y):
    """jnp.{name}, but the gradient of a tie goes to x: JAX's own halves it."""
    return jnp.where((x {sign} y) | jnp.isnan(x), x, y)
'''
        for name, sign in (("maximum", ">="), ("minimum", "<="))
    },
    **{
        f"{name}_first": f'''
def {name}_first(x, axis, keepdims=False):
    """x.{name}(axis), but a tie's gradient goes to the first: JAX's own is shared out."""
    y = jnp.take_along_axis(x, x.arg{name}(axis, keepdims=True), axis)
    return y if keepdims else y.squeeze(axis)
'''
        for name in ("max", "min")
    },
    **{
        f"{name}_each": f'''
def {name}_each(x, axis=None, keepdims=False):
    """x.{name}(axis), but equal ones get the whole gradient each: JAX's own is shared out."""
    top = lax.stop_gradient(x.{name}(axis, keepdims=True))
    gap = x - top  # NaN where both are infinite: no gradient there
    y = top + jnp.where(gap == 0, gap, 0).sum(axis, keepdims=True)
    return y if keepdims else y.squeeze(axis)
'''
        for name in ("max", "min")
    },
    "flatten": '''
def flatten(x, start=1):
    """The axes from ``start`` on made into one."""
    return x.reshape(*x.shape[:start], math.prod(x.shape[start:]))
''',
    "dropout": '''
def dropout(x, rate, rng=None, training=False):
    """While training, zero with probability ``rate``; what stays grows by 1 / (1 - rate)."""
    if not training:
        return x
    keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)
''',
    "scan": '''
def scan(step, carries, xs, same, reverse=False):
    """``step(*carries, *x, *same)`` along xs -> the last carries, then the stacked outputs."""

    def body(carry, x):
        out = step(*carry, *x, *same)
        return out[: len(carry)], out[len(carry) :]

    last, ys = lax.scan(body, tuple(carries), tuple(xs), reverse=reverse)
    return (*last, *ys)
''',
}
