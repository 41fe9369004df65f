"""The command line: python -m handpose_jax.main --config configs/NAME.py --workdir W.

Flags in, one function call out; no logic of its own.
"""

import re
import sys
import traceback
from collections.abc import Sequence

from handpose_jax.process import extras, streams

_PURPOSE = 'handpose train'

with extras.needed_by(_PURPOSE):
    from absl import app, flags, logging
    from ml_collections import config_flags

    from handpose_jax import config

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Path of a config, e.g. configs/cmu.py or configs/cmu.py:smoke.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, pictures.')
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate', 'export'], 'What to do.')
ACCEPT_CHANGED_DATA = flags.DEFINE_bool(
    'accept_changed_data', False, 'Go on with a run though its training data has changed.'
)
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
    )

    allocator.keep_freed_memory()
    compilation_cache.keep_compiled_programs()

    try:
        if DISTRIBUTED.value:
            distributed.initialise(num_processes=NUM_PROCESSES.value, process_id=PROCESS_ID.value)
        elif NUM_PROCESSES.value is not None or PROCESS_ID.value is not None:
            raise ValueError('--num_processes and --process_id mean nothing without --distributed')
        chosen = CONFIG.value
        if MODE.value == 'train':
            if chosen is None:
                raise ValueError('--mode train needs --config, e.g. --config configs/quickstart.py')
            workdir = WORKDIR.value or chosen.workdir
            if not workdir:
                raise ValueError('--workdir is missing: the folder that receives the run')
            train.train(chosen, workdir, accept_changed_data=ACCEPT_CHANGED_DATA.value)
        else:
            if not WORKDIR.value and chosen is None:
                raise ValueError(f'--mode {MODE.value} needs --workdir, the folder of a run')
            workdir = WORKDIR.value or chosen.workdir
            if MODE.value == 'export':
                from handpose_jax import export

                print(export.describe(workdir, export.export(workdir, config=chosen)))
                return
            # Its plots take a second to import, which a training need not wait for.
            from handpose_jax.evaluation import report

            summary, folder = evaluate.evaluate(workdir, chosen)
            if distributed.is_main_process():
                print(evaluate.describe(summary))
                print(report.write_report([folder], folder / report.FOLDER))
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


def run(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and calls main; a wrong flag ends as one message and exit code 1.

    Args:
        argv: the command's name and its flags; None for those of this process.
    """
    with streams.guarded(), extras.needed_by(_PURPOSE):
        app.run(main, list(sys.argv if argv is None else argv), flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    name = ''
    try:
        place, prefix = _place_of_config(argv)
        if place:
            name = argv[place].removeprefix(prefix)
            # The library of the flag says what is wrong with ten lines of its own code, and does
            # not know the bare names of configs.
            config.load(name)
            file, variant = config.find(name)
            argv = [*argv]
            argv[place] = f'{prefix}{file}' + f':{variant}' * bool(variant)
        return flags.FLAGS(argv)
    except (ValueError, flags.Error) as error:
        sys.exit(f'error: {error}')
    except (AttributeError, KeyError) as error:
        # Raised by the config for a field that it does not have.
        asked = re.search(r'\w+', str(error))
        words = [word.partition('=')[0] for word in argv if word.startswith('--config.')]
        found = [word for word in words if asked and asked.group() in word.split('.')]
        if not found:
            raise
        hint = re.search(r'Did you mean "\w+"', str(error))
        sys.exit(
            f'error: {found[0]}: no such setting in {name}; '
            f'{f"{hint.group()}?" if hint else "handpose_jax/config.py tells them all"}'
        )


def _place_of_config(argv: list[str]) -> tuple[int, str]:
    """Which word names the config, 0 for none, and what stands before the name in it."""
    for i, word in enumerate(argv[1:], start=1):
        if word in ('--config', '-config') and i + 1 < len(argv):
            return i + 1, ''
        if word.startswith(('--config=', '-config=')):
            return i, f'{word.partition("=")[0]}='
    return 0, ''


if __name__ == '__main__':
    run()
