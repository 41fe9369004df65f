"""How large a network is: trainable parameters and multiply-adds."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core as jax_core


def count_parameters(params: dict) -> int:
    """The number of trainable parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_macs(model: nn.Module, size: int) -> int:
    """Multiply-adds of the network's convolutions and matrix products for one image.

    FLOPs are twice that. Element-wise operations (batch normalisation, activations) are not
    counted, as is customary.

    Args:
        model: a network built with implementation='lax', so that each layer is one operation.
        size: side of the input, pixels.
    """
    images = jnp.zeros((1, size, size, 3), jnp.uint8)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, images))(variables)
    return _macs(jaxpr.jaxpr)


def _macs(jaxpr: jax_core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            out, kernel = _shape(equation.outvars[0]), _shape(equation.invars[1])
            taps = math.prod(kernel) // kernel[equation.params['dimension_numbers'].rhs_spec[0]]
            # A transposed convolution meets the zeros between the pixels it was given for free.
            dilation = math.prod(equation.params['lhs_dilation'])
            total += math.prod(out) * taps // dilation
        elif equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            lhs = _shape(equation.invars[0])
            depth = math.prod(lhs[axis] for axis in contracted)
            total += math.prod(_shape(equation.outvars[0])) * depth
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', value)
            if isinstance(inner, jax_core.Jaxpr):
                total += _macs(inner)
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
