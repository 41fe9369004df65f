"""What is written can be read back, survives a kill, and shows its progress."""

import io
import json
import math
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from handpose_jax.training.writers import MetricWriter, ProgressBar, read_metrics


def read_events(workdir):
    """All events, oldest file first, from the TFRecord framing: length, CRC, data, CRC."""
    events = []
    for path in sorted((workdir / 'tensorboard').iterdir(), key=lambda path: path.name):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from('<Q', data, at)
            events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
        assert at == len(data)
    return events


def scalars(workdir):
    return [
        (event.step, value.tag, value.simple_value)
        for event in read_events(workdir)
        for value in event.summary.value
    ]


def test_every_write_is_a_line_of_json_and_events(tmp_path):
    with MetricWriter(tmp_path / 'new' / 'run') as writer:
        writer.write(10, {'loss': 0.25, 'images': 320})
        lines = (tmp_path / 'new' / 'run' / 'metrics.jsonl').read_text().splitlines()
        assert json.loads(lines[0]) == {'step': 10, 'split': 'train', 'loss': 0.25, 'images': 320}
        writer.write(10, {'auc': 0.5, 'epe_mean_224': None}, split='validation')
    rows = read_metrics(tmp_path / 'new' / 'run' / 'metrics.jsonl')
    assert rows[1] == {'step': 10, 'split': 'validation', 'auc': 0.5, 'epe_mean_224': None}
    assert scalars(tmp_path / 'new' / 'run') == [
        (10, 'train/loss', 0.25),
        (10, 'train/images', 320.0),
        (10, 'validation/auc', 0.5),
    ]


def test_numbers_of_numpy_and_jax_are_written_as_numbers(tmp_path):
    values = {
        'a': np.float32(0.5),
        'b': np.int64(3),
        'c': jnp.asarray(0.25),
        'd': np.array(2.0),
        'e': True,
    }
    with MetricWriter(tmp_path) as writer:
        writer.write(1, values)
    (row,) = read_metrics(tmp_path / 'metrics.jsonl')
    assert row == {'step': 1, 'split': 'train', 'a': 0.5, 'b': 3, 'c': 0.25, 'd': 2.0, 'e': 1}


def test_values_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {'a': math.nan, 'b': math.inf, 'c': -math.inf})

    def refuse(word):
        raise AssertionError(f'{word} is no JSON')

    line = (tmp_path / 'metrics.jsonl').read_text()
    row = json.loads(line, parse_constant=refuse)
    assert (row['a'], row['b'], row['c']) == ('nan', 'inf', '-inf')
    (row,) = read_metrics(tmp_path / 'metrics.jsonl')
    assert math.isnan(row['a'])
    assert (row['b'], row['c']) == (math.inf, -math.inf)
    assert math.isnan(scalars(tmp_path)[0][2])


@pytest.mark.parametrize(
    ('metrics', 'message'),
    [
        ({'step': 1.0}, "'step'.*taken"),
        ({'split': 1.0}, "'split'.*taken"),
        ({'loss': '0.5'}, "'loss'.*one number, got str"),
        ({'loss': np.zeros(2)}, "'loss'.*one number, got ndarray"),
        ({'loss': {}}, "'loss'.*one number, got dict"),
    ],
)
def test_what_is_no_number_is_refused_by_name_and_leaves_no_line(tmp_path, metrics, message):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match=message):
        writer.write(1, {'fine': 1.0, **metrics})
    assert (tmp_path / 'metrics.jsonl').read_text() == ''


def write_run(workdir, steps, resume_step=None):
    with MetricWriter(workdir, resume_step) as writer:
        for step in steps:
            writer.write(step, {'loss': float(step)})


def test_resuming_drops_what_will_be_written_again(tmp_path):
    write_run(tmp_path, [10, 20, 30, 40])
    write_run(tmp_path, [30, 40, 50], resume_step=20)
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows] == [10, 20, 30, 40, 50]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ['metrics.jsonl']
    # The mark that makes TensorBoard drop the events of the first run from this step on.
    marks = [
        event.step
        for event in read_events(tmp_path)
        if event.session_log.status == event_pb2.SessionLog.START
    ]
    assert marks == [21]
    assert [step for step, _, _ in scalars(tmp_path)] == [10, 20, 30, 40, 30, 40, 50]


def test_starting_anew_drops_everything(tmp_path):
    write_run(tmp_path, [10, 20])
    write_run(tmp_path, [10])
    assert [row['step'] for row in read_metrics(tmp_path / 'metrics.jsonl')] == [10]
    marks = [
        event.step
        for event in read_events(tmp_path)
        if event.session_log.status == event_pb2.SessionLog.START
    ]
    assert marks == [0]


def test_resuming_at_step_zero_keeps_step_zero(tmp_path):
    write_run(tmp_path, [0, 1])
    write_run(tmp_path, [1], resume_step=0)
    assert [row['step'] for row in read_metrics(tmp_path / 'metrics.jsonl')] == [0, 1]


