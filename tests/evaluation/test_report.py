"""The report: intervals that cover, pairs that fit, numbers of metrics, a page that holds."""

import base64
import dataclasses
import html
import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from handpose_jax import geometry, hand
from handpose_jax.data import sources
from handpose_jax.evaluation import calibration, metrics, protocols
from handpose_jax.evaluation.metrics import EvaluationRecord, KeypointErrors
from handpose_jax.evaluation.report import (
    bootstrap,
    comparison,
    gallery,
    plots,
    runs,
    tables,
    write_report,
)
from handpose_jax.evaluation.report.__main__ import main
from handpose_jax.process import outputs

HANDS = 30
HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x>|`$\\frac_*[a](b)'


SKETCHES = {'name': 'sketch', 'count': HANDS * 10, 'crop_scale': 2.2}


def config_of(data=SKETCHES, **more):
    model = {'name': 'mobilenet_v2', 'width': 1.0}
    return {'model': model, 'size': 112, 'train_split': 'train', 'data': data, **more}


def errors_of(truth, predicted, *, confidence=None, hidden=None, valid=None, crop_scale=2.2):
    """KeypointErrors as the contract states them, computed here from points alone."""
    number = len(truth)
    everything = np.ones((number, 21), bool)
    valid = everything if valid is None else valid
    side = (truth.max(axis=1) - truth.min(axis=1)).max(axis=1)
    error = np.where(valid, np.sqrt(((predicted - truth) ** 2).sum(axis=2)), 0.0)
    return KeypointErrors(
        error_crop=error * 224 / (crop_scale * side)[:, None],
        error_image=error,
        valid=valid,
        hidden=~everything if hidden is None else hidden,
        norm_size=side,
        confidence=np.full((number, 21), 0.5) if confidence is None else confidence,
        index=np.arange(number),
        predicted_image=predicted,
        truth_image=np.where(valid[..., None], truth, 0.0),
        is_left=np.zeros(number, bool),
        has_hand=np.ones(number, bool),
    )


def record_of(errors, *, image_id=None, protocol='box', split='val', **meta):
    names = [f'sketch/val/{i}' for i in range(errors.num_hands)] if image_id is None else image_id
    meta = {'protocol': protocol, 'split': split, 'step': 100, 'size': 112, 'notes': [], **meta}
    return EvaluationRecord(errors, np.asarray(names, np.str_), meta)


def write_workdir(folder, record, config=None):
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(config or config_of()))
    metrics.write_evaluation(folder / metrics.EVALUATION_FILE, record)
    return folder


@pytest.fixture(scope='module')
def sketches():
    """What the source of the workdirs holds: the hands' true keypoints f64[n 21 2]."""
    source = sources.load_source('sketch', count=HANDS * 10, split='val')
    return np.stack([source[i]['keypoints'] for i in range(HANDS)]).astype(np.float64)


def noisy(truth, spread, seed=0):
    """Predictions whose hands differ in how hard they are; the same hands are hard for all."""
    hard = np.random.default_rng(99).lognormal(0.0, 0.6, len(truth))
    rng = np.random.default_rng(seed)
    return truth + spread * hard[:, None, None] * rng.normal(size=truth.shape)


def noisy_record(truth, **meta):
    return record_of(errors_of(truth, noisy(truth, 3.0)), **meta)


@pytest.fixture(scope='module')
def two_runs(tmp_path_factory, sketches):
    """Two workdirs on the same hands, the second a little worse, in another order."""
    folder = tmp_path_factory.mktemp('runs')
    confidence = np.random.default_rng(1).uniform(0, 1, (HANDS, 21))
    hidden = np.random.default_rng(2).uniform(size=(HANDS, 21)) < 0.3
    for name, predicted in (('first', noisy(sketches, 3.0)), ('second', noisy(sketches, 4.0, 1))):
        errors = errors_of(sketches, predicted, confidence=confidence, hidden=hidden)
        write_workdir(folder / name, record_of(errors))
    return [str(folder / 'first'), str(folder / 'second')]


@pytest.fixture(scope='module')
def report(two_runs, tmp_path_factory):
    """The report of two_runs, as (html, markdown)."""
    out = tmp_path_factory.mktemp('report')
    path = write_report(two_runs, out, worst=4)
    return path.read_text('utf-8'), (out / 'report.md').read_text('utf-8')


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are made but not drawn, which takes most of a report's time."""
    monkeypatch.setattr(plots, '_svg', lambda figure: '<svg xmlns="http://www.w3.org/2000/svg"/>')


class Page(html.parser.HTMLParser):
    """The tags with their attributes, the text, and the cells of all tables of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.rows = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        if tag == 'table':
            self.rows.append(['end of table'])

    def handle_data(self, data):
        self.words.append(data)
        if self.rows and self.rows[-1] and self.rows[-1] != ['end of table']:
            self.rows[-1][-1] += data

    def row(self, name):
        return next(row for row in self.rows if row and row[0] == name)


def page_of(*workdirs, out, worst=0):
    return Page(write_report(workdirs, out, worst=worst).read_text('utf-8'))


# ---- bootstrap ---------------------------------------------------------------------------------


def ragged_errors(seed, hands=12):
    """Errors with keypoints that are not counted, one that never is, and a hand without any."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 100, (hands, 21, 2))
    counted = rng.uniform(size=(hands, 21)) < 0.7
    counted[:, 7] = False
    counted[3] = False
    counted[:, hand.WRIST] = np.arange(hands) % 4 > 0
    hidden = rng.uniform(size=(hands, 21)) < 0.2
    spread = rng.lognormal(1.5, 1.0, (hands, 1, 1))
    predicted = truth + spread * rng.normal(size=truth.shape)
    return errors_of(truth, predicted, valid=counted, hidden=hidden)


def hands_of(errors, chosen):
    fields = dataclasses.fields(KeypointErrors)
    return KeypointErrors(**{field.name: getattr(errors, field.name)[chosen] for field in fields})


@pytest.mark.parametrize('name', protocols.PROTOCOLS)
def test_a_draw_is_the_summary_of_the_hands_copied(name):
    protocol = protocols.get_protocol(name)
    errors = ragged_errors(0)
    times = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), 6)
    functions = bootstrap.metrics_of_draws(errors, protocol)
    found = {metric: function(times) for metric, function in functions.items()}
    for row, drawn in enumerate(times):
        summary = hands_of(errors, np.repeat(np.arange(12), drawn)).summary(protocol)
        for metric, values in found.items():
            assert values[row] == pytest.approx(summary[metric], rel=1e-11), metric
    numbers = {key for key in summary if key.startswith(('epe', 'auc', 'pck_at'))}
    assert numbers == set(found)


def test_no_interval_where_a_prediction_is_not_finite():
    errors = ragged_errors(0)
    protocol = protocols.get_protocol('box')
    endless = errors.error_crop.copy()
    endless[5, np.flatnonzero(errors.valid[5])[0]] = np.inf
    errors = dataclasses.replace(errors, error_crop=endless, error_image=endless)
    (draws,) = bootstrap.draw([errors], protocol, resamples=200)
    assert bootstrap.interval(draws['epe_mean_224']) is None
    assert errors.summary(protocol)['epe_mean_224'] is None
    assert bootstrap.interval(draws['pck_at_0.2']) is not None


def one_error_a_hand(values):
    """Hands whose 21 keypoints are all off by the same number of pixels of a 224 crop."""
    truth = np.random.default_rng(0).uniform(0, 100, (len(values), 21, 2))
    errors = errors_of(truth, truth)
    same = np.repeat(np.asarray(values, np.float64)[:, None], 21, axis=1)
    return dataclasses.replace(errors, error_crop=same)


def mean_interval(errors, resamples, seed):
    hands = errors.num_hands
    times = np.random.default_rng(seed).multinomial(hands, np.full(hands, 1 / hands), resamples)
    functions = bootstrap.metrics_of_draws(errors, protocols.get_protocol('box'))
    return bootstrap.interval(functions['epe_mean_224'](times))


def test_the_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(3).normal(20, 4, 400)
    low, high = mean_interval(one_error_a_hand(values), 4000, 0)
    reach = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.1 * reach)


def test_intervals_cover_because_whole_hands_are_drawn():
    rng = np.random.default_rng(0)
    base = one_error_a_hand(np.zeros(50))
    trials, of_keypoints = 100, 30
    # The mean of a lognormal factor, a hand's own, times 10.
    truth = 10 * np.exp(0.5**2 / 2)
    covered = covered_by_keypoints = 0
    for trial in range(trials):
        hard = rng.lognormal(0.0, 0.5, (50, 1))
        errors = dataclasses.replace(base, error_crop=10 * hard * rng.uniform(0.5, 1.5, (50, 21)))
        low, high = mean_interval(errors, 300, trial)
        covered += low <= truth <= high
        if trial < of_keypoints:
            flat = errors.error_crop.ravel()
            means = flat[rng.integers(0, flat.size, (100, flat.size))].mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            covered_by_keypoints += low <= truth <= high
    assert 0.90 <= covered / trials <= 0.98
    assert covered_by_keypoints / of_keypoints < 0.6


# ---- pairing -----------------------------------------------------------------------------------


def as_run(record, config=None, name='run'):
    protocol = protocols.get_protocol(record.meta['protocol'])
    return runs.Run(
        name=name,
        workdir=name,
        config=config or config_of(),
        record=record,
        step=record.meta['step'],
        split=record.meta['split'],
        protocol=protocol,
        summary=record.errors.summary(protocol),
        calibration=None,
    )


def test_pairs_are_found_by_name_and_share_their_draws(sketches):
    first = noisy_record(sketches)
    # The same errors and 4% more: each run's own interval is far wider than that.
    worse = errors_of(sketches, sketches + 1.04 * (first.errors.predicted_image - sketches))
    second = record_of(worse)
    found = comparison.compare(as_run(first), as_run(second)).differences['epe_mean_224']
    own = comparison.intervals(as_run(first))['epe_mean_224']
    assert own.low < second.errors.summary(protocols.get_protocol('box'))['epe_mean_224'] < own.high
    assert 0 < found.interval.low < found.value < found.interval.high
    assert found.better == 'first'

    order = np.random.default_rng(5).permutation(HANDS)
    shuffled = record_of(hands_of(worse, order), image_id=second.image_id[order])
    again = comparison.compare(as_run(first), as_run(shuffled)).differences['epe_mean_224']
    assert again.value == pytest.approx(found.value, rel=1e-12)
    assert again.interval == pytest.approx(found.interval, rel=1e-12)

    swapped = comparison.compare(as_run(second), as_run(first)).differences
    assert swapped['epe_mean_224'].better == 'other'
    assert swapped['auc'].value > 0
    assert swapped['auc'].better == 'other'


def test_equal_runs_are_not_told_apart(sketches):
    record = noisy_record(sketches)
    found = comparison.compare(as_run(record), as_run(record)).differences
    assert {difference.better for difference in found.values()} == {None}
    assert {difference.value for difference in found.values()} == {0.0}


OTHER_HANDS = [f'other/{i}' for i in range(HANDS)]


@pytest.mark.parametrize(
    ('meta', 'change', 'reason'),
    [
        ({'image_id': OTHER_HANDS}, {}, '30 only in first, 30 only in second, 0 in both'),
        ({'image_id': ['other/1', *OTHER_HANDS[1:]]}, {}, 'same image_id'),
        ({'protocol': 'mmpose'}, {}, 'box, the other under mmpose'),
        ({}, {'valid': lambda old: old & (np.arange(21) > 0)}, 'different keypoints'),
        ({}, {'truth_image': lambda old: old + 1.0}, 'annotations'),
        ({}, {'norm_size': lambda old: old * 1.1}, 'normaliser'),
        ({}, {'error_crop': lambda old: old * 1.1}, 'different scales'),
    ],
)
def test_runs_that_are_no_pair_are_refused(sketches, meta, change, reason):
    record = noisy_record(sketches)
    errors = {name: function(getattr(record.errors, name)) for name, function in change.items()}
    second = record_of(dataclasses.replace(record.errors, **errors), **meta)
    found = comparison.compare(as_run(record, name='first'), as_run(second, name='second'))
    assert reason in found.refused
    assert found.differences == {}


@pytest.mark.usefixtures('undrawn')
def test_the_page_shows_what_it_does_not_compare(tmp_path, sketches, two_runs):
    third = write_workdir(tmp_path / 'third', noisy_record(sketches, image_id=OTHER_HANDS))
    words = ''.join(page_of(*two_runs, third, out=tmp_path / 'out').words)
    assert 'second against first' in words
    assert 'Not compared: they were measured on different hands: 30 only in first' in words
    assert 'Not compared' in (tmp_path / 'out' / 'report.md').read_text()


# ---- numbers -----------------------------------------------------------------------------------


def test_the_numbers_are_those_of_metrics(two_runs, report):
    page, markdown = Page(report[0]), report[1]
    records = [metrics.read_evaluation(f'{workdir}/evaluation.npz') for workdir in two_runs]
    summaries = [record.errors.summary(protocols.get_protocol('box')) for record in records]
    shown = {
        'EPE mean, px of the 224 crop': 'epe_mean_224',
        'EPE median, px of the 224 crop': 'epe_median_224',
        'EPE mean, px of the photograph': 'epe_mean_image',
        'AUC of PCK': 'auc',
        'PCK@0.2': 'pck_at_0.2',
    }
    for label, metric in shown.items():
        form = '.2f' if metric.startswith('epe') else '.3f'
        values = [format(summary[metric], form) for summary in summaries]
        assert [cell.split(' ')[0] for cell in page.row(label)[1:]] == values
        (line,) = [row for row in markdown.split('\n## ')[1].splitlines() if label in row]
        assert [cell.split()[0] for cell in line.strip('| ').split(' | ')[1:]] == values
    assert page.row('hands')[1:] == ['30', '30']
    assert page.row('protocol')[1:] == ['box', 'box']
    tip = summaries[1]['per_keypoint']['ring_tip']
    assert page.row('ring_tip')[4] == format(tip['epe_mean_224'], '.2f')
    assert page.row('ring_tip')[5] == format(tip['epe_median_224'], '.2f')
    for workdir in two_runs:
        assert f'handpose evaluate --workdir {workdir}' in page.words
        assert f'--workdir {workdir}`' in markdown


