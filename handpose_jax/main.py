"""The command line: python -m handpose_jax.main --config configs/NAME.py --workdir W.

Flags in, one function call out; no logic of its own.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Path of a config, e.g. configs/cmu.py or configs/cmu.py:smoke.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, pictures.')
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], 'What to do.')


def main(argv: list[str]) -> None:
    """Dispatches to the mode; user errors end as one message and exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    # Orbax logs a dozen lines for each checkpoint at the default level.
    logging.set_verbosity(logging.WARNING)
    # Imported here: a wrong flag is told at once, not after seconds of imports.
    from handpose_jax import (
        allocator,
        checkpoints,
        compilation,
        evaluate,
        interruption,
        train,
    )

    allocator.keep_freed_memory()
    compilation.keep_compiled_programs()

    try:
        config = CONFIG.value
        if MODE.value == 'train':
            if config is None:
                raise ValueError('--mode train needs --config, e.g. --config configs/quickstart.py')
            workdir = WORKDIR.value or config.workdir
            if not workdir:
                raise ValueError('--workdir is missing: the folder that receives the run')
            train.train(config, workdir)
        else:
            if not WORKDIR.value and config is None:
                raise ValueError('--mode evaluate needs --workdir, the folder of a training run')
            workdir = WORKDIR.value or config.workdir
            config = checkpoints.load_config(workdir) if config is None else config
            summary = evaluate.evaluate(config, workdir)
            print(evaluate.describe(summary))
    except ValueError as error:
        sys.exit(f'error: {error}')
    except interruption.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(interruption.EXIT_CODE)


if __name__ == '__main__':
    app.run(main)
