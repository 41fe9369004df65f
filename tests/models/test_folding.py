"""Folded networks against the unfolded ones; what they are made of; trees that cannot be folded."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jax_core

from handpose_jax.models import MODELS, build, folding, layers
from handpose_jax.models.decoder import DecoderWidths

NARROW = dict.fromkeys(DecoderWidths._fields, 8)
SMALL = {
    'mobilenet_v2': {'width': 0.35, 'decoder_widths': NARROW},
    'resnet50': {'decoder_widths': NARROW},
    'small_unet': {'width': 0.5},
}
# At stride 16 three pixels by four: an odd and an even side.
IMAGES = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 48, 64, 3)), jnp.uint8)
BLOCKS = {
    'pointwise': {'features': 5},
    'pointwise_strided': {'features': 5, 'stride': 2},
    'dense_strided': {'features': 5, 'kernel_size': 3, 'stride': 2},
    'depthwise': {'kind': 'depthwise', 'kernel_size': 3},
    'depthwise_strided': {'kind': 'depthwise', 'kernel_size': 3, 'stride': 2},
    'transposed': {'features': 5, 'kind': 'transposed', 'kernel_size': 4},
}


def random_variables(model, *inputs, dtype=np.float32):
    """As after training: no scale or variance is 1, no bias or mean 0."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name.endswith('kernel'):
            value = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape)
        elif name in ('scale', 'var'):
            value = rng.uniform(0.3, 1.7, leaf.shape)
        else:
            value = rng.normal(0, 0.5, leaf.shape)
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


# Its normalisation stands before the convolutions, with padding between the two.
UNFOLDABLE = {'unet'}


@pytest.fixture(scope='module', params=[name for name in MODELS if name not in UNFOLDABLE])
def network(request):
    """A small network unfolded and folded, each with its variables and as a traced program.

    All in float64: rounding, which dozens of layers magnify, would hide small mistakes.
    """
    name = request.param
    # Plain lax compiles fastest; the blocks below run the formulations for CPUs too.
    make = functools.partial(build, name, implementation='lax', dtype='float64', **SMALL[name])
    unfolded, folded = make(), make(folded=True)
    with jax.enable_x64(True):
        variables = random_variables(unfolded, IMAGES, dtype=np.float64)
        given = jax.tree.map(np.array, variables)
        values = folding.fold(unfolded, variables)
        jax.tree.map(np.testing.assert_array_equal, variables, given)
        return {
            'unfolded': (variables, jax.jit(unfolded.apply).trace(variables, IMAGES)),
            'folded': (values, jax.jit(folded.apply).trace(values, IMAGES)),
            'model': folded,
        }


