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
        '# Evaluation of hand keypoints: ' + ', '.join(text(run.name) for run in runs),
        'Made by ' + code(content.command),
        '## Results',
        table(tables.results(content)),
        text(tables.how_sure(runs)),
        '\n'.join(f'- {text(run.name)}: {code(run.command)}' for run in runs),
    ]
    for found in content.comparisons:
        parts.append(f'## {text(found.other.name)} against {text(found.first.name)}')
        if found.refused:
            parts.append(f'Not compared: {text(found.refused)}.')
        else:
            parts += [table(tables.differences(found)), f'On the same hands; {found.first.basis}.']
    parts += ['## Table 1 of the paper', table(tables.paper(runs))]
    parts += [text(note) for note in tables.paper_note(runs)]
    for run in runs:
        parts.append(f'## {text(run.name)}: keypoints in view and hidden')
        if tables.knows_hidden(run):
            parts += [table(tables.occlusion(run)), f'EPE in px of the 224 crop; {run.basis}.']
        else:
            parts.append('The data tells of no hidden keypoints.')
    for run, gallery in zip(runs, content.galleries, strict=True):
        parts.append(f'## {text(run.name)}: worst cases')
        rows = [
            [case.image_id, f'{case.error:.1f}', ', '.join(case.reasons)] for case in gallery.cases
        ]
        parts.append(table(Table(['image', 'EPE mean, px of the 224 crop', 'reasons'], rows)))
        parts.append(f'Of {run.basis}.')
        if gallery.no_pictures:
            parts.append(f'Whether a hand is truncated is not known: {text(gallery.no_pictures)}')
    return '\n\n'.join(parts) + '\n'


def table(content: Table) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    lines = [content.header, ['---', *['---:'] * (len(content.header) - 1)]]
    body = [[text(cell) for cell in row] for row in content.rows]
    header = [text(cell) for cell in lines[0]]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (header, lines[1], *body))


def text(value: str) -> str:
    """Plain text that Markdown shows as it is, in one line."""
    flat = ' '.join(value.split())
    escaped = re.sub(r'([\\`*_\[\]|~#])', r'\\\1', flat)
    return escaped.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')


def code(value: str) -> str:
    """One line of code."""
    flat = ' '.join(value.split())
    fence = '`' * (max((len(run) for run in re.findall('`+', flat)), default=0) + 1)
    return f'{fence}{flat}{fence}' if len(fence) == 1 else f'{fence} {flat} {fence}'
