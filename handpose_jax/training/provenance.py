"""What a result came from: W/run.json tells versions, device, code, data and seed of a run."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import handpose_jax
from handpose_jax.process import storage
from handpose_jax.training.workdirs import RUN_FILE
from handpose_jax.types import Source

PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'numpy',
    'opencv-python-headless',
    'ml_collections',
)


def record(
    workdir: str,
    config: ConfigDict,
    source: Source,
    *,
    first_step: int,
    finished: bool = False,
    accept_changed_data: bool = False,
) -> None:
    """Adds this start of a run to W/run.json.

    Args:
        workdir: of the run.
        config: of the run; the whole of it is in W/config.json.
        source: the training data.
        first_step: the step that the run goes on from; 0 at its beginning.
        finished: no step is left, so that it does not matter what the data would be.
        accept_changed_data: go on with other data; run.json tells that.

    Raises:
        ValueError: if the run goes on with other training data than it began with, or run.json is
            damaged or cannot be written.
    """
    path = storage.folder(workdir) / RUN_FILE
    data = {
        'name': config.data.name,
        'split': config.train_split,
        'records': len(source),
        'fingerprint': source.fingerprint(),
    }
    run: dict[str, Any] = {'seed': config.seed, 'data': data, 'starts': []}
    start: dict[str, Any] = {'step': first_step, **describe()}
    if first_step and not path.exists() and not (finished or accept_changed_data):
        raise ValueError(
            f'workdir {workdir}: no {RUN_FILE}, so nobody can tell whether the training data is '
            'what the run began with; bring the file back, or give --accept_changed_data'
        )
    if first_step and path.exists():
        try:
            run = json.loads(path.read_text())
            old, starts = run['data'], run['starts']
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}: damaged ({type(error).__name__}: {error}); remove it to go on'
            ) from error
        run['starts'] = starts
        if old != data and not finished:
            if not accept_changed_data:
                raise ValueError(
                    f'workdir {workdir}: the training data has changed since the run began:\n'
                    f'  {old}\n  -> {data}\n{_newer_files(source, starts)}'
                    'bring the old data back, give --accept_changed_data to go on with these, '
                    'or take a new --workdir'
                )
            run['data'] = data
            start['data_before'] = old
    run['starts'].append(start)
    temporary = path.with_name(f'{RUN_FILE}.new')
    try:
        temporary.write_text(json.dumps(run, indent=2) + '\n')
        temporary.replace(path)
    except OSError as error:
        raise ValueError(
            f'workdir {workdir}: cannot write {RUN_FILE} ({error.strerror})'
        ) from error


def _newer_files(source: Source, starts: Any) -> str:
    """Names the files of a folder that were written after the run's last start, as far as known."""
    since = getattr(source, 'files_since', None)
    try:
        began = datetime.datetime.fromisoformat(starts[-1]['date']).timestamp()
    except (LookupError, TypeError, ValueError):
        return ''
    files = since(began) if since else []
    if not files:
        return ''
    more = f' and {len(files) - 5} more' if len(files) > 5 else ''
    return f'  written since its last start: {", ".join(files[:5])}{more}\n'


def describe() -> dict[str, Any]:
    """Date, command, code, versions and devices of this process, as JSON values."""
    device = jax.devices()[0]
    return {
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': sys.argv,
        'handpose_jax': handpose_jax.__version__,
        'git': git_revision(),
        'python': platform.python_version(),
        'system': platform.platform(),
        'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
        'device': device.platform if device.platform == 'cpu' else device.device_kind,
        'devices': jax.device_count(),
        'processes': jax.process_count(),
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
    }


def git_revision() -> str | None:
    """The commit that this package's source is at, '+changes' if it was edited since.

    Returns:
        None where the package does not lie in a git repository of its own, or git is missing.
    """
    package = Path(handpose_jax.__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ['git', '-C', str(package), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        # An environment inside somebody else's repository is not this project's code.
        if Path(git('rev-parse', '--show-toplevel')).resolve() != package.parent:
            return None
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + ('+changes' if changed else '')
    except (OSError, subprocess.SubprocessError):
        return None
