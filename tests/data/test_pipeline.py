"""The stream of batches: the same for any number of threads, resumable, complete, loud."""

import itertools
import json
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from handpose_jax.data import pipeline
from handpose_jax.data.mixture import MixtureSource
from handpose_jax.data.sources import FolderSource
from handpose_jax.data.transforms import Augmentation

AUGMENTATION = Augmentation(rotation=180.0, brightness=0.2, noise=0.5, blur=0.5, occlusion=0.5)


class Squares:
    """A source in memory; `groups` has one letter for each record."""

    def __init__(self, groups):
        self.groups = tuple(groups)

    def __len__(self):
        return len(self.groups)

    def fingerprint(self):
        return 'squares'

    def image_id(self, index, /):
        return f'square {index}'

    def __getitem__(self, index, /):
        rng = np.random.default_rng(index)
        return {
            'image': rng.integers(0, 256, (20, 24, 3), dtype=np.uint8),
            'keypoints': rng.uniform(0, 20, (21, 2)).astype(np.float32),
            'visible': rng.random(21) < 0.8,
            'box': np.array([0, 0, 18, 18], np.float32),
            'is_left': bool(index % 2),
            'norm_size': 10.0 + index,
            'image_id': self.image_id(index),
        }


class Broken(Squares):
    """One record fails in the way of the given exception."""

    def __init__(self, groups, bad, error):
        super().__init__(groups)
        self._bad, self._error = bad, error

    def __getitem__(self, index, /):
        if index == self._bad:
            raise self._error
        return super().__getitem__(index)


def train(source, count, **kwargs):
    """The first batches of a training stream."""
    defaults = {'size': 16, 'batch_size': 4, 'seed': 7, 'augmentation': AUGMENTATION}
    iterator = iter(pipeline.train_dataset(source, **(defaults | kwargs)))
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def evaluate(source, **kwargs):
    return list(pipeline.eval_batches(source, **({'size': 16, 'batch_size': 4} | kwargs)))


def indices(batches):
    return np.concatenate([batch['index'] for batch in batches]).tolist()


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_have_the_documented_arrays():
    found = {k: (v.dtype.name, v.shape) for k, v in train(Squares('a' * 9), 1)[0].items()}
    assert found == {
        'image': ('uint8', (4, 16, 16, 3)),
        'keypoints': ('float32', (4, 21, 2)),
        'visible': ('bool', (4, 21)),
        'norm_size': ('float32', (4,)),
        'image_from_crop': ('float32', (4, 2, 3)),
        'valid': ('bool', (4,)),
        'index': ('int32', (4,)),
        'hidden': ('bool', (4, 21)),
        'has_hand': ('bool', (4,)),
    }
    padded = evaluate(Squares('a' * 9))[-1]
    assert {k: (v.dtype.name, v.shape) for k, v in padded.items()} == found


def test_examples_are_those_of_their_record():
    source = Squares('ab' * 5)
    for batch in train(source, 3, balance=0.0) + evaluate(source):
        for row in np.nonzero(batch['valid'])[0]:
            sample = source[int(batch['index'][row])]
            assert batch['norm_size'][row] == sample['norm_size']
            np.testing.assert_array_equal(batch['visible'][row], sample['visible'])
            affine = batch['image_from_crop'][row]
            back = batch['keypoints'][row] @ affine[:, :2].T + affine[:, 2]
            np.testing.assert_allclose(back, sample['keypoints'], atol=1e-4)


@pytest.mark.parametrize('balance', [1.0, 0.5])
def test_the_stream_does_not_depend_on_threads(balance):
    source = Squares('aaaaaaabbc')
    streams = [train(source, 8, num_threads=n, balance=balance) for n in (0, 1, 2)]
    for stream in streams[1:]:
        assert_same(stream, streams[0])


def test_the_seed_decides_order_and_augmentation():
    source = Squares('a' * 30)
    assert_same(train(source, 4), train(source, 4))
    assert indices(train(source, 4)) != indices(train(source, 4, seed=8))
    one = Squares('a')
    first, other = train(one, 1)[0], train(one, 1, seed=8)[0]
    assert (first['image_from_crop'] != other['image_from_crop']).any()


@pytest.mark.parametrize('balance', [1.0, 0.0])
@pytest.mark.parametrize('threads', [0, 2])
def test_a_saved_state_continues_the_stream(balance, threads):
    """Also through JSON, into another iterator, with another number of threads."""
    source = Squares('aaaaaaabbc')
    whole = train(source, 9, balance=balance)
    kwargs = {'size': 16, 'batch_size': 4, 'seed': 7, 'augmentation': AUGMENTATION}
    first = iter(pipeline.train_dataset(source, **kwargs, balance=balance, num_threads=threads))
    start = list(itertools.islice(first, 4))
    state = json.dumps(first.get_state())
    ahead = list(itertools.islice(first, 3))
    second = iter(pipeline.train_dataset(source, **kwargs, balance=balance, num_threads=1))
    next(second)
    second.set_state(json.loads(state))
    rest = list(itertools.islice(second, 5))
    assert_same(start + rest, whole)
    assert_same(ahead, rest[:3])
    first.close()
    second.close()


