"""How often the data doctor is right: faults seeded into made-up hands, false alarms on clean ones.

    python benchmarks/doctor.py
    HANDPOSE_ASSETS=DIR python benchmarks/doctor.py     # adds false alarms on photographs

prepares drawn hands, examines them clean, and again with each kind of fault in one record of twenty
(or in all, for faults of a whole set). Writes benchmarks/results/doctor.json, the source of what
docs/data_doctor.md says.
"""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import results_file
from real_photos import sample_records

from handpose_jax import geometry, hand
from handpose_jax.data import prepared, sources
from handpose_jax.data.doctor import (
    anatomy,
    anatomy_3d,
    duplicates,
    examine,
    findings,
    hand_checks,
    survey,
)
from handpose_jax.process import command_line
from handpose_jax.process.threads import keep_to_one_thread
from handpose_jax.synthetic.drawing import posed

RATE = 0.05
FINGERS = list(hand.FINGERS.values())
NAMES = list(hand.FINGERS)
SIZE = 128


@dataclasses.dataclass(frozen=True)
class MakeHand:
    """A drawn hand as a record; with `faults`, some pictures are damaged or copies."""

    first: int
    faults: bool

    def __call__(self, index: int) -> prepared.Example:
        """Draws record number `index`."""
        number = self.first + index
        copied = self.faults and self.first > 0
        # Records 0-9 of the test split show pictures of the training split.
        kind = KINDS_OF_COPIES[index] if copied and index < len(KINDS_OF_COPIES) else ''
        if kind:
            number = 3 * index
        rng = np.random.default_rng([5, number])
        made = posed.sample(rng, height=SIZE, width=SIZE, is_left=bool(number % 5 == 0))
        image, keypoints = made.image, made.keypoints
        quality = 95
        if kind == 'half':
            image = cv2.resize(image, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
            keypoints = geometry.apply_affine(geometry.scale_map(0.5), keypoints)
        elif kind == 'brighter':
            image = cv2.convertScaleAbs(image, alpha=1.2, beta=5)
        elif kind == 'cropped':
            image, keypoints = image[3:-3, 3:-3].copy(), keypoints - 3
        elif kind == 'mirrored':
            image = image[:, ::-1].copy()
            keypoints = geometry.apply_affine(geometry.mirror_map(SIZE), keypoints)
        elif kind == 'compressed':
            quality = 40
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        encoded = cv2.imencode('.jpg', image[..., ::-1], options)[1].tobytes()
        if self.faults and self.first == 0 and index % 40 == 7:
            encoded = encoded[: len(encoded) // 2]
        if self.faults and self.first == 0 and index % 40 == 17:
            black = np.zeros_like(image)
            encoded = cv2.imencode('.jpg', black)[1].tobytes()
        everything = np.ones(hand.NUM_KEYPOINTS, bool)
        box = geometry.keypoint_box(keypoints, everything)
        return {
            'image': encoded,
            'keypoints': keypoints.astype(np.float32),
            'annotated': everything,
            'visible': everything,
            'box': box.astype(np.float32),
            'norm_size': np.float32(geometry.longest_side(box)),
            'is_left': made.is_left,
            'image_id': f'{self.first + index}',
            'keypoints_3d': made.keypoints_3d.astype(np.float32),
            'camera': made.camera.astype(np.float32),
        }


KINDS_OF_COPIES = [
    kind
    for kind in ('same bytes', 'compressed', 'half', 'brighter', 'cropped', 'mirrored')
    for _ in range(10)
]


def prepare(folder: pathlib.Path, *, train: int, test: int, faults: bool) -> survey.Survey:
    """Prepares drawn hands and reads them again."""
    prepared.prepare(
        folder,
        'drawn',
        {
            'train': prepared.Split(train, MakeHand(0, faults)),
            'test': prepared.Split(test, MakeHand(1_000_000, faults)),
        },
        settings={'train': train, 'test': test, 'faults': faults},
        description='Drawn hands.',
        with_3d=True,
    )
    return survey.take(
        {split: prepared.PreparedSource(folder, split=split) for split in ('train', 'test')}
    )


Columns = dict[str, np.ndarray]
Generator = np.random.Generator
Seed = Callable[[Columns, int, Generator], str | None]


class Fault(NamedTuple):
    """A kind of fault in single records.

    Attributes:
        seed: changes the columns of one record; returns what a finding must name to be exact.
        check: the function to run, a key of examine.CHECKS.
        findings: which of its findings tell of the fault.
    """

    seed: Seed
    check: str
    findings: tuple[str, ...]


FAULTS: dict[str, Fault] = {}
ODD = ('order of a record', 'keypoint off the hand', 'shape')


def _fault(name: str, check: str, *findings: str) -> Callable[[Seed], Seed]:
    """Adds a function that seeds a fault to FAULTS."""

    def add(seed: Seed) -> Seed:
        FAULTS[name] = Fault(seed, check, findings)
        return seed

    return add


def _exchange(columns: Columns, row: int, *pairs: tuple[int, int]) -> str:
    """Exchanges keypoints, annotated and all; returns what is said of the first pair."""
    for one, other in pairs:
        for name in ('keypoints', 'annotated'):
            columns[name][row][[one, other]] = columns[name][row][[other, one]]
    a, b = pairs[0]
    return f'{hand.KEYPOINT_NAMES[a]} and {hand.KEYPOINT_NAMES[b]} were exchanged'


@_fault('neighbours in a finger exchanged', 'anatomy', *ODD)
def _next_in_finger(columns: Columns, row: int, rng: Generator) -> str:
    finger, joint = FINGERS[rng.integers(5)], rng.integers(3)
    return _exchange(columns, row, (finger[joint], finger[joint + 1]))


@_fault('same joint of neighbouring fingers exchanged', 'anatomy', *ODD)
def _same_joint(columns: Columns, row: int, rng: Generator) -> str:
    finger, joint = rng.integers(4), rng.integers(4)
    return _exchange(columns, row, (FINGERS[finger][joint], FINGERS[finger + 1][joint]))


@_fault('neighbouring fingers exchanged', 'anatomy', *ODD)
def _two_fingers(columns: Columns, row: int, rng: Generator) -> str:
    finger = rng.integers(4)
    _exchange(columns, row, *zip(FINGERS[finger], FINGERS[finger + 1], strict=True))
    return f'{NAMES[finger]} and {NAMES[finger + 1]} were exchanged'


@_fault('a finger from tip to base', 'anatomy', *ODD)
def _finger_reversed(columns: Columns, row: int, rng: Generator) -> str:
    number = rng.integers(5)
    a, b, c, d = FINGERS[number]
    _exchange(columns, row, (a, d), (b, c))
    return f'the {NAMES[number]} ran'


@_fault('mirrored with a flip permutation', 'anatomy', *ODD)
def _flip_permutation(columns: Columns, row: int, rng: Generator) -> str:
    for one, other in ((0, 4), (1, 3)):
        _exchange(columns, row, *zip(FINGERS[one], FINGERS[other], strict=True))
    return 'thumb and little finger, index and ring finger exchanged'


def _moved(share: float, columns: Columns, row: int, rng: Generator) -> str:
    keypoint, angle = rng.integers(21), rng.uniform(0, 2 * np.pi)
    step = share * np.ptp(columns['keypoints'][row], axis=0).max()
    columns['keypoints'][row, keypoint] += step * np.array([np.cos(angle), np.sin(angle)])
    return hand.KEYPOINT_NAMES[keypoint]


for _share in (0.1, 0.2, 0.4):
    # The share is of the hand's longer side.
    _fault(f'a keypoint moved by {_share:.0%} of the hand', 'anatomy', *ODD)(
        functools.partial(_moved, _share)
    )


@_fault('keypoints anywhere', 'anatomy', *ODD)
def _scattered(columns: Columns, row: int, rng: Generator) -> None:
    columns['keypoints'][row] = rng.uniform(0, SIZE - 1, (21, 2))


@_fault('a keypoint at (0, 0)', 'places', 'placeholder')
def _at_zero(columns: Columns, row: int, rng: Generator) -> None:
    columns['keypoints'][row, rng.integers(21)] = 0


@_fault('a keypoint on another', 'places', 'same place')
def _on_another(columns: Columns, row: int, rng: Generator) -> None:
    a, b = rng.choice(21, 2, replace=False)
    columns['keypoints'][row, a] = columns['keypoints'][row, b]


@_fault('hand beside the picture', 'places', 'outside', 'far outside')
def _shifted(columns: Columns, row: int, rng: Generator) -> None:
    columns['keypoints'][row, :, 0] += SIZE
    columns['box'][row, [0, 2]] += SIZE


@_fault('box beside the hand', 'places', 'box')
def _other_box(columns: Columns, row: int, rng: Generator) -> None:
    columns['box'][row, [0, 2]] += columns['box'][row, 2] - columns['box'][row, 0]


@_fault('visible, not annotated', 'visibility', 'visibility')
def _unannotated(columns: Columns, row: int, rng: Generator) -> None:
    columns['annotated'][row, rng.integers(21)] = False


@_fault('flag of the other hand, 3D', 'three dimensions', 'handedness')
def _other_hand(columns: Columns, row: int, rng: Generator) -> None:
    columns['is_left'][row] = ~columns['is_left'][row]


@_fault(
    'a 3D keypoint moved by 3 cm', 'three dimensions', 'bones in 3D', 'projection', 'handedness'
)
def _bone_3d(columns: Columns, row: int, rng: Generator) -> None:
    step = rng.normal(size=3)
    columns['keypoints_3d'][row, rng.integers(21)] += 0.03 * step / np.linalg.norm(step)


@_fault('focal length wrong by 10%', 'three dimensions', 'projection')
def _other_camera(columns: Columns, row: int, rng: Generator) -> None:
    columns['camera'][row, [0, 1], [0, 1]] *= 1.1


LISTS = ('split', 'name', 'size', 'contrast', 'digest', 'damage')
COLUMNS = ('keypoints', 'annotated', 'visible', 'is_left', 'box', 'keypoints_3d', 'camera')


def seeded(clean: survey.Survey, fault: Fault) -> dict[str, Any]:
    """Recall and false alarms with a fault in some of the records."""
    rng = np.random.default_rng(11)
    columns = {name: getattr(clean, name).copy() for name in COLUMNS}
    rows = rng.choice(len(clean), round(RATE * len(clean)), replace=False)
    named = {clean.name[row]: fault.seed(columns, row, rng) for row in rows}
    found = examine.CHECKS[fault.check](dataclasses.replace(clean, **columns))
    of_fault = [one for one in found if one.check in fault.findings and one.record]
    caught = {one.record for one in of_fault} & named.keys()
    exact = {one.record for one in of_fault if (named.get(one.record) or '\0') in one.seen}
    result = {
        'seeded': len(named),
        'recall': round(len(caught) / len(named), 3),
        'false_alarms': round(
            len({one.record for one in of_fault} - named.keys()) / (len(clean) - len(named)), 4
        ),
    }
    if any(named.values()):
        result['named'] = round(len(exact) / len(named), 3)
    return result


def _subset(records: survey.Survey, count: int) -> survey.Survey:
    """The first records, without their looks."""
    columns = {name: getattr(records, name)[:count] for name in (*COLUMNS, *LISTS)}
    return dataclasses.replace(records, **columns, bits=None, thumbnails=None)


def _whole_sets(clean: survey.Survey) -> dict[str, Any]:
    """Whether faults of a whole set are found, and named."""
    results = {}
    clean = _subset(clean, 300)
    flat = dataclasses.replace(clean, keypoints_3d=None, camera=None)
    for text, order in anatomy.known_orders().items():
        # The set as it would be if its source were read without the permutation.
        source = np.argsort(order)
        given = dataclasses.replace(flat, keypoints=clean.keypoints[:, source])
        found = [one for one in examine.examine(given) if one.check == 'order']
        results[f'order: {text}'] = bool(found) and all(text in one.seen for one in found)
    deep, other = np.asarray(clean.keypoints_3d), ~clean.is_left
    mirror = np.array([-1.0, 1, 1])
    for name, records, changed, check in (
        ('flags of all exchanged, 3D', clean, {'is_left': other}, 'handedness'),
        ('3D mirrored (left-handed frame)', clean, {'keypoints_3d': mirror * deep}, 'handedness'),
        ('3D in millimetres', clean, {'keypoints_3d': 1000 * deep}, 'unit'),
        ('flags of all exchanged, 2D only', flat, {'is_left': other}, 'left and right'),
    ):
        given = dataclasses.replace(records, **changed)
        found = [one for one in examine.examine(given) if one.check == check]
        results[name] = any(one.severity != 'note' for one in found)
    return results


def copies(faulty: survey.Survey) -> dict[str, Any]:
    """Which copies and damaged pictures are found."""
    found = examine.examine(faulty)
    leaks = {one.record for one in found if one.check in ('leak', 'near leak')}
    names = [name for name, split in zip(faulty.name, faulty.split, strict=True) if split == 'test']
    groups: dict[str, list[bool]] = {}
    for kind, name in zip(KINDS_OF_COPIES, names, strict=False):
        groups.setdefault(kind, []).append(name in leaks)
    images = {one.record for one in found if one.check == 'image'}
    train = faulty.split.count('train')
    damaged = {str(n) for n in range(train) if n % 40 in (7, 17)}
    return {
        **{f'leak, {kind}': sum(hits) / len(hits) for kind, hits in groups.items()},
        'leak, false alarms': len(leaks & set(names[len(KINDS_OF_COPIES) :])),
        'image truncated or black': len(images & damaged) / len(damaged),
        'image, false alarms': len(images - damaged),
    }


def alarms(records: survey.Survey, only: str = '') -> dict[str, int]:
    """Errors and warnings by check; records counted once each."""
    found = examine.CHECKS[only](records) if only else examine.examine(records)
    groups = findings.by_check(one for one in found if one.severity != 'note')
    return {check: len({one.record for one in group}) for check, group in groups.items()}


def photographs(assets: pathlib.Path, scratch: pathlib.Path) -> dict[str, Any]:
    """False alarms on photographs: nobody has looked for true ones among them all."""
    root = assets / 'real_hands'
    splits = ('train', 'val', 'test')
    real = survey.take({s: sources.FolderSource(root, split=s) for s in splits})
    samples = scratch / 'samples'
    os.symlink(assets / 'hands' / 'samples', samples)
    records = sample_records(samples)
    records = [{**record, 'file': f'samples/{record["file"]}'} for record in records]
    (scratch / 'annotations.json').write_text(json.dumps(records))
    panel = survey.take({'all': sources.FolderSource(scratch)})
    return {
        'real_hands': {'records': len(real), 'alarms': alarms(real)},
        'samples': {'records': len(panel), 'alarms': alarms(panel)},
        'near_duplicates': _near_duplicates(real),
        'copies_found': _copies_of_photographs(sorted((root / 'images').rglob('*.jpg'))[::17]),
    }


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'JPEG quality 50': lambda i: compress(i, 50),
    'half the size': lambda i: cv2.resize(
        i, (i.shape[1] // 2, i.shape[0] // 2), interpolation=cv2.INTER_AREA
    ),
    '25% brighter': lambda i: cv2.convertScaleAbs(i, alpha=1.25, beta=5),
    'cropped by 2% on each side': lambda i: _trim(i, 0.02),
    'cropped by 5% on each side': lambda i: _trim(i, 0.05),
    'mirrored': lambda i: np.ascontiguousarray(i[:, ::-1]),
}


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """What is left of an image after JPEG."""
    data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def _trim(image: np.ndarray, share: float) -> np.ndarray:
    """Cuts a share of the sides off, at least a pixel."""
    y, x = (max(1, round(share * side)) for side in image.shape[:2])
    return np.ascontiguousarray(image[y:-y, x:-x])


def _copies_of_photographs(files: list[pathlib.Path]) -> dict[str, Any]:
    """The share of changed copies that are recognised."""
    images = [np.asarray(cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)) for file in files]
    result: dict[str, Any] = {'photographs': len(images)}
    for name, change in CHANGES.items():
        found = 0
        for image in images:
            looks = duplicates.look(image), duplicates.look(change(image))
            bits = np.array([look.bits for look in looks])
            thumbnails = duplicates.normalise(np.stack([look.thumbnail for look in looks]))
            partner, _ = duplicates.nearest(bits[:1], thumbnails[:1], bits[1:], thumbnails[1:])
            found += int(partner[0] == 0)
        result[name] = round(found / len(images), 3)
    return result


def _near_duplicates(records: survey.Survey) -> dict[str, int]:
    """Pairs of different sources (parts of the image's path) that pass for near duplicates."""
    bits = np.asarray(records.bits)
    thumbnails = duplicates.normalise(np.asarray(records.thumbnails))
    source = np.array([name.split('/')[1] for name in records.name])
    pairs = close = both = 0
    for row in range(len(records)):
        other = np.flatnonzero(source[row + 1 :] != source[row]) + row + 1
        near = np.bitwise_count(bits[other] ^ bits[row]) <= duplicates.MAX_BITS
        pairs += len(other)
        close += int(near.sum())
        alike = thumbnails[other[near]] @ thumbnails[row]
        both += int((alike >= duplicates.MIN_CORRELATION).sum())
    return {'pairs_of_different_sources': pairs, 'same_hash': close, 'taken_for_copies': both}


def _clean_hands(partial: bool) -> dict[str, float]:
    """The shares of posed hands, all right, for which the limits are passed."""
    keypoints = anatomy.sample_hands(np.random.default_rng(77), count=500, views=4)
    annotated = np.random.default_rng(78).random(keypoints.shape[:2]) < (0.7 if partial else 2)
    enough = anatomy.countable(annotated)
    gains = anatomy.default(partial).gains(keypoints[enough], annotated[enough])
    order = anatomy.best(gains, ~anatomy.IS_PLACE)[1]
    place = anatomy.best(gains - hand_checks.place_limits(), anatomy.IS_PLACE)[1]
    return {
        'hands': int(enough.sum()),
        'order': round(float((order > hand_checks.ORDER_GAIN).mean()), 4),
        'place': round(float((place > 0).mean()), 4),
    }


def main() -> None:
    """Measures and writes the results."""
    parser = results_file.parser(__doc__, 'doctor')
    parser.add_argument('--train', type=int, default=600)
    parser.add_argument('--test', type=int, default=200)
    arguments = parser.parse_args()
    keep_to_one_thread()
    started = time.monotonic()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        sizes = {'train': arguments.train, 'test': arguments.test}
        clean = prepare(scratch / 'clean', **sizes, faults=False)
        for partial in (False, True):
            anatomy.default(partial)  # their seconds are no part of the examination
        anatomy_3d.usual()
        begun = time.process_time()
        result['clean'] = {'records': len(clean), 'alarms': alarms(clean)}
        seconds = (time.process_time() - begun) / len(clean)
        result['cpu_seconds_per_1000_records'] = round(1000 * seconds, 2)
        rng = np.random.default_rng(3)
        side = np.ptp(clean.keypoints, axis=1).max(axis=1)
        noise = 0.01 * side[:, None, None] * rng.normal(size=clean.keypoints.shape)
        some = rng.random(clean.annotated.shape) < 0.7
        for name, changed in (
            (
                'noise of 1% of the hand',
                {'keypoints': clean.keypoints + noise, 'keypoints_3d': None, 'camera': None},
            ),
            ('30% not annotated', {'annotated': some, 'visible': some}),
        ):
            found = alarms(dataclasses.replace(clean, **changed), only='anatomy')
            result[name] = {'records': len(clean), 'alarms': found}
        plain = dataclasses.replace(clean, bits=None, thumbnails=None)
        result['posed hands'] = _clean_hands(False)
        result['posed hands, 30% not annotated'] = _clean_hands(True)
        result['faults'] = {name: seeded(plain, fault) for name, fault in FAULTS.items()}
        result['whole_sets'] = _whole_sets(plain)
        result['copies'] = copies(prepare(scratch / 'faulty', **sizes, faults=True))
        if assets := os.environ.get('HANDPOSE_ASSETS'):
            result['photographs'] = photographs(pathlib.Path(assets), scratch)
    result['seconds'] = round(time.monotonic() - started)
    results_file.write(arguments.output, results_file.head('doctor', assets=True), result)
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    with command_line.told():
        main()
