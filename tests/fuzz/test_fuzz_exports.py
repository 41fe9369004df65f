"""Exported files, calibrations and evaluations, damaged at random: the same answer or a refusal.

Nothing may answer otherwise than the whole file does, and nothing may fail but by the package's own
ValueError. The seed makes every damage again.
"""

import dataclasses
import functools
import importlib.util
import json
import random
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import handpose_jax
from handpose_jax import export, models, runtimes, sidecars
from handpose_jax.evaluation import calibration, metrics
from handpose_jax.export import graph

SIZE = 32
HANDS = 40

# More than any of these needs; a file's damage must not make it large.
SECONDS = 1.5


def files_of(path):
    """What belongs to an exported file or folder, its sidecar too; or a file alone."""
    if not path.is_dir():
        return [path, sidecars.path_of(path)]
    return [*sorted(p for p in path.rglob('*') if p.is_file()), sidecars.path_of(path)]


def damaged(rng, content):
    """A few flipped bits, another byte, a part that is lost, empty or twice, or a cut end."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(max(len(data), 1))
        length = rng.choice((1, 4, 512))
        match rng.randrange(8):
            case 0 | 1 | 2:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)] if data else b'')
            case 3:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 4:
                del data[at : at + length]
            case 5:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case 6:
                data[at:at] = data[at : at + length]
            case 7:
                del data[at:]
    return bytes(data)


def fuzz(name, folder, paths, read, *, seconds, removed='refused'):
    """Damages files of a folder one at a time, and reads each.

    Args:
        name: decides, with the number of the try, what is damaged.
        folder: where it happens.
        paths: the files to choose from.
        read: from nothing to JSON values.
        seconds: when to stop.
        removed: what is right where a file is missing: 'refused', or the answer.

    Returns:
        How many gave the whole file's answer, and how many were refused.
    """
    whole = {path: path.read_bytes() for path in paths}
    expected, outcomes = read(), {'same': 0, 'refused': 0}
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        rng = random.Random(f'{name} {number}')
        chosen = rng.choice(paths)
        missing = rng.randrange(30) == 0
        if missing:
            chosen.unlink()
        else:
            chosen.write_bytes(damaged(rng, whole[chosen]))
        told = f'{name} {number}: {chosen.relative_to(folder)}'
        error = None
        try:
            found = read()
        except Exception as raised:
            error = raised
        if error is None:
            assert found == (removed if missing else expected), told
        else:
            # Its own kinds are those of libraries, which say nothing about the file.
            assert type(error) is ValueError, (told, error)
            assert str(folder) in str(error), (told, error)
            assert '\n' not in str(error), (told, error)
        outcomes['same' if error is None else 'refused'] += 1
        chosen.write_bytes(whole[chosen])
        number += 1
    print(name, outcomes)
    assert read() == expected
    return outcomes


def variables_of(model):
    rng = np.random.default_rng(0)
    images = jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    return jax.tree.map(lambda leaf: rng.uniform(0.01, 0.2, leaf.shape).astype(leaf.dtype), shapes)


@functools.cache
def given():
    """What the artefacts of a small network are written from, without a training and a gate."""
    config = ConfigDict(
        {
            'model': {'name': 'small_unet', 'width': 0.35},
            'decode': {'method': 'peak', 'subpixel': True, 'fallback': True, 'threshold': 0.1},
            'size': SIZE,
            'data': {'name': 'sketch', 'count': 4, 'size': SIZE},
        }
    )
    variables = variables_of(models.build(**config.model.to_dict()))
    lax, auto, for_jax = (
        graph.make_graph(config, variables, implementation=implementation, portable=portable)
        for implementation, portable in (('lax', True), ('auto', True), ('auto', False))
    )
    trained = graph.Trained(config, 7, variables, graph.checksum(variables))
    metadata = export._metadata(trained, lax)
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    return export.Given(lax, auto, for_jax, images, metadata)


@pytest.fixture(scope='module', params=['onnx', 'stablehlo', 'tflite_f32', 'saved_model'])
def exported(request, tmp_path_factory):
    """(name, path, backend) of an exported file."""
    artefact = export.ARTEFACTS[request.param]
    for module in artefact.modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not installed')
    folder = tmp_path_factory.mktemp('export')
    path = folder / artefact.file
    artefact.write(given(), path)
    about = export._about(request.param, artefact, given().metadata)
    sidecars.write(path, {**about, 'gate': [{'pck': 0.5, 'misses': []}]})
    return request.param, path, artefact.backends[0]


def answers(path):
    """What an exported file says of a picture, by the call that people make.

    Opening the same bytes would compile the same program again, which takes a second.
    """
    picture = np.random.default_rng(3).integers(0, 256, (50, 60, 3), np.uint8)
    files, known = files_of(path), {}

    def read():
        content = tuple(file.exists() and file.read_bytes() for file in files)
        if content not in known:
            found = handpose_jax.load(path)(picture, (10, 10, 40, 40))
            known[content] = found.keypoints.tolist(), found.confidence.tolist()
        return known[content]

    return read


def fuzz_exported(exported, seconds, tmp_path):
    name, path, _ = exported
    copy = tmp_path / path.name
    for file in (path, sidecars.path_of(path)):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, tmp_path / file.name)
    return fuzz(name, tmp_path, files_of(copy), answers(copy), seconds=seconds)


@pytest.mark.filterwarnings('ignore')  # TensorFlow has its own
def test_both_ways_to_open_a_file_refuse_what_is_damaged(exported):
    _, path, backend = exported
    handpose_jax.load(path)
    for file in files_of(path):
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        for load in (handpose_jax.load, lambda path: runtimes.load(str(path), backend)):
            with pytest.raises(ValueError, match=path.name):
                load(path)
        file.write_bytes(whole)


@pytest.mark.filterwarnings('ignore')
def test_a_damaged_export_answers_as_before_or_is_refused(exported, tmp_path):
    outcomes = fuzz_exported(exported, SECONDS, tmp_path)
    assert outcomes['refused'] > 20


def make_calibration(folder):
    grid = np.linspace(0, 1, 201)
    report = {'fitted_on': {'step': 7, 'hands': 3}, 'held_out': {'ece': 0.0125, 'rows': [1, 2]}}
    calibration.save(folder, calibration.Calibration(grid**0.5, 30 - 20 * grid, report))

    def read():
        found = calibration.load(folder)
        if found is None:
            return None
        return found.probability.tolist(), found.std.tolist(), found.report

    return folder / calibration.CALIBRATION_FILE, read


def make_evaluation(folder):
    rng = np.random.default_rng(0)
    shapes = {
        **dict.fromkeys(('error_crop', 'error_image', 'confidence'), (HANDS, 21)),
        **dict.fromkeys(('predicted_image', 'truth_image'), (HANDS, 21, 2)),
        'norm_size': (HANDS,),
    }
    columns = {name: rng.random(shape) for name, shape in shapes.items()}
    flags = {'valid': (HANDS, 21), 'hidden': (HANDS, 21), 'is_left': (HANDS,), 'has_hand': (HANDS,)}
    columns |= {name: rng.random(shape) < 0.5 for name, shape in flags.items()}
    errors = metrics.KeypointErrors(**columns, index=np.arange(HANDS))
    names = np.array([f'a/{number}' for number in range(HANDS)], np.str_)
    path = folder / metrics.EVALUATION_FILE
    metrics.write_evaluation(path, metrics.EvaluationRecord(errors, names, {'step': 7}))

    def read():
        found = metrics.read_evaluation(path)
        columns = dataclasses.asdict(found.errors)
        told = {name: (str(one.dtype), one.tolist()) for name, one in columns.items()}
        return json.dumps([told, found.image_id.tolist(), found.meta])

    return path, read


MADE = {'calibration': (make_calibration, None), 'evaluation': (make_evaluation, 'refused')}


def fuzz_made(name, seconds, tmp_path):
    make, removed = MADE[name]
    path, read = make(tmp_path)
    return fuzz(name, tmp_path, [path], read, seconds=seconds, removed=removed)


@pytest.mark.parametrize('name', MADE)
@pytest.mark.usefixtures('unchecked')
def test_a_damaged_record_is_as_before_or_refused(name, tmp_path):
    assert fuzz_made(name, SECONDS, tmp_path)['refused'] > 20


@pytest.mark.long
@pytest.mark.filterwarnings('ignore')
def test_many_damaged_exports_answer_as_before_or_are_refused(exported, tmp_path):
    assert fuzz_exported(exported, 120, tmp_path)['refused'] > 1000


@pytest.mark.long
@pytest.mark.parametrize('name', MADE)
@pytest.mark.usefixtures('unchecked')
def test_many_damaged_records_are_as_before_or_refused(name, tmp_path):
    assert fuzz_made(name, 120, tmp_path)['refused'] > 1000
