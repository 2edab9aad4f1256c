"""The small modules and functions that emitted TensorFlow source brings along, each only when used."""

HELPERS = {
    "Conv": '''
class Conv(tf.Module):
    """A convolution of images (N, *size, C); the kernel is (*kernel_size, in / groups, out)."""

    def __init__(self, in_channels, filters, kernel_size, strides=1, padding=0, dilations=1, groups=1, use_bias=True):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((*kernel_size, in_channels // groups, filters)), name="kernel")
        self.bias = tf.Variable(tf.zeros(filters), name="bias") if use_bias else None
        self.options = strides, padding, dilations, groups

    def __call__(self, x, training=False):
        y = convolution(x, self.kernel, *self.options)
        return y if self.bias is None else y + self.bias
''',
    "convolution": '''
def convolution(x, kernel, strides=1, padding=0, dilations=1, groups=1):
    """Padding is one number or (low, high) per axis. Groups one by one: TF differentiates no others."""
    n = len(x.shape) - 2
    padding = ((padding, padding),) * n if isinstance(padding, int) else padding
    dilations = (dilations,) * n if isinstance(dilations, int) else dilations
    x = tf.pad(x, ((0, 0), *padding, (0, 0)))
    for axis, d in enumerate(dilations):  # zeros into the kernel: TF differentiates no dilation on a CPU
        k = kernel.shape[axis]
        spread = tf.pad(tf.expand_dims(kernel, axis + 1), [(0, 0)] * (axis + 1) + [(0, d - 1)] + [(0, 0)] * (n + 1 - axis))
        kernel = tf.reshape(spread, (*kernel.shape[:axis], k * d, *kernel.shape[axis + 1 :]))
        kernel = tf.gather(kernel, tf.range(d * (k - 1) + 1), axis=axis) if d > 1 else kernel
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1))
    return tf.concat([tf.nn.convolution(a, b, strides, "VALID") for a, b in parts], -1)
''',
    "Dense": '''
class Dense(tf.Module):
    """x @ kernel + bias on the last axis."""

    def __init__(self, in_features, units, use_bias=True):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((in_features, units)), name="kernel")
        self.bias = tf.Variable(tf.zeros(units), name="bias") if use_bias else None

    def __call__(self, x, training=False):
        y = x @ self.kernel
        return y if self.bias is None else y + self.bias
''',
    "BatchNorm": '''
class BatchNorm(tf.Module):
    """Batch normalisation over all axes but one, with the running statistics of PyTorch or Keras."""

    def __init__(self, features, axis=-1, momentum=0.1, epsilon=1e-5, unbiased=True, scale=True, center=True):
        super().__init__()
        self.gamma = tf.Variable(tf.ones(features), name="gamma") if scale else None
        self.beta = tf.Variable(tf.zeros(features), name="beta") if center else None
        self.moving_mean = tf.Variable(tf.zeros(features), trainable=False, name="moving_mean")
        self.moving_variance = tf.Variable(tf.ones(features), trainable=False, name="moving_variance")
        self.axis, self.momentum, self.epsilon, self.unbiased = axis, momentum, epsilon, unbiased

    def __call__(self, x, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        axis = self.axis % len(x.shape)
        if training:
            mean, variance = tf.nn.moments(x, [a for a in range(len(x.shape)) if a != axis])
            n = tf.cast(tf.size(x) // x.shape[axis], x.dtype)
            seen = variance * (n / (n - 1)) if self.unbiased else variance
            self.moving_mean.assign_add(self.momentum * (mean - self.moving_mean))
            self.moving_variance.assign_add(self.momentum * (seen - self.moving_variance))
        shape = [x.shape[a] if a == axis else 1 for a in range(len(x.shape))]
        mean, variance, beta, gamma = (
            None if v is None else tf.reshape(v, shape) for v in (mean, variance, self.beta, self.gamma)
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, self.epsilon)
''',
    "LayerNorm": '''
class LayerNorm(tf.Module):
    """Normalisation of the last axes."""

    def __init__(self, shape, epsilon=1e-5, center=True):
        super().__init__()
        self.gamma = tf.Variable(tf.ones(shape), name="gamma")
        self.beta = tf.Variable(tf.zeros(shape), name="beta") if center else None
        self.axes, self.epsilon = list(range(-len(shape), 0)), epsilon

    def __call__(self, x, training=False):
        mean, variance = tf.nn.moments(x, self.axes, keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, self.epsilon)
''',
    "Embedding": '''
class Embedding(tf.Module):
    """Rows of a table."""

    def __init__(self, count, width):
        super().__init__()
        self.table = tf.Variable(tf.zeros((count, width)), name="table")

    def __call__(self, indices, training=False):
        return tf.gather(self.table, indices)
''',
    "RNN": '''
class RNN(tf.Module):
    """An Elman network over x (batch, time, in) -> (all outputs, the last one), from zeros."""

    def __init__(self, in_features, units, activation=tf.tanh, biases=1):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((in_features, units)), name="kernel")
        self.recurrent_kernel = tf.Variable(tf.zeros((units, units)), name="recurrent_kernel")
        self.bias = tf.Variable(tf.zeros(units), name="bias") if biases > 0 else None
        self.recurrent_bias = tf.Variable(tf.zeros(units), name="recurrent_bias") if biases > 1 else None
        self.activation = activation

    def __call__(self, x, training=False):
        inputs = x @ self.kernel
        for bias in (self.bias, self.recurrent_bias):
            inputs = inputs if bias is None else inputs + bias
        start = tf.zeros((tf.shape(x)[0], self.recurrent_kernel.shape[0]), x.dtype)
        step = lambda h, given: self.activation(given + h @ self.recurrent_kernel)
        outputs = tf.transpose(tf.scan(step, tf.transpose(inputs, (1, 0, 2)), start), (1, 0, 2))
        return outputs, outputs[:, -1]
''',
    "Sequential": '''
class Sequential(tf.Module):
    """Modules and functions, one after the other."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = list(layers)

    def __getitem__(self, i):
        return self.layers[i]

    def __call__(self, x, training=False):
        for layer in self.layers:
            x = layer(x, training=training) if isinstance(layer, tf.Module) else layer(x)
        return x
''',
    "max_pool": '''
def max_pool(x, kernel, strides=None, padding=0, dilations=None):
    """The largest of each window of images (N, *size, C); pads count as -inf."""
    n = len(x.shape) - 2
    kernel, strides, dilations = (
        (v,) * n if isinstance(v, int) else v for v in (kernel, strides or kernel, dilations)
    )
    padding = ((padding, padding),) * n if isinstance(padding, int) else padding
    x = tf.pad(x, ((0, 0), *padding, (0, 0)), constant_values=float("-inf"))
    return tf.nn.pool(x, kernel, "MAX", strides, "VALID", dilations=dilations)
''',
    "avg_pool": '''
def avg_pool(x, kernel, strides=None, padding=0, include_pad=True):
    """The mean of each window of images (N, *size, C); the zeros around count, or do not."""
    n = len(x.shape) - 2
    kernel, strides = ((v,) * n if isinstance(v, int) else v for v in (kernel, strides or kernel))
    padding = ((padding, padding),) * n if isinstance(padding, int) else padding
    padded = tf.pad(x, ((0, 0), *padding, (0, 0)))
    y = tf.nn.pool(padded, kernel, "AVG", strides, "VALID")
    if include_pad:
        return y
    inside = tf.pad(tf.ones_like(x), ((0, 0), *padding, (0, 0)))
    return y / tf.nn.pool(inside, kernel, "AVG", strides, "VALID")
''',
    "dropout": '''
def dropout(x, rate, training=False):
    """While training, zero with probability ``rate``; what stays grows by 1 / (1 - rate)."""
    return tf.nn.dropout(x, rate) if training else x
''',
}
