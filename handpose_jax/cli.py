"""The console command `handpose`, and `python -m handpose_jax`: one sub-command for each verb.

Nothing heavy is imported before a sub-command is chosen, so that --help answers at once.
"""

import importlib
import runpy
import sys
from collections.abc import Sequence

import handpose_jax
from handpose_jax.process import extras, shipped, streams

# The verbs that take a config are flags of main.py; the others have a `main(argv, prog)` each.
_MODES = {
    'train': 'train a network: --config configs/NAME.py --workdir W',
    'evaluate': 'measure a trained network, and report: --workdir W',
}
_MODULES = {
    'predict': ('handpose_jax.predict', 'find the keypoints in photographs'),
    'calibrate': ('handpose_jax.evaluation.calibration', 'learn what a confidence means'),
    'report': ('handpose_jax.evaluation.report.__main__', 'put evaluated runs on one page'),
    'weights': ('handpose_jax.save_weights', 'write the weights of a run as one small file'),
    'export': ('handpose_jax.export.__main__', 'write TFLite, ONNX, StableHLO and SavedModel'),
}
_SCRIPTS = {
    'prepare': 'make a data set ready for training',
    'browse': 'look at a data set, and at what looks wrong in it',
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a sub-command; one that lacks a package ends with the line that installs it."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (words[0], words[1:]) if words else ('--help', [])
    with streams.guarded(), extras.needed_by(f'handpose {verb}'):
        _run(verb, rest)


def _run(verb: str, rest: list[str]) -> None:
    if verb in ('-h', '--help'):
        print(_usage())
    elif verb == '--version':
        print(f'handpose_jax {handpose_jax.__version__}')
    elif verb in _MODES:
        from absl import flags

        from handpose_jax import main as configured

        if '--help' in rest:
            print(f'usage: handpose {verb} [flags]', flags.FLAGS.module_help(configured.__name__))
            return
        configured.run([f'handpose {verb}', f'--mode={verb}', *rest])
    elif verb in _MODULES:
        importlib.import_module(_MODULES[verb][0]).main(rest, prog=f'handpose {verb}')
    elif verb in _SCRIPTS:
        _run_script(verb, rest)
    else:
        names = ', '.join([*_MODES, *_MODULES, *_SCRIPTS])
        sys.exit(f'error: {verb!r} is no command of handpose; expected one of {names}')


def _usage() -> str:
    told = {**_MODES, **{verb: text for verb, (_, text) in _MODULES.items()}, **_SCRIPTS}
    lines = [f'  {verb:<10} {text}' for verb, text in told.items()]
    return '\n'.join(
        ['usage: handpose COMMAND ...', '', *lines, '', 'handpose COMMAND --help tells more.']
    )


def _run_script(verb: str, rest: list[str]) -> None:
    script = runpy.run_path(str(shipped.folder('datasets') / f'{verb}.py'))
    sys.argv = [f'handpose {verb}', *rest]
    script['main']()


if __name__ == '__main__':
    main()
