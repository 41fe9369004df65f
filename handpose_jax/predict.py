"""Keypoints in photographs: handpose predict --workdir W photo.jpg --out DIR.

For each photograph DIR receives NAME.png, the skeleton drawn over it, and NAME.json, the keypoints
in the photograph's pixels with their confidences. Where the workdir holds a calibration (handpose
calibrate --workdir W) the JSON also says how likely each keypoint is correct, and how exact; and
`presence`, how likely there is a hand, if it was fitted on pictures without one too.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import handpose_jax

_MIN_OVERLAY_SIDE = 480


def _predict_files(
    workdir: str, photos: Sequence[Path], out: Path, *, box: Any = None, side: str = 'right'
) -> tuple[list[Path], list[str]]:
    """Predicts each photograph and writes its overlay and JSON, one after the other.

    Args:
        workdir: of a training run, or an exported file; see predictor.load.
        photos: image files.
        out: folder for the results, made if needed.
        box: see predictor.Predictor; the same for all photographs.
        side: see predictor.Predictor.

    Returns:
        The overlays' paths, and a sentence for each photograph that turned out to be damaged.

    Raises:
        ValueError: for a photograph whose beginning is not that of an image, two of the same name,
            a result that would replace a file of somebody else, or a folder that cannot be
            written. Nothing is written before this is known of all photographs.
    """
    # Imported here: --help answers at once.
    from handpose_jax import predictor, visualize
    from handpose_jax.data import images
    from handpose_jax.process import outputs

    names = [photo.stem for photo in photos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'several photographs are named {", ".join(twice)}: their results would overwrite one '
            'another; predict them with different --out'
        )
    for photo in photos:
        height, width = images.image_size(images.read_bytes(photo), str(photo))
        if box is not None:
            predictor.as_box(box, height, width)
        for name in (f'{photo.stem}.png', f'{photo.stem}.json'):
            outputs.check(out / name)
    find = predictor.load(workdir)
    overlays, damaged = [], []
    for photo in photos:
        try:
            picture = predictor.as_image(photo)
        except ValueError as error:
            damaged.append(str(error))
            continue
        hand = find(picture, box, side=side)
        record = {
            'made_by': f'{outputs.MADE_BY} {handpose_jax.__version__}',
            'file': photo.name,
            'handedness': side,
            'checkpoint_step': find.step,
            'presence': predictor.as_number(hand.presence, 4),
            'keypoints': predictor.describe(hand),
        }
        larger, keypoints = visualize.enlarge(
            picture, hand.keypoints.astype('float64'), _MIN_OVERLAY_SIDE
        )
        overlay = visualize.draw_hand(larger, keypoints, confidence=hand.confidence)
        try:
            outputs.write(out / f'{photo.stem}.json', f'{json.dumps(record, indent=2)}\n'.encode())
            overlays.append(out / f'{photo.stem}.png')
            visualize.save_png(overlays[-1], overlay)
        except OSError as error:
            raise ValueError(
                f'--out {out}: cannot write there ({error.strerror}); '
                'give a folder that can be written'
            ) from error
    return overlays, damaged


def _parse_box(text: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(',')]
    except ValueError:
        values = []
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f'expected x0,y0,x1,y1 (four numbers), got {text!r}')
    return values


def _with_box(words: Sequence[str]) -> list[str]:
    """Joins --box to its numbers: argparse takes -5,-5,60,60 for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == '--box':
            joined[-1] += f'={word}'
        else:
            joined.append(word)
    return joined


def main(argv: Sequence[str] | None = None, prog: str = 'handpose predict') -> None:
    """The command line; user errors end as one message and exit code 1."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument('photos', nargs='+', type=Path, help='image files')
    parser.add_argument(
        '--workdir',
        required=True,
        help='weights of the package by name, folder of a training run, its .safetensors, or an '
        'exported file',
    )
    parser.add_argument('--out', required=True, type=Path, help='folder for overlays and JSON')
    parser.add_argument(
        '--box',
        type=_parse_box,
        help='x0,y0,x1,y1 tight around the hand, pixels; default: the whole image',
    )
    parser.add_argument('--hand', choices=('left', 'right'), default='right')
    flags = parser.parse_args(_with_box(sys.argv[1:] if argv is None else argv))
    try:
        overlays, damaged = _predict_files(
            flags.workdir, flags.photos, flags.out, box=flags.box, side=flags.hand
        )
    except ValueError as error:
        sys.exit(f'error: {error}')
    for overlay in overlays:
        print(overlay)
    if damaged:
        sys.exit('\n'.join(f'error: {sentence}' for sentence in damaged))


if __name__ == '__main__':
    main()
