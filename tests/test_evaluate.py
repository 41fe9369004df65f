"""Evaluation around a network that always says the same: what is counted, noted and left behind."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from handpose_jax import evaluate
from handpose_jax.evaluation import metrics
from handpose_jax.evaluation.protocols import PROTOCOLS
from handpose_jax.process import distributed
from handpose_jax.types import Prediction

SIZE = 16


class Hands:
    """Five hands, every other one a left hand, some with hidden keypoints, in boxes of their own.

    Args:
        crop: side of the crop over the box.
        head: norm_size over the side of the box.
    """

    def __init__(self, crop=2.2, head=1.0):
        self.crop, self.head = crop, head

    groups = ('',) * 5

    def __len__(self):
        return 5

    def side(self, index):
        return 10.0 + index

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        middle, half = np.array([30.0 + index, 25.0]), self.side(index) / 2
        keypoints = rng.uniform(middle - half, middle + half, (21, 2))
        keypoints[:2] = middle - half, middle + half
        reach = self.crop * half
        sample = {
            'image': np.full((60, 70, 3), 50, np.uint8),
            'keypoints': keypoints.astype(np.float32),
            'visible': np.arange(21) != 20,
            'box': np.concatenate([middle - reach, middle + reach]).astype(np.float32),
            'is_left': bool(index % 2),
            'norm_size': self.head * self.side(index),
            'image_id': self.image_id(index),
        }
        if index != 2:
            sample['hidden'] = np.arange(21) == index + 3
        return sample

    def image_id(self, index):
        return f'hand/{index}'

    def fingerprint(self):
        return 'hands'


@pytest.fixture
def evaluation(monkeypatch):
    """Makes an Evaluation whose network sees all keypoints in the first corner of the crop."""

    def corner(variables, images):
        count = len(images)
        return Prediction(jnp.full((count, 21, 2), -0.5), jnp.full((count, 21), 0.25))

    monkeypatch.setattr(evaluate.inference, 'make_predict_step', lambda model, decode: corner)

    def make(source, protocol='box', **data):
        monkeypatch.setattr(evaluate.sources, 'load_source', lambda **arguments: source)
        config = ConfigDict(
            {
                'protocol': protocol,
                'eval_split': 'test',
                'size': SIZE,
                'data': {'name': 'prepared', 'crop_scale': source.crop, **data},
                'eval_batch_size': 4,
                'pipeline': {'num_threads': 2},
                'decode': {},
            }
        )
        return evaluate.Evaluation(config, nn.Module(), distributed.data_mesh())

    return make


def test_an_evaluation_leaves_every_hand_in_the_frame_of_its_photograph(evaluation, tmp_path):
    source = Hands()
    made = evaluation(source)
    result = made.run({})
    made.write(str(tmp_path), 7, result)
    record = metrics.read_evaluation(tmp_path / 'evaluation.npz')
    assert record.errors.index.tolist() == list(range(5))
    assert record.image_id.tolist() == [f'hand/{index}' for index in range(5)]
    assert record.errors.is_left.tolist() == [False, True] * 2 + [False]
    for index in range(5):
        sample = source[index]
        x0, y0, x1, _ = sample['box']
        # The crop of a left hand is mirrored, so that its first corner is at the right.
        corner = (x1 if sample['is_left'] else x0, y0)
        np.testing.assert_allclose(
            record.errors.predicted_image[index], np.tile(corner, (21, 1)), rtol=1e-4
        )
        counted = sample['visible']
        np.testing.assert_array_equal(record.errors.valid[index], counted)
        truth = sample['keypoints'][counted]
        np.testing.assert_allclose(record.errors.truth_image[index, counted], truth, rtol=1e-4)
        error = np.linalg.norm(truth - corner, axis=1)
        np.testing.assert_allclose(record.errors.error_image[index, counted], error, rtol=1e-4)
        side = 2.2 * source.side(index)
        np.testing.assert_allclose(
            record.errors.error_crop[index, counted], error * 224 / side, rtol=1e-4
        )
        assert record.errors.norm_size[index] == source.side(index)
    assert (record.errors.confidence == 0.25).all()
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert written == {'step': 7, **result.summary}
    assert record.meta == {
        'protocol': 'box',
        'split': 'test',
        'step': 7,
        'size': SIZE,
        'notes': [],
    }


def test_hidden_keypoints_stay_with_their_hands_and_out_of_the_padding(evaluation):
    result = evaluation(Hands()).run({})
    expected = np.arange(21) == np.arange(5)[:, None] + 3
    # It does not tell.
    expected[2] = False
    np.testing.assert_array_equal(result.errors.hidden, expected)


class WithoutHands(Hands):
    """Records 0 and 3 show none."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index not in (0, 3):
            return sample
        nothing = {'keypoints': np.zeros((21, 2), np.float32), 'visible': np.zeros(21, bool)}
        region = {'box': np.float32([5, 5, 45, 45]), 'norm_size': 40.0, 'is_left': False}
        return {**sample, **nothing, **region, 'hidden': np.zeros(21, bool), 'no_hand': True}


