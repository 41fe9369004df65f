"""Writes README.md's performance table from the files in benchmarks/results.

python benchmarks/performance_table.py            replaces the table
python benchmarks/performance_table.py --check    fails if it is not what the files say
"""

import argparse
import json
import pathlib
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
README = HERE.parent / 'README.md'
BEGIN = '<!-- performance: made by benchmarks/performance_table.py -->\n'
END = '<!-- end -->\n'


def _read(name: str) -> dict[str, Any]:
    return json.loads((HERE / 'results' / f'{name}.json').read_text())


def table() -> str:
    """The table in Markdown, and a line on the machines it was measured on."""
    names = ('throughput', 'inference', 'rendering', 'first_step')
    throughput, inference, rendering, first_step = results = [_read(name) for name in names]
    rows = []

    def rate(values: dict[str, float]) -> str:
        return f'{values["images_per_s"]:,.1f} images/s'

    for size in (112, 224):
        ours, torch = (throughput.get(name) for name in (f'train_{size}', f'train_{size}_torch'))
        if not (ours and torch):
            continue
        rows.append(
            (
                f'training at {size} px, batch {throughput["batch_size"]}',
                rate(ours),
                f'{ours["ratio_to_torch"]:.2f} x PyTorch channels_last ({rate(torch)})',
                'throughput',
            )
        )
    for what, name, file, result in (
        ('reading and warping photographs to 224 px', 'input_224', 'throughput', throughput),
        ('rendering hands at 224 px', 'render_224', 'rendering', rendering),
    ):
        rows.append((what, rate(result[name]), '', file))
    for size in (224, 112):
        ours, lite = (inference[f'at_{size}'][name] for name in ('jax_tuned', 'litert'))
        rows.append(
            (
                f'one image at {size} px, one thread, in JAX',
                f'{ours["median_ms"]:.1f} ms',
                f'{ours["ratio_to_litert"]:.2f} x LiteRT with XNNPACK ({lite["median_ms"]:.1f} ms)',
                'inference',
            )
        )
    rows.append(
        (
            'from the command to the first training step, 112 px',
            f'{first_step["warm_cache_s"]:.0f} s',
            f'{first_step["cold_cache_s"]:.0f} s with an empty compilation cache',
            'first_step',
        )
    )
    lines = ['| what | measured | beside | file in benchmarks/results |', '|---|---|---|---|']
    lines += [
        f'| {what} | {value} | {beside} | {file}.json |' for what, value, beside, file in rows
    ]
    machines = sorted(
        {
            f'{result["machine"]["cores"]} cores of {result["machine"]["processor"]}'
            for result in results
        }
    )
    return '\n'.join(lines) + f'\n\nMeasured on {", ".join(machines)}. No GPU, TPU or phone yet.\n'


def replaced(readme: str) -> str:
    """README's text with a fresh table.

    Raises:
        ValueError: if it has no place for one.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f'README.md: expected {BEGIN.strip()!r} and after it {END.strip()!r}')
    return before + begin + table() + end + after


def main() -> None:
    """Replaces the table, or compares it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='change nothing, fail if it would')
    flags = parser.parse_args()
    old = README.read_text()
    new = replaced(old)
    if flags.check:
        if new != old:
            sys.exit('README.md: the performance table is stale; run this without --check')
    else:
        README.write_text(new)


if __name__ == '__main__':
    main()
