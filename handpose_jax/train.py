"""Training: the step, and the loop around it."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from handpose_jax import evaluate, heatmaps, models
from handpose_jax.config import balance, check, training_data
from handpose_jax.data import pipeline, resident, sources
from handpose_jax.data.transforms import Augmentation
from handpose_jax.evaluation import metrics, protocols
from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.process import compiler_options, distributed, interruption, lock
from handpose_jax.training import (
    checkpoints,
    health,
    losses,
    minutes,
    optimizers,
    provenance,
    weight_files,
    workdirs,
    writers,
)
from handpose_jax.training.early_stopping import EarlyStopping
from handpose_jax.training.state import TrainState, init_state
from handpose_jax.types import Source

Loss = Callable[[Any, Any, Any], jax.Array]

LOSSES: dict[str, Loss] = {
    'iou': losses.iou_loss,
    'squared_error': losses.squared_error_loss,
}


def make_train_step(
    model: models.Network,
    tx: optax.GradientTransformationExtraArgs,
    loss: Loss,
    *,
    sigma: float,
    ema: float = 0.0,
    freeze_batch_stats: bool = False,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the function of one step; pure, to be jitted by the caller with donated state.

    Args:
        model: image batch to heatmaps, with batch statistics.
        tx: the optimizer.
        loss: (heatmaps, targets, weights) to a number, see losses.py.
        sigma: of the target peaks, pixels of a 224 crop; other crop sizes scale it.
        ema: weight of the old average of the parameters at each step; 0 for no averaging.
        freeze_batch_stats: normalise by the running statistics, as inference does, and keep them.

    Returns:
        (state, batch of types.Batch) -> (state, metrics). metrics: 'loss' and 'gradient_norm'
        f32[]; 'peak' f32[], the mean over visible keypoints of their heatmap's highest value;
        'skipped' and 'skipped_in_a_row' i32[] of the new state. Where loss or gradient is not
        finite, the state stays as it was but for its counts.
    """

    def train_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        height, width = batch['image'].shape[1:3]
        targets, weights = heatmaps.render(
            batch['keypoints'],
            batch['visible'],
            batch['has_hand'],
            height=height // model.stride,
            width=width // model.stride,
            stride=model.stride,
            sigma=sigma * width / 224,
        )

        def batch_loss(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            maps, updated = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                batch['image'],
                train=not freeze_batch_stats,
                mutable=['batch_stats'],
            )
            peak = _mean_peak(maps, batch['visible'])
            # Some networks have no map of the background.
            count = maps.shape[-1]
            return loss(maps, targets[..., :count], weights[:, :count]), (
                updated['batch_stats'],
                peak,
            )

        (value, (batch_stats, peak)), gradients = jax.value_and_grad(batch_loss, has_aux=True)(
            state.params
        )
        norm = optax.tree.norm(gradients)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        new = TrainState(
            step=state.step,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(state.ema, params, ema, state.step) if ema else None,
            skipped=state.skipped,
            skipped_in_a_row=state.skipped_in_a_row,
        )
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        new = new._replace(
            step=state.step + 1,
            skipped=state.skipped + jnp.where(finite, 0, 1),
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        return new, {
            'loss': value,
            'gradient_norm': norm,
            'peak': peak,
            'skipped': new.skipped,
            'skipped_in_a_row': new.skipped_in_a_row,
        }

    return train_step


def _mean_peak(maps: jax.Array, visible: jax.Array) -> jax.Array:
    peaks = maps[..., :NUM_KEYPOINTS].max(axis=(1, 2)).astype(jnp.float32)
    return jnp.where(visible, peaks, 0).sum() / jnp.maximum(visible.sum(), 1)


def _average(old: Any, new: Any, decay: float, step: jax.Array) -> Any:
    # Early on a shorter memory: the average must not remember the random parameters for long.
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, old, new)


class Prepared(NamedTuple):
    """What a training goes by.

    Attributes:
        source: the training data.
        model: the network.
        rate: the learning rate as a function of the step.
        state: before the first step.
        iterator: over batches; its place belongs to a checkpoint.
        advance: one step: takes the iterator's next batch, and from a state, which is used up,
            makes the next one, with the metrics of make_train_step and the batch.
        show: makes types.Batch (NumPy) of such a batch, which only names its pictures where they
            lie in device memory.
    """

    source: Source
    model: models.Network
    rate: optax.Schedule
    state: TrainState
    iterator: grain.DatasetIterator
    advance: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array], Any]]
    show: Callable[[Any], Any]