def test_hidden_and_visible_keypoints_are_told_apart(two_runs, report):
    errors = metrics.read_evaluation(f'{two_runs[0]}/evaluation.npz').errors
    for label, part in (('in view', ~errors.hidden), ('hidden', errors.hidden)):
        error = errors.error_crop[part]
        expected = [f'{part.sum():,}', f'{error.mean():.2f}', f'{np.median(error):.2f}']
        assert Page(report[0]).row(label)[1:4] == expected


def test_a_part_of_a_hand_is_measured_by_the_whole_hand():
    # The tight box of two keypoints alone is another one.
    run = as_run(record_of(ragged_errors(0), protocol='mmpose'))
    part = np.isin(np.arange(21), (4, 8))
    found = run.summary_of(run.valid & part)['pck_at_0.2']
    size = run.errors.size_of('keypoint_box')[:, None]
    within = [(run.errors.error_image / size)[run.valid[:, k], k] < 0.2 for k in (4, 8)]
    assert found == pytest.approx(np.mean([column.mean() for column in within]), rel=1e-12)


def test_reliability_bins():
    confidence = np.array([0.0, 0.05, 0.1, 0.55, 0.59, 1.0])
    right = np.array([False, True, True, True, False, True])
    found = plots.reliability_of(confidence, right)
    assert found.number.tolist() == [2, 1, 0, 0, 0, 2, 0, 0, 0, 1]
    assert found.right[[0, 1, 5, 9]].tolist() == [0.5, 1.0, 0.5, 1.0]
    assert found.confidence[[0, 5]] == pytest.approx([0.025, 0.57])
    assert np.isnan(found.right[2])


