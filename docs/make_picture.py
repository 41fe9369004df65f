"""Makes the picture at the top of the README: rendered hands with predicted keypoints.

    python docs/make_picture.py --workdir W

W holds a trained network. The numbers of the hands below were picked by eye for variety, among the
first thirty-two, from those where the network of docs/results.md does well.
"""

import argparse
import pathlib

import numpy as np

from handpose_jax import geometry, predictor, visualize
from handpose_jax.synthetic.generate import generate
from handpose_jax.synthetic.scene.options import SceneOptions

SEED = 7
PICKED = (3, 4, 6, 11, 13, 31, 25, 9)
OUTPUT = pathlib.Path(__file__).parent / 'images' / 'predictions.png'


def main() -> None:
    """Renders, predicts, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--workdir', required=True)
    find = predictor.load(parser.parse_args().workdir)
    tiles = []
    for number in PICKED:
        hand = generate(SceneOptions(), SEED, number)
        keypoints = hand.keypoints.astype(np.float64)
        box = geometry.keypoint_box(keypoints, np.ones(len(keypoints), bool))
        found = find(hand.image, box, side='left' if hand.is_left else 'right')
        picture, points = visualize.enlarge(hand.image, found.keypoints.astype(np.float64), 448)
        tiles.append(visualize.draw_hand(picture, points, confidence=found.confidence))
    rows = [np.hstack(tiles[i : i + 4]) for i in range(0, len(tiles), 4)]
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    visualize.save_png(OUTPUT, np.vstack(rows))


if __name__ == '__main__':
    main()
