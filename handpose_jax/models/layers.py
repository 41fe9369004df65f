"""Convolutions that are fast on every platform, and the Conv-BN blocks built from them.

XLA's CPU backend runs grouped convolutions (and their gradients) many times slower than memory and
arithmetic would allow. Each convolution here therefore has two formulations of the same function:
plain `lax` convolution for GPU, TPU and export, and one for CPUs made of shifted multiply-adds and
matrix products. `implementation` picks one:

    'auto'   decided by `jax.lax.platform_dependent` when the program is compiled for a platform
    'lax'    always plain lax, which is what exporters must see
    'cpu'    always the CPU formulation

The parameters are the same for all. Activations are NHWC, kernels HWIO (depthwise: h w 1 c).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

Implementation = Literal['auto', 'lax', 'cpu']
IMPLEMENTATIONS: tuple[str, ...] = ('auto', 'lax', 'cpu')

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def _check(implementation: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f'implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}')


def _select(implementation: str, cpu: Callable, lax_version: Callable, *operands: Any) -> Any:
    _check(implementation)
    if implementation == 'lax':
        return lax_version(*operands)
    if implementation == 'cpu':
        return cpu(*operands)
    return jax.lax.platform_dependent(*operands, cpu=cpu, default=lax_version)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: the output has ceil(size / stride) pixels, the odd pad goes to the end."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


# --- depthwise convolution ------------------------------------------------------------------------


def _pad_same(x: Array, kernel: Array, stride: int) -> Array:
    pads = [_same_padding(x.shape[axis], kernel.shape[axis - 1], stride) for axis in (1, 2)]
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _window(x: Array, i: int, j: int, stride: int, height: int, width: int) -> Array:
    """The pixels of a padded image that tap (i, j) of a kernel meets, one for each output pixel."""
    rows = slice(i, i + stride * (height - 1) + 1, stride)
    columns = slice(j, j + stride * (width - 1) + 1, stride)
    return x[..., rows, columns, :]


def _accumulator(dtype: Any) -> Any:
    """Sums are at least float32, as lax convolutions have them."""
    return jnp.promote_types(dtype, jnp.float32)


def _depthwise_lax(x: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        'SAME',
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[-1],
    )


def _depthwise_shifts(x: Array, kernel: Array, stride: int) -> Array:
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    wide = _accumulator(x.dtype)
    padded, kernel = _pad_same(x.astype(wide), kernel, stride), kernel.astype(wide)
    out = jnp.zeros((), wide)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out = out + _window(padded, i, j, stride, height, width) * kernel[i, j, 0]
    return out.astype(x.dtype)


def _depthwise_kernel_gradient(x: Array, kernel: Array, stride: int, out_gradient: Array) -> Array:
    """One image at a time: its windows stay in the cache, a whole batch's would not.

    The sums over pixels are products with a row of ones: XLA's matrix products read their operand
    faster than its reductions do, which makes the whole training step a fifth faster.
    """
    rows, columns = kernel.shape[:2]
    height, width = out_gradient.shape[1:3]
    wide = _accumulator(x.dtype)

    ones = jnp.ones((1, height * width), wide)

    def add_image(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        padded, gradient = (array.astype(wide) for array in image)

        def tap(i: int, j: int) -> Array:
            products = _window(padded, i, j, stride, height, width) * gradient
            return (ones @ products.reshape(height * width, -1))[0]

        taps = [tap(i, j) for i in range(rows) for j in range(columns)]
        return total + jnp.stack(taps), None

    def add_images(padded: Array, gradients: Array) -> Array:
        start = jnp.zeros((rows * columns, x.shape[-1]), wide)
        return jax.lax.scan(add_image, start, (padded, gradients))[0]

    images = _pad_same(x, kernel, stride), out_gradient
    devices = jax.device_count()
    if devices > 1 and x.shape[0] % devices == 0:
        # A loop over an axis that devices share would make each of them fetch the whole batch:
        # a loop for each device's part, side by side, leaves the images where they are.
        parts = [array.reshape(devices, -1, *array.shape[1:]) for array in images]
        total = jax.vmap(add_images)(*parts).sum(axis=0)
    else:
        total = add_images(*images)
    return total.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Array, kernel: Array, stride: int, implementation: str = 'auto') -> Array:
    """Depthwise convolution with SAME padding; the same function and gradients on every path.

    Args:
        x: [b h w c].
        kernel: [kh kw 1 c].
        stride: in both directions.
        implementation: see the module's docstring.

    Returns:
        [b ceil(h/stride) ceil(w/stride) c], in x's dtype.

    Raises:
        ValueError: for a kernel of other channels, or an unknown implementation.
    """
    if kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(
            f'depthwise_conv: the kernel must be [kh kw 1 {x.shape[-1]}] for an input of '
            f'{x.shape[-1]} channels, got {kernel.shape}'
        )
    return _select(
        implementation,
        lambda x, k: _depthwise_shifts(x, k, stride),
        lambda x, k: _depthwise_lax(x, k, stride),
        x,
        kernel,
    )


def _depthwise_forward(
    x: Array, kernel: Array, stride: int, implementation: str
) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel, stride, implementation), (x, kernel)


def _depthwise_backward(
    stride: int, implementation: str, saved: tuple[Array, Array], out_gradient: Array
) -> tuple[Array, Array]:
    def cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        _, pullback = jax.vjp(lambda x: _depthwise_shifts(x, kernel, stride), x)
        return pullback(gradient)[0], _depthwise_kernel_gradient(x, kernel, stride, gradient)

    def lax_version(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        _, pullback = jax.vjp(lambda x, k: _depthwise_lax(x, k, stride), x, kernel)
        return pullback(gradient)

    return _select(implementation, cpu, lax_version, *saved, out_gradient)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


# --- dense convolutions ---------------------------------------------------------------------------


def _conv_lax(x: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), 'SAME', dimension_numbers=_DIMENSIONS
    )


def conv(x: Array, kernel: Array, stride: int = 1, implementation: str = 'auto') -> Array:
    """Convolution with SAME padding; on CPUs a 1x1 convolution is one matrix product.

    Args:
        x: [b h w c].
        kernel: [kh kw c d].
        stride: in both directions.
        implementation: see the module's docstring.

    Returns:
        [b ceil(h/stride) ceil(w/stride) d].

    Raises:
        ValueError: for an unknown implementation, whatever the size of the kernel.
    """
    _check(implementation)
    if kernel.shape[:2] != (1, 1):
        return _conv_lax(x, kernel, stride)

    def cpu(x: Array, kernel: Array) -> Array:
        x = x[:, ::stride, ::stride]
        # Two-dimensional: the gradient of a four-dimensional product would copy its operands.
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)

    return _select(implementation, cpu, lambda x, k: _conv_lax(x, k, stride), x, kernel)


def _transposed_lax(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_transpose(x, kernel, (2, 2), 'SAME', dimension_numbers=_DIMENSIONS)


@jax.custom_vjp
def _transposed_subpixel(x: Array, kernel: Array) -> Array:
    """Each of the four output phases is a 2x2 convolution of the input, hence a matrix product.

    With kernel taps w, in one dimension:
    y[2m] = w0 x[m-1] + w2 x[m], y[2m+1] = w1 x[m] + w3 x[m+1].
    """
    b, h, w, c = x.shape
    phases = []
    for row, column in _PHASES:
        windows = jnp.concatenate(_windows_2x2(x, row, column), axis=-1)
        weights = kernel[row::2, column::2].reshape(4 * c, -1)
        phases.append((windows.reshape(-1, 4 * c) @ weights).reshape(b, h, w, -1))
    grid = jnp.stack(phases, axis=3).reshape(b, h, w, 2, 2, -1)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)


_PHASES = tuple(itertools.product((0, 1), repeat=2))


def _windows_2x2(x: Array, row: int, column: int) -> list[Array]:
    """Four of the nine shifts of an image by at most a pixel: from row - 1 and column - 1 on."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [
        padded[:, row + i : row + i + h, column + j : column + j + w]
        for i in (0, 1)
        for j in (0, 1)
    ]


