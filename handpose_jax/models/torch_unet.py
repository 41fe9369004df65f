"""The tutorial's U-Net from PyTorch: a file of its weights becomes variables of models.unet.UNet.

The names are those of the tutorial's published class: `conv_down1.double_conv.0.weight` and so on,
with batch normalisation at 0 and 3 and convolutions at 1 and 4 of each block. PyTorch is needed to
read a file, for nothing else, and reads it without running any code in it (`weights_only`).

Source: Chernytska 2021, published code.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

_BLOCKS = {
    'down_1': 'conv_down1',
    'down_2': 'conv_down2',
    'down_3': 'conv_down3',
    'bottleneck': 'conv_bottleneck',
    'up_1': 'conv_up1',
    'up_2': 'conv_up2',
    'up_3': 'conv_up3',
}

_BATCH_NORM = {
    ('params', 'scale'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}

_UNUSED = '.num_batches_tracked'

_Path = tuple[str, ...]


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of a PyTorch file of weights.

    Raises:
        ValueError: without PyTorch; for a file that is missing, damaged, or holds anything but
            tensors by name.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError(f'{path}: reading it needs PyTorch: pip install torch') from error
    try:
        values = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f'{path}: no such file of weights; check the path') from error
    # A damaged or hostile file raises nearly anything.
    except Exception as error:
        raise ValueError(
            f'{path}: expected a PyTorch file of weights alone, as torch.save(model.state_dict(), '
            f'path) writes it: {error}'
        ) from error
    if not isinstance(values, dict) or not all(torch.is_tensor(v) for v in values.values()):
        raise ValueError(
            f'{path}: expected the tensors of a state_dict by name, got {type(values).__name__}'
        )
    return {name: value.numpy() for name, value in values.items()}


def convert(
    state: Mapping[str, np.ndarray], variables: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Puts PyTorch's weights into a tree like the network's variables.

    Args:
        state: arrays by their names in PyTorch; kernels are out in h w there.
        variables: {'params', 'batch_stats'} of models.build('unet'), or their shapes, which are
            what is expected of `state`.

    Raises:
        ValueError: with every layer that is missing, left over or of another shape, at once.
    """
    wanted = traverse_util.flatten_dict(dict(variables))
    names = dict(_names())
    problems = [
        f"{'/'.join(path)}: is no part of the tutorial's network"
        for path in wanted
        if path not in names
    ]
    found: dict[_Path, Any] = {}
    for path, name in names.items():
        if path not in wanted:
            problems.append(f'{"/".join(path)}: our network has no such array')
            continue
        if name not in state:
            problems.append(f'{name}: missing')
            continue
        array = np.asarray(state[name])
        ours = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        shape = tuple(wanted[path].shape)
        if ours.shape != shape:
            expected = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
            problems.append(f'{name}: expected the shape {expected}, got {array.shape}')
        elif not np.isfinite(ours).all():
            problems.append(f'{name}: expected finite numbers')
        else:
            found[path] = jnp.asarray(ours, jnp.float32)
    known = set(names.values())
    problems += [
        f"{name}: no layer of the tutorial's network"
        for name in state
        if name not in known and not name.endswith(_UNUSED)
    ]
    if problems:
        listed = '\n  '.join(problems)
        raise ValueError(
            f'{len(problems)} problem(s) with the weights of the U-Net from PyTorch:\n  {listed}'
        )
    return traverse_util.unflatten_dict(found)


def _names() -> Iterator[tuple[_Path, str]]:
    """Path in our variables and name in PyTorch, of every array."""
    for ours, theirs in _BLOCKS.items():
        for number, (norm, conv) in ((1, (0, 1)), (2, (3, 4))):
            block = f'{theirs}.double_conv'
            yield ('params', ours, f'kernel_{number}'), f'{block}.{conv}.weight'
            for (collection, leaf), name in _BATCH_NORM.items():
                yield (collection, ours, f'bn_{number}', leaf), f'{block}.{norm}.{name}'
    yield ('params', 'heatmaps_kernel'), 'conv_out.0.weight'
