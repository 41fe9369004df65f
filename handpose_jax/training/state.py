"""What a training step reads and writes, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from handpose_jax import models
from handpose_jax.models import pretrained, torch_unet
from handpose_jax.process import shipped, storage
from handpose_jax.training import weight_files, workdirs


class TrainState(NamedTuple):
    """Everything that changes from step to step; arrays only.

    Attributes:
        step: int32[], finished steps.
        params: the network's parameters.
        batch_stats: running statistics of batch normalisation.
        opt_state: the optimizer's own.
        ema: moving average of params, what evaluation uses; None without averaging.
        skipped: int32[], steps so far that changed nothing, because something was not finite.
        skipped_in_a_row: int32[], how many of them are the latest steps.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array

    def variables(self) -> dict[str, Any]:
        """What inference needs: averaged parameters where there are any, and statistics."""
        params = self.params if self.ema is None else self.ema
        return {'params': params, 'batch_stats': self.batch_stats}


def init_state(
    model: models.Network,
    tx: optax.GradientTransformation,
    *,
    size: int,
    seed: int,
    use_ema: bool,
    init_from: str = '',
    model_name: str = '',
) -> TrainState:
    """The state before the first step.

    Args:
        model: from handpose_jax.models.build.
        tx: the optimizer.
        size: side of the input, pixels.
        seed: of the random parameters.
        use_ema: keep a moving average of the parameters.
        init_from: workdir of a run, its weights as one file (weight_files.py), or the name of
            weights that come with the package, for all of its weights, or the encoder's where the
            rest is another network; file of ImageNet weights for the encoder, see
            models/pretrained.py, or of the tutorial's weights for the U-Net, see
            models/torch_unet.py; '' for none.
        model_name: the network's name, needed with init_from.

    Raises:
        ValueError: if the weights do not fit the network.
    """
    images = jnp.zeros((1, size, size, 3), jnp.uint8)
    variables = jax.jit(lambda key: model.init(key, images))(jax.random.key(seed))
    if init_from:
        variables = _start_from(init_from, variables, model_name)
    params = jax.tree.map(jnp.asarray, variables['params'])

    # As one program: hundreds of small ones would cost seconds before the first step.
    @jax.jit
    def rest(params: Any) -> tuple[optax.OptState, Any]:
        # A copy of its own: the step donates its input, and one buffer cannot be given twice.
        return tx.init(params), jax.tree.map(jnp.copy, params) if use_ema else None

    opt_state, ema = rest(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=jax.tree.map(jnp.asarray, variables['batch_stats']),
        opt_state=opt_state,
        ema=ema,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def _start_from(source: str, variables: Any, model_name: str) -> Any:
    source = shipped.weights(source)
    folder = storage.folder(source)
    if not folder.exists():
        raise ValueError(
            f'init_from: {source}: no such file or folder; give the workdir of a run, a file of '
            f'weights, or the name of weights of the package ({", ".join(shipped.weights_names())})'
        )
    if folder.is_dir():
        config = workdirs.load_config(source)
        model = models.build(**config.model.to_dict())
        images = jnp.zeros((1, config.size, config.size, 3), jnp.uint8)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
        _, found = workdirs.load_variables(source, shapes)
        return weight_files.fit(variables, found, source)
    if folder.suffix == weight_files.SUFFIX:
        return weight_files.fit(variables, weight_files.load(source).variables, source)
    if model_name == 'unet':
        return torch_unet.convert(torch_unet.read(source), variables)
    return pretrained.init_from(variables, source, model_name=model_name)