def test_each_epoch_shows_every_record_once_in_another_order():
    drawn = np.array(indices(train(Squares('a' * 20), 15))).reshape(3, 20)
    assert (np.sort(drawn) == np.arange(20)).all()
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 3
    assert not (drawn == np.arange(20)).all(axis=1).any()


@pytest.mark.parametrize('balance', [1.0, 0.0])
def test_a_record_is_augmented_differently_each_time(balance):
    batches = train(Squares('a'), 3, balance=balance)
    maps = np.concatenate([batch['image_from_crop'] for batch in batches]).reshape(12, 6)
    assert len(np.unique(maps, axis=0)) == 12


def test_fewer_records_than_a_batch():
    batch = train(Squares('abc'), 1, batch_size=16)[0]
    assert batch['image'].shape[0] == 16
    assert batch['valid'].all()
    assert sorted(Counter(batch['index'].tolist()).values()) == [5, 5, 6]


@pytest.mark.parametrize('balance', [1.0, 0.5, 0.0])
def test_balance(balance):
    groups = 'a' * 32 + 'b' * 8 + 'c' * 2
    drawn = indices(train(Squares(groups), 42, size=1, augmentation=None, balance=balance))
    shares = np.array([32, 8, 2.0]) ** balance
    counts = Counter(groups[index] for index in drawn)
    actual = np.array([counts[group] for group in 'abc']) / len(drawn)
    np.testing.assert_allclose(actual, shares / shares.sum(), atol=0.015)
    # Within a group all records come equally often, to one.
    uses = Counter(drawn)
    for members in (range(32), range(32, 40), range(40, 42)):
        times = [uses[member] for member in members]
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize('balance', [{'one': 3.0, 'two': 1.0}, 1.0])
def test_groups_inside_the_parts_of_a_mixture_are_balanced(balance):
    parts = {'one': Squares('a' * 16 + 'b' * 4), 'two': Squares('a' * 5)}
    drawn = indices(train(MixtureSource(parts), 60, size=1, balance=balance, balance_within=0.5))
    counts = np.array([np.sum(np.less(drawn, end)) for end in (16, 20, 25)]) / len(drawn)
    share = 0.75 if isinstance(balance, dict) else 0.8
    # Of the first part two thirds are of the group that is four times as large.
    np.testing.assert_allclose(counts, [share * 2 / 3, share, 1], atol=0.015)
    uses = Counter(drawn)
    assert max(uses[i] for i in range(16)) - min(uses[i] for i in range(16)) <= 1


def test_weights_of_groups():
    groups = 'a' * 32 + 'b' * 8 + 'c' * 2
    weights = {'a': 1.0, 'b': 3.0, 'c': 0.0}
    drawn = indices(train(Squares(groups), 42, size=1, augmentation=None, balance=weights))
    counts = Counter(groups[index] for index in drawn)
    assert set(counts) == {'a', 'b'}
    assert counts['a'] / len(drawn) == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ({'a': 1.0}, r"each of the groups \['a', 'b'\], got weights for \['a'\]"),
        ({'a': 1.0, 'b': 1.0, 'x': 1.0}, "got weights for .*'x'"),
        ({'a': 1.0, 'b': -1.0}, 'weights of 0 or more'),
        ({'a': 0.0, 'b': 0.0}, 'one above 0'),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        train(Squares('aab'), 2, size=1, balance=weights)


def test_balanced_groups_are_shuffled_and_independent():
    drawn = np.array(indices(train(Squares('a' * 16 + 'b' * 16), 16, balance=0.0, size=1)))
    a, b = drawn[drawn < 16], drawn[drawn >= 16] - 16
    assert sorted(a[:16]) == sorted(b[:16]) == list(range(16))
    assert a[:16].tolist() != b[:16].tolist()
    assert a[:16].tolist() != a[16:].tolist()


@pytest.mark.parametrize('balance', [1.0, 0.0])
def test_shards_partition_the_stream(balance):
    source = Squares('a' * 12 + 'b' * 4)
    whole = train(source, 12, balance=balance)
    parts = [train(source, 4, balance=balance, shard_index=s, shard_count=3) for s in range(3)]
    dealt = [part[step] for step in range(4) for part in parts]
    assert_same(dealt, whole)


