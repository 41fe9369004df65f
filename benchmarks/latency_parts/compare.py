"""Whether networks have become slower since an earlier run of benchmarks/latency.py."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import results_file

SMALLEST = 0.02
"""Least change that counts, however quiet both runs were."""

KEY = ('name', 'backend', 'size', 'threads', 'batch', 'device')


def rows_of(results: dict[str, Any]) -> dict[tuple, dict[str, Any]]:
    """Every measured row by what identifies it; with its group's rounds of the matrix product."""
    found = {}
    for group in results.get('groups', ()):
        shared = {name: group[name] for name in ('threads', 'device', 'round_gflops')}
        for row in group['rows']:
            whole = {**row, **shared}
            found[tuple(whole[name] for name in KEY)] = whole
    return found


def spread(values: Sequence[float]) -> float:
    """Half the distance from the tenth to the ninetieth percentile, as a share of the median."""
    low, middle, high = np.percentile(values, (10, 50, 90))
    return float((high - low) / (2 * middle))


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Compares what both runs measured.

    The rule: the medians of the rounds are looked at twice, as milliseconds, and as "cost", the
    milliseconds times the GFLOP/s of the large matrix product in the same round, in which the
    machine's speed of that moment cancels out. The noise of either is the spread of its rounds
    (half the distance from the 10th to the 90th percentile), added up over the two runs, and 2%
    at least. A network has become slower if the median of its rounds has grown by more than the
    noise in both: in milliseconds alone it may be the machine, in cost alone the matrix product.

    Args:
        old: results of an earlier run.
        new: results of this run.

    Returns:
        For each row of both runs: its name, 'time_ratio', 'cost_ratio' (new to old), the noise of
        each, and 'slower'.

    Raises:
        ValueError: if the runs were on different processors, or have nothing in common.
    """
    before, after = rows_of(old), rows_of(new)
    for name in ('processor', 'cores'):
        machines = [results.get('machine', {}).get(name) for results in (old, new)]
        if machines[0] != machines[1]:
            raise ValueError(
                f'--compare: the earlier run had the {name} {machines[0]!r}, this one has '
                f'{machines[1]!r}; measure both on one machine'
            )
    common = [key for key in after if key in before]
    if not common:
        raise ValueError('--compare: nothing in the earlier run that was measured in this one too')
    found = []
    for key in common:
        first, second = before[key], after[key]
        row: dict[str, Any] = dict(zip(KEY, key, strict=True))
        slower = []
        for name, values_of in (('time', _times), ('cost', _costs)):
            values = [values_of(row) for row in (first, second)]
            ratio = statistics.median(values[1]) / statistics.median(values[0])
            noise = max(SMALLEST, sum(spread(rounds) for rounds in values))
            row |= {f'{name}_ratio': round(ratio, 3), f'{name}_noise': round(noise, 3)}
            slower.append(ratio > 1 + noise)
        found.append({**row, 'slower': all(slower)})
    return found


def _times(row: dict[str, Any]) -> list[float]:
    return row['round_ms']


def _costs(row: dict[str, Any]) -> list[float]:
    return [ms * rate for ms, rate in zip(row['round_ms'], row['round_gflops'], strict=True)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison in Markdown."""
    made = []
    for row in rows:
        cells = [
            f'{row[f"{name}_ratio"]:.2f} (noise {100 * row[f"{name}_noise"]:.0f}%)'
            for name in ('time', 'cost')
        ]
        verdict = 'SLOWER' if row['slower'] else 'within the noise or faster'
        what = [str(row[name]) for name in ('name', 'size', 'threads', 'batch')]
        made.append([*what, *cells, verdict])
    head = 'network | size | threads | batch | time, new / old | against the matrix product | '
    return results_file.table(head, made)