def _transposed_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _transposed_subpixel(x, kernel), (x, kernel)


def _transposed_backward(saved: tuple[Array, Array], out_gradient: Array) -> tuple[Array, Array]:
    """Both gradients are one product each with all 16 taps' pixels of the output's gradient.

    What JAX derives makes four transposed copies of that gradient and adds up 16 shifted images.
    """
    x, kernel = saved
    b, h, w, c = x.shape
    # Read once for each tap: it must not be computed anew each time.
    phases = jax.lax.optimization_barrier(out_gradient).reshape(b, h, 2, w, 2, -1)
    taps, windows = [], []
    for row, column in _PHASES:
        # The input's pixel n met the tap row + 2i in the output's pixel 2 (n - row + 1 - i) + row.
        shifted = _windows_2x2(phases[:, :, row, :, column], 1 - row, 1 - column)
        windows += shifted[::-1]
        taps += [(row + 2 * i, column + 2 * j) for i in (0, 1) for j in (0, 1)]
    pixels = jnp.concatenate(windows, axis=-1).reshape(b * h * w, -1)
    weights = jnp.concatenate([kernel[tap].T for tap in taps])
    dx = (pixels @ weights).reshape(x.shape)
    of_taps = (x.reshape(-1, c).T @ pixels).reshape(c, len(taps), -1)
    by_place = [taps.index((row, column)) for row in range(4) for column in range(4)]
    dkernel = of_taps[:, jnp.array(by_place)].transpose(1, 0, 2).reshape(kernel.shape)
    return dx, dkernel


