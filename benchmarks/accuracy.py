"""Puts finished training runs side by side: one results file, one picture of their curves.

    python benchmarks/accuracy.py real_hands imagenet=W1 random=W2

writes benchmarks/results/real_hands.json and docs/images/real_hands.png from what the workdirs
hold.
"""

import json
import pathlib
from typing import Any

import results_file

from handpose_jax.process import command_line
from handpose_jax.training import provenance, workdirs, writers

HERE = pathlib.Path(__file__).parent


def _read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Config, final metrics, evaluations and training time of one finished run.

    Raises:
        ValueError: if the run is not finished.
    """
    config = json.loads(workdirs.load_config(str(workdir)).to_json_best_effort())
    final, record = workdir / 'metrics.json', workdir / provenance.RUN_FILE
    for path in (final, record):
        if not path.exists():
            raise ValueError(f'{workdir}: no {path.name}; let the training finish')
    rows = writers.read_metrics(workdir / 'metrics.jsonl')
    last = json.loads(record.read_text())['starts'][-1]
    return {
        'measured': {
            'date': last['date'],
            'commit': last['git'],
            'machine': {name: last[name] for name in ('device', 'python', 'packages')},
        },
        'config': results_file.without_folders(config),
        'final': json.loads(final.read_text()),
        'evaluations': [row for row in rows if row['split'] == 'eval'],
        'training': [row for row in rows if row['split'] == 'train'],
    }


def plot(runs: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Draws loss and median EPE over the steps, and the final PCK, of all runs."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, (loss, epe, pck) = pyplot.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for name, run in runs.items():
        for axis, rows, figure_name, style in (
            (loss, run['training'], 'loss', {'linewidth': 1.2}),
            (epe, run['evaluations'], 'epe_median_224', {'marker': 'o', 'markersize': 3}),
        ):
            steps = [row['step'] for row in rows]
            axis.plot(steps, [row[figure_name] for row in rows], label=name, **style)
        curve = run['final']['pck']
        pck.plot(curve['thresholds'], curve['values'], label=name)
    loss.set(title='training loss', xlabel='step', yscale='log')
    epe.set(title='median EPE, px of the 224 crop', xlabel='step', ylim=(0, None))
    pck.set(title='PCK', xlabel='error / normaliser of the protocol', ylim=(0, 1), xlim=(0, None))
    for axis in (loss, epe, pck):
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Reads the runs, writes the results and the picture, prints a Markdown table."""
    parser = results_file.parser(__doc__)
    parser.add_argument('name', help='of the results file and the picture')
    results_file.add_runs(parser)
    parser.add_argument('--note', action='append', default=[], help='kept in the results file')
    flags = parser.parse_args()
    runs = {label: _read_run(pathlib.Path(workdir)) for label, workdir in flags.runs}
    plot(runs, HERE.parent / 'docs' / 'images' / f'{flags.name}.png')
    results_file.write(
        results_file.RESULTS / f'{flags.name}.json',
        results_file.head(f'accuracy/{flags.name}'),
        {'notes': flags.note, 'runs': runs},
    )
    rows = []
    notes = results_file.machine_notes([results_file.machine_of({}, run) for run in runs.values()])
    for (label, run), note in zip(runs.items(), notes, strict=True):
        final = run['final']
        errors = [f'{final[name]:.2f}' for name in ('epe_median_224', 'epe_mean_224')]
        shares = [f'{final[name]:.3f}' for name in ('auc', 'pck_at_0.2')]
        rows.append([f'{label}{note}', str(final['step']), *errors, *shares])
    print(results_file.table('run | steps | EPE median | EPE mean | AUC | PCK@0.2', rows))


if __name__ == '__main__':
    with command_line.told():
        main()
