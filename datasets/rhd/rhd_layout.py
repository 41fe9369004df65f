"""The Rendered Hand Pose Dataset (RHD, version 2): reads its layout, and writes hands in it.

    <folder>/<split>/color/00000.png        RGB
    <folder>/<split>/mask/00000.png         grey levels 0..33, see below
    <folder>/<split>/anno_<split>.pickle    {number: record}
                         a record is        {'uv_vis': f[42 3], 'xyz': f[42 3], 'K': f[3 3]}

`split` is 'training' or 'evaluation'. Rows 0..20 are the left hand and 21..41 the right one: the
wrist, then thumb, index, middle, ring and little finger, each from its *tip* to its base. `uv_vis`
is (u, v) in pixels and 1 for a visible keypoint, else 0; `xyz` is in metres, in the camera's frame
(x right, y down, z forward); uv = K xyz / z. Mask: 0 background, 1 person; 2..17 left hand and
18..33 right hand, where 2..4, 5..7, .. are the parts of thumb, index, .. and 17 (33) is the palm.

Pixels: (0, 0) is taken as the centre of the first pixel, the rule of geometry.py, so nothing is
shifted on the way in or out. The archive does not say; the three samples at hand satisfy
uv = K xyz / z without any offset, up to their rounding to four significant digits.

The archive's depth images are neither read nor written.

Annotations are a pickle, a format that can run any program when it is loaded by `pickle`: they are
read by handpose_jax/data/conversion/safe_pickle.py instead.

Source: Zimmermann and Brox 2017, and the description that comes with the data set.
"""

import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from handpose_jax import geometry, hand
from handpose_jax.data import images
from handpose_jax.data.conversion import safe_pickle
from handpose_jax.data.conversion.records import keep
from handpose_jax.synthetic import generate
from handpose_jax.synthetic.scene import labels

SPLITS = ('training', 'evaluation')

_RHD_INDEX = (
    hand.WRIST,
    *(index for finger in hand.FINGERS.values() for index in reversed(finger)),
)
"""For each of our keypoints its row within a hand of RHD, and the other way round."""

_LEFT = slice(0, hand.NUM_KEYPOINTS)
_RIGHT = slice(hand.NUM_KEYPOINTS, 2 * hand.NUM_KEYPOINTS)

_MASK_PERSON, _MASK_LEFT_FIRST, _MASK_LEFT_PALM, _MASK_RIGHT_PALM = 1, 2, 17, 33

_FIELDS = {
    'uv_vis': (2 * hand.NUM_KEYPOINTS, 3),
    'xyz': (2 * hand.NUM_KEYPOINTS, 3),
    'K': (3, 3),
}

# Beyond any picture or scene; keeps float32 arithmetic far from overflow.
_MAX_PIXELS = 1e6
_MAX_METRES = 1e3

# Training annotations of the published size, 41,258 records, take some 65 MB.
_MAX_BYTES = 512 * 2**20


class RhdHand(NamedTuple):
    """The dominant hand of one record: the one with more pixels in the mask.

    Attributes:
        image_id: split and number, such as 'training/00017'.
        image_path: of the colour image.
        keypoints: f32[21 2], (x, y), image pixels, in the order of handpose_jax.hand.
        visible: bool[21].
        keypoints_3d: f32[21 3], metres, camera frame (x right, y down, z forward).
        camera: f64[3 3] intrinsic matrix.
        is_left: which hand it is.
        box: f32[4], the tight box of the visible keypoints; of all, where the visible ones span
            none. Image pixels.
    """

    image_id: str
    image_path: Path
    keypoints: Float[np.ndarray, '21 2']
    visible: Bool[np.ndarray, '21']
    keypoints_3d: Float[np.ndarray, '21 3']
    camera: Float[np.ndarray, '3 3']
    is_left: bool
    box: Float[np.ndarray, '4']


