"""Reads what a workdir holds, which is all that an evaluation or a prediction needs of it.

    W/config.json                the configuration, complete
    W/checkpoints/<step>/        see training/checkpoints.py, which writes them

Each checkpoint holds a digest of every array and every other part beside them, so that what was
read is what was written: a damaged step is named, and the newest whole one is taken.
"""

import gc
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from handpose_jax.process import distributed, shipped, storage
from handpose_jax.process.digests import digest_of_json

CONFIG_FILE = 'config.json'
CHECKPOINTS = 'checkpoints'
DIGESTS = 'digests'
RUN_FILE = 'run.json'

_LOG = logging.getLogger('handpose_jax')

# What may differ between two runs in one workdir: nothing that moves a parameter or an example.
_FREE_KEYS = frozenset(
    {
        'log_every',
        'eval_every',
        'checkpoint_every',
        'weights_every_seconds',
        'eval_batch_size',
        'pipeline.num_threads',
        'max_skipped',
        'empty_after',
        'workdir',
    }
)

# What configs of earlier versions lack, and what runs did then: such a run goes on.
_ADDED = {'pipeline.place': 'host', 'pipeline.stored_side': 0}

# What inference and evaluation read; other fields may be missing in a config of another version.
_NEEDED = (
    *('size', 'model.name', 'decode', 'ema', 'data.name', 'eval_split', 'protocol'),
    *('eval_batch_size', 'pipeline.num_threads'),
)


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written."""


def load_config(workdir: str) -> ConfigDict:
    """Reads the config of a workdir.

    Raises:
        ValueError: if there is none, or it is not a config.
    """
    path = storage.folder(workdir) / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f'workdir {workdir}: no {CONFIG_FILE}, so nothing was trained here; '
            'give the folder of a training run, or the name of weights of the package '
            f'({", ".join(shipped.weights_names())})'
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{path}: expected the config of a run in JSON, got {_first_line(error)}; '
            f'give another --workdir, or remove the file: each checkpoint holds a copy'
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get('model'), dict):
        raise ValueError(
            f'{path}: expected the config of a run, a JSON object with "model", got another file; '
            'give another --workdir'
        )
    config = ConfigDict(values)
    config.lock()
    return config


def config_differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each key whose value differs, sorted; '-' stands for a key that is missing."""
    return _differences(_flatten(old), _flatten(new))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f'{key}: {old.get(key, "-")!r} -> {new.get(key, "-")!r}'
        for key in sorted(old.keys() | new.keys())
        if old.get(key, '-') != new.get(key, '-')
    ]


def differences_that_matter(old: ConfigDict, new: ConfigDict) -> list[str]:
    """The lines of config_differences that stand for another training.

    Where the data lies is none of it: the fingerprint in run.json tells whether they are the same.
    """
    return [
        line
        for line in _differences({**_ADDED, **_flatten(old)}, {**_ADDED, **_flatten(new)})
        if (key := line.split(':')[0]) not in _FREE_KEYS and key.rpartition('.')[2] != 'root'
    ]


def _flatten(config: Any, prefix: str = '') -> dict[str, Any]:
    # Through JSON, so that a config just made and one read back compare equal (tuples, lists).
    values = json.loads(config.to_json_best_effort()) if isinstance(config, ConfigDict) else config
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def absolute(workdir: str) -> Any:
    """The folder of a workdir as Orbax wants it: absolute, or the address of a bucket."""
    folder = storage.folder(workdir)
    return folder if storage.is_bucket(workdir) else folder.absolute()


