"""COCO-WholeBody's hands (Jin et al. 2020), and other hands in COCO's kind of JSON.

Two forms are read: persons with `lefthand_kpts` and `righthand_kpts`, a record for each valid hand;
and hands with `keypoints`, as MMPose keeps OneHand10K, FreiHAND, Panoptic and RHD, a record for
each. README.md beside this file has the options for each.
"""

import argparse
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeGuard

import ijson
import numpy as np
from jaxtyping import Float

from handpose_jax import hand
from handpose_jax.data import prepared
from handpose_jax.data.conversion import records
from handpose_jax.data.quarantine import BadRecord

NAME = 'coco_wholebody'
VERSION = '1'

ORDERS: dict[str, tuple[int, ...]] = {
    # Wrist, thumb, index, .., each finger from base to tip: COCO-WholeBody, OneHand10K, FreiHAND,
    # Panoptic.
    'identity': tuple(range(hand.NUM_KEYPOINTS)),
    # Each finger from tip to base.
    'rhd': (0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17),
    # From the little finger to the thumb, each from base to tip; the first is the palm's centre.
    'shp': (0, 17, 18, 19, 20, 13, 14, 15, 16, 9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4),
    # Each finger from tip to base, the wrist last.
    'interhand': (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16),
}
"""Our keypoint i is the file's keypoint ORDERS[name][i]. README.md says how each was checked."""

_NO_KEYPOINT_OF_OURS = {'shp': (hand.WRIST,)}

HEAD_SHARE = 0.7
"""Side of a hand's box over the size of the head. Source: Simon et al. 2017."""

EVALUATION = ('val', 'test')
"""Splits in which no record may be bad."""

# COCO-WholeBody publishes these: split, annotations, images.
_PUBLISHED = (
    ('train', 'annotations/coco_wholebody_train_v1.0.json', 'train2017'),
    ('val', 'annotations/coco_wholebody_val_v1.0.json', 'val2017'),
)

_SIDES = ('right', 'left')
_UNKNOWN_SIDE = -1

_NEEDED = ('images', 'annotations')
_LISTS = (*_NEEDED, 'categories')
_STARTS = ('start_map', 'start_array')
# An element that is larger or deeper is no annotation, or the file is broken and never ends.
_MAX_EVENTS, _MAX_DEPTH = 2**20, 64


class Part(NamedTuple):
    """One annotation file.

    Attributes:
        split: that its hands become.
        annotations: its path.
        images: folder that its file names are relative to.
    """

    split: str
    annotations: Path
    images: Path