_transposed_subpixel.defvjp(_transposed_forward, _transposed_backward)


def transposed_conv(x: Array, kernel: Array, implementation: str = 'auto') -> Array:
    """Transposed convolution 4x4, stride 2, SAME: doubles height and width.

    Args:
        x: [b h w c].
        kernel: [4 4 c d], in the orientation of `jax.lax.conv_transpose` (not flipped).
        implementation: see the module's docstring.

    Returns:
        [b 2h 2w d].

    Raises:
        ValueError: for another kernel size, which the exporters are known to convert wrongly, or an
            unknown implementation.
    """
    if kernel.shape[:2] != (4, 4):
        raise ValueError(f'transposed_conv: the kernel must be 4x4, got {kernel.shape[:2]}')
    return _select(implementation, _transposed_subpixel, _transposed_lax, x, kernel)


# --- batch normalisation --------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Normalises by the batch's own statistics, with a gradient that reads its inputs once.

    Args:
        x: [b h w c], any float dtype; statistics are float32, over the global batch where b is
            sharded.
        scale: f32[c].
        bias: f32[c].
        epsilon: added to the variance.

    Returns:
        Normalised [b h w c] in x's dtype, mean f32[c] and (biased) variance f32[c]. No gradient
        flows through the two statistics: they only feed the running averages.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
    wide = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(wide, axes)
    # One pass over x instead of two; rounding can make a variance of zero slightly negative.
    var = jnp.maximum(jnp.mean(wide * wide, axes) - mean * mean, 0)
    rstd = jax.lax.rsqrt(var + epsilon)
    factor = scale * rstd
    y = (wide * factor + (bias - mean * factor)).astype(x.dtype)
    return (y, mean, var), (x, mean, rstd, scale)


def _batch_norm_backward(epsilon: float, saved: Any, gradients: Any) -> tuple[Array, Array, Array]:
    x, mean, rstd, scale = saved
    dy = gradients[0].astype(jnp.float32)
    wide = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    n = x.size // x.shape[-1]
    dbias = dy.sum(axes)
    dscale = (dy * (wide - mean)).sum(axes) * rstd
    factor = scale * rstd
    slope = factor * dscale * rstd / n
    dx = factor * dy - slope * wide + (slope * mean - factor * dbias / n)
    return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, its running statistics in 'batch_stats'.

    Attributes:
        momentum: weight of the old running statistics at each update.
        epsilon: added to the variance.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shape = (x.shape[-1],)
        scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        if train:
            y, mean, var = batch_norm(x, scale, bias, self.epsilon)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var
            return y
        factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
        offset = bias - running_mean.value * factor
        # Only the result is rounded to x's dtype: large terms may cancel in the sum.
        return (x * factor + offset).astype(x.dtype)


