"""Reads pickles of plain values and NumPy arrays, without running anything that they name.

A pickle is a program, which `pickle` runs: it can call any function there is. Here a small machine
of our own carries out the few steps that make None, booleans, numbers, text, bytes, lists, tuples,
dictionaries and arrays of numbers, written by Python 2 or 3, NumPy 1 or 2, in any protocol. It
refuses everything else by name, and imports, calls and hashes nothing else that the file names or
builds.

What it returns may still be hostile in one way: a file of a few hundred bytes can hold one list
twice in another, and so on, 2 to the 80th values, or a list that holds itself. Check the type of a
value before going into it, and name it by `describe`, which never does.
"""

import math
import pickletools
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

# The largest file that is read here, RHD's training annotations, takes 3 million steps, one for
# every 28 bytes. A file made of nothing but steps takes many times as long for its size.
_MAX_STEPS = 4_000_000
_FREE_STEPS = 1_000_000
_BYTES_PER_STEP = 32
_MAX_MARKS = 64
_MAX_WAITING = 100_000
_MAX_KEY = 10**9


def load(data: bytes) -> Any:
    """Returns the value that a pickle holds.

    Args:
        data: the pickle. Memory stays within a small multiple of it.

    Returns:
        None, bool, int, float, str, bytes, bytearray, a NumPy array of booleans, integers or
        floats, or a list, a tuple or a dictionary of these. NumPy scalars become Python's. The text
        of Python 2, which is also its bytes, becomes str, read as Latin-1. The keys of dictionaries
        are text or whole numbers of 0..999,999,999. Arrays may be read-only.

    Raises:
        ValueError: for anything else, which it names; for damage; for values nested too deeply, too
            many steps, and arrays out of proportion to the file.
    """
    return _Unpickler(data).load()


