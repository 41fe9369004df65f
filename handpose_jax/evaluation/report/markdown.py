"""report.md: the report's tables, to paste into other documents."""

import re

from handpose_jax.evaluation.report import tables
from handpose_jax.evaluation.report.tables import Content, Table
from handpose_jax.process import outputs


def render(content: Content) -> str:
    """The report without its pictures."""
    runs = content.runs
    parts = [
        outputs.MARKDOWN_MARK,
        '# Evaluation of hand keypoints: ' + ', '.join(_text(run.name) for run in runs),
        'Made by ' + _code(content.command),
        '## Results',
        _table(tables.results(content)),
        _text(tables.how_sure(runs)),
        '\n'.join(f'- {_text(run.name)}: {_code(run.command)}' for run in runs),
    ]
    for found in content.comparisons:
        parts.append(f'## {_text(found.other.name)} against {_text(found.first.name)}')
        if found.refused:
            parts.append(f'Not compared: {_text(found.refused)}.')
        else:
            parts += [_table(tables.differences(found)), f'On the same hands; {found.first.basis}.']
    parts += ['## Table 1 of the paper', _table(tables.paper(runs))]
    parts += [_text(note) for note in tables.paper_note(runs)]
    for run in runs:
        parts.append(f'## {_text(run.name)}: keypoints in view and hidden')
        if tables.knows_hidden(run):
            parts += [_table(tables.occlusion(run)), f'EPE in px of the 224 crop; {run.basis}.']
        else:
            parts.append('The data tells of no hidden keypoints.')
    for run, gallery in zip(runs, content.galleries, strict=True):
        parts.append(f'## {_text(run.name)}: worst cases')
        rows = [
            [case.image_id, f'{case.error:.1f}', ', '.join(case.reasons)] for case in gallery.cases
        ]
        parts.append(_table(Table(['image', 'EPE mean, px of the 224 crop', 'reasons'], rows)))
        parts.append(f'Of {run.basis}.')
        if gallery.no_pictures:
            parts.append(f'Whether a hand is truncated is not known: {_text(gallery.no_pictures)}')
    return '\n\n'.join(parts) + '\n'


def _table(content: Table) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    header, *body = ([_text(cell) for cell in row] for row in (content.header, *content.rows))
    rule = ['---', *['---:'] * (len(header) - 1)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (header, rule, *body))


def _text(value: str) -> str:
    """Plain text that Markdown shows as it is, in one line."""
    flat = ' '.join(value.split())
    escaped = re.sub(r'([\\`*_\[\]|~#])', r'\\\1', flat)
    return escaped.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')


def _code(value: str) -> str:
    """One line of code."""
    flat = ' '.join(value.split())
    fence = '`' * (max((len(run) for run in re.findall('`+', flat)), default=0) + 1)
    return f'{fence}{flat}{fence}' if len(fence) == 1 else f'{fence} {flat} {fence}'
