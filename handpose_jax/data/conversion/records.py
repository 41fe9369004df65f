"""What the converters of published data sets share: options, finding the files, checking records.

A converter (datasets/<name>/<name>_dataset_builder.py) knows the layout of one data set. It names
the splits and makes each record by make_record; the rest is here and in prepared.py.
"""

import argparse
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handpose_jax import geometry, hand
from handpose_jax.data import images, prepared, quarantine
from handpose_jax.data.conversion.archives import extract
from handpose_jax.data.quarantine import BadRecord

# Beyond any photograph or scene; keeps float32 arithmetic far from overflow.
_MAX_PIXELS = 1e6
_MAX_METRES = 1e3

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every converter has."""
    parser.add_argument('--manual_dir', required=True, help='folder with what you downloaded')
    parser.add_argument('--data_dir', default='', help='receives the data set; default: your cache')
    parser.add_argument('--workers', type=int, help='processes; default: one for each core')
    parser.add_argument(
        '--check_images', action='store_true', help='decode each image, to find damaged ones'
    )


def find(
    manual_dir: str | os.PathLike[str], folder: str, archives: Sequence[str] = (), *, advice: str
) -> Path:
    """Finds what the user downloaded: unpacked, or as an archive, which is unpacked beside it.

    Args:
        manual_dir: what the user gave: the folder itself, or the one that holds it or its archive.
        folder: name of the unpacked folder.
        archives: file names it is published under.
        advice: what to download, for the error.

    Returns:
        The unpacked folder.

    Raises:
        ValueError: if neither is there, or the archive is damaged or hostile.
    """
    given = Path(manual_dir)
    if not given.is_dir():
        raise ValueError(f'--manual_dir {given}: no such folder; {advice}')
    if (given / folder).is_dir():
        return given / folder
    for name in archives:
        if (given / name).is_file():
            unpacked = extract(given / name, given / f'{name}.unpacked')
            return unpacked / folder if (unpacked / folder).is_dir() else unpacked
    if given.absolute().name == folder:
        return given
    wanted = ' or '.join([f'the folder {folder!r}', *(repr(name) for name in archives)])
    raise ValueError(f'--manual_dir {given}: expected {wanted} in it; {advice}')


def read_json(path: str | os.PathLike[str], *, max_bytes: int) -> Any:
    """What a JSON file holds.

    Args:
        path: of the file.
        max_bytes: more than any file of its kind has.

    Raises:
        ValueError: for one that is larger, no JSON, or nested too deeply; the file is not named.
        OSError: if it cannot be read.
    """
    size = Path(path).stat().st_size
    if size > max_bytes:
        raise ValueError(f'{size:,} bytes, more than any of these files has ({max_bytes:,})')
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError:
        raise ValueError('nested too deeply') from None


def make_record(
    *,
    image: str | os.PathLike[str],
    file: Any,
    record: Any,
    keypoints: Any,
    annotated: Any,
    is_left: bool,
    image_id: str,
    visible: Any = None,
    box: Any = None,
    norm_size: float | None = None,
    keypoints_3d: Any = None,
    camera: Any = None,
    size: tuple[int, int] | None = None,
    no_hand: bool = False,
) -> prepared.Example:
    """Checks one hand and puts it into the canonical form.

    Args:
        image: path of the image; its bytes are copied as they are.
        file: of the annotations, for messages.
        record: names the record in there, for messages.
        keypoints: f[21 2], (x, y), image pixels, in the order of handpose_jax.hand; where not
            annotated, whatever is there is replaced by the middle of the box.
        annotated: bool[21], whether the place is known.
        is_left: which hand.
        image_id: names the record in reports.
        visible: bool[21], not hidden; None if the data set does not say.
        box: f[4], x0, y0, x1, y1 around the hand, image pixels; None for the tight box of the
            annotated keypoints.
        norm_size: what errors are divided by, image pixels; None for the box's longest side.
        keypoints_3d: f[21 3], metres, camera frame; None if the data set has none.
        camera: f[3 3], intrinsic matrix, pixels; None likewise.
        size: (height, width) that the annotations claim; None if they do not.
        no_hand: the box is a region without a hand, in which no keypoint is annotated.

    Returns:
        The record, see prepared.features.

    Raises:
        BadRecord: naming file, record and field, what was expected and what came.
    """

    def bad(field: str, expected: str, got: Any) -> BadRecord:
        return BadRecord(file=file, record=record, field=field, expected=expected, got=got)

    counted = np.asarray(annotated, bool)
    points = numbers('keypoints', keypoints, (hand.NUM_KEYPOINTS, 2), bad)
    if counted.shape != (hand.NUM_KEYPOINTS,) or not (no_hand or counted.any()):
        raise bad('keypoints', 'at least one annotated keypoint of 21', 'none')
    if no_hand and counted.any():
        raise bad('no_hand', 'no annotated keypoint where there is no hand', f'{counted.sum()}')
    known = points[counted]
    if not (np.isfinite(known).all() and np.abs(known).max(initial=0) <= _MAX_PIXELS):
        row = int(np.flatnonzero(counted)[np.argmax(~(np.abs(known) <= _MAX_PIXELS).all(axis=1))])
        raise bad(
            'keypoints',
            f'finite coordinates within {_MAX_PIXELS:g} px',
            f'{points[row].tolist()} for keypoint {row} ({hand.KEYPOINT_NAMES[row]})',
        )
    if box is None:
        tight = geometry.keypoint_box(points, counted)
        field, expected = 'keypoints', 'annotated keypoints at more than one place'
    else:
        tight = numbers('box', box, (4,), bad)
        field, expected = 'box', 'x0 < x1 and y0 < y1, finite, within the range of pixels'
    longest = geometry.longest_side(tight) if np.isfinite(tight).all() else math.nan
    upside_down = box is not None and not (tight[2:] > tight[:2]).all()
    if not 0 < longest <= _MAX_PIXELS or upside_down:
        raise bad(field, expected, f'the box {tight.tolist()}')
    normaliser = longest if norm_size is None else float(norm_size)
    if not 0 < normaliser <= _MAX_PIXELS:
        raise bad('norm_size', 'a positive number of pixels', normaliser)
    middle = np.zeros(2) if no_hand else (tight[:2] + tight[2:]) / 2
    encoded = _read(image, bad)
    try:
        actual = images.image_size(encoded, str(image))
    except ValueError as error:
        raise bad('image', 'an image file that can be decoded', error) from error
    if size is not None and tuple(size) != actual:
        raise bad(
            'image', f'{size[1]} x {size[0]} pixels as annotated', f'{actual[1]} x {actual[0]}'
        )
    example: prepared.Example = {
        'image': encoded,
        'keypoints': np.where(counted[:, None], points, middle).astype(np.float32),
        'annotated': counted,
        'visible': counted if visible is None else counted & np.asarray(visible, bool),
        'box': tight.astype(np.float32),
        'norm_size': np.float32(normaliser),
        'is_left': bool(is_left),
        'image_id': image_id,
    }
    if keypoints_3d is not None:
        metres = numbers('keypoints_3d', keypoints_3d, (hand.NUM_KEYPOINTS, 3), bad)
        if not (np.abs(metres) <= _MAX_METRES).all():
            raise bad('keypoints_3d', f'finite places within {_MAX_METRES:g} m', metres.tolist())
        example['keypoints_3d'] = metres.astype(np.float32)
        matrix = numbers('camera', camera, (3, 3), bad)
        if not np.isfinite(matrix).all():
            raise bad('camera', 'a finite matrix', matrix.tolist())
        example['camera'] = matrix.astype(np.float32)
    return example


def numbers(
    field: str,
    value: Any,
    shape: tuple[int, ...],
    bad: Callable[[str, str, Any], BadRecord],
    *,
    finite: bool = False,
) -> np.ndarray:
    """A value of a file as f64 of this shape.

    Args:
        field: its name.
        value: what the file has.
        shape: () for a single number.
        bad: makes the error of a field, of what was expected and of what came.
        finite: refuse NaN and infinities.

    Raises:
        BadRecord: for anything else.
    """
    expected = f'numbers in the shape {shape}' if shape else 'a number'
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise bad(field, expected, show(value)) from None
    if array.dtype.kind not in 'iuf' or array.shape != shape:
        is_numeric = array.dtype.kind in 'iuf'
        raise bad(
            field, expected, f'numbers in the shape {array.shape}' if is_numeric else show(value)
        )
    if finite and not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1))) if shape else 0
        got = f'{array[row].tolist()} in row {row}' if len(shape) > 1 else show(value)
        raise bad(field, f'{expected}, finite', got)
    return array.astype(np.float64)


def show(value: Any) -> str:
    """A value of a file for a message, shortened; of an error what it says."""
    text = str(value) if isinstance(value, str | Exception) and str(value) else repr(value)
    return text if len(text) <= 120 else f'{text[:117]}...'


def check_name(what: str, name: str) -> None:
    """Refuses names that cannot be part of a file's name, as those of data sets and splits are.

    Raises:
        ValueError: naming `what`.
    """
    if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise ValueError(
            f'{what}: expected a name of small letters, digits and underscores that starts with a '
            f'letter, got {name!r}'
        )


def target_folder(name: str, arguments: argparse.Namespace) -> Path:
    """Where the data set of these arguments is written."""
    return Path(arguments.data_dir) if arguments.data_dir else prepared.default_folder(name)


def cache_folder(name: str, arguments: argparse.Namespace) -> Path:
    """Where to keep what is made of its annotations, see keep: beside the data set."""
    target = target_folder(name, arguments)
    return target.with_name(f'{target.name}.annotations')


def keep(
    path: Path, digest: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """Arrays that take long to make, from a file that is read in a moment.

    Args:
        path: of the file; written if it is absent, broken or of something else.
        digest: of what they are made of.
        make: makes them.

    Raises:
        OSError: if the file cannot be written.
    """
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
            if str(stored['sha256']) == digest:
                return {name: stored[name] for name in stored}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # Absent, or left unfinished by something else.
        pass
    arrays = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.partial-{os.getpid()}')
    try:
        with temporary.open('wb') as out:
            np.savez(out, allow_pickle=False, sha256=np.array(digest), **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return arrays


def _read(path: str | os.PathLike[str], bad: Callable[[str, str, Any], BadRecord]) -> bytes:
    try:
        with open(path, 'rb', buffering=0) as stream:
            return stream.readall()
    except OSError as error:
        raise bad('image', f'the image file {path}', error.strerror or error) from error


class _Checked:
    """A split's function that decodes each image as well; picklable as the function is."""

    def __init__(self, make: Callable[[int], prepared.Example]):
        self.make = make

    def __call__(self, index: int) -> prepared.Example:
        example = self.make(index)
        images.decode_image(example['image'], example['image_id'])
        return example


