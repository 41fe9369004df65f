"""How much of a trained network's accuracy is left when pictures or crops go wrong.

    python benchmarks/robustness.py [LABEL=]WORKDIR ... --limit 64

takes hands spread evenly over each workdir's validation split, corrupts their crops in every way
and at every severity of handpose_jax.data.corruptions, and adds PCK@0.2 and EPE, absolute and
relative to the clean crops, to benchmarks/results/robustness.json. EPE is in pixels of the clean
224 crop throughout, so a crop twice as large does not make errors look half as large. Keypoints
under an occluder or outside a wrong crop count like all others. The same seed gives the same
pictures, whatever the limit.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import results_file

from handpose_jax import geometry, inference
from handpose_jax.config import evaluation_data
from handpose_jax.data import corruptions, sources
from handpose_jax.data.transforms import crop_example
from handpose_jax.evaluation import metrics, protocols
from handpose_jax.process import allocator, command_line

FIGURES = ('pck_at_0.2', 'epe_mean_224', 'epe_median_224')
CLEAN = 'clean'


class Subject:
    """A trained network and the hands it is tried on."""

    def __init__(self, workdir: str, limit: int) -> None:
        """Loads the newest checkpoint, and `limit` hands of the validation split; 0 takes all."""
        run = inference.load_run(workdir)
        self.config, self.step, self._variables = run.config, run.step, run.variables
        self._predict = run.predict_step()
        self._protocol = protocols.get_protocol(self.config.protocol)
        source = sources.load_source(split=self.config.eval_split, **evaluation_data(self.config))
        count = min(limit or len(source), len(source))
        self.indices = np.linspace(0, len(source) - 1, count).round().astype(int)
        self.samples = [source[int(index)] for index in self.indices]
        self.clean = [
            crop_example(sample, size=self.config.size, index=int(index))
            for sample, index in zip(self.samples, self.indices, strict=True)
        ]

    def measure(self, name: str, severity: int, seed: int) -> dict[str, float]:
        """FIGURES under one corruption; 'clean' for none."""
        examples = [
            corrupted(sample, example, name, severity, generator(seed, name, severity, int(index)))
            for sample, example, index in zip(self.samples, self.clean, self.indices, strict=True)
        ]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        keypoints, confidence = self._decode(batch['image'])
        errors = metrics.KeypointErrors.from_batch(
            keypoints,
            confidence,
            batch,  # type: ignore[arg-type]
            self.config.size,
        )
        errors = in_clean_pixels(errors, self.samples)
        summary = errors.summary(self._protocol)
        return {figure: summary[figure] for figure in FIGURES}

    def _decode(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.eval_batch_size
        keypoints, confidence = [], []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            # One shape is one compilation.
            padded = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
            found = self._predict(self._variables, jnp.asarray(padded))
            keypoints.append(np.asarray(found.keypoints)[: len(part)])
            confidence.append(np.asarray(found.confidence)[: len(part)])
        return np.concatenate(keypoints), np.concatenate(confidence)


def generator(seed: int, name: str, severity: int, index: int) -> np.random.Generator:
    """Draws for one hand, the same whichever others there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), severity, index])


