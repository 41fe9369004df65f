"""Batch normalisation folded into the convolutions before it: a network for inference only.

With its running statistics batch normalisation is one multiplication and one addition for each
channel. The multiplication goes into the convolution's kernel, and the addition becomes its bias:

    variables = folding.fold(models.build(name), variables)
    maps = models.build(name, folded=True).apply(variables, images)
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from handpose_jax.models.layers import BatchNorm

_Leaves = dict[tuple[str, ...], Any]

_AFFINE = ('scale', 'bias')
_STATISTICS = ('mean', 'var')
_EXAMPLE = (1, 32, 32, 3)
"""An image that every network accepts."""


def fold(
    model: nn.Module, variables: Mapping[str, Any], *, example: Any = None
) -> dict[str, dict[str, Any]]:
    """Makes the variables of the same network built with folded=True.

    Args:
        model: the network, built with folded=False, that the variables belong to; the epsilons of
            its normalisations are read from it.
        variables: {'params', 'batch_stats'}, after training.
        example: an input (or its jax.ShapeDtypeStruct) that the model accepts; default: an image.

    Returns:
        {'params'}: every {'kernel', 'bn'} is now {'kernel', 'bias'}, computed in float64 and
        rounded once; everything else is as it was.

    Raises:
        ValueError: naming the path, for variables that are not of such a network.
    """
    if set(variables) != {'params', 'batch_stats'}:
        raise ValueError(
            "fold: expected the collections 'batch_stats' and 'params' of a network built with "
            f'folded=False, got {sorted(variables)}'
        )
    params = traverse_util.flatten_dict(dict(variables['params']))
    statistics = traverse_util.flatten_dict(dict(variables['batch_stats']))
    # Before the model runs, whose own error would not say what is missing for what.
    blocks = _blocks(params, statistics)
    epsilons = _epsilons(model, variables, example)
    if different := set(epsilons) ^ {(*block, 'bn') for block in blocks}:
        raise ValueError(
            f'fold: {_join(min(different))}: is batch normalisation in the network or in the '
            'variables, but not in both'
        )
    folded: _Leaves = {
        path: leaf for path, leaf in params.items() if 'bn' not in path and path[:-1] not in blocks
    }
    for block in blocks:
        kernel = params[*block, 'kernel']
        affine = [params[*block, 'bn', name] for name in _AFFINE]
        running = [statistics[*block, 'bn', name] for name in _STATISTICS]
        wide, scale, bias, mean, var = (
            np.asarray(leaf, np.float64) for leaf in (kernel, *affine, *running)
        )
        if np.any(var < 0):
            raise ValueError(
                f'fold: batch_stats/{_join(block)}/bn/var: expected variances >= 0, got {var.min()}'
            )
        factor = scale / np.sqrt(var + epsilons[*block, 'bn'])
        # The last axis of every kernel, depthwise and transposed ones too, is the output channel.
        folded[*block, 'kernel'] = jnp.asarray(wide * factor, kernel.dtype)
        folded[*block, 'bias'] = jnp.asarray(bias - mean * factor, kernel.dtype)
    return {'params': traverse_util.unflatten_dict(folded)}


def _blocks(params: _Leaves, statistics: _Leaves) -> list[tuple[str, ...]]:
    """Paths of all {'kernel', 'bn'}; ValueError for anything else that has to do with 'bn'."""
    if stray := [path for path in statistics if 'bn' not in path]:
        raise ValueError(f'fold: batch_stats/{_join(stray[0])}: is of no batch normalisation')
    parts = (
        ('params', params, {('kernel',), *(('bn', name) for name in _AFFINE)}),
        ('batch_stats', statistics, {('bn', name) for name in _STATISTICS}),
    )
    blocks = sorted({path[: path.index('bn')] for path in (*params, *statistics) if 'bn' in path})
    for block in blocks:
        depth = len(block)
        for collection, leaves, wanted in parts:
            found = {path[depth:] for path in leaves if path[:depth] == block}
            if found != wanted:
                raise ValueError(
                    f'fold: {collection}/{_join(block)}: expected '
                    f'{sorted(map(_join, wanted))}, got {sorted(map(_join, found))}'
                )
        kernel = params[*block, 'kernel'].shape
        for collection, leaves, wanted in parts:
            for name in sorted(wanted - {('kernel',)}):
                if (shape := leaves[*block, *name].shape) != kernel[-1:]:
                    raise ValueError(
                        f'fold: {collection}/{_join((*block, *name))}: expected the shape '
                        f'{kernel[-1:]} of the output channels of the kernel {kernel}, got {shape}'
                    )
    return blocks


def _epsilons(
    model: nn.Module, variables: Mapping[str, Any], example: Any
) -> dict[tuple[str, ...], float]:
    """Path to epsilon of every batch normalisation that the network runs."""
    found: dict[tuple[str, ...], float] = {}

    def note(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm):
            found[context.module.path] = context.module.epsilon
        return call(*arguments, **keywords)

    if example is None:
        example = jax.ShapeDtypeStruct(_EXAMPLE, jnp.uint8)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), dict(variables), example)
    return found


def _join(path: tuple[str, ...]) -> str:
    return '/'.join(path)
