"""Squares without hands: away from every box, from the seed alone, and a data set as they are."""

import importlib
import json
import sys

import numpy as np
import pytest
from made import DATASETS
from PIL import Image

from handpose_jax.data.sources import FolderSource

sys.path.append(str(DATASETS))
cut_handless = importlib.import_module('cut_handless')

BOX = [60, 40, 100, 90]
ABOUT = {'source': 'rooms', 'licence': 'MIT', 'licence_confidence': 'stated', 'group': 'anna'}


def pictures(root, count=6):
    """Pictures of 200 x 160 that are red where the hand is, and grey noise elsewhere."""
    root.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        pixels = np.repeat(rng.integers(60, 200, (160, 200, 1), dtype=np.uint8), 3, axis=2)
        x0, y0, x1, y1 = BOX
        pixels[y0:y1, x0:x1] = (255, 0, 0)
        Image.fromarray(pixels).save(root / f'{number}.png')
        split = 'train' if number < 4 else 'test' if number == 5 else 'val'
        record = {'file': f'{number}.png', 'split': split, 'hands': [{'box': BOX}], **ABOUT}
        if number % 2:
            points = [[x, y] for x in (60, 80, 99) for y in range(40, 89, 8)]
            record = {**record, 'keypoints': points}
            del record['hands']
        records.append(record)
    records[-3]['unlabelled'] = True
    (root / 'annotations.json').write_text(json.dumps(records))
    return root


def run(root, out, *words, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['cut_handless.py', str(root), '--out', str(out), *words])
    cut_handless.main()
    return json.loads((out / 'annotations.json').read_text())


def test_what_is_cut_shows_no_hand_and_tells_where_it_is_from(tmp_path, monkeypatch, capsys):
    root = pictures(tmp_path / 'P')
    records = run(root, tmp_path / 'D', '--least', '20', monkeypatch=monkeypatch)
    assert f'{len(records)} squares' in capsys.readouterr().out
    assert {record['cut_from'] for record in records} == {f'P/{n}.png' for n in (0, 1, 2, 4)}
    for record in records:
        assert {key: record[key] for key in ABOUT} == ABOUT
    source = FolderSource(tmp_path / 'D')
    assert len(source) == len(records) > 6
    sides = set()
    for index, record in enumerate(records):
        sample = source[index]
        assert sample['no_hand']
        red = sample['image'][..., 0].astype(int) - sample['image'][..., 1]
        assert red.max() < 60, record
        x, y, side = record['cut_at']
        assert 0 <= x <= 200 - side
        assert 0 <= y <= 160 - side
        assert (record['width'], record['height']) == (side, side)
        sides.add(side)
        # The middle of the square, so that augmentation has photograph around it.
        low, high = sample['box'][0], sample['box'][2]
        assert high - low == pytest.approx(side / 1.4, abs=0.05)
        assert low + high == pytest.approx(side - 1, abs=0.05)
        assert high - low >= 20 - 0.8
    assert len(sides) > 2


def test_squares_of_a_picture_do_not_overlap_and_stay_in_its_upper_part():
    hands = np.array([[50.0, 20.0, 90.0, 60.0]])
    found = cut_handless.cut((100, 300), hands, np.random.default_rng(2), count=5, least=24)
    assert len(found) == 5
    seen = np.zeros((100, 300), int)
    for x, y, side in found:
        seen[y : y + side, x : x + side] += 1
    assert seen.max() == 1
    assert not seen[20:60, 50:90].any()
    upper = cut_handless.cut(
        (100, 300), hands, np.random.default_rng(2), count=5, least=24, upper=0.4
    )
    assert upper
    assert max(y + side for _, y, side in upper) <= 40
    everywhere = np.array([[0.0, 0.0, 300.0, 100.0]])
    assert not cut_handless.cut((100, 300), everywhere, np.random.default_rng(0), count=5, least=24)


def test_the_seed_and_the_name_decide(tmp_path, monkeypatch):
    root = pictures(tmp_path / 'P')
    options = ('--least', '20', '--split', 'val')
    first, again, other = (
        run(root, tmp_path / name, *options, '--seed', seed, monkeypatch=monkeypatch)
        for name, seed in (('A', '0'), ('B', '0'), ('C', '1'))
    )
    assert first == again != other
    assert {record['split'] for record in first} == {'val'}
    for record in first:
        one, two = ((tmp_path / name / record['file']).read_bytes() for name in 'AB')
        assert one == two


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('--least', '500'), 'no picture has room'),
        (('--upper', '0'), '--upper: expected a part above 0'),
        (('--count', '0'), '--count: expected 1 or more, got 0'),
    ],
)
def test_what_is_refused_is_one_sentence(tmp_path, monkeypatch, words, message):
    root = pictures(tmp_path / 'P', 3)
    with pytest.raises(SystemExit, match=message):
        run(root, tmp_path / 'D', *words, monkeypatch=monkeypatch)


def test_nothing_is_overwritten_and_broken_annotations_are_named(tmp_path, monkeypatch):
    root = pictures(tmp_path / 'P', 3)
    with pytest.raises(SystemExit, match='there is a data set already'):
        run(root, root, monkeypatch=monkeypatch)
    (root / 'annotations.json').write_text('[{"file": "0.png"}]')
    with pytest.raises(
        SystemExit, match=r"annotations\.json: expected a list of records with 'file'"
    ):
        run(root, tmp_path / 'D', monkeypatch=monkeypatch)