def prepare(config: ConfigDict, mesh: Mesh, *, init_from: str) -> Prepared:
    """Opens data, network and optimizer, and makes the compiled step; writes nothing.

    Args:
        config: as configs/*.py make it.
        mesh: from distributed.data_mesh.
        init_from: weights to start from, see training/state.py; '' for none.

    Raises:
        ValueError: for bad data or settings.
    """
    batch_size = distributed.process_batch_size(config.batch_size, mesh, field='batch_size')
    source = sources.load_source(split=config.train_split, **training_data(config))
    sources.check_images(source)
    on_device = config.pipeline.place == 'device'
    if on_device:
        resident.check_fits(len(source), **_storage(config))
    model = models.build(**config.model.to_dict())
    tx, rate = optimizers.build(num_steps=config.num_steps, **config.optimizer.to_dict())
    iterator = iter(_train_dataset(config, source, batch_size))
    state = init_state(
        model,
        tx,
        size=config.size,
        seed=config.seed,
        use_ema=bool(config.ema),
        init_from=init_from,
        model_name=config.model.name,
    )
    state = distributed.replicate(state, mesh)
    take_step = make_train_step(
        model,
        tx,
        LOSSES[config.loss],
        sigma=config.sigma,
        ema=config.ema,
        freeze_batch_stats=config.freeze_batch_stats,
    )
    batch_of = _batch_of(config)
    parts_of = distributed.on_each_device(batch_of, mesh) if on_device else batch_of

    def train_step(state: TrainState, stored: Any, batch: Any) -> Any:
        return take_step(state, parts_of(stored, batch))

    step_function = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=distributed.replicated(mesh),
        compiler_options=compiler_options.for_training(),
    )

    # Read before the first step only: a run that has ended needs none of it.
    @functools.cache
    def stored() -> Any:
        if not on_device:
            return None
        return resident.load(
            source, mesh=mesh, num_threads=config.pipeline.num_threads, **_storage(config)
        )

    def advance(state: TrainState) -> tuple[TrainState, dict[str, jax.Array], Any]:
        batch = next(iterator)
        return *step_function(state, stored(), distributed.to_devices(batch, mesh)), batch

    def show(batch: Any) -> Any:
        return distributed.on_one_device(batch_of, stored(), batch)

    return Prepared(source, model, rate, state, iterator, advance, show)


