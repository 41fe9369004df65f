"""The command line: python -m handpose_jax.main --config configs/NAME.py --workdir W.

Flags in, one function call out; no logic of its own.
"""

import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Path of a config, e.g. configs/cmu.py or configs/cmu.py:smoke.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, pictures.')
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate', 'export'], 'What to do.')
DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'This is one of several processes of a run, see docs/scaling.md.'
)
NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'With --distributed where JAX cannot tell: how many there are.', 1
)
PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'With --distributed where JAX cannot tell: which one this is, from 0.', 0
)


def main(argv: list[str]) -> None:
    """Dispatches to the mode; user errors end as one message and exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    # Orbax logs a dozen lines for each checkpoint at the default level.
    logging.set_verbosity(logging.WARNING)
    # Imported here: a wrong flag is told at once, not after seconds of imports.
    from handpose_jax import evaluate, train
    from handpose_jax.process import (
        allocator,
        compilation_cache,
        distributed,
        interruption,
        storage,
    )
    from handpose_jax.training import workdirs

    allocator.keep_freed_memory()
    compilation_cache.keep_compiled_programs()

    try:
        if DISTRIBUTED.value:
            distributed.initialise(num_processes=NUM_PROCESSES.value, process_id=PROCESS_ID.value)
        elif NUM_PROCESSES.value is not None or PROCESS_ID.value is not None:
            raise ValueError('--num_processes and --process_id mean nothing without --distributed')
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
                raise ValueError(f'--mode {MODE.value} needs --workdir, the folder of a run')
            workdir = WORKDIR.value or config.workdir
            if MODE.value == 'export':
                from handpose_jax import export

                print(export.describe(workdir, export.export(workdir, config=config)))
                return
            config = workdirs.load_config(workdir) if config is None else config
            # Its plots take a second to import, which a training need not wait for.
            from handpose_jax.evaluation import report

            summary = evaluate.evaluate(config, workdir)
            if distributed.is_main_process():
                print(evaluate.describe(summary))
                print(report.write_report([workdir], storage.folder(workdir) / report.FOLDER))
    except ValueError as error:
        distributed.leave_if_several(f'error: {error}')
        sys.exit(f'error: {error}')
    except interruption.Interrupted as stopped:
        if distributed.is_main_process():
            print(stopped, file=sys.stderr)
        sys.exit(interruption.EXIT_CODE)
    except Exception:
        distributed.leave_if_several(traceback.format_exc())
        raise


if __name__ == '__main__':
    app.run(main)
