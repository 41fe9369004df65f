"""Pickles: what plain ones hold comes back, and no other gets far."""

import os
import pickle
import struct
from typing import Any

import numpy as np
import pytest

from handpose_jax.data.conversion import safe_pickle


def a_table() -> dict[str, np.ndarray]:
    """Arrays of the kind that annotations are, with every byte value in them."""
    rng = np.random.default_rng(0)
    return {
        'points': rng.normal(size=(42, 3)).astype(np.float32),
        'camera': rng.normal(size=(3, 3)),
        'bytes': np.arange(256, dtype=np.uint8),
    }


def assert_same(found: Any, expected: Any) -> None:
    """Same types, same values, arrays included."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype.newbyteorder('=') == expected.dtype.newbyteorder('=')
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('code', ['f2', 'f4', 'f8', 'i1', 'i8', 'u2', 'b1'])
def test_arrays_of_every_protocol_dtype_and_byte_order_come_back(code, order, protocol):
    array = np.arange(-120, 132).reshape(4, 7, 9).astype(order + code)
    tiny = np.array(1).astype(order + code)
    value = [array, (tiny, array.ravel()[:1]), {'a': array[:, 1, ::2]}]
    found = safe_pickle.load(pickle.dumps(value, protocol))
    assert_same(found, value)


@pytest.mark.parametrize('protocol', [2, 5])
def test_arrays_in_fortran_order_are_not_transposed(protocol):
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    assert_same(safe_pickle.load(pickle.dumps(array, protocol)), array)


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values_come_back(protocol):
    value = {
        0: [1, -2.5, None, True, False, 2**80, 'ü', (), (1,), (1, 2), (1, 2, 3), {}],
        'tuple': (1, (2, 3, 4, 5), [{'a': []}]),
        'long': list(range(3000)),
        'shared': [[1, 2]] * 3,
    }
    assert_same(safe_pickle.load(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_bytes_come_back(protocol):
    value = [b'\x00\xff', bytes(range(256)) * 3]
    assert_same(safe_pickle.load(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize('protocol', [2, 5])
def test_numpy_scalars_become_pythons(protocol):
    value = [np.float32(0.5), np.float64(0.1), np.int64(-3), np.True_]
    assert_same(safe_pickle.load(pickle.dumps(value, protocol)), [0.5, 0.1, -3, True])


def test_an_array_that_is_held_twice_is_one_array():
    array = np.arange(3.0)
    found = safe_pickle.load(pickle.dumps([array, (array,)]))
    assert found[0] is found[1][0]


def python2_text(text: bytes) -> bytes:
    """A `str` of Python 2, as its protocol 2 writes it."""
    if len(text) < 256:
        return b'U' + struct.pack('<B', len(text)) + text
    return b'T' + struct.pack('<i', len(text)) + text


def python2_array(array: np.ndarray) -> bytes:
    """An array as Python 2 and NumPy 1 wrote it with protocol 2, step by step."""
    shape = b'(' + b''.join(b'M' + struct.pack('<H', side) for side in array.shape) + b't'
    code = python2_text(array.dtype.str[1:].encode())
    order = python2_text(array.dtype.str[:1].encode())
    dtype = (
        b'cnumpy\ndtype\n' + code + b'K\x00K\x01\x87R'
        b'(K\x03' + order + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    )
    return (
        b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85'
        + python2_text(b'b')
        + b'\x87R(K\x01'
        + shape
        + dtype
        + b'\x89'
        + python2_text(array.tobytes())
        + b'tb'
    )


def test_pickles_of_python_2_are_read():
    table = a_table()
    fields = b''.join(python2_text(n.encode()) + python2_array(a) for n, a in table.items())
    data = b'\x80\x02}K\x00}(' + fields + b'us.'
    # The real thing reads these bytes too, so they are what Python 2 could have written.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('warnings.warn', lambda *_, **__: None)
        known = pickle.loads(data, encoding='latin1')
    assert_same(known, {0: table})
    assert_same(safe_pickle.load(data), {0: table})


# --- malicious pickles ----------------------------------------------------------------------------


class Calls:
    """Pickles to a call of anything."""

    def __init__(self, function: Any, *arguments: Any):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(
    ('function', 'name'),
    [
        (os.system, r'(posix|nt)\.system'),
        (eval, r'(builtins|__builtin__)\.eval'),
        (getattr, r'(builtins|__builtin__)\.getattr'),
        (np.load, r'numpy\.load'),
        (pickle.loads, r'_?pickle\.loads'),
    ],
)
def test_functions_are_refused_by_name_and_not_called(tmp_path, function, name, protocol):
    trace = tmp_path / 'trace'
    bomb = Calls(function, f'touch {trace}')
    with pytest.raises(ValueError, match=f"asks for '{name}', which is refused"):
        safe_pickle.load(pickle.dumps({0: {**a_table(), 'camera': bomb}}, protocol))
    assert not trace.exists()


DTYPE = b'cnumpy\ndtype\nU\x02f4\x85R'


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'cos\nsystem\n(S"true"\ntR.', r"'os\.system', which is refused"),
        (b'(S"true"\nios\nsystem\n.', r"instance of 'os\.system'"),
        (b'\x80\x04\x8c\x02os\x8c\x06system\x93.', r"'os\.system'"),
        (b'cnumpy\nndarray.tofile\n.', r"'numpy\.ndarray\.tofile'"),
        (b'\x80\x02cnumpy\nndarray\n)\x81.', 'the step NEWOBJ'),
        (b'\x80\x04\x8f.', 'the step EMPTY_SET'),
        (b'\x80\x02\x82\x01.', 'the step EXT1'),
        (b'Pfile\n.', 'the step PERSID'),
        (b'\x80\x05\x97.', 'the step NEXT_BUFFER'),
        # Arrays bigger than their content, arrays of objects, functions used as another.
        (b'cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.', 'calls ndarray with unexpected arguments'),
        (b'cnumpy\ndtype\n(U\x02O8tR.', "dtype 'O8'"),
        (b'cnumpy\ndtype\n(U\x09f8,objecttR.', "dtype 'f8,object'"),
        (b'cnumpy\ndtype\n(U\x02f1tR.', "dtype 'f1'"),
        (b'c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zlibtR.', 'calls encode'),
        (b'cnumpy.core.multiarray\n_reconstruct\n(c_codecs\nencode\n)U\x01btR.', 'reconstruct'),
        # Attributes of what is not an array.
        (b'cnumpy\nndarray\n}U\x08__call__K\x01sb.', 'changes the name of a function'),
        (b']}U\x01aK\x01sb.', 'changes a value of type list'),
        (b'K\x01)R.', 'calls a value of type int'),
        (b'cnumpy\nndarray\nK\x01R.', 'calls the name of a function'),
        # What arrays are made of is no value: alone, in each container, and in a tuple in one.
        (b'cnumpy\nndarray\n.', r'holds the name of a function \(ndarray\) as a value'),
        (DTYPE + b'.', 'holds the dtype float32 as a value'),
        (b'](' + DTYPE + b'e.', 'holds the dtype float32'),
        (b']' + DTYPE + b'a.', 'holds the dtype float32'),
        (b'(' + DTYPE + b'l.', 'holds the dtype float32'),
        (b'}K\x00' + DTYPE + b's.', 'holds the dtype float32'),
        (b'(K\x00' + DTYPE + b'd.', 'holds the dtype float32'),
        (b']' + DTYPE + b'\x85\x85a.', 'holds a value of type tuple'),
        (b'(' + DTYPE + b't.', 'holds a value of type tuple'),
        # Damage.
        (b'', 'exhausted|end'),
        (b'.', 'a value is missing'),
        (b'\x80\x02}', 'exhausted|end'),
        (b'}}.', 'left over'),
        (b'(K\x01.', 'left over'),
        (b'h\x05.', 'uses value 5 before'),
        (b't.', 'a mark is missing'),
        (b'}K\x01a.', 'appends to a value of type dict'),
        (b']K\x01K\x02s.', 'sets items of a value of type list'),
        (b'}(K\x01u.', 'sets items'),
        (b'\x93.', 'a value is missing'),
        (b'K\x01K\x02\x93.', 'a name is not text'),
        (b'\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.', 'expected .* bytes'),
        (b'\x8e\xff\xff\xff\xff\xff\xff\xff\xff.', 'byte'),
        (b'\xff\xd8\xff\xe0 no pickle', 'unknown|opcode'),
        (b'I' + b'9' * 5000 + b'\n.', 'integer string conversion|digits'),
    ],
)
def test_other_ways_out_are_refused(data, message):
    with pytest.raises(ValueError, match=f'(?s){message}'):
        safe_pickle.load(data)


@pytest.mark.parametrize(
    'value',
    [
        {1, 2},
        complex(1, 2),
        np.array(['a']),
        np.array([None]),
        np.array([1 + 2j]),
        np.array([(1, 2.0)], dtype='i4,f8'),
        np.array(['2020-01-01'], 'M8[D]'),
        slice(1),
        object(),
        int,
        np.dtype('f4'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_not_plain_are_refused(value):
    with pytest.raises(ValueError, match=r'refused|expected numbers'):
        safe_pickle.load(pickle.dumps([value]))


def test_a_huge_memo_place_costs_nothing():
    # CPython's own unpickler makes room for two thousand million values here.
    assert safe_pickle.load(b']r\xff\xff\xff\x7f.') == []


# Each holds its predecessor twice: 2 to the 80th values in a few hundred bytes. The last holds
# itself.
BOMBS = {
    'list': b'](]q\x00' + b'(h\x00h\x00lq\x00' * 80 + b'e',
    'tuple': b')q\x00' + b'h\x00\x86q\x00' * 80,
    'dict': b'](}q\x00' + b'(K\x00h\x00K\x01h\x00dq\x00' * 80 + b'e',
    'endless': b']q\x00h\x00a',
}


@pytest.mark.parametrize('name', BOMBS)
def test_doubled_and_endless_values_are_named_and_not_walked(name):
    kind = 'tuple' if name == 'tuple' else 'list'
    value = safe_pickle.load(BOMBS[name] + b'.')
    assert safe_pickle.describe(value) == f'a value of type {kind}'
    # In the place of a call's arguments, of each of them, of a state, of a shape.
    array = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)U\x01btR'
    for data in (
        b'cnumpy\ndtype\n' + BOMBS[name] + b'\x85R.',
        b'c_codecs\nencode\nU\x01a' + BOMBS[name] + b'\x86R.',
        DTYPE + BOMBS[name] + b'b.',
        DTYPE + b'(K\x03' + BOMBS[name] + b'NNNtb.',
        array + b'(K\x01' + BOMBS[name] + DTYPE + b'\x89U\x04aaaatb.',
    ):
        with pytest.raises(ValueError, match=r'refused|do not fit'):
            safe_pickle.load(data)


def test_a_doubled_tuple_is_no_key_of_a_dictionary():
    # Its hash would take 2 to the 80th steps.
    with pytest.raises(ValueError, match='key a value of type tuple'):
        safe_pickle.load(b'}' + BOMBS['tuple'] + b'K\x01s.')


@pytest.mark.parametrize('key', [-1, 10**9, 2**61 - 1, True, 1.5, None, b'K', (0,)])
def test_keys_are_text_or_small_numbers(key):
    with pytest.raises(ValueError, match='a dictionary has the key'):
        safe_pickle.load(pickle.dumps({0: 1, key: 1}, 3))


@pytest.mark.parametrize('data', [b']' * 110_000, b'(' * 1000])
def test_too_many_waiting_values_end_in_an_error(data):
    with pytest.raises(ValueError, match='nested too deeply'):
        safe_pickle.load(data)


def test_deep_nesting_needs_no_deep_stack():
    value = safe_pickle.load(b']' * 5000 + b'a' * 4999 + b'.')
    for _ in range(4999):
        (value,) = value
    assert value == []


CONTENT = {
    'text': b'X' + struct.pack('<I', 4096) + b'a' * 4096,
    'bytes': b'B' + struct.pack('<I', 4096) + b'a' * 4096,
    'bytearray': b'\x96' + struct.pack('<Q', 4096) + b'a' * 4096,
}


@pytest.mark.parametrize('kind', CONTENT)
@pytest.mark.parametrize('use', ['encode', 'build', 'frombuffer'])
def test_one_content_cannot_become_many_arrays(kind, use):
    dtype = b'cnumpy\ndtype\n(U\x02i4tR(K\x03U\x01>NNNtb'
    step = {
        'encode': b'c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R',
        # Content in the other byte order is copied, even where it is bytes.
        'build': b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)U\x01btR'
        b'(K\x01M\x00\x04\x85' + dtype + b'\x89h\x00tb',
        'frombuffer': b'cnumpy.core.numeric\n_frombuffer\n(h\x00'
        + dtype
        + b'M\x00\x04\x85U\x01CtR',
    }[use]
    start = b'\x80\x05]' + CONTENT[kind] + b'q\x00a'
    if use == 'encode' and kind != 'text':
        with pytest.raises(ValueError, match='calls encode with unexpected arguments'):
            safe_pickle.load(start + step + b'a.')
        return
    assert len(safe_pickle.load(start + step + b'a.')) == 2
    with pytest.raises(ValueError, match='more bytes of arrays than it has itself'):
        safe_pickle.load(start + (step + b'a') * 1000 + b'.')


def test_steps_are_capped(monkeypatch):
    data = pickle.dumps(a_table(), 2)
    monkeypatch.setattr(safe_pickle, '_MAX_STEPS', 20)
    with pytest.raises(ValueError, match='more than 20 steps'):
        safe_pickle.load(data)


def test_steps_without_content_are_capped_by_size(monkeypatch):
    """Twenty million empty lists took 16 seconds."""
    monkeypatch.setattr(safe_pickle, '_FREE_STEPS', 1_000)
    with pytest.raises(ValueError, match='more than 2,250 steps, too many for its size'):
        safe_pickle.load(b']' + b']a' * 20_000 + b'.')
    rows = [{'uv_vis': np.ones((42, 3)), 'xyz': np.ones((42, 3))} for _ in range(100)]
    assert len(safe_pickle.load(pickle.dumps(dict(enumerate(rows)), 2))) == 100


def test_text_that_is_none_is_named_as_damage():
    with pytest.raises(ValueError, match='text that is none') as caught:
        safe_pickle.load(b'X\x02\0\0\0\xff\xff.')
    assert type(caught.value) is ValueError


# Shape (2, 3) of float64 with 47 bytes, sides of 0 and below, and more sides than NumPy has.
@pytest.mark.parametrize(
    ('shape', 'length'),
    [((2, 3), 47), ((0, 5), 0), ((-1, -1), 8), ((2**40, 2**40), 8), ((1,) * 40, 8), ((True,), 8)],
)
def test_arrays_that_do_not_fit_their_content_are_refused(shape, length):
    class Array:
        def __reduce__(self):
            state = (1, shape, np.dtype('f8'), False, b'a' * length)
            return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b'b'), state

    # Python 3 writes the empty bytes as a call of `bytes`.
    with pytest.raises(ValueError, match=r'do not fit|builtins?\.bytes'):
        safe_pickle.load(pickle.dumps({0: Array()}, protocol=3))


def test_random_damage_gives_a_value_or_a_value_error():
    data = bytearray(pickle.dumps({0: a_table(), 1: {'a': [1, 'x', (2, 3)]}}, protocol=2))
    rng = np.random.default_rng(0)
    outcomes = {'read': 0, 'refused': 0}
    for _ in range(1500):
        damaged = bytearray(data)
        # Most of the file is the arrays' content, where damage is legal: aim at the rest as well.
        for position in rng.integers(0, rng.choice([200, len(data)]), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            safe_pickle.load(bytes(damaged[: rng.choice([len(data), rng.integers(len(data))])]))
            outcomes['read'] += 1
        except ValueError:
            outcomes['refused'] += 1
    assert min(outcomes.values()) > 50, outcomes


# --- names for values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('value', 'name'),
    [
        (None, 'None'),
        (1.5, '1.5'),
        ('text', "'text'"),
        ('x' * 100, repr('x' * 77 + '...')),
        (np.zeros((2, 3), np.int16), r'an array of int16 and shape (2, 3)'),
        ([1], 'a value of type list'),
        ((1,), 'a value of type tuple'),
        (7, 'a value of type int'),
    ],
)
def test_values_have_short_names(value, name):
    assert safe_pickle.describe(value) == name
