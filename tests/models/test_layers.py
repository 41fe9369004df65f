"""Both formulations of every convolution against each other, NumPy, SciPy, Keras; batch norm."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import scipy.signal

from handpose_jax.models import layers

# What both formulations compute: (function of x and kernel, shape of x, shape of kernel).
CONVOLUTIONS = {
    'depthwise': (
        functools.partial(layers.depthwise_conv, stride=2),
        (2, 8, 9, 4),
        (3, 3, 1, 4),
    ),
    'pointwise': (functools.partial(layers.conv, stride=1), (2, 8, 9, 4), (1, 1, 4, 5)),
    'transposed': (layers.transposed_conv, (2, 4, 5, 4), (4, 4, 4, 3)),
}


def normal(rng, *shape, dtype=np.float64):
    return rng.normal(size=shape).astype(dtype)


def values_and_gradients(function, x, kernel, out_gradient):
    """The output and the gradients of both arguments, in one compiled program."""

    @jax.jit
    def run(x, kernel, out_gradient):
        y, pullback = jax.vjp(function, x, kernel)
        return y, *pullback(out_gradient)

    return run(x, kernel, out_gradient)


def assert_paths_agree(function, x_shape, kernel_shape):
    """'cpu' and 'lax' to 1e-9 of each other in float64; returns the common output."""
    rng = np.random.default_rng(sum(x_shape))
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(normal(rng, *x_shape)), jnp.asarray(normal(rng, *kernel_shape))
        lax_version = functools.partial(function, implementation='lax')
        cpu = functools.partial(function, implementation='cpu')
        out = jax.eval_shape(lax_version, x, kernel)
        out_gradient = jnp.asarray(normal(rng, *out.shape))
        expected = values_and_gradients(lax_version, x, kernel, out_gradient)
        found = values_and_gradients(cpu, x, kernel, out_gradient)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
    return np.asarray(x), np.asarray(kernel), np.asarray(found[0])


# --- convolutions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('height', 'width', 'kernel', 'stride'),
    [(14, 15, 3, 1), (14, 15, 3, 2), (29, 28, 3, 1), (29, 28, 3, 2), (14, 15, 5, 2)],
)
def test_depthwise_paths_agree_in_value_and_both_gradients(height, width, kernel, stride):
    function = functools.partial(layers.depthwise_conv, stride=stride)
    _, _, y = assert_paths_agree(function, (2, height, width, 2), (kernel, kernel, 1, 2))
    assert y.shape == (2, -(-height // stride), -(-width // stride), 2)


@pytest.mark.parametrize('stride', [1, 2])
def test_pointwise_paths_agree_and_are_numpys_product(stride):
    function = functools.partial(layers.conv, stride=stride)
    x, kernel, y = assert_paths_agree(function, (2, 14, 15, 3), (1, 1, 3, 4))
    np.testing.assert_allclose(y, x[:, ::stride, ::stride] @ kernel[0, 0], atol=1e-12)


def test_transposed_paths_agree_and_scatter_each_pixel_over_its_4x4():
    height, width = 5, 8
    x, kernel, y = assert_paths_agree(layers.transposed_conv, (2, height, width, 3), (4, 4, 3, 2))
    # Output pixel 2m + 2 - t receives x[m] by tap t; one row and column around are cut off.
    scattered = np.zeros((2, 2 * height + 2, 2 * width + 2, 2))
    for m, n, t, u in np.ndindex(height, width, 4, 4):
        scattered[:, 2 * m + 3 - t, 2 * n + 3 - u] += x[:, m, n] @ kernel[t, u]
    np.testing.assert_allclose(y, scattered[:, 1:-1, 1:-1], atol=1e-12)


def test_depthwise_at_stride_1_is_scipys_correlation():
    rng = np.random.default_rng(0)
    x, kernel = normal(rng, 1, 9, 12, 2), normal(rng, 5, 3, 1, 2)
    y = layers.depthwise_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), 1)
    for c in range(2):
        expected = scipy.signal.correlate2d(x[0, :, :, c], kernel[:, :, 0, c], mode='same')
        np.testing.assert_allclose(y[0, :, :, c], expected, atol=1e-5)


@pytest.mark.parametrize('size', [8, 9])
def test_strided_and_transposed_convolutions_are_keras(size):
    rng = np.random.default_rng(size)
    x = jnp.asarray(normal(rng, 2, size, size, 3, dtype=np.float32))
    # Keras has the transposed kernel's output channels before the input's, and its taps reversed.
    shapes = ((3, 3, 1, 3), (3, 3, 3, 4), (4, 4, 2, 3))
    depthwise, dense, transposed = (jnp.asarray(normal(rng, *s, dtype=np.float32)) for s in shapes)
    ours_transposed = jnp.flip(transposed, (0, 1)).swapaxes(2, 3)
    for ours, function, kernel in [
        (layers.depthwise_conv(x, depthwise, 2), 'depthwise_conv', depthwise.swapaxes(2, 3)),
        (layers.conv(x, dense, 2), 'conv', dense),
        (layers.transposed_conv(x, ours_transposed), 'conv_transpose', transposed),
    ]:
        theirs = getattr(keras.ops, function)(x, kernel, strides=2, padding='same')
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_auto_is_lax_to_float32(name):
    function, x_shape, kernel_shape = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(normal(rng, *x_shape, dtype=np.float32))
    kernel = jnp.asarray(normal(rng, *kernel_shape, dtype=np.float32))
    lax_version = functools.partial(function, implementation='lax')
    out_gradient = jnp.ones(jax.eval_shape(lax_version, x, kernel).shape)
    expected = values_and_gradients(lax_version, x, kernel, out_gradient)
    for a, b in zip(values_and_gradients(function, x, kernel, out_gradient), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize('name', CONVOLUTIONS)
@pytest.mark.parametrize(
    ('implementation', 'platform'),
    [('auto', 'cpu'), ('auto', 'cuda'), ('auto', 'tpu'), ('lax', 'cpu'), ('cpu', 'cuda')],
)
def test_the_formulation_is_chosen_when_compiling_for_a_platform(name, implementation, platform):
    lax_expected = implementation == 'lax' or (implementation == 'auto' and platform != 'cpu')
    function, x_shape, kernel_shape = CONVOLUTIONS[name]

    @jax.jit
    def gradients(x, kernel):
        def total(x, kernel):
            return (function(x, kernel, implementation=implementation) ** 2).sum()

        return jax.value_and_grad(total, (0, 1))(x, kernel)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, kernel_shape)]
    program = gradients.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    # One forward and one for each gradient; none of them where the program is the CPU's.
    assert program.count('stablehlo.convolution') == (3 if lax_expected else 0)
    if name == 'depthwise':
        assert ('feature_group_count = 4' in program) is lax_expected


def test_depthwise_sums_of_bfloat16_are_float32():
    rng = np.random.default_rng(0)
    shapes = [(16, 14, 14, 4), (3, 3, 1, 4), (16, 14, 14, 4)]
    narrow = [jnp.asarray(normal(rng, *shape), jnp.bfloat16) for shape in shapes]
    wide = [a.astype(jnp.float32) for a in narrow]

    def run(arrays, implementation):
        function = functools.partial(layers.depthwise_conv, stride=1, implementation=implementation)
        return values_and_gradients(function, *arrays)

    for a, b in zip(run(narrow, 'cpu'), run(wide, 'lax'), strict=True):
        assert a.dtype == jnp.bfloat16
        # Half a unit in the last of eight places: the result was rounded once.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-4)


def test_kernels_of_another_shape_and_unknown_implementations_are_errors():
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match=r'kernel must be \[kh kw 1 3\].*\(3, 3, 3, 1\)'):
        layers.depthwise_conv(x, jnp.zeros((3, 3, 3, 1)), 1)
    with pytest.raises(ValueError, match=r'kernel must be 4x4, got \(3, 3\)'):
        layers.transposed_conv(x, jnp.zeros((3, 3, 3, 2)))
    dense = [(layers.conv, (1, 8, 8, 3), (size, size, 3, 2)) for size in (3, 7)]
    for function, x_shape, kernel_shape in [*CONVOLUTIONS.values(), *dense]:
        with pytest.raises(ValueError, match=r"implementation must be one of .* got 'fast'"):
            function(jnp.zeros(x_shape), jnp.zeros(kernel_shape), implementation='fast')


# --- batch normalisation --------------------------------------------------------------------------


batch_norm = jax.jit(layers.batch_norm, static_argnums=3)


def plain_batch_norm(x, scale, bias, epsilon):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return scale * (x - mean) / (var + epsilon) ** 0.5 + bias, mean, var


def batch_norm_example(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.uniform(-2, 2, 6), rng.uniform(0.5, 3, 6), (4, 5, 7, 6))
    return x, rng.uniform(0.5, 2, 6), normal(rng, 6), normal(rng, *x.shape)


@pytest.mark.parametrize('seed', range(2))
def test_batch_norm_is_its_formula(seed):
    x, scale, bias, _ = batch_norm_example(seed)
    arguments = (jnp.asarray(a, jnp.float32) for a in (x, scale, bias))
    for found, expected in zip(
        batch_norm(*arguments, 1e-3), plain_batch_norm(x, scale, bias, 1e-3), strict=True
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_variance_in_one_pass_stands_a_mean_of_a_hundred_deviations():
    x = np.random.default_rng(0).normal(100, 1, (16, 14, 14, 3)).astype(np.float32)
    _, mean, var = batch_norm(jnp.asarray(x), jnp.ones(3), jnp.zeros(3), 1e-3)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), np.float64), rtol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-2)


@pytest.mark.parametrize('seed', range(2))
def test_the_gradient_of_batch_norm_is_that_of_its_formula(seed):
    x, scale, bias, weight = batch_norm_example(seed)

    def total(function, x, scale, bias, weight):
        return (weight * function(x, scale, bias, 1e-3)[0]).sum()

    narrow = (jnp.asarray(a, jnp.float32) for a in (x, scale, bias, weight))
    found = jax.jit(jax.grad(functools.partial(total, layers.batch_norm), (0, 1, 2)))(*narrow)
    with jax.enable_x64(True):
        wide = (jnp.asarray(a) for a in (x, scale, bias, weight))
        expected = jax.jit(jax.grad(functools.partial(total, plain_batch_norm), (0, 1, 2)))(*wide)
        assert expected[0].dtype == jnp.float64
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_no_gradient_flows_through_the_statistics():
    x, scale, bias, _ = (jnp.asarray(a, jnp.float32) for a in batch_norm_example())
    gradient = jax.grad(lambda x: sum(s.sum() for s in batch_norm(x, scale, bias, 1e-3)[1:]))
    np.testing.assert_array_equal(jax.jit(gradient)(x), 0)


@pytest.mark.parametrize('value', [0.0, 3.3, -100.0])
def test_constant_channels_give_the_bias_and_finite_gradients(value):
    x = jnp.full((2, 4, 4, 3), value)
    scale, bias = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, -1.0, 0.5])
    y, mean, var = batch_norm(x, scale, bias, 1e-3)
    np.testing.assert_allclose(mean, value, rtol=1e-6)
    assert (np.asarray(var) >= 0).all()
    # A few roundings of the value, magnified by scale / sqrt(epsilon).
    atol = 1e-6 + 8 * 2**-24 * abs(value) * 2 / 1e-3**0.5
    np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=atol)
    weight = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), jnp.float32)
    loss = jax.grad(lambda *a: (weight * batch_norm(*a, 1e-3)[0]).sum(), argnums=(0, 1, 2))
    for gradient in loss(x, scale, bias):
        assert np.isfinite(gradient).all()


def test_running_statistics_follow_the_formula_and_serve_evaluation():
    momentum, epsilon = 0.9, 1e-3
    norm = layers.BatchNorm(momentum=momentum, epsilon=epsilon)
    variables = norm.init(jax.random.key(0), jnp.ones((1, 2, 2, 6)), True)
    apply = jax.jit(norm.apply, static_argnums=2, static_argnames='mutable')
    mean, var = np.zeros(6), np.ones(6)
    np.testing.assert_array_equal(variables['batch_stats']['mean'], mean)
    np.testing.assert_array_equal(variables['batch_stats']['var'], var)
    for seed in range(3):
        x, *_ = batch_norm_example(seed)
        y, updated = apply(variables, jnp.asarray(x, jnp.float32), True, mutable='batch_stats')
        np.testing.assert_allclose(y, plain_batch_norm(x, 1, 0, epsilon)[0], rtol=1e-4, atol=1e-5)
        mean = momentum * mean + (1 - momentum) * x.mean((0, 1, 2))
        var = momentum * var + (1 - momentum) * x.var((0, 1, 2))
        variables = {**variables, **updated}
        np.testing.assert_allclose(updated['batch_stats']['mean'], mean, rtol=1e-4)
        np.testing.assert_allclose(updated['batch_stats']['var'], var, rtol=1e-4)
    y = apply(variables, jnp.asarray(x, jnp.float32), False)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + epsilon), rtol=1e-4, atol=1e-5)


def test_evaluation_in_bfloat16_rounds_its_result_only():
    variables = {
        'params': {'scale': jnp.ones(1), 'bias': jnp.zeros(1)},
        'batch_stats': {'mean': jnp.full(1, 20.1), 'var': jnp.full(1, 1e-2)},
    }
    x = jnp.linspace(19.5, 20.5, 16).reshape(1, 4, 4, 1).astype(jnp.bfloat16)
    apply = jax.jit(layers.BatchNorm().apply, static_argnums=2)
    y = apply(variables, x, False)
    assert y.dtype == jnp.bfloat16
    expected = apply(variables, x.astype(jnp.float32), False)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8)


# --- Conv-BN blocks -------------------------------------------------------------------------------

KINDS = {
    'conv': {'features': 5, 'kernel_size': 3, 'stride': 2},
    'depthwise': {'kind': 'depthwise', 'kernel_size': 3},
    'transposed': {'features': 5, 'kind': 'transposed', 'kernel_size': 4},
}


def random_variables(block, x):
    """Makes variables of the names, shapes and dtypes that the block gives itself."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape) - 0.8, leaf.dtype),
        jax.eval_shape(lambda: block.init(jax.random.key(0), x, False)),
    )


