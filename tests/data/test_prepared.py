"""Prepared data sets: what is written is read back, killed preparations go on, changes are seen."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from handpose_jax.data import prepared, quarantine
from handpose_jax.data.quarantine import BadRecord
from handpose_jax.synthetic.drawing import flat

SETTINGS = {'seed': 0, 'options': {'size': 48}}


@dataclasses.dataclass(frozen=True)
class Make:
    """Drawn hands; slow or failing on demand."""

    first: int = 0
    seconds: float = 0.0
    fails_at: tuple[int, ...] = ()

    def __call__(self, index: int) -> prepared.Example:
        time.sleep(self.seconds)
        if index in self.fails_at:
            raise BadRecord(
                file='hands.json', record=index, field='keypoints', expected='21', got=20
            )
        image, keypoints = flat.draw(np.random.default_rng(self.first + index), 48)
        annotated = np.arange(21) != index % 21
        low, high = keypoints.min(axis=0), keypoints.max(axis=0)
        return {
            'image': cv2.imencode('.png', image[..., ::-1])[1].tobytes(),
            'keypoints': keypoints.astype(np.float32),
            'annotated': annotated,
            'visible': annotated & (np.arange(21) != 3),
            'box': np.concatenate([low, high]).astype(np.float32),
            'norm_size': np.float32((high - low).max()),
            'is_left': bool(index % 2),
            'image_id': f'drawn/{index}',
        }


def prepare(folder, *, train=10, settings=SETTINGS, workers=2, evaluation=False, **make):
    prepared.prepare(
        folder,
        'drawn',
        {
            'train': prepared.Split(train, Make(**make), published=12, evaluation=evaluation),
            'val': prepared.Split(3, Make(first=1000), evaluation=True),
        },
        settings=settings,
        description='drawn hands',
        records_per_shard=4 if train < 100 else 40,
        workers=workers,
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('drawn')
    prepare(made)
    return made


def test_records_come_back_as_they_went_in(folder):
    source = prepared.PreparedSource(folder, split='train', crop_scale=2.0)
    assert len(source) == 10
    assert set(source.groups) == {'drawn'}
    for index in range(10):
        expected = Make()(index)
        sample = source[index]
        pixels = cv2.imdecode(np.frombuffer(expected['image'], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(sample['image'], pixels[..., ::-1])
        np.testing.assert_array_equal(sample['keypoints'], expected['keypoints'])
        np.testing.assert_array_equal(sample['visible'], expected['annotated'])
        np.testing.assert_array_equal(sample['hidden'], (np.arange(21) == 3) & (index != 3))
        assert sample['is_left'] == expected['is_left']
        assert sample['image_id'] == expected['image_id']
        assert sample['norm_size'] == expected['norm_size']
        side = sample['box'][2] - sample['box'][0]
        assert side == pytest.approx(2.0 * expected['norm_size'], rel=1e-5)


def test_hidden_keypoints_can_be_left_out(folder):
    source = prepared.PreparedSource(folder, split='val', hidden=False)
    assert not source[0]['visible'][3]
    assert source[0]['hidden'][3]
    assert prepared.PreparedSource(folder, split='val')[0]['visible'][3]


def test_tfds_opens_it_without_tensorflow(folder):
    script = (
        'import sys, tensorflow_datasets as tfds; '
        'b = tfds.builder_from_directory(sys.argv[1]); '
        "print({n: s.num_examples for n, s in b.info.splits.items()}, 'tensorflow' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, '-c', script, folder], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "{'train': 10, 'val': 3} False"


def test_same_bytes_whatever_the_number_of_workers(folder, tmp_path):
    prepare(tmp_path / 'again', workers=1)
    assert prepared.fingerprint(tmp_path / 'again') == prepared.fingerprint(folder)


def test_preparing_a_finished_set_again_touches_nothing(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    prepare(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def group(number):
    """The living processes of a process group."""
    found = set()
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            _, state, _, of, *_ = stat.read_text().rpartition(')')[2].split(' ')
        except OSError:
            continue
        if int(of) == number and state != 'Z':
            found.add(int(stat.parent.name))
    return found


def test_killed_preparation_goes_on_and_keeps_finished_shards(folder, tmp_path):
    target = tmp_path / 'killed'
    script = (
        'import sys; sys.path.insert(0, sys.argv[1]); import test_prepared\n'
        "if __name__ == '__main__':\n"
        '    test_prepared.prepare(sys.argv[2], workers=1, seconds=0.3)\n'
    )
    (tmp_path / 'job.py').write_text(script)
    job = subprocess.Popen(
        [sys.executable, tmp_path / 'job.py', Path(__file__).parent, target],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(target.glob('*-of-00003')) and time.monotonic() < deadline:
        assert job.poll() is None, 'the preparation ended before it could be killed'
        time.sleep(0.05)
    assert group(job.pid) - {job.pid}
    # The parent alone: its workers end by themselves.
    job.kill()
    job.wait()
    deadline = time.monotonic() + 60
    while group(job.pid):
        assert time.monotonic() < deadline, 'its workers are still there'
        time.sleep(0.05)
    assert not prepared.is_prepared(target)
    with pytest.raises(ValueError, match='no finished data set'):
        prepared.PreparedSource(target)
    kept = {path: path.stat().st_mtime_ns for path in target.glob('*-of-00003')}
    assert kept
    prepare(target)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert prepared.fingerprint(target) == prepared.fingerprint(folder)
    assert not list(target.glob('*.partial*'))


def test_other_settings_are_refused_with_the_keys_that_differ(folder):
    with pytest.raises(ValueError, match=r'seed: 0 -> 5'):
        prepare(folder, settings={**SETTINGS, 'seed': 5})


BAD = "hands.json: record 5, field 'keypoints': expected 21, got 20"


def test_a_bad_record_of_an_evaluation_split_is_named_and_stops(tmp_path):
    with pytest.raises(ValueError, match=f'drawn/train, record 5: {BAD}'):
        prepare(tmp_path / 'bad', fails_at=(5,), evaluation=True)
    assert not prepared.is_prepared(tmp_path / 'bad')


def test_more_than_one_percent_of_bad_records_stops(tmp_path):
    with pytest.raises(ValueError, match=f"split 'train': 1 of 10 records .*1%.*\n  {BAD}"):
        prepare(tmp_path / 'bad', fails_at=(5,))
    # Spread over the shards, so that no shard alone has too many.
    with pytest.raises(ValueError, match="split 'train': 2 of 120 records"):
        prepare(tmp_path / 'more', train=120, fails_at=(5, 100))
    assert not prepared.is_prepared(tmp_path / 'more')


def test_a_few_bad_records_are_left_out_and_listed(tmp_path):
    prepare(tmp_path, train=120, fails_at=(5,))
    source = prepared.PreparedSource(tmp_path, split='train')
    assert len(source) == 119
    names = [source[index]['image_id'] for index in range(119)]
    assert names == [f'drawn/{index}' for index in range(120) if index != 5]
    assert quarantine.read(tmp_path) == [
        quarantine.Entry('train', 5, BAD, 'hands.json', '5', 'keypoints', '21', '20')
    ]
    assert prepared.counts(tmp_path) == {
        'train': {'records': 119, 'published': 12, 'quarantined': 1},
        'val': {'records': 3, 'published': None, 'quarantined': 0},
    }
    assert not list(tmp_path.glob('*.quarantine.json'))


def test_what_was_left_out_before_a_kill_is_still_listed(tmp_path):
    prepare(tmp_path, train=120, fails_at=(5,))
    # As it was just before the end: the shards and their lists are there, the rest is not.
    shard = next(tmp_path.glob('drawn-train*-00000-of-00003'))
    quarantine.write_of_shard(shard, quarantine.read(tmp_path))
    for name in ('fingerprint.json', 'counts.json', 'quarantine.json', 'dataset_info.json'):
        (tmp_path / name).unlink()
    assert not prepared.is_prepared(tmp_path)
    prepare(tmp_path, train=120, fails_at=(5,))
    assert [entry.index for entry in quarantine.read(tmp_path)] == [5]
    assert len(prepared.PreparedSource(tmp_path)) == 119


def test_several_splits_and_whole_images(folder):
    both = prepared.PreparedSource(folder, split='train+val', crop='image')
    assert len(both) == 13
    sample = both[12]
    assert sample['image_id'] == 'drawn/2'
    height, width = sample['image'].shape[:2]
    np.testing.assert_allclose(sample['box'], [-0.5, -0.5, width - 0.5, height - 0.5])
    assert sample['norm_size'] == 48
    with pytest.raises(ValueError, match="'box' or 'image', got 'hand'"):
        prepared.PreparedSource(folder, crop='hand')


def test_a_data_set_is_found_by_its_name_in_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(ValueError, match=r'prepare it first: python datasets/prepare.py drawn'):
        prepared.PreparedSource(dataset='drawn')
    (tmp_path / 'handpose_jax').mkdir()
    (tmp_path / 'handpose_jax' / 'drawn').symlink_to(folder)
    assert len(prepared.PreparedSource(dataset='drawn')) == 10
    with pytest.raises(ValueError, match="expected the data set 'other', got 'drawn'"):
        prepared.PreparedSource(folder, dataset='other')
    with pytest.raises(ValueError, match=r'data\.root: expected the folder'):
        prepared.PreparedSource()


def test_unknown_split_and_folder_that_cannot_be_written(folder, tmp_path):
    with pytest.raises(ValueError, match='there are train, val'):
        prepared.PreparedSource(folder, split='test')
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot write'):
        prepare(tmp_path / 'file' / 'set')


def test_settings_file_is_plain_json(folder):
    assert json.loads((folder / 'prepare.json').read_text()) == SETTINGS
