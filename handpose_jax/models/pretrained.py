"""Starts a network's encoder from ImageNet weights: `init_from(variables, source, model_name=...)`.

Two kinds of source are understood:

    npz      MobileNetV2 as TF-slim names it: `<layer>/{kernel,mean,var,scale,bias}`
    Keras    keras.applications' MobileNetV2 or ResNet50: a live model, or a file `.weights.h5`,
             `.keras` or `.h5`. Files are read by the names of their layers: Keras is not imported,
             and no code of a file is run.

Weights carry over to an encoder at another output stride unchanged: strides are no parameters, and
the paper adds no dilation. Keras pads stride-2 convolutions of MobileNetV2 itself (`correct_pad`)
instead of asking for SAME; for an input of known size that is the same padding, (0, 1) for even and
(1, 1) for odd sides. Only a Keras model built for any size takes every side for even. The epsilons
of batch normalisation are the sources': 1e-3 for MobileNetV2, 1.001e-5 for ResNet50.
"""

import io
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from handpose_jax.process import extras

# Where a ConvBN keeps the arrays which every source has in one form or another.
_TARGETS = {
    'kernel': ('params', 'kernel'),
    'scale': ('params', 'bn/scale'),
    'bias': ('params', 'bn/bias'),
    'mean': ('batch_stats', 'bn/mean'),
    'var': ('batch_stats', 'bn/var'),
}
_KERAS_BATCH_NORM = {
    'scale': 'gamma',
    'bias': 'beta',
    'mean': 'moving_mean',
    'var': 'moving_variance',
}


class _Layout(NamedTuple):
    """How a source names and stores what our encoder needs.

    Attributes:
        names: our layer to the names of its arrays: a key of _TARGETS, or 'conv_bias' for a bias of
            the convolution itself, which is folded into the mean; None for a layer the source
            cannot have.
        unused: beginnings of the names of arrays that belong to the classifier or to stages which
            our encoder does not have.
        channel_multiplier_last: depthwise kernels are h w c 1, not h w 1 c.
        bgr: the first convolution takes its channels in the order blue, green, red.
    """

    names: Callable[[str], dict[str, str] | None]
    unused: tuple[str, ...]
    channel_multiplier_last: bool = False
    bgr: bool = False


_INVERTED_RESIDUAL = re.compile(r'block_(\d+)/(expand|depthwise|project)')
_BOTTLENECK = re.compile(r'(conv\d)_(\d)/(shortcut|reduce|spatial|expand)')


def _slim_mobilenet_v2(layer: str) -> dict[str, str] | None:
    name = 'Conv'
    if layer != 'stem':
        if not (block := _INVERTED_RESIDUAL.fullmatch(layer)):
            return None
        number = int(block[1]) - 1
        name = f'expanded_conv_{number}/{block[2]}' if number else f'expanded_conv/{block[2]}'
    return {field: f'{name}/{field}' for field in _TARGETS}


def _keras_batch_norm(layer: str) -> dict[str, str]:
    return {field: f'{layer}/{name}' for field, name in _KERAS_BATCH_NORM.items()}


def _keras_mobilenet_v2(layer: str) -> dict[str, str] | None:
    if layer == 'stem':
        return {'kernel': 'Conv1/kernel', **_keras_batch_norm('bn_Conv1')}
    if not (block := _INVERTED_RESIDUAL.fullmatch(layer)):
        return None
    number = int(block[1]) - 1
    name = f'block_{number}_{block[2]}' if number else f'expanded_conv_{block[2]}'
    return {'kernel': f'{name}/kernel', **_keras_batch_norm(f'{name}_BN')}


def _keras_resnet50(layer: str) -> dict[str, str] | None:
    name = 'conv1'
    if layer != 'stem':
        if not (block := _BOTTLENECK.fullmatch(layer)):
            return None
        number = ('shortcut', 'reduce', 'spatial', 'expand').index(block[3])
        name = f'{block[1]}_block{block[2]}_{number}'
    arrays = {'kernel': f'{name}_conv/kernel', 'conv_bias': f'{name}_conv/bias'}
    return arrays | _keras_batch_norm(f'{name}_bn')


_LAYOUTS: dict[tuple[str, str], _Layout] = {
    ('mobilenet_v2', 'npz'): _Layout(_slim_mobilenet_v2, unused=('Conv_1/', 'Logits/')),
    ('mobilenet_v2', 'Keras'): _Layout(
        _keras_mobilenet_v2,
        unused=('Conv_1/', 'Conv_1_bn/', 'predictions/', 'Logits/'),
        channel_multiplier_last=True,
    ),
    ('resnet50', 'Keras'): _Layout(
        _keras_resnet50, unused=('conv5_', 'predictions/', 'probs/'), bgr=True
    ),
}


