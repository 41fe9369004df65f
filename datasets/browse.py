"""Looks at a data set: python datasets/browse.py NAME --out sheet.png.

NAME is a prepared data set by its name or folder, or a folder with annotations.json. The contact
sheet shows records three times: as they are (keypoints that are hidden from view are hollow), as
training augments them, and the heatmaps that training wants. The doctor's report says what looks
wrong; docs/data_doctor.md says how far to believe it.
"""

import argparse
import contextlib
import glob
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from handpose_jax.process import command_line, extras, outputs

with extras.needed_by('datasets/browse.py'):
    from handpose_jax import visualize
    from handpose_jax.config import load
    from handpose_jax.data import prepared
    from handpose_jax.data.doctor import examine, findings, survey
    from handpose_jax.data.previews import preview
    from handpose_jax.data.sources import FolderSource
    from handpose_jax.data.transforms import Augmentation
    from handpose_jax.types import Source

_PER_CHECK = 3
_NAME_LENGTH = 22


def _find_folder(name: str) -> pathlib.Path:
    """The folder of a data set given by its name or its folder.

    Raises:
        ValueError: if there is none, or several.
    """
    given, default = pathlib.Path(name), prepared.default_folder(name)
    for folder in (given, default):
        if prepared.is_prepared(folder) or (folder / 'annotations.json').is_file():
            return folder
    # Rendered hands are kept by their settings: synthetic_hands-<digest>.
    found = [f for f in default.parent.glob(f'{glob.escape(name)}-*') if prepared.is_prepared(f)]
    if len(found) > 1:
        listed = '\n  '.join(map(str, sorted(found)))
        raise ValueError(f'{name}: there are several, give one of the folders:\n  {listed}')
    if not found:
        raise ValueError(
            f'{name}: no finished data set there nor in {default}, and no annotations.json; '
            'prepare the data set first, see datasets/README.md'
        )
    return found[0]


def _open_splits(folder: pathlib.Path) -> dict[str, Source]:
    """Every split of a prepared data set, or of a folder with annotations.json.

    Raises:
        ValueError: for annotations with problems.
    """
    if not prepared.is_prepared(folder):
        FolderSource(folder)  # says what is wrong with the file
        records = json.loads((folder / 'annotations.json').read_text('utf-8-sig'))
        found = dict.fromkeys(record.get('split') or '' for record in records)
        return {name or 'all': FolderSource(folder, split=name) for name in found}
    path = folder / 'dataset_info.json'
    try:
        names = [split['name'] for split in json.loads(path.read_text('utf-8'))['splits']]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected what prepare writes, got a damaged file ({error}); remove the '
            'folder and prepare the data set again'
        ) from error
    return {name: prepared.PreparedSource(folder, split=name) for name in names}


def sheet(
    source: Source,
    indices: list[int],
    captions: list[str],
    *,
    seed: int,
    tile: int,
    augmentation: Augmentation,
    sigma: float,
) -> np.ndarray:
    """Records as they are, augmented, and their heatmaps, as one picture u8[h w 3].

    Records whose image cannot be decoded, or whose box is empty, are left out.

    Raises:
        ValueError: if that leaves none.
    """
    tiles, texts = [], []
    for index, caption in zip(indices, captions, strict=True):
        try:
            sample = source[index]
            rng = np.random.default_rng([seed, index])
            views = preview(sample, size=tile, augmentation=augmentation, rng=rng, sigma=sigma)
        except ValueError:
            continue
        seen = sample['visible']
        if isinstance(source, prepared.PreparedSource):
            seen = source.record(index)['visible']
        known = views.visible
        plain = visualize.draw_hand(
            views.crop, views.keypoints, confidence=seen.astype(float), visible=known
        )
        changed = visualize.draw_hand(views.augmented, views.augmented_keypoints, visible=known)
        tiles += [plain, changed, views.maps]
        side = 'left, mirrored' if sample['is_left'] else 'right'
        # Names differ at their ends.
        name = sample['image_id'][-_NAME_LENGTH:]
        texts += [f'{index}: {name}\n{caption}', f'augmented\n{side}', 'heatmaps\n']
    if not tiles:
        raise ValueError('none of the chosen records can be shown')
    return visualize.contact_sheet(tiles, texts, columns=6, tile_size=tile)


