"""What 50 and 200 photographs of one kind bring to a network that has never seen that kind.

    HANDPOSE_ASSETS=DIR python benchmarks/finetuning.py START

START is a workdir or a file of weights whose training saw neither the source human_palm_ng of
DIR/real_hands (91 hands of 20 people) nor DIR/webcam_hands (456 of 16). Some people of each are
tuned on by configs/finetune.py; the error before and after is that on the other people, and on the
validation part of DIR/real_hands, which shows what was forgotten. Labels are machine-made. Minutes
are of the whole training, compilation and evaluations included. Writes
benchmarks/results/finetuning.json.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import results_file
from ml_collections import ConfigDict

from handpose_jax import evaluate, inference, train
from handpose_jax.config import data, load
from handpose_jax.process import allocator, command_line, compilation_cache, distributed

FIGURES = ('hands', 'epe_median_224', 'epe_mean_224', 'auc', 'pck_at_0.2')

KINDS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    'palms': ('real_hands', 'human_palm_ng', (50,)),
    'webcams': ('webcam_hands', '', (50, 200)),
}
"""Folder, source ('': all of it), and how many photographs are tuned on."""

Records = list[dict[str, Any]]


def split(
    records: Sequence[Mapping[str, Any]], counts: Sequence[int], seed: int = 0
) -> tuple[dict[int, Records], Records]:
    """Deals records out by their groups, so that nobody is tuned on and measured too.

    Args:
        records: with the field 'group'.
        counts: how many to tune on.
        seed: of the order of groups and records.

    Returns:
        By count the records to tune on, the smaller inside the larger; and those held out.

    Raises:
        ValueError: if nobody would be left to be measured.
    """
    rng = np.random.default_rng(seed)
    groups = sorted({record['group'] for record in records})
    tuned: Records = []
    chosen = set()
    for group in rng.permutation(groups).tolist():
        if len(tuned) >= max(counts):
            break
        chosen.add(group)
        tuned += [dict(record) for record in records if record['group'] == group]
    held = [dict(record) for record in records if record['group'] not in chosen]
    if not held or len(tuned) < max(counts):
        raise ValueError(
            f'expected more than {max(counts)} records and a group left over, got {len(records)} '
            f'in {len(groups)} groups'
        )
    order = rng.permutation(len(tuned))
    return {count: [tuned[i] for i in order[:count]] for count in counts}, held


def write_folder(source: pathlib.Path, target: pathlib.Path, parts: Mapping[str, Records]) -> None:
    """Makes a folder data set of the parts 'train' and 'val' of another."""
    records = []
    for name, part in parts.items():
        for record in part:
            (target / record['file']).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / record['file'], target / record['file'])
            records.append({**record, 'split': name})
    (target / 'annotations.json').write_text(json.dumps(records))


def settings(run: inference.TrainedRun, start: str, folder: pathlib.Path) -> ConfigDict:
    """configs/finetune.py on a folder, with the network of the start."""
    config = load(pathlib.Path(__file__).parent.parent / 'configs' / 'finetune.py')
    with config.unlocked(), config.ignore_type():
        for name in ('model', 'size', 'decode', 'sigma'):
            config[name] = run.config[name]
    config.init_from = start
    config.data.root = str(folder)
    config.eval_every = config.checkpoint_every = 10**6  # at the end alone
    return config


def measure(
    run: inference.TrainedRun,
    start: str,
    folder: pathlib.Path,
    others: str = '',
    *,
    known: Mapping[str, Any] | None = None,
    steps: int = 0,
) -> dict[str, Any]:
    """Tunes on a folder's 'train', and gives errors before and after on its 'val'.

    Args:
        run: the start, opened.
        start: where it lies.
        folder: data set.
        others: folder whose 'val' shows what was forgotten; '' for none.
        known: the start's figures on `others`, where another row has them.
        steps: of the tuning; 0: as the config has it.
    """
    config = settings(run, start, folder)
    config.num_steps = steps or config.num_steps
    measured = {'held_out': config.copy_and_resolve_references()}
    if others:
        measured['others'] = config.copy_and_resolve_references()
        measured['others'].eval_data = data('folder', root=others)
    mesh = distributed.data_mesh()
    evaluations = {
        name: evaluate.Evaluation(each, run.model, mesh) for name, each in measured.items()
    }

    def errors(name: str, variables: Any) -> dict[str, Any]:
        summary = evaluations[name].run(variables).summary
        return {figure: summary[figure] for figure in FIGURES}

    start_variables = distributed.replicate(run.variables, mesh)
    before = {
        name: known if known and name == 'others' else errors(name, start_variables)
        for name in evaluations
    }
    with tempfile.TemporaryDirectory() as workdir:
        begin = time.monotonic()
        state = train.train(config, workdir)
        minutes = (time.monotonic() - begin) / 60
    return {
        'steps': config.num_steps,
        'batch_size': config.batch_size,
        'minutes': round(minutes, 2),
        'before': before,
        'after': {name: errors(name, state.variables()) for name in evaluations},
    }


def main() -> None:
    """Measures all kinds and counts, and writes the results after each."""
    parser = results_file.parser(__doc__, 'finetuning')
    parser.add_argument('start', help='workdir, or file of weights')
    parser.add_argument('--only', default='', help='measure only kinds that contain this')
    parser.add_argument('--steps', type=int, default=0, help='of each tuning; 0: the config says')
    flags = parser.parse_args()
    if 'HANDPOSE_ASSETS' not in os.environ:
        sys.exit('error: HANDPOSE_ASSETS is not set to the folder of photographs')
    allocator.keep_freed_memory()
    compilation_cache.keep_compiled_programs()
    assets = pathlib.Path(os.environ['HANDPOSE_ASSETS'])
    run = inference.load_run(flags.start)
    first = results_file.head('finetuning', assets=True)
    rows: dict[str, Any] = {}
    for kind, (name, source, counts) in KINDS.items():
        if flags.only not in kind:
            continue
        records = json.loads((assets / name / 'annotations.json').read_text())
        wanted = [record for record in records if source in ('', record['source'])]
        tuned, held = split(wanted, counts)
        for count, part in tuned.items():
            with tempfile.TemporaryDirectory() as temporary:
                folder = pathlib.Path(temporary)
                write_folder(assets / name, folder, {'train': part, 'val': held})
                known = next((row['before']['others'] for row in rows.values()), None)
                others = str(assets / 'real_hands')
                row = measure(run, flags.start, folder, others, known=known, steps=flags.steps)
            row['people'] = len({record['group'] for record in part})
            rows[f'{kind}_{count}'] = row
            start = {'start': pathlib.PurePath(flags.start).name, 'start_step': run.step}
            results_file.write(flags.output, first, {**start, 'rows': rows})
    print(table(rows))


def table(rows: Mapping[str, Any]) -> str:
    """The rows in Markdown."""

    def text(figures: Mapping[str, Any]) -> str:
        median, mean = figures['epe_median_224'], figures['epe_mean_224']
        return f'{median:.1f} / {mean:.1f}, {figures["pck_at_0.2"]:.3f}'

    lines = []
    for name, row in rows.items():
        cells = [text(row[when][part]) for part in row['before'] for when in ('before', 'after')]
        lines.append([name, f'{row["minutes"]:.1f}', *cells])
    columns = 'held out, before | after | real_hands val, before | after'
    return results_file.table(f'tuned on | minutes | {columns}', lines)


if __name__ == '__main__':
    with command_line.told():
        main()
