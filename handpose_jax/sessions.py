"""Opens exported files in their runtimes; runtimes.py makes them one call.

Only the runtime itself is imported, and when it is asked for: benchmarks measure its memory.
"""

from pathlib import Path
from typing import Any


def tflite(path: str, threads: int | None) -> Any:
    """A .tflite file as an Interpreter of LiteRT, its tensors allocated.

    Args:
        path: of the file.
        threads: of the CPU; None lets the runtime choose, here and below.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def onnx(path: str, threads: int | None) -> Any:
    """An .onnx file as an InferenceSession of ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def openvino(path: str, threads: int | None) -> Any:
    """An .onnx file as a CompiledModel of OpenVINO, on the CPU, in float32."""
    import openvino as runtime

    # Its own choice would be bfloat16 where the CPU has it.
    options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads is not None:
        options['INFERENCE_NUM_THREADS'] = threads
    return runtime.Core().compile_model(path, 'CPU', options)


def saved_model(path: str, threads: int | None) -> tuple[Any, Any]:
    """The folder of a SavedModel, and what its signature 'serving_default' takes.

    The signature does not keep alive what it belongs to: ask the model for it at each call.

    Raises:
        ValueError: for a number of threads where TensorFlow has started in this process already.
    """
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
    return loaded, given


def stablehlo(path: str) -> Any:
    """A .stablehlo file as jax.export's Exported."""
    from jax import export

    return export.deserialize(bytearray(Path(path).read_bytes()))