def suspects(
    found: list[findings.Finding], split: str, names: list[str]
) -> tuple[list[int], list[str]]:
    """The worst records of each check in a split, and what they are there for."""
    numbers = {name: number for number, name in enumerate(names)}
    indices, captions = [], []
    for check, group in findings.by_check(found).items():
        mine = [one for one in group if one.split == split and one.record]
        for one in mine[:_PER_CHECK]:
            indices.append(numbers[one.record])
            captions.append(check)
    return indices, captions


def _read_config(path: str) -> tuple[Augmentation, float]:
    """Augmentation and sigma of a config file."""
    config = load(path)
    return Augmentation(**config.augmentation), config.sigma


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f'expected a number of at least {least}, got {text!r}')
        return number

    return parse


def main() -> None:
    """The command line."""
    parser = command_line.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', help='of a prepared data set, or its folder')
    parser.add_argument('--out', type=pathlib.Path, help='PNG to write: the contact sheet')
    parser.add_argument('--suspects', type=pathlib.Path, help='PNG to write: the worst records')
    parser.add_argument('--report', type=pathlib.Path, help='JSON to write: all findings')
    parser.add_argument('--no_report', action='store_true', help='only the contact sheet')
    parser.add_argument('--split', help='of the sheets, and the only one examined')
    parser.add_argument(
        '--count', type=_at_least(1), default=12, help='records on the contact sheet'
    )
    parser.add_argument('--seed', type=_at_least(0), default=0)
    parser.add_argument(
        '--tile', type=_at_least(4), default=224, help='side of a picture on the sheet'
    )
    parser.add_argument('--config', help="file whose augmentation is shown; default: the paper's")
    parser.add_argument('--threads', type=_at_least(1), default=2, help='that read and decode')
    arguments = parser.parse_args()
    with command_line.told():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line says.

    Raises:
        ValueError: for what the user can put right.
    """
    sources = _open_splits(_find_folder(arguments.name))
    if arguments.split:
        if arguments.split not in sources:
            raise ValueError(f'no split {arguments.split!r}; there are {", ".join(sources)}')
        sources = {arguments.split: sources[arguments.split]}
    split = 'train' if 'train' in sources else next(iter(sources))
    look = {'seed': arguments.seed, 'tile': max(4, arguments.tile // 4 * 4)}
    look['augmentation'], look['sigma'] = Augmentation(), 7.0
    if arguments.config:
        look['augmentation'], look['sigma'] = _read_config(arguments.config)
    if arguments.out:
        source = sources[split]
        order = np.random.default_rng(arguments.seed).permutation(len(source))
        chosen = sorted(order[: arguments.count].tolist())
        _save(arguments.out, sheet(source, chosen, [''] * len(chosen), **look))
        print(arguments.out)
    if arguments.no_report:
        return
    hashes = importlib.util.find_spec('imagehash') is not None
    records = survey.take(sources, threads=arguments.threads, progress=True, looks=hashes)
    found = examine.examine(records)
    counts = {name: len(source) for name, source in sources.items()}
    print(findings.to_text(found, counts))
    if arguments.report:
        report = {'made_by': outputs.MADE_BY, **findings.to_json(found, counts)}
        with _explained(arguments.report):
            outputs.write(arguments.report, f'{json.dumps(report, indent=1)}\n'.encode())
    if arguments.suspects:
        names = [name for name, of in zip(records.name, records.split, strict=True) if of == split]
        indices, captions = suspects(found, split, names)
        if indices:
            _save(arguments.suspects, sheet(sources[split], indices, captions, **look))
            print(arguments.suspects)


def _save(path: str, picture: np.ndarray) -> None:
    outputs.check(path)
    with _explained(path):
        visualize.save_png(path, picture)


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f'{path}: cannot be written ({error.strerror}); give a place that can be written'
        ) from error


if __name__ == '__main__':
    main()
