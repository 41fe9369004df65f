"""benchmarks/accelerator.py and benchmarks/finetuning.py, at the size of a rehearsal."""

import json
import sys

import accelerator
import finetuning
import pytest

from handpose_jax import inference, train
from handpose_jax.config import load


@pytest.mark.slow
# Under test conditions warnings and checked types slow compilation down; users have neither.
@pytest.mark.usefixtures('unchecked')
def test_the_rehearsal_of_an_accelerator(tmp_path, monkeypatch):
    output = tmp_path / 'accelerator.json'
    words = ['--smoke', '--output', str(output), '--only', 'train_32_float32_2|tests|latency_32_1']
    monkeypatch.setattr(sys, 'argv', ['accelerator.py', *words])
    accelerator.main()
    found = json.loads(output.read_text())
    assert found['card']
    assert set(found['matmul_gflop_per_s']) == {'bfloat16', 'float32'}
    rows = found['rows']
    assert list(rows)[:2] == ['train_32_float32_2_host', 'train_32_float32_2_device']
    host, device = list(rows.values())[:2]
    assert host['images_per_s'] > 0
    assert host['share_of_matmul'] > 0
    assert 'images_per_s' in device or 'config.pipeline.place' in device['skipped']
    assert rows['tests']['passed'], rows['tests']
    assert rows['latency_32_1']['ms'] > 0


def test_rows_that_fail_or_come_too_late_say_so(tmp_path, monkeypatch):
    output = tmp_path / 'accelerator.json'

    def out_of_memory(*given):
        raise RuntimeError('RESOURCE_EXHAUSTED: out of memory\nand more')

    monkeypatch.setattr(accelerator, 'train_row', out_of_memory)
    common = ['accelerator.py', '--smoke', '--output', str(output), '--only', 'train.*host']
    monkeypatch.setattr(sys, 'argv', common)
    accelerator.main()
    rows = json.loads(output.read_text())['rows']
    assert {row['failed'] for row in rows.values()} == {'RESOURCE_EXHAUSTED: out of memory'}
    assert len(rows) == 4
    monkeypatch.setattr(sys, 'argv', [*common, '--seconds', '0'])
    accelerator.main()
    rows = json.loads(output.read_text())['rows']
    assert {row['skipped'] for row in rows.values()} == {'no time was left'}


def people(*counts):
    return [
        {'group': f'p{group}', 'file': f'{group}_{index}.jpg'}
        for group, count in enumerate(counts)
        for index in range(count)
    ]


def test_nobody_is_tuned_on_and_measured():
    records = people(9, 4, 7, 12, 3, 8, 5)
    tuned, held = finetuning.split(records, (5, 20))
    assert [len(part) for part in tuned.values()] == [5, 20]
    assert {r['group'] for r in tuned[20]}.isdisjoint({r['group'] for r in held})
    files = {count: {r['file'] for r in part} for count, part in tuned.items()}
    assert files[5] < files[20]
    assert held
    assert finetuning.split(records, (5, 20)) == (tuned, held)
    with pytest.raises(ValueError, match='expected more than 48 records'):
        finetuning.split(records, (48,))


@pytest.mark.slow
def test_a_start_is_tuned_and_measured_before_and_after(tmp_path, monkeypatch):
    from test_end_to_end import write_folder

    start, folder = tmp_path / 'start', tmp_path / 'hands'
    config = load('quickstart:smoke')
    config.num_steps = 2
    train.train(config, str(start))
    write_folder(folder, 4)
    run = inference.load_run(str(start))
    row = finetuning.measure(run, str(start), folder, str(folder), steps=21)
    assert row['steps'] == 21
    assert row['before'] == row['before'] | {'others': row['before']['held_out']}
    assert row['after']['held_out'] != row['before']['held_out']
    assert row['after']['held_out']['hands'] == 4
    assert '| tuned on |' in finetuning.table({'palms_50': row})