class RhdAnnotations:
    """The records of one split, by their numbers; each is checked, and its mask read, when taken.

    Args:
        folder: of the data set; holds the folders of the splits.
        split: 'training' or 'evaluation'.
        cache: file for a copy of the annotations that is read in a moment, where the published
            pickle takes a minute; written here, unless it holds these annotations already.

    Raises:
        ValueError: for a split that does not exist, or annotations that cannot be read, are larger
            than any RHD, hold anything but plain values and arrays, or are no dictionary of
            records by number.
        OSError: if the cache cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str,
        *,
        cache: str | os.PathLike[str] | None = None,
    ):
        _check_split(split)
        self._split = split
        self._folder = Path(folder) / split
        self._path = self._folder / f'anno_{split}.pickle'
        data = _read_bytes(self._path)
        self._records: Mapping[int, Any]
        if cache is None:
            self._records = _parse_pickle(data, self._path)
        else:
            digest = hashlib.sha256(data).hexdigest()
            arrays = keep(Path(cache), digest, lambda: _tabulate(_parse_pickle(data, self._path)))
            self._records = _Table(arrays)
        self._ids = sorted(self._records)

    def __len__(self) -> int:
        return len(self._ids)

    def image_id(self, index: int, /) -> str:
        """Split and number of a record, known without checking it."""
        return f'{self._split}/{self._ids[index]:05d}'

    def __getitem__(self, index: int, /) -> RhdHand:
        """Returns the dominant hand of a record.

        Raises:
            ValueError: naming file, record and field, for values of another type or shape, not
                finite or beyond reason; for a missing image; for a mask that is no RHD mask, or
                that shows a hand without keypoints.
        """
        number = self._ids[index]
        image_path = self._folder / 'color' / f'{number:05d}.png'
        if not image_path.is_file():
            raise ValueError(
                f'{self._path}: record {number}: expected its image {image_path}, but there is no '
                'such file; unpack the archive again'
            )
        mask_path = self._folder / 'mask' / f'{number:05d}.png'
        mask = _read_mask(mask_path)
        try:
            values = _parse_record(self._records[number], mask.shape)
            is_left = _left_is_dominant(values, mask, mask_path)
            rows = _LEFT if is_left else _RIGHT
            points = values['uv_vis'][rows][list(_RHD_INDEX)]
            keypoints = points[:, :2].astype(np.float32)
            visible = points[:, 2] == 1
            box = _box(keypoints, visible)
        except ValueError as error:
            raise ValueError(f'{self._path}: record {number}, {error}') from error
        return RhdHand(
            image_id=f'{self._split}/{number:05d}',
            image_path=image_path,
            keypoints=keypoints,
            visible=visible,
            keypoints_3d=values['xyz'][rows][list(_RHD_INDEX)].astype(np.float32),
            camera=values['K'].astype(np.float64),
            is_left=is_left,
            box=box,
        )


class WrittenHand(NamedTuple):
    """One of the hands of a record.

    Attributes:
        keypoints: f[21 2], (x, y), image pixels, in the order of handpose_jax.hand.
        visible: bool[21].
        keypoints_3d: f[21 3], metres, camera frame.
    """

    keypoints: Float[np.ndarray, '21 2']
    visible: Bool[np.ndarray, '21']
    keypoints_3d: Float[np.ndarray, '21 3']


class WrittenRecord(NamedTuple):
    """What a record of RHD consists of; a hand that is not there is None.

    Attributes:
        image: RGB.
        mask: in RHD's values, see the module.
        camera: f[3 3] intrinsic matrix.
        left: the left hand.
        right: the right hand.
    """

    image: UInt8[np.ndarray, 'h w 3']
    mask: UInt8[np.ndarray, 'h w']
    camera: Float[np.ndarray, '3 3']
    left: WrittenHand | None
    right: WrittenHand | None


def write_rhd(
    folder: str | os.PathLike[str], split: str, samples: Iterable[generate.RenderedHand]
) -> int:
    """Writes hands as a split of RHD, numbered from 0.

    The hand that is not there has zeros for values and visibility, as nobody knows where it is. The
    renderer does not tell the parts of the hand apart, so all of the hand is marked as palm (17 or
    33), and the forearm as person (1). `uv_vis` and `xyz` are float32, `K` is float64.

    Args:
        folder: of the data set; the split is made in it.
        split: 'training' or 'evaluation'.
        samples: the hands; taken one by one.

    Returns:
        How many were written.

    Raises:
        ValueError, OSError: see write_records.
    """
    return write_records(folder, split, (_of_rendered(sample) for sample in samples))


def check_target(folder: str | os.PathLike[str], split: str) -> Path:
    """The folder of a split that may be written.

    Args:
        folder: of the data set.
        split: 'training' or 'evaluation'.

    Raises:
        ValueError: for another split, or if the split's folder holds files already.
    """
    _check_split(split)
    target = Path(folder) / split
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f'{target}: expected a new or empty folder; remove it or give another')
    return target


def write_records(
    folder: str | os.PathLike[str], split: str, records: Iterable[WrittenRecord]
) -> int:
    """Writes records as a split of RHD, numbered from 0; see write_rhd.

    Args:
        folder: of the data set; the split is made in it.
        split: 'training' or 'evaluation'.
        records: taken one by one.

    Returns:
        How many were written.

    Raises:
        ValueError: for another split, or if the split's folder holds files already.
        OSError: if a file cannot be written.
    """
    target = check_target(folder, split)
    for name in ('color', 'mask'):
        (target / name).mkdir(parents=True, exist_ok=True)
    annotations: dict[int, dict[str, np.ndarray]] = {}
    for number, record in enumerate(records):
        Image.fromarray(record.image).save(target / 'color' / f'{number:05d}.png')
        Image.fromarray(record.mask).save(target / 'mask' / f'{number:05d}.png')
        annotations[number] = _annotation(record)
    # Last and at once, so that a split that was not finished has no annotations.
    path = target / f'anno_{split}.pickle'
    temporary = path.with_suffix('.partial')
    with temporary.open('wb') as file:
        pickle.dump(annotations, file, protocol=2)
    temporary.replace(path)
    return len(annotations)


def _of_rendered(sample: generate.RenderedHand) -> WrittenRecord:
    mask = np.zeros(sample.mask.shape, np.uint8)
    mask[sample.mask == labels.FOREARM] = _MASK_PERSON
    mask[sample.mask == labels.HAND] = _MASK_LEFT_PALM if sample.is_left else _MASK_RIGHT_PALM
    only = WrittenHand(sample.keypoints, sample.visible, sample.keypoints_3d)
    return WrittenRecord(
        image=sample.image,
        mask=mask,
        camera=sample.camera,
        left=only if sample.is_left else None,
        right=None if sample.is_left else only,
    )


def _annotation(record: WrittenRecord) -> dict[str, np.ndarray]:
    order = list(_RHD_INDEX)
    uv_vis = np.zeros(_FIELDS['uv_vis'], np.float32)
    xyz = np.zeros(_FIELDS['xyz'], np.float32)
    for rows, one in ((_LEFT, record.left), (_RIGHT, record.right)):
        if one is not None:
            uv_vis[rows] = np.column_stack([one.keypoints, one.visible])[order]
            xyz[rows] = one.keypoints_3d[order]
    return {'uv_vis': uv_vis, 'xyz': xyz, 'K': np.asarray(record.camera, np.float64)}


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f'the splits of RHD are {SPLITS}, got {split!r}')


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(
                f'{path}: expected at most {_MAX_BYTES:,} bytes, got {size:,}; no annotations of '
                'RHD are as large as that'
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(
            f'{path}: no such annotation file; give the folder that holds {" and ".join(SPLITS)}'
        ) from error
    except OSError as error:
        raise ValueError(f'{path}: cannot be read ({error.strerror})') from error


def _parse_pickle(data: bytes, path: Path) -> dict[int, Any]:
    try:
        records = safe_pickle.load(data)
    except ValueError as error:
        raise ValueError(
            f'{path}: expected a pickle of numbers, text, lists, dictionaries and NumPy arrays '
            f'only: {error}; use the file of the published archive'
        ) from error
    if not isinstance(records, dict) or not records:
        raise ValueError(
            f'{path}: expected a dictionary of records, got {safe_pickle.describe(records)}'
        )
    for number in records:
        if not isinstance(number, int):
            raise ValueError(f'{path}: expected records by number, got the key {number!r}')
    return records


class _Table(Mapping[int, dict[str, np.ndarray]]):
    """Records as a few large arrays, by number; or what is wrong with one, raised when taken."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = {name: arrays[name] for name in _FIELDS}
        self._rows = {int(number): row for row, number in enumerate(arrays['number'])}
        bad = zip(arrays['bad'].tolist(), arrays['problem'].tolist(), strict=True)
        self._problems: dict[int, str] = dict(bad)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        if number in self._problems:
            raise ValueError(self._problems[number])
        return {name: array[self._rows[number]] for name, array in self._arrays.items()}


