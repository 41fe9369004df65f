"""Weights of a run as one small file: handpose weights --workdir W --out FILE.safetensors.

handpose_jax.load and handpose predict take such a file like a workdir, and config.init_from starts
a training from it.
"""

import argparse
import sys
from collections.abc import Sequence

from handpose_jax import inference
from handpose_jax.training import weight_files


def main(argv: Sequence[str] | None = None, prog: str = 'handpose weights') -> None:
    """The command line; user errors end as one message and exit code 1."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument('--workdir', required=True, metavar='W', help='folder of a training run')
    parser.add_argument('--out', required=True, metavar='FILE', help='ends in .safetensors')
    flags = parser.parse_args(argv)
    try:
        run = inference.load_run(flags.workdir)
        weight_files.save(flags.out, run.variables, run.config, run.step)
    except ValueError as error:
        sys.exit(f'error: {error}')
    print(flags.out)


if __name__ == '__main__':
    main()
