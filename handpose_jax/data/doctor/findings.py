"""What the doctor reports: findings, as text and as JSON."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from handpose_jax import hand
from handpose_jax.data.doctor.survey import Survey

SEVERITIES = ('error', 'warning', 'note')

FEW = 20
"""With fewer records nothing is said about a whole split."""


class Finding(NamedTuple):
    """One thing that looks wrong, or is worth knowing.

    Attributes:
        check: its name, see docs/data_doctor.md.
        severity: 'error' (wrong), 'warning' (looks wrong) or 'note' (good to know).
        split: where it was found.
        record: the record's name; '' for what concerns the whole split.
        expected: what would be right.
        seen: what is there.
        score: how bad, comparable within the check; the worst come first.
    """

    check: str
    severity: str
    split: str
    record: str
    expected: str
    seen: str
    score: float = 0.0


def split_rows(records: Survey) -> Iterator[tuple[str, Int[np.ndarray, '_']]]:
    """Each split and the numbers of its records."""
    names = np.array(records.split)
    for split in dict.fromkeys(records.split):
        yield split, np.flatnonzero(names == split)


def of_record(
    records: Survey,
    row: int,
    check: str,
    severity: str,
    expected: str,
    seen: str,
    score: float = 0.0,
) -> Finding:
    """A finding about one record, by its number."""
    return Finding(
        check, severity, records.split[row], records.name[row], expected, seen, float(score)
    )


def name_keypoints(keypoints: np.ndarray) -> str:
    """Names of keypoints, given as numbers or as 21 booleans."""
    numbers = np.flatnonzero(keypoints) if keypoints.dtype == bool else keypoints
    names = [hand.KEYPOINT_NAMES[k] for k in numbers.tolist()]
    if len(names) == hand.NUM_KEYPOINTS:
        return 'all keypoints'
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def to_json(findings: Sequence[Finding], records: Mapping[str, int]) -> dict[str, Any]:
    """All findings by check, worst first, with counts."""
    return {
        'records': dict(records),
        'checks': {
            check: {
                'severity': found[0].severity,
                'count': len(found),
                'findings': [
                    {key: value for key, value in one._asdict().items() if key != 'check'}
                    for one in found
                ],
            }
            for check, found in by_check(findings).items()
        },
    }


def to_text(findings: Sequence[Finding], records: Mapping[str, int], *, shown: int = 10) -> str:
    """A report to read: by check, the worst first, at most `shown` of each."""
    listed = ', '.join(f'{count:,} in {split}' for split, count in records.items())
    counts = Counter(finding.severity for finding in findings)
    total = ', '.join(_plural(counts[s], s) for s in SEVERITIES if counts[s]) or 'nothing to report'
    lines = [f'Records: {listed}. Found: {total}.']
    for check, found in by_check(findings).items():
        lines.append(f'\n{found[0].severity.upper()} {check}: {len(found):,}')
        for one in found[:shown]:
            where = f'{one.split} {one.record}'.strip()
            expected = f' (expected: {one.expected})' if one.expected else ''
            lines.append(f'  {where}: {one.seen}{expected}')
        if len(found) > shown:
            lines.append(f'  ... and {len(found) - shown:,} more')
    return '\n'.join(lines)


def by_check(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings of each check, worst first; the checks with the worst findings first."""
    groups: dict[str, list[Finding]] = {}
    for one in sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.check, -f.score)):
        groups.setdefault(one.check, []).append(one)
    return groups


def _plural(count: int, word: str) -> str:
    return f'{count:,} {word}' + ('' if count == 1 else 's')
