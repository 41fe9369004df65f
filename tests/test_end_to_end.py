"""The whole path: train, stop, resume, evaluate, predict, from the command line too."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

import handpose_jax
from handpose_jax import evaluate, inference, predict, train
from handpose_jax.config import load
from handpose_jax.data import resident
from handpose_jax.data.sources import SketchSource
from handpose_jax.evaluation import report
from handpose_jax.process import interruption, lock

ROOT = Path(__file__).parent.parent
# The smallest network, which compiles fastest; the paper's is trained in test_paper_data.py.
SMOKE = ROOT / 'configs' / 'quickstart.py'


def smoke_config(**changes):
    config = load(f'{SMOKE}:smoke')
    config.update_from_flattened_dict(changes)
    return config


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def write_folder(folder: Path, count: int, splits=('train', 'val')) -> None:
    """Drawn hands as files: what a user's own folder looks like."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for split in splits:
        source = SketchSource(count=count, split='train')
        for index in range(count):
            sample = source[index]
            name = f'{split}_{index}.png'
            cv2.imwrite(str(folder / name), sample['image'][..., ::-1])
            records.append(
                {'file': name, 'keypoints': sample['keypoints'].tolist(), 'split': split}
            )
    (folder / 'annotations.json').write_text(json.dumps(records))


@pytest.fixture(scope='module')
def trained_state(tmp_path_factory):
    """An uninterrupted run: its workdir and last state."""
    workdir = tmp_path_factory.mktemp('trained')
    return workdir, train.train(smoke_config(), str(workdir))


@pytest.fixture(scope='module')
def trained(trained_state):
    return trained_state[0]


@pytest.mark.slow
def test_training_resumed_twice_is_bit_identical(tmp_path, trained_state):
    """Parameters, optimizer, averages, data order and metrics, as if never interrupted."""
    parts = tmp_path / 'parts'
    train.train(smoke_config(), str(parts), stop_at=1)
    assert not (parts / 'metrics.json').exists()
    # Another number of read threads may not change the stream.
    train.train(smoke_config(**{'pipeline.num_threads': 1}), str(parts), stop_at=3)
    resumed = train.train(smoke_config(), str(parts))
    trained, whole = trained_state
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (parts / 'metrics.jsonl').read_text() == (trained / 'metrics.jsonl').read_text()
    assert (parts / 'metrics.json').read_text() == (trained / 'metrics.json').read_text()


@pytest.mark.slow
def test_frozen_statistics_stay_to_the_bit_while_the_parameters_move(tmp_path, trained_state):
    """As configs/finetune.py has it; what the step sees are the statistics of inference."""
    start = {'init_from': str(trained_state[0]), 'freeze_batch_stats': True, 'num_steps': 2}
    state = train.train(smoke_config(**start), str(tmp_path))
    before = inference.load_run(str(trained_state[0])).variables
    stats = zip(*map(jax.tree.leaves, (state.batch_stats, before['batch_stats'])), strict=True)
    for after, kept in stats:
        np.testing.assert_array_equal(after, kept)
    params = zip(*map(jax.tree.leaves, (state.params, before['params'])), strict=True)
    moved = [bool((np.asarray(a) != np.asarray(b)).any()) for a, b in params]
    assert np.mean(moved) > 0.9
    rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    losses = {'frozen': json.loads(rows[0])['loss']}
    free = tmp_path / 'free'
    train.train(smoke_config(**{**start, 'freeze_batch_stats': False}), str(free), stop_at=1)
    losses['free'] = json.loads((free / 'metrics.jsonl').read_text().splitlines()[0])['loss']
    assert losses['frozen'] != pytest.approx(losses['free'], rel=1e-3)


