"""The building blocks of report.html; all take plain text and escape it."""

import base64
import html
from collections.abc import Sequence

from handpose_jax.evaluation.report.tables import Table


def text(value: str) -> str:
    """Plain text, safe between tags and within quotes."""
    return html.escape(value, quote=True)


def notice(sentence: str) -> str:
    """A paragraph that must not be overlooked."""
    return f'<p class="notice">{text(sentence)}</p>'


def table(content: Table) -> str:
    """A table that scrolls by itself where the screen is too narrow."""
    header = ''.join(f'<th scope="col">{text(cell)}</th>' for cell in content.header)
    rows = ''.join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + ''.join(f'<td>{_cell(cell)}</td>' for cell in row[1:])
        + '</tr>'
        for row in content.rows
    )
    return (
        '<div class="wide" tabindex="0"><table>'
        f'<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(words: str) -> str:
    value, bracket, limits = words.partition(' (')
    if not (bracket and limits.endswith(')')):
        return text(words)
    return f'{text(value)} <span class="range">({text(limits)}</span>'


def figure(svg: str, caption: str) -> str:
    """A picture inside the page; its caption is its text for those who do not see it, too."""
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img alt="{text(caption)}" src="data:image/svg+xml;base64,{data}">'
        f'<figcaption>{text(caption)}</figcaption></figure>'
    )


def grid(figures: Sequence[str]) -> str:
    """Pictures beside one another, as many as fit."""
    return f'<div class="figures">{"".join(figures)}</div>'


def code(command: str) -> str:
    """A command on a line of its own."""
    return f'<code class="command">{text(command)}</code>'


def quiet(sentence: str) -> str:
    """A small paragraph."""
    return f'<p class="quiet">{text(sentence)}</p>'
