"""The tutorial's U-Net built in PyTorch, converted, and compared output by output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handpose_jax.models import build, torch_unet


def shapes(width=1.0):
    model = build('unet', width=width, implementation='lax')
    return model, jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3), jnp.uint8))
    )


# Channels before and after each block of the tutorial's class.
BLOCKS = {
    'conv_down1': (3, 16),
    'conv_down2': (16, 32),
    'conv_down3': (32, 64),
    'conv_bottleneck': (64, 128),
    'conv_up1': (128 + 64, 64),
    'conv_up2': (64 + 32, 32),
    'conv_up3': (32 + 16, 16),
}


def random_state(width=1.0, seed=0):
    """Arrays by the names of the tutorial's class, with `width` times its channels."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, channels in BLOCKS.items():
        before, after = (n if n == 3 else int(n * width) for n in channels)
        for norm, conv, channels in ((0, 1, before), (3, 4, after)):
            key = f'{name}.double_conv'
            state[f'{key}.{norm}.weight'] = rng.uniform(0.5, 1.5, channels)
            state[f'{key}.{norm}.bias'] = rng.normal(0, 0.2, channels)
            state[f'{key}.{norm}.running_mean'] = rng.normal(0, 0.2, channels)
            state[f'{key}.{norm}.running_var'] = rng.uniform(0.5, 1.5, channels)
            state[f'{key}.{norm}.num_batches_tracked'] = np.array(7)
            scale = np.sqrt(2 / (9 * channels))
            state[f'{key}.{conv}.weight'] = rng.normal(0, scale, (after, channels, 3, 3))
    state['conv_out.0.weight'] = rng.normal(0, 0.1, (21, after, 3, 3))
    return {name: np.asarray(value, np.float32) for name, value in state.items()}


def torch_network(torch):
    """Its forward pass in PyTorch, of the framework's own layers."""
    nn = torch.nn

    def block(before, after):
        layers = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(after),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.ReLU(),
        )
        return nn.ModuleDict({'double_conv': layers})

    network = nn.ModuleDict({name: block(*channels) for name, channels in BLOCKS.items()})
    last = nn.Conv2d(16, 21, 3, padding=1, bias=False)
    network['conv_out'] = nn.Sequential(last, nn.Sigmoid())
    up = nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False)

    def forward(x):
        def run(name, x):
            return network[name]['double_conv'](x)

        one = run('conv_down1', x)
        two = run('conv_down2', nn.functional.max_pool2d(one, 2))
        three = run('conv_down3', nn.functional.max_pool2d(two, 2))
        x = run('conv_bottleneck', nn.functional.max_pool2d(three, 2))
        x = run('conv_up1', torch.cat([up(x), three], 1))
        x = run('conv_up2', torch.cat([up(x), two], 1))
        return network['conv_out'](run('conv_up3', torch.cat([up(x), one], 1)))

    return network, forward


def test_the_same_outputs_as_in_pytorch(tmp_path):
    torch = pytest.importorskip('torch')
    network, forward = torch_network(torch)
    network.load_state_dict({k: torch.tensor(v) for k, v in random_state().items()})
    network.eval()
    torch.save(network.state_dict(), tmp_path / 'unet.pt')
    model, wanted = shapes()
    variables = torch_unet.convert(torch_unet.read(tmp_path / 'unet.pt'), wanted)
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    ours = jax.jit(model.apply)(variables, images)
    mean, std = np.array([0.3950, 0.4323, 0.2954]), np.array([0.1966, 0.1734, 0.1836])
    x = ((images / 255 - mean) / std).astype(np.float32)
    with torch.no_grad():
        theirs = forward(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    assert theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_every_array_gets_its_place():
    _, wanted = shapes(0.25)
    state = random_state(0.25)
    variables = torch_unet.convert(state, wanted)
    assert jax.tree.structure(variables) == jax.tree.structure(wanted)
    kernel = variables['params']['up_2']['kernel_1']
    theirs = state['conv_up2.double_conv.1.weight']
    assert kernel.shape == (3, 3, 24, 8)
    np.testing.assert_array_equal(kernel[2, 1, 5, 7], theirs[7, 5, 2, 1])
    np.testing.assert_array_equal(
        variables['batch_stats']['down_1']['bn_2']['var'],
        state['conv_down1.double_conv.3.running_var'],
    )


def test_all_problems_come_in_one_message():
    state = random_state(0.25)
    del state['conv_down2.double_conv.3.bias']
    state['conv_up1.double_conv.1.weight'] = state['conv_up1.double_conv.1.weight'][:, :-1]
    state['conv_out.0.weight'][0, 0, 0, 0] = np.nan
    state['conv_out.2.weight'] = np.zeros(3)
    with pytest.raises(ValueError, match=r'4 problem\(s\)') as caught:
        torch_unet.convert(state, shapes(0.25)[1])
    for problem in (
        'conv_down2.double_conv.3.bias: missing',
        'conv_up1.double_conv.1.weight: expected the shape (16, 48, 3, 3), got',
        'conv_out.0.weight: expected finite',
        'conv_out.2.weight: no layer',
    ):
        assert problem in str(caught.value)


def test_files_that_are_no_weights(tmp_path):
    torch = pytest.importorskip('torch')

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    (tmp_path / 'a.pt').write_bytes(b'not a file of weights')
    torch.save({'x': Evil()}, tmp_path / 'b.pt')
    torch.save([1, 2], tmp_path / 'c.pt')
    for name in ('a', 'b', 'c', 'missing'):
        with pytest.raises(ValueError, match=rf'{name}\.pt: (expected|no such)'):
            torch_unet.read(tmp_path / f'{name}.pt')
    assert not (tmp_path / 'ran').exists()
