"""MobileNetV2 as the paper's encoder: blocks 1..17, block 14 without its stride.

Source: Sandler et al. 2018, "MobileNetV2", table 2; Gouidis et al. 2019, section 3.1.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array

from handpose_jax.models.layers import ConvBN, Layer, relu6


class BlockSpec(NamedTuple):
    """One inverted residual block: output channels at width 1.0, stride and expansion factor."""

    features: int
    stride: int
    expansion: int


def _stage(features: int, stride: int, repeats: int, expansion: int = 6) -> list[BlockSpec]:
    return [BlockSpec(features, stride if i == 0 else 1, expansion) for i in range(repeats)]


BLOCKS: tuple[BlockSpec, ...] = (
    *_stage(16, 1, 1, expansion=1),
    *_stage(24, 2, 2),
    *_stage(32, 2, 3),
    *_stage(64, 2, 4),
    *_stage(96, 1, 3),
    *_stage(160, 2, 3),
    *_stage(320, 1, 1),
)
"""Blocks 1..17 of the original network, strides as published."""

STEM_FEATURES = 32

UNSTRIDED_BLOCK = 14
"""The block, counted from 1, whose stride the paper removes: features stay at stride 16."""


def _scaled_width(features: int, width: float) -> int:
    """Channels at a width multiplier: the nearest multiple of 8, never more than 10% below.

    Source: the reference implementation of MobileNetV2 (`_make_divisible`).
    """
    scaled = max(8, int(features * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * features * width else scaled


class InvertedResidual(Layer):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; a skip where shapes allow it."""

    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv: Any = functools.partial(ConvBN, **self.handed_down())
        y = x
        if self.expansion != 1:
            y = conv(self.expansion * x.shape[-1], activation=relu6, name='expand')(y, train)
        y = conv(
            kind='depthwise', kernel_size=3, stride=self.stride, activation=relu6, name='depthwise'
        )(y, train)
        y = conv(self.features, name='project')(y, train)
        return x + y if y.shape == x.shape else y


class MobileNetV2(Layer):
    """The encoder: [b h w 3] normalised images to [b h/16 w/16 320 x width] features.

    Attributes:
        width: multiplier on every channel count.
        output_stride: 16 as the paper has it, or 32 as published (for checking ImageNet weights).
    """

    width: float = 1.0
    output_stride: int = 16

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.output_stride not in (16, 32):
            raise ValueError(f'output_stride must be 16 or 32, got {self.output_stride}')
        x = ConvBN(
            _scaled_width(STEM_FEATURES, self.width),
            kernel_size=3,
            stride=2,
            activation=relu6,
            name='stem',
            **self.handed_down(),
        )(x, train)
        for number, spec in enumerate(BLOCKS, start=1):
            unstrided = self.output_stride == 16 and number == UNSTRIDED_BLOCK
            x = InvertedResidual(
                _scaled_width(spec.features, self.width),
                stride=1 if unstrided else spec.stride,
                expansion=spec.expansion,
                name=f'block_{number:02d}',
                **self.handed_down(),
            )(x, train)
        return x
