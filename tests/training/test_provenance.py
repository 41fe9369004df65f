"""What W/run.json tells of a run, and that changed data is noticed."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from handpose_jax.data.sources import FolderSource, SketchSource
from handpose_jax.training import provenance


def make_config():
    return ConfigDict({'seed': 7, 'train_split': 'train', 'data': {'name': 'sketch'}})


def read(workdir):
    return json.loads((workdir / provenance.RUN_FILE).read_text())


def test_every_start_is_added(tmp_path):
    source = SketchSource(count=10)
    provenance.record(str(tmp_path), make_config(), source, first_step=0)
    provenance.record(str(tmp_path), make_config(), source, first_step=40)
    run = read(tmp_path)
    assert run['seed'] == 7
    assert run['data'] == {
        'name': 'sketch',
        'split': 'train',
        'records': 10,
        'fingerprint': source.fingerprint(),
    }
    assert [start['step'] for start in run['starts']] == [0, 40]
    start = run['starts'][1]
    assert start['command'] == sys.argv
    assert start['packages']['numpy'] == np.__version__
    assert start['device'] == 'cpu'
    # A run that begins anew has no earlier starts.
    provenance.record(str(tmp_path), make_config(), source, first_step=0)
    assert len(read(tmp_path)['starts']) == 1


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    provenance.record(str(tmp_path), make_config(), SketchSource(count=10), first_step=0)
    before = read(tmp_path)
    with pytest.raises(ValueError, match='training data has changed') as caught:
        provenance.record(str(tmp_path), make_config(), SketchSource(count=11), first_step=40)
    assert 'sketch/train/10' in str(caught.value)
    assert 'sketch/train/11' in str(caught.value)
    assert read(tmp_path) == before


@pytest.mark.parametrize('text', ['', '{', '[]', '{"data": 3}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / provenance.RUN_FILE).write_text(text)
    with pytest.raises(ValueError, match=r'run\.json: damaged'):
        provenance.record(str(tmp_path), make_config(), SketchSource(count=10), first_step=1)


def test_the_revision_is_git_s_own(tmp_path, monkeypatch):
    """In a repository that holds this package, and in one that only holds its environment."""
    package = tmp_path / 'handpose_jax'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (tmp_path / 'other.py').write_text('')
    monkeypatch.setattr(provenance.handpose_jax, '__file__', str(package / '__init__.py'))

    def git(*arguments):
        identity = ['-c', 'user.name=a', '-c', 'user.email=a@b']
        command = ['git', '-C', str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.git_revision() is None
    git('init', '-q')
    git('add', '.')
    git('commit', '-qm', 'first')
    revision = git('rev-parse', 'HEAD')
    assert provenance.git_revision() == revision
    (tmp_path / 'other.py').write_text('changed')
    assert provenance.git_revision() == f'{revision}+changes'
    inner = tmp_path / 'environment' / 'handpose_jax'
    inner.mkdir(parents=True)
    monkeypatch.setattr(provenance.handpose_jax, '__file__', str(inner / '__init__.py'))
    assert provenance.git_revision() is None


def write_folder(folder, names, size=8):
    folder.mkdir(exist_ok=True)
    points = np.stack([np.arange(21.0), np.arange(21.0)], axis=1).tolist()
    for name in names:
        cv2.imwrite(str(folder / name), np.full((32, 32, 3), size, np.uint8))
    records = [{'file': name, 'keypoints': points, 'split': 'train'} for name in names]
    (folder / 'annotations.json').write_text(json.dumps(records))


def test_a_folder_s_fingerprint_follows_annotations_and_images(tmp_path):
    write_folder(tmp_path / 'a', ['x.png', 'y.png'])
    write_folder(tmp_path / 'b', ['x.png', 'y.png'])
    first = FolderSource(tmp_path / 'a').fingerprint()
    assert FolderSource(tmp_path / 'b').fingerprint() == first
    annotations = tmp_path / 'b' / 'annotations.json'
    annotations.write_text(annotations.read_text().replace('20.0', '20.5'))
    assert FolderSource(tmp_path / 'b').fingerprint() != first
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a' / 'y.png'), noise)
    assert FolderSource(tmp_path / 'a').fingerprint() != first