def test_pictures_without_a_hand_count_in_no_error_and_are_told_apart(evaluation, tmp_path):
    whole, made = evaluation(Hands()).run({}), evaluation(WithoutHands())
    result = made.run({})
    assert result.errors.has_hand.tolist() == [False, True, True, False, True]
    hands = whole.errors.take([1, 2, 4])
    assert result.summary == {**hands.summary(PROTOCOLS['box']), 'split': 'test', 'notes': []}
    assert result.summary['hands'] == 3
    assert made.sheet(result).shape[0] == evaluation(Hands()).sheet(whole).shape[0]
    made.write(str(tmp_path), 7, result)
    record = metrics.read_evaluation(tmp_path / 'evaluation.npz')
    assert record.errors.has_hand.tolist() == result.errors.has_hand.tolist()
    assert record.of_hands().image_id.tolist() == ['hand/1', 'hand/2', 'hand/4']
    np.testing.assert_array_equal(record.of_hands().errors.error_image, hands.error_image)


def test_the_same_evaluation_runs_again(evaluation):
    made = evaluation(Hands())
    assert made.run({}).summary == made.run({}).summary


@pytest.mark.parametrize(
    ('protocol', 'source', 'data', 'message'),
    [
        ('cmu', Hands(), {}, "'cmu'.*the head size.*got data whose norm_size is the longest side"),
        ('box', Hands(head=1 / 0.7), {}, "'box'.*norm_size is neither.*cmu, dexter_object"),
        ('freihand_tutorial', Hands(), {}, "'freihand_tutorial'.*the image.*box, dexter_object"),
        ('box', Hands(crop=1.0), {'crop': 'image'}, "'box'.*the image's longest side"),
    ],
)
def test_data_measured_by_something_else_are_refused(evaluation, protocol, source, data, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluation(source, protocol, **data)
    assert 'record hand/0' in str(error.value)


@pytest.mark.parametrize(
    ('protocol', 'source', 'data'),
    [
        ('cmu', Hands(head=1 / 0.7), {}),
        ('rhd', Hands(), {}),
        ('dexter_object', Hands(crop=1.25), {}),
        ('freihand_tutorial', Hands(crop=1.0), {'crop': 'image'}),
    ],
)
def test_data_as_the_protocol_wants_them_need_no_note(evaluation, protocol, source, data):
    summary = evaluation(source, protocol, **data).run({}).summary
    assert summary['notes'] == []
    line = evaluate.describe(summary)
    assert line.endswith(f'5 hands, protocol {protocol}')
    assert all(np.isfinite(value) for value in evaluate.scalars(summary).values())


@pytest.mark.parametrize(
    ('protocol', 'source', 'note'),
    [
        ('box', Hands(crop=1.8), 'not the crops of the protocol: 1.8 x the box, not 2.2 x'),
        ('cmu', Hands(crop=2.0, head=1 / 0.7), '1.4 x the head size, not 1.54 x'),
        ('rhd', Hands(head=1 / 0.7), 'PCK@0.2 is not relative to the box: norm_size is neither'),
    ],
)
def test_what_departs_from_the_protocol_is_noted_wherever_numbers_are(
    evaluation, protocol, source, note
):
    made = evaluation(source, protocol)
    result = made.run({})
    (found,) = result.summary['notes']
    assert note in found
    assert f'protocol {protocol} (NOTE: {found})' in evaluate.describe(result.summary)
    assert made.record(3, result).meta['notes'] == [found]


def test_measures_of_a_protocol_are_shown_and_drawn(evaluation):
    aligned = evaluation(Hands(), 'rhd').run({}).summary
    assert f'root-aligned {aligned["epe_mean_root_aligned"]:.2f} px' in evaluate.describe(aligned)
    assert {'epe_mean_root_aligned', 'auc_root_aligned'} <= evaluate.scalars(aligned).keys()
    percent = evaluation(Hands(crop=1.0), 'freihand_tutorial', crop='image').run({}).summary
    assert f'{percent["epe_percent_of_side"]:.2f}% of the side' in evaluate.describe(percent)
    assert 'epe_percent_of_side' in evaluate.scalars(percent)
