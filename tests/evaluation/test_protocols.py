"""The protocols hold the published figures and are found by name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from handpose_jax import hand
from handpose_jax.evaluation import protocols
from handpose_jax.evaluation.metrics import KeypointErrors

DOCS = Path(__file__).parents[2] / 'docs' / 'protocols.md'


@pytest.mark.parametrize('name', protocols.PROTOCOLS)
def test_an_entry_is_complete_and_bears_its_key(name):
    protocol = protocols.get_protocol(name)
    assert protocol.name == name
    assert protocol.description
    assert protocol.source
    assert protocol.data
    assert protocol.facts
    assert {fact.confidence for fact in protocol.facts} <= set(protocols.CONFIDENCE)
    assert protocol.crop_scale >= 1
    assert len(set(protocol.keypoints)) == len(protocol.keypoints) > 0
    assert set(protocol.keypoints) <= set(range(21))


def test_cmu_is_the_papers():
    cmu = protocols.get_protocol('cmu')
    assert cmu.crop_scale == pytest.approx(1.54)
    assert cmu.normaliser == 'head_size'
    assert (cmu.max_threshold, cmu.steps) == (1.0, 100)


# Written out from the publications once more, so that a slip of the keyboard shows.
PUBLISHED = {
    'box': '',
    'cmu': '.917 11.75 7.34 .919 10.88 6.95 .901 13.60 9.11 .924 10.40 6.40 .917 11.14 6.54',
    'rhd': '9.135 5.001 .724',
    'dexter_object': '',
    'tzionas': '',
    'freihand_tutorial': '4.5',
    'freihand': '',
    'mmpose': '.694 9.70 .713 9.00 .745 7.77 .985 .883 2.79 .992 .903 2.18 .999 .868 3.27',
}


@pytest.mark.parametrize('name', protocols.PROTOCOLS)
def test_the_published_numbers_are_all_there_and_comparable_with_ours(name):
    protocol = protocols.get_protocol(name)
    expected = [float(number) for number in PUBLISHED[name].split()]
    assert [row.value for row in protocol.published] == expected
    ours = KeypointErrors.empty().summary(protocol)
    assert {row.metric for row in protocol.published} <= set(ours)
    assert all(row.source and row.system for row in protocol.published)


@pytest.mark.parametrize(
    ('name', 'crop', 'normaliser', 'end', 'hidden'),
    [
        ('rhd', 2.2, 'pixel', 30, False),
        ('dexter_object', 1.25, 'pixel', 30, True),
        ('tzionas', 2.2, 'pixel', 15, True),
        ('freihand_tutorial', 1, 'image', 0.3, True),
        ('freihand', 2.2, 'pixel', 30, True),
        ('mmpose', 1.25, 'pixel', 30, False),
    ],
)
def test_crop_normaliser_and_range(name, crop, normaliser, end, hidden):
    protocol = protocols.get_protocol(name)
    assert (protocol.crop_scale, protocol.normaliser) == (crop, normaliser)
    assert (protocol.max_threshold, protocol.hidden) == (end, hidden)


def test_dexter_object_has_only_fingertips():
    assert protocols.get_protocol('dexter_object').keypoints == (4, 8, 12, 16, 20)
    names = [hand.KEYPOINT_NAMES[k] for k in protocols.get_protocol('dexter_object').keypoints]
    assert all(name.endswith('_tip') for name in names)


def test_the_documentation_is_that_of_the_entries():
    command = "python -c 'from handpose_jax import protocols; print(protocols.markdown())'"
    text = DOCS.read_text()
    assert protocols.markdown() in text, f'put the output of {command} into {DOCS.name}'
    for mark, meaning in protocols.CONFIDENCE.items():
        assert f'**{mark}** {meaning}' in text


def test_box_is_relative_to_the_hands_own_box():
    box = protocols.get_protocol('box')
    assert (box.crop_scale, box.normaliser) == (2.2, 'box')
    assert (box.max_threshold, box.steps) == (0.5, 100)


@pytest.mark.parametrize('name', protocols.PROTOCOLS)
def test_the_thresholds_are_evenly_spaced_from_zero_to_the_end(name):
    protocol = protocols.get_protocol(name)
    expected = np.linspace(0, protocol.max_threshold, protocol.steps + 1)
    np.testing.assert_allclose(protocol.thresholds(), expected, rtol=1e-15, atol=0)
    assert protocol.thresholds()[0] == 0
    assert protocol.thresholds()[-1] == protocol.max_threshold


def test_an_unknown_name_is_told_the_known_ones_and_the_nearest():
    with pytest.raises(ValueError, match=r"box, cmu.*got 'cmuu'; did you mean 'cmu'\?"):
        protocols.get_protocol('cmuu')


def test_a_name_near_nothing_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"got 'xyzzy'$"):
        protocols.get_protocol('xyzzy')


def test_an_entry_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocols.get_protocol('cmu').steps = 20
