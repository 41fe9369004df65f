"""Watches a training for steps that fail: numbers that are not finite, and empty heatmaps."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from handpose_jax import visualize
from handpose_jax.process import storage
from handpose_jax.types import Source

DUMP_FOLDER = 'nonfinite'

EMPTY_PEAK = 0.05
"""Heatmaps whose highest value is on average lower are called empty; targets reach 1."""

_SHEET_EXAMPLES = 64
_CAPTION_LENGTH = 24


class DivergedError(ValueError):
    """Too many steps in a row had no finite loss or gradient."""


class Watch:
    """Looks at the metrics of each step, one step late, so that the device never waits for it."""

    def __init__(
        self,
        workdir: str,
        source: Source,
        *,
        max_skipped: int,
        empty_after: int,
        log: Callable[[str], None],
        show: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> None:
        """Begins.

        Args:
            workdir: receives dumps of batches, under DUMP_FOLDER.
            source: of the batches, for the names of their records.
            max_skipped: skipped steps in a row that end the training, at least 1.
            empty_after: steps in a row with empty heatmaps before the alarm; 0 for no alarm.
            log: prints a line.
            show: makes types.Batch (NumPy) of a step's batch, for a dump; where the pictures lie in
                device memory, a batch only names them.

        Raises:
            ValueError: for a number out of range.
        """
        if max_skipped < 1 or empty_after < 0:
            raise ValueError(
                'max_skipped must be at least 1 and empty_after 0 or more, '
                f'got {max_skipped} and {empty_after}'
            )
        self._folder = storage.folder(workdir) / DUMP_FOLDER
        self._source = source
        self._max_skipped = max_skipped
        self._empty_after = empty_after
        self._log = log
        self._show = show
        self._last: tuple[int, Mapping[str, jax.Array], Mapping[str, np.ndarray]] | None = None
        self._empty_steps = 0

    def step(
        self, step: int, metrics: Mapping[str, jax.Array], batch: Mapping[str, np.ndarray]
    ) -> None:
        """Takes note of a step, and judges the one before.

        Args:
            step: its number, from 1.
            metrics: of make_train_step.
            batch: this process's part, types.Batch, or what `show` makes it of; with 'index'.

        Raises:
            DivergedError: see finish.
        """
        self.finish()
        self._last = step, metrics, batch

    def finish(self) -> None:
        """Judges the last step, if that was not done.

        Raises:
            DivergedError: at the last of max_skipped skipped steps in a row, with the records of
                its batch and where the batches were dumped.
        """
        if self._last is None:
            return
        step, metrics, batch = self._last
        self._last = None
        in_a_row = int(metrics['skipped_in_a_row'])
        if in_a_row:
            self._report(step, in_a_row, metrics, batch)
            return
        self._empty_steps = self._empty_steps + 1 if float(metrics['peak']) < EMPTY_PEAK else 0
        if self._empty_after and self._empty_steps == self._empty_after:
            self._log(
                f'ALARM at step {step}: the heatmaps have been empty for {self._empty_steps} steps '
                f'(highest value {float(metrics["peak"]):.3f} on average, expected near 1). The '
                'network has learned to answer nothing; try a smaller learning rate, a longer '
                'warm-up, a larger sigma or weights to start from (init_from)'
            )

    def _report(
        self,
        step: int,
        in_a_row: int,
        metrics: Mapping[str, jax.Array],
        batch: Mapping[str, np.ndarray],
    ) -> None:
        gives_up = in_a_row >= self._max_skipped
        names = [self._source.image_id(int(index)) for index in batch['index']]
        numbers = {name: float(metrics[name]) for name in ('loss', 'gradient_norm')}
        facts = ', '.join(f'{name} {value}' for name, value in numbers.items())
        # The first and the last of a row: what broke it, and what it still cannot do.
        where = ''
        if in_a_row == 1 or gives_up:
            path = dump(self._folder, step, self._show(batch), names, numbers)
            where = f'; the batch is in {path}'
        if not gives_up:
            self._log(f'step {step} skipped: {facts}{where}')
            return
        raise DivergedError(
            f'step {step}: {facts}; {in_a_row} steps in a row were skipped{where}. Its records: '
            f'{", ".join(names)}. Look at them; if they are in order, lower '
            'optimizer.learning_rate or set optimizer.clip_norm. The same command goes on from '
            'the last checkpoint'
        )


def dump(
    folder: Any,
    step: int,
    batch: Mapping[str, np.ndarray],
    names: list[str],
    numbers: Mapping[str, float],
) -> Any:
    """Writes a batch as STEP.npz (its arrays), STEP.png (to look at) and STEP.json (its records).

    Args:
        folder: made if needed; on several processes each adds its number to the names.
        step: that the batch was for.
        batch: types.Batch.
        names: of its records.
        numbers: of the step.

    Returns:
        The folder and common name of the three, without a suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = f'-{jax.process_index()}' if jax.process_count() > 1 else ''
    stem = folder / f'{step}{process}'
    arrays: dict[str, Any] = dict(batch)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    stem.with_suffix('.npz').write_bytes(packed.getvalue())
    # JSON has no word for NaN.
    text = {name: str(value) for name, value in numbers.items()}
    facts = {'step': step, **text, 'records': names}
    stem.with_suffix('.json').write_text(json.dumps(facts, indent=2) + '\n')
    shown = slice(0, _SHEET_EXAMPLES)
    tiles = [
        visualize.draw_hand(image, keypoints.astype(np.float64), visible=visible)
        for image, keypoints, visible in zip(
            batch['image'][shown], batch['keypoints'][shown], batch['visible'][shown], strict=True
        )
    ]
    captions = [name[-_CAPTION_LENGTH:] for name in names[shown]]
    visualize.save_png(
        stem.with_suffix('.png'),
        visualize.contact_sheet(tiles, captions, title=f'step {step}, not finite'),
    )
    return stem
