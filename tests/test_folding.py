"""Folded networks against the unfolded ones; what they are made of; trees that cannot be folded."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jax_core

from handpose_jax.models import MODELS, build, folding, layers
from handpose_jax.models.complexity import count_macs
from handpose_jax.models.decoder import DecoderWidths

NARROW = dict.fromkeys(DecoderWidths._fields, 8)
SMALL = {
    'mobilenet_v2': {'width': 0.35, 'decoder_widths': NARROW},
    'resnet50': {'decoder_widths': NARROW},
    'small_unet': {'width': 0.5},
}
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


@pytest.fixture(scope='module', params=MODELS)
def network(request):
    """A small unfolded network, its variables, the folded network and the folded variables."""
    name = request.param
    # Plain lax compiles fastest; the blocks below run the formulations for CPUs too.
    make = functools.partial(build, name, implementation='lax', **SMALL[name])
    unfolded, folded = make(), make(folded=True)
    variables = random_variables(unfolded, jnp.zeros((1, 32, 32, 3), jnp.uint8))
    return unfolded, variables, folded, folding.fold(unfolded, variables)


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
    assert set(SMALL) == set(MODELS)


# Features at stride 16 of odd and of even sides.
@pytest.mark.parametrize(('height', 'width'), [(48, 80), (64, 32)])
def test_a_folded_network_gives_the_same_heatmaps(network, height, width):
    unfolded, variables, folded, values = network
    images = np.random.default_rng(1).integers(0, 256, (2, height, width, 3))
    images = jnp.asarray(images, jnp.uint8)
    expected = np.asarray(jax.jit(unfolded.apply)(variables, images))
    found = np.asarray(jax.jit(folded.apply)(values, images))
    # They depend on the image, and far more than the tolerance.
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_nothing_of_batch_normalisation_is_left(network):
    unfolded, variables, folded, values = network
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: folded.init(jax.random.key(0), images))
    assert jax.tree.structure(shapes) == jax.tree.structure(values)
    for wanted, leaf in zip(*map(jax.tree.leaves, (shapes, values)), strict=True):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
    assert set(values) == {'params'}
    paths = jax.tree_util.tree_leaves_with_path(values['params'])
    assert {path[-1].key for path, _ in paths} == {
        'kernel',
        'bias',
        'heatmaps_kernel',
        'heatmaps_bias',
    }
    root = jax.make_jaxpr(unfolded.apply)(variables, images).jaxpr
    assert 'rsqrt' in set(primitives(root))
    assert 'rsqrt' not in set(primitives(jax.make_jaxpr(folded.apply)(values, images).jaxpr))
    assert count_macs(folded, 32) == count_macs(unfolded, 32)


def test_the_last_layer_and_the_variables_given_are_not_changed(network):
    unfolded, variables, _, values = network
    before = copy.deepcopy(variables)
    folding.fold(unfolded, variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    # Where there is a decoder, it has the last layer.
    old = variables['params'].get('decoder', variables['params'])
    new = values['params'].get('decoder', values['params'])
    for name in ('heatmaps_kernel', 'heatmaps_bias'):
        np.testing.assert_array_equal(new[name], old[name])


def test_training_a_folded_network_is_refused(network):
    _, _, folded, values = network
    with pytest.raises(ValueError, match=r'folded=True .* cannot be trained'):
        folded.apply(values, jnp.zeros((1, 32, 32, 3), jnp.uint8), train=True, mutable=True)


def test_a_folded_network_computes_in_bfloat16():
    make = functools.partial(build, 'small_unet', dtype='bfloat16', **SMALL['small_unet'])
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (1, 32, 48, 3)), jnp.uint8)
    variables = random_variables(make(), images)
    expected = np.asarray(make().apply(variables, images))
    found = make(folded=True).apply(folding.fold(make(), variables), images)
    assert found.dtype == jnp.float32
    # Eleven layers, each rounded to eight places.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())


def test_each_layer_is_folded_with_its_own_epsilon():
    """ResNet's encoder has Keras's, its decoder the default: small variances tell them apart."""
    make = functools.partial(build, 'resnet50', decoder_widths=NARROW)
    variables = random_variables(make(), jnp.zeros((1, 32, 32, 3), jnp.uint8))
    variables['batch_stats'] = jax.tree.map(lambda leaf: leaf * 1e-4, variables['batch_stats'])
    params = folding.fold(make(), variables)['params']
    for part, name, epsilon in (('encoder', 'stem', 1.001e-5), ('decoder', 'squeeze', 1e-3)):
        old = variables['params'][part][name]
        var = np.asarray(variables['batch_stats'][part][name]['bn']['var'], np.float64)
        expected = old['kernel'] * (old['bn']['scale'] / np.sqrt(var + epsilon))
        np.testing.assert_allclose(params[part][name]['kernel'], expected, rtol=1e-6)


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('implementation', ['lax', 'cpu'])
@pytest.mark.parametrize(('height', 'width'), [(7, 10), (8, 9)])
@pytest.mark.parametrize('name', BLOCKS)
def test_a_folded_block_is_the_block_in_float64(name, height, width, implementation):
    make = functools.partial(
        layers.ConvBN,
        **BLOCKS[name],
        activation=layers.relu6,
        bn_epsilon=0.01,
        implementation=implementation,
    )
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(0, 3, (2, height, width, 4)))
        unfolded, folded = make(dtype=jnp.float64), make(dtype=jnp.float64, folded=True)
        variables = random_variables(unfolded, x, False, dtype=np.float64)
        values = folding.fold(unfolded, variables, example=x)
        assert set(values['params']) == {'kernel', 'bias'}
        expected = unfolded.apply(variables, x, False)
        found = folded.apply(values, x, False)
        assert found.dtype == jnp.float64
        # Neither end of the activation hides everything.
        assert np.mean((expected > 0) & (expected < 6)) > 0.2
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_float32_kernels_are_rounded_once():
    block = layers.ConvBN(5, kernel_size=3)
    x = jnp.ones((1, 4, 4, 3))
    variables = random_variables(block, x, False)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    bn, statistics = wide['params']['bn'], wide['batch_stats']['bn']
    factor = bn['scale'] / np.sqrt(statistics['var'] + 1e-3)
    values = folding.fold(block, variables, example=x)['params']
    np.testing.assert_array_equal(
        values['kernel'], (wide['params']['kernel'] * factor).astype(np.float32)
    )
    np.testing.assert_array_equal(
        values['bias'], (bn['bias'] - statistics['mean'] * factor).astype(np.float32)
    )


def test_both_forms_of_leaky_relu_are_one_function():
    x = jnp.array([-1e30, -2.0, -0.0, 0.0, 1e-30, 3.0])
    np.testing.assert_array_equal(layers.leaky_relu(x, folded=True), layers.leaky_relu(x))


# --- trees that cannot be folded ------------------------------------------------------------------


def drop(tree, path):
    *parents, name = path.split('/')
    for parent in parents:
        tree = tree[parent]
    return tree.pop(name)


def put(tree, path, value):
    *parents, name = path.split('/')
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


FAULTS = {
    'no kernel': (lambda v: drop(v, 'params/stem/kernel'), r'params/stem: expected .*kernel'),
    'no scale': (lambda v: drop(v, 'params/stem/bn/scale'), r'params/stem: expected .*bn/scale'),
    'no variance': (
        lambda v: drop(v, 'batch_stats/stem/bn/var'),
        r"batch_stats/stem: expected .*'bn/var'\], got \['bn/mean'\]",
    ),
    'no statistics': (
        lambda v: drop(v, 'batch_stats/stem'),
        r'batch_stats/stem: expected .*got \[\]',
    ),
    'no parameters': (lambda v: drop(v, 'params/stem'), r'params/stem: expected .*got \[\]'),
    'a bias already': (
        lambda v: put(v, 'params/stem/bias', np.zeros(12, np.float32)),
        r"params/stem: expected .*got \['bias', ",
    ),
    'another shape': (
        lambda v: put(v, 'batch_stats/stem/bn/mean', np.zeros(3, np.float32)),
        r'batch_stats/stem/bn/mean: expected the shape \(12,\) .*got \(3,\)',
    ),
    'negative variance': (
        lambda v: put(v, 'batch_stats/stem/bn/var', np.full(12, -1, np.float32)),
        r'batch_stats/stem/bn/var: expected variances >= 0, got -1',
    ),
    'other statistics': (
        lambda v: put(v, 'batch_stats/stem/norm/mean', np.zeros(3, np.float32)),
        r'batch_stats/stem/norm/mean: is of no batch normalisation',
    ),
    'a layer too many': (
        lambda v: (
            put(v, 'params/extra', copy.deepcopy(v['params']['stem'])),
            put(v, 'batch_stats/extra', copy.deepcopy(v['batch_stats']['stem'])),
        ),
        r'extra/bn: is batch normalisation in the network or in the variables, but not in both',
    ),
    'another collection': (
        lambda v: put(v, 'cache/x', np.zeros(1)),
        r"expected the collections .*got \['batch_stats', 'cache', 'params'\]",
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_tree_that_is_not_the_networks_is_an_error_that_names_the_path(fault):
    break_it, message = FAULTS[fault]
    model = build('small_unet', **SMALL['small_unet'])
    variables = random_variables(model, jnp.zeros((1, 32, 32, 3), jnp.uint8))
    folding.fold(model, variables)
    break_it(variables)
    with pytest.raises(ValueError, match=message):
        folding.fold(model, variables)


def test_folded_variables_are_not_folded_again():
    model = build('small_unet', **SMALL['small_unet'])
    values = folding.fold(model, random_variables(model, jnp.zeros((1, 32, 32, 3), jnp.uint8)))
    with pytest.raises(ValueError, match=r"folded=False, got \['params'\]"):
        folding.fold(model, values)