@pytest.mark.usefixtures('undrawn')
def test_few_hands_get_no_interval_and_notes_are_on_the_page(tmp_path, sketches):
    record = noisy_record(sketches[:5], notes=['not the crops <of> it'])
    workdir = write_workdir(tmp_path / 'few', record)
    page = page_of(workdir, out=tmp_path / 'out', worst=1)
    assert '(' not in page.row('AUC of PCK')[1]
    assert 'None for few: fewer than 20 hands' in ''.join(page.words)
    assert 'few: not the crops <of> it.' in page.words


@pytest.mark.usefixtures('undrawn')
def test_a_run_without_anything_counted_has_a_page(tmp_path, sketches):
    nothing = np.zeros((HANDS, 21), bool)
    errors = errors_of(sketches, noisy(sketches, 3.0), valid=nothing)
    errors = dataclasses.replace(errors, confidence=np.full((HANDS, 21), np.nan))
    workdir = write_workdir(tmp_path / 'nothing', record_of(errors))
    page = page_of(workdir, out=tmp_path / 'out', worst=12)
    assert page.row('AUC of PCK') == ['AUC of PCK', '\N{EN DASH}']


@pytest.mark.usefixtures('undrawn')
def test_a_calibration_is_told_if_it_is_of_this_checkpoint(tmp_path, sketches):
    record = noisy_record(sketches)
    for name, step in (('fresh', 100), ('stale', 50)):
        report = {
            'fitted_on': {'step': step},
            'held_out': {'hands': 11, 'before': {'ece': 0.4321}, 'after': {'ece': 0.0123}},
        }
        table = np.linspace(0, 1, 201)
        workdir = write_workdir(tmp_path / name, record)
        calibration.save(workdir, calibration.Calibration(table, 1 - table, report))
    write_workdir(tmp_path / 'none', record)
    workdirs = [tmp_path / name for name in ('fresh', 'stale', 'none')]
    words = page_of(*workdirs, out=tmp_path / 'out').words
    (told,) = [line for line in words if line.startswith('fresh, calibrated')]
    assert '0.432 before, 0.012 after, on 11 of the hands' in told
    assert 'stale: the calibration is of step 50, the evaluation of step 100' in ''.join(words)
    assert any(line.startswith('Not calibrated: none;') for line in words)


