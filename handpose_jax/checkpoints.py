"""Checkpoints and the config beside them: what a workdir holds, written and read here only.

    W/config.json                the configuration, complete
    W/checkpoints/<step>/        variables (params, batch_stats, ema), optimizer, data iterator

A step's folder appears under its name only when it is complete (Orbax), so a killed process leaves
the last good one.
"""

import json
import os
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from handpose_jax.state import TrainState

CONFIG_FILE = 'config.json'
CHECKPOINTS = 'checkpoints'

# What may change between two runs in one workdir: nothing that moves a parameter or an example.
_FREE_KEYS = frozenset(
    {'log_every', 'eval_every', 'checkpoint_every', 'eval_batch_size', 'pipeline.num_threads'}
)


def save_config(workdir: str, config: ConfigDict) -> None:
    """Writes the config into the workdir, or checks it against the one that is there.

    Raises:
        ValueError: if the workdir holds another config (with the list of keys that differ), or
        cannot
            be written.
    """
    path = Path(workdir) / CONFIG_FILE
    if path.exists():
        check_same_config(workdir, load_config(workdir), config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'{CONFIG_FILE}.new')
        temporary.write_text(config.to_json_best_effort(indent=2, sort_keys=True) + '\n')
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f'workdir {workdir}: cannot write {CONFIG_FILE} ({error.strerror}); '
            'give --workdir a folder that can be written'
        ) from error


def load_config(workdir: str) -> ConfigDict:
    """Reads the config of a workdir.

    Raises:
        ValueError: if there is none, or it is not a config.
    """
    path = Path(workdir) / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f'workdir {workdir}: no {CONFIG_FILE}, so nothing was trained here; '
            'give --workdir the folder of a training run'
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: expected a JSON object, got {error}') from error
    if not isinstance(values, dict):
        raise ValueError(f'{path}: expected a JSON object, got {type(values).__name__}')
    config = ConfigDict(values)
    config.lock()
    return config


def config_differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each key whose value differs, sorted; '-' stands for a key that is missing."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    return [
        f'{key}: {flat_old.get(key, "-")!r} -> {flat_new.get(key, "-")!r}'
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key, '-') != flat_new.get(key, '-')
    ]


def check_same_config(workdir: str, old: ConfigDict, new: ConfigDict) -> None:
    """Raises ValueError, listing the keys, where two configs would not train the same thing."""
    different = [
        line for line in config_differences(old, new) if line.split(':')[0] not in _FREE_KEYS
    ]
    if different:
        lines = '\n  '.join(different)
        raise ValueError(
            f'workdir {workdir} holds a run with another config:\n  {lines}\n'
            'take a new --workdir, or the old values to go on with that run'
        )


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


class Checkpoints:
    """The checkpoints of one workdir. A context manager; leaving it waits for the last write."""

    def __init__(self, workdir: str, *, keep: int = 2) -> None:
        """Opens the folder, making it if needed.

        Args:
            workdir: of the run.
            keep: how many of the latest checkpoints stay.

        Raises:
            ValueError: if the folder cannot be written.
        """
        folder = Path(workdir).absolute() / CHECKPOINTS
        try:
            self._manager = ocp.CheckpointManager(
                folder,
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            )
        except OSError as error:
            raise ValueError(
                f'workdir {workdir}: cannot write {CHECKPOINTS}/ ({error.strerror}); '
                'give --workdir a folder that can be written'
            ) from error

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Writes the state and the place in the stream of data, in the background."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(_variables(state)),
                optimizer=ocp.args.StandardSave({'opt_state': state.opt_state}),
                data=grain.checkpoint.CheckpointSave(iterator),
            ),
        )

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """Reads the newest checkpoint.

        Args:
            state: a fresh state; gives shapes, dtypes and devices.
            iterator: a fresh iterator over the training data; moved to the saved place.

        Returns:
            The saved state.
        """
        step = self._manager.latest_step()
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _variables(state))
        opt_template = jax.tree.map(ocp.utils.to_shape_dtype_struct, state.opt_state)
        saved = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(template),
                optimizer=ocp.args.StandardRestore({'opt_state': opt_template}),
                data=grain.checkpoint.CheckpointRestore(iterator),
            ),
        )
        return TrainState(opt_state=saved.optimizer['opt_state'], **saved.variables)


def _variables(state: TrainState) -> dict[str, Any]:
    return {
        'step': state.step,
        'params': state.params,
        'batch_stats': state.batch_stats,
        'ema': state.ema,
    }


def load_variables(workdir: str, template: Any) -> tuple[int, dict[str, Any]]:
    """Reads what inference needs from a workdir's newest checkpoint.

    Args:
        workdir: of a training run.
        template: the network's variables or their shapes: {'params', 'batch_stats'}.

    Returns:
        The step, and {'params', 'batch_stats'} with the averaged parameters where the run kept
        some.

    Raises:
        ValueError: if there is no checkpoint.
    """
    folder = Path(workdir).absolute() / CHECKPOINTS
    if not folder.is_dir():
        raise ValueError(f'workdir {workdir}: no {CHECKPOINTS}/; train there first')
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    # Not by a CheckpointManager: opened to write, it would need a folder that can be written;
    # opened with read_only, it warns that the folder is read only, even where it is not.
    latest = ocp.path.step.latest_step_metadata(folder, ocp.path.step.standard_name_format())
    if latest is None:
        raise ValueError(f'workdir {workdir}: {CHECKPOINTS}/ holds no complete checkpoint')
    has_ema = bool(load_config(workdir).ema)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        saved = checkpointer.restore(
            latest.path,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(
                    {
                        'step': jax.ShapeDtypeStruct((), 'int32'),
                        'params': shapes['params'],
                        'batch_stats': shapes['batch_stats'],
                        'ema': shapes['params'] if has_ema else None,
                    }
                )
            ),
        ).variables
    params = saved['ema'] if has_ema else saved['params']
    return latest.step, {'params': params, 'batch_stats': saved['batch_stats']}
