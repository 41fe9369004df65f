"""MATLAB files: what MATLAB and SciPy write is read; anything else is refused by file and name."""

import os
import random
import struct
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from handpose_jax.data.conversion.matfiles import read_array

RNG = np.random.default_rng(0)
HANDS = RNG.normal(size=(3, 21, 4)) * 100
SHAPE = (3, 21, None)


def save(folder, *, compress=True, name='hands.mat', **variables):
    path = folder / name
    scipy.io.savemat(path, variables, do_compression=compress)
    return path


def header(order='<'):
    return b'MATLAB 5.0 MAT-file'.ljust(124) + struct.pack(f'{order}HH', 0x0100, 0x4D49)


def element(kind, data, order='<'):
    return struct.pack(f'{order}II', kind, len(data)) + data + bytes(-len(data) % 8)


def described(*shape, order='<', number=6, name=b'handPara'):
    """Flags, dimensions and name of a variable of a class, which is double by default."""
    return (
        element(6, struct.pack(f'{order}II', number, 0), order)
        + element(5, struct.pack(f'{order}{len(shape)}i', *shape), order)
        + element(1, name, order)
    )


def compressed(matrix):
    packed = zlib.compress(matrix)
    return struct.pack('<II', 15, len(packed)) + packed


def refused(path, *parts, name='handPara', shape=SHAPE, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_array(path, name, shape, **options)
    message = str(caught.value)
    assert message.startswith(f'{path}: ')
    assert repr(name) in message
    for part in parts:
        assert part in message
    return message


@pytest.mark.parametrize('compress', [True, False])
@pytest.mark.parametrize('dtype', ['f8', 'f4', 'i2', 'u1', 'i8', '>f8'])
def test_what_was_saved_is_read(tmp_path, compress, dtype):
    values = (HANDS if dtype[-2] == 'f' else np.abs(HANDS) % 100).astype(dtype)
    path = save(tmp_path, compress=compress, other=np.arange(5.0), handPara=values, text='abc')
    read = read_array(path, 'handPara', SHAPE)
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, values.astype(np.float64))


@pytest.mark.parametrize('compress', [True, False])
def test_an_array_of_a_usual_size_is_read(tmp_path, compress):
    values = RNG.normal(size=(3, 21, 1500))
    path = save(tmp_path, compress=compress, other=values + 1, handPara=values)
    np.testing.assert_array_equal(read_array(path, 'handPara', SHAPE), values)