# ---- worst cases -------------------------------------------------------------------------------


def test_the_worst_come_first_with_pictures_of_themselves(two_runs):
    (run,) = runs.read_runs(two_runs[:1])
    found = gallery.worst_cases(run, 5)
    expected = np.argsort(-run.errors.error_crop.mean(axis=1))[:5]
    assert [case.image_id for case in found.cases] == [f'sketch/val/{i}' for i in expected]
    assert found.no_pictures == ''
    source = sources.load_source('sketch', count=HANDS * 10, split='val')
    for case, i in zip(found.cases, expected, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(case.jpeg)), np.float64)
        box = source[int(i)]['box'].astype(np.float64)
        crop_from_image = geometry.crop_from_image(box, len(picture))
        # The annotation is drawn last, in white.
        truth = geometry.apply_affine(crop_from_image, run.errors.truth_image[i])
        at = np.round(truth).astype(int)
        assert (picture[at[:, 1], at[:, 0]].mean(axis=1) > 200).mean() > 0.8


def test_reasons(sketches):
    truth = sketches.copy()
    predicted = noisy(truth, 1.0)
    confidence = np.full((HANDS, 21), 0.6)
    hidden = np.zeros((HANDS, 21), bool)
    # Far too large errors for six hands, in this order, for reasons of their own.
    for place, i in enumerate(range(6)):
        predicted[i] = truth[i] + np.array([60.0 - 4 * place, 0.0])
    truth[0, 4] = (-20.0, 5.0)
    hidden[1, :11] = True
    confidence[2] = 0.1
    middle = (truth[3, :, 0].min() + truth[3, :, 0].max()) / 2
    predicted[3] = truth[3] * [-1, 1] + [2 * middle, 0]
    reverse = [0, *range(17, 21), *range(13, 17), *range(9, 13), *range(5, 9), *range(1, 5)]
    predicted[4] = truth[4][reverse]
    errors = errors_of(truth, predicted, confidence=confidence, hidden=hidden)
    run = as_run(record_of(errors))
    cases = {case.image_id: case for case in gallery.worst_cases(run, 6).cases}
    confident = gallery.reasons_without_picture(run)[gallery.UNSURE]
    assert {name: case.reasons for name, case in cases.items()} == {
        'sketch/val/0': ('truncated',),
        'sketch/val/1': ('occluded',),
        'sketch/val/2': ('low confidence',),
        'sketch/val/3': ('left/right',),
        'sketch/val/4': ('left/right',),
        'sketch/val/5': ('none of these',),
    }
    assert confident.sum() == 1
    assert cases['sketch/val/1'].hidden == 11