# --- reading --------------------------------------------------------------------------------------


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz; pickled objects are refused.

    Raises:
        ValueError: if the file is missing or is no .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: expected an .npz of plain arrays: {error}') from error


def read_keras(source: Any) -> dict[str, np.ndarray]:
    """Reads the weights of a Keras model as `<layer>/<weight>`.

    Args:
        source: a live Keras model, or the path of a `.weights.h5`, `.keras` or `.h5` file.

    Raises:
        ValueError: if the file is missing, is no such file, or does not name its layers.
    """
    if not isinstance(source, str | os.PathLike):
        if not hasattr(source, 'layers'):
            raise ValueError(f'expected a path or a Keras model, got {type(source).__name__}')
        return {
            f'{_layer_name(layer.name)}/{_weight_name(weight.name)}': np.asarray(weight)
            for layer in source.layers
            for weight in layer.weights
        }
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ValueError(extras.missing(error, f'reading {source}') or str(error)) from error
    try:
        file: Any = source
        if pathlib.Path(source).suffix == '.keras':
            with zipfile.ZipFile(source) as archive:
                file = io.BytesIO(archive.read('model.weights.h5'))
        with h5py.File(file, 'r') as root:
            arrays = dict(_hdf5_arrays(root))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f'{source}: expected a file of Keras weights: {error}') from error
    if not arrays:
        raise ValueError(
            f'{source}: expected Keras weights with the names of their layers, found none; '
            'load the file with the Keras that wrote it and pass the model instead of the path'
        )
    return arrays


def _layer_name(name: str) -> str:
    """Today's name of a layer of MobileNetV2.

    The published ImageNet file bears the names of an early release: Keras loads it by order.
    """
    old = re.fullmatch(r'(mobl|bn)(\d+)_conv_\2_(?:bn_)?(expand|depthwise|project)', name)
    if not old:
        return name
    block = 'expanded_conv' if old[2] == '0' else f'block_{old[2]}'
    return f'{block}_{old[3]}' + ('_BN' if old[1] == 'bn' else '')


def _weight_name(name: str) -> str:
    """'block_1_depthwise/depthwise_kernel:0', as Keras 2 has it, is today's 'kernel'."""
    name = name.rsplit('/', 1)[-1].split(':')[0]
    return 'kernel' if name == 'depthwise_kernel' else name


def _hdf5_arrays(root: Any) -> Iterator[tuple[str, np.ndarray]]:
    def text(value: str | bytes) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    legacy = root.get('model_weights', root)
    if 'layer_names' in legacy.attrs:
        for layer in map(text, legacy.attrs['layer_names']):
            for name in map(text, legacy[layer].attrs['weight_names']):
                yield f'{_layer_name(layer)}/{_weight_name(name)}', legacy[layer][name][()]
        return

    groups: list[Any] = []
    # A whole model's file also holds the optimiser's variables, which are none of the layers'.
    if 'layers' in root:
        root['layers'].visititems(
            lambda path, item: groups.append(item) if path.endswith('/vars') else None
        )
    for group in (group for group in groups if 'name' in group.attrs):
        batch_norm = group.name.split('/')[-2].startswith('batch_normalization')
        names = tuple(_KERAS_BATCH_NORM.values()) if batch_norm else ('kernel', 'bias')
        for index, variable in group.items():
            known = index.isdecimal() and int(index) < len(names)
            name = names[int(index)] if known else index
            yield f'{text(group.attrs["name"])}/{name}', variable[()]


# --- converting -----------------------------------------------------------------------------------


def init_from(
    variables: Mapping[str, Any], source: Any, *, model_name: str
) -> dict[str, dict[str, Any]]:
    """Replaces the encoder's parameters and statistics by those of a source; the rest stays.

    Args:
        variables: of the whole network, as its `init` returns them: the encoder is the subtree
            'encoder' of 'params' and of 'batch_stats'. Not changed.
        source: path of an `.npz`, or whatever read_keras takes.
        model_name: the network's name in handpose_jax.models.MODELS.

    Raises:
        ValueError: if the source does not fit; one message lists everything that is missing, left
            over, or of a wrong shape or type, or not finite.
    """
    for collection in ('params', 'batch_stats'):
        if 'encoder' not in variables.get(collection, {}):
            raise ValueError(
                f'init_from: expected variables[{collection!r}] to hold "encoder", '
                f'got {sorted(variables.get(collection, {}))}; only networks with a '
                'pretrained encoder can start from a file'
            )
    encoder = load_encoder(
        {name: variables[name]['encoder'] for name in ('params', 'batch_stats')},
        source,
        model_name=model_name,
    )
    return {
        name: {**tree, 'encoder': encoder[name]} if name in encoder else tree
        for name, tree in variables.items()
    }