def prepare(
    name: str,
    version: str,
    arguments: argparse.Namespace,
    splits: Mapping[str, prepared.Split],
    *,
    description: str,
    settings: Mapping[str, Any] | None = None,
    with_3d: bool = False,
) -> Path:
    """Writes the data set, or what is missing of it, and tells how it compares with the published.

    Args:
        name: of the data set.
        version: of the converter; raised when it writes other records.
        arguments: with what add_arguments added.
        splits: by name.
        description: a line for TFDS's metadata.
        settings: JSON values that decide the content, beside the version and the counts.
        with_3d: the records hold keypoints_3d and camera.

    Returns:
        The folder.

    Raises:
        ValueError: see prepared.prepare.
    """
    folder = target_folder(name, arguments)
    if arguments.check_images:
        splits = {key: split._replace(make=_Checked(split.make)) for key, split in splits.items()}
    prepared.prepare(
        folder,
        name,
        splits,
        settings={
            'version': version,
            'records': {key: split.records for key, split in splits.items()},
            **(settings or {}),
        },
        description=description,
        with_3d=with_3d,
        workers=arguments.workers,
    )
    print(report(folder))
    return folder


def report(folder: str | os.PathLike[str]) -> str:
    """Counts beside the published ones, what was left out, and the fingerprint; for people."""
    lines = [f'{folder}: fingerprint {prepared.fingerprint(folder)}']
    for split, counted in prepared.counts(folder).items():
        records, published = counted['records'], counted['published']
        line = f'  {split}: {records:,} records'
        if published is not None:
            found = (records or 0) + (counted['quarantined'] or 0)
            difference = f'{found - published:+,} against' if found != published else 'as'
            line += f', {found:,} found, {difference} the {published:,} published'
        lines.append(line)
    entries = quarantine.read(Path(folder))
    if entries:
        lines.append(f'  left out: {len(entries)}, all listed in {Path(folder) / quarantine.FILE}')
        lines += [f'    {entry.problem}' for entry in entries[:_SHOWN]]
    return '\n'.join(lines)