@pytest.mark.usefixtures('undrawn')
def test_without_photographs_the_cases_are_listed_and_the_page_says_why(tmp_path, sketches):
    record = noisy_record(sketches)
    config = config_of({'name': 'folder', 'root': str(tmp_path / 'gone'), 'crop_scale': 2.2})
    workdir = write_workdir(tmp_path / 'run', record, config)
    page = page_of(workdir, out=tmp_path / 'out', worst=3)
    words = ''.join(page.words)
    assert 'no such annotation file' in words
    assert words.count('no photograph') == 3
    assert not any('jpeg' in attributes.get('src', '') for _, attributes in page.tags)


def test_data_that_has_changed_is_not_shown_as_if_it_had_not(sketches):
    record = noisy_record(sketches, image_id=[f'sketch/val/{i + 1}' for i in range(HANDS)])
    found = gallery.worst_cases(as_run(record), 2)
    assert 'the data has changed since' in found.no_pictures
    assert [case.jpeg for case in found.cases] == [None, None]


def test_a_report_renders_no_synthetic_hands(tmp_path, monkeypatch, sketches):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    record = noisy_record(sketches)
    config = config_of({'name': 'synthetic_hands', 'count': 3000, 'seed': 0, 'size': 112})
    found = gallery.worst_cases(as_run(record, config), 2)
    assert 'not in the cache' in found.no_pictures
    assert list(tmp_path.iterdir()) == []