def load_encoder(
    variables: Mapping[str, Any], source: Any, *, model_name: str
) -> dict[str, dict[str, Any]]:
    """Does what init_from does for an encoder's own 'params' and 'batch_stats'.

    Args:
        variables: arrays, or their shapes alone; the result has their structure.
        source: see init_from, and for the ValueError too.
        model_name: see init_from.
    """
    is_path = isinstance(source, str | os.PathLike)
    kind = 'npz' if is_path and pathlib.Path(source).suffix == '.npz' else 'Keras'
    where = str(source) if is_path else f'Keras model {getattr(source, "name", "")!r}'
    layout = _LAYOUTS.get((model_name, kind))
    if layout is None:
        known = ', '.join(f'{model} from {source_kind}' for model, source_kind in _LAYOUTS)
        raise ValueError(
            f'{where}: {model_name!r} cannot start from a source of kind {kind}; '
            f'what can be converted: {known}'
        )
    arrays = read_npz(source) if kind == 'npz' else read_keras(source)
    converted, problems = _convert(arrays, variables, layout)
    if problems:
        lines = '\n'.join(f'  {problem}' for problem in problems)
        raise ValueError(
            f'{where}: does not fit the encoder of {model_name!r}, nothing was loaded. '
            f'Is it of this architecture and width? {len(problems)} differences:\n{lines}'
        )
    return converted


def _convert(
    arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any], layout: _Layout
) -> tuple[dict[str, Any], list[str]]:
    converted: dict[str, dict[str, Any]] = {'params': {}, 'batch_stats': {}}
    leaves = {
        name: traverse_util.flatten_dict(dict(variables[name]), sep='/') for name in converted
    }
    suffix = '/kernel'
    layers = [path.removesuffix(suffix) for path in leaves['params'] if path.endswith(suffix)]
    problems: list[str] = []
    used: set[str] = set()

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        used.add(name)
        array = arrays.get(name)
        if array is None:
            problems.append(f'{name}: expected float32 {shape}, got nothing')
        elif array.shape != shape or array.dtype != np.float32:
            problems.append(f'{name}: expected float32 {shape}, got {array.dtype} {array.shape}')
        elif bad := int(np.sum(~np.isfinite(array))):
            problems.append(f'{name}: expected finite numbers, got {bad} that are not')
        else:
            return array
        return None

    for layer in layers:
        names = layout.names(layer)
        if names is None:
            problems.append(f'{layer}: a layer of the network that the source cannot have')
            continue
        fields: dict[str, np.ndarray | None] = {}
        for field, (collection, path) in _TARGETS.items():
            shape = leaves[collection][f'{layer}/{path}'].shape
            # Only a depthwise kernel has one input channel: no layer sees a one-channel image.
            swap = field == 'kernel' and layout.channel_multiplier_last and shape[2] == 1
            array = take(names[field], (*shape[:2], shape[3], shape[2]) if swap else shape)
            fields[field] = np.swapaxes(array, 2, 3) if swap and array is not None else array
        kernel, mean, var = fields['kernel'], fields['mean'], fields['var']
        if var is not None and np.any(var < 0):
            problems.append(f'{names["var"]}: expected variances >= 0, got {var.min()}')
        if kernel is not None and layout.bgr and layer == 'stem':
            fields['kernel'] = kernel[:, :, ::-1]
        if 'conv_bias' in names:
            bias = take(names['conv_bias'], leaves['params'][f'{layer}/bn/bias'].shape)
            if mean is not None and bias is not None:
                fields['mean'] = mean - bias
        for field, (collection, path) in _TARGETS.items():
            if (found := fields[field]) is not None:
                converted[collection][f'{layer}/{path}'] = jnp.asarray(found)

    problems += [
        f'{name}: not expected, got {arrays[name].dtype} {arrays[name].shape}'
        for name in arrays
        if name not in used and not name.startswith(layout.unused)
    ]
    nested = {name: traverse_util.unflatten_dict(tree, sep='/') for name, tree in converted.items()}
    return nested, problems
