"""The paper's decoder, and the whole network: encoder, decoder, 22 linear heatmaps at stride 4.

Source: Gouidis et al. 2019, figure 2 for the order of the layers; their widths are those of the
authors' earlier network and reproduce its size (4.24 M parameters with MobileNetV2 1.0).
"""

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.models.layers import ConvBN, Layer, conv, leaky_relu, relu6

NUM_HEATMAPS = NUM_KEYPOINTS + 1
"""One map for each keypoint, and the background last."""

STRIDE = 4
"""Input pixels for each heatmap pixel."""


class DecoderWidths(NamedTuple):
    """Output channels of the decoder's layers, numbered by the rows of the authors' figure."""

    reduce: int = 512  # 1
    separable: int = 512  # 2
    residual: int = 1024  # 3, 4, 5
    squeeze: int = 256  # 6
    bottleneck: int = 128  # 7
    expand: int = 256  # 8
    upsample: int = 128  # 9, both transposed convolutions
    refine: int = 128  # 10


def check_sides(images: Array) -> None:
    """Raises ValueError unless the height and width of [b h w c] are divisible by 16."""
    if images.shape[1] % 16 or images.shape[2] % 16:
        raise ValueError(
            f'size: expected an input whose height and width are divisible by 16, got '
            f'{images.shape[1:3]}'
        )


def empty_maps(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Initial bias of the maps: nothing anywhere, and all of it background."""
    del key
    return jnp.zeros(shape, dtype).at[-1].set(1)


class Decoder(Layer):
    """Encoder features [b h/16 w/16 c] to heatmaps [b h/4 w/4 22]."""

    widths: DecoderWidths = DecoderWidths()

    @nn.compact
    def __call__(self, features: Array, train: bool) -> Array:

        conv_bn: Any = functools.partial(ConvBN, **self.handed_down())

        def pointwise(x: Array, width: int, name: str, activation: Any = relu6) -> Array:
            return conv_bn(width, activation=activation, name=name)(x, train)

        def separable(x: Array, width: int, name: str) -> Array:
            x = conv_bn(
                kind='depthwise', kernel_size=3, activation=relu6, name=f'{name}_depthwise'
            )(x, train)
            return pointwise(x, width, f'{name}_pointwise')

        def upsample(x: Array, width: int, name: str) -> Array:
            return conv_bn(width, kind='transposed', kernel_size=4, activation=relu6, name=name)(
                x, train
            )

        w = self.widths
        x = pointwise(features, w.reduce, 'reduce')
        x = separable(x, w.separable, 'separable')
        x = pointwise(x, w.residual, 'residual', activation=None)
        skip = pointwise(features, w.residual, 'skip', activation=None)
        x = leaky_relu(x + skip, folded=self.folded)
        x = pointwise(x, w.squeeze, 'squeeze')
        x = separable(x, w.bottleneck, 'bottleneck')
        x = pointwise(x, w.expand, 'expand')
        x = upsample(x, w.upsample, 'upsample_1')
        x = upsample(x, w.upsample, 'upsample_2')
        x = separable(x, w.refine, 'refine')
        # The maps start as what almost every pixel's target is: nothing, and all background. From
        # anywhere else the first steps go into these constants, with gradients 50 times the later.
        kernel = self.param(
            'heatmaps_kernel',
            nn.initializers.normal(0.001),
            (1, 1, x.shape[-1], NUM_HEATMAPS),
            jnp.float32,
        )
        bias = self.param('heatmaps_bias', empty_maps, (NUM_HEATMAPS,), jnp.float32)
        maps = conv(x, kernel.astype(self.dtype), 1, self.implementation)
        # Loss and decoding are float32 whatever the network computes in.
        return maps.astype(jnp.float32) + bias


class HeatmapNetwork(Layer):
    """RGB images as they are, 0..255, to 22 heatmaps at stride 4. Normalisation happens in here.

    Attributes:
        encoder: module from normalised images to features at stride 16, its name 'encoder'.
        widths: the decoder's channels.
        mean: of each channel, subtracted from the 0..255 image.
        scale: of each channel, the divisor after the subtraction.
    """

    encoder: nn.Module
    widths: DecoderWidths = DecoderWidths()
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    scale: tuple[float, float, float] = (127.5, 127.5, 127.5)

    stride: ClassVar[int] = STRIDE

    @nn.compact
    def __call__(
        self, images: UInt8[Array, 'b h w 3'] | Float[Array, 'b h w 3'], train: bool = False
    ) -> Float[Array, 'b h/4 w/4 22']:
        """Runs the network.

        Args:
            images: RGB, 0..255, height and width divisible by 16.
            train: use and update the batch's statistics (mutable collection 'batch_stats').

        Returns:
            f32[b h/4 w/4 22], linear, the background last.

        Raises:
            ValueError: if a side is not divisible by 16.
        """
        check_sides(images)
        x = (images.astype(jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.scale)
        features = self.encoder(x.astype(self.dtype), train)
        return Decoder(
            widths=self.widths,
            name='decoder',
            **self.handed_down(),
        )(features, train)
