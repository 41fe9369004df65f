"""What benchmarks/latency.py prints and draws from its results."""

import pathlib
from typing import Any

import results_file

TARGETS = {
    'tflite_share_of_matmul': ('least', 0.5),
    'jax_ratio_to_tflite': ('most', 1.1),
    'decode_share_of_network': ('most', 0.05),
}
"""At 224 px on one thread, for the paper's network in float32."""

QUIET = 0.95
"""Share of a core that a single thread has on a machine that does nothing else."""

_HEAD = (
    'network | load s | first call ms | p50 ms | p90 | p95 | p99 | images/s | without decoding, '
    'p50 ms | decoding | ratio to LiteRT f32 | share of matmul | peak MB | file MB | MMAC'
)


def targets(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each target with what was measured and whether it was met; empty if it was not measured."""
    for group in results['groups']:
        if (group['size'], group['threads'], group['batch'], group['device']) == (224, 1, 1, 'cpu'):
            break
    else:
        return {}
    own = {row['name']: row for row in group['rows'] if row['own']}
    measured: dict[str, float] = {}
    if 'tflite' in own and 'network' in own['tflite']:
        measured['tflite_share_of_matmul'] = own['tflite']['network']['share_of_matmul']
        measured['decode_share_of_network'] = own['tflite']['decode']['share_of_network']
        if 'jax' in own:
            measured['jax_ratio_to_tflite'] = own['jax']['network']['ratio_to_tflite']
    found = {}
    for name, value in measured.items():
        side, bound = TARGETS[name]
        met = value >= bound if side == 'least' else value <= bound
        found[name] = {'measured': value, f'at_{side}': bound, 'met': met}
    return found


def markdown(results: dict[str, Any]) -> str:
    """All groups as tables, and the targets."""
    lines = [f'Weights: {results["weights"]}.', '']
    for group in results['groups']:
        lines += [
            f'### {heading(group)}',
            '',
            f'A large float32 matrix product in the same rounds: {group["matmul_gflops"]:.0f} '
            f'GFLOP/s ({group["matmul_lowest"]:.0f} .. {group["matmul_highest"]:.0f}).',
            '',
            *_busy(group),
            results_file.table(_HEAD, map(_cells, group['rows'])),
            '',
        ]
    if results.get('phone'):
        lines += [phone_table(results['phone']), '']
    for name, row in results.get('targets', {}).items():
        bound = f'at least {row["at_least"]}' if 'at_least' in row else f'at most {row["at_most"]}'
        verdict = 'met' if row['met'] else 'NOT met'
        lines.append(f'Target {name}, {bound}: {row["measured"]:.3f}, {verdict}.')
    lines += [f'Not measured: {reason}' for reason in results.get('skipped', ())]
    return '\n'.join(lines).strip() + '\n'


def _busy(group: dict[str, Any]) -> list[str]:
    """A warning where one thread did not have a core for itself."""
    least = min(row['cores_used'] for row in group['rows'])
    if group['threads'] > 1 or group['device'] == 'gpu' or least >= QUIET:
        return []
    return [
        f'The machine was busy: one thread had {100 * least:.0f}% of a core at times. Trust ratios '
        'rather than milliseconds.',
        '',
    ]


def heading(group: dict[str, Any]) -> str:
    """What the rows of a group have in common."""
    size = f'{group["size"]} px' if group['size'] else 'any size'
    threads = f'{group["threads"]} thread' + ('s' if group['threads'] > 1 else '')
    batch = '' if group['batch'] == 1 else f', batch {group["batch"]}'
    where = ', GPU' if group['device'] == 'gpu' else ''
    return f'{size}, {threads}{batch}{where}'


def _cells(row: dict[str, Any]) -> list[str]:
    decode, network = row.get('decode'), row.get('network')
    return [
        row['name'],
        f'{row["import_s"] + row["load_s"]:.2f}',
        f'{row["first_call_ms"]:.1f}',
        *(milliseconds(row[f'p{p}_ms']) for p in (50, 90, 95, 99)),
        f'{row["frames_per_s"]:.1f}',
        milliseconds(network['p50_ms']) if network else '',
        _decoding(decode) if decode else '',
        f'{row["ratio_to_tflite"]:.2f}' if 'ratio_to_tflite' in row else '',
        f'{100 * row["share_of_matmul"]:.0f}%' if 'share_of_matmul' in row else '',
        f'{row["peak_memory_mb"]:.0f}',
        f'{row["bytes"] / 1e6:.1f}',
        f'{row["macs"] / 1e6:,.0f}' if row['macs'] else '',
    ]


def _decoding(decode: dict[str, Any]) -> str:
    """Its share, and how far rounds differ: half of the range of the middle four fifths."""
    half = 50 * (decode['share_p90'] - decode['share_p10'])
    return f'{100 * decode["share_of_network"]:+.1f}% (±{half:.0f})'


def milliseconds(value: float) -> str:
    """With as many digits as mean something."""
    return f'{value:.2f}' if value < 10 else f'{value:.1f}'


def phone_table(phone: dict[str, Any]) -> str:
    """What ran on a phone, in Markdown."""
    device = phone['device']
    lines = [
        f'### {device["manufacturer"]} {device["model"]}, Android {device["android"]}',
        '',
        f'Governor {", ".join(device["governors"]) or "not to be read"}; battery '
        f'{_degrees(phone["temperature_before"])} before, {_degrees(phone["temperature_after"])} '
        'after.',
        '',
    ]
    rows = []
    for row in phone['rows']:
        values = [
            f'{row[name]:.1f}' if row.get(name) is not None else ''
            for name in ('load_ms', 'first_call_ms', 'mean_ms', 'p50_ms', 'p95_ms', 'memory_mb')
        ]
        rows.append([row['name'], row['on'], *values, row.get('error') or row['ran']])
    head = 'network | on | load ms | first call ms | mean ms | p50 | p95 | peak MB | ran'
    return '\n'.join([*lines, results_file.table(head, rows)])


def _degrees(value: float | None) -> str:
    return 'not to be read' if value is None else f'{value:.1f} degrees Celsius'


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the median call of every row, a whisker to the 95th percentile, a panel for each group.

    Args:
        results: of a run.
        path: receives the picture, of the format that its ending names.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = results['groups']
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    tallest = max(len(group['rows']) for group in groups)
    # The same results make the same file.
    with matplotlib.rc_context({'svg.hashsalt': 'latency'}):
        figure = Figure(figsize=(6.4 * columns, lines * (1.1 + 0.32 * tallest)))
        FigureCanvasAgg(figure)
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(groups) :]:
            axis.set_visible(False)
        for axis, group in zip(axes, groups, strict=False):
            rows = sorted(group['rows'], key=lambda row: -row['p50_ms'])
            for place, row in enumerate(rows):
                colour = '#3b6fb6' if row['own'] else '#a0a0a0'
                axis.barh(place, row['p50_ms'], color=colour, height=0.7)
                axis.plot([row['p50_ms'], row['p95_ms']], [place, place], color='black', lw=1)
                axis.annotate(
                    milliseconds(row['p50_ms']),
                    (row['p95_ms'], place),
                    xytext=(4, 0),
                    textcoords='offset points',
                    va='center',
                    fontsize=8,
                )
            axis.set_yticks(range(len(rows)), [row['name'] for row in rows], fontsize=8)
            axis.set_xlabel('ms, median; line to the 95th percentile')
            axis.set_title(heading(group), fontsize=10)
            axis.margins(x=0.15)
            axis.spines[['top', 'right']].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, metadata={'Date': None} if path.suffix == '.svg' else None)