def _tabulate(records: Mapping[int, Any]) -> dict[str, np.ndarray]:
    kept: dict[str, list[np.ndarray]] = {name: [] for name in _FIELDS}
    problems: dict[int, str] = {}
    for number, record in records.items():
        try:
            fields = _parse_fields(record)
        except ValueError as error:
            problems[number] = str(error)
            fields = {name: np.zeros(shape, np.float32) for name, shape in _FIELDS.items()}
        for name, value in fields.items():
            kept[name].append(value)
    return {
        # Stacked in the widest type that occurs, so that no value changes.
        **{name: np.stack(values) for name, values in kept.items()},
        'number': np.array(list(records), np.int64),
        'bad': np.array(list(problems), np.int64),
        'problem': np.array(list(problems.values()), np.str_),
    }


def _parse_fields(record: Any) -> dict[str, np.ndarray]:
    if not isinstance(record, dict):
        raise ValueError(
            f'expected a dictionary of {list(_FIELDS)}, got {safe_pickle.describe(record)}'
        )
    return {name: _parse_field(record, name, shape) for name, shape in _FIELDS.items()}


def _parse_record(record: Any, size: tuple[int, int]) -> dict[str, np.ndarray]:
    values = _parse_fields(record)
    uv_vis, xyz = values['uv_vis'], values['xyz']
    _check_range('uv_vis', uv_vis, _MAX_PIXELS, 'px')
    _check_range('xyz', xyz, _MAX_METRES, 'm')
    flags = uv_vis[:, 2]
    if not np.isin(flags, (0, 1)).all():
        wrong = int(np.argmin(np.isin(flags, (0, 1))))
        raise ValueError(
            f"field 'uv_vis': expected a visibility of 0 or 1, got {flags[wrong]:g} in row {wrong}"
        )
    behind = (flags == 1) & (xyz[:, 2] <= 0)
    if behind.any():
        wrong = int(np.argmax(behind))
        raise ValueError(
            f"field 'xyz': expected visible keypoints before the camera (z > 0), got "
            f'z = {xyz[wrong, 2]:g} m in row {wrong}'
        )
    _check_camera(values['K'], size)
    return values