# ---- the paper's table -------------------------------------------------------------------------


def cmu_run(*, hands=846, protocol='cmu', split='test', sets=('cmu',), notes=(), **config):
    truth = np.random.default_rng(0).uniform(0, 100, (hands, 21, 2))
    record = record_of(
        errors_of(truth, truth + 3.0),
        image_id=[f'cmu/{split}/{i}' for i in range(hands)],
        protocol=protocol,
        split=split,
        notes=list(notes),
    )
    parts = {name: {'name': 'prepared', 'dataset': name} for name in sets}
    data = {'name': 'mixture', 'parts': parts} if len(sets) > 1 else parts[sets[0]]
    settings = {'size': 224, 'eval_data': {'name': 'prepared', 'dataset': 'cmu'}, **config}
    return as_run(record, config_of(data, **settings), name='ours')


def rows_filled(run):
    return [row.name for row in tables.PAPER if tables.counterpart(row, [run])]


def test_a_run_fills_the_row_it_repeats_and_no_other():
    assert rows_filled(cmu_run()) == ['CMU, 224']
    assert rows_filled(cmu_run(size=112)) == ['CMU, 112']
    assert rows_filled(cmu_run(sets=('cmu', 'rhd'))) == ['CMU+RHD']
    assert rows_filled(cmu_run(sets=('cmu', 'rhd', 'shp'))) == ['CMU+RHD+SHP']
    assert rows_filled(cmu_run(model={'name': 'resnet50'})) == ['ResNet/CMU']
    assert rows_filled(cmu_run(model={'name': 'mobilenet_v2', 'width': 0.5})) == []
    assert rows_filled(cmu_run(sets=('rhd', 'shp'))) == []


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'hands': 845}, '845 hands, and manual_test has 846'),
        ({'protocol': 'box'}, 'its protocol is box'),
        ({'split': 'train'}, "not on CMU's manual_test"),
        ({'eval_data': {'name': 'folder', 'root': 'x/mine'}}, 'evaluated on folder mine, test'),
        ({'notes': ('other crops',)}, 'other crops'),
    ],
)
def test_what_is_not_the_papers_test_fills_nothing(change, reason):
    run = cmu_run(**change)
    assert reason in tables.why_not_in_paper(run)
    assert rows_filled(run) == []


