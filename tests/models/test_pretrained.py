"""Features of converted weights against Keras itself; every way in which a source may not fit."""

import functools
import os
import zipfile
from unittest import mock

os.environ['KERAS_BACKEND'] = 'jax'

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from handpose_jax.models import build
from handpose_jax.models.mobilenet import MobileNetV2
from handpose_jax.models.pretrained import init_from, load_encoder, read_keras, read_npz
from handpose_jax.models.resnet import ResNet50

# Keras 3.15 copies its variables the way NumPy 1 did.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

TOLERANCE = 1e-4  # of the reference's largest absolute feature


def build_keras(application, **kwargs):
    """A Keras model of zeros: its own initialisers would be compiled, one by one."""
    with mock.patch.object(
        keras.initializers.VarianceScaling,
        '__call__',
        lambda self, shape, dtype=None: np.zeros(shape, np.float32),
    ):
        return application(weights=None, include_top=False, **kwargs)


def randomize(model, seed, input_size=1.0, branch_gain=1.0):
    """Weights and statistics unlike any initial value, of a size that keeps activations near 1.

    input_size is the typical magnitude of the input, which the first layer's statistics reflect;
    branch_gain that of the last normalisation in a residual branch of the ResNet.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        size = input_size if layer.name.lower() in ('conv1_conv', 'conv1_bn') else 1.0
        for weight in layer.weights:
            shape = weight.shape
            if weight.name == 'kernel':
                fan_in = np.prod(shape[:2]) * (1 if 'depthwise' in layer.name else shape[2])
                value = rng.normal(0, np.sqrt(2 / fan_in), shape)
            elif weight.name == 'gamma':
                gain = branch_gain if layer.name.endswith('_3_bn') else 1.0
                value = rng.uniform(0.5, 1.5, shape) * gain
            elif weight.name == 'moving_variance':
                value = rng.uniform(0.5, 1.5, shape) * size**2
            else:
                value = rng.normal(0, 0.3, shape) * (1.0 if weight.name == 'beta' else size)
            weight.assign(value.astype(np.float32))
    return model


@pytest.fixture(scope='module')
def keras_mobilenet():
    model = build_keras(keras.applications.MobileNetV2, input_shape=(64, 96, 3))
    return randomize(model, seed=1)


@pytest.fixture(scope='module')
def keras_resnet():
    model = build_keras(keras.applications.ResNet50, input_shape=(64, 96, 3))
    return randomize(model, seed=2, input_size=100.0, branch_gain=0.3)


def images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, 64, 96, 3)).astype(np.float32)


def keras_features(model, layer, x):
    part = keras.Model(model.input, model.get_layer(layer).output)
    # One compiled call: eager Keras on JAX compiles every operation by itself.
    trainable = [v.value for v in part.trainable_variables]
    fixed = [v.value for v in part.non_trainable_variables]
    run = jax.jit(lambda *args: part.stateless_call(*args, training=False)[0])
    return np.asarray(run(trainable, fixed, x))


@functools.cache
def encoder_shapes(encoder):
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False))


def our_features(encoder, source, model_name, x):
    variables = load_encoder(encoder_shapes(encoder), source, model_name=model_name)
    return np.asarray(jax.jit(lambda v, x: encoder.apply(v, x, False))(variables, x))


def assert_same_features(ours, theirs):
    assert ours.shape == theirs.shape
    # Neither dead nor exploding, so that the comparison means something.
    assert 0.1 < np.std(theirs) < 100
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


VALUES = {'mean': 0.2, 'var': 0.3, 'scale': 0.4, 'bias': 0.5}


def write_npz(path, **changes):
    """An npz of MobileNetV2 in TF-slim's layout, with arrays changed, added or (None) removed."""
    arrays = {}
    for name, tree in encoder_shapes(MobileNetV2())['params'].items():
        number = '' if name == 'stem' else f'_{int(name.removeprefix("block_")) - 1}'
        slim = f'expanded_conv{number}'.removesuffix('_0')
        layers = {f'{slim}/{k}': v for k, v in tree.items()} if number else {'Conv': tree}
        for layer, leaves in layers.items():
            channels = leaves['bn']['scale'].shape
            arrays[f'{layer}/kernel'] = np.full(leaves['kernel'].shape, 0.1, np.float32)
            for field, value in VALUES.items():
                arrays[f'{layer}/{field}'] = np.full(channels, value, np.float32)
    arrays['Conv_1/kernel'] = np.zeros((1, 1, 320, 1280), np.float32)
    arrays['Logits/bias'] = np.zeros(1001, np.float32)
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.fixture(scope='module')
def network_shapes():
    model = build('mobilenet_v2')
    return jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8))
    )


