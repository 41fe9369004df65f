"""The wheel, installed away from the checkout: with all that is needed, and with the core alone.

Nothing is downloaded: the packages are those of the environment that runs the tests. In the core's
environment there are only those that the wheel requires without any extra.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import handpose_jax
from handpose_jax import sidecars

onnx = pytest.importorskip('onnx')
pytest.importorskip('setuptools', minversion='77', reason='building a wheel takes setuptools 77')

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
BUILDERS = sorted(path.parent.name for path in (ROOT / 'datasets').glob('*/*_dataset_builder.py'))


def pip(*words):
    subprocess.run(
        [sys.executable, '-m', 'pip', *words],
        check=True,
        capture_output=True,
        env={**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_NO_INDEX': '1'},
    )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    # A copy: a build leaves folders behind, and takes what an earlier one has left.
    source = tmp_path_factory.mktemp('wheel') / 'source'
    source.mkdir()
    for name in ('handpose_jax', 'configs', 'datasets'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    pip('wheel', '--no-deps', '--no-build-isolation', '-w', str(source.parent), str(source))
    (built,) = source.parent.glob('*.whl')
    return built


def make_environment(folder, wheel, packages):
    """A virtual environment with the wheel that finds the other packages in a folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob('lib/python*/site-packages')
    (site / 'packages.pth').write_text(f'{packages}\n', encoding='utf-8')
    pip('--python', str(folder / 'bin' / 'python'), 'install', '--no-deps', str(wheel))
    return folder


def names_required(distribution, seen):
    """Adds what a distribution requires, without extras, to the names seen."""
    for text in importlib.metadata.requires(distribution) or ():
        requirement = Requirement(text)
        wanted = requirement.marker is None or requirement.marker.evaluate({'extra': ''})
        if wanted and requirement.name not in seen:
            seen.add(requirement.name)
            names_required(requirement.name, seen)
    return seen


@pytest.fixture(scope='module')
def core(tmp_path_factory, wheel):
    """An environment with the core's packages alone."""
    folder = tmp_path_factory.mktemp('core')
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith('/METADATA'))
        archive.extract(metadata, folder)
    own = importlib.metadata.Distribution.at((folder / metadata).parent)
    names = set()
    for text in own.requires:
        if 'extra' not in text:
            names |= {Requirement(text).name, *names_required(Requirement(text).name, names)}
    packages = folder / 'packages'
    packages.mkdir()
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {'..', '__pycache__'}:
            link = packages / top
            if not link.exists():
                link.symlink_to(distribution.locate_file(top))
    assert not {'jax', 'cv2', 'scipy', 'ml_collections'} & {
        path.name for path in packages.iterdir()
    }
    return make_environment(folder / 'venv', wheel, packages)


@pytest.fixture(scope='module')
def full(tmp_path_factory, wheel):
    """An environment with all the packages of the tests'."""
    folder = tmp_path_factory.mktemp('full') / 'venv'
    return make_environment(folder, wheel, sysconfig.get_path('purelib'))


@pytest.fixture
def run(tmp_path):
    """Runs a command of an environment in an empty folder, where no checkout is to be found."""

    def run(environment, *words):
        program, *rest = words
        return subprocess.run(
            [environment / 'bin' / program, *rest],
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key != 'PYTHONPATH'},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def exported(tmp_path):
    """A file as an export writes it: a network of constants, which need no training."""
    keypoints = np.full((1, 21, 3), [16, 8, 0.5], np.float32)
    values = {'heatmaps': np.zeros((1, 8, 8, 22), np.float32), 'keypoints': keypoints}
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node(
                'Constant', [], [name], value=onnx.numpy_helper.from_array(value, name)
            )
            for name, value in values.items()
        ],
        'constants',
        [helper.make_tensor_value_info('images', kind, ['batch', 32, 32, 3])],
        [helper.make_tensor_value_info(name, kind, one.shape) for name, one in values.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=onnx.IR_VERSION_2023_5_5
    )
    onnx.save(model, tmp_path / 'hand.onnx')
    sidecars.write(tmp_path / 'hand.onnx', {'crop': {'scale': 2.0}, 'checkpoint_step': 7})
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / 'photo.jpg')
    return tmp_path