def test_the_papers_numbers_stand_there_and_ours_are_empty(report):
    page = Page(report[0])
    # Gouidis et al. 2019, table 1.
    published = {
        'CMU, 112': ('0.917', '11.75', '7.34'),
        'CMU, 224': ('0.919', '10.88', '6.95'),
        'CMU+RHD': ('0.901', '13.60', '9.11'),
        'CMU+RHD+SHP': ('0.924', '10.40', '6.40'),
        'ResNet/CMU': ('0.917', '11.14', '6.54'),
    }
    for name, (auc, mean, median) in published.items():
        assert page.row(name)[1:] == [auc, '', mean, '', median, '', '']
    assert 'Our cells are empty' in ''.join(page.words)


# ---- the page ----------------------------------------------------------------------------------


def test_nothing_comes_from_elsewhere(report):
    page = Page(report[0])
    loaded = [
        attributes[name]
        for _, attributes in page.tags
        for name in ('src', 'href', 'srcset', 'data', 'action', 'poster')
        if name in attributes
    ]
    assert len(loaded) > 10
    assert all(value.startswith(('data:', '#')) for value in loaded)
    assert {tag for tag, _ in page.tags}.isdisjoint({'script', 'link', 'iframe', 'object', 'base'})
    (style,) = re.findall(r'<style>(.*?)</style>', report[0], re.S)
    assert 'url(' not in style
    assert '@import' not in style
    # Nor do the pictures inside load anything.
    for value in loaded:
        if value.startswith('data:image/svg+xml;base64,'):
            svg = base64.b64decode(value.partition(',')[2]).decode()
            assert not re.search(r'(href|src)="(?!#|data:)', svg)


def test_every_picture_says_what_it_shows(report):
    images = [attributes for tag, attributes in Page(report[0]).tags if tag == 'img']
    assert all(len(attributes['alt']) > 10 for attributes in images)


@pytest.mark.usefixtures('undrawn')
def test_hostile_names_stay_text(tmp_path, sketches):
    record = noisy_record(sketches, image_id=[f'{HOSTILE}{i}' for i in range(HANDS)])
    name = HOSTILE.replace('/', '')
    page = page_of(write_workdir(tmp_path / name, record), out=tmp_path / 'out', worst=2)
    assert not [tag for tag, _ in page.tags if tag in ('script', 'b<')]
    assert all(a['src'].startswith('data:') for tag, a in page.tags if tag == 'img')
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith('on')]
    assert any(HOSTILE in words for words in page.words)
    assert any(name in words for words in page.words)

    markdown = (tmp_path / 'out' / 'report.md').read_text('utf-8')
    own_words = markdown.removeprefix(outputs.MARKDOWN_MARK)
    outside_code = re.sub(r'(`+).*?\1', '', own_words.replace('\\`', ''))
    assert '<' not in outside_code
    # A pipe in a name opens no cell.
    table = [line for line in markdown.splitlines() if line.startswith('|')]
    worst = [re.sub(r'\\.', '', line) for line in table if re.search(r'alert.* [.0-9]+ \|', line)]
    assert worst
    assert {line.count('|') for line in worst} == {4}


@pytest.mark.parametrize(
    'name', ['$\\frac{1}{', '_hidden', 'a' * 80, '\N{CJK UNIFIED IDEOGRAPH-624B}']
)
def test_any_name_can_be_plotted_and_is_in_the_legend(name):
    curve = plots.Curve(name, [0.0, 1.0], [0.0, 1.0])
    nameless = plots.Curve('', [0.0, 1.0], [0.0, 1.0])
    svg = plots.pck([curve], x_label='error', title='t')
    assert svg == plots.pck([curve], x_label='error', title='t')
    assert len(svg) > len(plots.pck([nameless], x_label='error', title='t'))
    assert 'id="legend_1"' in svg


# ---- the command -------------------------------------------------------------------------------


@pytest.mark.usefixtures('undrawn')
def test_the_command_writes_both_files(two_runs, tmp_path, capsys):
    out = tmp_path / 'new' / 'out'
    main([two_runs[0], '--out', str(out), '--worst', '0'])
    assert capsys.readouterr().out == f'{out / "report.html"}, {out / "report.md"}\n'
    assert (out / 'report.md').stat().st_size > 500


