"""Rendered hands as a data set: made once, kept by their settings, read back as generated."""

import numpy as np
import pytest

from handpose_jax import geometry
from handpose_jax.data import images, prepared, sources, synthetic_hands
from handpose_jax.synthetic.generate import generate
from handpose_jax.synthetic.scene.options import SceneOptions

CHEAP = {'size': 48, 'backgrounds': 'plain', 'lighting': 'flat', 'occlusion': False, 'samples': 1}
SPLITS = {'train': (3, 0), 'val': (1, 10_000_000), 'test': (1, 20_000_000)}


def load(root, **kwargs):
    return sources.load_source('synthetic_hands', root=str(root), count=3, **{**CHEAP, **kwargs})


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthetic')
    load(folder, seed=5)
    return folder


@pytest.mark.parametrize('split', SPLITS)
def test_samples_are_the_generated_pictures(root, split):
    count, first = SPLITS[split]
    source = load(root, seed=5, split=split)
    assert len(source) == count
    for index in range(count):
        sample = source[index]
        rendered = generate(SceneOptions(**CHEAP), 5, first + index)
        # JPEG of quality 95.
        assert np.abs(sample['image'].astype(int) - rendered.image).mean() < 4
        np.testing.assert_array_equal(sample['keypoints'], rendered.keypoints)
        assert sample['visible'].all()
        assert sample['is_left'] == rendered.is_left
        tight = geometry.keypoint_box(rendered.keypoints, np.ones(21, bool))
        assert sample['norm_size'] == pytest.approx(geometry.longest_side(tight), rel=1e-6)
        np.testing.assert_allclose(sample['box'], geometry.square_box(tight, 2.2), atol=1e-3)
        record = source.record(index)
        np.testing.assert_array_equal(record['visible'], rendered.visible)
        seen = record['keypoints_3d'] @ record['camera'].T
        np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], sample['keypoints'], atol=1e-3)


def test_hidden_keypoints_can_be_left_out(root):
    every, seen = load(root, seed=5), load(root, seed=5, hidden=False)
    assert any((every[i]['visible'] != seen[i]['visible']).any() for i in range(3))
    for index in range(3):
        np.testing.assert_array_equal(seen[index]['visible'], every.record(index)['visible'])


def test_it_is_rendered_once(root, capfd):
    before = prepared.fingerprint(root)
    load(root, seed=5)
    assert capfd.readouterr().out == ''
    assert prepared.fingerprint(root) == before


def test_a_folder_of_other_settings_is_refused(root):
    with pytest.raises(ValueError, match='other settings:\n  seed: 5 -> 6'):
        load(root, seed=6)


def test_the_first_use_says_what_it_does_and_keeps_the_pictures(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    source = sources.load_source('synthetic_hands', count=1, **CHEAP)
    out = capfd.readouterr().out
    folder = synthetic_hands.default_folder(SceneOptions(**CHEAP), count=1, seed=0)
    assert 'Rendering 1 synthetic hands' in out
    assert str(folder) in out
    assert tmp_path in folder.parents
    assert prepared.is_prepared(folder)
    shape = images.decode_image(source.record(0)['image'], 'a').shape
    assert shape == (48, 48, 3)


def test_the_place_in_the_cache_follows_the_settings_alone(tmp_path):
    def place(seed=0, count=10, **options):
        return synthetic_hands.default_folder(SceneOptions(**options), count=count, seed=seed)

    assert place() == place()
    others = [place(seed=1), place(count=11), place(samples=3), place(occlusion=False)]
    assert len({place(), *others}) == 5
    # The same files elsewhere are the same files.
    assert place(poses='/a/poses.json') == place(poses='/b/poses.json')


def test_pictures_without_a_hand_are_records_without_keypoints(tmp_path):
    scenes = SceneOptions(**CHEAP, without_hand=1.0)
    example = synthetic_hands.MakeExample(scenes, 5, 0)(0)
    hand = synthetic_hands.MakeExample(SceneOptions(**CHEAP), 5, 0)(0)
    for name in ('keypoints', 'annotated', 'visible'):
        assert not example[name].any()
    # The crop is the one that the hand would have: it must not tell the two apart.
    np.testing.assert_allclose(example['box'], geometry.square_box(hand['box'], 2.2), rtol=1e-6)
    assert example['norm_size'] == pytest.approx(2.2 * hand['norm_size'], rel=1e-6)
    # Data sets from before the option existed are those without such pictures.
    told = synthetic_hands.settings(SceneOptions(**CHEAP), count=1, seed=0)['options']
    assert 'without_hand' not in told
    told = synthetic_hands.settings(scenes, count=1, seed=0)['options']
    assert told['without_hand'] == 1.0


def test_unknown_options_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown option 'backgrouds'; known are .*backgrounds"):
        load(tmp_path, backgrouds='plain')
    with pytest.raises(ValueError, match='count must be at least 1'):
        sources.load_source('synthetic_hands', root=str(tmp_path), count=0)
