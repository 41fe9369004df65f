"""What a run tells the world: metrics as JSON lines and TensorBoard events, and a progress bar.

No TensorFlow: the events are written by tensorboardX.
"""

import json
import math
import numbers
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import tensorboardX
from tqdm import tqdm

from handpose_jax.process import storage

METRICS_FILE = 'metrics.jsonl'
TENSORBOARD_FOLDER = 'tensorboard'

_EVENTS_FLUSH_SECONDS = 2

# JSON has no word for these; the strings are what Python's float() reads back.
_NOT_FINITE = ('nan', 'inf', '-inf')


class MetricWriter:
    """Appends metrics to `<workdir>/metrics.jsonl` and to TensorBoard events beside it.

    One line is one write: `{"step": 100, "split": "train", "loss": 0.25}`. Values that are not
    finite are the strings "nan", "inf" and "-inf", so that every line is valid JSON and a diverged
    loss stays visible; read_metrics turns them back into floats. Lines are flushed at once, events
    within seconds. In a bucket there are no events.

    Args:
        workdir: the run's folder; made if absent.
        resume_step: the step the run continues from: what was written for later steps is dropped,
            because it will be written again. None starts anew and drops everything.
        enabled: False writes nothing, for processes that leave it to another.

    Raises:
        ValueError: if a line of an existing metrics.jsonl is damaged (the last one, torn by a kill,
            is no error).
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = None,
        *,
        enabled: bool = True,
    ) -> None:
        folder = storage.folder(workdir)
        self.path = folder / METRICS_FILE
        self._enabled = enabled
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        last_step = -1 if resume_step is None else resume_step
        if self.path.exists():
            rows = [] if resume_step is None else _read_rows(self.path)
            _rewrite(self.path, [row for row in rows if row['step'] <= last_step])
        in_bucket = storage.is_bucket(workdir)
        self._file: Any = (
            storage.BucketText(self.path) if in_bucket else self.path.open('a', encoding='utf-8')
        )
        # tensorboardX appends.
        self._events: Any = None
        if in_bucket:
            return
        events = folder / TENSORBOARD_FOLDER
        self._events = tensorboardX.SummaryWriter(
            str(events),
            purge_step=last_step + 1 if events.exists() else None,
            flush_secs=_EVENTS_FLUSH_SECONDS,
            # tensorboardX names files by the second and overwrites one of the same name.
            filename_suffix=f'.{time.time_ns()}',
        )

    def write(self, step: int, metrics: Mapping[str, Any], split: str = 'train') -> None:
        """Writes one line, and one TensorBoard scalar `<split>/<name>` for each metric.

        Args:
            step: number of training steps done.
            metrics: name to number; NumPy and JAX scalars are welcome, None (no such value) is
                written as null and left out of TensorBoard.
            split: 'train', or the name of what was evaluated.

        Raises:
            ValueError: for a metric that is not a number, or is called 'step' or 'split'.
        """
        row: dict[str, Any] = {'step': int(step), 'split': split}
        for name, value in metrics.items():
            if name in row:
                raise ValueError(f'metrics[{name!r}]: the name is taken; rename the metric')
            row[name] = _number(name, value)
        if not self._enabled:
            return
        line = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._file.write(json.dumps(line, allow_nan=False) + '\n')
        self._file.flush()
        for name in metrics:
            if row[name] is not None and self._events is not None:
                self._events.add_scalar(f'{split}/{name}', row[name], int(step))

    def close(self) -> None:
        """Closes both files; closing twice is allowed."""
        if not self._enabled:
            return
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str], split: str | None = None) -> list[dict[str, Any]]:
    """Reads what a MetricWriter wrote, floats that are not finite included.

    Args:
        path: a metrics.jsonl; a torn last line is left out.
        split: only rows of this split, if given.

    Raises:
        ValueError: for a damaged line before the last; names file and line.
    """
    rows = _read_rows(storage.folder(path))
    return [
        {
            name: float(value) if name != 'split' and value in _NOT_FINITE else value
            for name, value in row.items()
        }
        for row in rows
        if split in (None, row['split'])
    ]


class ProgressBar:
    """Steps done, images per second, time to go and latest loss, on stderr.

    On a terminal it is one line that moves (tqdm); elsewhere, as in a log file, it is a plain line
    every few seconds.

    Args:
        total: number of steps of the whole run.
        initial: steps done before this process began.
        stream: open text file to write to; stderr unless given.
        plain_interval: seconds between plain lines.
        clock: seconds, monotonic.
        enabled: False shows nothing, for processes that leave it to another.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        *,
        stream: Any = None,
        plain_interval: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._total, self._step, self._initial = total, initial, initial
        self._images = 0
        self._loss: Any = None
        self._start = self._shown_at = clock()
        self._bar: tqdm | None = None
        self._closed = False
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=initial, unit='step', file=self._stream, dynamic_ncols=True
            )
        self._interval = plain_interval if self._bar is None else 1.0

    def update(self, *, images: int, loss: Any = None) -> None:
        """Counts one step.

        Args:
            images: number of images in the step.
            loss: the step's loss; read only when it is shown, so that a value still being computed
                on the device is not waited for at every step.
        """
        self._step += 1
        self._images += images
        if loss is not None:
            self._loss = loss
        if self._bar is not None:
            self._bar.update()
        if self._enabled and self._clock() - self._shown_at >= self._interval:
            self._show()

    def write(self, text: str) -> None:
        """Prints a line of its own without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._enabled:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last state and ends the line; closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        if self._enabled and self._images:
            self._show()
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> 'ProgressBar':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _show(self) -> None:
        # Read before the clock: waiting for the device is part of the time the images took.
        loss = None if self._loss is None else float(self._loss)
        now = self._clock()
        facts = []
        if now > self._shown_at and self._images:
            facts.append(f'{self._images / (now - self._shown_at):.1f} images/s')
        if loss is not None:
            facts.append(f'loss {loss:.4g}')
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join(facts))
        else:
            done = self._step - self._initial
            if done and self._step < self._total:
                seconds = (now - self._start) / done * (self._total - self._step)
                facts.append(f'{tqdm.format_interval(seconds)} to go')
            self.write(', '.join([f'step {self._step}/{self._total}', *facts]))
        self._shown_at, self._images = now, 0


def _number(name: str, value: Any) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        if isinstance(value, str):
            raise TypeError('text')
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'metrics[{name!r}]: expected one number, got {type(value).__name__} {value!r:.80}'
        ) from error


def _read_rows(path: Any) -> list[dict[str, Any]]:
    # A kill may have cut the last line anywhere, inside a character too.
    lines = path.read_bytes().split(b'\n')
    last = len(lines) if lines[-1] else len(lines) - 1
    rows = []
    for number, line in enumerate(lines[:last], start=1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and isinstance(row.get('step'), int) and 'split' in row):
                raise ValueError('no object with "step" and "split"')
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(
                f'{path}, line {number}: expected one JSON object with "step" and "split", got '
                f'{line[:80]!r}; remove the line to go on'
            ) from error
        rows.append(row)
    return rows


def _rewrite(path: Any, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) + '\n' for row in rows]
    if storage.is_bucket(path):
        # Nobody sees a part of an object.
        path.write_text(''.join(lines))
        return
    # Written beside and renamed: a kill in between leaves the old file whole.
    temporary = path.with_name(path.name + '.new')
    with temporary.open('w', encoding='utf-8') as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
