"""Records in device memory: the crops of the host, the same distributions, one stream."""

import functools
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_pipeline import Broken, Squares, assert_same, indices
from test_transforms import centroid, dots, noise_image, plain, sample_of

from handpose_jax import geometry
from handpose_jax.data import pipeline, resident, sources
from handpose_jax.data.transforms import PADDING, Augmentation, crop_example, warp_crop
from handpose_jax.process import distributed

ROOT = Path(__file__).parents[2]
STILL = Augmentation(rotation=0.0, translation=0.0, scale=(1.0, 1.0))
GEOMETRY = Augmentation(rotation=180.0, translation=20.0, scale=(0.6, 1.25))
PHOTOMETRY = dict.fromkeys(
    ('brightness', 'contrast', 'gamma', 'white_balance', 'grey', 'blur', 'noise'), 0.3
) | {'low_resolution': 0.3, 'occlusion': 0.3}
SEED = 5
SIZE = 32


class Samples:
    """A source of given samples."""

    def __init__(self, *samples):
        self._samples = samples
        self.groups = ('a',) * len(samples)

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index, /):
        return self._samples[index]

    def image_id(self, index, /):
        return f'sample {index}'

    def fingerprint(self):
        return 'samples'


def batches_of(source, places, *, augmentation, size=SIZE, seed=SEED, side=0):
    """Batches of records by (position, index), four at a time, as the step makes them."""
    stored = resident.load(
        source, size=size, augmentation=augmentation, mesh=distributed.data_mesh(), side=side
    )
    make = jax.jit(
        functools.partial(resident.batch_of, seed=seed, size=size, augmentation=augmentation)
    )
    made = []
    for start in range(0, len(places), 4):
        position, index = np.array(places[start : start + 4]).T
        batch = {'position': position.astype(np.uint32), 'index': index.astype(np.int32)}
        made.append(jax.device_get(make(stored, batch)))
    return {name: np.concatenate([batch[name] for batch in made]) for name in made[0]}


def drawn(position, *, augmentation, size=SIZE):
    """The geometry that belongs to a place in the stream."""
    key = jax.random.fold_in(jax.random.key(SEED), np.uint32(position))
    scale, angle, shift = resident.draw_geometry(jax.random.split(key)[0], size, augmentation)
    return float(scale), float(angle), np.asarray(shift, np.float64)


# The boxes enlarge, need no averaging, are averaged by two and by three; two reach over the edge.
BOXES = (
    [40.3, 30.2, 70.3, 60.2],
    [20.0, 41.0, 80.0, 101.0],
    [15.7, 11.1, 95.7, 91.1],
    [-20.2, 40.4, 68.8, 129.4],
    [60.5, 70.5, 165.5, 175.5],
)


@pytest.mark.parametrize('augmentation', [STILL, GEOMETRY])
def test_crops_of_squares_kept_as_they_are_are_those_of_the_host(augmentation):
    """Pixels of noise to one grey level, keypoints to 0.02 px, right hands and left."""
    samples = [
        sample_of(noise_image(130, 150, seed), box=box, is_left=is_left)
        for seed, (box, is_left) in enumerate(itertools.product(BOXES, (False, True)))
    ]
    places = [(7 * number, number % len(samples)) for number in range(4 * len(samples))]
    found = batches_of(Samples(*samples), places, augmentation=augmentation, side=400)
    steps = []
    for row, (position, index) in enumerate(places):
        sample = samples[index]
        scale, angle, shift = drawn(position, augmentation=augmentation)
        box = geometry.square_box(sample['box'].astype(float), 1 / scale)
        # A left hand is turned after it was mirrored, the host mirrors after it was turned.
        left = sample['is_left']
        crop_from_image = geometry.crop_from_image(
            box, SIZE, rotation=-angle if left else angle, mirror=left
        )
        crop_from_image[:, 2] += shift
        image_from_crop = geometry.invert(crop_from_image)
        expected = warp_crop(sample['image'], image_from_crop, SIZE)
        assert np.abs(found['image'][row].astype(int) - expected).max() <= 1
        keypoints = geometry.apply_affine(crop_from_image, sample['keypoints'].astype(float))
        np.testing.assert_allclose(found['keypoints'][row], keypoints, atol=0.02)
        np.testing.assert_allclose(found['image_from_crop'][row], image_from_crop, atol=2e-3)
        steps.append(geometry.longest_side(box) / SIZE)
    # All kinds of averaging were met.
    assert {0, 1, 2, 3} <= set(np.floor(steps).astype(int))


