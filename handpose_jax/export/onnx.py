"""ONNX, written straight from the traced program: channels first inside, any number of images.

The program is small: about twenty of JAX's primitives, each one operation of ONNX. A writer of its
own keeps the batch open, needs no TensorFlow, and leaves no transposition but at the ends, where a
converter from TFLite fixes the batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from handpose_jax.export.graph import INPUT, OUTPUTS, Graph

OPSET = 18
_IR_VERSION = 9

_CHANNELS_FIRST = (0, 3, 1, 2)
_CHANNELS_LAST = (0, 2, 3, 1)

_Functions = dict[str, tuple[str, Callable[..., Any]]]

_UNARY: _Functions = {
    'abs': ('Abs', np.abs),
    'exp': ('Exp', np.exp),
    'log': ('Log', np.log),
    'logistic': ('Sigmoid', lambda x: 1 / (1 + np.exp(-x))),
    'neg': ('Neg', np.negative),
    'rsqrt': ('', lambda x: 1 / np.sqrt(x)),
    'sqrt': ('Sqrt', np.sqrt),
}
_BINARY: _Functions = {
    'add': ('Add', np.add),
    'div': ('Div', np.divide),
    'max': ('Max', np.maximum),
    'min': ('Min', np.minimum),
    'mul': ('Mul', np.multiply),
    'sub': ('Sub', np.subtract),
}
_REDUCTIONS = {'reduce_max': 'ReduceMax', 'reduce_sum': 'ReduceSum'}
_SAME = ('convert_element_type', 'copy', 'copy_p', 'stop_gradient')
_INNER = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A value that depends on the images.

    Attributes:
        name: in the file, where arrays of four dimensions are channels first.
        shape: channels last, for one image; 1 where a value is only repeated.
        dropped: axes of size 1 that the traced program does not have.
        repeats: (axis, factor): as if each pixel came so often along an axis.
        stacked: (axis, names): the tensors of this shape that lie side by side along a new axis
            after that one.
    """

    name: str
    shape: tuple[int, ...]
    dropped: tuple[int, ...] = ()
    repeats: tuple[int, int] | None = None
    stacked: tuple[int, tuple[str, ...]] | None = None


