"""Rendered hands, made from a seed alone or with rigs, textures, backgrounds and poses of yours."""

import argparse
import itertools
import pathlib

from handpose_jax.data import prepared, synthetic_hands
from handpose_jax.synthetic.generate import generate
from handpose_jax.synthetic.scene.options import SceneOptions

_RHD_SPLITS = {'training': 0, 'evaluation': 10_000_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python datasets/prepare.py synthetic_hands` understands."""
    parser.add_argument('--count', type=int, default=20_000, help='training pictures')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same bytes')
    parser.add_argument('--size', type=int, default=224, help='side of a picture, pixels')
    parser.add_argument('--data_dir', default='', help='folder; default: a place in your cache')
    parser.add_argument('--rig', nargs='*', default=[], help='glTF hands instead of the bundled')
    parser.add_argument('--textures', help='folder of textures for the rigs')
    parser.add_argument('--backgrounds', help='folder of photographs to put behind the hands')
    parser.add_argument('--poses', help='JSON file of captured WebXR hand poses')
    parser.add_argument('--workers', type=int, help='processes; default: one for each core')
    parser.add_argument('--rhd', help='write this folder in the layout of RHD instead')


def scene_options(arguments: argparse.Namespace) -> SceneOptions:
    """The options of the pictures."""
    return SceneOptions(
        size=arguments.size,
        rigs=tuple(arguments.rig),
        textures=arguments.textures,
        backgrounds='photos' if arguments.backgrounds else 'procedural',
        photos=arguments.backgrounds,
        poses=arguments.poses,
    )


def prepare(arguments: argparse.Namespace) -> None:
    """Renders, or goes on rendering, the data set."""
    options = scene_options(arguments)
    if arguments.rhd:
        from prepare import HERE, load_builder

        rhd_layout = load_builder(HERE / 'rhd' / 'rhd_layout.py')
        counts = {'training': arguments.count, 'evaluation': max(1, arguments.count // 10)}
        # Both are looked at before hours are spent on the first.
        for split in _RHD_SPLITS:
            rhd_layout.check_target(arguments.rhd, split)
        for split, first in _RHD_SPLITS.items():
            numbers = itertools.islice(itertools.count(first), counts[split])
            rendered = (generate(options, arguments.seed, number) for number in numbers)
            rhd_layout.write_rhd(pathlib.Path(arguments.rhd), split, rendered)
        return
    count, seed = arguments.count, arguments.seed
    folder = arguments.data_dir or synthetic_hands.default_folder(options, count=count, seed=seed)
    synthetic_hands.prepare(folder, options, count=count, seed=seed, workers=arguments.workers)
    print(f'{folder}: fingerprint {prepared.fingerprint(folder)}')
