"""Common mistakes with all commands but train: a few lines, no traceback, and the remedy.

tests/test_mistakes.py has the settings of a training.
"""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from prepare import load_builder

from handpose_jax import cli, config, train
from handpose_jax.data.sources import SketchSource

pytestmark = [
    pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
    # Users have no run-time type checks, and see the package's own errors.
    pytest.mark.usefixtures('unchecked'),
]

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with what people have, whole and half-written."""
    folder = tmp_path_factory.mktemp('place')
    for name in ('configs', 'datasets', 'benchmarks'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'empty').mkdir()
    (folder / 'text').write_text('not what you think\n')
    for name in ('text.jpg', 'text.tflite', 'text.onnx', 'text.json'):
        shutil.copy(folder / 'text', folder / name)
    cv2.imwrite(str(folder / 'photo.jpg'), SketchSource(count=1, split='train')[0]['image'])
    (folder / 'other').mkdir()
    shutil.copy(folder / 'photo.jpg', folder / 'other')
    photograph = (folder / 'photo.jpg').read_bytes()
    (folder / 'half.jpg').write_bytes(photograph[: len(photograph) // 2])
    (folder / 'begun.jpg').write_bytes(photograph[:20])
    for name in ('folder', 'cmu', 'coco_wholebody'):
        writer = load_builder(ROOT / 'datasets' / name / f'{name}_dummy_data.py')
        writer.write(folder / name)
    annotations = (folder / 'folder' / 'annotations.json').read_bytes()
    shutil.copytree(folder / 'folder', folder / 'half')
    (folder / 'half' / 'annotations.json').write_bytes(annotations[:1000])
    (folder / 'archive').mkdir()
    (folder / 'archive' / 'hand_labels.zip').write_bytes(b'PK\3\4' + bytes(100))
    (folder / 'half_evaluated').mkdir()
    np.savez(folder / 'half_evaluated' / 'evaluation.npz', errors=np.zeros(1000))
    whole = (folder / 'half_evaluated' / 'evaluation.npz').read_bytes()
    (folder / 'half_evaluated' / 'evaluation.npz').write_bytes(whole[:500])
    (folder / 'odd_evaluated' / 'evaluation.npz').mkdir(parents=True)
    (folder / 'half_prepared').mkdir()
    (folder / 'half_prepared' / 'fingerprint.json').write_text('{"sha')
    (folder / 'half_prepared' / 'dataset_info.json').write_text('{"na')
    (folder / 'other.json').write_text(json.dumps({'benchmark': 'doctor'}))
    return folder


@pytest.fixture(scope='module')
def trained(place):
    """A trained and evaluated network, W."""
    settings = config.load(ROOT / 'configs' / 'quickstart.py:smoke')
    settings.update_from_flattened_dict({'num_steps': 2, 'data.count': 100})
    train.train(settings, str(place / 'W'))
    return place / 'W'


def start(words):
    if words[0] == 'handpose':
        cli.main(words[1:])
    else:
        runpy.run_path(words[0], run_name='__main__')


@pytest.fixture
def said_by(place, capfd, monkeypatch):
    """What a command that must fail prints."""
    monkeypatch.chdir(place)
    monkeypatch.setenv('XDG_CACHE_HOME', str(place / 'cache'))
    monkeypatch.delenv('HANDPOSE_ASSETS', raising=False)
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))

    def run(line):
        words = line.split()
        for name in ('D', 'new', 'out'):
            shutil.rmtree(place / name, ignore_errors=True)
        monkeypatch.setattr(sys, 'argv', words)
        with pytest.raises(SystemExit) as caught:
            start(words)
        code = caught.value.code
        assert code not in (0, None)
        printed = capfd.readouterr().err
        told = code if isinstance(code, str) else printed
        assert len(told.strip().splitlines()) <= 5, told
        assert 'Traceback' not in printed + told
        return told

    return run


MISTAKES = [
    ('handpose predict nothere.jpg --workdir W --out out', r'nothere\.jpg'),
    ('handpose predict empty --workdir W --out out', 'empty'),
    ('handpose predict text.jpg --workdir W --out out', r'text\.jpg'),
    ('handpose predict begun.jpg --workdir W --out out', r'begun\.jpg'),
    ('handpose predict photo.jpg other/photo.jpg --workdir W --out out', 'named photo.*--out'),
    ('handpose predict photo.jpg --workdir nowhere --out out', 'nowhere'),
    ('handpose predict photo.jpg --workdir empty --out out', 'empty'),
    ('handpose predict photo.jpg --workdir text --out out', 'text'),
    ('handpose predict photo.jpg --workdir text.onnx --out out', r'text\.onnx'),
    ('handpose predict photo.jpg --workdir text.tflite --out out', r'text\.tflite'),
    ('handpose predict photo.jpg --workdir W', '--out'),
    ('handpose predict photo.jpg --out out', '--workdir'),
    ('handpose predict --workdir W --out out', 'photos'),
    ('handpose predict photo.jpg --workdir W --out out --hand both', "--hand.*'both'.*left"),
    ('handpose predict photo.jpg --workdir W --out out --box 1,2,3', '--box.*x0,y0,x1,y1'),
    ('handpose predict photo.jpg --workdir W --out out --box 50,50,10,10', 'box'),
    ('handpose predict photo.jpg --workdir W --out out --bocks 1,2,3,4', '--bocks'),
    ('handpose calibrate --workdir nowhere', 'nowhere.*handpose evaluate'),
    ('handpose calibrate --workdir empty', 'empty.*handpose evaluate'),
    ('handpose calibrate --workdir text', 'text.*handpose evaluate'),
    ('handpose calibrate --workdir half_evaluated', 'half_evaluated.*handpose evaluate'),
    ('handpose calibrate --workdir odd_evaluated', 'odd_evaluated.*handpose evaluate'),
    ('handpose calibrate', '--workdir'),
    ('handpose calibrate --wokdir W', '--workdir'),
    ('handpose report nowhere --out out', 'nowhere.*train'),
    ('handpose report empty --out out', 'empty.*train'),
    ('handpose report text --out out', 'text.*workdir'),
    ('handpose report half_evaluated --out out', 'half_evaluated.*train'),
    ('handpose report W', '--out'),
    ('handpose report --out out', 'W'),
    ('handpose report W --out out --worst -1', 'worst.*-1'),
    ('handpose report W --out out --worst few', "--worst.*'few'"),
    ('handpose report W --out out --wurst 3', '--wurst'),
    ('handpose export --only stablehlo --workdir nowhere', 'nowhere'),
    ('handpose export --only stablehlo --workdir empty', 'empty'),
    ('handpose export --only stablehlo --workdir text', 'text'),
    ('handpose export', '--workdir'),
    ('handpose export --workdir W --only nothing', "stablehlo.*'nothing'"),
    ('handpose export --only stablehlo --workdir nowhere --num_images 0', 'num_images.*0'),
    ('handpose export --workdir W --num_images many', "--num_images.*'many'"),
    ('handpose export --workdir W --format onnx', '--format'),
    ('datasets/prepare.py', 'NAME'),
    ('datasets/prepare.py nothing', "'nothing'.*cmu"),
    ('datasets/prepare.py cmu', '--manual_dir'),
    ('datasets/prepare.py cmu --manual_dir nowhere', '--manual_dir nowhere'),
    ('datasets/prepare.py cmu --manual_dir text', '--manual_dir text'),
    ('datasets/prepare.py cmu --manual_dir empty', '--manual_dir empty'),
    ('datasets/prepare.py cmu --manual_dir archive', 'hand_labels.zip'),
    ('datasets/prepare.py cmu --manual_dir cmu --data_dir text/D', 'text'),
    ('datasets/prepare.py cmu --manual_dir cmu --data_dir text', 'text'),
    ('datasets/prepare.py cmu --manual_dir cmu --data_dir /proc/x', '/proc/x'),
    ('datasets/prepare.py cmu --manual_dir cmu --data_dir D --workers many', "--workers.*'many'"),
    ('datasets/prepare.py cmu --manual_dir cmu --data_dir D --workers 0', 'workers.*0'),
    ('datasets/prepare.py cmu --manual_dir cmu --data_dir D --workers -1', 'workers.*-1'),
    ('datasets/prepare.py cmu --manual_dir cmu --data_dri D', '--data_dri'),
    ('datasets/prepare.py folder --manual_dir nowhere', 'nowhere'),
    ('datasets/prepare.py folder --manual_dir empty', 'empty'),
    ('datasets/prepare.py folder --manual_dir half', r'half/annotations\.json'),
    ('datasets/prepare.py folder --manual_dir folder --name a/b', '--name.*a/b'),
    ('datasets/prepare.py coco_wholebody --manual_dir empty', 'empty'),
    ('datasets/prepare.py coco_wholebody --manual_dir empty --order other', "--order.*'other'"),
    ('datasets/prepare.py coco_wholebody --manual_dir coco_wholebody --annotations no.json '
     '--images train2017 --split train', r'no\.json'),
    ('datasets/prepare.py coco_wholebody --manual_dir half --annotations annotations.json '
     '--images . --split train --data_dir D', r'annotations\.json'),
    ('datasets/prepare.py freihand --manual_dir empty --versions some', "--versions.*'some'"),
    ('datasets/prepare.py rhd --manual_dir nowhere', 'nowhere'),
    ('datasets/prepare.py shp --manual_dir nowhere', 'nowhere'),
    ('datasets/prepare.py dexter_object --manual_dir nowhere', 'nowhere'),
    ('datasets/prepare.py synthetic_hands --count -1 --data_dir D', 'count.*-1'),
    ('datasets/prepare.py synthetic_hands --count 0 --data_dir D', 'count.*0'),
    ('datasets/prepare.py synthetic_hands --count few --data_dir D', "--count.*'few'"),
    ('datasets/prepare.py synthetic_hands --count 1 --size 0 --data_dir D', 'size.*0'),
    ('datasets/prepare.py synthetic_hands --count 1 --seed -1 --data_dir D', 'seed.*-1'),
    ('datasets/prepare.py synthetic_hands --count 1 --rig no.glb --data_dir D', r'no\.glb'),
    ('datasets/prepare.py synthetic_hands --count 1 --rig text --data_dir D', 'text'),
    ('datasets/prepare.py synthetic_hands --count 1 --backgrounds empty --data_dir D', 'empty'),
    ('datasets/prepare.py synthetic_hands --count 1 --backgrounds nowhere --data_dir D', 'nowhere'),
    ('datasets/prepare.py synthetic_hands --count 1 --poses no.json --data_dir D', r'no\.json'),
    ('datasets/prepare.py synthetic_hands --count 1 --poses text.json --data_dir D', r'text\.json'),
    ('datasets/prepare.py synthetic_hands --count 1 --textures nowhere --data_dir D', 'nowhere'),
    ('datasets/prepare.py synthetic_hands --count 1 --data_dir text/D', 'text/D'),
    ('datasets/prepare.py synthetic_hands --count 1 --rhd text/D', 'text'),
    ('datasets/browse.py', 'name'),
    ('datasets/browse.py nowhere', 'nowhere.*prepare'),
    ('datasets/browse.py text', 'text.*prepare'),
    ('datasets/browse.py empty', 'empty.*prepare'),
    ('datasets/browse.py half', r'half/annotations\.json'),
    ('datasets/browse.py folder --no_report --out text/sheet.png', r'text/sheet\.png'),
    ('datasets/browse.py folder --no_report --out /proc/x/sheet.png', r'/proc/x/sheet\.png'),
    ('datasets/browse.py folder --no_report --out empty', 'empty'),
    ('datasets/browse.py folder --no_report --out photo.jpg', r'photo\.jpg'),
    ('datasets/browse.py folder --report text/report.json', r'text/report\.json'),
    ('datasets/browse.py folder --split nothing', "'nothing'.*train"),
    ('datasets/browse.py folder --count few', "--count.*'few'"),
    ('datasets/browse.py folder --tile big', "--tile.*'big'"),
    ('datasets/browse.py folder --out sheet.png --config nowhere.py', r'nowhere\.py'),
    ('datasets/browse.py folder --sheet sheet.png', '--sheet'),
    ('datasets/browse.py folder --count 0', '--count.*at least 1'),
    ('datasets/browse.py folder --seed -1', '--seed.*at least 0'),
    ('datasets/browse.py folder --threads 0', '--threads.*at least 1'),
    ('datasets/make_dummy.py', 'name'),
    ('datasets/make_dummy.py cmu text', 'text.*new or empty'),
    ('datasets/make_dummy.py cmu text/new', 'text/new'),
    ('datasets/make_dummy.py cmu /proc/x', '/proc/x'),
    ('datasets/make_dummy.py cmu new --seed -1', '--seed.*at least 0'),
    ('datasets/make_dummy.py nothing new', "'nothing'.*cmu"),
    ('datasets/make_dummy.py cmu', 'folder'),
    ('datasets/make_dummy.py cmu folder', 'folder.*new or empty'),
    ('datasets/make_dummy.py cmu new --seed some', "--seed.*'some'"),
    ('datasets/make_dummy.py cmu new --sed 1', '--sed'),
    ('benchmarks/latency.py --backend nothing', "--backend.*'nothing'.*tflite"),
    ('benchmarks/latency.py --precision f8', "--precision.*'f8'.*f16"),
    ('benchmarks/latency.py --model no.tflite', r'--model no\.tflite'),
    ('benchmarks/latency.py --model empty', '--model empty'),
    ('benchmarks/latency.py --model text', '--model text'),
    ('benchmarks/latency.py --model text.onnx', r'--model text\.onnx'),
    ('benchmarks/latency.py --model text.tflite', r'--model text\.tflite'),
    ('benchmarks/latency.py --backend jax --workdir nowhere', 'nowhere'),
    ('benchmarks/latency.py --backend onnx --workdir empty', 'handpose export'),
    ('benchmarks/latency.py --backend jax --config nowhere.py', r'nowhere\.py'),
    ('benchmarks/latency.py --compare nowhere.json', r'--compare nowhere\.json'),
    ('benchmarks/latency.py --compare text.json', r'--compare text\.json'),
    ('benchmarks/latency.py --compare other.json', r'--compare other\.json'),
    ('benchmarks/latency.py --threads 0', r'--threads.*0'),
    ('benchmarks/latency.py --size big', "--size.*'big'"),
    ('benchmarks/latency.py --rounds -1', '--rounds.*-1'),
    ('benchmarks/latency.py --batch', '--batch'),
    ('benchmarks/latency.py --tread 2', '--tread'),
    ('benchmarks/latency.py --backend jax --output text/x.json', r'--output: text/x\.json'),
    ('benchmarks/latency.py --backend jax --output /proc/x/latency.json', '--output: /proc/x'),
    ('benchmarks/latency.py --backend jax --output empty', '--output: empty'),
    ('benchmarks/accuracy.py name nowhere', 'nowhere'),
    ('benchmarks/accuracy.py', 'name'),
    ('benchmarks/calibration.py nowhere', 'nowhere'),
    ('benchmarks/calibration.py empty --output text/x.json', '--output: text'),
    ('benchmarks/calibration.py empty --output text.json', r'--output text\.json'),
    ('benchmarks/decoding.py nowhere', 'nowhere'),
    ('benchmarks/robustness.py nowhere', 'nowhere'),
    ('benchmarks/robustness.py empty --limit few', "--limit.*'few'"),
    ('benchmarks/real_photos.py W', 'HANDPOSE_ASSETS'),
    ('benchmarks/imagenet_accuracy.py', 'HANDPOSE_ASSETS|--npz'),
    ('benchmarks/imagenet_accuracy.py --npz no.npz --photos empty', r'no\.npz|empty'),
]  # fmt: skip


@pytest.mark.parametrize(('line', 'message'), MISTAKES)
def test_a_mistake(said_by, line, message):
    told = said_by(line)
    assert re.search(message, ' '.join(told.split())), told


WITH_A_NETWORK = [
    ('handpose predict half.jpg --workdir W --out out', r'half\.jpg'),
    ('handpose predict photo.jpg --workdir W --out text/out', r'--out text/out'),
    ('handpose predict photo.jpg --workdir W --out text', r'--out text'),
    ('handpose predict photo.jpg --workdir W --out /proc/x', '--out /proc/x'),
    ('handpose report W --out text/out', '--out text/out'),
    ('handpose report W --out /proc/x', '--out /proc/x'),
    ('handpose report W W --out out', 'W.*twice'),
    ('handpose calibrate --workdir W', 'evaluate more hands'),
]


@pytest.mark.usefixtures('trained')
@pytest.mark.parametrize(('line', 'message'), WITH_A_NETWORK)
def test_a_mistake_with_a_network(said_by, line, message):
    told = said_by(line)
    assert re.search(message, ' '.join(told.split())), told