def test_a_plain_crop_is_crop_example():
    """With a step of exactly two, where a rounding error would stop the averaging."""
    samples = [
        sample_of(noise_image(64, 64), is_left=True),
        sample_of(noise_image(32, 32)),
        {**sample_of(noise_image(60, 60)), 'hidden': np.arange(21) == 4},
        {**sample_of(noise_image(60, 60)), 'no_hand': True},
    ]
    found = batches_of(Samples(*samples), [(n, n) for n in range(4)], augmentation=STILL, side=120)
    host = [crop_example(sample, size=SIZE, index=n) for n, sample in enumerate(samples)]
    expected = {name: np.stack([example[name] for example in host]) for name in host[0]}
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
        k: (v.dtype, v.shape) for k, v in expected.items()
    }
    assert np.abs(found['image'].astype(int) - expected['image']).max() <= 1
    for name in expected.keys() - {'image'}:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-3, err_msg=name)


def test_a_large_square_is_shrunk_and_keeps_its_geometry():
    """Keypoints to 0.02 px; and a dot lies where it does in the host's crop by the same map."""
    image = dots(900, 800, [(410.3, 395.8)], sigma=30.0)
    keypoints = np.full((21, 2), (410.3, 395.8)) + np.arange(21)[:, None]
    sample = sample_of(image, box=[150, 170, 650, 670], keypoints=keypoints, is_left=True)
    size = 64
    assert resident.stored_side(size, GEOMETRY) < 500
    found = batches_of(
        Samples(sample), [(n, 0) for n in range(8)], augmentation=GEOMETRY, size=size
    )
    for row in range(8):
        image_from_crop = found['image_from_crop'][row].astype(float)
        place = found['keypoints'][row].astype(float)
        back = geometry.apply_affine(image_from_crop, place)
        pixel = math.sqrt(abs(np.linalg.det(image_from_crop[:, :2])))
        np.testing.assert_allclose(back, sample['keypoints'], atol=0.02 * pixel)
        expected = warp_crop(image, image_from_crop, size)
        radius = math.ceil(4 * 30 / pixel)
        near = np.clip(place[0], radius, size - radius - 2)
        np.testing.assert_allclose(
            centroid(found['image'][row], near, radius), centroid(expected, near, radius), atol=0.02
        )
        assert found['image'][row].max() > 240


@pytest.mark.parametrize('is_left', [False, True])
def test_no_augmentation_reaches_beyond_what_is_stored(is_left):
    """A picture of one grey level to the horizon shows no padding."""
    sample = sample_of(plain(200, 1200), box=[550, 560, 640, 650], is_left=is_left)
    extreme = Augmentation(rotation=180.0, translation=40.0, scale=(0.5, 0.51))
    places = [(n, 0) for n in range(64)]
    for side in (0, 240):
        found = batches_of(Samples(sample), places, augmentation=extreme, side=side)
        assert (found['image'] == 200).all()


def test_what_lies_beside_the_picture_is_padding():
    sample = sample_of(noise_image(), box=[500, 500, 560, 560])
    found = batches_of(Samples(sample), [(n, 0) for n in range(4)], augmentation=GEOMETRY)
    assert (found['image'] == PADDING).all()


def test_shrunk_squares_lose_no_detail_at_the_default_side(assets):
    """The energy of differences between neighbours, over that of the host's crops."""
    photos = sources.load_source('folder', root=str(assets / 'real_hands'), split='train')
    samples = Samples(*(photos[index] for index in range(100, len(photos), 180)))
    places = [(n, n % len(samples)) for n in range(4 * len(samples))]
    augmentation = Augmentation(rotation=180.0, translation=20.0, scale=(0.75, 1.25))
    found = batches_of(samples, places, augmentation=augmentation, size=112)

    def energy(image):
        grey = image.astype(float).mean(axis=-1)
        return (np.diff(grey, axis=0) ** 2).mean() + (np.diff(grey, axis=1) ** 2).mean()

    ratios = []
    for row, (_, index) in enumerate(places):
        image_from_crop = found['image_from_crop'][row].astype(float)
        host = warp_crop(samples[index]['image'], image_from_crop, 112)
        ratios.append(energy(found['image'][row]) / energy(host))
    assert 0.95 < np.median(ratios) < 1.05
    assert min(ratios) > 0.6


