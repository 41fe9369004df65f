"""Keypoints in photographs: handpose predict --workdir W photo.jpg --out DIR.

For each photograph DIR receives NAME.png, the skeleton drawn over it, and NAME.json, the keypoints
in the photograph's pixels with their confidences. Where the workdir holds a calibration (handpose
calibrate --workdir W) the JSON also says how likely each keypoint is correct, and how exact.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MIN_OVERLAY_SIDE = 480


def _predict_files(
    workdir: str, photos: Sequence[Path], out: Path, *, box: Any = None, side: str = 'right'
) -> list[Path]:
    """Predicts each photograph and writes its overlay and JSON.

    Args:
        workdir: of a training run, or an exported file; see predictor.load.
        photos: image files.
        out: folder for the results, made if needed.
        box: see predictor.Predictor; the same for all photographs.
        side: see predictor.Predictor.

    Returns:
        The overlays' paths.

    Raises:
        ValueError: for a photograph that cannot be read, two of the same name, or a folder that
            cannot be written; nothing is written before every photograph has been read.
    """
    # Imported here: --help answers at once.
    from handpose_jax import predictor, visualize

    names = [photo.stem for photo in photos]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f'several photographs are named {", ".join(twice)}: their results would overwrite one '
            'another; predict them with different --out'
        )
    pictures = [predictor.as_image(photo) for photo in photos]
    find = predictor.load(workdir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        overlays = []
        for photo, picture in zip(photos, pictures, strict=True):
            hand = find(picture, box, side=side)
            record = {
                'file': photo.name,
                'handedness': side,
                'checkpoint_step': find.step,
                'keypoints': predictor.describe(hand),
            }
            (out / f'{photo.stem}.json').write_text(json.dumps(record, indent=2) + '\n')
            larger, keypoints = visualize.enlarge(
                picture, hand.keypoints.astype('float64'), _MIN_OVERLAY_SIDE
            )
            overlay = visualize.draw_hand(larger, keypoints, confidence=hand.confidence)
            overlays.append(out / f'{photo.stem}.png')
            visualize.save_png(overlays[-1], overlay)
    except OSError as error:
        raise ValueError(
            f'--out {out}: cannot write there ({error.strerror}); give a folder that can be written'
        ) from error
    return overlays


def _parse_box(text: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(',')]
    except ValueError:
        values = []
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f'expected x0,y0,x1,y1 (four numbers), got {text!r}')
    return values


def main(argv: Sequence[str] | None = None, prog: str = 'handpose predict') -> None:
    """The command line; user errors end as one message and exit code 1."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument('photos', nargs='+', type=Path, help='image files')
    parser.add_argument(
        '--workdir', required=True, help='folder of a training run, or an exported file'
    )
    parser.add_argument('--out', required=True, type=Path, help='folder for overlays and JSON')
    parser.add_argument(
        '--box',
        type=_parse_box,
        help='x0,y0,x1,y1 tight around the hand, pixels; default: the whole image',
    )
    parser.add_argument('--hand', choices=('left', 'right'), default='right')
    flags = parser.parse_args(argv)
    try:
        overlays = _predict_files(
            flags.workdir, flags.photos, flags.out, box=flags.box, side=flags.hand
        )
    except ValueError as error:
        sys.exit(f'error: {error}')
    for overlay in overlays:
        print(overlay)


if __name__ == '__main__':
    main()
