"""The folder source: your own photographs, and one JSON file that says where the hands are."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import geometry, hand
from handpose_jax.data import images
from handpose_jax.types import Sample

_LOG = logging.getLogger('handpose_jax')

_MAX_LISTED_PROBLEMS = 20

# Beyond any photograph; keeps float32 arithmetic on coordinates far from overflow.
_MAX_COORDINATE = 1e6

# Coordinates of fractions lie in 0..1, or -1..1; points beyond the picture a little outside.
_FRACTION = 1.5
_NEARLY_ALL = 0.9
_FEW_PIXELS = 8

_CHECK_SECONDS = 30.0


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
        no_hand     true where the image, or the box of it, shows no hand. Such a record has no
                    keypoints and no handedness; `box` is the region to cut, taken as it is, and
                    required if there is no width and height, of which it is the default

    Other keys are ignored, and null counts as absent. Where `visible` is false, the keypoint may be
    null or NaN. Every record is checked here, whatever its split; images are only looked for, and
    decoded when asked for. Records without a visible keypoint are left out, and counted in the log;
    so are hands of a few pixels, and hands beside their image, which stay.

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
        _check_sense(records, self._path)
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

    def files_since(self, seconds: float) -> list[str]:
        """The annotations and images in use that were written after a time, seconds since 1970."""
        files = [self._path, *(self._root / file for file in {r.file for r in self._records})]
        newer = [file for file in files if file.stat().st_mtime > seconds]
        return sorted(file.relative_to(self._root).as_posix() for file in newer)

    def check_images(self, *, seconds: float = _CHECK_SECONDS) -> None:
        """Looks at the header and the end of each image in use, without decoding any.

        Args:
            seconds: how long at most; the log tells if images are left then.

        Raises:
            ValueError: naming every image (the first 20 in full) that is damaged or has another
                size than its records say.
        """
        records = {record.file: record for record in self._records}
        problems: list[str] = []
        end = time.monotonic() + seconds
        for number, (file, record) in enumerate(records.items()):
            if time.monotonic() > end:
                _LOG.warning(
                    '%s: the first %s of %s images were looked at before the start',
                    *(self._path, number, len(records)),
                )
                break
            try:
                path, most = os.path.join(self._root, file), self._max_megapixels
                data = images.read_bytes(path, max_megapixels=most)
                height, width = images.check_image(data, path, max_megapixels=most)
                self._check_size(record, height, width)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(
                f'{self._path}: {_number_of(len(problems), "image")} of {len(records)} cannot be '
                f'used; repair them, or remove their records:\n  {_listed(problems)}'
            )

    def _check_size(self, record: 'Record', height: int, width: int) -> None:
        for field, annotated, actual in (
            ('width', record.width, width),
            ('height', record.height, height),
        ):
            if annotated is not None and annotated != actual:
                raise ValueError(
                    f'{self._path}: {record.label}, field {field!r}: expected '
                    f'{actual}, the {field} of the upright image {record.file}, got {annotated}; '
                    'do the keypoints belong to another image, or to another size of this one?'
                )

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
            given) box, `norm_size` that longest side, in image pixels. Without a hand the square
            is that around the region.

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
        self._check_size(record, *image.shape[:2])
        scale = 1.0 if record.no_hand else self._crop_scale
        sample: Sample = {
            'image': image,
            'keypoints': record.keypoints.copy(),
            'visible': record.visible.copy(),
            'box': geometry.square_box(record.box, scale).astype(np.float32),
            'is_left': record.is_left,
            'norm_size': geometry.longest_side(record.box),
            'image_id': record.image_id,
        }
        if record.no_hand:
            sample['no_hand'] = True
        return sample


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of FolderSource, checked: the fields of the JSON file, absent ones filled in.

    `number` counts the file's records from 0; `box` is in image pixels, not yet a square. Without a
    hand, keypoints are zero and nothing is visible.
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
    no_hand: bool = False

    @property
    def label(self) -> str:
        return f'record {self.number} ({self.image_id})'


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON lets a key stand twice, and readers take the last: one of the two is a mistake.
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f'the key {twice[0]!r} is given twice in one object')
    return values


def _read_list(path: Path) -> list[Any]:
    try:
        # Some editors begin UTF-8 with a byte order mark.
        values = json.loads(path.read_text('utf-8-sig'), object_pairs_hook=_once)
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
    missing: dict[str, str] = {}
    empty: list[int] = []
    for number, value in enumerate(values):
        value = _with_slashes(value, root)
        if _is_empty(value):
            empty.append(number)
            continue
        record, found = _parse_record(value, number, uses)
        problems += [f'record {number}, {problem}' for problem in found]
        if record is None:
            continue
        if record.file not in missing:
            missing[record.file] = _why_missing(root, record.file)
        if missing[record.file]:
            problems.append(f"record {number}, field 'file': {missing[record.file]}")
        if record.image_id in numbers:
            problems.append(
                f"record {number}, field 'id': expected a unique name, got {record.image_id!r} "
                f'of record {numbers[record.image_id]} again'
            )
        numbers.setdefault(record.image_id, number)
        records.append(record)
    if problems:
        raise ValueError(
            f'{path}: {len(problems)} problem(s) in {len(values)} records; correct or remove them '
            f'(records count from 0):\n  {_listed(problems)}'
        )
    if empty:
        _LOG.warning(
            '%s: %s without a visible keypoint left out (the first: record %s)',
            *(path, _number_of(len(empty), 'record'), empty[0]),
        )
    if not records:
        raise ValueError(f'{path}: no record has a visible keypoint; there is nothing to read')
    return records


def _listed(problems: Sequence[str]) -> str:
    hidden = len(problems) - _MAX_LISTED_PROBLEMS
    more = [f'... and {hidden} more'] if hidden > 0 else []
    return '\n  '.join([*problems[:_MAX_LISTED_PROBLEMS], *more])


def _number_of(count: int, noun: str) -> str:
    return f'{count} {noun}{"" if count == 1 else "s"}'


def _with_slashes(value: Any, root: Path) -> Any:
    """A record whose path was written on Windows, as it is meant, where the file is there."""
    name: Any = value.get('file') if isinstance(value, dict) else None
    if not _is_text(name) or '\\' not in name or '\0' in name or os.path.exists(root / name):
        return value
    return {**value, 'file': name.replace('\\', '/')}


def _is_empty(value: Any) -> bool:
    if not isinstance(value, dict) or value.get('file') is None or value.get('no_hand'):
        return False
    visible: Any = value.get('visible')
    none_seen = isinstance(visible, list) and len(visible) == hand.NUM_KEYPOINTS
    return value.get('keypoints') == [] or (
        none_seen and all(flag in (False, 0) for flag in visible)
    )


def _why_missing(root: Path, name: str) -> str:
    path = root / name
    if not os.path.isfile(path):
        return f'no such file: {path}'
    # By a link that leaves the folder, an annotation file could read whatever its reader may.
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), '')):
        return f'{path} is behind a link out of the folder; copy what it leads to into the folder'
    return ''


def _check_sense(records: Sequence[Record], path: Path) -> None:
    """Looks for mistakes that every record may share, and that training would not notice.

    Raises:
        ValueError: for fractions instead of pixels, and for keypoints of another picture.
    """
    records = [record for record in records if not record.no_hand]
    if not records:
        return
    largest = np.array([np.abs(r.keypoints[r.visible]).max() for r in records])
    fractions = largest <= _FRACTION
    if fractions.mean() >= _NEARLY_ALL:
        raise ValueError(
            f'{path}: the keypoints of {_number_of(int(fractions.sum()), "record")} of '
            f'{len(records)} lie within 0 to 1, so they are fractions of the image; expected '
            'pixels: multiply x by the width and y by the height of the image'
        )
    outside = np.array([_is_outside(record) for record in records])
    if outside.mean() >= _NEARLY_ALL:
        raise ValueError(
            f'{path}: all visible keypoints lie outside the image in '
            f'{_number_of(int(outside.sum()), "record")} of {len(records)}; expected pixels of '
            'the upright image, whose width and height the records give; do the keypoints belong '
            'to another size?'
        )
    tiny = np.array([geometry.longest_side(r.box) < _FEW_PIXELS for r in records])
    for found, what in (
        (fractions, 'whose keypoints all lie within 0 to 1: fractions instead of pixels?'),
        (outside, 'whose visible keypoints all lie outside the image'),
        (tiny & ~fractions, f'whose hand is smaller than {_FEW_PIXELS} pixels'),
    ):
        if found.any():
            _LOG.warning(
                '%s: %s %s (the first: %s)',
                *(path, _number_of(int(found.sum()), 'record'), what),
                records[int(found.argmax())].label,
            )


def _is_outside(record: Record) -> bool:
    if record.width is None or record.height is None:
        return False
    points = record.keypoints[record.visible]
    inside = (points >= -1).all(axis=1) & (points <= (record.width, record.height)).all(axis=1)
    return not inside.any()


def _parse_record(
    value: Any, number: int, uses: Mapping[str, int]
) -> tuple[Record | None, list[str]]:
    if not isinstance(value, dict):
        return None, [f'expected an object, got {_show(value)}']
    value, contradictions = _without_hand(value)
    fields: dict[str, Any] = {}
    problems: list[str] = contradictions
    for name, parse in _FIELDS.items():
        if name == 'keypoints':
            value = {**value, name: _without_unseen(value.get(name), fields.get('visible'))}
        if value.get(name) is None:
            fields[name] = None
            if name in _REQUIRED and not (name == 'keypoints' and fields.get('no_hand')):
                problems.append(f'field {name!r}: required, but missing')
            continue
        try:
            fields[name] = parse(value[name])
        except ValueError as error:
            problems.append(f'field {name!r}: {error}')
    if problems:
        return None, problems

    visible, keypoints, no_hand = fields['visible'], fields['keypoints'], bool(fields['no_hand'])
    if no_hand:
        keypoints = np.zeros((hand.NUM_KEYPOINTS, 2))
        visible = np.zeros(hand.NUM_KEYPOINTS, bool)
    elif visible is None:
        visible = np.ones(hand.NUM_KEYPOINTS, bool)
    box = fields['box']
    if box is None and no_hand:
        if None in (fields['width'], fields['height']):
            return None, [
                "field 'box': expected the region that shows no hand, or the image's 'width' and "
                "'height', which say that all of it does, got neither"
            ]
        box = geometry.whole_image_box(fields['height'], fields['width'])
    elif box is None:
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
        keypoints=keypoints.astype(np.float32),
        visible=visible,
        box=box,
        is_left=fields['handedness'] == 'left',
        width=fields['width'],
        height=fields['height'],
        split=fields['split'] or '',
        group=fields['source'] or '',
        no_hand=no_hand,
    )
    return record, []


def _without_hand(value: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A record that says no_hand, without what says nothing; and what contradicts it."""
    if value.get('no_hand') is not True:
        return value, []
    keypoints, visible = value.get('keypoints'), value.get('visible')
    said = {
        'keypoints': bool(keypoints),
        'visible': any(visible) if isinstance(visible, list) else visible is not None,
        'handedness': value.get('handedness') is not None,
    }
    problems = []
    if any(said.values()):
        names = ' and '.join(name for name, is_said in said.items() if is_said)
        problems.append(
            f"field 'no_hand': it is true, but the record has {names} of a hand; remove the one or "
            'the other'
        )
    return {**value, **dict.fromkeys(said)}, problems


