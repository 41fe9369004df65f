"""Trained networks ready to run: from a workdir, or an exported file, to a function of images."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from handpose_jax import heatmaps, models
from handpose_jax.models import folding
from handpose_jax.process import compiler_options
from handpose_jax.training import checkpoints
from handpose_jax.types import Prediction


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
    """Makes the jitted function from crops u8[b h w 3] to what exported files give, see Arrays.

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
    if 'folded' in inspect.signature(models.MODELS[settings['name']]).parameters:
        variables = folding.fold(models.build(**settings), variables)
        changed['folded'] = True
    return models.build(**changed), variables


def load_variables(workdir: str, config: ConfigDict, model: models.Network) -> tuple[int, Any]:
    """Reads a workdir's newest checkpoint for inference.

    Args:
        workdir: of a training run.
        config: the run's, checkpoints.load_config.
        model: from handpose_jax.models.build(**config.model.to_dict()).

    Returns:
        The checkpoint's step, and {'params', 'batch_stats'}.

    Raises:
        ValueError: if the workdir holds no checkpoint.
    """
    images = jnp.zeros((1, config.size, config.size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    return checkpoints.load_variables(workdir, shapes)


Arrays = tuple[Float[np.ndarray, 'b h w c'], Float[np.ndarray, 'b 21 3']]
"""Heatmaps, and keypoints (x, y in pixels of the image, confidence)."""

HOW_TO_INSTALL = 'pip install "handpose_jax[export]" tensorflow-cpu'

_OUTPUTS = ('heatmaps', 'keypoints')


class Runtime:
    """A trained network in one runtime: the same call, and the same numbers, for all of them."""

    def __init__(self, infer: Callable[[np.ndarray], Arrays], size: int) -> None:
        """See load, which makes one.

        Args:
            infer: of images u8[b size size 3].
            size: side of the images, px.
        """
        self._infer = infer
        self.size = size

    def run(self, images: UInt8[np.ndarray, 'b s _ 3']) -> Arrays:
        """Finds heatmaps and keypoints.

        Args:
            images: RGB crops of the side `size`.

        Returns:
            heatmaps f32[b h w c], keypoints f32[b 21 3]: x, y in pixels of the crop, confidence.

        Raises:
            ValueError: for images of another size.
        """
        if images.shape[1:] != (self.size, self.size, 3) or not len(images):
            raise ValueError(
                f'images: expected one or more of {self.size} x {self.size} pixels, RGB, got '
                f'shape {images.shape}'
            )
        return self._infer(images)

    def __call__(self, images: UInt8[np.ndarray, 'b s _ 3']) -> Prediction:
        """Finds the keypoints of crops, in pixels of the crop; see run."""
        keypoints = self.run(images)[1]
        return Prediction(keypoints[..., :2], keypoints[..., 2])


def load(path: str, backend: str, *, threads: int | None = None) -> Runtime:
    """Opens a trained network in a runtime.

    Args:
        path: for 'jax' a workdir; for the others what handpose_jax.export wrote: a .tflite, .onnx
            (which 'openvino' reads too) or .stablehlo file, or the folder of a SavedModel.
        backend: a key of BACKENDS.
        threads: of the CPU; None lets the runtime choose. For 'jax' and 'stablehlo' None: XLA's
            threads are chosen before JAX starts, see handpose_jax.process.threads. TensorFlow
            ('saved_model') takes it once in a process.

    Raises:
        ValueError: for an unknown backend, a path that is not there, threads that cannot be set, or
            a runtime that is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend: expected one of {", ".join(BACKENDS)}, got {backend!r}')
    if threads is not None and threads < 1:
        raise ValueError(f'threads: expected 1 or more, got {threads}')
    if threads is not None and backend in ('jax', 'stablehlo'):
        raise ValueError(
            f'threads: expected None for {backend}, got {threads}: XLA takes their number before '
            'JAX starts, see handpose_jax.process.threads'
        )
    if backend != 'jax' and not Path(path).exists():
        raise ValueError(f'{path}: no such file; write it with python -m handpose_jax.export')
    try:
        return BACKENDS[backend](path, threads)
    except ModuleNotFoundError as error:
        raise ValueError(
            f'backend {backend!r} needs the module {error.name}, which is not installed: '
            f'{HOW_TO_INSTALL}'
        ) from error


def _load_jax(path: str, threads: int | None) -> Runtime:
    config = checkpoints.load_config(path)
    model = models.build(**config.model.to_dict())
    _, variables = load_variables(path, config, model)
    model, variables = for_inference(config.model.to_dict(), variables)
    infer = make_infer(model, config.decode.to_dict(), variables)
    return Runtime(lambda images: _as_numpy(infer(images)), config.size)


def _load_stablehlo(path: str, threads: int | None) -> Runtime:
    from jax import export

    program = export.deserialize(bytearray(Path(path).read_bytes()))
    infer = jax.jit(program.call, compiler_options=compiler_options.for_inference())
    (shape,) = (leaf.shape for leaf in program.in_avals)
    return Runtime(lambda images: _as_numpy(infer(images.astype(np.float32))), shape[1])


def _load_saved_model(path: str, threads: int | None) -> Runtime:
    import tensorflow as tf

    if threads is not None:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        except RuntimeError as error:
            raise ValueError(
                f'threads: TensorFlow has started in this process already ({error}); load in a '
                'fresh process'
            ) from error
    loaded = tf.saved_model.load(path)
    (given,) = loaded.signatures['serving_default'].structured_input_signature[1].values()

    def run(images: np.ndarray) -> Arrays:
        # Asked for at each call: a signature does not keep alive what it belongs to.
        found = loaded.signatures['serving_default'](
            **{given.name: tf.constant(images.astype(np.float32))}
        )
        return _as_numpy([found[name].numpy() for name in _OUTPUTS])

    return Runtime(run, given.shape[1])


def _load_tflite(path: str, threads: int | None) -> Runtime:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    runner = interpreter.get_signature_runner()
    (name,) = interpreter.get_signature_list()['serving_default']['inputs']

    def run(images: np.ndarray) -> Arrays:
        found = [runner(**{name: image[None].astype(given['dtype'])}) for image in images]
        return _as_numpy([np.concatenate([one[key] for one in found]) for key in _OUTPUTS])

    return Runtime(run, int(given['shape'][1]))


def _load_onnx(path: str, threads: int | None) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    (given,) = session.get_inputs()

    def run(images: np.ndarray) -> Arrays:
        return _as_numpy(session.run(list(_OUTPUTS), {given.name: images.astype(np.float32)}))

    return Runtime(run, given.shape[1])


def _load_openvino(path: str, threads: int | None) -> Runtime:
    import openvino

    # Its own choice would be bfloat16 where the CPU has it.
    options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads is not None:
        options['INFERENCE_NUM_THREADS'] = threads
    compiled = openvino.Core().compile_model(path, 'CPU', options)

    def run(images: np.ndarray) -> Arrays:
        found = compiled([images.astype(np.float32)])
        return _as_numpy([found[name] for name in _OUTPUTS])

    return Runtime(run, compiled.input(0).get_partial_shape()[1].get_length())


def _as_numpy(found: Any) -> Arrays:
    maps, keypoints = (np.asarray(array, np.float32) for array in found)
    return maps, keypoints


BACKENDS: dict[str, Callable[[str, int | None], Runtime]] = {
    'jax': _load_jax,
    'tflite': _load_tflite,
    'onnx': _load_onnx,
    'openvino': _load_openvino,
    'saved_model': _load_saved_model,
    'stablehlo': _load_stablehlo,
}
