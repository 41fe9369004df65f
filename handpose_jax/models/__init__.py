"""The networks. `build(name, **kwargs)` makes any of them; MODELS below is the whole list."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from handpose_jax.models.decoder import NUM_HEATMAPS, STRIDE, DecoderWidths, HeatmapNetwork
from handpose_jax.models.mobilenet import MobileNetV2
from handpose_jax.models.resnet import MEAN as RESNET_MEAN
from handpose_jax.models.resnet import SCALE as RESNET_SCALE
from handpose_jax.models.resnet import ResNet50
from handpose_jax.models.small_unet import SmallUNet
from handpose_jax.models.unet import UNet

__all__ = ['MODELS', 'NUM_HEATMAPS', 'STRIDE', 'Network', 'build']

Network = nn.Module
"""What build returns; the name for annotations outside this package. Each has `stride`, the input's
pixels for each of its maps'."""


def mobilenet_v2(
    *, width: float = 1.0, decoder_widths: Mapping[str, int] | None = None, **computing: Any
) -> HeatmapNetwork:
    """The paper's network: MobileNetV2 without block 14's stride, and the decoder.

    Args:
        width: multiplier on the encoder's channels.
        decoder_widths: fields of DecoderWidths that differ from the paper's.
        **computing: attributes of layers.Layer.
    """
    return HeatmapNetwork(
        encoder=MobileNetV2(width=width, name='encoder', **computing),
        widths=DecoderWidths(**(decoder_widths or {})),
        **computing,
    )


def resnet50(
    *, decoder_widths: Mapping[str, int] | None = None, **computing: Any
) -> HeatmapNetwork:
    """The ablation's network: ResNet-50 up to conv4_6, and the same decoder.

    Args:
        decoder_widths: fields of DecoderWidths that differ from the paper's.
        **computing: attributes of layers.Layer.
    """
    return HeatmapNetwork(
        encoder=ResNet50(name='encoder', **computing),
        widths=DecoderWidths(**(decoder_widths or {})),
        mean=RESNET_MEAN,
        scale=RESNET_SCALE,
        **computing,
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    'mobilenet_v2': mobilenet_v2,
    'resnet50': resnet50,
    'small_unet': SmallUNet,
    'unet': UNet,
}

FOLDABLE = frozenset({'mobilenet_v2', 'resnet50', 'small_unet'})
"""Networks whose batch normalisation follows a convolution, and can be folded into it."""


def build(name: str, *, dtype: str = 'float32', **kwargs: Any) -> nn.Module:
    """Makes a network by name; `build(**config.model)` is how configs choose one.

    Args:
        name: a key of MODELS.
        dtype: of the computation, 'float32' or 'bfloat16'; parameters and heatmaps are float32.
        **kwargs: the network's own keyword arguments.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f'model.name: expected one of {sorted(MODELS)}, got {name!r}')
    return MODELS[name](dtype=jnp.dtype(dtype), **kwargs)