# --- activations and blocks -----------------------------------------------------------------------


@jax.custom_vjp
def relu6(x: Array) -> Array:
    """min(max(x, 0), 6); the gradient is 0 at both ends, as in PyTorch and TensorFlow."""
    return jnp.clip(x, 0, 6)


def _relu6_forward(x: Array) -> tuple[Array, Array]:
    return relu6(x), x


def _relu6_backward(x: Array, gradient: Array) -> tuple[Array]:
    # JAX halves the gradient at the ends, which takes two divisions for each number.
    return (jnp.where((x > 0) & (x < 6), gradient, jnp.zeros_like(gradient)),)


relu6.defvjp(_relu6_forward, _relu6_backward)


def leaky_relu(x: Array, *, folded: bool = False) -> Array:
    """x where positive, else 0.01 x; where folded, of operations that phones' runtimes have."""
    # LiteRT's XNNPACK has no comparison and would hand the graph back at one; but the gradient of
    # a maximum is another at 0, and costs more.
    return jnp.maximum(x, 0.01 * x) if folded else jnp.where(x > 0, x, 0.01 * x)


_INITIALIZER = nn.initializers.variance_scaling(2.0, 'fan_out', 'truncated_normal')
# Fan-out of a depthwise kernel counts all channels, though each output sees one: use fan-in there.
_DEPTHWISE_INITIALIZER = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal')


def check_inference(train: bool) -> None:
    """Raises ValueError for training: a folded network has no statistics to update."""
    if train:
        raise ValueError(
            'a network with folded=True has no batch normalisation and cannot be trained: build it '
            'with folded=False, and fold its variables after training'
        )


class Layer(nn.Module, kw_only=True):
    """What a network hands down to all its parts: how they compute.

    Attributes:
        bn_momentum: weight of the old running statistics at each update.
        dtype: of the computation; parameters and heatmaps are float32.
        implementation: see the module's docstring.
        folded: a bias in place of batch normalisation, for inference with parameters from
            handpose_jax.models.folding.
    """

    bn_momentum: float = 0.99
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    folded: bool = False

    def handed_down(self) -> dict[str, Any]:
        """The attributes above, as keyword arguments of a part."""
        return {
            'bn_momentum': self.bn_momentum,
            'dtype': self.dtype,
            'implementation': self.implementation,
            'folded': self.folded,
        }


class ConvBN(Layer):
    """Convolution without bias, batch normalisation, activation.

    Attributes:
        features: output channels; ignored for depthwise.
        kind: 'conv', 'depthwise' or 'transposed' (4x4, stride 2).
        kernel_size: side of the kernel.
        stride: in both directions.
        activation: applied last, or None.
        bn_epsilon: added to the variance.
    """

    features: int = 0
    kind: Literal['conv', 'depthwise', 'transposed'] = 'conv'
    kernel_size: int = 1
    stride: int = 1
    activation: Callable[[Array], Array] | None = None
    bn_epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = x.astype(self.dtype)
        k, c = self.kernel_size, x.shape[-1]
        shape = (k, k, 1, c) if self.kind == 'depthwise' else (k, k, c, self.features)
        initializer = _DEPTHWISE_INITIALIZER if self.kind == 'depthwise' else _INITIALIZER
        kernel = self.param('kernel', initializer, shape, jnp.float32).astype(self.dtype)
        if self.kind == 'depthwise':
            x = depthwise_conv(x, kernel, self.stride, self.implementation)
        elif self.kind == 'transposed':
            x = transposed_conv(x, kernel, self.implementation)
        elif self.kind == 'conv':
            x = conv(x, kernel, self.stride, self.implementation)
        else:
            raise ValueError(
                f"ConvBN.kind: expected 'conv', 'depthwise' or 'transposed', got {self.kind!r}"
            )
        if self.folded:
            check_inference(train)
            bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            x = (x + bias).astype(self.dtype)
        else:
            x = BatchNorm(self.bn_momentum, self.bn_epsilon, name='bn')(x, train)
        return x if self.activation is None else self.activation(x)
