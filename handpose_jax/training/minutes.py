"""The length of a training as minutes: what fits into them is measured before the first step.

Measured are the very step and stream of data of the run, on a copy of its state, and the place in
the stream is put back. So the run is to the bit what it would be with that number of steps given,
and one that goes on takes the number from its workdir and measures nothing.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from handpose_jax.process import distributed
from handpose_jax.training import checkpoints, workdirs
from handpose_jax.training.early_stopping import EarlyStopping
from handpose_jax.training.state import TrainState

_RESERVE = 0.03
"""Share of the time that stays free, for pictures, files and a rate that was a little lucky."""

_MEASURED = 0.01
"""Share of the time that the last and longest round of steps is to take at least."""

_MOST_MEASURED = 10.0

_WARM_UP = 0.1
"""Largest share of the steps that the rate rises for: the config's own number is for more steps."""


class Costs(NamedTuple):
    """Seconds of a step, an evaluation and a checkpoint."""

    step: float
    evaluation: float
    checkpoint: float


def of_run(workdir: str, config: ConfigDict) -> ConfigDict:
    """The config with the number of steps of the run that goes on, if its length is in minutes.

    Args:
        workdir: of the run; it may hold none yet.
        config: as it was given.
    """
    if not config.minutes or not checkpoints.holds_run(workdir):
        return config
    old = workdirs.load_config(workdir)
    return _with_length(config, old.num_steps, old.optimizer.get('warmup_steps', 0))


def fitted(
    config: ConfigDict,
    began: float,
    advance: Callable[[TrainState], tuple[TrainState, Any, Any]],
    evaluation_seconds: Callable[[Any], float],
    *,
    state: TrainState,
    iterator: grain.DatasetIterator,
    stopping: EarlyStopping,
    mesh: Mesh,
) -> ConfigDict:
    """The config with the number of steps that fit into its minutes, counted from `began`.

    Several processes find the same number. What a checkpoint takes is known for one alone.

    Args:
        config: with minutes above 0.
        began: when the training was called, time.monotonic.
        advance: one step, from a state that is used up to the next, its metrics and its batch.
        evaluation_seconds: from variables to what an evaluation takes.
        state: before the first step; it stays as it is.
        iterator: of the training data; its place is put back.
        stopping: of the run; only saved.
        mesh: of the run.

    Raises:
        ValueError: if not even one step fits.
    """
    total = 60 * config.minutes
    place = iterator.get_state()
    step, state = step_seconds(advance, _copy(state), mesh, min(_MOST_MEASURED, _MEASURED * total))
    costs = Costs(
        step,
        distributed.largest(evaluation_seconds(state.variables()), mesh),
        _checkpoint_seconds(config, state, iterator, stopping),
    )
    iterator.set_state(place)
    left = distributed.largest(total - (time.monotonic() - began), mesh)
    steps = steps_within(left, costs, config)
    if steps < 1:
        raise ValueError(
            f'config.minutes: expected enough for a step, got {config.minutes:g}, of which '
            f'{max(left, 0):.0f} s are left after the start; a step takes {costs.step:.2f} s and '
            f'the last evaluation and checkpoint {costs.evaluation + costs.checkpoint:.1f} s'
        )
    if distributed.is_main_process():
        print(
            f'{config.batch_size / costs.step:.1f} images/s, an evaluation {costs.evaluation:.1f} '
            f's, a checkpoint {costs.checkpoint:.1f} s: {steps} steps fit into the {left:.0f} s '
            f'that are left of {config.minutes:g} minutes',
            file=sys.stderr,
            flush=True,
        )
    warmup = min(config.optimizer.get('warmup_steps', 0), int(_WARM_UP * steps))
    return _with_length(config, steps, warmup)


def steps_within(seconds: float, costs: Costs, config: ConfigDict) -> int:
    """How many steps fit, with the evaluations and checkpoints between and after them.

    Args:
        seconds: that are left.
        costs: of what a run does.
        config: says how often it evaluates and saves.
    """
    most = int(max(seconds, 0) / costs.step)
    free = (1 - _RESERVE) * seconds

    def takes(steps: int) -> float:
        evaluations = 1 + (steps - 1) // config.eval_every
        checkpoints = -(-steps // config.checkpoint_every)
        return steps * costs.step + evaluations * costs.evaluation + checkpoints * costs.checkpoint

    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) <= free else (low, middle)
    return low


def step_seconds(
    advance: Callable[[TrainState], tuple[TrainState, Any, Any]],
    state: TrainState,
    mesh: Mesh,
    wanted: float,
) -> tuple[float, TrainState]:
    """What a step takes once it is compiled, reading its batch included.

    Args:
        advance: see fitted.
        state: is used up.
        mesh: of the run.
        wanted: seconds that the last and longest round of steps is to take at least.

    Returns:
        Seconds, and the state after all these steps.
    """

    def run(steps: int) -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(steps):
            state, measures, _ = advance(state)
        jax.block_until_ready(measures)
        # All processes go on together, or one would wait for a step that no other makes.
        return distributed.largest(time.perf_counter() - begin, mesh)

    run(1)  # compiles
    # Batches that were read ahead meanwhile come at once: only the last round counts, which is as
    # long as all before it together.
    steps = 2
    while (seconds := run(steps)) < wanted:
        steps *= 2
    return seconds / steps, state


def _checkpoint_seconds(
    config: ConfigDict,
    state: TrainState,
    iterator: grain.DatasetIterator,
    stopping: EarlyStopping,
) -> float:
    if jax.process_count() > 1:
        return 0.0
    begin = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        checkpoints.Checkpoints(folder, config) as saved,
    ):
        saved.save(state, iterator, stopping)
    return time.perf_counter() - begin


def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _with_length(config: ConfigDict, num_steps: int, warmup_steps: int) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.num_steps = num_steps
    if 'warmup_steps' in changed.optimizer:
        changed.optimizer.warmup_steps = warmup_steps
    return changed
