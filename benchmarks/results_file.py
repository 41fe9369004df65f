"""What the scripts here share: their arguments, and the files of benchmarks/results.

A results file begins with its head, which says what was run, when, on which code and machine. Rows
that a later measurement left as they were keep the head they were measured under, as 'measured'.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from handpose_jax.process import command_line

RESULTS = pathlib.Path(__file__).parent / 'results'
HEAD = ('benchmark', 'command', 'date', 'commit', 'machine')
RUNTIMES = ('ai-edge-litert', 'onnxruntime', 'openvino', 'tensorflow', 'tensorflow-cpu', 'torch')
"""Distributions whose versions belong to the results, beside those that trainings record."""

_PATHS = ('workdir', 'init_from', 'root', 'textures', 'photos', 'poses', 'rigs')


def parser(description: str | None, benchmark: str = '') -> argparse.ArgumentParser:
    """The arguments of a script.

    Args:
        description: for --help, as it stands in the script.
        benchmark: adds --output, which is results/BENCHMARK.json by default.
    """
    made = command_line.Parser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if benchmark:
        made.add_argument('--output', type=output_file, default=RESULTS / f'{benchmark}.json')
    return made


def output_file(text: str) -> pathlib.Path:
    """The type of an option --output: looks before minutes of measuring whether it can be written.

    Makes the folder of the file.

    Raises:
        argparse.ArgumentTypeError: if it cannot be written.
    """
    path = pathlib.Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{path}: cannot be written ({error.strerror})') from error
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{path}: expected the path of a file, got a folder')
    return path


def add_runs(given: argparse.ArgumentParser) -> None:
    """Adds the argument `runs`: pairs of label and workdir, whose name is the label without one."""

    def pair(text: str) -> tuple[str, str]:
        label, separator, workdir = text.partition('=')
        return (label, workdir) if separator else (pathlib.Path(text).absolute().name, text)

    given.add_argument('runs', nargs='+', type=pair, metavar='[LABEL=]WORKDIR')


def head(
    benchmark: str, arguments: Sequence[str] | None = None, *, assets: bool = False
) -> dict[str, Any]:
    """The first entries of a results file; JAX is started for them.

    Args:
        benchmark: the script's name; what follows a slash is the name of one of its results.
        arguments: of the command line; None: those of this process.
        assets: whether the script reads the environment's HANDPOSE_ASSETS.
    """
    from handpose_jax.training import provenance

    script = f'benchmarks/{benchmark.partition("/")[0]}.py'
    words = command_words(sys.argv[1:] if arguments is None else arguments)
    read = 'HANDPOSE_ASSETS=DIR ' if assets and 'HANDPOSE_ASSETS' in os.environ else ''
    return {
        'benchmark': benchmark,
        'command': read + shlex.join(['python', script, *words]),
        'date': datetime.date.today().isoformat(),
        'commit': provenance.git_revision(),
        'machine': _describe_machine(provenance.PACKAGES),
    }


def command_words(arguments: Sequence[str]) -> list[str]:
    """Arguments as others can give them: without the folders of this machine."""
    words = []
    for word in arguments:
        label, separator, value = word.partition('=')
        if pathlib.PurePath(word).is_absolute():
            word = f'DIR/{pathlib.PurePath(word).name}'
        elif separator and not label.startswith('-'):
            word = f'{label}=W'
        elif pathlib.PurePath(value).is_absolute():
            word = f'{label}=DIR/{pathlib.PurePath(value).name}'
        words.append(word)
    return words


def _describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, device and versions; nothing that names the host."""
    import jax

    info = pathlib.Path('/proc/cpuinfo')
    processor = info.read_text() if info.exists() else ''
    names = re.findall(r'model name\s*:\s*(.+)', processor)
    governor = pathlib.Path('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor')
    device = jax.devices()[0]
    versions = {}
    for name in (*packages, *RUNTIMES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        'processor': names[0] if names else platform.processor(),
        'cores': len(os.sched_getaffinity(0)),
        'device': device.platform if device.platform == 'cpu' else device.device_kind,
        'system': platform.system(),
        'python': platform.python_version(),
        'packages': versions,
        'governor': governor.read_text().strip() if governor.exists() else None,
        'instructions': sorted(
            {'avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_tile', 'asimddp'}
            & set(processor.split())
        ),
    }