class Options(NamedTuple):
    """How the values are understood.

    Attributes:
        order: key of ORDERS.
        handedness: of hands whose annotation does not say: 'left', 'right', 'file_name' (which
            ends in _l or _r) or '' (there are none).
        boxes: 'keypoints', the tight box of the annotated ones; 'file', as annotated; 'head', the
            square of HEAD_SHARE x the head's size around `center`.
    """

    order: str = 'identity'
    handedness: str = ''
    boxes: str = 'keypoints'


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """The record of a number.

    Attributes:
        part: which file.
        table: its hands, as _write_table keeps them.
        options: how they are understood.
    """

    part: Part
    table: str
    options: Options

    def __call__(self, index: int) -> prepared.Example:
        one = _table(self.table).hand(index)
        file = self.part.annotations
        if one.problem is not None:
            field, expected, got = one.problem
            raise BadRecord(file=file, record=one.record, field=field, expected=expected, got=got)
        points = one.keypoints[list(ORDERS[self.options.order])]
        annotated = points[:, 2] > 0
        annotated[list(_NO_KEYPOINT_OF_OURS.get(self.options.order, ()))] = False
        return records.make_record(
            image=self.part.images / one.file,
            file=file,
            record=one.record,
            keypoints=points[:, :2],
            annotated=annotated,
            is_left=_is_left(one, self.options.handedness, file),
            image_id=f'{one.file}#{one.record}',
            box=_box(one, self.options.boxes, file),
            norm_size=None if np.isnan(one.head_size) else one.head_size,
            size=(one.height, one.width) if one.height > 0 else None,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py coco_wholebody` understands."""
    records.add_arguments(parser)
    parser.add_argument('--annotations', nargs='+', default=[], help='JSON files, in --manual_dir')
    parser.add_argument('--images', nargs='+', default=['.'], help='folder of each, or of all')
    parser.add_argument('--split', nargs='+', default=['train'], help='that each becomes')
    parser.add_argument('--order', choices=ORDERS, default='identity', help='of the keypoints')
    parser.add_argument(
        '--handedness',
        choices=('left', 'right', 'file_name'),
        default='',
        help='of hands whose annotation does not say; file_name: it ends in _l or _r',
    )
    parser.add_argument(
        '--boxes',
        choices=('keypoints', 'file', 'head'),
        default='keypoints',
        help='tight around the keypoints, as in the file, or from the size of the head',
    )
    parser.add_argument('--name', default=NAME, help='of the data set')


def prepare(arguments: argparse.Namespace) -> None:
    """Converts the files."""
    records.check_name('--name', arguments.name)
    folder = Path(arguments.manual_dir)
    options = Options(arguments.order, arguments.handedness, arguments.boxes)
    name = arguments.name
    cache = records.cache_folder(name, arguments)
    named = parts(folder, arguments.annotations, arguments.images, arguments.split)
    found = splits(named, options=options, cache=cache)
    records.prepare(
        name,
        VERSION,
        arguments,
        found,
        description="Hands of COCO's kind of JSON files.",
        settings={
            **options._asdict(),
            'annotations': {split: _table(str(cache / f'{split}.npz')).digest for split in found},
        },
    )


def parts(
    folder: Path, annotations: Sequence[str], images: Sequence[str], names: Sequence[str]
) -> list[Part]:
    """The files that the options name; without `annotations` those of COCO-WholeBody that exist.

    Raises:
        ValueError: if they do not go together, or there are none.
    """
    if not annotations:
        if (list(images), list(names)) != (['.'], ['train']):
            raise ValueError('--images and --split: expected --annotations beside them, got none')
        found = [
            Part(split, folder / file, folder / pictures)
            for split, file, pictures in _PUBLISHED
            if (folder / file).is_file()
        ]
        if not found:
            wanted = ' or '.join(file for _, file, _ in _PUBLISHED)
            raise ValueError(
                f'--manual_dir {folder}: expected {wanted} in it; download them and the images of '
                'COCO 2017 (see datasets/coco_wholebody/README.md), or name your own by '
                '--annotations, --images and --split'
            )
        return found
    pictures = list(images) * (len(annotations) if len(images) == 1 else 1)
    if not len(annotations) == len(pictures) == len(names):
        raise ValueError(
            'expected as many --split as --annotations, and one --images or as many, got '
            f'{len(annotations)} annotations, {len(images)} images and {len(names)} splits'
        )
    for split in names:
        records.check_name('--split', split)
    if len(set(names)) != len(names):
        raise ValueError(f'--split: expected different names, got {list(names)}')
    return [
        Part(split, folder / file, folder / place)
        for split, file, place in zip(names, annotations, pictures, strict=True)
    ]


def splits(parts: Sequence[Part], *, options: Options, cache: Path) -> dict[str, prepared.Split]:
    """A split for each file.

    Args:
        parts: the files.
        options: how they are understood.
        cache: folder for tables of their hands, which every process reads in a moment.

    Raises:
        ValueError: for a file that is bad as a whole, or that leaves open which hands are left.
    """
    found = {}
    for part in parts:
        path = cache / f'{part.split}.npz'
        table = _make_table(part.annotations, path)
        if not len(table):
            raise ValueError(f'{part.annotations}: expected hands with keypoints, got none')
        if table.first_of_unknown_side and not options.handedness:
            raise ValueError(
                f'{part.annotations}: record {table.first_of_unknown_side}, field '
                "'hand_type': expected 'left' or 'right', but it is missing; say by --handedness "
                'which hands such records show'
            )
        if table.empty:
            print(f'{part.annotations}: {table.empty} hands without keypoints are left out')
        found[part.split] = prepared.Split(
            len(table),
            MakeExample(part, str(path), options),
            evaluation=part.split in EVALUATION,
        )
    return found


# --- one hand -------------------------------------------------------------------------------------


class _Hand(NamedTuple):
    """A hand as the file has it.

    Attributes:
        record: names it: number of its annotation, and side where there may be two.
        image: number of its image.
        side: index into _SIDES, or _UNKNOWN_SIDE.
        category: that may tell the side instead.
        keypoints: f64[21 3], x, y and v, in the file's order.
        box: f64[4], x, y, width, height; NaN if absent.
        centre: f64[2]; NaN if absent.
        head_size: pixels; NaN if absent.
        problem: field, expected, got; None if there is none.
    """

    record: str
    image: Any
    side: int
    category: Any
    keypoints: Float[np.ndarray, '21 3']
    box: Float[np.ndarray, '4']
    centre: Float[np.ndarray, '2']
    head_size: float
    problem: tuple[str, str, str] | None


class _Problem(Exception):
    """What is wrong with a field: its name, what was expected, what came."""


def _hands(position: int, annotation: Any) -> Iterator[_Hand]:
    """The hands of an annotation that claim to be valid."""
    if not isinstance(annotation, dict):
        yield _bad(str(position), None, _Problem('annotations', 'an object', _show(annotation)))
        return
    record = str(annotation.get('id', position))
    image = annotation.get('image_id')
    if annotation.get('iscrowd') == 1:
        return
    if not ('lefthand_kpts' in annotation or 'righthand_kpts' in annotation):
        try:
            yield _single_hand(record, annotation)
        except _Problem as problem:
            yield _bad(record, image, problem)
        return
    for number, side in enumerate(_SIDES):
        try:
            valid = annotation.get(f'{side}hand_valid')
            if valid not in (False, True):
                raise _Problem(f'{side}hand_valid', 'true or false', _show(valid))
            if valid:
                yield _Hand(
                    record=f'{record}/{side}',
                    image=image,
                    side=number,
                    category=None,
                    keypoints=_keypoints(annotation, f'{side}hand_kpts'),
                    box=_numbers(annotation, f'{side}hand_box', 4),
                    centre=np.full(2, np.nan),
                    head_size=np.nan,
                    problem=None,
                )
        except _Problem as problem:
            yield _bad(f'{record}/{side}', image, problem)


def _single_hand(record: str, annotation: Mapping[str, Any]) -> _Hand:
    named = annotation.get('hand_type')
    if named not in (None, *_SIDES):
        raise _Problem('hand_type', "'left' or 'right'", _show(named))
    return _Hand(
        record=record,
        image=annotation.get('image_id'),
        side=_UNKNOWN_SIDE if named is None else _SIDES.index(named),
        category=annotation.get('category_id'),
        keypoints=_keypoints(annotation, 'keypoints'),
        box=_numbers(annotation, 'bbox', 4),
        centre=_numbers(annotation, 'center', 2),
        head_size=float(_numbers(annotation, 'head_size', 1)[0]),
        problem=None,
    )


def _bad(record: str, image: Any, problem: _Problem) -> _Hand:
    nothing = np.full((hand.NUM_KEYPOINTS, 3), np.nan)
    return _Hand(
        record=record,
        image=image,
        side=0,
        category=None,
        keypoints=nothing,
        box=nothing[:4, 0],
        centre=nothing[:2, 0],
        head_size=np.nan,
        problem=problem.args,
    )


def _keypoints(annotation: Mapping[str, Any], field: str) -> Float[np.ndarray, '21 3']:
    count = 3 * hand.NUM_KEYPOINTS
    value = annotation.get(field)
    # MMPose's RHD has triples.
    if isinstance(value, list) and all(isinstance(v, list) and len(v) == 3 for v in value):
        value = [number for triple in value for number in triple]
    array = _numbers({field: value}, field, count)
    if np.isnan(array).any():
        raise _Problem(field, f'{count} numbers, x, y and v of {hand.NUM_KEYPOINTS}', _show(value))
    return array.reshape(hand.NUM_KEYPOINTS, 3)


def _numbers(annotation: Mapping[str, Any], field: str, count: int) -> Float[np.ndarray, 'n']:
    """Numbers of a field; NaN if it is absent."""
    value = annotation.get(field)
    if value is None:
        return np.full(count, np.nan)
    values = value if isinstance(value, list) else [value]
    if len(values) != count or not all(type(v) in (int, float) and abs(v) < 1e9 for v in values):
        raise _Problem(field, f'{count} numbers', _show(value))
    return np.array(values, np.float64)


def _show(value: Any) -> str:
    if value is None:
        return 'nothing'
    text = repr(value)
    many = f' ({len(value)} of them)' if isinstance(value, list) else ''
    return (text if len(text) <= 60 else f'{text[:57]}...') + many


def _is_left(one: '_Row', handedness: str, file: Path) -> bool:
    if one.side != _UNKNOWN_SIDE:
        return _SIDES[one.side] == 'left'
    if handedness != 'file_name':
        return handedness == 'left'
    for suffix, is_left in (('_l', True), ('_r', False)):
        if PurePosixPath(one.file).stem.endswith(suffix):
            return is_left
    raise BadRecord(
        file=file,
        record=one.record,
        field='file_name',
        expected='a name that ends in _l or _r, as --handedness file_name has it',
        got=one.file,
    )


def _box(one: '_Row', kind: str, file: Path) -> Float[np.ndarray, '4'] | None:
    if kind == 'keypoints':
        return None
    if kind == 'head':
        half = HEAD_SHARE * one.head_size / 2
        box = np.concatenate([one.centre - half, one.centre + half])
        field, expected = 'head_size', 'it and center, as --boxes head has it'
    else:
        box = np.concatenate([one.box[:2], one.box[:2] + one.box[2:]])
        field, expected = 'bbox', 'a box, as --boxes file has it'
    if np.isnan(box).any():
        raise BadRecord(file=file, record=one.record, field=field, expected=expected, got='nothing')
    return box


# --- the table ------------------------------------------------------------------------------------


class _Row(NamedTuple):
    record: str
    file: str
    height: int
    width: int
    side: int
    keypoints: Float[np.ndarray, '21 3']
    box: Float[np.ndarray, '4']
    centre: Float[np.ndarray, '2']
    head_size: float
    problem: tuple[str, str, str] | None


class _Table:
    """The hands of a file, as a few large arrays."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = {name: arrays[name] for name in arrays}
        self.digest = str(arrays['sha256'])
        self.empty = int(arrays['empty'])
        problems = zip(arrays['bad'].tolist(), arrays['problem'].tolist(), strict=True)
        self._problems = {row: tuple(problem) for row, problem in problems}

    def __len__(self) -> int:
        return len(self._arrays['side'])

    @property
    def first_of_unknown_side(self) -> str:
        rows = np.flatnonzero(self._arrays['side'] == _UNKNOWN_SIDE)
        return str(self._arrays['record'][rows[0]]) if len(rows) else ''

    def hand(self, index: int) -> _Row:
        values = {name: self._arrays[name][index] for name in _COLUMNS}
        image = int(self._arrays['image'][index])
        height, width = self._arrays['image_size'][image].tolist()
        return _Row(
            record=str(values['record']),
            file=str(self._arrays['image_file'][image]),
            height=height,
            width=width,
            side=int(values['side']),
            keypoints=values['keypoints'],
            box=values['box'],
            centre=values['centre'],
            head_size=float(values['head_size']),
            problem=self._problems.get(index),
        )


_COLUMNS = ('record', 'side', 'keypoints', 'box', 'centre', 'head_size')


@functools.cache
def _table(path: str) -> _Table:
    with Path(path).open('rb') as file, np.load(file, allow_pickle=False) as stored:
        return _Table(stored)


def _make_table(annotations: Path, path: Path) -> _Table:
    """The hands of a file, kept in another one for every process."""
    try:
        with annotations.open('rb') as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise ValueError(f'{annotations}: cannot be read ({error.strerror})') from error
    records.keep(path, digest, lambda: _tabulate(annotations))
    _table.cache_clear()
    return _table(str(path))


def _elements(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Yields the elements of a file's lists, in its order: key, position in the list, element.

    The files reach gigabytes, several times that as Python values; one element is small.
    """
    expected = f'expected a JSON object in UTF-8 with the lists {" and ".join(_NEEDED)}'
    counts: dict[str, int] = {}
    key, depth, events, builder = '', 0, 0, ijson.ObjectBuilder()
    try:
        with path.open('rb') as file:
            for event, value in ijson.basic_parse(file, use_float=True):
                depth -= event in ('end_map', 'end_array')
                if depth == 0 and event not in ('start_map', 'end_map'):
                    raise ValueError('it is no object')
                if depth == 1 and event == 'map_key':
                    key = value
                    if key in counts:
                        raise ValueError(f'{key!r} stands in it twice')
                elif depth == 1 and key in _LISTS:
                    if event not in ('start_array', 'end_array'):
                        raise ValueError(f'{key!r} is no list')
                    counts.setdefault(key, 0)
                elif depth > 1 and key in _LISTS:
                    builder.event(event, value)
                    events += 1
                    if depth == 2 and event not in _STARTS:
                        yield key, counts[key], builder.value
                        counts[key] += 1
                        events, builder = 0, ijson.ObjectBuilder()
                depth += event in _STARTS
                if depth > _MAX_DEPTH or events > _MAX_EVENTS:
                    raise ValueError('one of its values is nested too deeply or never ends')
    except (ValueError, ijson.JSONError) as error:
        # The parser shows the place in lines of its own.
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'{path}: {expected}, got something else, or numbers like NaN and Infinity, which JSON '
            f'does not have: {reason}'
        ) from error
    missing = [name for name in _NEEDED if name not in counts]
    if missing:
        raise ValueError(f'{path}: {expected}, but {" and ".join(missing)} are missing')


def _tabulate(annotations: Path) -> dict[str, np.ndarray]:
    images: dict[Any, tuple[int, str, int, int]] = {}
    side_of_category: dict[Any, int] = {}
    found: list[_Hand] = []
    for name, position, value in _elements(annotations):
        if name == 'images':
            number, image = _image(annotations, position, value)
            known = images.setdefault(number, (len(images), *image))
            if known[1:] != image:
                raise ValueError(
                    f"{annotations}: image {position}, field 'id': expected one that no other "
                    f'image has, got {_show(number)}, which is that of {known[1]} too; give each '
                    'image an id of its own'
                )
        elif name == 'categories':
            side_of_category |= _side_of_category(value)
        else:
            found += _hands(position, value)
    if not images:
        raise ValueError(f'{annotations}: the list of images is empty; there is nothing to read')
    hands, empty = [], 0
    for one in found:
        if one.side == _UNKNOWN_SIDE and isinstance(one.category, int):
            side = side_of_category.get(one.category, _UNKNOWN_SIDE)
            one = one._replace(side=side)
        if one.problem is None and not (one.keypoints[:, 2] > 0).any():
            empty += 1
        elif one.problem is None and not _is_known(one.image, images):
            problem = _Problem('image_id', 'the id of an image', _show(one.image))
            hands.append(_bad(one.record, None, problem))
        else:
            hands.append(one)
    rows = [images[one.image][0] if _is_known(one.image, images) else 0 for one in hands]
    bad = [row for row, one in enumerate(hands) if one.problem is not None]
    return {
        'record': np.array([one.record for one in hands], np.str_),
        'image': np.array(rows, np.int64),
        'side': np.array([one.side for one in hands], np.int64),
        'keypoints': _stack([one.keypoints for one in hands], (hand.NUM_KEYPOINTS, 3)),
        'box': _stack([one.box for one in hands], (4,)),
        'centre': _stack([one.centre for one in hands], (2,)),
        'head_size': np.array([one.head_size for one in hands], np.float64),
        'image_file': np.array([file for _, file, _, _ in images.values()], np.str_),
        'image_size': np.array([size for _, _, *size in images.values()], np.int64),
        'empty': np.array(empty),
        'bad': np.array(bad, np.int64),
        'problem': np.array([hands[row].problem for row in bad], np.str_).reshape(-1, 3),
    }


def _stack(arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.array(arrays, np.float64).reshape(-1, *shape)


def _is_known(number: Any, images: Mapping[Any, Any]) -> bool:
    return _is_id(number) and number in images


def _is_id(value: Any) -> TypeGuard[int | str]:
    # True is 1 to Python.
    return isinstance(value, int | str) and not isinstance(value, bool)


def _image(annotations: Path, position: int, value: Any) -> tuple[int | str, tuple[str, int, int]]:
    """Id, file name, height and width (0 if absent) of an image."""

    def bad(field: str, expected: str, got: Any) -> ValueError:
        return ValueError(
            f'{annotations}: image {position}, field {field!r}: expected {expected}, got '
            f'{_show(got)}'
        )

    if not isinstance(value, dict):
        raise bad('images', 'an object', value)
    number, file = value.get('id'), value.get('file_name')
    if not _is_id(number):
        raise bad('id', 'a number or text', number)
    if (
        not isinstance(file, str)
        or not file
        or '\0' in file
        or PurePosixPath(file).is_absolute()
        or PureWindowsPath(file).anchor
        or '..' in PurePosixPath(file).parts
    ):
        raise bad('file_name', 'a path relative to the folder of images and inside it', file)
    height, width = value.get('height'), value.get('width')
    if height is None or width is None:
        return number, (file, 0, 0)
    for field, side in (('height', height), ('width', width)):
        if type(side) is not int or not 0 < side < 2**31:
            raise bad(field, 'a positive whole number of pixels', side)
    return number, (file, height, width)


def _side_of_category(value: Any) -> dict[Any, int]:
    """Which hand a category means, if its name holds one of the two words."""
    if not isinstance(value, dict) or not _is_id(value.get('id')):
        return {}
    words = [side for side in _SIDES if side in str(value.get('name')).lower()]
    return {value['id']: _SIDES.index(words[0])} if len(words) == 1 else {}