# --- the same features ----------------------------------------------------------------------------


def test_mobilenet_features_equal_keras(keras_mobilenet):
    x = images() / 127.5 - 1
    theirs = keras_features(keras_mobilenet, 'block_16_project_BN', x)
    encoder = MobileNetV2(output_stride=32, implementation='lax')
    ours = our_features(encoder, keras_mobilenet, 'mobilenet_v2', x)
    assert ours.shape == (2, 2, 3, 320)
    assert_same_features(ours, theirs)


def test_mobilenet_features_at_stride_16_equal_keras_without_that_stride(keras_mobilenet):
    config = keras_mobilenet.get_config()
    for layer in config['layers']:
        if layer['name'] == 'block_13_depthwise':
            assert layer['config']['strides'] == (2, 2)
            layer['config'] |= {'strides': (1, 1), 'padding': 'same'}
        if layer['name'] == 'block_13_pad':
            layer['config']['padding'] = ((0, 0), (0, 0))
    unstrided = build_keras(lambda **_: keras.Model.from_config(config))
    unstrided.set_weights(keras_mobilenet.get_weights())

    x = images() / 127.5 - 1
    theirs = keras_features(unstrided, 'block_16_project_BN', x)
    ours = our_features(MobileNetV2(), keras_mobilenet, 'mobilenet_v2', x)
    assert ours.shape == (2, 4, 6, 320)
    assert_same_features(ours, theirs)


def test_resnet_features_inside_the_network_equal_keras(keras_resnet):
    """Through the whole network: its normalisation has to be Keras's preprocessing."""
    model = build('resnet50')
    rgb = images()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(rgb)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = init_from(zeros, keras_resnet, model_name='resnet50')

    def features(variables, x):
        _, state = model.apply(
            variables, x, capture_intermediates=lambda module, _: module.name == 'encoder'
        )
        return state['intermediates']['encoder']['__call__'][0]

    ours = np.asarray(jax.jit(features)(variables, jnp.asarray(rgb, jnp.uint8)))
    theirs = keras_features(
        keras_resnet, 'conv4_block6_out', keras.applications.resnet50.preprocess_input(rgb.copy())
    )
    assert ours.shape == (2, 4, 6, 1024)
    assert_same_features(ours, theirs)


def test_a_narrow_network_has_the_shapes_of_keras():
    model = build_keras(keras.applications.MobileNetV2, input_shape=(32, 32, 3), alpha=0.35)
    shapes = encoder_shapes(MobileNetV2(width=0.35))
    loaded = load_encoder(shapes, model, model_name='mobilenet_v2')
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, shapes)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['.weights.h5', '.keras', '.h5'])
@pytest.mark.parametrize('architecture', ['mobilenet', 'resnet'])
def test_files_of_keras_hold_what_the_model_holds(request, tmp_path, architecture, suffix):
    model = request.getfixturevalue(f'keras_{architecture}')
    path = tmp_path / f'model{suffix}'
    model.save_weights(path) if suffix == '.weights.h5' else model.save(path)
    from_model, from_file = read_keras(model), read_keras(path)
    assert from_file.keys() == from_model.keys()
    for name, array in from_model.items():
        np.testing.assert_array_equal(from_file[name], array, err_msg=name)


def write_published_h5(path, model):
    """As the ImageNet file of keras.applications is: names of an early release, and of Keras 2."""
    with h5py.File(path, 'w') as file:
        names = []
        for layer in model.layers:
            name = layer.name.replace('expanded_conv_', 'block_0_')
            if name.startswith('block_'):
                _, number, kind = name.split('_', 2)
                old, bn = ('bn', 'bn_') if kind.endswith('_BN') else ('mobl', '')
                name = f'{old}{number}_conv_{number}_{bn}{kind.removesuffix("_BN")}'
            names.append(name.encode())
            group = file.create_group(name)
            weight_names = []
            for weight in layer.weights:
                depthwise = 'depthwise' in name and weight.name == 'kernel'
                weight_name = f'{name}/{"depthwise_" * depthwise}{weight.name}:0'
                group[weight_name] = np.asarray(weight)
                weight_names.append(weight_name.encode())
            group.attrs['weight_names'] = weight_names
        file.attrs['layer_names'] = names
    return path


