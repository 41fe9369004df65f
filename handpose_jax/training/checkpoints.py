"""Saves a training into its workdir, and goes on from there; training/workdirs.py reads the rest.

    W/config.json                the configuration, complete
    W/checkpoints/<step>/        variables (step, params, batch_stats, ema), optimizer (its state,
                                 counts of skipped steps), data iterator, progress (of early
                                 stopping), config

All randomness comes from the config's seed and the place in the stream of data, so no other random
keys are kept. A step's folder appears under its name only when it is complete (Orbax), so a killed
process leaves the last good one; what else it leaves is cleared when the run goes on.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from handpose_jax.process import distributed, storage
from handpose_jax.training.early_stopping import EarlyStopping
from handpose_jax.training.state import TrainState
from handpose_jax.training.workdirs import CHECKPOINTS, CONFIG_FILE, absolute, load_config

# What may change between two runs in one workdir: nothing that moves a parameter or an example.
_FREE_KEYS = frozenset(
    {
        'log_every',
        'eval_every',
        'checkpoint_every',
        'eval_batch_size',
        'pipeline.num_threads',
        'max_skipped',
        'empty_after',
    }
)


def save_config(workdir: str, config: ConfigDict) -> None:
    """Writes the config into the workdir, or checks it against the one that is there.

    All processes of a run check, one writes.

    Raises:
        ValueError: if the workdir holds another config (with the list of keys that differ), or
            cannot be written.
    """
    path = storage.folder(workdir) / CONFIG_FILE
    if path.exists():
        _check_same_config(workdir, load_config(workdir), config)
    if not distributed.is_main_process():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'{CONFIG_FILE}.new')
        temporary.write_text(config.to_json_best_effort(indent=2, sort_keys=True) + '\n')
        temporary.replace(path)
    except OSError as error:
        raise ValueError(
            f'workdir {workdir}: cannot write {CONFIG_FILE} ({error.strerror}); '
            'give --workdir a folder that can be written'
        ) from error


def config_differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each key whose value differs, sorted; '-' stands for a key that is missing."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    return [
        f'{key}: {flat_old.get(key, "-")!r} -> {flat_new.get(key, "-")!r}'
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key, '-') != flat_new.get(key, '-')
    ]


def _check_same_config(workdir: str, old: ConfigDict, new: ConfigDict) -> None:
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

    def __init__(self, workdir: str, config: ConfigDict, *, keep: int = 2) -> None:
        """Opens the folder, making it if needed, and clears what a killed process left half-done.

        Args:
            workdir: of the run.
            config: of the run, kept in every checkpoint.
            keep: how many of the latest checkpoints stay.

        Raises:
            ValueError: if the folder cannot be written.
        """
        folder = absolute(workdir) / CHECKPOINTS
        self._workdir = workdir
        self._folder = folder
        self._config = config
        try:
            self._manager = ocp.CheckpointManager(
                folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, create=True, cleanup_tmp_directories=True
                ),
            )
        except OSError as error:
            raise ValueError(
                f'workdir {workdir}: cannot write {CHECKPOINTS}/ ({error.strerror}); '
                'give --workdir a folder that can be written'
            ) from error

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            with self._explained():
                self._manager.wait_until_finished()
        except ValueError:
            # The error that ends the run tells more than one that follows from it.
            if kind is None:
                raise
        finally:
            self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, iterator: grain.DatasetIterator, stopping: EarlyStopping
    ) -> None:
        """Writes the state and the place in the stream of data, in the background.

        Raises:
            ValueError: if this checkpoint, or the one before in the background, cannot be written
                (a full disk, say).
        """
        with self._explained():
            self._check_room(state)
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(_variables(state)),
                    optimizer=ocp.args.StandardSave(_optimizer(state)),
                    data=grain.checkpoint.CheckpointSave(iterator),
                    progress=ocp.args.JsonSave(stopping.state()),
                    config=ocp.args.JsonSave(json.loads(self._config.to_json_best_effort())),
                ),
            )

    def _check_room(self, state: TrainState) -> None:
        if storage.is_bucket(self._workdir):
            return
        # A disk that fills up during the writing is an error too, but a less readable one.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f'{free / 1e6:.1f} MB free, {needed / 1e6:.1f} MB needed')

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        # Orbax and tensorstore raise their own kinds for the same full disk.
        except Exception as error:
            good = self._manager.latest_step()
            kept = 'there is none before it' if good is None else f'step {good} is complete'
            raise ValueError(
                f'workdir {self._workdir}: cannot write a checkpoint ({_first_line(error)}); '
                f'{kept}. Make room, or see why the folder cannot be written, and give the same '
                'command again'
            ) from error

    def restore(
        self, state: TrainState, iterator: grain.DatasetIterator, stopping: EarlyStopping
    ) -> TrainState:
        """Reads the newest checkpoint.

        Args:
            state: a fresh state; gives shapes, dtypes and devices.
            iterator: a fresh iterator over the training data; moved to the saved place.
            stopping: fresh; moved to what was saved.

        Returns:
            The saved state.

        Raises:
            ValueError: if the checkpoint is of another config, or was written by another version of
                this package and does not fit.
        """
        step = self._manager.latest_step()
        folder = f'{self._workdir}/{CHECKPOINTS}/{step}'
        # Read first: it is quick, and says why the rest would not fit.
        try:
            told = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    progress=ocp.args.JsonRestore(), config=ocp.args.JsonRestore()
                ),
            )
        except (KeyError, OSError) as error:
            raise ValueError(
                f'{folder}: not a checkpoint of this version of handpose_jax '
                f'({_first_line(error)}); it can be evaluated, but not trained on: take a new '
                '--workdir'
            ) from error
        _check_same_config(folder, ConfigDict(told.config), self._config)
        saved = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_shapes(_variables(state))),
                optimizer=ocp.args.StandardRestore(_shapes(_optimizer(state))),
            ),
        )
        # Grain would ask for the file of this process among as many. All are equal: whole batches
        # are dealt, so that each process is at the same place of its part, however many there are.
        place = next(self._manager.directory.glob(f'{step}/data/process_*.json'))
        iterator.set_state(json.loads(place.read_text()))
        stopping.restore(told.progress)
        return TrainState(**saved.optimizer, **saved.variables)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {
        'opt_state': state.opt_state,
        'skipped': state.skipped,
        'skipped_in_a_row': state.skipped_in_a_row,
    }


def _variables(state: TrainState) -> dict[str, Any]:
    return {
        'step': state.step,
        'params': state.params,
        'batch_stats': state.batch_stats,
        'ema': state.ema,
    }
