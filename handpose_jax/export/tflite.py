"""TFLite and SavedModel, by way of jax2tf and TensorFlow's converter."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from handpose_jax.export.graph import INPUT, OUTPUTS, Graph

PRECISIONS = ('f32', 'f16', 'dynamic_int8', 'int8')

_MIN_HALVED = 1024
"""Numbers of a kernel from which it is stored in half floats."""

# fmt: off
GPU_OPERATIONS = frozenset([
    'ABS', 'ADD', 'CONCATENATION', 'CONV_2D', 'DEPTHWISE_CONV_2D', 'DIV', 'EXP', 'LOG',
    'LOGISTIC', 'MAXIMUM', 'MAX_POOL_2D', 'MINIMUM', 'MUL', 'NEG', 'PAD', 'RELU', 'RELU6',
    'REDUCE_MAX', 'RESHAPE', 'SLICE', 'SQRT', 'SQUARE', 'SQUARED_DIFFERENCE',
    'STRIDED_SLICE', 'SUB', 'SUM', 'TRANSPOSE', 'TRANSPOSE_CONV',
])
# fmt: on
"""Operations that a float32 artefact may have: TFLite's GPU delegate has them all.

Source: the operations that the delegate's documentation lists, those with boolean or integer
arrays left out.
"""


def save_saved_model(graph: Graph, folder: Path) -> None:
    """Writes a TensorFlow SavedModel: signature serving_default, any number of images.

    Args:
        graph: what to write.
        folder: receives it.
    """
    _save(graph.infer, OUTPUTS, (None, graph.size, graph.size, 3), folder)


def convert(
    graph: Graph, precision: str, images: UInt8[np.ndarray, 'n s s 3'] | None = None
) -> bytes:
    """Makes one .tflite file: batch 1; images float32, for 'int8' uint8; the outputs float32.

    Args:
        graph: what to convert.
        precision: one of PRECISIONS. 'f16' and 'dynamic_int8' store the kernels so; 'int8' computes
            the network in integers, and the decoding in float32, which it would not survive.
        images: real crops, to calibrate 'int8' with.

    Raises:
        ValueError: for an unknown precision, or 'int8' without images.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision: expected one of {PRECISIONS}, got {precision!r}')
    shape = (1, graph.size, graph.size, 3)
    if precision != 'int8':
        content = _convert(graph.infer, OUTPUTS, shape, precision)
        return _halve(content) if precision == 'f16' else content
    if images is None or not len(images):
        raise ValueError("precision 'int8': needs images to calibrate with, got none")
    network = _convert(graph.heatmaps, OUTPUTS[:1], shape, precision, images)
    map_shape = (1, graph.map_size, graph.map_size, graph.num_maps)
    decoder = _convert(graph.decode, OUTPUTS[1:], map_shape, 'f32')
    return _join(network, decoder)


def operations(content: bytes) -> list[str]:
    """Names of a .tflite file's operations, in the order in which they run."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    names = {
        value: name for name, value in vars(schema.BuiltinOperator).items() if name[0].isupper()
    }
    codes = [names[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


def _save(
    function: Callable, names: Sequence[str], shape: tuple[int | None, ...], folder: Path
) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    shapes = ', '.join('b' if side is None else str(side) for side in shape)
    converted = jax2tf.convert(function, with_gradient=False, polymorphic_shapes=[f'({shapes})'])
    signature = [tf.TensorSpec(shape, tf.float32, name=INPUT)]

    def infer(images: Any) -> dict[str, Any]:
        found = converted(images)
        return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))

    module = tf.Module()
    module.infer = tf.function(infer, autograph=False, input_signature=signature)
    tf.saved_model.save(module, str(folder), signatures=module.infer.get_concrete_function())


def _convert(
    function: Callable,
    names: Sequence[str],
    shape: tuple[int, ...],
    precision: str,
    images: UInt8[np.ndarray, 'n s s 3'] | None = None,
) -> bytes:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        _save(function, names, shape, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision in ('dynamic_int8', 'int8'):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if images is not None:
            converter.representative_dataset = lambda: _calibration(images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
        return bytes(converter.convert())


def _calibration(images: UInt8[np.ndarray, 'n s s 3']) -> Iterator[list[np.ndarray]]:
    for image in images:
        image = image.astype(np.float32)
        # The whole range, so that a pixel's value is its own quantised one.
        image[0, 0, 0], image[-1, -1, -1] = 0, 255
        yield [image[None]]


def _halve(content: bytes) -> bytes:
    """A .tflite file with its large kernels in half floats.

    The converter's own way halves everything, and what it saves on biases and the small kernels of
    the first layers is nothing, but they make most of the error.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    graph, codes = model.subgraphs[0], schema.BuiltinOperator
    convolutions = (codes.CONV_2D, codes.DEPTHWISE_CONV_2D, codes.TRANSPOSE_CONV)
    kernels = {
        int(operator.inputs[1])
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode in convolutions
    }
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = codes.DEQUANTIZE
    # The first version that takes half floats.
    code.version = 3
    model.operatorCodes.append(code)
    widened = []
    for number in sorted(kernels):
        tensor = graph.tensors[number]
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None:
            continue
        values = np.frombuffer(bytes(data), np.float32)
        if values.size < _MIN_HALVED or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        buffer, half, operator = schema.BufferT(), schema.TensorT(), schema.OperatorT()
        buffer.data = np.frombuffer(values.astype(np.float16).tobytes(), np.uint8)
        half.shape, half.type = tensor.shape, schema.TensorType.FLOAT16
        half.name, half.buffer = tensor.name + b'/half', len(model.buffers)
        model.buffers.append(buffer)
        if sum(other.buffer == tensor.buffer for other in graph.tensors) == 1:
            model.buffers[tensor.buffer].data = None
        # The first buffer is the empty one of everything that is computed.
        tensor.buffer = 0
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs, operator.outputs = [len(graph.tensors)], [number]
        graph.tensors.append(half)
        widened.append(operator)
    graph.operators = [*widened, *graph.operators]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _join(first: bytes, second: bytes) -> bytes:
    """One .tflite file that runs the second on the only output of the first; gives both outputs."""
    from tensorflow.lite.tools import flatbuffer_utils

    one, two = (
        flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        for content in (first, second)
    )
    graph, tail = one.subgraphs[0], two.subgraphs[0]
    (link,), (given,) = list(graph.outputs), list(tail.inputs)
    buffers, codes = len(one.buffers), len(one.operatorCodes)
    one.buffers.extend(two.buffers)
    one.operatorCodes.extend(two.operatorCodes)
    place: dict[int, int] = {-1: -1, given: link}
    for number, tensor in enumerate(tail.tensors):
        if number != given:
            tensor.buffer += buffers
            place[number] = len(graph.tensors)
            graph.tensors.append(tensor)
    for operator in tail.operators:
        operator.opcodeIndex += codes
        operator.inputs = [place[int(number)] for number in operator.inputs]
        operator.outputs = [place[int(number)] for number in operator.outputs]
        graph.operators.append(operator)
    graph.outputs = [link, *(place[int(number)] for number in tail.outputs)]
    for output in two.signatureDefs[0].outputs:
        output.tensorIndex = place[output.tensorIndex]
        one.signatureDefs[0].outputs.append(output)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(one))