def test_geometry_is_drawn_evenly_from_its_ranges():
    augmentation = Augmentation(rotation=30.0, translation=20.0, scale=(0.5, 1.5))
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = functools.partial(resident.draw_geometry, size=112, augmentation=augmentation)
    scale, angle, shift = jax.vmap(draw)(keys)
    for values, low, high in (
        (scale, 0.5, 1.5),
        (angle, -math.radians(30), math.radians(30)),
        (shift[:, 0], -10, 10),
        (shift[:, 1], -10, 10),
    ):
        assert low <= values.min() <= values.max() <= high
        assert stats.kstest(values, 'uniform', (low, high - low)).pvalue > 0.01
    drawn_together = np.column_stack([scale, angle, shift])
    correlation = np.corrcoef(drawn_together.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.06


def photometric_pair(image, count, **fields):
    """What one kind of change does to an image, by host and by device: f64[n s s 3] each."""
    augmentation = Augmentation(rotation=0.0, translation=0.0, scale=(1.0, 1.0), **fields)
    rng = np.random.default_rng(3)
    sample = sample_of(image)
    size = image.shape[0]
    host = [
        crop_example(sample, size=size, augmentation=augmentation, rng=rng)['image']
        for _ in range(count)
    ]
    change = functools.partial(resident.augment, augmentation=augmentation)
    keys = jax.random.split(jax.random.key(2), count)
    planes = jnp.moveaxis(jnp.asarray(image, jnp.float32), -1, 0)
    device = jnp.moveaxis(jax.jit(jax.vmap(change, in_axes=(None, 0)))(planes, keys), 1, -1)
    assert (device == jnp.rint(device)).all()
    assert device.min() >= 0
    assert device.max() <= 255
    return np.array(host, np.float64), np.asarray(device, np.float64)


def spread_of(images):
    """Second moments of a bright dot: xx, yy, xy, and its height."""
    grey = images.mean(axis=-1)
    y, x = np.mgrid[: grey.shape[1], : grey.shape[2]]
    mass = grey.sum(axis=(1, 2))
    cx, cy = (grey * x).sum(axis=(1, 2)) / mass, (grey * y).sum(axis=(1, 2)) / mass
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    moments = [(grey * a * b).sum(axis=(1, 2)) / mass for a, b in ((dx, dx), (dy, dy), (dx, dy))]
    return np.stack([*moments, grey.max(axis=(1, 2))], axis=-1)


def rectangle_of(images, untouched):
    """Corner, sides and colour of what covers a picture."""
    rows = []
    for image in images:
        y, x = np.nonzero((image != untouched).any(axis=-1))
        rows.append([x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1, *image[y[0], x[0]]])
    return np.array(rows)


def levels_of(images):
    return images[:, 0, 0]


def roughness_of(images):
    down, across = np.diff(images, axis=1), np.diff(images, axis=2)
    return np.stack(
        [images.std(axis=(1, 2, 3)), down.std(axis=(1, 2, 3)), across.std((1, 2, 3))], 1
    )


def step_of(images):
    return np.stack([images[:, 0, -1, 0] - images[:, 0, 0, 0], images.mean(axis=(1, 2, 3))], -1)


COLOURED = np.full((16, 16, 3), (200, 100, 20), np.uint8)
DOT = dots(56, 56, [(27.3, 28.6)], 0.8)
TWO_LEVELS = np.concatenate([plain(107, 16)[:, :8], plain(148, 16)[:, :8]], axis=1)


@pytest.mark.parametrize(
    ('image', 'fields', 'statistics'),
    [
        (plain(120, 16), {'brightness': 0.2}, levels_of),
        (TWO_LEVELS, {'contrast': 1.0}, step_of),
        (plain(64, 16), {'gamma': 1.0}, levels_of),
        (COLOURED, {'white_balance': 0.25}, levels_of),
        (COLOURED, {'grey': 0.5}, levels_of),
        (COLOURED, {'brightness': 0.2, 'contrast': 0.3, 'white_balance': 0.2}, levels_of),
        (DOT, {'blur': 1.0}, spread_of),
        (dots(224, 224, [(101.3, 120.8)], 1.0)[60:180, 40:160], {'blur': 1.0}, spread_of),
        # Its changes go along the axes, and what is diagonal or off the centre is rounding.
        (DOT, {'low_resolution': 1.0}, lambda images: spread_of(images)[:, [0, 1, 3]]),
        (noise_image(), {'low_resolution': 1.0}, roughness_of),
        (noise_image(), {'blur': 1.0}, roughness_of),
        (plain(120, 32), {'noise': 1.0, 'noise_sigma': 20.0}, roughness_of),
        (noise_image(50, 50), {'occlusion': 1.0}, lambda i: rectangle_of(i, noise_image(50, 50))),
    ],
    ids=lambda value: '_'.join(value) if isinstance(value, dict) else '',
)
def test_photometric_changes_have_the_distributions_of_the_host(image, fields, statistics):
    host, device = (statistics(images) for images in photometric_pair(image, 500, **fields))
    # A few values come again and again, to the last bits, which rounding makes others.
    rng = np.random.default_rng(4)
    for values in (host, device):
        values += rng.normal(size=host.shape) * 0.02 * host.std(axis=0)
    for column in range(host.shape[1]):
        assert stats.ks_2samp(host[:, column], device[:, column]).pvalue > 0.002, column


@pytest.mark.parametrize('name', ['blur', 'low_resolution'])
def test_softening_does_not_shift(name):
    _, device = photometric_pair(dots(96, 96, [(43.3, 51.8)], 3.0), 60, **{name: 1.0})
    for crop in device:
        found = centroid(crop, np.array([43.3, 51.8]), 24)
        np.testing.assert_allclose(found, [43.3, 51.8], atol=0.1)


@pytest.mark.parametrize('name', ['blur', 'noise', 'low_resolution', 'occlusion', 'grey'])
def test_probabilities(name):
    image = noise_image(64, 64)
    host, device = (
        int((images != image).any(axis=(1, 2, 3)).sum())
        for images in photometric_pair(image, 400, **{name: 0.3})
    )
    assert stats.fisher_exact([[host, 400 - host], [device, 400 - device]]).pvalue > 0.01
    # The weakest blurs leave such a small picture as it is.
    if name != 'blur':
        assert stats.binomtest(device, 400, 0.3).pvalue > 0.005


@pytest.mark.parametrize(
    ('balance', 'shards'), [(1.0, 1), (0.5, 1), ({'a': 1.0, 'b': 3.0, 'c': 0.0}, 2)]
)
def test_the_records_are_those_of_the_host_in_its_order(balance, shards):
    source = Squares('a' * 12 + 'b' * 5 + 'c' * 2)
    common = {'batch_size': 4, 'seed': 3, 'balance': balance, 'num_threads': 1}
    for shard in range(shards):
        part = {**common, 'shard_index': shard, 'shard_count': shards}
        host = pipeline.train_dataset(source, size=8, augmentation=None, **part)
        device = iter(pipeline.train_positions(source, **part))
        batches = list(itertools.islice(device, 8))
        assert indices(batches) == indices(itertools.islice(iter(host), 8))
        places = np.concatenate([batch['position'] for batch in batches])
        every = np.arange(4 * 8 * shards).reshape(-1, 4)
        np.testing.assert_array_equal(places, every[shard::shards].ravel())
        state = json.dumps(device.get_state())
        ahead = list(itertools.islice(device, 3))
        device.set_state(json.loads(state))
        assert_same(list(itertools.islice(device, 3)), ahead)


EVERYTHING = Augmentation(rotation=180.0, **PHOTOMETRY)


def test_examples_depend_on_seed_and_place_alone():
    source = Squares('a' * 3)
    places = [(n, n % 3) for n in range(8)]
    make = functools.partial(batches_of, source, augmentation=EVERYTHING, size=16)
    first, again = make(places), make(places[::-1])
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name][::-1], err_msg=name)
    assert (make(places, seed=2**32 - 1)['image'] != first['image']).any(axis=(1, 2, 3)).all()
    # One record at other places looks different each time.
    maps = make([(n, 0) for n in range(8)])['image_from_crop']
    assert len(np.unique(maps.reshape(8, 6), axis=0)) == 8


