"""Where samples come from: the Source protocol and the folder source.

To train on your own hands, make a folder of images and one `annotations.json` as FolderSource
describes; to read another format, write a class with the five members of Source and add it to
SOURCES.
"""

import dataclasses
import hashlib
import inspect
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import geometry, hand
from handpose_jax.data import images
from handpose_jax.data.mixture import MixtureSource
from handpose_jax.data.prepared import PreparedSource
from handpose_jax.data.synthetic_hands import SyntheticSource
from handpose_jax.synthetic.drawing import flat
from handpose_jax.types import Sample

_MAX_LISTED_PROBLEMS = 20

# Beyond any photograph; keeps float32 arithmetic on coordinates far from overflow.
_MAX_COORDINATE = 1e6


@runtime_checkable
class Source(Protocol):
    """A finite, random-access collection of samples; read from several threads at once."""

    @property
    def groups(self) -> Sequence[str]:
        """For each record, the group it is balanced by."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def image_id(self, index: int, /) -> str:
        """The name of a record in messages and reports, known without reading its image."""

    def fingerprint(self) -> str:
        """A digest that changes when the records do; a run that goes on compares it."""


class FolderSource:
    """A folder of images and one JSON file of annotations.

    The JSON file is a list of records, one per hand:

        file        image path relative to the folder, inside it; required
        keypoints   21 pairs [x, y] in pixels of the upright image, in the order of
                    handpose_jax.hand; points beyond the image are allowed; required
        visible     21 booleans: which keypoints count; default all
        handedness  'left' or 'right'; default 'right'
        box         [x0, y0, x1, y1] around the hand, pixels; default the tight box of the visible
                    keypoints
        split       'train', 'val', 'test', or any other name
        source      the group the record is balanced by
        width, height   of the image; checked when the image is read
        id          unique name of the record; default made from `file`

    Other keys are ignored, and null counts as absent. Every record is checked here, whatever its
    split; images are only looked for, and decoded when asked for.

    Args:
        root: the folder.
        split: keep only records of this split; '' keeps all.
        crop_scale: side of the crop over the longest side of the box. Source of 2.2: Simon et al.
            2017.
        annotations: name of the JSON file, relative to root.
        max_megapixels: see images.decode_image.
        where: keep only records that have these values, e.g. {'licence': 'MIT'}.

    Raises:
        ValueError: naming every problem found (the first 20 in full): file, record and field, what
            was expected, what came.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        split: str = '',
        crop_scale: float = 2.2,
        annotations: str = 'annotations.json',
        max_megapixels: float = images.DEFAULT_MAX_MEGAPIXELS,
        where: Mapping[str, str] | None = None,
    ):
        if not (math.isfinite(crop_scale) and crop_scale > 0):
            raise ValueError(f'crop_scale must be finite and positive, got {crop_scale}')
        self._root = Path(root)
        self._path = self._root / annotations
        self._crop_scale = crop_scale
        self._max_megapixels = max_megapixels
        values = _read_list(self._path)
        records = _parse_records(values, self._root, self._path)
        self._records = _select(records, values, split, where or {}, self._path)
        self._groups = tuple(record.group for record in self._records)

    @property
    def groups(self) -> Sequence[str]:
        """For each record, its `source` ('' where it has none)."""
        return self._groups

    def __len__(self) -> int:
        return len(self._records)

    def fingerprint(self) -> str:
        """SHA-256 of the annotations, and of the names and sizes of the images in use."""
        digest = hashlib.sha256(self._path.read_bytes())
        for file in sorted({record.file for record in self._records}):
            size = (self._root / file).stat().st_size
            digest.update(f'{file}\0{size}\n'.encode())
        return digest.hexdigest()

    def image_id(self, index: int, /) -> str:
        """The record's `id`; without one its file, and '#number' if the file has several hands."""
        return self._records[index].image_id

    def record(self, index: int, /) -> 'Record':
        """One record as it stands in the file, without its image; not to be changed."""
        return self._records[index]

    def __getitem__(self, index: int, /) -> Sample:
        """Reads one record with its image.

        Returns:
            A sample; `box` is the square of crop_scale times the longest side of the tight (or
            given) box, `norm_size` that longest side, in image pixels.

        Raises:
            ValueError: if the image cannot be decoded or has another size than annotated.
        """
        record = self._records[index]
        try:
            image = images.read_image(
                os.path.join(self._root, record.file),
                max_megapixels=self._max_megapixels,
                thorough=False,
            )
        except ValueError as error:
            raise ValueError(f'{self._path}: {record.label}: {error}') from error
        for field, annotated, actual in (
            ('width', record.width, image.shape[1]),
            ('height', record.height, image.shape[0]),
        ):
            if annotated is not None and annotated != actual:
                raise ValueError(
                    f'{self._path}: {record.label}, field {field!r}: expected '
                    f'{actual}, the {field} of the upright image {record.file}, got {annotated}; '
                    'do the keypoints belong to another image, or to another size of this one?'
                )
        return {
            'image': image,
            'keypoints': record.keypoints.copy(),
            'visible': record.visible.copy(),
            'box': geometry.square_box(record.box, self._crop_scale).astype(np.float32),
            'is_left': record.is_left,
            'norm_size': geometry.longest_side(record.box),
            'image_id': record.image_id,
        }


