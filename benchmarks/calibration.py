"""How far confidences can be trusted before and after calibration, on hands not fitted on.

    python benchmarks/calibration.py LABEL=WORKDIR ...

fits handpose_jax.evaluation.calibration on part of each evaluated workdir's validation split,
measures it on the rest, and adds the reports to benchmarks/results/calibration.json. The workdirs
stay as they are.
"""

import argparse
import datetime
import json
import pathlib
import sys

import machine

from handpose_jax.evaluation import calibration, metrics

OUTPUT = pathlib.Path(__file__).parent / 'results' / 'calibration.json'


def main() -> None:
    """Fits, measures, merges into the results file, prints Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', metavar='LABEL=WORKDIR')
    parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
    flags = parser.parse_args()
    results = json.loads(flags.output.read_text()) if flags.output.exists() else {'runs': {}}
    for text in flags.runs:
        label, separator, workdir = text.partition('=')
        if not separator:
            sys.exit(f'error: expected LABEL=WORKDIR, got {text!r}')
        try:
            record = metrics.read_evaluation(pathlib.Path(workdir) / metrics.EVALUATION_FILE)
            report = calibration.fit(record).report
        except ValueError as error:
            sys.exit(f'error: {error}')
        results['runs'][label] = report
        print(f'{label}\n\n{calibration.describe(report)}\n')
    results |= {
        'benchmark': 'calibration',
        'command': 'python benchmarks/calibration.py LABEL=W ...',
        'date': datetime.date.today().isoformat(),
        'machine': machine.describe(),
    }
    flags.output.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