def test_published_names_are_understood(tmp_path, keras_mobilenet):
    path = write_published_h5(tmp_path / 'mobilenet_v2_no_top.h5', keras_mobilenet)
    with h5py.File(path) as file:
        assert 'mobl16_conv_16_project' in file
        assert 'bn0_conv_0_bn_depthwise' in file
    shapes = encoder_shapes(MobileNetV2())
    expected = load_encoder(shapes, keras_mobilenet, model_name='mobilenet_v2')
    loaded = load_encoder(shapes, path, model_name='mobilenet_v2')
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_npz_and_keras_give_the_same_parameters(tmp_path, keras_mobilenet):
    shapes = encoder_shapes(MobileNetV2())
    expected = load_encoder(shapes, keras_mobilenet, model_name='mobilenet_v2')
    weights = {f'{v.path}': np.asarray(v) for v in keras_mobilenet.weights}
    fields = {'scale': 'gamma', 'bias': 'beta', 'mean': 'moving_mean', 'var': 'moving_variance'}
    arrays = {}
    for name, value in weights.items():
        layer, field = name.split('/')
        if field != 'kernel' or layer == 'Conv_1':
            continue
        bn = 'bn_Conv1' if layer == 'Conv1' else f'{layer}_BN'
        slim = layer.replace('block_', 'expanded_conv_').replace('Conv1', 'Conv')
        for kind in ('expand', 'depthwise', 'project'):
            slim = slim.replace(f'_{kind}', f'/{kind}')
        depthwise = layer.endswith('depthwise')
        arrays[f'{slim}/kernel'] = value.transpose(0, 1, 3, 2) if depthwise else value
        arrays |= {f'{slim}/{ours}': weights[f'{bn}/{theirs}'] for ours, theirs in fields.items()}
    np.savez(tmp_path / 'weights.npz', **arrays)
    loaded = load_encoder(shapes, tmp_path / 'weights.npz', model_name='mobilenet_v2')
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_only_the_encoder_is_replaced(tmp_path, network_shapes):
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), network_shapes)
    loaded = init_from(variables, write_npz(tmp_path / 'w.npz'), model_name='mobilenet_v2')
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, variables)
    for collection in ('params', 'batch_stats'):
        assert loaded[collection]['decoder'] is variables[collection]['decoder']
        assert all(np.all(leaf == 7) for leaf in jax.tree.leaves(variables[collection]['encoder']))
    layer = loaded['params']['encoder']['block_14']['depthwise']
    statistics = loaded['batch_stats']['encoder']['block_14']['depthwise']['bn']
    values = {'kernel': layer['kernel'], **layer['bn'], **statistics}
    found = {name: np.unique(value).item() for name, value in values.items()}
    assert found == pytest.approx({'kernel': 0.1, **VALUES})


def test_imagenet_weights_load(network_shapes, assets):
    path = assets / 'imagenet' / 'mobilenet_v2_1.0_224.npz'
    arrays = read_npz(path)
    loaded = init_from(network_shapes, path, model_name='mobilenet_v2')
    encoder = {name: loaded[name]['encoder'] for name in ('params', 'batch_stats')}
    used = [a for name, a in arrays.items() if not name.startswith(('Conv_1/', 'Logits/'))]
    assert len(jax.tree.leaves(encoder)) == len(used) == 255
    # Nothing lost or taken twice: the sum of all numbers is that of the file.
    total = sum(np.sum(a, dtype=np.float64) for a in used)
    ours = sum(np.sum(np.asarray(a), dtype=np.float64) for a in jax.tree.leaves(encoder))
    assert ours == pytest.approx(total, rel=1e-12)


# --- sources that do not fit ----------------------------------------------------------------------


def test_one_message_lists_everything_that_does_not_fit(tmp_path, network_shapes):
    nan = np.full((1, 1, 16, 96), 0.1, np.float32)
    nan[0, 0, 3, 5:8] = np.nan, np.inf, -np.inf
    changes = {
        'Conv/kernel': None,
        'expanded_conv/project/mean': np.zeros(17, np.float32),
        'expanded_conv_1/expand/kernel': nan,
        'expanded_conv_2/depthwise/scale': np.zeros(144, np.float64),
        'expanded_conv_3/project/var': np.full(32, -0.5, np.float32),
        'expanded_conv_17/expand/kernel': np.zeros((1, 1, 320, 1920), np.float32),
        'step': np.zeros((), np.int64),
    }
    path = write_npz(tmp_path / 'broken.npz', **changes)
    with pytest.raises(ValueError, match='nothing was loaded') as caught:
        init_from(network_shapes, path, model_name='mobilenet_v2')
    header, *lines = str(caught.value).splitlines()
    assert str(path) in header
    assert '7 differences' in header
    assert [line.strip() for line in lines] == [
        'expanded_conv/project/mean: expected float32 (16,), got float32 (17,)',
        'expanded_conv_1/expand/kernel: expected finite numbers, got 3 that are not',
        'expanded_conv_2/depthwise/scale: expected float32 (144,), got float64 (144,)',
        'expanded_conv_3/project/var: expected variances >= 0, got -0.5',
        'Conv/kernel: expected float32 (3, 3, 3, 32), got nothing',
        'expanded_conv_17/expand/kernel: not expected, got float32 (1, 1, 320, 1920)',
        'step: not expected, got int64 ()',
    ]


