"""The JSON beside an exported file: it must agree with the file, and with its own checksum."""

import hashlib
import json
import shutil

import pytest

import handpose_jax
from handpose_jax import runtimes, sidecars

ABOUT = {'checkpoint_step': 7, 'crop': {'scale': 2.2}, 'gate': [{'pck': 0.5, 'misses': []}]}
FILES = {'onnx': 'x.onnx', 'tflite': 'x.tflite', 'stablehlo': 'x.stablehlo', 'openvino': 'y.onnx'}


@pytest.fixture(params=[*FILES, 'saved_model'])
def exported(request, tmp_path):
    """(backend, file or folder with a sidecar, the file to damage)."""
    if request.param == 'saved_model':
        path = tmp_path / 'saved_model'
        (path / 'variables').mkdir(parents=True)
        (path / 'saved_model.pb').write_bytes(b'a graph')
        inside = path / 'variables' / 'variables.data'
    else:
        path = inside = tmp_path / FILES[request.param]
    inside.write_bytes(bytes(range(256)))
    sidecars.write(path, ABOUT)
    return request.param, path, inside


def flipped(content, place, bit=0):
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def refusals(backend, path):
    """What both ways to open an exported file say."""
    said = []
    for load in (lambda: runtimes.load(str(path), backend), lambda: handpose_jax.load(path)):
        with pytest.raises(ValueError, match=path.name) as caught:
            load()
        said.append(str(caught.value))
    return said


DAMAGE = {
    'a flipped bit': lambda path: path.write_bytes(flipped(path.read_bytes(), 100)),
    'cut off': lambda path: path.write_bytes(path.read_bytes()[:-1]),
    'longer': lambda path: path.write_bytes(path.read_bytes() + b'\0'),
    'empty': lambda path: path.write_bytes(b''),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_file_is_refused_before_its_runtime_sees_it(exported, damage):
    backend, path, inside = exported
    sidecars.verify(path)
    DAMAGE[damage](inside)
    for said in refusals(backend, path):
        assert said == (
            f'{path}: does not agree with {path.name}.json beside it; '
            'export again or bring the file back'
        )


def test_a_saved_model_that_lost_or_got_a_file_is_refused(tmp_path):
    path = tmp_path / 'saved_model'
    path.mkdir()
    for name in ('saved_model.pb', 'fingerprint.pb'):
        (path / name).write_bytes(name.encode())
    sidecars.write(path, ABOUT)
    (path / '.DS_Store').write_bytes(b'of a file manager')
    sidecars.verify(path)
    for change in (
        (path / 'saved_model.pb').unlink,
        (path / 'fingerprint.pb').unlink,
        lambda: (path / 'fingerprint.pb').rename(path / 'other.pb'),
        lambda: (path / 'more').write_bytes(b''),
    ):
        whole = shutil.copytree(path, tmp_path / 'whole')
        change()
        for said in refusals('saved_model', path):
            assert 'does not agree with saved_model.json beside it' in said
        shutil.rmtree(path)
        whole.rename(path)
    shutil.rmtree(path)
    for said in refusals('saved_model', path):
        assert 'no such file; write it with handpose export' in said


def test_a_flipped_bit_anywhere_in_a_sidecar_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / 'x.onnx'
    path.write_bytes(b'weights')
    sidecars.write(path, ABOUT)
    beside, told = sidecars.path_of(path), sidecars.read(path)
    whole, unchanged = beside.read_bytes(), 0
    for place in range(len(whole)):
        for bit in (0, 2, 5, 7):
            beside.write_bytes(flipped(whole, place, bit))
            try:
                found, said = sidecars.read(path), ''
            except ValueError as error:
                found, said = told, str(error)
            unchanged += not said
            assert found == told
            assert not said or (str(beside) in said and '\n' not in said)
    assert unchanged < 5
    beside.write_bytes(flipped(whole, whole.index(b'2.2'), 0))
    for said in refusals('onnx', path):
        assert 'x.onnx.json: its content does not agree with its checksum' in said


def test_a_sidecar_without_the_checksum_of_its_own_format_is_refused(tmp_path):
    path = tmp_path / 'x.onnx'
    path.write_bytes(b'weights')
    sidecars.write(path, ABOUT)
    told = json.loads(sidecars.path_of(path).read_text())
    del told['checksum']
    sidecars.path_of(path).write_text(json.dumps(told))
    with pytest.raises(ValueError, match='does not agree with its checksum'):
        sidecars.read(path)


def test_a_sidecar_of_an_older_version_is_accepted_and_its_file_compared(tmp_path):
    path = tmp_path / 'x.onnx'
    path.write_bytes(b'weights')
    old = {**ABOUT, 'bytes': 7, 'sha256': hashlib.sha256(b'weights').hexdigest()}
    sidecars.path_of(path).write_text(json.dumps(old))
    assert sidecars.read(path) == old
    sidecars.verify(path)
    path.write_bytes(b'heights')
    for said in refusals('onnx', path):
        assert 'does not agree with x.onnx.json beside it' in said


def test_the_digest_of_a_folder_is_that_of_older_versions(tmp_path):
    path = tmp_path / 'saved_model'
    (path / 'variables').mkdir(parents=True)
    (path / 'saved_model.pb').write_bytes(b'graph')
    (path / 'variables' / 'data').write_bytes(b'weights')
    expected = hashlib.sha256(b'saved_model.pbgraphvariables/dataweights').hexdigest()
    sidecars.path_of(path).write_text(json.dumps({**ABOUT, 'bytes': 12, 'sha256': expected}))
    sidecars.verify(path)


@pytest.mark.parametrize('content', [b'', b'[]', b'{', b'{}', b'\xff\xfe', b'{"crop": 3}'])
def test_what_is_no_sidecar_is_told(exported, content):
    backend, path, _ = exported
    sidecars.path_of(path).write_bytes(content)
    for said in refusals(backend, path):
        assert f'{path.name}.json: expected what handpose export writes beside a network' in said


def test_a_file_without_a_sidecar_is_told(exported):
    backend, path, _ = exported
    sidecars.path_of(path).unlink()
    for said in refusals(backend, path):
        assert f'{path.name}.json: no such file; an exported network is two files' in said
