"""Seconds from the command to the end of the first training step, with and without a warm cache.

    python benchmarks/first_step.py

Trains the paper's network (configs/real_hands.py, 112 px, batch 32) for one step on drawn hands,
each time in a process of its own: first with an empty compilation cache, then with what it left.
Writes benchmarks/results/first_step.json.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import results_file

from handpose_jax.process import command_line

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parent / 'configs' / 'real_hands.py'

PROGRAM = """
import sys, time
from handpose_jax.process import allocator, compilation_cache
allocator.keep_freed_memory()
compilation_cache.keep_compiled_programs()
from handpose_jax import config as configs, train
from handpose_jax.training import writers
config = configs.load(sys.argv[1])
config.data.name = 'sketch'
config.data.count = 64
write = writers.MetricWriter.write
def told(self, step, *arguments, **keywords):
    write(self, step, *arguments, **keywords)
    print('step', step, time.time(), flush=True)
writers.MetricWriter.write = told
train.train(config, sys.argv[2], stop_at=1)
"""


def _seconds_to_first_step(cache: str) -> float:
    """Runs one process; the metrics of a step are written when it is done."""
    with tempfile.TemporaryDirectory() as workdir:
        environment = {**os.environ, 'XDG_CACHE_HOME': cache}
        environment.pop('JAX_COMPILATION_CACHE_DIR', None)
        begin = time.time()
        done = subprocess.run(
            [sys.executable, '-c', PROGRAM, str(CONFIG), workdir],
            env=environment,
            cwd=HERE.parent,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return float(done.stdout.split()[2]) - begin


def main() -> None:
    """Measures and writes the results."""
    parser = results_file.parser(__doc__, 'first_step')
    parser.add_argument('--rounds', type=int, default=3, help='with a warm cache')
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        cold = _seconds_to_first_step(cache)
        warm = [_seconds_to_first_step(cache) for _ in range(flags.rounds)]
    figures = {
        'cold_cache_s': round(cold, 1),
        'warm_cache_s': round(statistics.median(warm), 1),
        'warm_cache_all_s': [round(seconds, 1) for seconds in warm],
    }
    results_file.write(flags.output, results_file.head('first_step'), figures)
    print(f'first step: {cold:.1f} s with an empty cache, {statistics.median(warm):.1f} s after it')


if __name__ == '__main__':
    with command_line.told():
        main()
