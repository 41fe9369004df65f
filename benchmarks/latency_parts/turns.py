"""Workers that wait for their turn, and what their turns amount to."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

HERE = pathlib.Path(__file__).parent
PERCENTILES = (50, 90, 95, 99)
PAUSE = 0.02
"""Seconds between turns: threads of some runtimes spin for a while before they sleep."""

REFERENCE = ('tflite', 'f32')
"""The backend and precision that others are compared with."""

Turn = TypeVar('Turn')


def worker_environment(environment: Mapping[str, str], threads: int, device: str) -> dict[str, str]:
    """The environment of a worker: libraries that take their number of threads from there.

    Args:
        environment: of this process.
        threads: of the CPU.
        device: 'cpu' or 'gpu'.
    """
    changed = {
        'NPROC': str(threads),  # the size of XLA's pool
        'OMP_NUM_THREADS': str(threads),
        'TF_CPP_MIN_LOG_LEVEL': '3',
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    }
    if device == 'cpu':
        changed['JAX_PLATFORMS'] = 'cpu'
    if threads == 1:
        flags = environment.get('XLA_FLAGS', '')
        changed['XLA_FLAGS'] = f'{flags} --xla_cpu_multi_thread_eigen=false'.strip()
    # A compiled program from a cache would be no first call.
    kept = {k: v for k, v in environment.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
    return {**kept, **changed}


class Worker:
    """A process with one network open in one runtime."""

    def __init__(self, case: dict[str, Any], command: Sequence[str] = ()) -> None:
        """Starts the process and opens the network; `facts` says what that took.

        Args:
            case: see worker.open_case.
            command: what to start; default: worker.py.

        Raises:
            ValueError: if the network cannot be opened.
        """
        self._name = case['name']
        self._said = tempfile.TemporaryFile('w+')  # noqa: SIM115, closed by close
        self._process = subprocess.Popen(
            list(command) or [sys.executable, str(HERE / 'worker.py')],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=worker_environment(os.environ, case['threads'], case['device']),
        )
        try:
            self.facts = self._ask({'open': case})
        except BaseException:
            self.close()
            raise

    def turn(self, calls: int, backwards: bool) -> dict[str, Any]:
        """See worker.take_turn."""
        return self._ask({'calls': calls, 'backwards': backwards})

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError(f'{self._name}: the worker has no pipes')
        try:
            stdin.write(json.dumps(question) + '\n')
            stdin.flush()
        except BrokenPipeError:
            pass
        line = stdout.readline()
        answer = json.loads(line) if line else {'error': f'the process ended: {self._last_words()}'}
        if 'error' in answer:
            raise ValueError(f'{self._name}: {answer["error"]}')
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return lines[-1] if lines else f'exit code {self._process.returncode}'


def alternate(
    turns: Mapping[str, Callable[[bool], Turn]], rounds: int, pause: float = PAUSE
) -> dict[str, list[Turn]]:
    """Gives everyone a turn in each round; who goes first changes from round to round.

    Args:
        turns: what to call, with whether it shall go through its variants backwards.
        rounds: how often.
        pause: seconds after each turn.

    Returns:
        What the turns returned, in the order of the rounds.
    """
    names = list(turns)
    found: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(rounds):
        start = number // 2 % len(names)
        order = names[start:] + names[:start]
        for name in reversed(order) if number % 2 else order:
            found[name].append(turns[name](bool(number % 2)))
            time.sleep(pause)
    return found


def matmul_gflops(turn: dict[str, Any], side: int) -> float:
    """GFLOP/s of a turn of worker.open_matmul."""
    return 2 * side**3 / (1e6 * statistics.median(turn['milliseconds']['whole']))


def _round_medians(turns: Sequence[dict[str, Any]], variant: str) -> list[float] | None:
    """Milliseconds of the median call of each round; None without such a variant."""
    if variant not in turns[0]['milliseconds']:
        return None
    return [statistics.median(turn['milliseconds'][variant]) for turn in turns]


def summarise(
    contender: dict[str, Any],
    facts: dict[str, Any],
    turns: Sequence[dict[str, Any]],
    *,
    batch: int,
    gflops: Sequence[float],
    reference: Sequence[dict[str, Any]] | None,
) -> dict[str, Any]:
    """The figures of one contender in one group.

    Args:
        contender: see artefacts.
        facts: what it took to open it.
        turns: one for each round.
        batch: images in a call.
        gflops: of the large matrix product, one for each round.
        reference: turns of the contender that others are compared with; None without one.
    """

    def figures(variant: str, medians: Sequence[float]) -> dict[str, Any]:
        calls = np.concatenate([turn['milliseconds'][variant] for turn in turns])
        found: dict[str, Any] = {
            f'p{p}_ms': round(float(value), 3)
            for p, value in zip(PERCENTILES, np.percentile(calls, PERCENTILES), strict=True)
        }
        found['frames_per_s'] = round(1e3 * batch / found['p50_ms'], 1)
        if contender['macs']:
            flop = 2e-6 * contender['macs'] * batch
            shares = [flop / (ms * rate) for ms, rate in zip(medians, gflops, strict=True)]
            found['share_of_matmul'] = round(statistics.median(shares), 3)
        if others := _round_medians(reference, variant) if reference else None:
            ratios = [ours / theirs for ours, theirs in zip(medians, others, strict=True)]
            found['ratio_to_tflite'] = round(statistics.median(ratios), 3)
        return found

    row = {
        name: contender[name]
        for name in ('name', 'backend', 'precision', 'size', 'macs', 'bytes', 'own')
    }
    row |= {'batch': batch, 'calls': sum(len(turn['milliseconds']['whole']) for turn in turns)}
    row |= {name: value for name, value in facts.items() if name != 'variants'}
    row['cores_used'] = round(statistics.median(turn['cores_used'] for turn in turns), 2)
    whole = _round_medians(turns, 'whole')
    if whole is None:
        raise ValueError(f'{contender["name"]}: turns without calls')
    row |= figures('whole', whole)
    for variant in ('network', 'resident'):
        if medians := _round_medians(turns, variant):
            row[variant] = figures(variant, medians)
    if network := _round_medians(turns, 'network'):
        beside = [statistics.median(turn['beside']) for turn in turns]
        added = [a - b for a, b in zip(beside, network, strict=True)]
        shares = [a / b for a, b in zip(added, network, strict=True)]
        low, middle, high = np.percentile(shares, (10, 50, 90))
        row['decode'] = {
            'ms': round(statistics.median(added), 3),
            'share_of_network': round(float(middle), 4),
            'share_p10': round(float(low), 4),
            'share_p90': round(float(high), 4),
        }
    row['round_ms'] = [round(value, 4) for value in whole]
    return row
