"""Training: the step, and the loop around it."""

from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from handpose_jax import (
    checkpoints,
    evaluate,
    heatmaps,
    interruption,
    losses,
    models,
    optimizers,
    writers,
)
from handpose_jax.data import pipeline, sources
from handpose_jax.data.transforms import Augmentation
from handpose_jax.state import TrainState, init_state

Loss = Callable[[Any, Any, Any], jax.Array]

LOSSES: dict[str, Loss] = {
    'squared_error': losses.squared_error_loss,
}


def make_train_step(
    model: models.Network,
    tx: optax.GradientTransformation,
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
        (state, batch of types.Batch) -> (state, metrics), metrics {'loss', 'gradient_norm'} f32[].
    """

    def train_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        height, width = batch['image'].shape[1:3]
        targets, weights = heatmaps.render(
            batch['keypoints'],
            batch['visible'],
            height=height // models.STRIDE,
            width=width // models.STRIDE,
            stride=models.STRIDE,
            sigma=sigma * width / 224,
        )

        def batch_loss(params: Any) -> tuple[jax.Array, Any]:
            maps, updated = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                batch['image'],
                train=True,
                mutable=['batch_stats'],
            )
            return loss(maps, targets, weights), updated['batch_stats']

        (value, batch_stats), gradients = jax.value_and_grad(batch_loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(state.ema, params, ema, state.step) if ema else None,
        )
        return new, {'loss': value, 'gradient_norm': optax.tree.norm(gradients)}

    return train_step


def _average(old: Any, new: Any, decay: float, step: jax.Array) -> Any:
    # Early on a shorter memory: the average must not remember the random parameters for long.
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, old, new)


def data_mesh() -> Mesh:
    """All devices of all processes in one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(jax.sharding.AxisType.Auto,))


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Spreads this process's part of a batch over the devices, along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }


def train(config: ConfigDict, workdir: str, *, stop_at: int | None = None) -> TrainState:
    """Trains, or goes on where the workdir's newest checkpoint stopped.

    Args:
        config: as configs/*.py make it.
        workdir: receives config, checkpoints, metrics and the evaluation's files.
        stop_at: leave after this step as if interrupted (checkpoint, no final evaluation).

    Returns:
        The state after the last step.

    Raises:
        ValueError: for bad data or settings, or a workdir with another config.
        interruption.Interrupted: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    checkpoints.save_config(workdir, config)
    model = models.build(**config.model.to_dict())
    tx, rate = optimizers.build(num_steps=config.num_steps, **config.optimizer.to_dict())
    iterator = iter(_train_dataset(config))
    evaluation = evaluate.Evaluation(config, model)
    mesh = data_mesh()
    state = init_state(
        model,
        tx,
        size=config.size,
        seed=config.seed,
        use_ema=bool(config.ema),
        init_from=config.init_from,
        model_name=config.model.name,
    )
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    step_function = jax.jit(
        make_train_step(model, tx, LOSSES[config.loss], sigma=config.sigma, ema=config.ema),
        donate_argnums=0,
    )
    with checkpoints.Checkpoints(workdir) as saved:
        if saved.latest_step() is not None:
            state = saved.restore(state, iterator)
        first = int(state.step)
        last = min(config.num_steps, stop_at or config.num_steps)
        with (
            writers.MetricWriter(workdir, resume_step=first) as writer,
            writers.ProgressBar(config.num_steps, initial=first) as bar,
            interruption.StopRequest() as stop,
        ):
            for step in range(first + 1, last + 1):
                state, metrics = step_function(state, to_devices(next(iterator), mesh))
                bar.update(images=config.batch_size, loss=metrics['loss'])
                if step % config.log_every == 0 or step == last:
                    row = {name: float(value) for name, value in metrics.items()}
                    writer.write(step, {**row, 'learning_rate': float(rate(step - 1))})
                if step % config.eval_every == 0 and step < last:
                    summary = evaluation.run(state.variables()).summary
                    writer.write(step, evaluate.scalars(summary), split='eval')
                    bar.write(f'step {step}: {evaluate.describe(summary)}')
                # After the evaluation, so that resuming never repeats or loses one of its rows.
                if step % config.checkpoint_every == 0 or step == last or stop.requested:
                    saved.save(state, iterator)
                if stop.requested and step < last:
                    raise interruption.Interrupted(
                        f'stopped at step {step} of {config.num_steps} and saved it; the same '
                        'command goes on from there'
                    )
            if last == config.num_steps:
                result = evaluation.run(state.variables())
                writer.write(last, evaluate.scalars(result.summary), split='eval')
                evaluation.write(workdir, last, result)
                bar.write(f'step {last}: {evaluate.describe(result.summary)}')
    return state


def _train_dataset(config: ConfigDict) -> grain.IterDataset:
    return pipeline.train_dataset(
        sources.load_source(split=config.train_split, **config.data.to_dict()),
        size=config.size,
        batch_size=config.batch_size,
        seed=config.seed,
        augmentation=Augmentation(**config.augmentation.to_dict()),
        balance=config.pipeline.balance,
        num_threads=config.pipeline.num_threads,
    )