def describe(value: Any) -> str:
    """A short name for a value of a pickle, for messages; never looks into containers."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:77] + '...')
    if isinstance(value, np.ndarray):
        return f'an array of {value.dtype} and shape {value.shape}'
    if isinstance(value, _Global):
        return f'the name of a function ({value.role})'
    if isinstance(value, _Dtype):
        return f'the dtype {value.numpy}'
    return f'a value of type {"tuple" if isinstance(value, tuple) else type(value).__name__}'


class _Global(NamedTuple):
    """A name in the file that stands for one of the steps that make arrays; nothing to call."""

    role: str


class _Dtype:
    """A numeric dtype in the making."""

    __slots__ = ('code', 'order')

    def __init__(self, code: str):
        self.code = code
        self.order = '<'

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Arguments(tuple[Any, ...]):
    """A tuple that holds a name or a dtype: only good for making arrays, no value of its own."""

    __slots__ = ()


# Where NumPy 1 and 2 have the functions that their pickles name.
_GLOBALS = {
    'numpy ndarray': 'ndarray',
    'numpy dtype': 'dtype',
    '_codecs encode': 'encode',
    **{
        f'numpy.{core}.{name}': role
        for core in ('core', '_core')
        for name, role in (
            ('multiarray _reconstruct', 'reconstruct'),
            ('multiarray scalar', 'scalar'),
            ('numeric _frombuffer', 'frombuffer'),
        )
    },
}

# Steps that put their own argument on the stack.
_LITERALS = (
    *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'),
    *('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
    *('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BYTEARRAY8'),
)


class _Unpickler:
    """The machine: `pickletools` takes the file apart into steps, carried out here on a stack.

    Neither goes deeper the deeper the values are nested. Dictionaries have numbers or text for
    keys, as the hash of a tuple costs as much as all that it holds.
    """

    def __init__(self, data: bytes):
        self._data = data
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0
        self._steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_LITERALS, self._push),
            'PROTO': self._ignore,
            'FRAME': self._ignore,
            'NONE': lambda _: self._push(None),
            'NEWTRUE': lambda _: self._push(True),
            'NEWFALSE': lambda _: self._push(False),
            'EMPTY_DICT': lambda _: self._push({}),
            'EMPTY_LIST': lambda _: self._push([]),
            'EMPTY_TUPLE': lambda _: self._push(()),
            'TUPLE1': lambda _: self._short_tuple(1),
            'TUPLE2': lambda _: self._short_tuple(2),
            'TUPLE3': lambda _: self._short_tuple(3),
            'MARK': self._mark,
            'TUPLE': lambda _: self._tuple(self._pop_mark()),
            'LIST': self._list,
            'DICT': self._dict,
            'APPEND': lambda _: self._extend([self._pop()]),
            'APPENDS': lambda _: self._extend(self._pop_mark()),
            'SETITEM': lambda _: self._set_items([self._pop(), self._pop()][::-1]),
            'SETITEMS': lambda _: self._set_items(self._pop_mark()),
            **dict.fromkeys(('PUT', 'BINPUT', 'LONG_BINPUT'), self._keep),
            'MEMOIZE': lambda _: self._keep(len(self._memo)),
            **dict.fromkeys(('GET', 'BINGET', 'LONG_BINGET'), self._recall),
            'GLOBAL': self._global,
            'STACK_GLOBAL': self._stack_global,
            'INST': self._instance,
            'REDUCE': self._reduce,
            'BUILD': self._build,
        }

    def load(self) -> Any:
        # A strange escape in a name makes pickletools warn; the name is refused here anyway.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                self._run()
            except UnicodeError as error:
                raise ValueError(f'it is damaged: it holds text that is none ({error})') from error
        value = self._pop()
        if self._stack or self._below:
            raise ValueError('it is damaged: values are left over at its end')
        _check_values([value])
        return value

    def _run(self) -> None:
        most = min(_MAX_STEPS, _FREE_STEPS + len(self._data) // _BYTES_PER_STEP)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self._data)):
            if count >= most:
                raise ValueError(f'it takes more than {most:,} steps, too many for its size')
            if opcode.name == 'STOP':
                return
            step = self._steps.get(opcode.name)
            if step is None:
                raise ValueError(f'it uses the step {opcode.name}, which is refused')
            step(argument)
            if len(self._stack) > _MAX_WAITING or len(self._below) > _MAX_MARKS:
                raise ValueError('it is nested too deeply')

    def _ignore(self, argument: Any) -> None:
        pass

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _tuple(self, items: list[Any]) -> None:
        self._push(_Arguments(items) if any(map(_is_part, items)) else tuple(items))

    def _short_tuple(self, length: int) -> None:
        self._tuple([self._pop() for _ in range(length)][::-1])

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _list(self, _: Any) -> None:
        items = self._pop_mark()
        self._push([])
        self._extend(items)

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _keep(self, place: int) -> None:
        self._memo[place] = self._top()

    def _recall(self, place: int) -> None:
        if place not in self._memo:
            raise ValueError(f'it is damaged: it uses value {place} before it is there')
        self._push(self._memo[place])

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise ValueError('it is damaged: a value is missing')
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._below:
            raise ValueError('it is damaged: a mark is missing')
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise ValueError(f'it appends to {describe(target)}, which is refused')
        _check_values(items)
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f'it sets items of {describe(target)}, which is refused')
        _check_values(items[1::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Larger numbers can be chosen to have equal hashes.
            if not isinstance(key, str) and not (type(key) is int and 0 <= key < _MAX_KEY):
                raise ValueError(
                    f'a dictionary has the key {describe(key)}; expected text or a number of '
                    f'0..{_MAX_KEY - 1:,}'
                )
            target[key] = value

    def _stack_global(self, _: Any) -> None:
        member, module = self._pop(), self._pop()
        if not isinstance(member, str) or not isinstance(module, str):
            raise ValueError('it is damaged: a name is not text')
        self._global(f'{module} {member}')

    def _global(self, name: str) -> None:
        if name not in _GLOBALS:
            raise ValueError(f'it asks for {_dotted(name)}, which is refused')
        self._push(_Global(_GLOBALS[name]))

    def _instance(self, name: str) -> None:
        raise ValueError(f'it makes an instance of {_dotted(name)}, which is refused')

    def _reduce(self, _: Any) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, _Global) or not isinstance(arguments, tuple):
            raise ValueError(f'it calls {describe(called)}, which is refused')
        # Matched by their types first: comparing a container goes as deep as its values, and
        # comparing an array looks at all of it.
        match called.role, arguments:
            case 'reconstruct', (_Global(role='ndarray'), tuple(), str() | bytes()):
                self._push(np.empty(0))
            case 'dtype', (str() as code, *_) if re.fullmatch('f[248]|[iu][1248]|b1', code):
                self._push(_Dtype(code))
            case 'dtype', (str() as code, *_):
                raise ValueError(f'it holds an array of dtype {describe(code)}; expected numbers')
            case 'encode', (str() as text, str('latin1' | 'latin-1')):
                self._push(self._bytes(text))
            case 'scalar', (_Dtype() as dtype, data):
                self._push(np.frombuffer(self._content(data, dtype, ()), dtype.numpy)[0].item())
            case 'frombuffer', (data, _Dtype() as dtype, tuple() as shape, str('C' | 'F') as order):
                array = np.empty(0)
                self._fill(array, data, dtype, shape, order == 'F')
                self._push(array)
            case role, _:
                raise ValueError(f'it calls {role} with unexpected arguments, which is refused')

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        match target, state:
            case _Dtype(), (int(), str('<' | '>' | '|') as order, None, None, None, *_):
                target.order = order
            case np.ndarray(), (int(), tuple() as shape, _Dtype() as dtype, int() as fortran, data):
                self._fill(target, data, dtype, shape, bool(fortran))
            case _:
                raise ValueError(f'it changes {describe(target)} in an unexpected way, refused')

    def _fill(
        self, array: np.ndarray, data: Any, dtype: _Dtype, shape: tuple[Any, ...], fortran: bool
    ) -> None:
        """Gives an array its content in place, as tuples may hold it already."""
        content = self._content(data, dtype, shape)
        # NumPy's own pickles have a plain bool there, whatever its stubs say.
        array.__setstate__((1, shape, dtype.numpy, fortran, content))  # type: ignore[arg-type]

    def _content(self, data: Any, dtype: _Dtype, shape: tuple[Any, ...]) -> bytes:
        content = self._bytes(data)
        sizes = [size for size in shape if type(size) is int and 0 < size <= len(content)]
        if (
            len(sizes) != len(shape)
            or len(shape) > 32
            or math.prod(sizes) * dtype.numpy.itemsize != len(content)
        ):
            raise ValueError(
                f'it is damaged: the {len(content)} bytes of an array of {dtype.numpy} do not fit '
                f'its {len(shape)}-dimensional shape'
            )
        return content

    def _bytes(self, data: Any) -> bytes:
        if not isinstance(data, str | bytes | bytearray):
            raise ValueError(f'expected the bytes of an array, got {describe(data)}')
        # One value of the file can be used many times, and each use makes a copy. An honest file
        # uses each once; written as text, it is made into bytes first.
        self._copied += len(data)
        if self._copied > 2 * len(self._data):
            raise ValueError('it holds more bytes of arrays than it has itself')
        # Python 2 had one type for text and bytes.
        return data.encode('latin-1') if isinstance(data, str) else bytes(data)


def _is_part(value: Any) -> bool:
    """Whether a value is only good for making arrays."""
    return isinstance(value, _Global | _Dtype | _Arguments)


def _check_values(items: Iterable[Any]) -> None:
    for item in items:
        if _is_part(item):
            raise ValueError(f'it holds {describe(item)} as a value, which is refused')


def _dotted(name: str) -> str:
    return describe(name.replace(' ', '.'))