def save(graph: Graph, path: Any, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the graph as an ONNX file.

    Args:
        graph: what to write.
        path: receives it.
        metadata: kept in the file.

    Raises:
        ValueError: for a network with an operation that the writer does not know.
    """
    import onnx

    shape = jax.ShapeDtypeStruct((1, graph.size, graph.size, 3), jnp.float32)
    model = _Writer().write(jax.make_jaxpr(graph.infer)(shape), metadata or {})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


class _Writer:
    """Nodes and constants of one file."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._made_by: dict[str, Any] = {}
        # These are decode_graph's, by their names.
        self._functions: dict[Any, Callable[..., _Tensor]] = {
            'is_positive': self._is_positive,
            'nth_highest': self._nth_highest,
        }
        self._constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}
        self._lower_bounds: dict[str, tuple[str, float]] = {}

    def write(self, closed: Any, metadata: Mapping[str, str]) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        shape = tuple(closed.in_avals[0].shape)
        images = _Tensor(self._add('Transpose', [INPUT], perm=_CHANNELS_FIRST), shape)
        found = self._run(closed.jaxpr, closed.consts, [images])
        outputs = []
        for name, value in zip(OUTPUTS, found, strict=True):
            last = self._channels_last(value)
            self._nodes.append(helper.make_node('Identity', [last], [name]))
            outputs.append(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ['b', *value.shape[1:]])
            )
        nodes = self._needed()
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            'handpose',
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ['b', *shape[1:]])],
            outputs,
            [
                numpy_helper.from_array(value, name)
                for name, value in self._constants.items()
                if name in used
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)])
        model.ir_version = _IR_VERSION
        helper.set_model_props(model, dict(metadata))
        return model

    def _needed(self) -> list[Any]:
        wanted, nodes = set(OUTPUTS), []
        for node in reversed(self._nodes):
            if wanted & set(node.output):
                wanted |= set(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _add(self, operation: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f'{operation.lower()}_{len(self._nodes)}'
        outputs = [name, f'{name}_places'] if operation == 'TopK' else [name]
        node = helper.make_node(operation, inputs, outputs, name=name, **attributes)
        self._nodes.append(node)
        self._made_by[name] = node
        return name

    def _constant(self, value: Any, dtype: Any = np.float32) -> str:
        value = np.ascontiguousarray(value, dtype)
        key = (value.tobytes(), value.shape, value.dtype.str)
        if key not in self._names:
            self._names[key] = f'constant_{len(self._names)}'
            self._constants[self._names[key]] = value
        return self._names[key]

    def _operand(self, value: Any, rank: int = 0) -> str:
        """The name of a tensor or a constant, as an operand of arithmetic with arrays of a rank."""
        if isinstance(value, _Tensor):
            return value.name
        value = np.asarray(value)
        # ONNX Runtime takes 20 times as long for a number with fewer axes than the array.
        value = value.reshape(value.shape or (1,) * rank)
        return self._constant(value.transpose(_CHANNELS_FIRST) if value.ndim == 4 else value)

    def _channels_last(self, value: _Tensor) -> str:
        if len(value.shape) != 4:
            return value.name
        return self._add('Transpose', [value.name], perm=_CHANNELS_LAST)

    def _run(self, jaxpr: Any, constants: Any, arguments: list[Any]) -> list[Any]:
        known: dict[Any, Any] = {}

        def read(variable: Any) -> Any:
            return variable.val if hasattr(variable, 'val') else known[variable]

        known.update(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            values = [read(variable) for variable in equation.invars]
            special = self._functions.get(equation.params.get('name'))
            if special is not None and isinstance(values[0], _Tensor):
                shape = tuple(equation.outvars[0].aval.shape)
                known[equation.outvars[0]] = special(values[0], float(values[1]), shape)
                continue
            inner = next((equation.params[k] for k in _INNER if k in equation.params), None)
            if inner is not None:
                results = self._run(
                    getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), values
                )
            else:
                results = [self._translate(equation, values)]
            known.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _translate(self, equation: Any, values: list[Any]) -> Any:
        name, params = equation.primitive.name, equation.params
        shape = tuple(equation.outvars[0].aval.shape)
        if name in _SAME:
            return values[0]
        if 0 in shape:
            return np.zeros(shape, np.float32)
        if name == 'broadcast_in_dim':
            return self._broadcast(values[0], shape, params['broadcast_dimensions'])
        constant = not any(isinstance(value, _Tensor) for value in values)
        if name in ('integer_pow', 'square'):
            if params.get('y', 2) != 2:
                raise ValueError(f'ONNX: no translation of the power {params["y"]}')
            name, values = 'mul', [values[0], values[0]]
        if name in _UNARY or name in _BINARY:
            operation, function = (_UNARY | _BINARY)[name]
            if constant:
                return function(*(np.asarray(value) for value in values))
            if operation:
                return self._arithmetic(operation, values)
        if constant:
            return np.asarray(equation.primitive.bind(*values, **params))
        translations: dict[str, Callable] = {
            'concatenate': self._concatenate,
            'conv_general_dilated': self._convolution,
            'reduce_window_max': self._max_pool,
            'pad': self._pad,
            'reshape': self._reshape,
            'slice': self._slice,
            'stack': self._stack,
            'transpose': self._transpose,
            **dict.fromkeys(_REDUCTIONS, self._reduce),
        }
        if name not in translations:
            raise ValueError(
                f'ONNX: no translation of the operation {name!r}; add one to '
                'handpose_jax/export/onnx.py, or write the network without it'
            )
        return translations[name](equation, values, shape)

    def _arithmetic(self, operation: str, values: list[Any]) -> _Tensor:
        tensors = [value for value in values if isinstance(value, _Tensor)]
        if any(t.dropped != tensors[0].dropped or t.repeats or t.stacked for t in tensors):
            raise ValueError(f'ONNX: {operation} of tensors whose axes were dropped differently')
        shape = np.broadcast_shapes(
            *(v.shape if isinstance(v, _Tensor) else np.shape(v) for v in values)
        )
        if operation in ('Max', 'Min') and len(tensors) == 1:
            bound = next(value for value in values if not isinstance(value, _Tensor))
            if np.ndim(bound) == 0:
                name = self._bound(operation, tensors[0].name, float(bound))
                return _Tensor(name, shape, tensors[0].dropped)
        rank = len(tensors[0].shape)
        made = self._fused(operation, values, tensors) or self._add(
            operation, [self._operand(value, rank) for value in values]
        )
        return _Tensor(made, shape, tensors[0].dropped)

    def _fused(self, operation: str, values: list[Any], tensors: list[_Tensor]) -> str | None:
        """One node for a bias after a convolution, or for a leaky ReLU written as a maximum."""
        sources = [self._made_by.get(tensor.name) for tensor in tensors]
        if operation == 'Add' and len(tensors) == 1 and sources[0] is not None:
            node, bias = sources[0], next(v for v in values if not isinstance(v, _Tensor))
            channels = tensors[0].shape[-1]
            if (
                node.op_type in ('Conv', 'ConvTranspose')
                and len(node.input) == 2
                and np.ndim(bias) in (1, 4)
                and np.shape(bias)[-1] == np.size(bias) == channels
            ):
                return self._again(node, [*node.input, self._constant(np.ravel(bias))])
        if operation == 'Max' and len(tensors) == 2:
            for scaled, plain in (tensors, tensors[::-1]):
                node = self._made_by.get(scaled.name)
                if node is None or node.op_type != 'Mul' or plain.name not in node.input:
                    continue
                slope = next(self._constants.get(n) for n in node.input if n != plain.name)
                if slope is not None and slope.size == 1 and 0 < slope.item() < 1:
                    return self._add('LeakyRelu', [plain.name], alpha=slope.item())
        return None

    def _again(self, node: Any, inputs: list[str]) -> str:
        """A node with other inputs; what is then not used is left out in the end."""
        from onnx import helper

        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return self._add(node.op_type, inputs, **attributes)

    def _is_positive(self, value: _Tensor, high: float, shape: tuple[int, ...]) -> _Tensor:
        # One step where half floats need three: this file is for float32 alone.
        steep = self._constant(np.full((1,) * len(value.shape), high * 2.0**45))
        limits = [self._constant(0.0), self._constant(high)]
        name = self._add('Clip', [self._add('Mul', [value.name, steep]), *limits])
        return dataclasses.replace(value, name=name)

    def _nth_highest(self, value: _Tensor, n: float, shape: tuple[int, ...]) -> _Tensor:
        _, height, width, maps = value.shape
        flat = self._constant([-1, maps, height * width, 1], np.int64)
        highest = self._add(
            'TopK',
            [self._add('Reshape', [value.name, flat]), self._constant([int(n)], np.int64)],
            axis=2,
        )
        rows = [self._constant([row], np.int64) for row in (int(n) - 1, int(n), 2)]
        return _Tensor(self._add('Slice', [highest, *rows]), shape)

    def _bound(self, operation: str, name: str, bound: float) -> str:
        """A maximum or minimum with a number; both together are one Clip, which runtimes fuse."""
        if operation == 'Max':
            if bound == 0:
                clipped = self._add('Relu', [name])
            else:
                clipped = self._add('Clip', [name, self._constant(bound)])
            self._lower_bounds[clipped] = (name, bound)
            return clipped
        if name in self._lower_bounds:
            source, low = self._lower_bounds[name]
            return self._add('Clip', [source, self._constant(low), self._constant(bound)])
        return self._add('Clip', [name, '', self._constant(bound)])

    def _broadcast(self, value: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
        """Only puts the axes in their places: arithmetic repeats what is 1."""
        if not isinstance(value, _Tensor):
            value = np.asarray(value)
            places = np.ones(len(shape), int)
            places[list(axes)] = value.shape
            return value.reshape(places)
        kept = tuple(a for a in range(len(value.shape)) if a not in value.dropped)
        if len(shape) == len(value.shape) and kept == tuple(axes):
            return dataclasses.replace(value, dropped=())
        new = [axis for axis in range(len(shape)) if axis not in axes]
        if not value.dropped and len(shape) == 5 and len(new) == 1 and len(value.shape) == 4:
            return dataclasses.replace(value, repeats=(new[0] - 1, shape[new[0]]))
        raise ValueError(f'ONNX: no translation of a broadcast of {value.shape} to {shape}')

    def _plain(self, value: Any, shape: tuple[int, ...]) -> str:
        if not isinstance(value, _Tensor):
            return self._operand(value)
        if value.dropped or value.repeats or value.stacked or value.shape != tuple(shape):
            raise ValueError(f'ONNX: expected a tensor of {shape}, got {value}')
        return value.name

    def _axis(self, axis: int, rank: int) -> int:
        return _CHANNELS_FIRST.index(axis) if rank == 4 else axis

    def _reshape(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        value: _Tensor = values[0]
        if value.repeats:
            axis, factor = value.repeats
            if factor == 1 and shape == value.shape:
                return dataclasses.replace(value, repeats=None)
            if shape != tuple(s * factor if a == axis else s for a, s in enumerate(value.shape)):
                raise ValueError(f'ONNX: no translation of {value} to {shape}')
            scales = np.ones(4)
            scales[self._axis(axis, 4)] = factor
            name = self._add(
                'Resize',
                [value.name, '', self._constant(scales)],
                mode='nearest',
                coordinate_transformation_mode='asymmetric',
                nearest_mode='floor',
            )
            return _Tensor(name, shape)
        if value.stacked:
            return self._interleave(value, shape)
        if value.dropped:
            if shape != value.shape:
                raise ValueError(f'ONNX: no translation of {value} to {shape}')
            return dataclasses.replace(value, dropped=())
        target = self._constant(np.array([-1, *shape[1:]]), np.int64)
        name = self._add('Reshape', [self._channels_last(value), target])
        if len(shape) == 4:
            name = self._add('Transpose', [name], perm=_CHANNELS_FIRST)
        return _Tensor(name, shape)

    def _transpose(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        permutation = equation.params['permutation']
        if len(shape) == 4:
            permutation = [self._axis(permutation[axis], 4) for axis in _CHANNELS_FIRST]
        name = self._plain(values[0], equation.invars[0].aval.shape)
        return _Tensor(self._add('Transpose', [name], perm=permutation), shape)

    def _stack(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        whole = equation.invars[0].aval.shape
        names = tuple(self._plain(value, whole) for value in values)
        return _Tensor(names[0], whole, stacked=(equation.params['axis'] - 1, names))

    def _interleave(self, value: _Tensor, shape: tuple[int, ...]) -> _Tensor:
        axis, names = value.stacked or (0, ())
        number = len(names)
        if shape != tuple(s * number if a == axis else s for a, s in enumerate(value.shape)):
            raise ValueError(f'ONNX: no translation of {value} to {shape}')
        new = self._constant([self._axis(axis, 4) + 1], np.int64)
        slices = [self._add('Unsqueeze', [name, new]) for name in names]
        joined = self._add('Concat', slices, axis=self._axis(axis, 4) + 1)
        target = [shape[place] for place in _CHANNELS_FIRST]
        made = self._add('Reshape', [joined, self._constant([-1, *target[1:]], np.int64)])
        return _Tensor(made, shape)

    def _concatenate(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        names = [
            self._plain(value, variable.aval.shape)
            for value, variable in zip(values, equation.invars, strict=True)
            if 0 not in variable.aval.shape
        ]
        if len(names) == 1:
            return _Tensor(names[0], shape)
        axis = self._axis(equation.params['dimension'], len(shape))
        return _Tensor(self._add('Concat', names, axis=axis), shape)

    def _slice(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        params, whole = equation.params, equation.invars[0].aval.shape
        steps = params['strides'] or [1] * len(whole)
        axes = [axis for axis in range(1, len(whole)) if shape[axis] != whole[axis]]
        rows = (
            [params['start_indices'][axis] for axis in axes],
            [params['limit_indices'][axis] for axis in axes],
            [self._axis(axis, len(whole)) for axis in axes],
            [steps[axis] for axis in axes],
        )
        inputs = [self._constant(row, np.int64) for row in rows]
        return _Tensor(self._add('Slice', [self._plain(values[0], whole), *inputs]), shape)

    def _reduce(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        whole = equation.invars[0].aval.shape
        axes = tuple(equation.params['axes'])
        name = self._add(
            _REDUCTIONS[equation.primitive.name],
            [
                self._plain(values[0], whole),
                self._constant([self._axis(axis, len(whole)) for axis in axes], np.int64),
            ],
            keepdims=1,
        )
        kept = tuple(1 if axis in axes else side for axis, side in enumerate(whole))
        return _Tensor(name, kept, dropped=axes)

    def _pad(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        whole = equation.invars[0].aval.shape
        low, high, inside = zip(*equation.params['padding_config'], strict=True)
        if any(inside) or low[0] or high[0] or min(*low, *high) < 0 or len(whole) != 4:
            raise ValueError(f'ONNX: no translation of the padding {equation.params}')
        pads = [side[axis] for side in (low, high) for axis in _CHANNELS_FIRST]
        inputs = [self._plain(values[0], whole), self._constant(pads, np.int64)]
        return _Tensor(self._add('Pad', [*inputs, self._constant(values[1])]), shape)

    def _max_pool(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        params = equation.params
        before, after = zip(*params['padding'][1:3], strict=True)
        name = self._add(
            'MaxPool',
            [self._plain(values[0], equation.invars[0].aval.shape)],
            kernel_shape=params['window_dimensions'][1:3],
            strides=params['window_strides'][1:3],
            pads=[*before, *after],
        )
        return _Tensor(name, shape)

    def _convolution(self, equation: Any, values: list[Any], shape: tuple[int, ...]) -> _Tensor:
        params = equation.params
        kernel = np.asarray(values[1])
        name = self._plain(values[0], equation.invars[0].aval.shape)
        before, after = zip(*params['padding'], strict=True)
        if tuple(params['lhs_dilation']) == (1, 1):
            made = self._add(
                'Conv',
                [name, self._constant(kernel.transpose(3, 2, 0, 1))],
                strides=params['window_strides'],
                dilations=params['rhs_dilation'],
                group=params['feature_group_count'],
                pads=[*before, *after],
            )
            return _Tensor(made, shape)
        # What JAX pads is what is left over of the kernel's reach; the kernel is turned around.
        reach = [side - 1 for side in kernel.shape[:2]]
        made = self._add(
            'ConvTranspose',
            [name, self._constant(kernel[::-1, ::-1].transpose(2, 3, 0, 1))],
            strides=params['lhs_dilation'],
            pads=[r - p for r, p in zip((*reach, *reach), (*before, *after), strict=True)],
        )
        return _Tensor(made, shape)