def _parse_field(record: dict[Any, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    expected = f'expected a float32 or float64 array of shape {shape}'
    if name not in record:
        raise ValueError(f'field {name!r}: {expected}, but it is missing')
    value = record[name]
    if (
        not isinstance(value, np.ndarray)
        or value.shape != shape
        or value.dtype.kind != 'f'
        or value.dtype.itemsize < 4
    ):
        raise ValueError(f'field {name!r}: {expected}, got {safe_pickle.describe(value)}')
    if not np.isfinite(value).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ValueError(f'field {name!r}: expected finite values, got {value[where]} at {where}')
    return value


def _check_range(name: str, array: np.ndarray, limit: float, unit: str) -> None:
    worst = np.abs(array).max()
    if worst > limit:
        raise ValueError(f'field {name!r}: expected at most {limit:g} {unit}, got {worst:g}')


def _check_camera(camera: Float[np.ndarray, '3 3'], size: tuple[int, int]) -> None:
    height, width = size
    sound = (
        (camera[2] == (0, 0, 1)).all()
        and camera[1, 0] == 0
        and 1 <= camera[0, 0] <= _MAX_PIXELS
        and 1 <= camera[1, 1] <= _MAX_PIXELS
        and abs(camera[0, 1]) <= camera[0, 0]
        # A crop may have its principal point outside, but not far.
        and -width <= camera[0, 2] <= 2 * width
        and -height <= camera[1, 2] <= 2 * height
    )
    if not sound:
        raise ValueError(
            "field 'K': expected [[fx s cx] [0 fy cy] [0 0 1]] in pixels, with focal lengths of at "
            f'least 1 and its centre near the {width} x {height} image, got {camera.tolist()}'
        )


def _read_mask(path: Path) -> UInt8[np.ndarray, 'h w']:
    rgb = images.read_image(path)
    # Copied: comparing every third byte takes several times as long.
    mask = np.ascontiguousarray(rgb[:, :, 0])
    if (rgb[:, :, 1] != mask).any() or (rgb[:, :, 2] != mask).any():
        raise ValueError(f'{path}: expected a mask in grey levels, got one in colours')
    if mask.max() > _MASK_RIGHT_PALM:
        raise ValueError(
            f'{path}: expected a mask of values 0..{_MASK_RIGHT_PALM}, got {mask.max()}'
        )
    return mask


def _left_is_dominant(
    values: dict[str, np.ndarray], mask: UInt8[np.ndarray, 'h w'], mask_path: Path
) -> bool:
    pixels = {
        'left': np.count_nonzero((mask >= _MASK_LEFT_FIRST) & (mask <= _MASK_LEFT_PALM)),
        'right': np.count_nonzero(mask > _MASK_LEFT_PALM),
    }
    ranks = {}
    for side, rows in (('left', _LEFT), ('right', _RIGHT)):
        points = values['uv_vis'][rows]
        # Visibility and presence decide where no hand is seen in the mask.
        ranks[side] = (pixels[side], int(points[:, 2].sum()), bool(points.any()))
    # The right hand wins a tie: the authors ask for more pixels on the left.
    dominant = 'left' if ranks['left'] > ranks['right'] else 'right'
    if not ranks[dominant][2]:
        raise ValueError(
            f"field 'uv_vis': expected keypoints of the {dominant} hand, of which {mask_path} "
            f'shows {pixels[dominant]} pixels ({pixels}), got zeros only'
        )
    return dominant == 'left'


def _box(
    keypoints: Float[np.ndarray, '21 2'], visible: Bool[np.ndarray, '21']
) -> Float[np.ndarray, '4']:
    for counted in (visible, np.ones_like(visible)):
        if counted.any():
            box = geometry.keypoint_box(keypoints, counted)
            if geometry.longest_side(box) > 0:
                return box.astype(np.float32)
    raise ValueError(
        "field 'uv_vis': expected keypoints at more than one place, got all of them at "
        f'{keypoints[0].tolist()}'
    )
