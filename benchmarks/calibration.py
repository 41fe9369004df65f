"""How far confidences can be trusted before and after calibration, on hands not fitted on.

    python benchmarks/calibration.py LABEL=WORKDIR ...

fits handpose_jax.evaluation.calibration on part of each evaluated workdir's validation split,
measures it on the rest, and adds the reports to benchmarks/results/calibration.json. The workdirs
stay as they are.
"""

import pathlib
from typing import Any

import results_file

from handpose_jax.evaluation import calibration, metrics
from handpose_jax.process import command_line


def measure(workdir: str) -> dict[str, Any]:
    """The report of one workdir."""
    record = metrics.read_evaluation(pathlib.Path(workdir) / metrics.EVALUATION_FILE)
    return calibration.fit(record).report


def main() -> None:
    """Fits, measures, merges into the results file, prints Markdown."""
    parser = results_file.parser(__doc__, 'calibration')
    results_file.add_runs(parser)
    flags = parser.parse_args()
    results = results_file.measure_runs('calibration', flags, measure)
    for label, _ in flags.runs:
        print(f'{label}\n\n{calibration.describe(results["runs"][label])}\n')


if __name__ == '__main__':
    with command_line.told():
        main()
