"""The small layers and functions that emitted TensorFlow source brings along, where used."""

HELPERS = {
    "freeze": '''
def freeze(part):
    """The same variables inside, but none that is trainable."""
    for name, item in list(vars(part).items()):
        if isinstance(item, tf.Variable) and item.trainable:
            setattr(part, name, tf.Variable(item, trainable=False, name=name))
        for inner in item if isinstance(item, (list, tuple)) else [item]:
            if isinstance(inner, tf.Module):
                freeze(inner)
''',
    "Sequential": '''
class Sequential(tf.Module):
    """Layers and functions, one after the other."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = layers

    def __call__(self, x, training=False):
        for layer in self.layers:
            x = layer(x, training=training) if isinstance(layer, tf.Module) else layer(x)
        return x
''',
    "Conv2d": '''
class Conv2d(tf.Module):
    """A convolution of NHWC images; padding is one number or (low, high) per axis."""

    def __init__(self, in_channels, channels, kernel_size, stride=1, padding=0, bias=True):
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.kernel = tf.Variable(tf.zeros((*size, in_channels, channels)), name="kernel")
        self.bias = tf.Variable(tf.zeros(channels), name="bias") if bias else None
        pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
        self.stride, self.padding = stride, [[0, 0], *map(list, pads), [0, 0]]

    def __call__(self, x, training=False):
        y = tf.nn.conv2d(x, self.kernel, self.stride, self.padding)
        return y if self.bias is None else y + self.bias
''',
    "DepthwiseConv2d": '''
class DepthwiseConv2d(tf.Module):
    """One kernel for each channel of NHWC images."""

    def __init__(self, channels, kernel_size, stride=1, padding=0, bias=True):
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.kernel = tf.Variable(tf.zeros((*size, channels, 1)), name="kernel")
        self.bias = tf.Variable(tf.zeros(channels), name="bias") if bias else None
        self.strides, self.padding = (1, stride, stride, 1), padding

    def __call__(self, x, training=False):
        # Padded by hand: with explicit padding TF 2.21 aborts when it fuses the bias.
        x = padded(x, self.padding)
        y = tf.nn.depthwise_conv2d(x, self.kernel, self.strides, "VALID")
        return y if self.bias is None else y + self.bias
''',
    "Conv": '''
class Conv(tf.Module):
    """A convolution along any number of axes, dilated or in groups."""

    def __init__(self, in_channels, channels, kernel_size, bias=True, **settings):
        super().__init__()
        inside = in_channels // settings.get("groups", 1)
        self.kernel = tf.Variable(tf.zeros((*kernel_size, inside, channels)), name="kernel")
        self.bias = tf.Variable(tf.zeros(channels), name="bias") if bias else None
        self.settings = settings

    def __call__(self, x, training=False):
        y = convolution(x, self.kernel, **self.settings)
        return y if self.bias is None else y + self.bias
''',
    "convolution": '''
def convolution(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    """Channels last; kernel (*size, in / groups, out); padding a number or (low, high) per axis."""
    n = len(kernel.shape) - 2
    stride, dilation = ((v,) * n if isinstance(v, int) else v for v in (stride, dilation))
    x = padded(x, padding)
    # Group by group: on a CPU there is no gradient of a grouped convolution.
    pairs = list(zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1)))
    if max(dilation) == 1:
        return tf.concat([tf.nn.convolution(x, k, stride, "VALID") for x, k in pairs], -1)
    # TF does not stride and dilate at once.
    ys = [tf.nn.convolution(x, k, 1, "VALID", dilations=dilation) for x, k in pairs]
    return tf.concat(ys, -1)[:, *(slice(None, None, s) for s in stride)]
''',
    "Dense": '''
class Dense(tf.Module):
    """x @ kernel + bias on the last axis."""

    def __init__(self, inputs, units, bias=True):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((inputs, units)), name="kernel")
        self.bias = tf.Variable(tf.zeros(units), name="bias") if bias else None

    def __call__(self, x, training=False):
        y = tf.matmul(x, self.kernel)
        return y if self.bias is None else y + self.bias
''',
    "BatchNorm": '''
class BatchNorm(tf.Module):
    """Over all axes but the last: the batch's statistics when training, else the moving ones."""

    def __init__(self, channels, decay=0.9, epsilon=1e-5, unbiased=True, scale=True, center=True):
        super().__init__()
        self.gamma = tf.Variable(tf.ones(channels), name="gamma") if scale else None
        self.beta = tf.Variable(tf.zeros(channels), name="beta") if center else None
        self.moving_mean = tf.Variable(tf.zeros(channels), trainable=False, name="moving_mean")
        self.moving_variance = tf.Variable(
            tf.ones(channels), trainable=False, name="moving_variance"
        )
        self.decay, self.epsilon, self.unbiased = decay, epsilon, unbiased

    def __call__(self, x, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
            n = tf.cast(tf.size(x) // tf.shape(x)[-1], x.dtype)
            new = variance * (n / (n - 1)) if self.unbiased else variance
            self.moving_mean.assign(self.decay * self.moving_mean + (1 - self.decay) * mean)
            self.moving_variance.assign(self.decay * self.moving_variance + (1 - self.decay) * new)
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.epsilon)
''',
    "LayerNorm": '''
class LayerNorm(tf.Module):
    """Normalise over the last axes, as many as ``shape`` has."""

    def __init__(self, shape, epsilon=1e-5, center=True):
        super().__init__()
        self.gamma = tf.Variable(tf.ones(shape), name="gamma")
        self.beta = tf.Variable(tf.zeros(shape), name="beta") if center else None
        self.epsilon = epsilon

    def __call__(self, x, training=False):
        axes = list(range(-len(self.gamma.shape), 0))
        mean, variance = tf.nn.moments(x, axes, keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.epsilon)
''',
    "Embedding": '''
class Embedding(tf.Module):
    """Rows of a table, by number."""

    def __init__(self, count, width):
        super().__init__()
        self.embeddings = tf.Variable(tf.zeros((count, width)), name="embeddings")

    def __call__(self, ids, training=False):
        return tf.gather(self.embeddings, ids)
''',
    "RNN": '''
class RNN(tf.Module):
    """An Elman network over x (batch, time, in) -> (all outputs, the last one), from zeros."""

    def __init__(self, inputs, units, activation=tf.tanh, bias=True, recurrent_bias=False):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((inputs, units)), name="kernel")
        self.recurrent_kernel = tf.Variable(tf.zeros((units, units)), name="recurrent_kernel")
        self.bias = tf.Variable(tf.zeros(units), name="bias") if bias else 0.0
        self.recurrent_bias = tf.Variable(tf.zeros(units)) if recurrent_bias else 0.0
        self.activation = activation

    def __call__(self, x, training=False):
        def step(h, given):
            h = tf.matmul(h, self.recurrent_kernel) + self.recurrent_bias
            return self.activation(given + h)

        given = tf.matmul(x, self.kernel) + self.bias
        start = tf.zeros((tf.shape(x)[0], self.kernel.shape[1]), x.dtype)
        outputs = tf.scan(step, tf.transpose(given, (1, 0, 2)), start)
        return tf.transpose(outputs, (1, 0, 2)), outputs[-1]
''',
    "Dropout": '''
class Dropout(tf.Module):
    """While training, zero with probability ``rate``; what stays grows by 1 / (1 - rate)."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def __call__(self, x, training=False):
        return dropout(x, self.rate, training=training)
''',
    "dropout": '''
def dropout(x, rate, training=False):
    """While training, zero with probability ``rate``; what stays grows by 1 / (1 - rate)."""
    return tf.nn.dropout(x, rate) if training else x
''',
    "max_pool": '''
def max_pool(x, kernel, stride, padding=0, dilation=1):
    """The largest of each window along all axes but the first and last; pads count as -inf."""
    n = len(x.shape) - 2
    kernel, stride, dilation = (
        [v] * n if isinstance(v, int) else list(v) for v in (kernel, stride, dilation)
    )
    x = padded(x, padding, float("-inf"))
    if max(dilation) == 1:
        return tf.nn.pool(x, kernel, "MAX", stride, "VALID")
    y = tf.nn.pool(x, kernel, "MAX", [1] * n, "VALID", dilations=dilation)
    return y[:, *(slice(None, None, s) for s in stride)]  # tf.nn.pool has not both at once
''',
    "max_pool3d": '''
def max_pool3d(x, kernel, stride, padding=0):
    """Pooled in planes, then along the first axis: tf.nn.max_pool3d gives the gradient of a tie to
    each of the equal ones, where tf.nn.max_pool2d gives it to the first.
    """
    kernel, stride = ([v] * 3 if isinstance(v, int) else list(v) for v in (kernel, stride))
    x = padded(x, padding, float("-inf"))
    n, d, h, w, c = (tf.shape(x)[i] if s is None else s for i, s in enumerate(x.shape))
    y = tf.reshape(x, (n * d, h, w, c))
    y = tf.nn.max_pool2d(y, kernel[1:], stride[1:], "VALID")
    h, w = tf.shape(y)[1], tf.shape(y)[2]
    y = tf.reshape(y, (n, d, h * w, c))
    y = tf.nn.max_pool2d(y, (kernel[0], 1), (stride[0], 1), "VALID")
    return tf.reshape(y, (n, -1, h, w, c))
''',
    "avg_pool": '''
def avg_pool(x, kernel, stride, padding=0, include_pad=True):
    """The mean of each window along all axes but the first and last, pads counted or not."""
    n = len(x.shape) - 2
    kernel, stride = ([v] * n if isinstance(v, int) else list(v) for v in (kernel, stride))
    y = tf.nn.pool(padded(x, padding), kernel, "AVG", stride, "VALID")
    if include_pad:
        return y
    return y / tf.nn.pool(padded(tf.ones_like(x), padding), kernel, "AVG", stride, "VALID")
''',
    "padded": '''
def padded(x, padding, value=0.0):
    """All axes but the first and last with ``value`` around: one number or (low, high) per axis."""
    pads = [(padding, padding)] * (len(x.shape) - 2) if isinstance(padding, int) else padding
    return tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value) if padding else x
''',
    **{
        f"shared_{name}": f'''
def shared_{name}(x, y):
    """tf.{name}, but the two share the gradient of a tie: TensorFlow gives it all to x."""
    return tf.{name}(x, y) / 2 + tf.{name}(y, x) / 2
'''
        for name in ("maximum", "minimum")
    },
    **{
        f"{name}_first": f'''
def {name}_first(x, axis, keepdims=False):
    """tf.reduce_{name}, but a tie's gradient goes to the first: TensorFlow shares it out."""
    first = tf.one_hot(tf.arg{name}(x, axis), tf.shape(x)[axis], True, False, axis, tf.bool)
    return tf.reduce_sum(tf.where(first, x, tf.zeros_like(x)), axis, keepdims=keepdims)
'''
        for name in ("max", "min")
    },
    **{
        f"{name}_each": f'''
def {name}_each(x, axis=None, keepdims=False):
    """tf.reduce_{name}, but equal ones get the whole gradient each: TensorFlow shares it out."""
    top = tf.stop_gradient(tf.reduce_{name}(x, axis, keepdims=True))
    gap = x - top  # NaN where both are infinite: no gradient there
    y = top + tf.reduce_sum(tf.where(gap == 0, gap, 0), axis, keepdims=True)
    return y if keepdims else tf.squeeze(y, axis)
'''
        for name in ("max", "min")
    },
    "flatten": '''
def flatten(x, start=1):
    """The axes from ``start`` on made into one."""
    sizes = tf.shape(x)
    return tf.reshape(x, tf.concat([sizes[:start], [tf.reduce_prod(sizes[start:])]], 0))
''',
    "scan": '''
def scan(step, carries, xs, same, reverse=False):
    """``step(*carries, *x, *same)`` along xs -> the last carries, then the stacked outputs."""
    n = len(carries)
    first = step(*carries, *(x[0] for x in xs), *same)
    start = (*carries, *map(tf.zeros_like, first[n:]))
    out = tf.scan(lambda so_far, x: step(*so_far[:n], *x, *same), tuple(xs), start, reverse=reverse)
    return (*(c[0 if reverse else -1] for c in out[:n]), *out[n:])
''',
}