@pytest.mark.slow
def test_a_training_from_device_memory_goes_on_bit_identically(tmp_path):
    config = {'pipeline.place': 'device', 'augmentation.noise': 0.5, 'augmentation.blur': 0.5}
    whole = train.train(smoke_config(**config), str(tmp_path / 'whole'))
    train.train(smoke_config(**config), str(tmp_path / 'parts'), stop_at=3)
    resumed = train.train(
        smoke_config(**config, **{'pipeline.num_threads': 0}), str(tmp_path / 'parts')
    )
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [(tmp_path / name / 'metrics.jsonl').read_text() for name in ('whole', 'parts')]
    assert rows[0] == rows[1]
    with pytest.raises(ValueError, match=r"pipeline\.place: 'device' -> 'host'"):
        train.train(smoke_config(), str(tmp_path / 'whole'))


def test_a_data_set_too_large_for_the_device_stops_before_anything_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(resident, '_free_memory', lambda: (1000, 'on a device'))
    monkeypatch.setattr(SketchSource, '__getitem__', lambda source, index: pytest.fail('decoded'))
    with pytest.raises(ValueError, match=r'place.*bytes for 10 records.*1,000 bytes free'):
        train.train(smoke_config(**{'pipeline.place': 'device'}), str(tmp_path / 'w'))
    assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_it_had_not_been(tmp_path):
    changes = {'num_steps': 5000, 'eval_every': 5000, 'checkpoint_every': 5000}
    command = [sys.executable, '-m', 'handpose_jax.main', '--config', f'{SMOKE}:smoke']
    command += [f'--config.{key}={value}' for key, value in changes.items()]
    stopped, whole = tmp_path / 'stopped', tmp_path / 'whole'
    process = subprocess.Popen(
        [*command, '--workdir', str(stopped)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log = stopped / 'metrics.jsonl'
    while process.poll() is None and not (log.exists() and log.read_text().count('\n') >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == interruption.EXIT_CODE, errors
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    last = max(row['step'] for row in rows)
    assert 3 <= last < 5000
    assert f'stopped at step {last} of 5000' in errors
    config = smoke_config(**changes)
    resumed = train.train(config, str(stopped), stop_at=last + 2)
    uninterrupted = train.train(config, str(whole), stop_at=last + 2)
    assert int(resumed.step) == last + 2
    for a, b in zip(leaves(resumed), leaves(uninterrupted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert log.read_text() == (whole / 'metrics.jsonl').read_text()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_leaves_at_once(number):
    program = (
        'import os, sys, time\n'
        'from handpose_jax.process.interruption import StopRequest\n'
        'with StopRequest() as stop:\n'
        f'    os.kill(os.getpid(), {int(number)})\n'
        '    assert stop.requested\n'
        f'    os.kill(os.getpid(), {int(number)})\n'
        '    time.sleep(60)\n'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, timeout=30)
    assert done.returncode == 128 + number
    assert b'once more to leave at once' in done.stderr


def test_signals_are_as_before_after_a_run():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interruption.StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_run_in_the_same_workdir_is_told_and_writes_nothing(tmp_path):
    with (
        lock.hold(tmp_path / 'w'),
        pytest.raises(ValueError, match=r'process \d+ on .* is writing there'),
    ):
        train.train(smoke_config(), str(tmp_path / 'w'))
    assert list((tmp_path / 'w').iterdir()) == []


@pytest.mark.slow
def test_data_that_moved_is_the_same_and_data_that_changed_is_named(tmp_path):
    write_folder(tmp_path / 'own', 8)
    config = {'data.name': 'folder', 'data.root': str(tmp_path / 'own'), 'eval_split': 'val'}
    workdir = str(tmp_path / 'w')
    train.train(smoke_config(**config), workdir, stop_at=1)
    (tmp_path / 'own').rename(tmp_path / 'moved')
    config['data.root'] = f'{tmp_path}/moved/'
    train.train(smoke_config(**config), workdir, stop_at=2)
    path = tmp_path / 'moved' / 'train_3.png'
    cv2.imwrite(str(path), cv2.imread(str(path)), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    with pytest.raises(ValueError, match=r'(?s)has changed.*train_3\.png.*--accept_changed_data'):
        train.train(smoke_config(**config), workdir)
    train.train(smoke_config(**config), workdir, accept_changed_data=True)
    starts = json.loads((tmp_path / 'w' / 'run.json').read_text())['starts']
    assert [start['step'] for start in starts] == [0, 1, 2]
    assert 'data_before' in starts[2]
    # A run that is finished needs no data to go on with.
    path.write_bytes(path.read_bytes() + b'\0' * 9)
    train.train(smoke_config(**config), workdir)


def test_another_config_in_the_same_workdir_is_refused(trained):
    with pytest.raises(ValueError, match=r'optimizer\.learning_rate'):
        train.train(smoke_config(**{'optimizer.learning_rate': 0.5}), str(trained))


def test_evaluation_needs_only_the_workdir_and_repeats_the_numbers(trained):
    before = json.loads((trained / 'metrics.json').read_text())
    (trained / 'metrics.json').unlink()
    result = subprocess.run(
        [sys.executable, '-m', 'handpose_jax.main', '--mode', 'evaluate', '--workdir', trained],
        capture_output=True,
        text=True,
        cwd=trained,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert 'EPE median' in result.stdout
    assert json.loads((trained / 'metrics.json').read_text()) == before


def test_predictions_are_those_of_the_evaluation(trained, tmp_path):
    """predict.py, given the evaluation's boxes, must find the same points in the photograph."""
    config = smoke_config()
    source = SketchSource(count=config.data.count, split='val')
    sample = source[0]
    points = sample['keypoints']
    box = np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float64)
    found = handpose_jax.load(trained)(sample['image'], box=box)
    rows = json.loads((trained / 'predictions.json').read_text())
    assert rows[0]['id'] == source.image_id(0)
    np.testing.assert_allclose(found.keypoints, rows[0]['keypoints'], atol=0.02)
    np.testing.assert_allclose(found.confidence, rows[0]['confidence'], atol=1e-3)


def test_left_hand_is_the_mirrored_right_hand(trained):
    predictor = handpose_jax.load(trained)
    image = SketchSource(count=1)[0]['image']
    right = predictor(image)
    left = predictor(np.ascontiguousarray(image[:, ::-1]), side='left')
    width = image.shape[1]
    np.testing.assert_allclose(left.keypoints[:, 0], width - 1 - right.keypoints[:, 0], atol=0.01)
    np.testing.assert_allclose(left.keypoints[:, 1], right.keypoints[:, 1], atol=0.01)


def test_predict_command_writes_overlay_and_json(trained, tmp_path, capsys):
    photo = tmp_path / 'my photo.jpg'
    cv2.imwrite(str(photo), np.full((90, 160, 3), 128, np.uint8))
    out = tmp_path / 'out'
    predict.main(
        ['--workdir', str(trained), str(photo), '--out', str(out), '--box', '10,20,100,80']
    )
    assert capsys.readouterr().out.strip() == str(out / 'my photo.png')
    record = json.loads((out / 'my photo.json').read_text())
    assert len(record['keypoints']) == 21
    # Without a calibration nobody knows how far a keypoint can be trusted.
    keypoint = record['keypoints'][0]
    assert set(keypoint) == {'name', 'x', 'y', 'confidence', 'probability_correct', 'std_px'}
    assert keypoint['probability_correct'] is None
    assert keypoint['std_px'] is None
    assert record['presence'] is None
    overlay = cv2.imread(str(out / 'my photo.png'))
    assert overlay.shape[1] / overlay.shape[0] == pytest.approx(160 / 90, rel=0.01)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['missing.jpg'], 'missing.jpg'),
        (['text.jpg'], 'text.jpg'),
        (['good.png', '--box', '5,5,5,9'], 'x0 < x1'),
        (['good.png', '--box', '500,500,600,600'], 'beside the picture'),
        (['good.png', 'sub/good.png'], 'several photographs are named good'),
    ],
)
def test_predict_names_what_is_wrong_and_writes_nothing(
    trained, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.jpg').write_text('not an image')
    (tmp_path / 'sub').mkdir()
    for name in ('good.png', 'sub/good.png'):
        cv2.imwrite(name, np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(SystemExit, match=message):
        predict.main([*arguments, '--workdir', str(trained), '--out', 'out'])
    assert not list(tmp_path.glob('out/*'))


def test_predict_replaces_its_own_results_and_nothing_else(trained, tmp_path):
    photo = tmp_path / 'a.jpg'
    cv2.imwrite(str(photo), np.full((32, 32, 3), 128, np.uint8))
    for _ in range(2):
        predict.main([str(photo), '--workdir', str(trained), '--out', str(tmp_path)])
    for name in ('a.png', 'a.json'):
        own = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(own.replace(b'handpose_jax', b'another tool'))
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(SystemExit, match=f'{name}: is there and was not made by handpose_jax'):
            predict.main([str(photo), '--workdir', str(trained), '--out', str(tmp_path)])
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        (tmp_path / name).write_bytes(own)


def test_predict_goes_on_after_a_damaged_photograph_and_tells_at_the_end(trained, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ('a.png', 'b.png', 'c.png'):
        cv2.imwrite(str(tmp_path / name), noise)
    damaged = (tmp_path / 'b.png').read_bytes()
    (tmp_path / 'b.png').write_bytes(damaged[: len(damaged) // 2])
    photos = [str(tmp_path / name) for name in ('a.png', 'b.png', 'c.png')]
    with pytest.raises(SystemExit, match=r'error: .*b\.png'):
        predict.main([*photos, '--workdir', str(trained), '--out', str(tmp_path / 'out')])
    found = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert found == ['a.json', 'a.png', 'c.json', 'c.png']


def test_a_hand_cut_by_the_left_edge_has_a_box_that_begins_with_minus(trained, tmp_path):
    photo = tmp_path / 'a.png'
    cv2.imwrite(str(photo), np.zeros((64, 64, 3), np.uint8))
    out = tmp_path / 'out'
    predict.main([str(photo), '--box', '-5,-5,60,60', '--workdir', str(trained), '--out', str(out)])
    assert (out / 'a.json').exists()


def test_evaluating_on_other_data_takes_the_network_from_the_workdir(trained, tmp_path):
    """And puts what it finds beside what the run says of itself."""
    workdir = tmp_path / 'w'
    shutil.copytree(trained, workdir)
    before = (workdir / 'metrics.json').read_bytes()
    write_folder(tmp_path / 'own', 3)
    other = smoke_config(size=96, eval_split='val')
    other.update_from_flattened_dict(
        {'data.name': 'folder', 'data.root': str(tmp_path / 'own'), 'model.width': 1.0}
    )
    summary, folder = evaluate.evaluate(str(workdir), other)
    assert summary['hands'] == 3
    assert [note for note in summary['notes'] if 'size was taken' in note]
    assert (workdir / 'metrics.json').read_bytes() == before
    assert folder.parent == workdir / 'evaluations'
    assert folder.name.startswith('own_val_box_')
    assert json.loads((folder / 'metrics.json').read_text())['hands'] == 3
    # The same network on the same pictures gives the same numbers, whatever config names them.
    again = smoke_config(eval_split='val')
    again.update_from_flattened_dict({'data.name': 'folder', 'data.root': str(tmp_path / 'own')})
    assert evaluate.evaluate(str(workdir), again)[0]['epe_mean_224'] == summary['epe_mean_224']
    assert report.write_report([folder], tmp_path / 'report').exists()


def test_predict_refuses_a_folder_without_a_run(tmp_path):
    photo = tmp_path / 'a.png'
    cv2.imwrite(str(photo), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(SystemExit, match='nothing was trained here'):
        predict.main([str(photo), '--workdir', str(tmp_path), '--out', str(tmp_path / 'out')])


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--config.batch_sise=3'], 'batch_size'),
        (['--config.batch_size=many'], 'batch_size'),
        (['--config.data.root=missing'], 'annotations.json'),
    ],
)
def test_command_line_names_bad_settings(tmp_path, flags, message):
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'handpose_jax.main'),
            *('--config', ROOT / 'configs' / 'real_hands.py', '--workdir', tmp_path / 'w', *flags),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode != 0
    assert message in result.stderr
