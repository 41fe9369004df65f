"""LiteRT's benchmark_model on a phone, through adb: CPU threads, the GPU delegate, NNAPI.

Never run on a phone by the authors of this package, who had none attached: what adb and
benchmark_model answer is known from their public sources and logs, on which the tests rely.
"""

import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

FOLDER = '/data/local/tmp/handpose_jax'
"""On the phone: a place from which the shell may run a binary."""

RUNS = 50
WARM_UP_RUNS = 5
MAX_SECONDS = 60
TIMEOUT = 300
"""Seconds for one command: GPU delegates compile for long, and a phone may fall asleep."""

_STATES = {
    'unauthorized': 'the phone has not allowed this computer: accept the question on its screen',
    'offline': 'the phone does not answer: plug it in again, or run adb reconnect',
    'no permissions': 'this user may not use the USB device: see the udev rules of your system',
    'recovery': 'the phone is in recovery mode: start Android',
    'sideload': 'the phone is in sideload mode: start Android',
    'bootloader': 'the phone is in its bootloader: start Android',
}


def check_binary(path: pathlib.Path) -> None:
    """ValueError if benchmark_model is not there, or is no program of Linux."""
    if not path.is_file():
        raise ValueError(
            f'--benchmark_model {path}: no such file; docs/latency.md says where to get it'
        )
    with path.open('rb') as file:
        if file.read(4) != b'\x7fELF':
            raise ValueError(
                f'--benchmark_model {path}: expected a program for Android (ELF), not an .apk or '
                'a script'
            )


def choose_device(listing: str, serial: str | None) -> str:
    """The phone to use.

    Args:
        listing: what `adb devices` prints.
        serial: the one asked for; None: the only one.

    Raises:
        ValueError: if there is none, more than one, or it cannot be used.
    """
    found: dict[str, str] = {}
    for line in listing.splitlines():
        name, separator, state = line.partition('\t')
        if separator:
            found[name.strip()] = state.strip()
    if serial is not None and serial not in found:
        raise ValueError(
            f'--serial {serial}: no such device; attached: {", ".join(found) or "none"}'
        )
    if not found:
        raise ValueError(
            'adb sees no device: attach a phone, with USB debugging switched on in its developer '
            'options'
        )
    if serial is None and len(found) > 1:
        raise ValueError(f'several devices: choose one of {", ".join(found)} with --serial')
    name = serial or next(iter(found))
    state = found[name]
    if state != 'device':
        known = [text for start, text in _STATES.items() if state.startswith(start)]
        raise ValueError(f'{name}: {known[0] if known else f"adb says {state!r}"}')
    return name


class Phone:
    """An attached phone."""

    def __init__(self, serial: str | None = None) -> None:
        """Finds it.

        Args:
            serial: as `adb devices` prints it; None: the only one.

        Raises:
            ValueError: if adb or the phone is missing.
        """
        if shutil.which('adb') is None:
            raise ValueError(
                "adb is not on the PATH: install Android's platform-tools "
                '(https://developer.android.com/tools/releases/platform-tools)'
            )
        self._serial: str | None = None
        self._serial = choose_device(self._adb('devices'), serial)

    def _adb(self, *words: str) -> str:
        start = ['adb', *(['-s', self._serial] if self._serial else [])]
        try:
            done = subprocess.run(
                [*start, *words], capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f'adb {words[0]}: no answer for {TIMEOUT} s') from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ValueError(
                f'adb {words[0]}: {said[-1] if said else f"exit code {done.returncode}"}'
            )
        return done.stdout + done.stderr

    def push(self, path: pathlib.Path) -> str:
        """Copies a file there; returns its path on the phone."""
        target = f'{FOLDER}/{path.name}'
        self._adb('push', str(path), target)
        return target

    def shell(self, command: str) -> str:
        """Runs a command there; ValueError if it fails."""
        return self._adb('shell', command)

    def try_shell(self, command: str) -> str:
        """Runs a command there; '' where the phone does not allow it."""
        try:
            return self.shell(command)
        except ValueError:
            return ''

    def describe(self) -> dict[str, Any]:
        """What was measured on; nothing that names this one phone."""

        def property_of(name: str) -> str:
            return self.try_shell(f'getprop {name}').strip()

        governors = self.try_shell('cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor')
        return {
            'manufacturer': property_of('ro.product.manufacturer'),
            'model': property_of('ro.product.model'),
            'chip': property_of('ro.soc.model') or property_of('ro.board.platform'),
            'abi': property_of('ro.product.cpu.abi'),
            'android': property_of('ro.build.version.release'),
            'sdk': property_of('ro.build.version.sdk'),
            'governors': sorted({w for w in governors.split() if re.fullmatch(r'[a-z_]+', w)}),
        }

    def temperature(self) -> float | None:
        """Reads the temperature of the battery, degrees Celsius."""
        found = re.search(r'^\s*temperature: (-?\d+)', self.try_shell('dumpsys battery'), re.M)
        return int(found[1]) / 10 if found else None


