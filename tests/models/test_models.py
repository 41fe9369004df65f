"""The networks' parameters, shapes and sizes against golden files; what they do together.

`python tests/models/test_models.py` writes the golden files anew: only after a change that was
meant.
"""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handpose_jax.models import MODELS, NUM_HEATMAPS, STRIDE, build
from handpose_jax.models.complexity import count_macs, count_parameters
from handpose_jax.models.decoder import DecoderWidths
from handpose_jax.models.mobilenet import BLOCKS, UNSTRIDED_BLOCK, MobileNetV2
from handpose_jax.models.unet import upsample

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'

# Each model as it is by default bears its own name; variants follow it.
VARIANTS = {name: (name, {}) for name in MODELS} | {
    'mobilenet_v2_width_0.5': ('mobilenet_v2', {'width': 0.5}),
}


def maps_and_variables(model, size=(64, 64), count=1):
    """The shapes and dtypes of what a network gives for images, and of what it has."""
    images = jnp.zeros((count, *size, 3), jnp.uint8)
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))


def describe(name, kwargs):
    """Everything of a model that checkpoints, papers and phones depend on."""
    # Plain lax: each layer is one operation, which count_macs needs.
    model = build(name, implementation='lax', **kwargs)
    _, variables = maps_and_variables(model)
    shapes = {
        '/'.join(key.key for key in path): list(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }
    return {
        'trainable_parameters': count_parameters(variables['params']),
        'macs_224': count_macs(model, 224),
        'shapes': shapes,
    }


def write_golden():
    for variant, (name, kwargs) in VARIANTS.items():
        golden = describe(name, kwargs)
        shapes = ',\n'.join(f'    {json.dumps(k)}: {v}' for k, v in golden['shapes'].items())
        (GOLDEN / f'{variant}.json').write_text(
            '{\n'
            f'  "trainable_parameters": {golden["trainable_parameters"]},\n'
            f'  "macs_224": {golden["macs_224"]},\n'
            f'  "shapes": {{\n{shapes}\n  }}\n'
            '}\n'
        )


@pytest.fixture(scope='module')
def small():
    """A network narrow enough to run, with its variables."""
    narrow = {'width': 0.35, 'decoder_widths': dict.fromkeys(DecoderWidths._fields, 8)}
    # Lax compiles fastest; test_layers.py proves that the formulations are the same function.
    model = build('mobilenet_v2', **narrow, bn_momentum=0.9, implementation='lax')
    _, shapes = maps_and_variables(model)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name.endswith('kernel'):
            value = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape)
        else:
            value = np.full(leaf.shape, name in ('scale', 'var'))
        return jnp.asarray(value, leaf.dtype)

    # Compiled once for all tests that infer; 'batch_stats' may change and must not.
    infer = jax.jit(lambda v, x: model.apply(v, x, mutable=['batch_stats']))
    return model, jax.tree_util.tree_map_with_path(fill, shapes), infer


# --- golden files ---------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', VARIANTS)
def test_parameters_and_sizes_are_the_golden_ones(variant):
    path = GOLDEN / f'{variant}.json'
    assert path.exists(), f'{variant} has no golden file: run `python tests/models/test_models.py`'
    golden = json.loads(path.read_text())
    name, kwargs = VARIANTS[variant]
    assert describe(name, kwargs) == golden


def test_every_golden_file_is_of_a_model():
    assert {path.stem for path in GOLDEN.glob('*.json')} == set(VARIANTS)


@pytest.mark.parametrize(
    ('variant', 'parameters', 'giga_macs'),
    [
        # The decoder's widths were chosen to meet the 4.24 M parameters of the authors.
        ('mobilenet_v2', 4_241_046, pytest.approx(1.1438, abs=5e-5)),
        ('resnet50', 12_053_974, pytest.approx(4.024, abs=5e-4)),
        # The tutorial tells no operations.
        ('unet', 491_206, None),
    ],
)
def test_golden_sizes_are_the_published_or_reconstructed_ones(variant, parameters, giga_macs):
    golden = json.loads((GOLDEN / f'{variant}.json').read_text())
    assert golden['trainable_parameters'] == parameters
    assert giga_macs in (None, golden['macs_224'] / 1e9)