def steps(workdir: str) -> list[int]:
    """The steps that the workdir has complete checkpoints of, the newest first."""
    folder = absolute(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    if storage.is_bucket(workdir):
        form = ocp.path.step.standard_name_format()
        found = [metadata.step for metadata in form.find_all(folder)]
    else:
        # Here a checkpoint gets its name when it is complete. What lacks a part is damaged, and is
        # to be told, where Orbax would not list it.
        found = [int(place.name) for place in folder.iterdir() if place.name.isdecimal()]
    return sorted(found, reverse=True)


def step_folder(workdir: str, step: int) -> Any:
    """Where a checkpoint lies."""
    return absolute(workdir) / CHECKPOINTS / str(step)


def digests(tree: Any) -> dict[str, str]:
    """A SHA-256 of dtype, shape and values of each array of a tree, by its place in the tree."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.ascontiguousarray(leaf)
        digest = hashlib.sha256(f'{values.dtype.str} {values.shape}\n'.encode())
        digest.update(values.data if values.size else b'')
        found[jax.tree_util.keystr(path)] = digest.hexdigest()
    return found


def read_checkpoint(folder: Any, **templates: Any) -> dict[str, Any]:
    """Reads parts of one checkpoint, and compares each with the digest that was saved with it.

    Args:
        folder: of the checkpoint, see step_folder.
        **templates: for each part that is wanted, a tree of jax.ShapeDtypeStruct; None for one that
            is JSON.

    Returns:
        The parts by name. A checkpoint of a version before 0.2 has no digests to compare with; they
        are None then.

    Raises:
        DamagedCheckpoint: if a part is missing, cannot be read or is not what was saved.
    """
    saved = _saved_parts(folder)
    wanted = {**templates, DIGESTS: None}
    parts: dict[str, Any] = {}
    if DIGESTS not in saved:
        del wanted[DIGESTS]
    for name, template in wanted.items():
        place = folder / name
        if not place.is_dir():
            raise DamagedCheckpoint(f'{place}: is missing, so the checkpoint is not complete')
        kind = ocp.args.JsonRestore() if template is None else ocp.args.StandardRestore(template)
        parts[name], trouble = _restore(folder, name, kind)
        if trouble:
            raise DamagedCheckpoint(f'{place}: cannot be read ({trouble})')
    told = parts.get(DIGESTS)
    for name in templates if told is not None else ():
        if name != DIGESTS:
            _compare(folder / name, parts[name], told, templates[name] is None)
    return {name: parts.get(name) for name in templates}


def _restore(folder: Any, name: str, kind: Any) -> tuple[Any, str]:
    """One part of a checkpoint; or what its reader says if it fails."""
    hook = sys.unraisablehook
    # When one array fails, Orbax leaves the readers of the others behind, and Python would print a
    # page about each when it finds them. So they are collected here, unheard.
    sys.unraisablehook = lambda unraisable: None
    trouble = ''
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder, args=ocp.args.Composite(**{name: kind}))[name], ''
    except MemoryError:
        raise
    # Orbax, tensorstore and JSON have a dozen kinds of errors for damaged files.
    except Exception as error:
        trouble = _first_line(error)[:200]
        error.__traceback__ = error.__cause__ = error.__context__ = None
    finally:
        if trouble:
            gc.collect()
        sys.unraisablehook = hook
    return None, trouble


def _saved_parts(folder: Any) -> set[str]:
    # Orbax keeps a list of what it wrote; a folder that is missing from it was never there.
    try:
        return set(json.loads((folder / '_CHECKPOINT_METADATA').read_text())['item_handlers'])
    except FileNotFoundError:
        return {part.name for part in folder.iterdir()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(
            f'{folder}/_CHECKPOINT_METADATA: cannot be read ({_first_line(error)})'
        ) from error


def _compare(place: Any, part: Any, told: Any, is_json: bool) -> None:
    found = digest_of_json(part) if is_json else digests(part)
    expected = told.get(place.name) if isinstance(told, dict) else None
    if found == expected:
        return
    where = ''
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [name for name, value in found.items() if expected.get(name) != value]
        where = f' ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
    raise DamagedCheckpoint(
        f'{place}: does not agree with the digest that was saved with it{where}'
    )


def load_variables(workdir: str, template: Any) -> tuple[int, dict[str, Any]]:
    """Reads what inference needs from a workdir's newest whole checkpoint.

    A damaged checkpoint is named in the log, and the one before it is taken.

    Args:
        workdir: of a training run.
        template: the network's variables or their shapes: {'params', 'batch_stats'}.

    Returns:
        The step, and {'params', 'batch_stats'} with the averaged parameters where the run kept
        some.

    Raises:
        ValueError: if there is no whole checkpoint, or config.json is not that of the checkpoint.
    """
    config = load_config(workdir)
    if not (absolute(workdir) / CHECKPOINTS).is_dir():
        raise ValueError(f'workdir {workdir}: no {CHECKPOINTS}/; train there first')
    has_ema = bool(config.get('ema'))
    # The place is said here: the devices it was saved from may not be there.
    place = distributed.inference_sharding()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        {
            'step': jax.ShapeDtypeStruct((), 'int32'),
            'params': template['params'],
            'batch_stats': template['batch_stats'],
            'ema': template['params'] if has_ema else None,
        },
    )

    def read(step: int) -> dict[str, Any]:
        folder = step_folder(workdir, step)
        check_config_of(workdir, config, read_checkpoint(folder, config=None)['config'])
        return read_checkpoint(folder, variables=shapes)['variables']

    step, saved = newest_whole(workdir, read)
    params = saved['ema'] if has_ema else saved['params']
    return step, {'params': params, 'batch_stats': saved['batch_stats']}


def newest_whole(workdir: str, read: Any) -> tuple[int, Any]:
    """Reads the newest checkpoint that is whole, and logs which are not.

    Args:
        workdir: of a training run.
        read: from a step to what is wanted of it; raises DamagedCheckpoint.

    Returns:
        The step, and what `read` made of it.

    Raises:
        ValueError: if there is none.
    """
    damaged: list[str] = []
    for step in steps(workdir):
        try:
            found = read(step)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            _LOG.warning(
                'damaged checkpoint: %s; step %s before it is whole and used', reason, step
            )
        return step, found
    if not damaged:
        raise ValueError(f'workdir {workdir}: {CHECKPOINTS}/ holds no complete checkpoint')
    raise ValueError(
        f'workdir {workdir}: no checkpoint is whole: {"; ".join(damaged)}; '
        'bring the folder back from a copy, or train again in a new --workdir'
    )


def check_config_of(workdir: str, config: ConfigDict, saved: Mapping[str, Any]) -> None:
    """Compares a workdir's config.json with the copy in a checkpoint.

    Raises:
        ValueError: if config.json was damaged or changed since, or lacks what is read of it.
    """
    path = storage.folder(workdir) / CONFIG_FILE
    missing = [key for key in _NEEDED if _lacks(config, key)]
    different = differences_that_matter(ConfigDict(saved), config)
    if different:
        raise ValueError(
            f'{path}: is not the config that the checkpoint was trained with, so it was damaged or '
            f'changed (checkpoint -> {CONFIG_FILE}): {"; ".join(different[:8])}; '
            'bring the old values back'
        )
    if missing:
        raise ValueError(
            f'{path}: no {", ".join(missing)}, so it was written by another version of handpose_jax'
            f' ({RUN_FILE} beside it tells which); use that one'
        )


def _lacks(config: ConfigDict, key: str) -> bool:
    value: Any = config
    for name in key.split('.'):
        if not isinstance(value, ConfigDict) or name not in value:
            return True
        value = value[name]
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
