"""Evaluations as one page: handpose report W1 W2 ... --out DIR.

    runs        what the workdirs hold
    bootstrap   how far a metric may be off: hands drawn again and again
    comparison  the difference between two runs, if they saw the same hands
    gallery     the worst cases, and what may be the matter with them
    plots       curves, the drawn hand, reliability
    tables      the numbers, for the page and for Markdown alike; the paper's table 1
    page        report.html; style says how it looks
    markdown    report.md

This file: write_report, which puts them together.
"""

import os
from collections.abc import Sequence
from typing import Any

from handpose_jax.evaluation.report import comparison, gallery, markdown, page, runs, tables
from handpose_jax.process import outputs, storage

FOLDER = 'report'
"""In the workdir, of the report that an evaluation writes."""

HTML_FILE = 'report.html'
MARKDOWN_FILE = 'report.md'

WORST = 12


def write_report(
    workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, worst: int = WORST
) -> Any:
    """Writes report.html, which needs nothing but itself, and report.md, its tables.

    Args:
        workdirs: of evaluated runs; the others are compared with the first.
        out: folder that receives the files, of this machine or a bucket; made if absent.
        worst: how many of the worst cases of each run to show.

    Returns:
        The path of report.html: pathlib.Path, or epath.Path in a bucket.

    Raises:
        ValueError: for a workdir that was not evaluated or is given twice, a folder that cannot be
            written, or one that holds other files of these names.
    """
    if worst < 0:
        raise ValueError(f'worst: expected a number of cases, 0 or more, got {worst}')
    loaded = runs.read_runs(workdirs)
    content = tables.Content(
        command=runs.report_command(loaded, os.fspath(out)),
        runs=loaded,
        intervals=[comparison.intervals(run) for run in loaded],
        comparisons=[comparison.compare(loaded[0], run) for run in loaded[1:]],
        galleries=[gallery.worst_cases(run, worst) for run in loaded],
    )
    folder = storage.folder(out)
    try:
        for name in (MARKDOWN_FILE, HTML_FILE):
            outputs.check(folder / name)
        outputs.write(folder / MARKDOWN_FILE, markdown.render(content).encode())
        outputs.write(folder / HTML_FILE, page.render(content).encode())
    except OSError as error:
        raise ValueError(
            f'--out {out}: cannot write the report ({error.strerror}); '
            'give a folder that can be written'
        ) from error
    return folder / HTML_FILE
