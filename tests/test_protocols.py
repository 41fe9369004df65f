"""The protocols hold the published figures and are found by name."""

import dataclasses

import numpy as np
import pytest

from handpose_jax import protocols


@pytest.mark.parametrize('name', protocols.PROTOCOLS)
def test_an_entry_is_complete_and_bears_its_key(name):
    protocol = protocols.get_protocol(name)
    assert protocol.name == name
    assert protocol.description
    assert protocol.source
    assert protocol.crop_scale >= 1
    assert len(set(protocol.keypoints)) == len(protocol.keypoints) > 0
    assert set(protocol.keypoints) <= set(range(21))


def test_cmu_is_the_papers():
    cmu = protocols.get_protocol('cmu')
    assert cmu.crop_scale == pytest.approx(1.54)
    assert cmu.normaliser == 'head_size'
    assert (cmu.max_threshold, cmu.steps) == (1.0, 100)


def test_box_is_relative_to_the_hands_own_box():
    box = protocols.get_protocol('box')
    assert (box.crop_scale, box.normaliser) == (2.2, 'box')
    assert (box.max_threshold, box.steps) == (0.5, 100)


@pytest.mark.parametrize('name', protocols.PROTOCOLS)
def test_the_thresholds_are_evenly_spaced_from_zero_to_the_end(name):
    protocol = protocols.get_protocol(name)
    expected = np.linspace(0, protocol.max_threshold, protocol.steps + 1)
    np.testing.assert_allclose(protocol.thresholds(), expected, rtol=0, atol=1e-15)
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
