"""Trained networks on photographs they were not trained for.

    HANDPOSE_ASSETS=DIR python benchmarks/real_photos.py LABEL=WORKDIR ...

evaluates the network of each workdir, or of each file of weights, on the validation part of
DIR/real_hands (machine-made labels) and on the right-or-left labelled samples of FreiHAND and CMU
Panoptic in DIR/hands/samples (12 hands, labels of the data sets' authors), and adds the rows to
benchmarks/results/real_photos.json.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
import results_file
from ml_collections import ConfigDict

from handpose_jax import config as default
from handpose_jax import evaluate, inference
from handpose_jax.process import allocator, command_line, distributed

FIGURES = ('hands', 'epe_median_224', 'epe_mean_224', 'auc', 'pck_at_0.2')


def sample_records(samples: pathlib.Path) -> list[dict[str, Any]]:
    """The samples' annotations (mmpose's JSON) as records of the folder source.

    FreiHAND shows right hands only; CMU's file names end in _l or _r. The other data sets in the
    folder do not say which hand it is.
    """
    records = []
    for name in ('freihand', 'panoptic'):
        content = json.loads((samples / name / f'test_{name}.json').read_text())
        files = {image['id']: image['file_name'] for image in content['images']}
        for annotation in content['annotations']:
            file = files[annotation['image_id']]
            points = np.asarray(annotation['keypoints'], float).reshape(21, 3)
            left = name == 'panoptic' and pathlib.Path(file).stem.endswith('_l')
            records.append(
                {
                    'file': f'{name}/{file}',
                    'id': f'{name}/{annotation["id"]}',
                    'keypoints': points[:, :2].tolist(),
                    'visible': (points[:, 2] > 0).tolist(),
                    'handedness': 'left' if left else 'right',
                }
            )
    return records


def measure(workdir: str, folders: dict[str, tuple[pathlib.Path, str]]) -> dict[str, Any]:
    """Figures of a workdir's newest checkpoint, or of weights, on each folder (path, split)."""
    run = inference.load_run(workdir)
    model, step, variables = run.model, run.step, run.variables
    # A file of weights has only those fields that inference needs.
    config = ConfigDict({**default.improved().to_dict(), **run.config.to_dict()})
    rows: dict[str, Any] = {
        'steps': step,
        'model': config.model.name,
        'size': config.size,
    }
    if 'init_from' in run.config:
        rows['trained_on'] = results_file.without_folders(config.data.to_dict())
        rows['init_from'] = pathlib.PurePath(config.init_from).name
    for name, (folder, split) in folders.items():
        config.data = {'name': 'folder', 'root': str(folder), 'crop_scale': 2.2}
        # A run may have data of its own to be measured on.
        config.eval_data = {'name': ''}
        config.eval_split = split
        summary = evaluate.Evaluation(config, model, distributed.data_mesh()).run(variables).summary
        rows[name] = {figure: summary[figure] for figure in FIGURES}
    return rows


def main() -> None:
    """Measures, merges into the results file, prints a Markdown table of all rows."""
    parser = results_file.parser(__doc__, 'real_photos')
    results_file.add_runs(parser)
    flags = parser.parse_args()
    if 'HANDPOSE_ASSETS' not in os.environ:
        sys.exit('error: HANDPOSE_ASSETS is not set to the folder of photographs')
    allocator.keep_freed_memory()
    assets = pathlib.Path(os.environ['HANDPOSE_ASSETS'])
    with tempfile.TemporaryDirectory() as temporary:
        samples = pathlib.Path(temporary)
        for name in ('freihand', 'panoptic'):
            shutil.copytree(assets / 'hands' / 'samples' / name, samples / name)
        records = sample_records(assets / 'hands' / 'samples')
        (samples / 'annotations.json').write_text(json.dumps(records))
        folders = {'real_hands_val': (assets / 'real_hands', 'val'), 'samples': (samples, '')}
        results = results_file.measure_runs(
            'real_photos', flags, lambda workdir: measure(workdir, folders), assets=True
        )
    rows = []
    machines = [results_file.machine_of(results, run) for run in results['runs'].values()]
    notes = results_file.machine_notes(machines)
    for (label, run), note in zip(results['runs'].items(), notes, strict=True):
        val, few = (
            f'{run[name]["epe_median_224"]:.1f} / {run[name]["epe_mean_224"]:.1f}'
            for name in ('real_hands_val', 'samples')
        )
        pck = f'{run["real_hands_val"]["pck_at_0.2"]:.3f}'
        rows.append([f'{label}{note}', str(run['steps']), val, pck, few])
    head = 'run | steps | real_hands val: median / mean EPE | PCK@0.2 | samples: median / mean EPE'
    print(results_file.table(head, rows))


if __name__ == '__main__':
    with command_line.told():
        main()
