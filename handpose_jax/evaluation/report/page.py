"""report.html: one page that needs nothing but itself, on a screen, a phone or paper."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

import handpose_jax
from handpose_jax import hand
from handpose_jax.evaluation import calibration
from handpose_jax.evaluation.protocols import CONFIDENCE, Protocol
from handpose_jax.evaluation.report import bootstrap, gallery, plots, tables
from handpose_jax.evaluation.report.runs import Run
from handpose_jax.evaluation.report.style import STYLE
from handpose_jax.evaluation.report.tables import Content
from handpose_jax.process import outputs

# Whatever a file name manages to smuggle in, the browser runs no script and loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

JOINT_TYPES = {
    'wrist': (hand.WRIST,),
    'base (MCP; thumb CMC)': tuple(indices[0] for indices in hand.FINGERS.values()),
    'middle (PIP; thumb MCP)': tuple(indices[1] for indices in hand.FINGERS.values()),
    'end (DIP; thumb IP)': tuple(indices[2] for indices in hand.FINGERS.values()),
    'tip': hand.FINGERTIPS,
}
"""Keypoints by how far they are from the wrist."""


def render(content: Content) -> str:
    """The whole page."""
    title = 'Evaluation of hand keypoints: ' + ', '.join(run.name for run in content.runs)
    sections: dict[str, tuple[str, Callable[[Content], str]]] = {
        'results': ('Results', _results),
        'comparison': ('Comparison', _comparison),
        'pck': ('PCK', _pck),
        'keypoints': ('Keypoints', _keypoints),
        'confidence': ('Confidence', _confidence),
        'occlusion': ('Occlusion', _occlusion),
        'worst': ('Worst cases', _worst),
        'paper': ('Table 1 of the paper', _paper),
        'protocols': ('Protocols', _protocols),
    }
    if len(content.runs) == 1:
        del sections['comparison']
    links = ''.join(f'<a href="#{name}">{label}</a>' for name, (label, _) in sections.items())
    body = ''.join(
        f'<section id="{name}"><h2>{label}</h2>{make(content)}</section>'
        for name, (label, make) in sections.items()
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{outputs.HTML_MARK}'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head><body>'
        f'<header><h1>{escape(title)}</h1>'
        f'<p class="quiet">handpose_jax {handpose_jax.__version__}; made by</p>'
        f'{_code(content.command)}<nav>{links}</nav></header>'
        f'<main>{body}</main></body></html>\n'
    )


def _results(content: Content) -> str:
    commands = ''.join(f'<li>{escape(run.name)}: {_code(run.command)}</li>' for run in content.runs)
    notes = [_notice(f'{run.name}: {note}.') for run in content.runs for note in run.notes]
    return (
        _table(tables.results(content))
        + ''.join(notes)
        + _quiet(tables.how_sure(content.runs))
        + f'<p>The command that makes the numbers of a run:</p><ul class="plain">{commands}</ul>'
    )


def _comparison(content: Content) -> str:
    parts = []
    for found in content.comparisons:
        parts.append(f'<h3>{escape(found.other.name)} against {escape(found.first.name)}</h3>')
        if found.refused:
            parts.append(_notice(f'Not compared: {found.refused}.'))
            continue
        parts.append(_table(tables.differences(found)))
        parts.append(
            _quiet(
                f'{found.other.name} minus {found.first.name}, on the same hands '
                f'({found.first.basis}). Both are drawn together, so what makes a hand hard for '
                f'both cancels. "better" where the {bootstrap.LEVEL:.0%} interval does not hold 0; '
                'each row is a test of its own, and one in twenty would say so by chance.'
            )
        )
    return ''.join(parts)


def _pck(content: Content) -> str:
    together = []
    for name in {run.protocol.name: None for run in content.runs}:
        runs = [run for run in content.runs if run.protocol.name == name]
        curves = [_curve(run.name, run.summary) for run in runs]
        areas = _areas({run.name: run.summary for run in runs})
        hands = ' and '.join(sorted({f'{run.summary["hands"]:,}' for run in runs}))
        svg = plots.pck(curves, x_label=_x_label(runs[0]), title='All keypoints')
        caption = f'All keypoints, AUC: {areas} (protocol {name}, {hands} hands)'
        together.append(_figure(svg, caption))
    fingers = [_group_figure(run, 'Fingers', hand.FINGERS) for run in content.runs]
    types = [_group_figure(run, 'Joint types', JOINT_TYPES) for run in content.runs]
    return (
        '<p>The share of keypoints whose error is at most the value below the curve. Higher is '
        'better; the area under the curve, divided by its width, is the AUC.</p>'
        + _grids(together, fingers, types)
    )


def _group_figure(run: Run, label: str, groups: Mapping[str, Sequence[int]]) -> str:
    summaries = {
        name: run.summary_of(run.valid & np.isin(np.arange(hand.NUM_KEYPOINTS), indices))
        for name, indices in groups.items()
    }
    curves = [_curve(name, summary) for name, summary in summaries.items()]
    svg = plots.pck(curves, x_label=_x_label(run), title=f'{label}: {run.name}')
    return _figure(svg, f'{run.name}, AUC: {_areas(summaries)} ({run.basis})')


def _areas(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    return ', '.join(
        f'{name} {tables.number("auc", one["auc"])}' for name, one in summaries.items()
    )


def _keypoints(content: Content) -> str:
    errors = [
        {name: row['epe_mean_224'] for name, row in run.summary['per_keypoint'].items()}
        for run in content.runs
    ]
    largest = max(
        (value for values in errors for value in values.values() if value is not None), default=1.0
    )
    figures = []
    for run, values in zip(content.runs, errors, strict=True):
        known = {name: value for name, value in values.items() if value is not None}
        svg = plots.drawn_hand(values, largest=largest, title=f'Mean EPE: {run.name}')
        caption = f'{run.name}: nothing was counted'
        if known:
            best, worst = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            caption = (
                f'{run.name}: from {known[best]:.1f} ({best}) to {known[worst]:.1f} px ({worst}); '
                f'{run.basis}'
            )
        figures.append(_figure(svg, caption))
    return (
        '<p>Mean error in pixels of the 224 crop, on a drawn hand; darker is worse, on one scale '
        f'for all runs.</p>{_grids(figures)}'
        '<details><summary>Every keypoint in numbers</summary>'
        f'{_table(tables.per_keypoint(content.runs))}</details>'
    )


def _confidence(content: Content) -> str:
    diagrams, errors, gaps = [], [], []
    # One scale for all runs; the rare largest errors may leave it.
    counted = [run.errors.error_crop[run.valid] for run in content.runs]
    largest = max((float(np.quantile(part, 0.9)) for part in counted if len(part)), default=1.0)
    limit = f'{calibration.CORRECT_WITHIN:g} of the tight box around the hand'
    for run in content.runs:
        size = run.errors.size_of('keypoint_box')
        known = np.isfinite(run.errors.confidence) & ~np.isnan(size)[:, None]
        chosen = run.valid & known
        confidence, error = run.errors.confidence[chosen], run.errors.error_crop[chosen]
        relative = run.errors.error_image / np.where(np.isnan(size), 1.0, size)[:, None]
        right = relative[chosen] <= calibration.CORRECT_WITHIN
        svg = plots.reliability(
            plots.reliability_of(confidence, right),
            within=f'share within {calibration.CORRECT_WITHIN:g} box',
            title=f'Reliability: {run.name}',
        )
        caption = (
            f'{run.name}: how often a keypoint of some confidence is within {limit} '
            f'({run.basis}, {chosen.sum():,} keypoints)'
        )
        diagrams.append(_figure(svg, caption))
        svg = plots.error_against_confidence(
            confidence, error, largest=largest, title=f'Error: {run.name}'
        )
        caption = f'{run.name}: a tenth of the keypoints at each dot ({run.basis})'
        errors.append(_figure(svg, caption))
        if chosen.any():
            gap = calibration.expected_calibration_error(confidence, right)
            gaps.append(f'{run.name} {gap:.3f}')
    return (
        '<p>On the dashed line a confidence would be the probability of being right. Here it is '
        "the heatmap's peak as the network gives it, which need not be a probability; what "
        'matters is that the curve rises. Expected calibration error: '
        f'{escape(", ".join(gaps))}.</p>'
        + ''.join(map(_quiet, _calibrated(content.runs)))
        + _grids(diagrams, errors)
    )


def _calibrated(runs: Sequence[Run]) -> list[str]:
    sentences = []
    command = 'handpose calibrate --workdir W'
    without = []
    for run in runs:
        if run.calibration is None:
            without.append(run.name)
        elif run.calibration.step != run.step:
            sentences.append(
                f'{run.name}: the calibration is of step {run.calibration.step}, the evaluation of '
                f'step {run.step}; {command} makes it anew.'
            )
        else:
            held_out = run.calibration.report['held_out']
            sentences.append(
                f'{run.name}, calibrated: expected calibration error '
                f'{held_out["before"]["ece"]:.3f} before, {held_out["after"]["ece"]:.3f} after, on '
                f'{held_out["hands"]:,} of the hands, on which it was not fitted '
                f'(protocol {run.protocol.name}; {command}).'
            )
    if without:
        sentences.append(f'Not calibrated: {", ".join(without)}; {command} does it.')
    return sentences


def _occlusion(content: Content) -> str:
    parts = []
    silent = [run for run in content.runs if not tables.knows_hidden(run)]
    if silent:
        listed = ', '.join(f'{run.name} ({run.evaluated_on})' for run in silent)
        reason = 'The data tells of no hidden keypoints, so there is nothing to say'
        parts.append(_notice(f'{reason}: {listed}.'))
    for run in (run for run in content.runs if run not in silent):
        curves = [_curve(name, part) for name, part in tables.occlusion_summaries(run).items()]
        svg = plots.pck(curves, x_label=_x_label(run), title=f'In view and hidden: {run.name}')
        left_out = (
            '' if run.protocol.hidden else ' This protocol leaves hidden keypoints out elsewhere.'
        )
        parts.append(
            f'<h3>{escape(run.name)}</h3><div class="beside">'
            + _figure(svg, f'PCK of keypoints in view and hidden ({run.basis})')
            + f'<div>{_table(tables.occlusion(run))}'
            + _quiet(
                f'EPE in px of the 224 crop; {run.basis}. Hidden: annotated, but behind something '
                f'else or the hand itself, as far as the data tells.{left_out}'
            )
            + '</div></div>'
        )
    return ''.join(parts)


def _worst(content: Content) -> str:
    meanings = '; '.join(f'<b>{name}</b>: {rule}' for name, rule in gallery.MEANINGS.items())
    parts = [
        '<p>The hands with the largest mean error. Prediction in colours (hollow where the '
        'confidence is below 0.1), annotation in white. Reasons, which are hints and no proof: '
        f'{meanings}; else <b>{gallery.NONE}</b>. The pictures come from the data: whoever passes '
        'this page on passes them on.</p>'
    ]
    for run, found in zip(content.runs, content.galleries, strict=True):
        parts.append(f'<h3>{escape(run.name)}</h3>')
        if found.no_pictures:
            reason = 'Without the photograph nobody can tell whether a hand is truncated.'
            parts.append(_notice(f'No pictures: {found.no_pictures}. {reason}'))
        listed = ', '.join(
            f'{reason} {sum(reason in case.reasons for case in found.cases)} '
            f'({share:.0%} of all hands)'
            for reason, share in found.among_all.items()
        )
        worst = f'{len(found.cases)} worst of {run.summary["hands"]:,} hands ({run.basis})'
        parts.append(_quiet(f'The {worst}: {listed}.'))
        cards = ''.join(_card(rank, case) for rank, case in enumerate(found.cases, 1))
        parts.append(f'<div class="cards">{cards}</div>')
    return ''.join(parts)


def _card(rank: int, case: gallery.Case) -> str:
    picture = '<div class="absent">no photograph</div>'
    if case.jpeg is not None:
        alt = f'Worst case {rank}, {case.image_id}: prediction and annotation'
        picture = _image('jpeg', case.jpeg, alt)
    error = f'{case.error:.1f} px' if np.isfinite(case.error) else 'not finite'
    facts = [f'confidence {case.confidence:.2f}']
    if case.hidden:
        facts.append(f'{case.hidden} of {case.annotated} hidden')
    if case.beyond:
        facts.append(f'{case.beyond} predicted beyond this picture')
    tags = ''.join(
        f'<span class="tag{" none" if reason == gallery.NONE else ""}">{escape(reason)}</span>'
        for reason in case.reasons
    )
    return (
        f'<figure class="card">{picture}<figcaption><b>{rank}. {error}</b> {tags}'
        f'<span class="id">{escape(case.image_id)}</span>'
        f'<span class="quiet">{escape(", ".join(facts))}</span></figcaption></figure>'
    )


def _paper(content: Content) -> str:
    notes = ''.join(f'<p>{escape(note)}</p>' for note in tables.paper_note(content.runs))
    return _table(tables.paper(content.runs)) + notes


def _protocols(content: Content) -> str:
    used = {run.protocol.name: run.protocol for run in content.runs}
    return ''.join(_protocol(protocol) for protocol in used.values()) + (
        '<dl><dt>EPE</dt><dd>End-point error: distance of predicted from annotated keypoint.</dd>'
        '<dt>224 crop</dt><dd>The square that the network sees, resized to 224 px whatever the '
        "network's input.</dd>"
        '<dt>AUC</dt><dd>Area under the PCK curve, divided by its width.</dd></dl>'
    )


def _protocol(protocol: Protocol) -> str:
    facts = ''.join(f'<li>{fact.confidence}: {escape(fact.text)}</li>' for fact in protocol.facts)
    theirs = _table(tables.published(protocol)) if protocol.published else ''
    marks = [_quiet(f'{mark}: {what}.') for mark, what in CONFIDENCE.items()]
    return (
        f'<h3>{escape(protocol.name)}</h3><p>{escape(protocol.description)} '
        f'PCK@0.2 is relative to the {_words(protocol.relative_to)}; '
        f'{len(protocol.keypoints)} keypoints count. Source: {escape(protocol.source)}.</p>'
        f'<details><summary>What is known of it, and numbers of others</summary><ul>{facts}</ul>'
        f'{"".join(marks)}{theirs}</details>'
    )


def _curve(name: str, summary: Mapping[str, Any]) -> plots.Curve:
    return plots.Curve(name, summary['pck']['thresholds'], summary['pck']['values'])


def _words(name: str) -> str:
    return name.replace('_', ' ')


def _x_label(run: Run) -> str:
    if run.protocol.normaliser == 'pixel':
        return f'error, px of the photograph (protocol {run.protocol.name})'
    return f'error / {_words(run.protocol.normaliser)} (protocol {run.protocol.name})'


# The building blocks take plain text and escape it.


def _notice(sentence: str) -> str:
    """A paragraph that must not be overlooked."""
    return f'<p class="notice">{escape(sentence)}</p>'


def _table(content: tables.Table) -> str:
    """A table that scrolls by itself where the screen is too narrow."""
    header = ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in content.header)
    rows = ''.join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
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
        return escape(words)
    return f'{escape(value)} <span class="range">({escape(limits)}</span>'


def _figure(svg: str, caption: str) -> str:
    """A picture inside the page; its caption is its text for those who do not see it, too."""
    image = _image('svg+xml', svg.encode(), caption)
    return f'<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>'


def _image(kind: str, data: bytes, alt: str) -> str:
    code = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{code}">'


def _grids(*kinds: Sequence[str]) -> str:
    """Pictures beside one another; of several runs, each kind of picture in rows of its own."""
    rows = kinds if len(kinds[-1]) > 1 else [[figure for kind in kinds for figure in kind]]
    return ''.join(f'<div class="figures">{"".join(row)}</div>' for row in rows)


def _code(command: str) -> str:
    """A command on a line of its own."""
    return f'<code class="command">{escape(command)}</code>'


def _quiet(sentence: str) -> str:
    """A small paragraph."""
    return f'<p class="quiet">{escape(sentence)}</p>'