def without_folders(values: Any, name: str = '') -> Any:
    """A config without the folders that its paths lie in.

    They say nothing about a result, and may name a person.

    Args:
        values: what the config holds under the name: a dict, list or value of JSON.
        name: of the field; '' for the whole config.
    """
    if isinstance(values, Mapping):
        return {key: without_folders(value, key) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_folders(value, name) for value in values]
    return pathlib.PurePath(values).name if name in _PATHS and values else values


def write(
    path: pathlib.Path, first: Mapping[str, Any], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a results file.

    Args:
        path: of the file; its folder is made.
        first: from head.
        figures: what was measured.

    Returns:
        What the file holds.
    """
    results = {**first, **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + '\n')
    return results


def read(name: str, *, optional: bool = False) -> Any:
    """What results/NAME.json holds; where it may be missing, an empty dict for none.

    Raises:
        ValueError: if it is missing and may not.
    """
    path = RESULTS / f'{name}.json'
    if optional and not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f'benchmarks/results/{name}.json: no such file; measure first, see docs/results.md'
        ) from error


def kept(old: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of an earlier file, each with the head that it was measured under."""
    own = {name: old[name] for name in HEAD[1:] if name in old}
    return {name: {**row, 'measured': row.get('measured', own)} for name, row in rows.items()}


def measure_runs(
    benchmark: str,
    flags: argparse.Namespace,
    measure: Callable[[str], dict[str, Any]],
    *,
    assets: bool = False,
) -> dict[str, Any]:
    """Measures some runs and adds them to those of the results file.

    Args:
        benchmark: see head.
        flags: `runs`, and `output`, the file.
        measure: from a workdir to what the file shall say of it; its ValueErrors end the script.
        assets: see head.

    Returns:
        What the file holds: the head, and 'runs' by label.
    """
    with command_line.told():
        old = _read_runs(flags.output)
        measured = {label: measure(workdir) for label, workdir in flags.runs}
    runs = kept(old, old['runs']) | measured
    return write(flags.output, head(benchmark, assets=assets), {'runs': runs})


def _read_runs(path: pathlib.Path) -> dict[str, Any]:
    """What an earlier run of measure_runs wrote."""
    if not path.exists():
        return {'runs': {}}
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f'--output {path}: is there and no JSON ({error}); move it away'
        ) from error
    if not isinstance(old, dict) or not isinstance(old.get('runs'), dict):
        raise ValueError(f'--output {path}: is there and holds no runs; move it away')
    return old


def table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        head: its columns, with bars between them.
        rows: the cells of each.
    """
    lines = [f'| {head} |', '|' + '---|' * (head.count('|') + 1)]
    return '\n'.join([*lines, *(f'| {" | ".join(cells)} |' for cells in rows)])


def machine_of(results: Mapping[str, Any], row: Mapping[str, Any] | None = None) -> str:
    """The machine that a file, or a row of it, was measured on, for people."""
    found = (row or {}).get('measured', results).get('machine', {})
    device = found.get('device', 'cpu')
    if 'processor' not in found:
        return device
    text = f'{found["cores"]} cores of {found["processor"]}'
    return text if device == 'cpu' else f'{text} with {device}'


def machine_notes(machines: Sequence[str]) -> list[str]:
    """What to add to the rows of a table: a row's machine, where the row above has another.

    Args:
        machines: of all rows.

    Returns:
        A text for each row; all are empty where there is one machine.
    """
    before = ['' if len(set(machines)) > 1 else machines[0], *machines[:-1]] if machines else []
    return [
        f' ({machine})' if machine != above else ''
        for machine, above in zip(machines, before, strict=True)
    ]
