"""Puts finished training runs side by side: one results file, one picture of their curves.

    python benchmarks/accuracy.py real_hands imagenet=W1 random=W2

writes benchmarks/results/real_hands.json and docs/images/real_hands.png from what the workdirs
hold.
"""

import argparse
import datetime
import json
import pathlib
import sys
from typing import Any

import machine

from handpose_jax.training import workdirs, writers

HERE = pathlib.Path(__file__).parent

# Where the data lay says nothing about the result, and may name a person's folders.
_PATHS = ('workdir', 'init_from', 'root')


def _read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Config, final metrics, evaluations and training time of one finished run.

    Raises:
        ValueError: if the run is not finished.
    """
    config = json.loads(workdirs.load_config(str(workdir)).to_json_best_effort())
    _shorten_paths(config)
    final = workdir / 'metrics.json'
    if not final.exists():
        raise ValueError(f'{workdir}: no metrics.json; let the training finish')
    rows = writers.read_metrics(workdir / 'metrics.jsonl')
    return {
        'config': config,
        'final': json.loads(final.read_text()),
        'evaluations': [row for row in rows if row['split'] == 'eval'],
        'training': [row for row in rows if row['split'] == 'train'],
    }


def _shorten_paths(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _shorten_paths(value)
        elif name in _PATHS and value:
            values[name] = pathlib.PurePath(value).name


def plot(runs: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Draws loss and median EPE over the steps, and the final PCK, of all runs."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, (loss, epe, pck) = pyplot.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for name, run in runs.items():
        loss.plot(
            [row['step'] for row in run['training']],
            [row['loss'] for row in run['training']],
            label=name,
            linewidth=1.2,
        )
        epe.plot(
            [row['step'] for row in run['evaluations']],
            [row['epe_median_224'] for row in run['evaluations']],
            label=name,
            marker='o',
            markersize=3,
        )
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', help='of the results file and the picture')
    parser.add_argument('runs', nargs='+', metavar='LABEL=WORKDIR')
    parser.add_argument('--note', action='append', default=[], help='kept in the results file')
    flags = parser.parse_args()
    runs = {}
    for text in flags.runs:
        label, separator, workdir = text.partition('=')
        if not separator:
            sys.exit(f'error: expected LABEL=WORKDIR, got {text!r}')
        runs[label] = _read_run(pathlib.Path(workdir))
    plot(runs, HERE.parent / 'docs' / 'images' / f'{flags.name}.png')
    results = {
        'benchmark': f'accuracy/{flags.name}',
        'command': f'python benchmarks/accuracy.py {flags.name} '
        + ' '.join(f'{label}=W' for label in runs),
        'date': datetime.date.today().isoformat(),
        'notes': flags.note,
        'runs': runs,
        'machine': machine.describe(),
    }
    output = HERE / 'results' / f'{flags.name}.json'
    output.write_text(json.dumps(results, indent=1) + '\n')
    print('| run | steps | EPE median | EPE mean | AUC | PCK@0.2 |')
    print('|---|---|---|---|---|---|')
    for label, run in runs.items():
        final = run['final']
        print(
            f'| {label} | {final["step"]} | {final["epe_median_224"]:.2f} | '
            f'{final["epe_mean_224"]:.2f} | {final["auc"]:.3f} | {final["pck_at_0.2"]:.3f} |'
        )


if __name__ == '__main__':
    main()