def convolve(kind, x, kernel):
    """What a block of that kind should do before batch normalisation, by functions tested above."""
    if kind == 'conv':
        return layers.conv(x, kernel, 2, 'lax')
    if kind == 'depthwise':
        return layers.depthwise_conv(x, kernel, 1, 'lax')
    return layers.transposed_conv(x, kernel, 'lax')


@pytest.mark.parametrize('kind', KINDS)
def test_a_block_convolves_normalises_and_activates(kind):
    block = layers.ConvBN(**KINDS[kind], activation=layers.relu6, bn_momentum=0.5)
    x = jnp.asarray(normal(np.random.default_rng(0), 2, 6, 6, 4), jnp.float32)
    variables = random_variables(block, x)
    assert set(variables['params']) == {'kernel', 'bn'}
    bn, old = variables['params']['bn'], variables['batch_stats']['bn']
    bn['scale'] = 4 + bn['scale']  # so that the activation's upper end shows
    old['var'] = 1 + old['var']
    convolved = np.asarray(convolve(kind, x, variables['params']['kernel']), np.float64)
    scale, bias, old_mean, old_var = (
        np.asarray(a, np.float64) for a in (bn['scale'], bn['bias'], old['mean'], old['var'])
    )

    train = jax.jit(lambda variables, x: block.apply(variables, x, True, mutable=['batch_stats']))
    y, updated = train(variables, x)
    expected, mean, var = plain_batch_norm(convolved, scale, bias, 1e-3)
    assert expected.max() > 6
    np.testing.assert_allclose(y, np.clip(expected, 0, 6), atol=1e-4)
    new = updated['batch_stats']['bn']
    np.testing.assert_allclose(new['mean'], 0.5 * (old_mean + mean), atol=1e-5)
    np.testing.assert_allclose(new['var'], 0.5 * (old_var + var), rtol=1e-5)

    y = jax.jit(lambda variables, x: block.apply(variables, x, False))(variables, x)
    expected = scale * (convolved - old_mean) / np.sqrt(old_var + 1e-3) + bias
    np.testing.assert_allclose(y, np.clip(expected, 0, 6), atol=1e-4)


