"""How fast data sets are prepared: made up in their authors' layout, then converted.

The files are flat drawings, which compress better than photographs: fewer bytes an image than real
ones have, in as many files of the same kinds and sizes in pixels.
"""

import argparse
import contextlib
import io
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from handpose_jax.data import prepared

DATASETS = pathlib.Path(__file__).parent.parent / 'datasets'
sys.path.append(str(DATASETS))

# Arguments of the writers: many records, and as few as there can be. Sizes are the published ones.
MADE_UP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'cmu': (
        {'train': 0, 'test': 2, 'panoptic': 400, 'synth': (0, 0, 0, 0), 'height': 1080},
        {'train': 0, 'test': 2, 'panoptic': 2, 'synth': (0, 0, 0, 0), 'height': 1080},
    ),
    'freihand': ({'labels': 300, 'size': 224}, {'labels': 24, 'size': 224}),
    'rhd': (
        {'records': {'training': 600, 'evaluation': 2}},
        {'records': {'training': 2, 'evaluation': 2}},
    ),
    'shp': ({'frames': {'B2Counting': 300}}, {}),
    'dexter_object': ({'frames': {'Grasp1': 300}}, {'frames': {'Grasp1': 3}}),
}

OPTIONS: dict[str, list[str]] = {'freihand': ['--versions', 'all']}


def preparation_round(name: str, scratch: pathlib.Path) -> Callable[[], float]:
    """A function that prepares a data set on all cores and returns images per second.

    What starting the processes takes is measured on the smallest data set and left out.

    Args:
        name: a key of MADE_UP.
        scratch: an empty folder.
    """
    import prepare

    writer = prepare.load_builder(DATASETS / name / f'{name}_dummy_data.py')
    builder = prepare.load_builder(DATASETS / name / f'{name}_dataset_builder.py')
    downloads = [scratch / f'{name}_{size}' for size in ('many', 'few')]
    for folder, arguments in zip(downloads, MADE_UP[name], strict=True):
        folder.mkdir()
        writer.write(folder, **arguments)

    def seconds_and_records(download: pathlib.Path) -> tuple[float, int]:
        target = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        parser = argparse.ArgumentParser()
        builder.add_arguments(parser)
        arguments = ['--manual_dir', str(download), '--data_dir', str(target / 'd')]
        parsed = parser.parse_args([*arguments, *OPTIONS.get(name, [])])
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.prepare(parsed)
        seconds = time.perf_counter() - begin
        records = sum(split['records'] or 0 for split in prepared.counts(target / 'd').values())
        shutil.rmtree(target)
        return seconds, records

    def measure() -> float:
        few_seconds, few = seconds_and_records(downloads[1])
        many_seconds, many = seconds_and_records(downloads[0])
        return (many - few) / (many_seconds - few_seconds)

    return measure
