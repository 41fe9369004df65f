"""Weights in one small file: safetensors, what a release ships and a training starts from.

Kernels are float16, which moves most keypoints by hundredths of a pixel, and those of which the
network is unsure by more; biases, scales and statistics are float32. The metadata hold what the
network needs to be built and fed, the step, and a SHA-256 of all that. No pickle, no code, no
paths.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from handpose_jax.config import evaluation_data
from handpose_jax.process import outputs, storage

SUFFIX = '.safetensors'
FILE = f'weights{SUFFIX}'
"""Name of the file in a workdir that a training with weights_every_seconds writes."""

_FORMAT = 1
_KEY = 'handpose_jax'
_MOST_LISTED = 8


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
        variables: {'params', 'batch_stats'} as nested dicts of f32 arrays.
        config: of the run as far as inference needs it: model, size, decode, ema, and the crop.
        step: of the checkpoint that they come from.
    """

    variables: dict[str, Any]
    config: ConfigDict
    step: int


def save(
    path: str | os.PathLike[str], variables: Mapping[str, Any], config: ConfigDict, step: int
) -> None:
    """Writes weights; there is never half a file.

    Args:
        path: of the file, which ends in .safetensors.
        variables: {'params', 'batch_stats'}, as inference uses them.
        config: of the run.
        step: of the checkpoint.

    Raises:
        ValueError: for another suffix, another file of that name, or a place that cannot be
            written.
    """
    if not os.fspath(path).endswith(SUFFIX):
        raise ValueError(f'{path}: expected a name that ends in {SUFFIX}')
    arrays = {
        name: np.asarray(leaf, np.float16 if np.ndim(leaf) > 1 else np.float32)
        for name, leaf in _flatten(variables).items()
    }
    about = {
        'format': _FORMAT,
        'made_by': outputs.MADE_BY,
        'step': step,
        'config': _needed(config),
    }
    about['sha256'] = _digest(arrays, about)
    data = safetensors.numpy.save(arrays, {_KEY: json.dumps(about)})
    target = storage.folder(path)
    if target.exists() and not _is_ours(target):
        raise ValueError(f'{path}: is there and is no file of weights; give another name')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f'{target.name}.new'
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise ValueError(
            f'{path}: cannot be written ({error.strerror}); give a place that can be written'
        ) from error


class Regularly:
    """Keeps W/weights.safetensors near the training, for machines that may be taken away.

    When it is written is a matter of the clock, and what is written of the state alone; the
    training is the same to the bit with and without it.
    """

    def __init__(self, workdir: str, config: ConfigDict, *, enabled: bool = True) -> None:
        """Begins the first interval; writes nothing yet.

        Args:
            workdir: of the run.
            config: of the run; weights_every_seconds says how often, 0: never.
            enabled: False writes nothing, for processes that leave it to another.
        """
        self._path = storage.folder(workdir) / FILE
        self._config = config
        self._seconds = config.weights_every_seconds if enabled else 0
        self._since = time.monotonic()

    def offer(self, variables: Callable[[], Any], step: int, *, last: bool = False) -> None:
        """Writes weights if it is time.

        Args:
            variables: gives {'params', 'batch_stats'}, as inference uses them.
            step: that they come from.
            last: no others follow, so it is time in any case.

        Raises:
            ValueError: see save.
        """
        if self._seconds and (last or time.monotonic() - self._since >= self._seconds):
            save(self._path, variables(), self._config, step)
            self._since = time.monotonic()


def load(path: str | os.PathLike[str]) -> Weights:
    """Reads a file of weights.

    Raises:
        ValueError: for a file that is not there, is no file of weights, or was damaged.
    """
    try:
        data = storage.folder(path).read_bytes()
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error.strerror}); check the path') from error
    try:
        arrays = safetensors.numpy.load(data)
        about = json.loads(_metadata(data)[_KEY])
        digest, config, step = about.pop('sha256'), about['config'], int(about['step'])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected weights that handpose weights wrote, got another or a damaged file '
            f'({str(error)[:120] or type(error).__name__})'
        ) from error
    if about.get('format') != _FORMAT:
        raise ValueError(
            f'{path}: expected format {_FORMAT}, got {about.get("format")!r}: the file is of '
            'another version of handpose_jax'
        )
    if _digest(arrays, about) != digest:
        raise ValueError(
            f'{path}: its content does not agree with its checksum, so the file is damaged; get it '
            'again'
        )
    named = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    locked = ConfigDict(config)
    locked.lock()
    return Weights(_nest(named), locked, step)


def fit(variables: Mapping[str, Any], found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Puts weights into a network, all of them, or the encoder's where only these fit.

    Args:
        variables: of the network that starts, as its `init` returns them.
        found: {'params', 'batch_stats'} of another.
        name: what messages call them.

    Returns:
        The variables with the weights that were found.

    Raises:
        ValueError: listing what does not fit.
    """
    own, other = _flatten(variables), _flatten(found)
    wrong = _misfits(own, other)
    if not wrong:
        return _nest(other)
    of_encoder = [
        {key: leaf for key, leaf in tree.items() if key.split('.')[1] == 'encoder'}
        for tree in (own, other)
    ]
    if of_encoder[0] and not _misfits(*of_encoder):
        return _nest({**own, **of_encoder[1]})
    more = f' and {len(wrong) - _MOST_LISTED} more' if len(wrong) > _MOST_LISTED else ''
    raise ValueError(
        f'init_from: {name} does not fit this network, and its encoder does not either: '
        f'{"; ".join(wrong[:_MOST_LISTED])}{more}; set config.model as it was trained'
    )


def _misfits(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    wrong = []
    for name in sorted(own.keys() | other.keys()):
        shapes = [tree[name].shape if name in tree else None for tree in (own, other)]
        if shapes[0] != shapes[1]:
            wrong.append(f'{name}: expected {shapes[0] or "none"}, got {shapes[1] or "none"}')
    return wrong


def _needed(config: ConfigDict) -> dict[str, Any]:
    # No paths: where the data lay is nobody's business.
    data = evaluation_data(config)
    if data['name'] == 'mixture':
        data = next(iter(data['parts'].values()))
    crop = {key: data[key] for key in ('crop', 'crop_scale') if key in data}
    values = json.loads(config.to_json_best_effort())
    needed = {key: values[key] for key in ('model', 'size', 'decode', 'sigma', 'protocol')}
    return {**needed, 'data': {'name': data['name'], **crop}}


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f'{prefix}{name}.'))
        else:
            flat[f'{prefix}{name}'] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split('.')
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {values.dtype.str} {values.shape}\n'.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    # The format: the length of a JSON header, the header, the arrays.
    length = int.from_bytes(data[:8], 'little')
    return json.loads(data[8 : 8 + length])['__metadata__']


def _is_ours(place: Any) -> bool:
    try:
        return _KEY in _metadata(place.read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return False
