"""Opens a trained network, a workdir or an exported file, as a function of images.

Each runtime is imported when it is asked for, so that one that needs no JAX loads none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from handpose_jax import sessions
from handpose_jax.process import extras
from handpose_jax.types import Prediction

if TYPE_CHECKING:
    from handpose_jax.inference import TrainedRun

Arrays = tuple[Float[np.ndarray, 'b h w c'], Float[np.ndarray, 'b 21 3']]
"""Heatmaps, and keypoints (x, y in pixels of the image, confidence)."""

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
        raise ValueError(f'{path}: no such file; write it with handpose export')
    try:
        return BACKENDS[backend](path, threads)
    except ModuleNotFoundError as error:
        told = extras.missing(error, f'{path}: backend {backend!r}')
        if told is None:
            raise
        raise ValueError(told) from error


def of_run(run: 'TrainedRun') -> Runtime:
    """A trained run in JAX, behind the call that all runtimes share.

    Args:
        run: from inference.load_run.
    """
    from handpose_jax import inference

    model, variables = inference.for_inference(run.config.model.to_dict(), run.variables)
    infer = inference.make_infer(model, run.config.decode.to_dict(), variables)
    return Runtime(lambda images: _as_numpy(infer(images)), run.config.size)


def _load_jax(path: str, threads: int | None) -> Runtime:
    from handpose_jax import inference

    return of_run(inference.load_run(path))


def _load_stablehlo(path: str, threads: int | None) -> Runtime:
    import jax

    from handpose_jax.process import compiler_options

    program = sessions.stablehlo(path)
    infer = jax.jit(program.call, compiler_options=compiler_options.for_inference())
    (shape,) = (leaf.shape for leaf in program.in_avals)
    return Runtime(lambda images: _as_numpy(infer(images.astype(np.float32))), shape[1])


def _load_saved_model(path: str, threads: int | None) -> Runtime:
    import tensorflow as tf

    loaded, given = sessions.saved_model(path, threads)

    def run(images: np.ndarray) -> Arrays:
        found = loaded.signatures['serving_default'](
            **{given.name: tf.constant(images.astype(np.float32))}
        )
        return _as_numpy([found[name].numpy() for name in _OUTPUTS])

    return Runtime(run, given.shape[1])


def _load_tflite(path: str, threads: int | None) -> Runtime:
    interpreter = sessions.tflite(path, threads)
    (given,) = interpreter.get_input_details()
    runner = interpreter.get_signature_runner()
    (name,) = interpreter.get_signature_list()['serving_default']['inputs']

    def run(images: np.ndarray) -> Arrays:
        found = [runner(**{name: image[None].astype(given['dtype'])}) for image in images]
        return _as_numpy([np.concatenate([one[key] for one in found]) for key in _OUTPUTS])

    return Runtime(run, int(given['shape'][1]))


def _load_onnx(path: str, threads: int | None) -> Runtime:
    session = sessions.onnx(path, threads)
    (given,) = session.get_inputs()

    def run(images: np.ndarray) -> Arrays:
        return _as_numpy(session.run(list(_OUTPUTS), {given.name: images.astype(np.float32)}))

    return Runtime(run, given.shape[1])


def _load_openvino(path: str, threads: int | None) -> Runtime:
    compiled = sessions.openvino(path, threads)

    def run(images: np.ndarray) -> Arrays:
        found = compiled([images.astype(np.float32)])
        return _as_numpy([found[name] for name in _OUTPUTS])

    return Runtime(run, compiled.input(0).get_partial_shape()[1].get_length())


def _as_numpy(found: Any) -> Arrays:
    """Heatmaps and keypoints of any runtime as float32 NumPy arrays."""
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
