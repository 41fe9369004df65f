"""What is exported: a trained network without batch normalisation, and the decoding behind it."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from handpose_jax import heatmaps, inference
from handpose_jax.export.decode_graph import check_decode, decode_graph

OUTPUTS = ('heatmaps', 'keypoints')
"""Names of what an artefact gives, in this order."""

INPUT = 'images'


@dataclasses.dataclass(frozen=True)
class Graph:
    """What every artefact computes, as one function of JAX.

    Attributes:
        infer: images f32[b size size 3], RGB, 0..255, to heatmaps f32[b h w c] and keypoints
            f32[b 21 3] (x, y in pixels of the image, confidence). The weights are inside.
        heatmaps: the first half of infer: images to heatmaps.
        decode: the second half: heatmaps to keypoints.
        size: side of the images, px.
        map_size: side of the heatmaps.
        num_maps: how many heatmaps.
    """

    infer: Callable[[Float[Array, 'b s s 3']], tuple[Array, Array]]
    heatmaps: Callable[[Float[Array, 'b s s 3']], Array]
    decode: Callable[[Array], Float[Array, 'b 21 3']]
    size: int
    map_size: int
    num_maps: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """A workdir's newest checkpoint.

    Attributes:
        config: of the run.
        step: of the checkpoint.
        variables: {'params', 'batch_stats'}, before folding.
        checksum: SHA-256 over all variables, their names, shapes and values.
    """

    config: ConfigDict
    step: int
    variables: Any
    checksum: str


def load(workdir: str) -> Trained:
    """Reads what a workdir holds.

    Raises:
        ValueError: if it is no workdir with a checkpoint.
    """
    run = inference.load_run(workdir)
    return Trained(run.config, run.step, run.variables, checksum(run.variables))


def checksum(variables: Any) -> str:
    """SHA-256 over a tree of arrays: names, dtypes, shapes and values, sorted by name."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    ):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path} {array.dtype} {array.shape}\n'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def make_graph(
    config: ConfigDict, variables: Any, *, implementation: str = 'lax', portable: bool = True
) -> Graph:
    """Makes the function that is exported.

    Args:
        config: of the run.
        variables: {'params', 'batch_stats'} of the network.
        implementation: of the convolutions, see handpose_jax.models.layers. Converters must see
            'lax': of the formulations for CPUs they would make hundreds of slices.
        portable: decode by decode_graph; False: by heatmaps.decode itself, which is faster where
            JAX runs it, and of which TensorFlow does not know every operation.

    Raises:
        ValueError: for a way of decoding that cannot be exported.
    """
    decode = config.decode.to_dict()
    check_decode(decode)
    model, values = inference.for_inference(
        config.model.to_dict(), variables, implementation=implementation
    )
    # As NumPy arrays they are constants of the program, whoever traces it.
    values = jax.tree.map(np.asarray, values)

    def maps_of(images: Float[Array, 'b s s 3']) -> Array:
        maps: Any = model.apply(jax.tree.map(jnp.asarray, values), images, train=False)
        return maps

    def keypoints_of(maps: Array) -> Float[Array, 'b 21 3']:
        if not portable:
            found = heatmaps.decode(maps, stride=model.stride, **decode)
            return jnp.concatenate([found.keypoints, found.confidence[..., None]], axis=-1)
        return decode_graph(maps, stride=model.stride, decode=decode)

    def infer(images: Float[Array, 'b s s 3']) -> tuple[Array, Array]:
        maps = maps_of(images)
        return maps, keypoints_of(maps)

    shape = jax.ShapeDtypeStruct((1, config.size, config.size, 3), jnp.float32)
    _, height, _, channels = jax.eval_shape(maps_of, shape).shape
    return Graph(infer, maps_of, keypoints_of, config.size, height, channels)