class SketchSource:
    """Drawn hands that need no files, for smoke runs and tests; each is drawn when asked for.

    Args:
        count: how many the split 'train' holds; any other split holds a tenth, at least one.
        split: other names give other hands.
        crop_scale: side of the crop over the longest side of the keypoints' box.
        size: side of the drawn images, pixels.

    Raises:
        ValueError: for a count below one.
    """

    def __init__(
        self, *, count: int, split: str = 'train', crop_scale: float = 2.2, size: int = 128
    ):
        if count < 1:
            raise ValueError(f'data.count must be at least 1, got {count}')
        self._count = count if split == 'train' else max(1, count // 10)
        self._split = split
        self._crop_scale = crop_scale
        self._size = size

    @property
    def groups(self) -> Sequence[str]:
        """One group for all."""
        return ('sketch',) * self._count

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """Names what the drawings are made from, which decides every pixel."""
        return f'sketch/{self._split}/{self._count}/{self._size}'

    def image_id(self, index: int, /) -> str:
        """Split and number."""
        return f'sketch/{self._split}/{index}'

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(f'record {index} of {self._count}')
        split_seed = list(self._split.encode())
        image, keypoints = flat.draw(np.random.default_rng([index, *split_seed]), self._size)
        tight = geometry.keypoint_box(keypoints, np.ones(hand.NUM_KEYPOINTS, bool))
        return {
            'image': image,
            'keypoints': keypoints.astype(np.float32),
            'visible': np.ones(hand.NUM_KEYPOINTS, bool),
            'box': geometry.square_box(tight, self._crop_scale).astype(np.float32),
            'is_left': False,
            'norm_size': geometry.longest_side(tight),
            'image_id': self.image_id(index),
        }


def mixture(*, parts: Mapping[str, Mapping[str, Any]], split: str = '') -> MixtureSource:
    """Several sources as one; config.data.name = 'mixture' makes it.

    Args:
        parts: by a name of the part, what load_source takes: {'name': .., 'split': .., ..}.
        split: of the parts that name none themselves.

    Raises:
        ValueError: naming the part, for what its source refuses.
    """
    loaded: dict[str, Source] = {}
    for name, part in parts.items():
        if 'name' not in part:
            raise ValueError(f'data.parts.{name}.name: expected one of {sorted(SOURCES)}, got none')
        try:
            loaded[name] = load_source(**{'split': split, **part})
        except ValueError as error:
            raise ValueError(f'data.parts.{name}: {error}') from error
    return MixtureSource(loaded)


SOURCES: dict[str, Callable[..., Source]] = {
    'folder': FolderSource,
    'mixture': mixture,
    'prepared': PreparedSource,
    'sketch': SketchSource,
    'synthetic_hands': SyntheticSource,
}


def load_source(name: str, **kwargs: Any) -> Source:
    """Makes the source of the given name; its class documents the keyword arguments.

    Raises:
        ValueError: for an unknown name, or arguments that the source does not take.
    """
    if name not in SOURCES:
        raise ValueError(f'unknown source {name!r}; known are {", ".join(sorted(SOURCES))}')
    try:
        inspect.signature(SOURCES[name]).bind(**kwargs)
    except TypeError as error:
        raise ValueError(f'source {name!r}: {error}; see config.data') from error
    return SOURCES[name](**kwargs)


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of FolderSource, checked: the fields of the JSON file, absent ones filled in.

    `number` counts the file's records from 0; `box` is in image pixels, not yet a square.
    """

    number: int
    file: str
    image_id: str
    keypoints: Float[np.ndarray, '21 2']
    visible: Bool[np.ndarray, '21']
    box: Float[np.ndarray, '4']
    is_left: bool
    width: int | None
    height: int | None
    split: str
    group: str

    @property
    def label(self) -> str:
        return f'record {self.number} ({self.image_id})'


def _read_list(path: Path) -> list[Any]:
    try:
        values = json.loads(path.read_text('utf-8'))
    except FileNotFoundError as error:
        raise ValueError(
            f'{path}: no such annotation file; check the folder and the name of the file'
        ) from error
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}: expected JSON in UTF-8, got something else: {error}') from error
    if not isinstance(values, list):
        raise ValueError(f'{path}: expected a list of records, got a {type(values).__name__}')
    if not values:
        raise ValueError(f'{path}: the list of records is empty; there is nothing to read')
    return values


def _parse_records(values: list[Any], root: Path, path: Path) -> list[Record]:
    uses = Counter(v['file'] for v in values if isinstance(v, dict) and _is_text(v.get('file')))
    records: list[Record] = []
    problems: list[str] = []
    numbers: dict[str, int] = {}
    existing: dict[str, bool] = {}
    for number, value in enumerate(values):
        record, found = _parse_record(value, number, uses)
        problems += [f'record {number}, {problem}' for problem in found]
        if record is None:
            continue
        if record.file not in existing:
            existing[record.file] = os.path.isfile(root / record.file)
        if not existing[record.file]:
            problems.append(f"record {number}, field 'file': no such file: {root / record.file}")
        if record.image_id in numbers:
            problems.append(
                f"record {number}, field 'id': expected a unique name, got {record.image_id!r} "
                f'of record {numbers[record.image_id]} again'
            )
        numbers.setdefault(record.image_id, number)
        records.append(record)
    if problems:
        listed = '\n  '.join(problems[:_MAX_LISTED_PROBLEMS])
        hidden = len(problems) - _MAX_LISTED_PROBLEMS
        more = f'\n  ... and {hidden} more' if hidden > 0 else ''
        raise ValueError(
            f'{path}: {len(problems)} problem(s) in {len(values)} records; correct or remove them '
            f'(records count from 0):\n  {listed}{more}'
        )
    return records


def _parse_record(
    value: Any, number: int, uses: Mapping[str, int]
) -> tuple[Record | None, list[str]]:
    if not isinstance(value, dict):
        return None, [f'expected an object, got {_show(value)}']
    fields: dict[str, Any] = {}
    problems: list[str] = []
    for name, parse in _FIELDS.items():
        if value.get(name) is None:
            fields[name] = None
            if name in _REQUIRED:
                problems.append(f'field {name!r}: required, but missing')
            continue
        try:
            fields[name] = parse(value[name])
        except ValueError as error:
            problems.append(f'field {name!r}: {error}')
    if problems:
        return None, problems

    visible = fields['visible']
    if visible is None:
        visible = np.ones(hand.NUM_KEYPOINTS, bool)
    if not visible.any():
        return None, ["field 'visible': expected at least one visible keypoint, got none"]
    box = fields['box']
    if box is None:
        box = geometry.keypoint_box(fields['keypoints'], visible)
        if not geometry.longest_side(box) > 0:
            return None, [
                "field 'keypoints': expected visible keypoints at more than one place (or a field "
                f"'box'), got all of them at {box[:2].tolist()}"
            ]
    default_id = fields['file'] if uses[fields['file']] == 1 else f'{fields["file"]}#{number}'
    record = Record(
        number=number,
        file=fields['file'],
        image_id=fields['id'] or default_id,
        keypoints=fields['keypoints'].astype(np.float32),
        visible=visible,
        box=box,
        is_left=fields['handedness'] == 'left',
        width=fields['width'],
        height=fields['height'],
        split=fields['split'] or '',
        group=fields['source'] or '',
    )
    return record, []


def _select(
    records: list[Record], values: list[Any], split: str, where: Mapping[str, str], path: Path
) -> tuple[Record, ...]:
    of_split = [record for record in records if split in ('', record.split)]
    if not of_split:
        counts = Counter(record.split for record in records)
        raise ValueError(f'{path}: no record has split {split!r}; the splits are {_tally(counts)}')
    chosen = of_split
    for key, wanted in where.items():
        before = chosen
        chosen = [record for record in before if str(values[record.number].get(key)) == str(wanted)]
        if not chosen:
            counts = Counter(str(values[record.number].get(key)) for record in before)
            raise ValueError(
                f'{path}: no record (split {split!r}) has {key} = {wanted!r}; '
                f'the values of {key!r} are {_tally(counts)}'
            )
    return tuple(chosen)


def _tally(counts: Counter[str]) -> str:
    listed = [f'{name!r} ({count} records)' for name, count in counts.most_common(10)]
    return ', '.join(listed) + (', ...' if len(counts) > 10 else '')


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + '...'


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if not _is_text(value):
        raise ValueError(f'expected text, got {_show(value)}')
    return value


def _file(value: Any) -> str:
    path = PurePosixPath(_text(value))
    outside = path.is_absolute() or '..' in path.parts or PureWindowsPath(value).anchor
    if not value or outside or '\0' in value:
        raise ValueError(
            f'expected a path relative to the folder and inside it, got {_show(value)}'
        )
    return value


def _coordinates(values: Sequence[Any], name: str) -> Float[np.ndarray, 'n']:
    for position, value in enumerate(values):
        # The comparison also fails for NaN and the infinities, which Python's JSON reader lets
        # through.
        if not (_is_number(value) and abs(value) <= _MAX_COORDINATE):
            raise ValueError(
                f'{name.format(position=position)} must be a finite number of at most '
                f'{_MAX_COORDINATE:g} px, got {_show(value)}'
            )
    return np.array(values, np.float64)


def _keypoints(value: Any) -> Float[np.ndarray, '21 2']:
    if not isinstance(value, list) or len(value) != hand.NUM_KEYPOINTS:
        got = f'{len(value)} of them' if isinstance(value, list) else _show(value)
        raise ValueError(f'expected {hand.NUM_KEYPOINTS} pairs [x, y], got {got}')
    points = []
    for keypoint, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f'expected a pair [x, y] for keypoint {keypoint}, got {_show(pair)}')
        points.append(_coordinates(pair, f'coordinate {{position}} of keypoint {keypoint}'))
    return np.stack(points)


def _visible(value: Any) -> Bool[np.ndarray, '21']:
    if not isinstance(value, list) or len(value) != hand.NUM_KEYPOINTS:
        got = f'{len(value)} of them' if isinstance(value, list) else _show(value)
        raise ValueError(f'expected {hand.NUM_KEYPOINTS} booleans, got {got}')
    for keypoint, flag in enumerate(value):
        if not (isinstance(flag, bool) or (_is_number(flag) and flag in (0, 1))):
            raise ValueError(f'expected true or false for keypoint {keypoint}, got {_show(flag)}')
    return np.array(value, bool)


def _handedness(value: Any) -> str:
    if value not in ('left', 'right'):
        raise ValueError(f"expected 'left' or 'right', got {_show(value)}")
    return value


def _box(value: Any) -> Float[np.ndarray, '4']:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f'expected [x0, y0, x1, y1], got {_show(value)}')
    box = _coordinates(value, 'number {position}')
    if not (box[2] > box[0] and box[3] > box[1]):
        raise ValueError(f'expected x0 < x1 and y0 < y1, got {_show(value)}')
    return box


def _side(value: Any) -> int:
    if not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        raise ValueError(f'expected a positive whole number of pixels, got {_show(value)}')
    return value


_REQUIRED = ('file', 'keypoints')

_FIELDS: dict[str, Callable[[Any], Any]] = {
    'file': _file,
    'keypoints': _keypoints,
    'visible': _visible,
    'handedness': _handedness,
    'box': _box,
    'split': _text,
    'source': _text,
    'width': _side,
    'height': _side,
    'id': _text,
}