def corrupted(
    sample: Any, example: dict[str, Any], name: str, severity: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The example of a batch under one corruption.

    Args:
        sample: the hand.
        example: its clean crop, from transforms.crop_example.
        name: of corruptions.PIXELS or corruptions.GEOMETRY, or 'clean'.
        severity: 1..5.
        rng: see generator.
    """
    if name == CLEAN:
        return example
    if name in corruptions.PIXELS:
        return {**example, 'image': corruptions.corrupt(example['image'], name, severity, rng)}
    size = example['image'].shape[0]
    return {**example, **corruptions.crop_wrongly(sample, name, severity, rng, size=size)}


def in_clean_pixels(
    errors: metrics.KeypointErrors, samples: Sequence[Any]
) -> metrics.KeypointErrors:
    """The errors with error_crop in pixels of the proper crop instead of the one that was used."""
    sides = np.array([geometry.longest_side(sample['box']) for sample in samples], np.float64)
    error_crop = errors.error_image * (metrics.EPE_FRAME / sides)[:, None]
    return dataclasses.replace(errors, error_crop=error_crop)


def measure(workdir: str, limit: int, seed: int) -> dict[str, Any]:
    """All corruptions at all severities, and what they leave of the clean figures."""
    subject = Subject(workdir, limit)
    clean = subject.measure(CLEAN, 0, seed)
    table: dict[str, Any] = {}
    for name in (*corruptions.PIXELS, *corruptions.GEOMETRY):
        rows = [subject.measure(name, severity, seed) for severity in corruptions.SEVERITIES]
        mean_pck = float(np.mean([row['pck_at_0.2'] for row in rows]))
        mean_epe = float(np.mean([row['epe_mean_224'] for row in rows]))
        table[name] = {
            'severities': dict(zip(map(str, corruptions.SEVERITIES), rows, strict=True)),
            'mean_pck_at_0.2': mean_pck,
            'relative_pck_at_0.2': mean_pck / clean['pck_at_0.2'],
            'mean_epe_224': mean_epe,
            'relative_epe_224': mean_epe / clean['epe_mean_224'],
        }
    mean = float(np.mean([row['mean_pck_at_0.2'] for row in table.values()]))
    return {
        'step': subject.step,
        'model': subject.config.model.name,
        'size': subject.config.size,
        'protocol': subject.config.protocol,
        'hands': len(subject.samples),
        'seed': seed,
        'clean': clean,
        'corruptions': table,
        'mean_pck_at_0.2': mean,
        'relative_pck_at_0.2': mean / clean['pck_at_0.2'],
    }


def markdown(label: str, run: dict[str, Any]) -> str:
    """One run's table for people."""
    clean = run['clean']
    title = (
        f'{label}: {run["hands"]} hands, {run["model"]} at {run["size"]} px, step {run["step"]}. '
        f'Clean: PCK@0.2 {clean["pck_at_0.2"]:.3f}, EPE mean {clean["epe_mean_224"]:.2f}. '
        f'Corrupted: PCK@0.2 {run["mean_pck_at_0.2"]:.3f} on average, '
        f'{run["relative_pck_at_0.2"]:.1%} of clean.'
    )
    head = (
        'PCK@0.2 at severity | 1 | 2 | 3 | 4 | 5 | mean | of clean | EPE mean, 1 .. 5 | EPE / clean'
    )
    rows = []
    for name, row in run['corruptions'].items():
        levels = list(row['severities'].values())
        first, last = (f'{levels[end]["epe_mean_224"]:.1f}' for end in (0, -1))
        pck = [
            f'{values:.3f}'
            for values in (*(level['pck_at_0.2'] for level in levels), row['mean_pck_at_0.2'])
        ]
        share, epe = f'{row["relative_pck_at_0.2"]:.1%}', f'{row["relative_epe_224"]:.2f}'
        rows.append([name, *pck, share, f'{first} .. {last}', epe])
    return f'{title}\n\n{results_file.table(head, rows)}'


def main() -> None:
    """Measures, merges into the results file, prints a Markdown table of each run."""
    parser = results_file.parser(__doc__, 'robustness')
    results_file.add_runs(parser)
    parser.add_argument('--limit', type=int, default=64, help='hands of each run; 0: all')
    parser.add_argument('--seed', type=int, default=0)
    flags = parser.parse_args()
    allocator.keep_freed_memory()
    results = results_file.measure_runs(
        'robustness', flags, lambda workdir: measure(workdir, flags.limit, flags.seed)
    )
    for label, _ in flags.runs:
        print(markdown(label, results['runs'][label]), end='\n\n')


if __name__ == '__main__':
    with command_line.told():
        main()
