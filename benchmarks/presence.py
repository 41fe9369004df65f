"""How well the confidences of a keypoint network tell pictures with a hand from those without.

    python benchmarks/presence.py [LABEL=]WORKDIR ... --hands FOLDER:val --without FOLDER:val PHOTOS

Hands come from folders with annotations.json: whole; half outside (the box is off, so that the
crop's edge goes through the middle of the hand); cut off (the photograph ends in the middle of the
hand, and the box is that of the rest); and half covered (by a plain rectangle). Pictures without
a hand are the `no_hand` records of such folders, and the middle squares of photographs in folders
without annotations. For each score of calibration.PRESENCE_SCORES, benchmarks/results/presence.json
receives the AUROC of each kind of hand against each folder of pictures without. Nothing is fitted.
"""

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import results_file

from handpose_jax import geometry, inference, runtimes
from handpose_jax.config import crop_scale
from handpose_jax.data import images, sources
from handpose_jax.data.transforms import PADDING, crop_image
from handpose_jax.evaluation import calibration
from handpose_jax.process import command_line
from handpose_jax.types import Sample

_PHOTOGRAPHS = ('*.jpg', '*.jpeg', '*.png')
KINDS = ('whole', 'half outside', 'cut off', 'half covered')
_BATCH = 32


def spread(count: int, limit: int) -> np.ndarray:
    """The numbers of at most `limit` things, spread evenly over all; 0 takes all."""
    return np.linspace(0, count - 1, min(limit or count, count)).round().astype(int)


def hand_crop(sample: Sample, kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """One hand, u8[size size 3].

    Args:
        sample: of a hand.
        kind: one of KINDS.
        rng: draws from which side it is cut or covered, and the cover's colour.
        size: of the crop, pixels.
    """
    image = sample['image']
    box = geometry.square_box(np.asarray(sample['box'], np.float64), 1.0)
    axis, sign = int(rng.integers(2)), int(rng.choice([-1, 1]))
    points = sample['keypoints'][sample['visible']].astype(np.float64)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    if kind == 'half outside':
        half = (box[2] - box[0]) / 2
        centre = (box[:2] + box[2:]) / 2
        centre[axis] = middle[axis] + sign * half
        box = np.concatenate([centre - half, centre + half])
    elif kind == 'cut off':
        rest = points[sign * (points[:, axis] - middle[axis]) > 0]
        around = (box[2] - box[0]) / geometry.longest_side(
            np.concatenate([points.min(axis=0), points.max(axis=0)])
        )
        box = geometry.square_box(np.concatenate([rest.min(axis=0), rest.max(axis=0)]), around)
        image = image.copy()
        past = round(middle[axis])
        beyond = slice(None, past) if sign > 0 else slice(past, None)
        image[(slice(None), beyond) if axis == 0 else (beyond, slice(None))] = PADDING
    crop, _ = crop_image(image, box, size, mirror=sample['is_left'])
    if kind == 'half covered':
        crop = crop.copy()
        part = slice(None, size // 2) if sign < 0 else slice(size // 2, None)
        where = (part, slice(None)) if axis else (slice(None), part)
        crop[where] = rng.integers(0, 256, 3, dtype=np.uint8)
    return crop


def crops_without(folder: str, limit: int, size: int, scale: float) -> Iterator[np.ndarray]:
    """The pictures without a hand of a folder, u8[size size 3].

    Raises:
        ValueError: if there are none, or for one that cannot be read.
    """
    place, _, split = folder.partition(':')
    root = pathlib.Path(place)
    if (root / 'annotations.json').exists():
        source = sources.FolderSource(root, split=split, crop_scale=scale)
        numbers = [i for i in range(len(source)) if source.record(i).no_hand]
        for number in spread(len(numbers), limit) if numbers else []:
            sample = source[numbers[number]]
            yield crop_image(sample['image'], sample['box'], size)[0]
        return
    files = sorted(file for pattern in _PHOTOGRAPHS for file in root.glob(pattern))
    if not files:
        raise ValueError(f'{root}: expected annotations.json or photographs, found neither')
    for number in spread(len(files), limit):
        image = images.read_image(files[number])
        height, width = image.shape[:2]
        reach = min(height, width) / 2
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        yield crop_image(image, np.concatenate([centre - reach, centre + reach]), size)[0]


def measure(workdir: str, flags: argparse.Namespace) -> dict[str, Any]:
    """The AUROC of each score, kind of hand and folder without hands, for one workdir."""
    run = inference.load_run(workdir)
    runtime, scale = runtimes.of_run(run), crop_scale(run.config)

    def confidences(crops: list[np.ndarray]) -> np.ndarray:
        found = []
        for start in range(0, len(crops), _BATCH):
            part = np.stack(crops[start : start + _BATCH])
            # One shape is one compilation.
            padded = np.concatenate([part, np.repeat(part[:1], _BATCH - len(part), axis=0)])
            found.append(runtime(padded).confidence[: len(part)])
        return np.concatenate(found).astype(np.float64)

    with_hand: dict[str, np.ndarray] = {}
    for kind in KINDS:
        crops = []
        for folder in flags.hands:
            place, _, split = folder.partition(':')
            source = sources.FolderSource(place, split=split, crop_scale=scale)
            for index in spread(len(source), flags.limit).tolist():
                sample = source[index]
                if not sample.get('no_hand'):
                    rng = np.random.default_rng([flags.seed, KINDS.index(kind), index])
                    crops.append(hand_crop(sample, kind, rng, runtime.size))
        with_hand[kind] = confidences(crops)
    without = {
        pathlib.Path(folder.partition(':')[0]).name: confidences(
            list(crops_without(folder, flags.limit, runtime.size, scale))
        )
        for folder in flags.without
    }
    without['all'] = np.concatenate(list(without.values()))
    return {
        'step': run.step,
        'hands': {kind: len(found) for kind, found in with_hand.items()},
        'without': {name: len(found) for name, found in without.items()},
        'auroc': {
            score: {
                kind: {
                    name: round(calibration.auroc(function(hands), function(others)), 4)
                    for name, others in without.items()
                }
                for kind, hands in with_hand.items()
            }
            for score, function in calibration.PRESENCE_SCORES.items()
        },
    }


def main() -> None:
    """Measures, merges into the results file, prints Markdown."""
    parser = results_file.parser(__doc__, 'presence')
    results_file.add_runs(parser)
    parser.add_argument('--hands', nargs='+', required=True, help='FOLDER[:SPLIT] of hands')
    parser.add_argument('--without', nargs='+', required=True, help='FOLDER[:SPLIT] or photographs')
    parser.add_argument('--limit', type=int, default=0, help='of each folder; 0 takes all')
    parser.add_argument('--seed', type=int, default=0)
    flags = parser.parse_args()
    results = results_file.measure_runs('presence', flags, lambda w: measure(w, flags))
    for label, _ in flags.runs:
        row = results['runs'][label]
        print(f'{label}: {row["hands"]["whole"]} hands, {row["without"]} without\n')
        table = [
            [score, *(f'{kinds[kind]["all"]:.4f}' for kind in KINDS)]
            for score, kinds in row['auroc'].items()
        ]
        print(results_file.table(' | '.join(['AUROC', *KINDS]), table))


if __name__ == '__main__':
    with command_line.told():
        main()