def test_a_line_torn_anywhere_by_a_kill_does_not_stop_the_run(tmp_path):
    write_run(tmp_path / 'whole', [10, 20])
    first, second = (tmp_path / 'whole' / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    # A name beyond ASCII: the tear may go through a character.
    second = second.replace(b'loss', 'ängstlich'.encode())
    for cut in range(len(second) - 1):
        workdir = tmp_path / str(cut)
        workdir.mkdir()
        (workdir / 'metrics.jsonl').write_bytes(first + second[:cut])
        assert [row['step'] for row in read_metrics(workdir / 'metrics.jsonl')] == [10]
    write_run(workdir, [20], resume_step=10)
    text = (workdir / 'metrics.jsonl').read_text()
    assert [json.loads(line)['step'] for line in text.splitlines()] == [10, 20]


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "split": "train"}')
    write_run(tmp_path, [2], resume_step=1)
    assert [row['step'] for row in read_metrics(tmp_path / 'metrics.jsonl')] == [1, 2]


@pytest.mark.parametrize('line', ['{"step": 1', '[1]', '{"loss": 2}', '', '{"step": "1"}'])
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path, line):
    good = '{"step": 1, "split": "train"}'
    text = f'{good}\n{line}\n{good}\n'
    path = tmp_path / 'metrics.jsonl'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2: expected'):
        MetricWriter(tmp_path, resume_step=5)
    assert path.read_text() == text


def test_values_that_are_not_finite_survive_a_resume(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {'loss': math.inf})
    write_run(tmp_path, [2], resume_step=1)
    assert read_metrics(tmp_path / 'metrics.jsonl')[0]['loss'] == math.inf


def test_reading_one_split_leaves_out_the_others(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {'loss': 1.0})
        writer.write(1, {'auc': 0.5}, split='test')
    assert [row['auc'] for row in read_metrics(tmp_path / 'metrics.jsonl', split='test')] == [0.5]


def test_a_file_in_place_of_the_workdir_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        MetricWriter(tmp_path / 'file')


def test_closing_twice_is_allowed(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.close()
    writer.close()


class Clock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_plain_line_every_interval():
    stream, clock = io.StringIO(), Clock()
    with ProgressBar(100, initial=40, stream=stream, plain_interval=15.0, clock=clock) as bar:
        for step in range(20):
            clock.now += 2
            bar.update(images=32, loss=1 / (step + 1))
    lines = stream.getvalue().splitlines()
    # After 16 s, 32 s and at the end; 52 steps remain after the first 8, at 2 s a step.
    assert lines == [
        'step 48/100, 16.0 images/s, loss 0.125, 01:44 to go',
        'step 56/100, 16.0 images/s, loss 0.0625, 01:28 to go',
        'step 60/100, 16.0 images/s, loss 0.05, 01:20 to go',
    ]
    assert '\r' not in stream.getvalue()


def test_a_run_that_is_through_has_nothing_to_go():
    stream, clock = io.StringIO(), Clock()
    with ProgressBar(1, stream=stream, clock=clock) as bar:
        clock.now += 4
        bar.update(images=8)
    assert stream.getvalue() == 'step 1/1, 2.0 images/s\n'


def test_a_run_without_steps_says_nothing():
    stream = io.StringIO()
    bar = ProgressBar(5, initial=5, stream=stream)
    bar.close()
    bar.close()
    assert stream.getvalue() == ''


def test_the_loss_is_read_only_when_it_is_shown():
    class Loss:
        reads = 0

        def __float__(self):
            Loss.reads += 1
            return 0.5

    stream, clock = io.StringIO(), Clock()
    bar = ProgressBar(100, stream=stream, plain_interval=15.0, clock=clock)
    for _ in range(50):
        clock.now += 0.1
        bar.update(images=1, loss=Loss())
    assert Loss.reads == 0
    clock.now += 15
    bar.update(images=1, loss=Loss())
    assert Loss.reads == 1
    bar.write('evaluation: 3.2 px')
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[1] == 'evaluation: 3.2 px'
    assert 'loss 0.5' in lines[0]
    assert len(lines) == 2


def test_a_terminal_gets_one_line_that_moves():
    stream, clock = Terminal(), Clock()
    with ProgressBar(50, initial=10, stream=stream, clock=clock) as bar:
        for _ in range(4):
            clock.now += 2
            bar.update(images=32, loss=0.75)
        bar.write('a line of its own')
    text = stream.getvalue()
    assert '10/50' in text
    last = text.rstrip().split('\r')[-1]
    assert '14/50' in last
    assert '16.0 images/s, loss 0.75' in last
    assert 'a line of its own\n' in text


def test_the_bar_goes_to_stderr(capsys):
    clock = Clock()
    with ProgressBar(3, clock=clock) as bar:
        clock.now += 1
        bar.update(images=1)
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith('step 1/3')


@pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere'
)
def test_a_read_only_workdir_is_an_error_with_its_path(tmp_path):
    workdir = tmp_path / 'locked'
    workdir.mkdir()
    workdir.chmod(0o500)
    with pytest.raises(PermissionError, match='locked'):
        MetricWriter(workdir)
