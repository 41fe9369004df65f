"""Training: the step, and the loop around it."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from handpose_jax import evaluate, heatmaps, models
from handpose_jax.config import balance, check, source_settings
from handpose_jax.data import pipeline, resident, sources
from handpose_jax.data.transforms import Augmentation
from handpose_jax.evaluation import metrics, protocols
from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.process import compiler_options, distributed, interruption, lock
from handpose_jax.training import (
    checkpoints,
    health,
    losses,
    optimizers,
    provenance,
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
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the function of one step; pure, to be jitted by the caller with donated state.

    Args:
        model: image batch to heatmaps, with batch statistics.
        tx: the optimizer.
        loss: (heatmaps, targets, weights) to a number, see losses.py.
        sigma: of the target peaks, pixels of a 224 crop; other crop sizes scale it.
        ema: weight of the old average of the parameters at each step; 0 for no averaging.

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
            height=height // model.stride,
            width=width // model.stride,
            stride=model.stride,
            sigma=sigma * width / 224,
        )

        def batch_loss(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            maps, updated = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                batch['image'],
                train=True,
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
    check(config)
    mesh = distributed.data_mesh()
    batch_size = distributed.process_batch_size(config.batch_size, mesh, field='batch_size')
    checkpoints.check_workdir(workdir, config)
    source = sources.load_source(split=config.train_split, **source_settings(config.data))
    sources.check_images(source)
    model = models.build(**config.model.to_dict())
    tx, rate = optimizers.build(num_steps=config.num_steps, **config.optimizer.to_dict())
    measured = metrics.metrics_of(protocols.get_protocol(config.protocol))
    errors = [metric.name for metric in measured if metric.is_error]
    if config.early_stopping.metric not in errors:
        raise ValueError(
            f'config.early_stopping.metric: expected one of {", ".join(errors)}, '
            f'got {config.early_stopping.metric!r}'
        )
    stopping = EarlyStopping(**config.early_stopping.to_dict())
    in_memory = config.pipeline.place == 'device'
    if in_memory:
        resident.check_fits(len(source), **_storage(config))
    iterator = iter(_train_dataset(config, source, batch_size))
    evaluation = evaluate.Evaluation(config, model, mesh)
    state = init_state(
        model,
        tx,
        size=config.size,
        seed=config.seed,
        use_ema=bool(config.ema),
        # A run that goes on needs no start, and its weights may lie elsewhere by now.
        init_from='' if workdirs.steps(workdir) else config.init_from,
        model_name=config.model.name,
    )
    state = distributed.replicate(state, mesh)
    take_step = make_train_step(model, tx, LOSSES[config.loss], sigma=config.sigma, ema=config.ema)
    batch_of = _batch_of(config)
    parts_of = distributed.on_each_device(batch_of, mesh) if in_memory else batch_of

    def train_step(state: TrainState, stored: Any, batch: Any) -> Any:
        return take_step(state, parts_of(stored, batch))

    step_function = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=distributed.replicated(mesh),
        compiler_options=compiler_options.for_training(),
    )
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
        stored = None
        if in_memory and first < last:
            stored = resident.load(
                source, mesh=mesh, num_threads=config.pipeline.num_threads, **_storage(config)
            )
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
                show=lambda batch: distributed.on_one_device(batch_of, stored, batch),
            )
            told_to_stop = distributed.AnyProcess(mesh)
            for step in range(first + 1, last + 1):
                batch = next(iterator)
                state, measures = step_function(state, stored, distributed.to_devices(batch, mesh))
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