def train(
    config: ConfigDict,
    workdir: str,
    *,
    stop_at: int | None = None,
    accept_changed_data: bool = False,
) -> TrainState:
    """Trains, or goes on where the workdir's newest checkpoint stopped.

    Args:
        config: as configs/*.py make it.
        workdir: receives config, checkpoints, metrics and the evaluation's files.
        stop_at: leave after this step as if interrupted (checkpoint, no final evaluation).
        accept_changed_data: go on though the training data is not what the run began with.

    Returns:
        The state after the last step.

    Raises:
        ValueError: for bad data or settings, or a workdir with another config.
        interruption.Interrupted: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    began = time.monotonic()
    check(config)
    mesh = distributed.data_mesh()
    config = minutes.of_run(workdir, config)
    checkpoints.check_workdir(workdir, config)
    # A run that goes on needs no start, and its weights may lie elsewhere by now.
    run = prepare(config, mesh, init_from='' if workdirs.steps(workdir) else config.init_from)
    source, state, iterator, rate = run.source, run.state, run.iterator, run.rate
    measured = metrics.metrics_of(protocols.get_protocol(config.protocol))
    errors = [metric.name for metric in measured if metric.is_error]
    if config.early_stopping.metric not in errors:
        raise ValueError(
            f'config.early_stopping.metric: expected one of {", ".join(errors)}, '
            f'got {config.early_stopping.metric!r}'
        )
    stopping = EarlyStopping(**config.early_stopping.to_dict())
    evaluation = evaluate.Evaluation(config, run.model, mesh)
    if config.minutes and not checkpoints.holds_run(workdir):
        config = minutes.fitted(
            config,
            began,
            run.advance,
            evaluation.seconds,
            state=state,
            iterator=iterator,
            stopping=stopping,
            mesh=mesh,
        )
        length = config.num_steps, config.optimizer.get('warmup_steps', 0)
        state = state._replace(opt_state=optimizers.with_length(state.opt_state, *length))
        _, rate = optimizers.build(num_steps=config.num_steps, **config.optimizer.to_dict())
    main = distributed.is_main_process()
    # Nothing is written before all that can be wrong has been opened.
    with (
        lock.hold(workdir) if main else contextlib.nullcontext(),
        checkpoints.Checkpoints(workdir, config) as saved,
    ):
        if saved.latest_step() is not None:
            state = saved.restore(state, iterator, stopping)
        first = int(state.step)
        if main:
            provenance.record(
                workdir,
                config,
                source,
                first_step=first,
                finished=stopping.finished or first >= config.num_steps,
                accept_changed_data=accept_changed_data,
            )
            checkpoints.save_config(workdir, config)
        last = first if stopping.finished else min(config.num_steps, stop_at or config.num_steps)
        with (
            writers.MetricWriter(workdir, resume_step=first, enabled=main) as writer,
            writers.ProgressBar(config.num_steps, initial=first, enabled=main) as bar,
            interruption.StopRequest() as stop,
        ):
            watch = health.Watch(
                workdir,
                source,
                max_skipped=config.max_skipped,
                empty_after=config.empty_after,
                log=bar.write,
                show=run.show,
            )
            told_to_stop = distributed.AnyProcess(mesh)
            weights = weight_files.Regularly(workdir, config, enabled=main)
            for step in range(first + 1, last + 1):
                state, measures, batch = run.advance(state)
                watch.step(step, measures, batch)
                bar.update(images=config.batch_size, loss=measures['loss'])
                if step % config.log_every == 0 or step == last:
                    learning_rate = optimizers.current_rate(rate, state.opt_state, step - 1)
                    writer.write(step, {**measures, 'learning_rate': learning_rate})
                if step % config.eval_every == 0 and step < config.num_steps:
                    summary = evaluation.run(state.variables()).summary
                    writer.write(step, evaluate.scalars(summary), split='eval')
                    bar.write(f'step {step}: {evaluate.describe(summary)}')
                    stopping.update(summary)
                # After the evaluation, so that resuming never repeats or loses one of its rows.
                stops = told_to_stop(stop.requested)
                leaves = step == last or stops or stopping.finished
                if step % config.checkpoint_every == 0 or leaves:
                    watch.finish()
                    saved.save(state, iterator, stopping)
                weights.offer(state.variables, step, last=leaves)
                if stops and step < last:
                    raise interruption.Interrupted(
                        f'stopped at step {step} of {config.num_steps} and saved it; the same '
                        'command goes on from there'
                    )
                if stopping.finished:
                    break
            step = int(state.step)
            if step == config.num_steps or stopping.finished:
                result = evaluation.run(state.variables())
                if not stopping.finished:
                    writer.write(step, evaluate.scalars(result.summary), split='eval')
                if main:
                    evaluation.write(workdir, step, result)
                bar.write(f'step {step}: {evaluate.describe(result.summary)}')
    return state


def _train_dataset(config: ConfigDict, source: Source, batch_size: int) -> grain.IterDataset:
    stream = {
        'batch_size': batch_size,
        'seed': config.seed,
        'balance': balance(config),
        'balance_within': config.pipeline.balance_within,
        'num_threads': config.pipeline.num_threads,
        'shard_index': jax.process_index(),
        'shard_count': jax.process_count(),
    }
    if config.pipeline.place == 'device':
        return pipeline.train_positions(source, **stream)
    return pipeline.train_dataset(
        source, size=config.size, augmentation=_augmentation(config), **stream
    )


def _augmentation(config: ConfigDict) -> Augmentation:
    return Augmentation(**config.augmentation.to_dict())


def _storage(config: ConfigDict) -> dict[str, Any]:
    """How records are kept in device memory, see resident.load."""
    return {
        'size': config.size,
        'augmentation': _augmentation(config),
        'side': config.pipeline.stored_side,
    }


def _batch_of(config: ConfigDict) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """From the records in device memory, if any, and what the pipeline gives, to types.Batch."""
    if config.pipeline.place == 'host':
        return lambda stored, batch: batch
    return functools.partial(
        resident.batch_of, seed=config.seed, size=config.size, augmentation=_augmentation(config)
    )
