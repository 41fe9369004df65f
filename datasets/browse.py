"""A contact sheet of a prepared data set: python datasets/browse.py FOLDER --out sheet.png.

Shows pictures with their keypoints; those that are hidden from view are hollow.
"""

import argparse
import pathlib
import sys

import numpy as np

from handpose_jax import geometry, visualize
from handpose_jax.data import prepared
from handpose_jax.data.transforms import crop_example


def sheet(source: prepared.PreparedSource, count: int, seed: int, tile: int) -> np.ndarray:
    """Random records with keypoints drawn, as one picture u8[h w 3]."""
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    tiles, captions = [], []
    for index in sorted(chosen.tolist()):
        sample = source[index]
        visible = source.record(index)['visible']
        # Cut as in training, but not mirrored.
        example = crop_example({**sample, 'is_left': False}, size=tile)
        crop_from_image = geometry.invert(example['image_from_crop'].astype(np.float64))
        keypoints = geometry.apply_affine(crop_from_image, sample['keypoints'].astype(np.float64))
        tiles.append(
            visualize.draw_hand(example['image'], keypoints, confidence=visible.astype(float))
        )
        hand = 'left' if sample['is_left'] else 'right'
        captions.append(f'{sample["image_id"]} {hand}')
    return visualize.contact_sheet(tiles, captions, columns=6, tile_size=tile)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='of a prepared data set')
    parser.add_argument('--out', type=pathlib.Path, required=True, help='PNG to write')
    parser.add_argument('--split', default='train')
    parser.add_argument('--count', type=int, default=24)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--tile', type=int, default=256, help='side of a picture on the sheet')
    arguments = parser.parse_args()
    try:
        source = prepared.PreparedSource(arguments.folder, split=arguments.split)
    except ValueError as error:
        sys.exit(f'error: {error}')
    picture = sheet(source, arguments.count, arguments.seed, arguments.tile)
    visualize.save_png(arguments.out, picture)
    print(arguments.out)


if __name__ == '__main__':
    main()