def test_every_shard_sees_every_group():
    """An equal mix of two groups alternates: dealing single examples would separate them."""
    source = Squares('a' * 8 + 'b' * 8)
    for shard in range(2):
        drawn = indices(train(source, 6, balance=0.0, shard_index=shard, shard_count=2))
        assert 10 <= sum(index < 8 for index in drawn) <= 14


@pytest.mark.parametrize('threads', [0, 1, 3])
@pytest.mark.parametrize('count', [1, 7, 8, 9])
def test_evaluation_covers_each_record_once_in_order(count, threads):
    batches = evaluate(Squares('a' * count), num_threads=threads)
    valid = np.concatenate([batch['valid'] for batch in batches])
    assert [batch['image'].shape[0] for batch in batches] == [4] * -(-count // 4)
    assert np.array(indices(batches))[valid].tolist() == list(range(count))


def test_padding_is_harmless():
    batch = evaluate(Squares('a' * 5))[-1]
    assert batch['valid'].tolist() == [True, False, False, False]
    assert not batch['image'][1:].any()
    assert not batch['visible'][1:].any()
    assert not batch['hidden'][1:].any()
    assert batch['has_hand'].all()
    assert (batch['norm_size'][1:] == 1).all()
    assert (batch['index'][1:] == -1).all()
    assert np.isfinite(batch['keypoints']).all()
    assert np.linalg.det(batch['image_from_crop'][1:, :, :2]) == pytest.approx([1, 1, 1])


def test_evaluation_can_be_repeated():
    batches = pipeline.eval_batches(Squares('abcde'), size=16, batch_size=2)
    assert_same(list(batches), list(batches))


@pytest.mark.parametrize('count', [1, 8, 9, 13])
def test_evaluation_shards_have_equal_length_and_cover_all(count):
    parts = [evaluate(Squares('a' * count), shard_index=s, shard_count=3) for s in range(3)]
    assert len({len(part) for part in parts}) == 1
    drawn = [index for part in parts for index in indices(part)]
    assert sorted(index for index in drawn if index >= 0) == list(range(count))


@pytest.mark.parametrize('threads', [0, 2])
def test_a_damaged_image_stops_the_run_and_is_named(tmp_path, threads):
    points = [[5 + k, 9 + k % 7] for k in range(21)]
    records = [{'file': f'{k}.png', 'keypoints': points, 'id': f'hand {k}'} for k in range(12)]
    (tmp_path / 'annotations.json').write_text(json.dumps(records))
    for k in range(12):
        Image.fromarray(np.full((30, 30, 3), k, np.uint8)).save(tmp_path / f'{k}.png')
    damaged = tmp_path / '6.png'
    damaged.write_bytes(damaged.read_bytes()[:50])
    source = FolderSource(tmp_path)
    message = r'annotations\.json: record 6 \(hand 6\): .*6\.png: .*truncated'
    batches = iter(pipeline.eval_batches(source, size=16, batch_size=4, num_threads=threads))
    assert next(batches)['index'].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=message):
        next(batches)
    batches.close()
    with pytest.raises(ValueError, match=message):
        train(source, 3, num_threads=threads)


@pytest.mark.parametrize('error', [ValueError('too dark'), OSError('too dark')])
def test_a_record_is_named_when_its_source_does_not(error):
    source = Broken('a' * 8, 5, error)
    with pytest.raises(ValueError, match=r'record 5 \(square 5\): too dark'):
        evaluate(source)
    with pytest.raises(ValueError, match=r'record 5 \(square 5\): too dark'):
        train(source, 2)


def test_a_mistake_in_a_source_is_not_disguised():
    with pytest.raises(KeyError, match='colour'):
        evaluate(Broken('a' * 8, 5, KeyError('colour')))


@pytest.mark.parametrize('make', [train, lambda source, _: evaluate(source)])
def test_an_empty_source(make):
    with pytest.raises(ValueError, match='holds no records'):
        make(Squares(''), 1)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('size', 0),
        ('batch_size', 0),
        ('num_threads', -1),
        ('shard_count', 0),
        ('shard_index', 1),
        ('shard_index', -1),
        ('seed', -1),
        ('seed', 2**32),
        ('balance', -0.1),
        ('balance', 1.1),
        ('balance', float('nan')),
        ('balance_within', 1.1),
    ],
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f'{name} must be'):
        train(Squares('abc'), 1, **{name: value})


def test_the_work_of_the_pipeline_can_be_sent_to_another_process():
    example = pipeline._TrainExample(Squares('abc'), 16, AUGMENTATION)
    copy = pickle.loads(pickle.dumps(example))
    one, other = (f(1, np.random.default_rng(0)) for f in (example, copy))
    np.testing.assert_array_equal(one['image'], other['image'])


def test_tensorflow_is_not_imported():
    code = 'import sys; import handpose_jax.data.pipeline; print("tensorflow" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'False'
