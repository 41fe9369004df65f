"""What .tflite and .onnx files hold: how much they compute, and the part before the decoding.

Any file is read, not only those of handpose_jax.export. Needs ai-edge-litert for .tflite and onnx
for .onnx; neither TensorFlow nor JAX.
"""

import math
import pathlib
from collections.abc import Iterable
from typing import Any

NETWORK_OUTPUT = 'heatmaps'
"""An exported file has two outputs; this one is not decoded."""


def count_macs(path: pathlib.Path) -> int:
    """Multiply-adds of a file's convolutions and matrix products for one image.

    As handpose_jax.models.complexity.count_macs: a transposed convolution is counted for the pixels
    it was given, without regard to those that fall outside of the result.

    Args:
        path: a .tflite or .onnx file.
    """
    return _KINDS[path.suffix][0](path)


def input_side(path: pathlib.Path) -> int | None:
    """Side of the images that a file takes, px; None if it takes any.

    Args:
        path: a .tflite or .onnx file, of which the first input is [batch, height, width, channels]
            or [batch, channels, height, width].
    """
    shape = _KINDS[path.suffix][2](path)
    sides = [side for side in shape[1:] if side != 3]
    return sides[0] if len(shape) == 4 and sides and sides[0] > 0 else None


def network_only(path: pathlib.Path, result: pathlib.Path) -> bool:
    """Writes a file's network without what decodes its heatmaps.

    Args:
        path: a .tflite or .onnx file.
        result: receives the shorter one.

    Returns:
        Whether there was something to leave out: peers have no output of that name.
    """
    return _KINDS[path.suffix][1](path, result)


def _needed(operations: Iterable[tuple[Any, Any]], wanted: set[Any]) -> list[bool]:
    """Which of the operations, (inputs, outputs) in the order of execution, lead to the wanted."""
    kept = []
    for inputs, outputs in reversed(list(operations)):
        kept.append(bool(wanted & set(outputs)))
        if kept[-1]:
            wanted = wanted | set(inputs)
    return kept[::-1]


def _tflite_macs(path: pathlib.Path) -> int:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    code = schema.BuiltinOperator
    total = 0
    for graph in model.subgraphs:
        shapes = [() if t.shape is None else tuple(map(int, t.shape)) for t in graph.tensors]
        for operator in graph.operators:
            kind = model.operatorCodes[operator.opcodeIndex]
            number = max(kind.builtinCode, kind.deprecatedBuiltinCode)
            given = [shapes[i] if i >= 0 else () for i in map(int, operator.inputs)]
            made = math.prod(shapes[int(operator.outputs[0])])
            if number == code.CONV_2D:
                total += made * math.prod(given[1][1:])
            elif number == code.DEPTHWISE_CONV_2D:
                total += made * math.prod(given[1][1:3])
            elif number == code.TRANSPOSE_CONV:
                total += math.prod(given[2]) * math.prod(given[1][:3])
            elif number == code.FULLY_CONNECTED:
                total += made * given[1][-1]
            elif number == code.BATCH_MATMUL:
                adjoint = operator.builtinOptions is not None and operator.builtinOptions.adjX
                total += made * given[0][-2 if adjoint else -1]
    return total


def _tflite_network(path: pathlib.Path, result: pathlib.Path) -> bool:
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    if not model.signatureDefs or len(graph.outputs) == 1:
        return False
    signature = model.signatureDefs[0]
    names = (NETWORK_OUTPUT, NETWORK_OUTPUT.encode())
    kept = [output for output in signature.outputs if output.name in names]
    if len(kept) != 1:
        return False
    outputs = [kept[0].tensorIndex]
    needed = _needed(((o.inputs, o.outputs) for o in graph.operators), set(outputs))
    graph.operators = [o for o, keep in zip(graph.operators, needed, strict=True) if keep]
    graph.outputs, signature.outputs = outputs, kept
    flatbuffer_utils.write_model(model, str(result))
    return True


def _tflite_input(path: pathlib.Path) -> tuple[int, ...]:
    from ai_edge_litert.tools import flatbuffer_utils

    graph = flatbuffer_utils.read_model(str(path)).subgraphs[0]
    return tuple(map(int, graph.tensors[int(graph.inputs[0])].shape))


def _onnx_input(path: pathlib.Path) -> tuple[int, ...]:
    import onnx

    graph = onnx.load(path).graph
    weights = {weight.name for weight in graph.initializer}
    first = next(value for value in graph.input if value.name not in weights)
    return tuple(d.dim_value for d in first.type.tensor_type.shape.dim)


def _onnx_macs(path: pathlib.Path) -> int:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    shapes = {
        value.name: tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    shapes |= {value.name: tuple(value.dims) for value in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type not in ('Conv', 'ConvTranspose', 'Gemm', 'MatMul'):
            continue
        names = [name for name in (*node.input[:2], node.output[0]) if name not in shapes]
        if names:
            raise ValueError(f'{path.name}: the shape of {names[0]} is not known')
        first, second = (shapes[name] for name in node.input[:2])
        made = math.prod(shapes[node.output[0]])
        if node.op_type == 'Conv':
            total += made * math.prod(second[1:])
        elif node.op_type == 'ConvTranspose':
            total += math.prod(first) * math.prod(second[1:])
        elif node.op_type == 'Gemm':
            turned = any(a.name == 'transA' and a.i for a in node.attribute)
            total += made * first[0 if turned else 1]
        else:
            total += made * first[-1]
    return total


def _onnx_network(path: pathlib.Path, result: pathlib.Path) -> bool:
    import onnx

    model = onnx.load(path)
    graph = model.graph
    kept = [output for output in graph.output if output.name == NETWORK_OUTPUT]
    if len(kept) != 1 or len(graph.output) == 1:
        return False
    needed = _needed(((n.input, n.output) for n in graph.node), {NETWORK_OUTPUT})
    nodes = [node for node, keep in zip(graph.node, needed, strict=True) if keep]
    used = {name for node in nodes for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in used]
    for field, values in (('output', kept), ('node', nodes), ('initializer', weights)):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    onnx.save(model, result)
    return True


_KINDS = {
    '.tflite': (_tflite_macs, _tflite_network, _tflite_input),
    '.onnx': (_onnx_macs, _onnx_network, _onnx_input),
}
