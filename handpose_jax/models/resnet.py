"""ResNet-50 up to conv4_6 as the encoder of the paper's ablation: 1,024 channels at stride 16.

This is the network of keras.applications, so its ImageNet weights fit: the stride of a stage is in
its first 1x1 convolution, and images are float RGB minus ImageNet's mean colour, not divided.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1; Gouidis et al.
2019, the ablation of the encoder.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from handpose_jax.models.layers import BatchNorm, ConvBN, Layer, check_inference

MEAN = (123.68, 116.779, 103.939)
"""RGB, of 0..255 images. Source: the Caffe release of the original weights."""

SCALE = (1.0, 1.0, 1.0)

BN_EPSILON = 1.001e-5
"""Source: keras.applications."""

STAGES: dict[str, tuple[int, int, int]] = {
    'conv2': (64, 3, 1),
    'conv3': (128, 4, 2),
    'conv4': (256, 6, 2),
}
"""Channels of the 3x3 convolutions, blocks, stride of the first block; conv2_1 .. conv4_6."""


class Stem(Layer):
    """Convolution 7x7 with stride 2, batch normalisation, ReLU, max pooling 3x3 with stride 2.

    Its padding is 3 on every side, where ConvBN's SAME would be 2 and 3.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        kernel = self.param(
            'kernel',
            nn.initializers.variance_scaling(2.0, 'fan_out', 'truncated_normal'),
            (7, 7, x.shape[-1], 64),
            jnp.float32,
        )
        x = jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            (2, 2),
            ((3, 3), (3, 3)),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        if self.folded:
            check_inference(train)
            bias = self.param('bias', nn.initializers.zeros, (64,), jnp.float32)
            x = (x + bias).astype(self.dtype)
        else:
            x = BatchNorm(self.bn_momentum, BN_EPSILON, name='bn')(x, train)
        # Padded with zeros, which no maximum of a ReLU can tell from minus infinity: that would be
        # part of the range of values that int8 is calibrated on.
        x = jnp.pad(nn.relu(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nn.max_pool(x, (3, 3), (2, 2), padding='VALID')


class Bottleneck(Layer):
    """1x1, 3x3, 1x1 to four times the channels; the shortcut is projected where shapes differ."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv: Any = functools.partial(ConvBN, bn_epsilon=BN_EPSILON, **self.handed_down())
        y = conv(self.features, stride=self.stride, activation=nn.relu, name='reduce')(x, train)
        y = conv(self.features, kernel_size=3, activation=nn.relu, name='spatial')(y, train)
        y = conv(4 * self.features, name='expand')(y, train)
        if x.shape != y.shape:
            x = conv(4 * self.features, stride=self.stride, name='shortcut')(x, train)
        return nn.relu(x + y)


class ResNet50(Layer):
    """The encoder: [b h w 3] images minus MEAN to [b h/16 w/16 1024] features."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Stem(name='stem', **self.handed_down())(x, train)
        for stage, (features, blocks, stride) in STAGES.items():
            for number in range(1, blocks + 1):
                x = Bottleneck(
                    features,
                    stride=stride if number == 1 else 1,
                    name=f'{stage}_{number}',
                    **self.handed_down(),
                )(x, train)
        return x
