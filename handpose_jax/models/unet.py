"""The tutorial's network: a shallow U-Net with batch normalisation before each convolution.

21 maps of 0..1 at the input's own resolution, no background. 491,206 parameters.

Source: Chernytska 2021, "Gentle introduction to 2D Hand Pose Estimation", and its published code.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.models.layers import BatchNorm, conv

WIDTHS = (16, 32, 64, 128)
"""Channels at strides 1, 2, 4 and 8."""

MEAN = (0.3950, 0.4323, 0.2954)
SCALE = (0.1966, 0.1734, 0.1836)
"""Mean and standard deviation of FreiHAND's pixels, RGB, 0..1."""

_EPSILON = 1e-5
"""PyTorch's default, as the tutorial's weights expect it."""

_DIVISOR = 8


class UNet(nn.Module):
    """RGB images as they are, 0..255, to 21 heatmaps at stride 1. Normalisation happens in here.

    Attributes:
        width: multiplier on every channel count but the first and the last.
        bn_momentum: momentum of the running statistics; 0.9 is what PyTorch calls 0.1.
        dtype: of the computation; parameters and heatmaps are float32.
        implementation: see handpose_jax.models.layers.
    """

    width: float = 1.0
    bn_momentum: float = 0.9
    dtype: Any = jnp.float32
    implementation: str = 'auto'

    stride: ClassVar[int] = 1

    @nn.compact
    def __call__(
        self, images: UInt8[Array, 'b h w 3'] | Float[Array, 'b h w 3'], train: bool = False
    ) -> Float[Array, 'b h w 21']:
        """Runs the network.

        Args:
            images: RGB, 0..255, height and width divisible by 8.
            train: use and update the batch's statistics (mutable collection 'batch_stats').

        Returns:
            f32[b h w 21], 0..1.

        Raises:
            ValueError: if a side is not divisible by 8.
        """
        if images.shape[1] % _DIVISOR or images.shape[2] % _DIVISOR:
            raise ValueError(
                f'size: expected an input whose height and width are divisible by {_DIVISOR}, got '
                f'{images.shape[1:3]}'
            )

        def block(x: Array, features: int, name: str) -> Array:
            return DoubleConv(
                features,
                bn_momentum=self.bn_momentum,
                implementation=self.implementation,
                name=name,
            )(x, train)

        at_1, at_2, at_4, at_8 = (max(4, round(self.width * n)) for n in WIDTHS)
        x = (images.astype(jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(SCALE)
        skip_1 = block(x.astype(self.dtype), at_1, 'down_1')
        skip_2 = block(_pool(skip_1), at_2, 'down_2')
        skip_4 = block(_pool(skip_2), at_4, 'down_3')
        x = block(_pool(skip_4), at_8, 'bottleneck')
        x = block(jnp.concatenate([upsample(x), skip_4], axis=-1), at_4, 'up_1')
        x = block(jnp.concatenate([upsample(x), skip_2], axis=-1), at_2, 'up_2')
        x = block(jnp.concatenate([upsample(x), skip_1], axis=-1), at_1, 'up_3')
        kernel = self.param(
            'heatmaps_kernel', _INITIALIZER, (3, 3, at_1, NUM_KEYPOINTS), jnp.float32
        )
        maps = conv(x, kernel.astype(self.dtype), 1, self.implementation)
        # Loss and decoding are float32 whatever the network computes in.
        return nn.sigmoid(maps.astype(jnp.float32))


class DoubleConv(nn.Module):
    """Twice batch normalisation, 3x3 convolution without bias, ReLU.

    Attributes:
        features: output channels of both convolutions.
        bn_momentum: see UNet.
        implementation: see handpose_jax.models.layers.
    """

    features: int
    bn_momentum: float = 0.9
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for number in (1, 2):
            x = BatchNorm(self.bn_momentum, _EPSILON, name=f'bn_{number}')(x, train)
            shape = (3, 3, x.shape[-1], self.features)
            kernel = self.param(f'kernel_{number}', _INITIALIZER, shape, jnp.float32)
            x = nn.relu(conv(x, kernel.astype(x.dtype), 1, self.implementation))
        return x


# PyTorch's default for convolutions, with which the tutorial's recipe was found: uniform within
# 1 / sqrt(fan_in), which is a variance of 1 / (3 fan_in).
_INITIALIZER = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def upsample(x: Array) -> Array:
    """Doubles height and width of [b h w c], bilinear, pixel centres aligned, borders repeated."""
    for axis in (1, 2):
        size = x.shape[axis]
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads, mode='edge')

        def part(start: int, padded: Array = padded, axis: int = axis, size: int = size) -> Array:
            window = [slice(None)] * 4
            window[axis] = slice(start, start + size)
            return padded[tuple(window)]

        # Output pixel 2 i lies a quarter before input pixel i, and 2 i + 1 a quarter after it.
        pair = jnp.stack([0.75 * x + 0.25 * part(0), 0.75 * x + 0.25 * part(2)], axis=axis + 1)
        shape = list(x.shape)
        shape[axis] = 2 * size
        x = pair.reshape(shape)
    return x


def _pool(x: Array) -> Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2))
