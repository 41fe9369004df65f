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
    *,
    width: float = 1.0,
    decoder_widths: Mapping[str, int] | None = None,
    bn_momentum: float = 0.99,
    dtype: str = 'float32',
    implementation: str = 'auto',
    folded: bool = False,
) -> HeatmapNetwork:
    """The paper's network: MobileNetV2 without block 14's stride, and the decoder.

    Args:
        width: multiplier on the encoder's channels.
        decoder_widths: fields of DecoderWidths that differ from the paper's.
        bn_momentum: momentum of all running statistics.
        dtype: of the computation, 'float32' or 'bfloat16'; parameters and heatmaps are float32.
        implementation: of the convolutions, see handpose_jax.models.layers.
        folded: without batch normalisation, for parameters from handpose_jax.models.folding.
    """
    common: dict[str, Any] = {
        'bn_momentum': bn_momentum,
        'dtype': jnp.dtype(dtype),
        'implementation': implementation,
        'folded': folded,
    }
    return HeatmapNetwork(
        encoder=MobileNetV2(width=width, name='encoder', **common),
        widths=DecoderWidths(**(decoder_widths or {})),
        **common,
    )


def resnet50(
    *,
    decoder_widths: Mapping[str, int] | None = None,
    bn_momentum: float = 0.99,
    dtype: str = 'float32',
    implementation: str = 'auto',
    folded: bool = False,
) -> HeatmapNetwork:
    """The ablation's network: ResNet-50 up to conv4_6, and the same decoder.

    Args:
        decoder_widths: fields of DecoderWidths that differ from the paper's.
        bn_momentum: momentum of all running statistics.
        dtype: of the computation, 'float32' or 'bfloat16'; parameters and heatmaps are float32.
        implementation: of the convolutions, see handpose_jax.models.layers.
        folded: without batch normalisation, for parameters from handpose_jax.models.folding.
    """
    common: dict[str, Any] = {
        'bn_momentum': bn_momentum,
        'dtype': jnp.dtype(dtype),
        'implementation': implementation,
        'folded': folded,
    }
    return HeatmapNetwork(
        encoder=ResNet50(name='encoder', **common),
        widths=DecoderWidths(**(decoder_widths or {})),
        mean=RESNET_MEAN,
        scale=RESNET_SCALE,
        **common,
    )


def small_unet(
    *,
    width: float = 1.0,
    bn_momentum: float = 0.9,
    dtype: str = 'float32',
    implementation: str = 'auto',
    folded: bool = False,
) -> SmallUNet:
    """The quick start's network, which learns from random weights in minutes.

    Args:
        width: multiplier on the channels.
        bn_momentum: momentum of all running statistics.
        dtype: of the computation, 'float32' or 'bfloat16'; parameters and heatmaps are float32.
        implementation: of the convolutions, see handpose_jax.models.layers.
        folded: without batch normalisation, for parameters from handpose_jax.models.folding.
    """
    return SmallUNet(
        width=width,
        bn_momentum=bn_momentum,
        dtype=jnp.dtype(dtype),
        implementation=implementation,
        folded=folded,
    )


def unet(
    *,
    width: float = 1.0,
    bn_momentum: float = 0.9,
    dtype: str = 'float32',
    implementation: str = 'auto',
) -> UNet:
    """The tutorial's network: 21 maps of 0..1 at the resolution of the input.

    Args:
        width: multiplier on the channels.
        bn_momentum: momentum of all running statistics.
        dtype: of the computation, 'float32' or 'bfloat16'; parameters and heatmaps are float32.
        implementation: of the convolutions, see handpose_jax.models.layers.
    """
    return UNet(
        width=width, bn_momentum=bn_momentum, dtype=jnp.dtype(dtype), implementation=implementation
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    'mobilenet_v2': mobilenet_v2,
    'resnet50': resnet50,
    'small_unet': small_unet,
    'unet': unet,
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """Makes a network by name; `build(**config.model)` is how configs choose one.

    Args:
        name: a key of MODELS.
        **kwargs: the network's own keyword arguments.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f'model.name: expected one of {sorted(MODELS)}, got {name!r}')
    return MODELS[name](**kwargs)