ON_DEVICES = """
import functools
import sys
import jax
import numpy as np
from handpose_jax.data import pipeline, resident
from handpose_jax.data.sources import SketchSource
from handpose_jax.process import distributed
from handpose_jax.data.transforms import Augmentation

mesh = distributed.data_mesh()
source = SketchSource(count=5)
augmentation = Augmentation(
    rotation=180.0, brightness=0.3, contrast=0.3, gamma=0.3, white_balance=0.3, grey=0.3, blur=0.3,
    noise=0.3, low_resolution=0.3, occlusion=0.3,
)
stored = resident.load(source, size=32, augmentation=augmentation, mesh=mesh)
make = functools.partial(resident.batch_of, seed=1, size=32, augmentation=augmentation)
batch = next(iter(pipeline.train_positions(source, batch_size=8, seed=1, num_threads=0)))
spread = distributed.to_devices(batch, mesh)
compiled = jax.jit(distributed.on_each_device(make, mesh)).lower(stored, spread).compile()
made = compiled(stored, spread)
assert made['image'].addressable_shards[0].data.shape[0] == 8 // mesh.size
np.savez(sys.argv[1], **{name: np.asarray(values) for name, values in made.items()})
if mesh.size > 1:
    shown = distributed.on_one_device(make, stored, batch)
    np.savez(sys.argv[1].replace('.npz', '_shown.npz'), **shown)
print(mesh.size, sum(compiled.as_text().count(f' {kind}(') for kind in (
    'all-reduce', 'all-gather', 'all-to-all', 'collective-permute')))
"""