def test_a_missing_convolution_bias_of_the_resnet_is_listed(tmp_path, keras_resnet):
    keras_resnet.save_weights(tmp_path / 'w.weights.h5')
    with h5py.File(tmp_path / 'w.weights.h5', 'r+') as file:
        groups = {layer['vars'].attrs['name']: layer['vars'] for layer in file['layers'].values()}
        del groups['conv3_block2_1_conv']['1']
    with pytest.raises(ValueError, match=r'conv3_block2_1_conv/bias: expected .*got nothing'):
        load_encoder(encoder_shapes(ResNet50()), tmp_path / 'w.weights.h5', model_name='resnet50')


def test_another_width_is_listed_in_the_sources_orientation(keras_mobilenet):
    shapes = encoder_shapes(MobileNetV2(width=0.5))
    with pytest.raises(ValueError, match='architecture and width') as caught:
        load_encoder(shapes, keras_mobilenet, model_name='mobilenet_v2')
    message = str(caught.value)
    assert 'Conv1/kernel: expected float32 (3, 3, 3, 16), got float32 (3, 3, 3, 32)' in message
    depthwise = 'expected float32 (3, 3, 288, 1), got float32 (3, 3, 576, 1)'
    assert f'block_13_depthwise/kernel: {depthwise}' in message


def test_another_architecture_is_refused(tmp_path, keras_resnet, network_shapes):
    with pytest.raises(ValueError, match=r'conv1_conv/kernel: not expected') as caught:
        init_from(network_shapes, keras_resnet, model_name='mobilenet_v2')
    assert 'bn_Conv1/gamma: expected float32 (32,), got nothing' in str(caught.value)
    path = write_npz(tmp_path / 'w.npz')
    with pytest.raises(ValueError, match="'resnet50' cannot start from a source of kind npz"):
        init_from(network_shapes, path, model_name='resnet50')
    with pytest.raises(ValueError, match='block_01/depthwise: a layer of the network that'):
        init_from(network_shapes, keras_resnet, model_name='resnet50')


def test_a_network_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected variables\['params'\] to hold \"encoder\""):
        init_from({'params': {'head': {}}}, tmp_path / 'w.npz', model_name='mobilenet_v2')


def write_no_weights(path):
    """Writes what the file's name tells of."""
    if path.stem == 'garbage':
        path.write_bytes(b'no weights in here')
    elif path.stem == 'pickle':
        np.savez(path, a=np.array([{'a': 1}], dtype=object))
    elif path.stem == 'array':
        with path.open('wb') as file:
            np.save(file, np.zeros(3))
    elif path.stem == 'empty':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('config.json', '{}')
    elif path.stem == 'nameless.weights':
        with h5py.File(path, 'w') as file:
            file['layers/conv2d/vars/0'] = np.zeros((3, 3, 3, 32), np.float32)


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (('missing.npz', 'garbage.npz', 'array.npz', 'pickle.npz'), 'an .npz of plain arrays'),
        (('missing.h5', 'garbage.h5'), 'a file of Keras weights'),
        (('missing.keras', 'garbage.keras', 'empty.keras'), 'a file of Keras weights'),
        (('nameless.weights.h5',), 'Keras weights with .*pass the model instead of the path'),
    ],
)
def test_files_that_are_none_are_refused_by_name(tmp_path, names, message, network_shapes):
    for name in names:
        write_no_weights(tmp_path / name)
        with pytest.raises(ValueError, match=f'{name}: expected {message}'):
            init_from(network_shapes, tmp_path / name, model_name='mobilenet_v2')


def test_something_else_is_refused():
    with pytest.raises(ValueError, match='expected a path or a Keras model, got int'):
        read_keras(3)