def test_half_the_side_is_a_quarter_of_the_operations():
    golden = json.loads((GOLDEN / 'mobilenet_v2.json').read_text())
    assert count_macs(build('mobilenet_v2', implementation='lax'), 112) * 4 == golden['macs_224']


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize(('height', 'width'), [(224, 224), (112, 112), (96, 160)])
def test_heatmaps_have_the_stride_and_channels_that_they_should(name, height, width):
    model = build(name)
    maps, _ = maps_and_variables(model, (height, width), count=2)
    assert (STRIDE, NUM_HEATMAPS) == (4, 22)
    stride, channels = (1, 21) if name == 'unet' else (4, 22)
    assert model.stride == stride
    assert maps.shape == (2, height // stride, width // stride, channels)
    assert maps.dtype == jnp.float32


@pytest.mark.parametrize('name', MODELS)
def test_bfloat16_computes_with_float32_parameters_and_heatmaps(name):
    model = build(name, dtype='bfloat16')
    maps, variables = maps_and_variables(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert maps.dtype == jnp.float32
    if hasattr(model, 'encoder'):
        encoder = {k: v['encoder'] for k, v in variables.items()}
        x = jnp.zeros((1, 64, 64, 3), jnp.bfloat16)
        features = jax.eval_shape(lambda v: model.encoder.apply(v, x, False), encoder)
        assert features.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ('name', 'divisor', 'size'),
    [('mobilenet_v2', 16, (100, 112)), ('mobilenet_v2', 16, (112, 120)), ('unet', 8, (60, 64))],
)
def test_a_size_that_does_not_divide_is_refused(name, divisor, size):
    with pytest.raises(ValueError, match=re.escape(f'divisible by {divisor}, got {size}')):
        maps_and_variables(build(name), size)


def test_upsampling_is_bilinear_with_aligned_pixel_centres():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)), jnp.float32)
    expected = jax.image.resize(x, (2, 10, 14, 3), 'bilinear')
    np.testing.assert_allclose(upsample(x), expected, rtol=0, atol=1e-6)


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"one of \['mobilenet_v2'.*got 'mobilenet'"):
        build('mobilenet')


def test_uint8_and_float_images_give_the_same_heatmaps(small):
    _, variables, infer = small
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3))
    maps, _ = infer(variables, jnp.asarray(images, jnp.uint8))
    same, _ = infer(variables, jnp.asarray(images, jnp.float32))
    np.testing.assert_array_equal(maps, same)
    # And they do depend on the image.
    assert np.std(maps[0] - maps[1]) > 0


def test_training_updates_all_statistics_and_inference_none(small):
    model, variables, infer = small
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)), jnp.uint8)
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats']))
    maps, updates = train(variables, images)
    assert maps.shape == (2, 16, 16, 22)
    before, after = variables['batch_stats'], updates['batch_stats']
    assert jax.tree.structure(before) == jax.tree.structure(after)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert all(jax.tree.leaves(changed))

    # The first layer's, computed by hand: momentum 0.9, SAME padding of a stride 2 on an even side.
    x = np.pad(np.asarray(images, np.float64) / 127.5 - 1, ((0, 0), (0, 1), (0, 1), (0, 0)))
    kernel = np.asarray(variables['params']['encoder']['stem']['kernel'], np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    conv = np.einsum('bhwcij,ijcd->bhwd', windows, kernel)
    stem = after['encoder']['stem']['bn']
    np.testing.assert_allclose(stem['mean'], 0.1 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stem['var'], 0.9 + 0.1 * conv.var((0, 1, 2)), rtol=1e-4)

    _, unchanged = infer(variables, images)
    jax.tree.map(np.testing.assert_array_equal, unchanged['batch_stats'], before)


# --- the encoder ----------------------------------------------------------------------------------


def block_sides(encoder, side):
    x = jnp.zeros((1, side, side, 3))

    def intermediates():
        _, state = encoder.init_with_output(jax.random.key(0), x, False, capture_intermediates=True)
        return state['intermediates']

    state = jax.eval_shape(intermediates)
    return [state[f'block_{n:02d}']['__call__'][0].shape[1:] for n in range(1, len(BLOCKS) + 1)]


def test_only_block_14_differs_between_the_output_strides():
    """Sandler et al. 2018, table 2, for stride 32; Gouidis et al. 2019, section 3.1, for 16."""
    channels = [16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    published = [112, 56, 56, *[28] * 3, *[14] * 7, *[7] * 4]
    paper = [112, 56, 56, *[28] * 3, *[14] * 11]
    assert UNSTRIDED_BLOCK == 14
    for encoder, sides in ((MobileNetV2(output_stride=32), published), (MobileNetV2(), paper)):
        expected = [(side, side, c) for side, c in zip(sides, channels, strict=True)]
        assert block_sides(encoder, 224) == expected


def test_another_output_stride_is_refused():
    with pytest.raises(ValueError, match='output_stride must be 16 or 32, got 8'):
        MobileNetV2(output_stride=8).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)


if __name__ == '__main__':
    write_golden()