def _without_unseen(keypoints: Any, visible: Any) -> Any:
    """The keypoints, with a place in the middle of the others where one is not to be seen."""
    if not isinstance(keypoints, list) or visible is None or len(keypoints) != len(visible):
        return keypoints
    seen = [pair for pair, shown in zip(keypoints, visible, strict=True) if shown]
    try:
        middle = _keypoints_of(seen).mean(axis=0).tolist()
    except ValueError:
        return keypoints
    return [
        middle if not shown and _is_nowhere(pair) else pair
        for pair, shown in zip(keypoints, visible, strict=True)
    ]


def _is_nowhere(pair: Any) -> bool:
    if pair is None:
        return True
    numbers = pair if isinstance(pair, list) else []
    return len(numbers) == 2 and any(
        number is None or (_is_number(number) and not math.isfinite(number)) for number in numbers
    )


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
    return _keypoints_of(value)


def _keypoints_of(value: list[Any]) -> Float[np.ndarray, 'k 2']:
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


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f'expected true or false, got {_show(value)}')
    return value


def _side(value: Any) -> int:
    if not (_is_number(value) and 0 < value <= _MAX_COORDINATE and value == int(value)):
        raise ValueError(f'expected a positive whole number of pixels, got {_show(value)}')
    return int(value)


_REQUIRED = ('file', 'keypoints')

_FIELDS: dict[str, Callable[[Any], Any]] = {
    'file': _file,
    'no_hand': _flag,
    'visible': _visible,
    'keypoints': _keypoints,
    'handedness': _handedness,
    'box': _box,
    'split': _text,
    'source': _text,
    'width': _side,
    'height': _side,
    'id': _text,
}
