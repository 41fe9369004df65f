"""A small U-Net for small inputs: learns from random weights in minutes on a laptop.

The paper's network is 60 convolutions deep; without ImageNet weights its first layers turn every
step into noise for the last ones, and it stays for thousands of steps on maps that are the same for
every image. This one is 11 convolutions deep. Ours (confidence C), after Ronneberger et al. 2015,
"U-Net", with strided convolutions down and doubled pixels up.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from handpose_jax.models.decoder import NUM_HEATMAPS, STRIDE, check_sides, empty_maps
from handpose_jax.models.layers import ConvBN, Layer, conv

FEATURES = (24, 48, 96, 128)
"""Channels at strides 2, 4, 8 and 16."""


class SmallUNet(Layer):
    """RGB images as they are, 0..255, to 22 heatmaps at stride 4. Normalisation happens in here.

    Attributes:
        width: multiplier on every channel count.
    """

    width: float = 1.0
    bn_momentum: float = 0.9

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

        def block(x: Array, features: int, name: str, stride: int = 1) -> Array:
            return ConvBN(
                features,
                kernel_size=3,
                stride=stride,
                activation=nn.relu,
                name=name,
                **self.handed_down(),
            )(x, train)

        def upsample(x: Array) -> Array:
            return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

        at_2, at_4, at_8, at_16 = (max(8, round(self.width * n)) for n in FEATURES)
        x = ((images.astype(jnp.float32) - 127.5) / 127.5).astype(self.dtype)
        x = block(x, at_2, 'stem', stride=2)
        x = block(x, at_4, 'down_4', stride=2)
        skip_4 = block(x, at_4, 'encode_4')
        x = block(skip_4, at_8, 'down_8', stride=2)
        skip_8 = block(x, at_8, 'encode_8')
        x = block(skip_8, at_16, 'down_16', stride=2)
        x = block(x, at_16, 'middle_1')
        x = block(x, at_16, 'middle_2')
        x = block(jnp.concatenate([upsample(x), skip_8], axis=-1), at_8, 'decode_8')
        x = block(jnp.concatenate([upsample(x), skip_4], axis=-1), at_4, 'decode_4')
        x = block(x, at_4, 'refine')
        kernel = self.param(
            'heatmaps_kernel', nn.initializers.normal(0.01), (1, 1, at_4, NUM_HEATMAPS), jnp.float32
        )
        bias = self.param('heatmaps_bias', empty_maps, (NUM_HEATMAPS,), jnp.float32)
        maps = conv(x, kernel.astype(self.dtype), 1, self.implementation)
        # Loss and decoding are float32 whatever the network computes in.
        return maps.astype(jnp.float32) + bias
