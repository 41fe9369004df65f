"""Does the converted encoder still know ImageNet? Top-1 and top-5 on one photograph of each class.

    HANDPOSE_ASSETS=DIR python benchmarks/imagenet_accuracy.py

reads DIR/imagenet/mobilenet_v2_1.0_224.npz and DIR/imagenet/photos/0000.jpg .. 0999.jpg, whose
numbers are the classes. The encoder runs at its published stride of 32, followed by the last
convolution and the classifier of the .npz, which our network does not have. Exits with 1 if the
figures are not the expected.
"""

import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import results_file
from PIL import Image

from handpose_jax.models.mobilenet import MobileNetV2
from handpose_jax.models.pretrained import load_encoder, read_npz
from handpose_jax.process import command_line

SIZE = 224
BATCH = 20
EXPECTED = {'top_1': 87.2, 'top_5': 97.8}
"""Percent, measured on these very photographs with the source's own network."""
TOLERANCE = 0.3
BN_EPSILON = 1e-3


def _read_photo(path: pathlib.Path) -> np.ndarray:
    """The centre 224 x 224 of a photograph whose short side is 256: u8[224 224 3], RGB."""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert('RGB'))
    height, width = rgb.shape[:2]
    if min(height, width) < SIZE:
        raise ValueError(f'{path}: expected sides of at least {SIZE} pixels, got {width}x{height}')
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return rgb[top : top + SIZE, left : left + SIZE]


def _find_photos(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Class to photograph, for all files named by a number."""
    photos = {
        int(path.stem): path for path in sorted(folder.glob('*.jpg')) if path.stem.isdecimal()
    }
    if not photos:
        raise ValueError(f'{folder}: expected photographs named 0000.jpg and so on, found none')
    return photos


def _classify(variables: Any, head: dict[str, jax.Array], photos: jax.Array) -> jax.Array:
    """Logits of 1,001 classes, the background first, of u8[b 224 224 3]."""
    images = photos.astype(jnp.float32) / 127.5 - 1
    features = MobileNetV2(output_stride=32).apply(variables, images, False)
    x = jnp.einsum('bhwc,cd->bhwd', features, head['Conv_1/kernel'][0, 0])
    x = (x - head['Conv_1/mean']) / jnp.sqrt(head['Conv_1/var'] + BN_EPSILON)
    x = jnp.clip(x * head['Conv_1/scale'] + head['Conv_1/bias'], 0, 6)
    return x.mean((1, 2)) @ head['Logits/kernel'] + head['Logits/bias']


def measure(npz: pathlib.Path, photos: dict[int, pathlib.Path]) -> dict[str, Any]:
    """Top-1 and top-5 in percent, and the number of photographs."""
    shapes = jax.eval_shape(
        lambda: MobileNetV2(output_stride=32).init(
            jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), False
        )
    )
    variables = load_encoder(shapes, npz, model_name='mobilenet_v2')
    head = {
        name: jnp.asarray(array)
        for name, array in read_npz(npz).items()
        if name.startswith(('Conv_1/', 'Logits/'))
    }
    run = jax.jit(_classify)
    ranks: list[int] = []
    classes = list(photos)
    for start in range(0, len(classes), BATCH):
        chunk = classes[start : start + BATCH]
        batch = np.stack([_read_photo(photos[number]) for number in chunk])
        logits = np.asarray(run(variables, head, batch))
        for number, scores in zip(chunk, logits, strict=True):
            ranks.append(int(np.sum(scores > scores[number + 1])))
    share = {n: round(100 * float(np.mean(np.array(ranks) < n)), 2) for n in (1, 5)}
    return {'photos': len(ranks), 'top_1': share[1], 'top_5': share[5]}


def main() -> int:
    assets = os.environ.get('HANDPOSE_ASSETS')
    folder = pathlib.Path(assets, 'imagenet') if assets else None
    parser = results_file.parser(__doc__)
    for name, place in (('--npz', 'mobilenet_v2_1.0_224.npz'), ('--photos', 'photos')):
        parser.add_argument(
            name, type=pathlib.Path, default=folder and folder / place, required=folder is None
        )
    parser.add_argument(
        '--output', type=results_file.output_file, help='also write the figures as JSON here'
    )
    args = parser.parse_args()

    figures = measure(args.npz, _find_photos(args.photos))
    within = all(abs(figures[name] - value) <= TOLERANCE for name, value in EXPECTED.items())
    print(f'{figures["photos"]} photographs')
    for name, value in EXPECTED.items():
        print(f'{name.replace("_", "-")}  {figures[name]:.1f}%  (expected {value} +- {TOLERANCE})')
    print('as expected' if within else 'NOT as expected')
    if args.output:
        expected = EXPECTED | {'tolerance': TOLERANCE, 'within': within}
        results_file.write(
            args.output,
            results_file.head('imagenet_accuracy', assets=True),
            {'weights': args.npz.name, 'figures': figures, 'expected': expected},
        )
    return 0 if within else 1


if __name__ == '__main__':
    with command_line.told():
        sys.exit(main())