def test_a_workdir_that_was_not_evaluated_gives_one_line(tmp_path, two_runs):
    workdir = tmp_path / 'trained'
    workdir.mkdir()
    shutil.copy(f'{two_runs[0]}/config.json', workdir)
    with pytest.raises(SystemExit) as stopped:
        main([two_runs[0], str(workdir), '--out', str(tmp_path / 'out')])
    message = str(stopped.value)
    assert message.startswith(f'error: workdir {workdir}: no evaluation.npz')
    assert f'handpose evaluate --workdir {workdir}' in message
    assert '\n' not in message
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('pick', 'message'),
    [
        (lambda a, b: [a, f'{b}/../first/'], 'given twice'),
        (lambda a, b: [], 'at least one'),
        (lambda a, b: [f'{a}/nowhere'], 'config.json'),
    ],
)
def test_wrong_workdirs(two_runs, tmp_path, pick, message):
    with pytest.raises(ValueError, match=message):
        write_report(pick(*two_runs), tmp_path)


def test_runs_of_the_same_name_are_told_apart(tmp_path, two_runs):
    for parent in ('a', 'b'):
        shutil.copytree(two_runs[0], tmp_path / parent / 'run')
    found = runs.read_runs([tmp_path / 'a' / 'run', tmp_path / 'b' / 'run'])
    assert [run.name for run in found] == ['a/run', 'b/run']


# ---- the browser -------------------------------------------------------------------------------

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
WIDTHS = (1280, 400)


def test_a_browser_shows_the_page_on_a_desk_and_on_a_phone(tmp_path, report):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f'no browser on PATH: {", ".join(BROWSERS)}')
    # The third frame is too wide on purpose: the measurement must notice.
    too_wide = report[0].replace('<main>', '<main><div style="width:700px">x</div>')
    frames = ''.join(
        f'<iframe srcdoc="{html.escape(text)}" '
        f'style="border:0;display:block;width:{width}px;height:2600px"></iframe>'
        for text, width in [*((report[0], width) for width in WIDTHS), (too_wide, 400)]
    )
    measure = """addEventListener('load', () => {
      const found = [...document.querySelectorAll('iframe')].map(frame => {
        const page = frame.contentDocument;
        return {
          width: page.documentElement.scrollWidth,
          broken: [...page.images].filter(image => !image.naturalWidth).length,
          images: page.images.length,
          loaded: frame.contentWindow.performance.getEntriesByType('resource')
            .filter(entry => !entry.name.startsWith('data:')).length,
        };
      });
      document.body.setAttribute('data-found', JSON.stringify(found));
    })"""
    (tmp_path / 'frames.html').write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frames}'
        f'<script>{measure}</script></body>',
        'utf-8',
    )
    done = subprocess.run(
        [
            browser,
            *('--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars'),
            *('--disable-background-networking', '--host-resolver-rules=MAP * ~NOTFOUND'),
            *(f'--user-data-dir={tmp_path / "profile"}', '--window-size=1280,5200'),
            *(f'--screenshot={tmp_path / "page.png"}', '--dump-dom'),
            (tmp_path / 'frames.html').as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    attribute = re.search(r'data-found="([^"]*)"', done.stdout)
    assert attribute, done.stderr[-2000:]
    desk, phone, seeded = json.loads(html.unescape(attribute.group(1)))
    assert [desk['width'], phone['width']] == list(WIDTHS)
    assert seeded['width'] > 400
    assert desk['images'] == phone['images'] > 10
    assert [desk['broken'], phone['broken'], desk['loaded'], phone['loaded']] == [0, 0, 0, 0]

    picture = np.asarray(Image.open(tmp_path / 'page.png').convert('RGB'), np.int64)
    for name, shown in (('desk', picture[:2600]), ('phone', picture[2600:, :400])):
        # The blue of the first curve, dark text, and paper.
        blue = (np.abs(shown - [0x00, 0x72, 0xB2]).max(axis=2) < 12).mean()
        dark = (shown.max(axis=2) < 80).mean()
        paper = (shown.min(axis=2) > 250).mean()
        assert blue > 5e-4, name
        assert dark > 5e-3, name
        assert 0.5 < paper < 0.98, name