def parse(output: str) -> dict[str, Any]:
    """The figures in what benchmark_model prints, milliseconds and MB.

    Args:
        output: of one run; lines may begin with a log level.

    Returns:
        load_ms, first_call_ms, mean_ms, runs, min_ms, max_ms; p50_ms, p95_ms and memory_mb, None
        where this version does not print them; ran: 'on the CPU' or how much a delegate took.

    Raises:
        ValueError: if there are none.

    Source: TensorFlow Lite, tools/benchmark/benchmark_model.cc and benchmark_tflite_model.cc.
    """
    number = r'([\d.]+(?:e[+-]?\d+)?)'
    timings = re.search(
        rf'Inference timings in us: Init: {number}, First inference: {number}, '
        rf'Warmup \(avg\): {number}, Inference \(avg\): {number}',
        output,
    )
    if not timings:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r'error|fail|not found|denied', line, re.I)]
        said = (errors or lines or ['nothing'])[-1]
        raise ValueError(f'benchmark_model printed no timings; it said: {said}')
    init, first, _, mean = (float(value) / 1e3 for value in timings.groups())
    # The first such line is of the warm-up.
    counts = re.findall(r'count=(\d+)((?: \w+=[\d.e+-]+)*)', output)
    values: dict[str, float] = {}
    if counts:
        values = {
            name: float(value) / 1e3 for name, value in re.findall(r'(\w+)=(\S+)', counts[-1][1])
        }
    memory = re.search(
        rf'(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): '
        rf'init={number} overall={number}',
        output,
    )
    return {
        'load_ms': init,
        'first_call_ms': first,
        'mean_ms': mean,
        'runs': int(counts[-1][0]) if counts else None,
        'min_ms': values.get('min'),
        'max_ms': values.get('max'),
        'p50_ms': values.get('median'),
        'p95_ms': values.get('p95'),
        'memory_mb': float(memory[2]) if memory else None,
        'ran': _where(output),
    }


def _where(output: str) -> str:
    """A delegate that was asked for may have refused: then the CPU ran, and nothing failed."""
    if re.search(r'the model graph will not be executed by the delegate', output):
        return 'on the CPU: the delegate refused'
    if found := re.search(r'partially executed by the delegate w/ (\d+) delegate kernels', output):
        return f'partly: {found[1]} parts on the delegate, the rest on the CPU'
    if found := re.search(r'Explicitly applied (\S+) delegate.* completely', output):
        return f'all on {found[1]}'
    return 'on the CPU'


def ways(threads: Sequence[int]) -> dict[str, str]:
    """Where a network runs, and the flags for it."""
    found = {
        f'CPU, {n} thread{"s" if n > 1 else ""}': f'--num_threads={n} --use_xnnpack=true'
        for n in threads
    }
    return {**found, 'GPU': '--use_gpu=true', 'NNAPI': '--use_nnapi=true'}


def measure(
    phone: Phone, binary: pathlib.Path, contenders: Sequence[dict[str, Any]], threads: Sequence[int]
) -> dict[str, Any]:
    """Runs every network in every way on the phone.

    Args:
        phone: attached.
        binary: benchmark_model for its processor.
        contenders: see artefacts; .tflite files.
        threads: of the CPU.

    Returns:
        'device', 'temperature_before' and 'temperature_after', and 'rows': for each network and way
        what parse returns, or 'error'. Rows of one network are no more than `runs` calls, and the
        temperature is recorded for each: phones slow down when they are warm.
    """
    phone.shell(f'mkdir -p {FOLDER}')
    program = phone.push(binary)
    phone.shell(f'chmod +x {program}')
    result: dict[str, Any] = {
        'device': phone.describe(),
        'temperature_before': phone.temperature(),
        'rows': [],
    }
    for contender in contenders:
        model = phone.push(pathlib.Path(contender['path']))
        for on, words in ways(threads).items():
            row = {'name': contender['name'], 'size': contender['size'], 'on': on}
            command = (
                f'{program} --graph={model} --num_runs={RUNS} --warmup_runs={WARM_UP_RUNS} '
                f'--max_secs={MAX_SECONDS} {words}'
            )
            try:
                row |= parse(phone.shell(command))
            except ValueError as error:
                # A delegate that is missing on this phone does not end the others.
                row['error'] = str(error)
            row['temperature'] = phone.temperature()
            result['rows'].append(row)
        phone.try_shell(f'rm {model}')
    phone.try_shell(f'rm -r {FOLDER}')
    result['temperature_after'] = phone.temperature()
    return result
