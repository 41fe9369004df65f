"""Cuts squares without hands out of pictures in which all hands are known.

    python datasets/cut_handless.py FOLDER ... --out D

FOLDER holds an annotations.json: a list of whole pictures, each with `hands` ({box: x0 y0 x1 y1},
..), or of single hands with `keypoints`, as FolderSource reads them. Pictures that say `unlabelled`
hold hands that nobody marked, and are left out. D becomes a folder of pictures with `no_hand`
records, which training reads like any other. Each keeps what its picture's record says of split,
source, group and licence.

A square keeps away from every hand; its place and size are drawn from the seed and the picture's
name alone. Only its middle is the record's box: what augmentation shows around that is still of the
photograph. Look at what was cut before you train on it: a hand that nobody marked is in no list.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from handpose_jax import geometry
from handpose_jax.data import images
from handpose_jax.process import command_line, outputs

# Parts of a hand's longest side. A box may be tight; keypoints lie inside the flesh.
_AWAY_FROM_BOX = 0.3
_AWAY_FROM_KEYPOINTS = 0.6

_AROUND = 1.4
"""Side of what is cut over that of the record's box."""

_TRIES = 60
_QUALITY = 95
_KEPT = ('split', 'source', 'group', 'licence', 'licence_confidence')


def cut(
    size: tuple[int, int],
    hands: Float[np.ndarray, 'n 4'],
    rng: np.random.Generator,
    *,
    count: int,
    least: int,
    upper: float = 1.0,
) -> list[tuple[int, int, int]]:
    """Squares that keep away from all hands and do not overlap.

    Args:
        size: (height, width) of the picture, pixels.
        hands: x0, y0, x1, y1 of what no square may touch, pixels.
        rng: draws them.
        count: how many at most.
        least: the smallest side, pixels.
        upper: part of the picture's height, from its top, that squares stay in.

    Returns:
        (x, y, side) of each, whole pixels inside the picture.
    """
    found: list[tuple[int, int, int]] = []
    taken = [*hands]
    height, width = round(upper * size[0]), size[1]
    largest = min(height, width)
    for _ in range(_TRIES if largest >= least else 0):
        # Small squares fit more often; by logarithm, large ones are tried as often.
        side = round(np.exp(rng.uniform(np.log(least), np.log(largest))))
        x, y = (int(rng.integers(0, longest - side + 1)) for longest in (width, height))
        beside = [
            x + side <= x0 or x >= x1 or y + side <= y0 or y >= y1 for x0, y0, x1, y1 in taken
        ]
        if all(beside):
            found.append((x, y, side))
            taken.append(np.array([x, y, x + side, y + side], np.float64))
            if len(found) == count:
                break
    return found


def _hands_of(record: dict[str, Any]) -> list[Float[np.ndarray, '4']]:
    """What no square may touch: the record's hands with their surroundings."""
    if 'hands' in record:
        boxes = [(np.array(one['box'], np.float64), _AWAY_FROM_BOX) for one in record['hands']]
    else:
        points = np.array(record['keypoints'], np.float64)
        tight = np.concatenate([points.min(axis=0), points.max(axis=0)])
        boxes = [(tight, _AWAY_FROM_KEYPOINTS)]
    grown = []
    for box, part in boxes:
        reach = part * geometry.longest_side(box)
        grown.append(box + np.array([-reach, -reach, reach, reach]))
    return grown


def _pictures(folder: pathlib.Path) -> Iterator[tuple[dict[str, Any], Float[np.ndarray, 'n 4']]]:
    """The first record of each picture, and all its hands.

    Raises:
        ValueError: for annotations that cannot be read.
    """
    path = folder / 'annotations.json'
    try:
        records = json.loads(path.read_text('utf-8-sig'))
        by_file: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            by_file.setdefault(record['file'], []).append(record)
        for group in by_file.values():
            if any(record.get('unlabelled') for record in group):
                continue
            hands = [box for record in group for box in _hands_of(record)]
            yield group[0], np.array(hands, np.float64).reshape(-1, 4)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: expected a list of records with 'file' and either 'hands' with boxes or "
            f"'keypoints', got {type(error).__name__}: {error}"
        ) from error


