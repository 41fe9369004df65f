"""Saves a training into its workdir, and goes on from there; training/workdirs.py reads the rest.

    W/config.json                the configuration, complete
    W/checkpoints/<step>/        variables (step, params, batch_stats, ema), optimizer (its state,
                                 counts of skipped steps), data iterator, progress (of early
                                 stopping), config, digests (of all these)
    W/damaged/<step>/            what a run found damaged when it went on from a step before

All randomness comes from the config's seed and the place in the stream of data, so no other random
keys are kept. A step's folder appears under its name only when it is complete (Orbax), so a killed
process leaves the last good one; what else it leaves is cleared when the run goes on. Each is
opened again after it was saved, and compared with what was in memory.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from handpose_jax.process import distributed, storage
from handpose_jax.process.digests import digest_of_json
from handpose_jax.training.early_stopping import EarlyStopping
from handpose_jax.training.state import TrainState
from handpose_jax.training.workdirs import (
    CHECKPOINTS,
    CONFIG_FILE,
    DIGESTS,
    DamagedCheckpoint,
    absolute,
    differences_that_matter,
    digests,
    load_config,
    newest_whole,
    read_checkpoint,
    step_folder,
    steps,
)

DAMAGED = 'damaged'

# Orbax looks for the parts of a checkpoint by patterns over the whole path.
_PATTERN_CHARACTERS = '*?[]'

_RUN_FILES = ('metrics.jsonl', 'metrics.json', 'predictions.json', 'predictions.png', 'run.json')


def check_workdir(workdir: str, config: ConfigDict) -> None:
    """Looks whether a run may begin, or go on, in a workdir; writes nothing.

    Raises:
        ValueError: if the workdir holds another run (with the list of keys that differ) or files
            that no run made, or has a name that checkpoints cannot be saved under.
    """
    found = sorted(set(str(absolute(workdir))) & set(_PATTERN_CHARACTERS))
    if found:
        raise ValueError(
            f'workdir {workdir}: its path has {" ".join(found)} in it, under which checkpoints '
            'cannot be saved and found again; give it, and the folders above it, other names'
        )
    folder = storage.folder(workdir)
    if (folder / CONFIG_FILE).exists():
        # A start that failed before it saved anything bars nobody.
        old = load_config(workdir)
        if holds_run(workdir):
            _check_same_config(workdir, old, config)
        return
    foreign = [name for name in _RUN_FILES if (folder / name).exists()]
    if foreign and not steps(workdir):
        raise ValueError(
            f'workdir {workdir}: holds {", ".join(foreign)} but no {CONFIG_FILE}, so they are of '
            'no run that could go on, and would be replaced; give another --workdir'
        )


def holds_run(workdir: str) -> bool:
    """Whether a run has begun in a workdir and left something: it goes on with its own config."""
    folder = storage.folder(workdir)
    rows = folder / 'metrics.jsonl'
    has_rows = rows.exists() and bool(rows.read_bytes().strip())
    return (folder / CONFIG_FILE).exists() and (has_rows or bool(steps(workdir)))


def save_config(workdir: str, config: ConfigDict) -> None:
    """Writes the config into the workdir, which check_workdir has found fit.

    Raises:
        ValueError: if it cannot be written.
    """
    path = storage.folder(workdir) / CONFIG_FILE
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


def _check_same_config(workdir: str, old: ConfigDict, new: ConfigDict) -> None:
    """Raises ValueError, listing the keys, where two configs would not train the same thing."""
    different = differences_that_matter(old, new)
    if different:
        lines = '\n  '.join(different)
        raise ValueError(
            f'workdir {workdir} holds a run with another config:\n  {lines}\n'
            'take a new --workdir, or the old values to go on with that run'
        )


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
        self._values = json.loads(config.to_json_best_effort())
        # What was saved last and not compared yet: its step, and the shapes of its parts.
        self._unverified: tuple[int, dict[str, Any]] | None = None
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
                if kind is None:
                    self._verify()
        except ValueError:
            # The error that ends the run tells more than one that follows from it.
            if kind is None:
                raise
        finally:
            self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, whole or not, or None."""
        return next(iter(steps(self._workdir)), None)

    def save(
        self, state: TrainState, iterator: grain.DatasetIterator, stopping: EarlyStopping
    ) -> None:
        """Writes the state and the place in the stream of data, in the background.

        The one before is opened and compared with what was in memory.

        Raises:
            ValueError: if this checkpoint, or the one before in the background, cannot be written
                (a full disk, say) or is not what was in memory.
        """
        variables, optimizer, progress = _variables(state), _optimizer(state), stopping.state()
        with self._explained():
            self._manager.wait_until_finished()
            self._verify()
            self._check_room(state)
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    optimizer=ocp.args.StandardSave(optimizer),
                    data=grain.checkpoint.CheckpointSave(iterator),
                    progress=ocp.args.JsonSave(progress),
                    config=ocp.args.JsonSave(self._values),
                    **{
                        DIGESTS: ocp.args.JsonSave(
                            {
                                'variables': digests(variables),
                                'optimizer': digests(optimizer),
                                'data': digest_of_json(iterator.get_state()),
                                'progress': digest_of_json(progress),
                                'config': digest_of_json(self._values),
                            }
                        )
                    },
                ),
            )
        self._unverified = int(state.step), _templates(state)

    def _verify(self) -> None:
        if self._unverified is None:
            return
        step, templates = self._unverified
        self._unverified = None
        self._read(step, **templates, progress=None, config=None)

    def _read(self, step: int, **templates: Any) -> dict[str, Any]:
        folder = step_folder(self._workdir, step)
        parts = read_checkpoint(folder, **templates, **{DIGESTS: None})
        told = parts.pop(DIGESTS)
        # Grain would ask for the file of this process among as many. All are equal: whole batches
        # are dealt, so that each process is at the same place of its part, however many there are.
        try:
            place = next(p for p in (folder / 'data').iterdir() if p.name.startswith('process_'))
            parts['data'] = json.loads(place.read_text())
        except (OSError, StopIteration, ValueError) as error:
            raise DamagedCheckpoint(f'{folder}/data: cannot be read ({error})') from error
        if told is not None and told.get('data') != digest_of_json(parts['data']):
            raise DamagedCheckpoint(
                f'{place}: does not agree with the digest that was saved with it'
            )
        return parts

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
            good = self.latest_step()
            kept = 'there is none before it' if good is None else f'step {good} is complete'
            raise ValueError(
                f'workdir {self._workdir}: cannot write a checkpoint ({_first_line(error)}); '
                f'{kept}. Make room, or see why the folder cannot be written, and give the same '
                'command again'
            ) from error

    def restore(
        self, state: TrainState, iterator: grain.DatasetIterator, stopping: EarlyStopping
    ) -> TrainState:
        """Reads the newest checkpoint that is whole; damaged ones are named, and moved to DAMAGED.

        Args:
            state: a fresh state; gives shapes, dtypes and devices.
            iterator: a fresh iterator over the training data; moved to the saved place.
            stopping: fresh; moved to what was saved.

        Returns:
            The saved state.

        Raises:
            ValueError: if the checkpoint is of another config, was written by another version of
                this package and does not fit, or none is whole.
        """

        def read(step: int) -> dict[str, Any]:
            folder = step_folder(self._workdir, step)
            # Read first: it is quick, and says why the rest would not fit.
            saved = read_checkpoint(folder, config=None)['config']
            _check_same_config(str(folder), ConfigDict(saved), self._config)
            return self._read(step, **_templates(state), progress=None)

        step, parts = newest_whole(self._workdir, read)
        self._put_aside([damaged for damaged in steps(self._workdir) if damaged > step])
        iterator.set_state(parts['data'])
        stopping.restore(parts['progress'])
        return TrainState(**parts['optimizer'], **parts['variables'])

    def _put_aside(self, damaged: list[int]) -> None:
        # Their steps are trained and saved again.
        if damaged and distributed.is_main_process():
            place = absolute(self._workdir) / DAMAGED
            place.mkdir(exist_ok=True)
            for step in damaged:
                target = place / f'{step}_{time.time_ns()}'
                step_folder(self._workdir, step).rename(target)
        if damaged:
            self._manager.reload()


def _templates(state: TrainState) -> dict[str, Any]:
    return {'variables': _shapes(_variables(state)), 'optimizer': _shapes(_optimizer(state))}


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
