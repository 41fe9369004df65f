"""Opens trained networks from their workdirs, and makes the compiled functions that predict."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from handpose_jax import heatmaps, models
from handpose_jax.models import folding
from handpose_jax.process import compiler_options, shipped
from handpose_jax.training import weight_files, workdirs
from handpose_jax.types import Prediction


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The newest checkpoint of a workdir, ready for inference.

    Attributes:
        workdir: where it was read.
        config: of the run.
        model: the network, as it was trained.
        step: of the checkpoint.
        variables: {'params', 'batch_stats'}, with the averaged parameters where the run kept some.
    """

    workdir: str
    config: ConfigDict
    model: models.Network
    step: int
    variables: Any

    def predict_step(self) -> Callable[[Any, jax.Array], Prediction]:
        """Makes the function of make_predict_step, as the run's config decodes."""
        return make_predict_step(self.model, self.config.decode.to_dict())


def load_run(workdir: str, *, config: ConfigDict | None = None) -> TrainedRun:
    """Opens a training run.

    Args:
        workdir: of the run, or its weights as one file, see training/weight_files.py, or the name
            of weights that come with the package.
        config: the workdir's, with other settings of decoding.

    Raises:
        ValueError: if the workdir holds no run, or no whole checkpoint.
    """
    workdir = shipped.weights(workdir)
    if workdir.endswith(weight_files.SUFFIX):
        found = weight_files.load(workdir)
        own = found.config if config is None else config
        model = models.build(**own.model.to_dict())
        variables = jax.tree.map(jnp.asarray, found.variables)
        return TrainedRun(workdir, own, model, found.step, variables)
    if config is None:
        config = workdirs.load_config(workdir)
    model = models.build(**config.model.to_dict())
    images = jnp.zeros((1, config.size, config.size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    step, variables = workdirs.load_variables(workdir, shapes)
    return TrainedRun(workdir, config, model, step, variables)


def make_predict_step(
    model: models.Network, decode: dict[str, Any]
) -> Callable[[Any, jax.Array], Prediction]:
    """Makes the jitted function from variables and crops u8[b h w 3] to keypoints in crop pixels.

    Args:
        model: from handpose_jax.models.build.
        decode: keyword arguments of heatmaps.decode.
    """

    def predict_step(variables: Any, images: jax.Array) -> Prediction:
        maps: Any = model.apply(variables, images, train=False)
        return heatmaps.decode(maps, stride=model.stride, **decode)

    return jax.jit(predict_step, compiler_options=compiler_options.for_inference())


def make_infer(
    model: models.Network, decode: dict[str, Any], variables: Any
) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """Makes the jitted function from crops u8[b h w 3] to what exported files give, see
    runtimes.Arrays.

    The weights are compiled in, which is faster for one image than to hand them over.

    Args:
        model: from handpose_jax.models.build.
        decode: keyword arguments of heatmaps.decode.
        variables: {'params', 'batch_stats'}.
    """

    def infer(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        maps: Any = model.apply(variables, images, train=False)
        found = heatmaps.decode(maps, stride=model.stride, **decode)
        return maps, jnp.concatenate([found.keypoints, found.confidence[..., None]], axis=-1)

    return jax.jit(infer, compiler_options=compiler_options.for_inference())


def for_inference(
    settings: dict[str, Any], variables: Any, *, implementation: str = 'auto'
) -> tuple[models.Network, Any]:
    """The same network in float32, without batch normalisation where that can be folded away.

    Args:
        settings: keyword arguments of handpose_jax.models.build that the variables belong to.
        variables: {'params', 'batch_stats'}.
        implementation: of the convolutions, see handpose_jax.models.layers.

    Returns:
        The network, and its variables.
    """
    changed = {**settings, 'implementation': implementation, 'dtype': 'float32'}
    if settings['name'] in models.FOLDABLE:
        variables = folding.fold(models.build(**settings), variables)
        changed['folded'] = True
    return models.build(**changed), variables