@pytest.mark.parametrize('kind', ['conv', 'depthwise'])
def test_a_block_in_bfloat16_keeps_float32_parameters_and_learns(kind):
    x = jnp.asarray(normal(np.random.default_rng(0), 4, 6, 6, 4), jnp.float32)
    narrow = layers.ConvBN(**KINDS[kind], dtype=jnp.bfloat16)
    variables = random_variables(narrow, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

    @functools.partial(jax.jit, static_argnums=0)
    def run(block, params, x):
        def loss(params):
            y, updated = block.apply(
                {**variables, 'params': params}, x, True, mutable=['batch_stats']
            )
            # Not the square, whose sum batch normalisation makes a constant.
            return (y.astype(jnp.float32) ** 3).sum(), (y, updated)

        gradient, (y, updated) = jax.grad(loss, has_aux=True)(params)
        return y, updated, gradient

    y, updated, gradient = run(narrow, variables['params'], x)
    expected, _, expected_gradient = run(layers.ConvBN(**KINDS[kind]), variables['params'], x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03)
    for leaf in jax.tree.leaves((updated, gradient)):
        assert leaf.dtype == jnp.float32
    for a, b in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * np.abs(b).max())


@pytest.mark.usefixtures('unchecked')
def test_an_unknown_kind_of_block_is_an_error():
    block = layers.ConvBN(4, kind='grouped')
    with pytest.raises(ValueError, match=r"ConvBN\.kind: expected .* got 'grouped'"):
        random_variables(block, jnp.zeros((1, 4, 4, 3)))


def test_activations():
    x = jnp.array([-2.0, -0.5, 0.0, 3.0, 6.0, 9.0])
    np.testing.assert_array_equal(layers.relu6(x), [0, 0, 0, 3, 6, 6])
    # At both ends 0, as torch.nn.functional.relu6 has it.
    slopes = jax.grad(lambda x: (layers.relu6(x) * jnp.arange(1.0, 7.0)).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(slopes, [0, 0, 0, 4, 0, 0])
    np.testing.assert_allclose(layers.leaky_relu(x), [-0.02, -0.005, 0, 3, 6, 9], rtol=1e-6)
