"""Writes README.md's latency table from the files in benchmarks/results.

python benchmarks/latency_table.py            replaces the table
python benchmarks/latency_table.py --check    fails if it is not what the files say

Reads latency.json, and latency_jax_gpu.json and latency_android.json where they exist.
"""

from typing import Any

import readme_table
import results_file
from latency_parts import report

BEGIN = '<!-- latency: made by benchmarks/latency_table.py -->\n'


def _label(row: dict[str, Any]) -> str:
    if not row['own']:
        return f'{row["name"]} (peer)'
    return row['name'].replace('_', ' ')


def _cpu_table(results: dict[str, Any]) -> str:
    """Median milliseconds by network, and size and threads."""
    groups = sorted(
        (group for group in results['groups'] if group['batch'] == 1),
        key=lambda group: (group['size'] or 0, group['threads']),
    )
    labels = list(dict.fromkeys(_label(row) for group in groups for row in group['rows']))
    head = ['median ms for one image', *(report.heading(group) for group in groups)]
    rows = []
    for label in labels:
        found = [
            next((row for row in group['rows'] if _label(row) == label), None) for group in groups
        ]
        last = next(row for row in reversed(found) if row is not None)
        cells = [
            label,
            *('' if row is None else report.milliseconds(row['p50_ms']) for row in found),
            f'{last["import_s"] + last["load_s"] + last["first_call_ms"] / 1e3:.1f}',
            f'{last["peak_memory_mb"]:.0f}',
            f'{last["bytes"] / 1e6:.1f}',
        ]
        rows.append(cells)
    rates = ', '.join(
        f'{group["matmul_gflops"]:.0f} GFLOP/s ({report.heading(group)})' for group in groups
    )
    made = results_file.table(' | '.join([*head, 'load s', 'peak MB', 'file MB']), rows)
    return (
        f'{made}\n\n'
        f'Decoding included; weights {results["weights"]}; load, with the first call, and '
        'memory in the last column of milliseconds. '
        f'{results_file.machine_of(results)}; a large float32 matrix product in the same rounds: '
        f'{rates}.'
    )


def _gpu_table(results: dict[str, Any]) -> str:
    """Images per second by batch."""
    rows = [
        [
            str(group['batch']),
            report.milliseconds(row['p50_ms']),
            *(f'{there["frames_per_s"]:,.0f}' for there in (row, row['resident'])),
        ]
        for group in results['groups']
        for row in group['rows']
    ]
    made = results_file.table('batch | ms | images/s | images/s, images already on the GPU', rows)
    sizes = ', '.join(f'{size} px' for size in sorted({g['size'] for g in results['groups']}))
    return f'{made}\n\nJAX on one {results["machine"]["device"]}, {sizes}.'


def table() -> str:
    """All tables in Markdown.

    Raises:
        ValueError: if nothing was measured.
    """
    cpu = results_file.read('latency')
    gpu, phone = (
        results_file.read(f'latency_{of}', optional=True) for of in ('jax_gpu', 'android')
    )
    parts = [_cpu_table(cpu)]
    missing = []
    if gpu:
        parts.append(_gpu_table(gpu))
    else:
        missing.append('GPU')
    found = (phone or cpu).get('phone')
    if found:
        parts.append(report.phone_table(found))
    else:
        missing.append('phone')
    if missing:
        parts.append(f'No {" and no ".join(missing)} measured yet: none was at hand.')
    return '\n\n'.join(parts) + '\n'


if __name__ == '__main__':
    readme_table.run(__doc__, BEGIN, table)