@pytest.mark.parametrize('order', ['<', '>'])
def test_a_file_written_by_hand_from_the_format_is_read(tmp_path, order):
    """As on a machine of either byte order, by the published format and without SciPy."""
    values = np.arange(6.0)  # columns first: 2 x 3
    matrix = described(2, 3, order=order) + element(9, values.astype(f'{order}f8').tobytes(), order)
    path = tmp_path / 'a.mat'
    path.write_bytes(header(order) + element(14, matrix, order))
    np.testing.assert_array_equal(
        read_array(path, 'handPara', (2, 3)), [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    )


def test_trailing_dimensions_that_matlab_drops_are_restored(tmp_path):
    path = save(tmp_path, handPara=HANDS[:, :, 0])
    read = read_array(path, 'handPara', SHAPE)
    np.testing.assert_array_equal(read, HANDS[:, :, :1])


@pytest.mark.parametrize(
    ('array', 'got'),
    [
        (HANDS.transpose(2, 1, 0), 'got 4 x 21 x 3'),
        (HANDS[:2], 'got 2 x 21 x 4'),
        (np.zeros((3, 21, 4, 2)), 'got 3 x 21 x 4 x 2'),
        (np.zeros(()), 'got 1 x 1'),
    ],
)
def test_another_shape_is_refused(tmp_path, array, got):
    refused(save(tmp_path, handPara=array), 'expected the shape 3 x 21 x any', got)


CLASSES = {
    'cell': np.array([[1.0], ['a']], object),
    'struct': {'x': 1.0},
    'char': 'text',
    'sparse': scipy.sparse.csc_matrix(np.eye(3)),
    'logical': np.array([[True]]),
    'complex double': HANDS * 1j,
    'object': scipy.io.matlab.MatlabObject(np.zeros((1, 1), [('x', object)]), 'evil'),
}


@pytest.mark.parametrize('name', CLASSES)
def test_anything_but_numbers_is_refused_by_its_class(tmp_path, name):
    refused(
        save(tmp_path, handPara=CLASSES[name]),
        'expected an array of real numbers',
        f'of class {name};',
    )


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_where_they_stand(tmp_path, value):
    array = HANDS.copy()
    array[1, 2, 3] = value
    refused(save(tmp_path, handPara=array), 'finite', str(value), '(2, 3, 4)')


def test_a_missing_or_double_variable_is_refused(tmp_path):
    refused(save(tmp_path, hands=HANDS), 'got 0', "the file holds 'hands'")
    path = save(tmp_path, handPara=HANDS)
    data = path.read_bytes()
    path.write_bytes(data + data[128:])
    refused(path, 'got 2')
    refused(tmp_path / 'missing.mat', 'no such file')


def test_too_large_an_array_is_refused(tmp_path):
    path = save(tmp_path, handPara=HANDS)
    size = HANDS.size * 8
    refused(path, f'at most {size - 1:,} bytes, got {size:,}', max_bytes=size - 1)
    assert read_array(path, 'handPara', SHAPE, max_bytes=size).shape == HANDS.shape


def bomb(claimed):
    """A file whose variable is said to be 3 x 21 x 4, but holds 64 MB of zeros."""
    start = described(3, 21, 4) + struct.pack('<II', 9, claimed)
    packer = zlib.compressobj(9)
    packed = packer.compress(struct.pack('<II', 14, len(start) + claimed) + start)
    packed += b''.join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    return header() + struct.pack('<II', 15, len(packed)) + packed


@pytest.mark.parametrize('claimed', [64 * 2**20, 3 * 21 * 4 * 8])
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, claimed):
    path = tmp_path / 'bomb.mat'
    path.write_bytes(bomb(claimed))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    refused(path, 'decompression bomb', max_bytes=2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_bomb_in_another_variable_does_no_harm(tmp_path):
    path = tmp_path / 'a.mat'
    good = save(tmp_path, name='b.mat', hands=HANDS).read_bytes()
    path.write_bytes(bomb(64 * 2**20) + good[128:])
    tracemalloc.start()
    read = read_array(path, 'hands', SHAPE, max_bytes=2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(read, HANDS)
    assert peak < 8 * 2**20


def test_packed_data_in_packed_data_are_refused(tmp_path):
    inner = save(tmp_path, handPara=HANDS).read_bytes()
    path = tmp_path / 'a.mat'
    path.write_bytes(inner[:128] + compressed(inner[128:]))
    refused(path, 'expected an array in the packed data')


@pytest.mark.parametrize('stored', [0, 8, 10, 14, 15, 16, 18, 99, 2**16 - 1, 2**31])
@pytest.mark.parametrize('packed', [True, False])
def test_numbers_of_a_type_that_ends_scipy_are_refused(tmp_path, stored, packed):
    """SciPy looks such a type up beyond the end of its table; these files end its process."""
    matrix = element(14, described(3, 21, 1) + element(stored, bytes(8 * 3 * 21)))
    path = tmp_path / 'a.mat'
    path.write_bytes(header() + (compressed(matrix) if packed else matrix))
    refused(path, 'expected 63 numbers of one of the types', 'the file is damaged')


@pytest.mark.parametrize('length', [0, 8 * 62, 8 * 64, 2**31])
def test_another_length_than_that_of_the_shape_is_refused(tmp_path, length):
    numbers = struct.pack('<II', 9, length) + bytes(8 * 64)
    path = tmp_path / 'a.mat'
    path.write_bytes(header() + element(14, described(3, 21, 1) + numbers))
    refused(path, 'expected 63 numbers', f'{length:,} bytes of type 9')


def test_variables_of_other_kinds_beside_it_are_passed_over(tmp_path):
    """Objects of newer MATLABs have no dimensions, empty cells nothing behind their name."""
    new = element(6, struct.pack('<II', 17, 0)) + element(1, b'date') + element(1, b'MCOS')
    others = [new, described(0, 0, number=1, name=b'cells'), described(1, 1, number=99, name=b'x')]
    wanted = described(1, 3, name=b'handPara') + element(2, bytes([7, 8, 9]))
    short = described(1, 3, name=b'short') + struct.pack('<HH', 2, 3) + bytes([7, 8, 9, 0])
    path = tmp_path / 'a.mat'
    path.write_bytes(header() + b''.join(element(14, data) for data in (*others, wanted, short)))
    for name in ('handPara', 'short'):
        np.testing.assert_array_equal(read_array(path, name, (1, 3)), [[7, 8, 9]])
    refused(path, 'of class opaque', name='date')
    refused(path, 'of class 99, which is unknown', name='x')
    refused(path, "the file holds 'date', 'cells', 'x', 'handPara', 'short'", name='y')


def test_other_versions_are_refused_with_advice(tmp_path):
    path = tmp_path / 'a.mat'
    with h5py.File(path, 'w', userblock_size=512) as file:
        file['handPara'] = HANDS
    data = path.read_bytes()
    text = b'MATLAB 7.3 MAT-file'.ljust(124) + struct.pack('<HH', 0x0200, 0x4D49)
    path.write_bytes(text + data[128:])
    refused(path, 'version 7.3', '"-v7"')
    path.write_bytes(data)  # without MATLAB's header
    refused(path, 'version 7.3', '"-v7"')
    scipy.io.savemat(path, {'handPara': HANDS[:, :, 0]}, format='4')
    refused(path, 'expected a MATLAB file of version 5')
    path.write_bytes(b'<html>Sign in</html>' * 100)
    refused(path, 'expected a MATLAB file of version 5', '<html>')
    path.write_bytes(b'')
    refused(path, 'expected a MATLAB file of version 5')


@pytest.mark.parametrize('compress', [True, False])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, compress):
    path = save(tmp_path, compress=compress, handPara=HANDS)
    whole = path.read_bytes()
    for length in (0, 60, 128, 132, 136, 150, 190, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize('compress', [True, False])
def test_damage_is_refused_or_changes_values_only(tmp_path, compress):
    """Whatever bit is changed: an array of this shape, or ValueError, and never another error."""
    path = save(tmp_path, compress=compress, handPara=HANDS)
    whole = path.read_bytes()
    rng = random.Random(2)
    # The header, the tags and the description, where damage is most harmful; and anywhere.
    places = [*range(116, 192), *(rng.randrange(128, len(whole)) for _ in range(30))]
    outcomes = set()
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        read = read_or_message(path)
        outcomes.add(type(read))
        if isinstance(read, np.ndarray):
            assert read.shape == HANDS.shape
            # Packed data have a checksum.
            assert not compress or np.array_equal(read, HANDS)
        else:
            assert read.startswith(f'{path}: ')
    assert str in outcomes


def read_or_message(path):
    try:
        return read_array(path, 'handPara', SHAPE)
    except ValueError as error:
        return str(error)


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path, os.strerror(21))