def primitives(jaxpr):
    """Names of all primitives, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', value)
            if isinstance(inner, jax_core.Jaxpr):
                yield from primitives(inner)


# --- networks -------------------------------------------------------------------------------------


def test_every_network_is_tested():
    assert set(SMALL) == set(MODELS) - UNFOLDABLE


def test_a_folded_network_gives_the_same_heatmaps(network):
    with jax.enable_x64(True):
        expected, found = (
            np.asarray(traced.lower().compile()(values, IMAGES))
            for values, traced in (network['unfolded'], network['folded'])
        )
    # They depend on the image, and far more than the tolerance.
    highest = np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * highest
    # The last operation is in float32. A wrong epsilon would be a difference of 1e-4 and more.
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7 * highest)


def test_nothing_of_batch_normalisation_is_left(network):
    values, traced = network['folded']
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: network['model'].init(jax.random.key(0), IMAGES))
    assert jax.tree.map(np.shape, values) == jax.tree.map(np.shape, shapes)
    assert set(values) == {'params'}
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(values)}
    assert names == {'kernel', 'bias', 'heatmaps_kernel', 'heatmaps_bias'}
    assert 'rsqrt' in set(primitives(network['unfolded'][1].jaxpr.jaxpr))
    assert 'rsqrt' not in set(primitives(traced.jaxpr.jaxpr))
    # The last layer, which has none, is as it was.
    old, new = network['unfolded'][0]['params'], values['params']
    for name in ('heatmaps_kernel', 'heatmaps_bias'):
        # Where there is a decoder, it has the last layer.
        np.testing.assert_array_equal(new.get('decoder', new)[name], old.get('decoder', old)[name])


def test_training_a_folded_network_is_refused(network):
    with jax.enable_x64(True), pytest.raises(ValueError, match=r'folded=True .* cannot be trained'):
        network['model'].apply(network['folded'][0], IMAGES, train=True, mutable=True)


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(('height', 'width', 'implementation'), [(7, 10, 'cpu'), (8, 9, 'lax')])
@pytest.mark.parametrize('name', BLOCKS)
def test_a_folded_block_is_the_block_in_float64(name, height, width, implementation):
    settings = {'activation': layers.relu6, 'bn_epsilon': 0.01, 'implementation': implementation}
    make = functools.partial(layers.ConvBN, **BLOCKS[name], **settings)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(0, 3, (2, height, width, 4)))
        unfolded, folded = make(dtype=jnp.float64), make(dtype=jnp.float64, folded=True)
        variables = random_variables(unfolded, x, False, dtype=np.float64)
        values = folding.fold(unfolded, variables, example=x)
        assert set(values['params']) == {'kernel', 'bias'}

        @jax.jit
        def run(variables, values, x):
            return unfolded.apply(variables, x, False), folded.apply(values, x, False)

        expected, found = run(variables, values, x)
        assert found.dtype == jnp.float64
        # Neither end of the activation hides everything.
        assert np.mean((expected > 0) & (expected < 6)) > 0.2
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_folded_block_computes_in_bfloat16_with_float32_parameters():
    x = jnp.asarray(np.random.default_rng(1).normal(0, 3, (2, 6, 7, 4)), jnp.float32)
    make = functools.partial(layers.ConvBN, 5, kernel_size=3, dtype=jnp.bfloat16)
    variables = random_variables(make(), x, False)
    values = folding.fold(make(), variables, example=x)
    assert {leaf.dtype for leaf in jax.tree.leaves(values)} == {jnp.dtype('float32')}
    found = make(folded=True).apply(values, x, False)
    assert found.dtype == jnp.bfloat16
    expected = np.asarray(make().apply(variables, x, False), np.float32)
    # Kernel, input, sum and result are each rounded to eight places.
    np.testing.assert_allclose(
        np.asarray(found, np.float32), expected, rtol=0, atol=2**-7 * np.abs(expected).max()
    )


def test_float32_kernels_are_rounded_once():
    block = layers.ConvBN(5, kernel_size=3)
    x = jnp.ones((1, 4, 4, 3))
    variables = random_variables(block, x, False)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    bn, statistics = wide['params']['bn'], wide['batch_stats']['bn']
    factor = bn['scale'] / np.sqrt(statistics['var'] + 1e-3)
    values = folding.fold(block, variables, example=x)['params']
    kernel, bias = wide['params']['kernel'] * factor, bn['bias'] - statistics['mean'] * factor
    np.testing.assert_array_equal(values['kernel'], kernel.astype(np.float32))
    np.testing.assert_array_equal(values['bias'], bias.astype(np.float32))


def test_both_forms_of_leaky_relu_are_one_function():
    x = jnp.array([-1e30, -2.0, -0.0, 0.0, 1e-30, 3.0])
    np.testing.assert_array_equal(layers.leaky_relu(x, folded=True), layers.leaky_relu(x))


# --- trees that cannot be folded ------------------------------------------------------------------


ONES = np.ones(12, np.float32)
# What is put at which path, None for what is taken away, and the error.
FAULTS = {
    'no kernel': ({'params/stem/kernel': None}, 'params/stem: expected .*kernel'),
    'no scale': ({'params/stem/bn/scale': None}, 'params/stem: expected .*bn/scale'),
    'no variance': (
        {'batch_stats/stem/bn/var': None},
        r"batch_stats/stem: expected .*'bn/var'\], got \['bn/mean'\]",
    ),
    'no statistics': ({'batch_stats/stem': None}, r'batch_stats/stem: expected .*got \[\]'),
    'no parameters': ({'params/stem': None}, r'params/stem: expected .*got \[\]'),
    'a bias already': (
        {'params/stem/bias': np.zeros(12, np.float32)},
        r"params/stem: expected .*got \['bias', ",
    ),
    'another shape': (
        {'batch_stats/stem/bn/mean': np.zeros(3, np.float32)},
        r'batch_stats/stem/bn/mean: expected the shape \(12,\) .*got \(3,\)',
    ),
    'negative variance': (
        {'batch_stats/stem/bn/var': np.full(12, -1, np.float32)},
        'batch_stats/stem/bn/var: expected variances >= 0, got -1',
    ),
    'other statistics': (
        {'batch_stats/stem/norm/mean': np.zeros(3, np.float32)},
        'batch_stats/stem/norm/mean: is of no batch normalisation',
    ),
    'a layer too many': (
        {
            'params/extra': {'kernel': ONES, 'bn': {'scale': ONES, 'bias': ONES}},
            'batch_stats/extra/bn': {'mean': ONES, 'var': ONES},
        },
        'extra/bn: is batch normalisation in the network or in the variables, but not in both',
    ),
    'folded before': ({'batch_stats': None}, r"folded=False, got \['params'\]"),
    'another collection': (
        {'cache/x': np.zeros(1)},
        r"expected the collections .*got \['batch_stats', 'cache', 'params'\]",
    ),
}


@pytest.fixture(scope='module')
def unet():
    """An unfolded network and variables that fit it."""
    model = build('small_unet', **SMALL['small_unet'])
    return model, random_variables(model, IMAGES)


@pytest.mark.parametrize('fault', FAULTS)
def test_a_tree_that_is_not_the_networks_is_an_error_that_names_the_path(unet, fault):
    changes, message = FAULTS[fault]
    model, variables = unet
    broken = copy.deepcopy(variables)
    for path, value in changes.items():
        *parents, name = path.split('/')
        tree = broken
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[name] = value
        if value is None:
            del tree[name]
    with pytest.raises(ValueError, match=message):
        folding.fold(model, broken)
