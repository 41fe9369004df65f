"""The scripts in datasets/, run as datasets/README.md has them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from handpose_jax.data.prepared import PreparedSource
from handpose_jax.data.sources import SketchSource

ROOT = Path(__file__).parents[2]


def run(*arguments, folder):
    """A script as users run it, of a copy of datasets/."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A copy of datasets/ with the README's builder in it, and photographs for it."""
    folder = tmp_path_factory.mktemp('place')
    shutil.copytree(ROOT / 'datasets', folder / 'datasets')
    text = (ROOT / 'datasets' / 'README.md').read_text()
    (builder,) = re.findall(r'```python\n(""".*?)```', text, re.DOTALL)
    path = folder / 'datasets' / 'my_hands' / 'my_hands_dataset_builder.py'
    path.parent.mkdir()
    path.write_text(builder)
    (folder / 'PHOTOS').mkdir()
    source = SketchSource(count=12, split='train')
    for index in range(12):
        sample = source[index]
        cv2.imwrite(str(folder / 'PHOTOS' / f'{index:03d}.jpg'), sample['image'][..., ::-1])
        np.save(folder / 'PHOTOS' / f'{index:03d}.npy', sample['keypoints'])
    return folder


def test_the_builder_of_the_readme_prepares_hands_in_other_processes(place):
    arguments = 'datasets/prepare.py', 'my_hands', '--source', 'PHOTOS', '--data_dir', 'D3'
    result = run(*arguments, folder=place)
    assert result.returncode == 0, result.stderr
    train = PreparedSource(place / 'D3', split='train')
    val = PreparedSource(place / 'D3', split='val')
    assert (len(train), len(val)) == (11, 1)
    for source, index, number in ((train, 0, 1), (train, 10, 11), (val, 0, 0)):
        sample = source[index]
        expected = SketchSource(count=12, split='train')[number]
        np.testing.assert_array_equal(sample['keypoints'], expected['keypoints'])
        assert sample['image'].shape == expected['image'].shape
    options = '--out', 'sheet.png', '--report', 'report.json', '--suspects', 'suspects.png'
    browsed = run('datasets/browse.py', 'D3', *options, folder=place)
    assert browsed.returncode == 0, browsed.stderr
    assert cv2.imread(str(place / 'sheet.png')) is not None
    assert 'Records: 11 in train, 1 in val.' in browsed.stdout
    report = json.loads((place / 'report.json').read_text())
    assert report['records'] == {'train': 11, 'val': 1}
    # Flat drawings may pass for odd hands, but nothing else is wrong with them.
    assert not {'image', 'leak', 'box', 'visibility', 'far outside'} & report['checks'].keys()


def test_help_names_every_data_set_and_what_it_is(place):
    text = ' '.join(run('datasets/prepare.py', '--help', folder=place).stdout.split())
    assert 'synthetic_hands Rendered hands' in text
    assert 'my_hands My hands: photographs' in text


def test_what_a_builder_refuses_is_one_line_and_no_traceback(place):
    (place / 'empty').mkdir()
    arguments = 'datasets/prepare.py', 'my_hands', '--source', 'empty', '--data_dir', 'D4'
    result = run(*arguments, folder=place)
    assert result.returncode == 1
    assert result.stderr == 'error: --source empty: expected 10 photographs or more, got 0\n'