def test_any_number_of_devices_makes_the_same_batch_and_exchanges_nothing(tmp_path):
    made = []
    for devices in (1, 4):
        environment = dict(os.environ)
        environment['XLA_FLAGS'] += f' --xla_force_host_platform_device_count={devices}'
        done = subprocess.run(
            [sys.executable, '-c', ON_DEVICES, str(tmp_path / f'{devices}.npz')],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            check=False,
        )
        assert done.stdout.split() == [str(devices), '0'], done.stderr
    for name in ('1', '4', '4_shown'):
        with np.load(tmp_path / f'{name}.npz') as arrays:
            made.append(dict(arrays))
    for other in made[1:]:
        assert other.keys() == made[0].keys()
        for name in other.keys() - {'image', 'keypoints', 'image_from_crop'}:
            np.testing.assert_array_equal(other[name], made[0][name])
        for name in ('keypoints', 'image_from_crop'):
            np.testing.assert_allclose(other[name], made[0][name], atol=1e-4)
        # Another size of batch is another program, and may round a last bit to the other side.
        off = np.abs(other['image'].astype(int) - made[0]['image'])
        assert off.max() <= 3
        assert (off > 0).mean() < 0.002


def test_what_does_not_fit_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(resident, '_free_memory', lambda: (10**9, 'on a device'))
    side = resident.stored_side(112, GEOMETRY)
    check = functools.partial(resident.check_fits, size=112, augmentation=GEOMETRY)
    check(8 * 10**8 // (3 * side**2))
    count = 8 * 10**8 // (3 * side**2) + 1
    needed = f'{3 * side**2 * count:,} bytes for {count:,} records'
    with pytest.raises(ValueError, match=rf"{needed}.*1,000,000,000.*80%.*place='host'") as caught:
        check(count)
    fitting = int(str(caught.value).split('stored_side to ')[1].split()[0])
    check(count, side=fitting)
    with pytest.raises(ValueError, match='stored_side'):
        check(count, side=fitting + 1)


def test_free_memory_is_found_on_devices_that_tell_and_on_the_host(monkeypatch):
    bytes_free, where = resident._free_memory()
    assert 10**7 < bytes_free < 10**14
    assert 'host' in where

    class Device:
        def __init__(self, used):
            self._used = used

        def memory_stats(self):
            return {'bytes_limit': 100, 'bytes_in_use': self._used}

    monkeypatch.setattr(jax, 'local_devices', lambda: [Device(10), Device(30)])
    assert resident._free_memory() == (70, 'on a device')


def test_a_record_that_cannot_be_read_is_named():
    source = Broken('a' * 70, 66, OSError('too dark'))
    with pytest.raises(ValueError, match=r'record 66 \(square 66\): too dark'):
        batches_of(source, [(0, 0)], augmentation=STILL, size=16)