def test_everything_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith('/')}
    expected = {'handpose_jax/py.typed'}
    weights = (ROOT / 'handpose_jax' / 'weights').iterdir()
    expected |= {path.relative_to(ROOT).as_posix() for path in weights}
    for folder, place in (('handpose_jax', ''), ('configs', 'handpose_jax/_shipped/')):
        expected |= {
            f'{place}{path.relative_to(ROOT).as_posix()}' for path in (ROOT / folder).rglob('*.py')
        }
    for pattern in ('*.py', '*.md'):
        expected |= {
            f'handpose_jax/_shipped/{path.relative_to(ROOT).as_posix()}'
            for path in (ROOT / 'datasets').rglob(pattern)
        }
    assert {name for name in found if '.dist-info/' not in name} == expected


@pytest.mark.parametrize('environment', ['core', 'full'])
def test_the_command_answers_from_an_empty_folder(request, run, environment):
    place = request.getfixturevalue(environment)
    version = run(place, 'handpose', '--version')
    assert version.stdout == f'handpose_jax {handpose_jax.__version__}\n'
    told = [
        run(place, *words, '--help') for words in (['handpose'], ['python', '-m', 'handpose_jax'])
    ]
    assert all('usage: handpose COMMAND' in one.stdout and one.returncode == 0 for one in told)


def test_the_core_finds_a_hand(core, run, exported):
    words = ('--workdir', 'hand.onnx', 'photo.jpg', '--box', '30,20,60,50', '--out', 'out')
    done = run(core, 'handpose', 'predict', *words)
    assert (done.returncode, done.stderr) == (0, '')
    record = json.loads((exported / 'out' / 'photo.json').read_text(encoding='utf-8'))
    # The crop is 60 px wide about (45, 35), for 32 px of the network.
    assert record['keypoints'][3]['x'] == pytest.approx(15 + 16.5 * 60 / 32, abs=0.01)
    assert record['keypoints'][3]['y'] == pytest.approx(5 + 8.5 * 60 / 32, abs=0.01)
    with Image.open(exported / 'out' / 'photo.png') as overlay:
        assert min(overlay.size) >= 480


LACKING = {
    'train': ['train', '--config', 'cmu', '--workdir', 'W'],
    'evaluate': ['evaluate', '--workdir', 'W'],
    'export': ['export', '--workdir', 'W'],
    'report': ['report', 'W', '--out', 'R'],
    'prepare': ['prepare', '--help'],
    'browse': ['browse', 'D'],
    'predict': ['predict', '--workdir', 'W', 'photo.jpg', '--out', 'out'],
}


@pytest.mark.usefixtures('exported')
@pytest.mark.parametrize('verb', LACKING)
def test_what_the_core_lacks_is_one_sentence(core, run, verb):
    done = run(core, 'handpose', *LACKING[verb])
    assert done.returncode == 1
    assert done.stderr.count('\n') == 1, done.stderr
    wheel = f'handpose_jax-{handpose_jax.__version__}-py3-none-any.whl[train]'
    assert f'which is not installed: pip install "{wheel}"' in done.stderr


def test_a_runtime_that_the_core_lacks_is_one_sentence(core, run, exported):
    for name in ('hand.tflite', 'hand.tflite.json'):
        shutil.copy(exported / name.replace('tflite', 'onnx'), exported / name)
    done = run(core, 'handpose', 'predict', '--workdir', 'hand.tflite', 'photo.jpg', '--out', 'o')
    assert done.returncode == 1
    assert 'needs the module ai_edge_litert, which is not installed' in done.stderr
    assert '.whl[litert]"' in done.stderr
    assert done.stderr.count('\n') == 1


def test_a_config_is_found_by_its_bare_name(full, run):
    code = (
        'from handpose_jax import config\n'
        'print(config.load("cmu").size, config.load("cmu:smoke").size, config.find("cmu")[0])'
    )
    size, small, file = run(full, 'python', '-c', code).stdout.split()
    assert (size, small) == ('224', '64')
    assert Path(file).is_relative_to(full)
    # It goes on to the next thing that is missing.
    for words in (['--config', 'cmu'], ['--config=cmu:smoke']):
        done = run(full, 'handpose', 'train', *words)
        assert '--workdir is missing' in done.stderr
    done = run(full, 'handpose', 'train', '--config', 'mine', '--workdir', 'W')
    assert done.stderr == (
        'error: mine: no such config; give the path of a .py file, or one of '
        f'{", ".join(CONFIGS)}\n'
    )


def test_the_builders_are_found(full, run):
    listed = run(full, 'handpose', 'prepare', '--help').stdout
    assert re.findall(r'^    (\w+)', listed, re.MULTILINE) == BUILDERS
    assert '--count' in run(full, 'handpose', 'prepare', 'synthetic_hands', '--help').stdout
    assert 'contact' in run(full, 'handpose', 'browse', '--help').stdout