def cut_folder(
    folder: pathlib.Path,
    out: pathlib.Path,
    *,
    splits: list[str],
    sources: list[str],
    seed: int,
    count: int,
    least: int,
    upper: float,
) -> list[dict[str, Any]]:
    """Writes the squares of one folder's pictures into `out`, and returns their records.

    Args:
        folder: of the pictures, with annotations.json.
        out: receives images/.
        splits: those to cut; none takes all.
        sources: those to cut; none takes all.
        seed: of places and sizes.
        count: squares of a picture, at most.
        least: the smallest side of a record's box, pixels.
        upper: see cut.

    Raises:
        ValueError: for annotations or an image that cannot be read.
    """
    found = []
    for record, hands in _pictures(folder):
        if splits and record.get('split') not in splits:
            continue
        if sources and record.get('source') not in sources:
            continue
        name = f'{folder.name}/{record["file"]}'
        digest = hashlib.sha256(f'{seed} {name}'.encode()).digest()
        image = images.read_image(folder / record['file'])
        rng = np.random.default_rng(int.from_bytes(digest[:8], 'big'))
        smallest = round(_AROUND * least)
        squares = cut(image.shape[:2], hands, rng, count=count, least=smallest, upper=upper)
        for number, (x, y, side) in enumerate(squares):
            file = f'images/{digest.hex()[:12]}_{number}.jpg'
            part = Image.fromarray(image[y : y + side, x : x + side])
            part.save(out / file, quality=_QUALITY, subsampling=0)
            around = side * (1 - 1 / _AROUND) / 2 - 0.5
            found.append(
                {
                    'file': file,
                    'no_hand': True,
                    'width': side,
                    'height': side,
                    'box': [round(around, 2)] * 2 + [round(side - 1 - around, 2)] * 2,
                    **{key: record[key] for key in _KEPT if key in record},
                    'cut_from': name,
                    'cut_at': [x, y, side],
                }
            )
    return found


def main() -> None:
    """The command line."""
    parser = command_line.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folders', nargs='+', type=pathlib.Path, help='with annotations.json each')
    parser.add_argument('--out', required=True, type=pathlib.Path, help='a new folder')
    parser.add_argument('--split', nargs='*', default=['train', 'val'], help='to cut; none: all')
    parser.add_argument('--source', nargs='*', default=[], help='to cut; none: all')
    parser.add_argument('--count', type=int, default=3, help='squares of a picture, at most')
    parser.add_argument('--least', type=int, default=48, help='smallest side of a box, pixels')
    parser.add_argument(
        '--upper', type=float, default=1.0, help='only this part of a picture, from its top: 0..1'
    )
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    with command_line.told():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line says.

    Raises:
        ValueError: for what the user can put right.
    """
    target = arguments.out / 'annotations.json'
    for name in ('count', 'least'):
        if getattr(arguments, name) < 1:
            raise ValueError(f'--{name}: expected 1 or more, got {getattr(arguments, name)}')
    if not 0 < arguments.upper <= 1:
        raise ValueError(f'--upper: expected a part above 0, up to 1, got {arguments.upper}')
    if target.exists():
        raise ValueError(f'{target}: there is a data set already; give a new folder')
    try:
        (arguments.out / 'images').mkdir(parents=True, exist_ok=True)
        records = []
        for folder in arguments.folders:
            found = cut_folder(
                folder,
                arguments.out,
                splits=arguments.split,
                sources=arguments.source,
                seed=arguments.seed,
                count=arguments.count,
                least=arguments.least,
                upper=arguments.upper,
            )
            print(f'{folder}: {len(found)} squares')
            records += found
        if not records:
            raise ValueError('no picture has room for a square without a hand; lower --least')
        outputs.write(target, f'{json.dumps(records, indent=1)}\n'.encode())
    except OSError as error:
        raise ValueError(
            f'--out {arguments.out}: cannot write there ({error.strerror}); '
            'give a folder that can be written'
        ) from error
    print(target)


if __name__ == '__main__':
    main()
