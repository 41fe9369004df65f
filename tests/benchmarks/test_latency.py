"""benchmarks/latency.py and its parts: what the figures mean, on cases worked out by hand.

No time is asserted. What the phone and adb answer follows the public sources and logs of LiteRT's
benchmark_model, versions with and without percentiles; no phone was attached.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import latency
import latency_table
import numpy as np
import pytest
import random_weights
import readme_table
import results_file
from latency_parts import android, artefacts, compare, model_files, report
from latency_parts import turns as latency_turns
from latency_parts import worker as latency_worker

from handpose_jax import models
from handpose_jax.config import load
from handpose_jax.export import graph, onnx, tflite
from handpose_jax.models import complexity

ROOT = Path(__file__).parents[2]
SIZE = 32


# --- figures --------------------------------------------------------------------------------------

CONTENDER = {'name': 'ours', 'backend': 'jax', 'precision': 'f32', 'size': 224, 'own': True}
CONTENDER |= {'macs': 1_000_000_000, 'bytes': 10}
FACTS = {'import_s': 1.0, 'load_s': 0.5, 'first_call_ms': 20.0, 'variants': ['whole', 'network']}
FACTS |= {'peak_memory_mb': 99.0, 'memory_before_mb': 26.0}


def turn(whole, network=None, cores=1.0):
    milliseconds = {'whole': list(whole)}
    if network:
        milliseconds['network'] = list(network)
    beside = [1.04 * ms for ms in network or ()]
    return {'milliseconds': milliseconds, 'beside': beside, 'cores_used': cores}


def summary(turns, reference=None, gflops=None, batch=1, **changed):
    gflops = gflops or [100.0] * len(turns)
    shared = {'batch': batch, 'gflops': gflops, 'reference': reference}
    return latency_turns.summarise({**CONTENDER, **changed}, FACTS, turns, **shared)


def test_percentiles_are_of_all_calls_of_all_rounds():
    calls = np.random.default_rng(0).gamma(3, 10, 200)
    row = summary([turn(part) for part in np.split(calls, 10)], batch=4)
    ordered = np.sort(calls)
    for percent in (50, 90, 95, 99):
        place = percent / 100 * 199
        low = int(place)
        expected = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
        assert row[f'p{percent}_ms'] == pytest.approx(expected, abs=6e-4)
    assert row['calls'] == 200
    assert row['frames_per_s'] == pytest.approx(4000 / row['p50_ms'], abs=0.05)


def test_shares_and_ratios_are_of_what_stood_in_the_same_round():
    # The machine is half as fast in the second round: no share or ratio may see it.
    turns = [turn([50, 52, 54], [40, 40, 40]), turn([104, 104, 104], [80, 80, 80])]
    reference = [turn([26] * 3, [20] * 3), turn([52] * 3, [40] * 3)]
    row = summary(turns, reference, gflops=[100.0, 50.0])
    # 2 GFLOP in 52 ms are 38.46 GFLOP/s of 100; and in 104 ms 19.23 of 50.
    assert row['share_of_matmul'] == pytest.approx(0.385, abs=5e-4)
    assert row['network']['share_of_matmul'] == pytest.approx(0.5)
    assert row['ratio_to_tflite'] == pytest.approx(2)
    assert row['network']['ratio_to_tflite'] == pytest.approx(2)
    # The share is of the calls beside the network's, not of those that came one after the other.
    assert row['decode']['share_of_network'] == pytest.approx(0.04)
    assert row['decode']['ms'] == pytest.approx((1.6 + 3.2) / 2)
    assert row['round_ms'] == [52, 104]


def test_everyone_has_a_turn_in_each_round_and_nobody_is_always_first():
    said = []
    names = 'abc'
    turns = {
        name: (lambda backwards, name=name: said.append((name, backwards)) or len(said))
        for name in names
    }
    found = latency_turns.alternate(turns, rounds=6, pause=0)
    rounds = [said[start : start + 3] for start in range(0, 18, 3)]
    assert all(sorted(name for name, _ in row) == list(names) for row in rounds)
    first = [row[0][0] for row in rounds]
    assert {first.count(name) for name in names} == {2}
    assert [row[0][1] for row in rounds] == [False, True] * 3
    # What came back is in the order of the rounds.
    assert all(values == sorted(values) and len(values) == 6 for values in found.values())


def test_the_environment_sets_the_threads_and_no_cache():
    given = {'JAX_COMPILATION_CACHE_DIR': 'somewhere', 'XLA_FLAGS': '--a', 'HOME': 'h'}
    one = latency_turns.worker_environment(given, 1, 'cpu')
    assert one['XLA_FLAGS'] == '--a --xla_cpu_multi_thread_eigen=false'
    assert (one['NPROC'], one['JAX_PLATFORMS'], one['HOME']) == ('1', 'cpu', 'h')
    assert 'JAX_COMPILATION_CACHE_DIR' not in one
    many = latency_turns.worker_environment(given, 3, 'gpu')
    assert (many['NPROC'], many['XLA_FLAGS']) == ('3', '--a')
    assert 'JAX_PLATFORMS' not in many


CASE = {'name': 'x', 'threads': 1, 'device': 'cpu'}


def test_a_worker_that_dies_is_an_error_with_its_last_words():
    dying = [sys.executable, '-c', 'input(); raise RuntimeError("out of luck")']
    with pytest.raises(ValueError, match='x: the process ended: RuntimeError: out of luck'):
        latency_turns.Worker(CASE, dying)
    refusing = [sys.executable, '-c', 'input(); print(\'{"error": "no such file"}\')']
    with pytest.raises(ValueError, match='x: no such file'):
        latency_turns.Worker(CASE, refusing)


def test_a_turn_calls_the_whole_in_a_row_and_the_network_beside_it():
    said = []
    variants = {name: (lambda name=name: said.append(name)) for name in ('whole', 'network')}
    found = latency_worker.take_turn(variants, 4, backwards=True)
    assert said == ['network', 'whole'] * 3 + ['whole'] * 5
    calls = {name: len(times) for name, times in found['milliseconds'].items()}
    assert calls == {'whole': 4, 'network': 2}
    assert len(found['beside']) == 2
    assert found['cores_used'] >= 0


# --- comparing ------------------------------------------------------------------------------------


def results(milliseconds, gflops, processor='p', name='tflite'):
    row = {'name': name, 'backend': name, 'size': 224, 'batch': 1, 'round_ms': milliseconds}
    group = {'threads': 1, 'device': 'cpu', 'round_gflops': gflops, 'rows': [row]}
    return {'groups': [group], 'machine': {'processor': processor, 'cores': 2}}


STEADY = [10.0, 10.1, 9.9, 10.0, 10.05, 9.95]
PEAK = [100.0] * 6


@pytest.mark.parametrize(
    ('milliseconds', 'gflops', 'slower'),
    [
        (STEADY, PEAK, False),
        ([1.05 * ms for ms in STEADY], PEAK, True),
        ([0.8 * ms for ms in STEADY], PEAK, False),
        # Both runs together differ by 2% from round to round: less is no finding.
        ([1.015 * ms for ms in STEADY], PEAK, False),
        # The whole machine is slower: the matrix product says so.
        ([1.5 * ms for ms in STEADY], [100 / 1.5] * 6, False),
        # Only the matrix product is faster.
        (STEADY, [150.0] * 6, False),
        # A run so noisy that a fifth is nothing.
        ([8.0, 16.0, 12.0, 9.0, 15.0, 12.0], PEAK, False),
    ],
)
def test_slower_is_what_exceeds_the_noise_of_both_runs(milliseconds, gflops, slower):
    (row,) = compare.compare(results(STEADY, PEAK), results(milliseconds, gflops))
    assert row['slower'] is slower
    assert row['time_ratio'] == pytest.approx(np.median(milliseconds) / 10, abs=1e-3)
    assert ('SLOWER' in compare.table([row])) is slower


def test_runs_that_cannot_be_compared_are_an_error():
    with pytest.raises(ValueError, match="processor 'p', this one has 'q'"):
        compare.compare(results(STEADY, PEAK), results(STEADY, PEAK, processor='q'))
    with pytest.raises(ValueError, match='nothing in the earlier run'):
        compare.compare(results(STEADY, PEAK), results(STEADY, PEAK, name='onnx'))


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--threads 0', '--threads: expected 1 or more'),
        ('--device gpu', '--device gpu: only with --backend jax'),
        ('--backend android', '--backend android: needs --benchmark_model'),
        ('--model nothing.tflite', '--model nothing.tflite: expected a .tflite or .onnx file'),
        ('--compare nothing.json', '--compare nothing.json: cannot be read'),
        ('--backend jax --precision int8', 'jax: only in f32'),
        ('--backend jax --config nothing.py', 'nothing.py: no such config'),
        ('--pin --threads 4096', '--pin: expected at most'),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, 'in_fresh_process', lambda f, *a, **k: f(*a, **k))
    assert latency.main([*arguments.split(), '--output', str(tmp_path / 'x.json')]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ')
    assert message in error


def test_a_missing_runtime_is_an_error_by_name_and_a_line_among_all(monkeypatch):
    missing = {'onnx': ['onnxruntime']}
    monkeypatch.setattr(artefacts, 'missing_modules', lambda b, make: missing.get(b, []))
    wanted, skipped = latency.choose(latency.read_flags(['--backend', 'all']))
    assert ('tflite', 'f32') in wanted
    assert not any(backend == 'onnx' for backend, _ in wanted)
    assert skipped == ['onnx: not installed: onnxruntime; see docs/latency.md']
    with pytest.raises(ValueError, match='onnx: not installed'):
        latency.choose(latency.read_flags(['--backend', 'onnx']))


def test_what_a_workdir_lacks_is_an_error_by_name_and_a_line_among_all(monkeypatch, tmp_path):
    monkeypatch.setattr(artefacts, 'missing_modules', lambda backend, make: [])
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'handpose_int8.tflite').write_bytes(b'')
    words = ['--workdir', str(tmp_path), '--precision', 'f32', 'int8', '--backend']
    wanted, skipped = latency.choose(latency.read_flags([*words, 'all']))
    assert wanted == [('jax', 'f32'), ('tflite', 'int8')]
    assert len(skipped) == 5
    assert skipped[0].startswith('tflite: handpose_f32.tflite is not in W/export')
    with pytest.raises(ValueError, match=r'handpose\.stablehlo is not in W/export'):
        latency.choose(latency.read_flags([*words, 'stablehlo']))
    phone = ['android', '--benchmark_model', 'b', '--precision', 'int8']
    assert latency.choose(latency.read_flags([*words, *phone])) == ([('tflite', 'int8')], [])


@pytest.mark.parametrize(
    ('arguments', 'name'),
    [
        ('--backend all', 'latency.json'),
        ('', 'latency_tflite.json'),
        ('--backend jax --device gpu', 'latency_jax_gpu.json'),
        ('--backend android --benchmark_model b', 'latency_android.json'),
        ('--model hand.tflite', 'latency_hand.json'),
    ],
)
def test_results_do_not_overwrite_each_other(arguments, name):
    assert latency.read_flags(arguments.split()).output.name == name


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f'not installed: {", ".join(missing)}')


needs_onnx = needs('onnx', 'onnxruntime')
needs_tflite = needs('tensorflow', 'ai_edge_litert')


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['jax', pytest.param('tflite', marks=needs_tflite)])
def test_the_command_measures_random_weights(backend, tmp_path):
    output = tmp_path / 'latency.json'
    words = f'--backend {backend} --config configs/quickstart.py:smoke --size 64'
    words += ' --rounds 2 --calls 2 --output'
    done = subprocess.run(
        [sys.executable, 'benchmarks/latency.py', *words.split(), str(output)],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found['weights'] == 'random'
    assert found['command'] == f'python benchmarks/latency.py {words} DIR/latency.json'
    assert str(ROOT) not in output.read_text()
    assert str(tmp_path) not in output.read_text()
    (group,) = found['groups']
    (row,) = group['rows']
    model = models.build(**{**found['model'], 'implementation': 'lax'})
    assert row['macs'] == complexity.count_macs(model, 64)
    assert (row['calls'], len(row['round_ms']), len(group['round_gflops'])) == (4, 2, 2)
    assert 0 < row['p50_ms'] <= row['p99_ms']
    assert row['network']['p50_ms'] > 0
    # A process with a runtime in it, and one without anything.
    assert row['peak_memory_mb'] > row['memory_before_mb'] * (2 if backend == 'jax' else 1) > 0
    assert 'Weights: random.' in done.stdout
    assert '<svg' in output.with_suffix('.svg').read_text()


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def small():
    """A config and graph of a small network, and how many multiply-adds it has."""
    config = load(ROOT / 'configs' / 'cmu.py:smoke')
    with config.unlocked():
        config.size = SIZE
    model = models.build(**config.model.to_dict())
    made = graph.make_graph(config, random_weights.random_variables(model))
    lax = models.build(**{**config.model.to_dict(), 'implementation': 'lax'})
    return made, complexity.count_macs(lax, SIZE)


def check_file(path, run, small, tmp_path):
    made, macs = small
    assert model_files.count_macs(path) == macs
    assert model_files.input_side(path) == SIZE
    shorter = tmp_path / f'network{path.suffix}'
    assert model_files.network_only(path, shorter)
    assert not model_files.network_only(shorter, tmp_path / 'again')
    images = np.random.default_rng(0).uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)
    whole, alone = run(path, images), run(shorter, images)
    assert [len(whole), len(alone)] == [2, 1]
    maps = next(array for array in whole if array.ndim == 4)
    np.testing.assert_array_equal(alone[0], maps)
    np.testing.assert_allclose(
        maps, made.heatmaps(jnp.asarray(images)), atol=1e-4 * np.abs(maps).max()
    )


@needs_onnx
def test_an_onnx_file_says_how_much_it_computes_and_gives_its_network(small, tmp_path):
    import onnxruntime

    def run(path, images):
        return onnxruntime.InferenceSession(str(path)).run(None, {'images': images})

    path = tmp_path / 'whole.onnx'
    onnx.save(small[0], path)
    check_file(path, run, small, tmp_path)


@needs_tflite
def test_a_tflite_file_says_how_much_it_computes_and_gives_its_network(small, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    def run(path, images):
        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]['index'], images)
        interpreter.invoke()
        return [interpreter.get_tensor(row['index']) for row in interpreter.get_output_details()]

    path = tmp_path / 'whole.tflite'
    path.write_bytes(tflite.convert(small[0], 'f32'))
    check_file(path, run, small, tmp_path)


# --- phones ---------------------------------------------------------------------------------------

NEW_CPU = """INFO: STARTING!
INFO: XNNPACK delegate created.
INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely executed by \
the delegate.
INFO: Initialized session in 41.377ms.
INFO: count=27 first=31876 curr=18203 min=17989 max=31876 avg=18877.4 std=2591 p5=18010 \
median=18214 p95=21120

INFO: count=55 first=18305 curr=18166 min=17978 max=19902 avg=18240.5 std=271 p5=18012 \
median=18177 p95=18730

INFO: Inference timings in us: Init: 41377, First inference: 31876, Warmup (avg): 18877.4, \
Inference (avg): 18240.5
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only \
APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your \
discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=37.1055 overall=52.4102
"""
OLD_GPU = """INFO: Created 1 GPU delegate kernels.
Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
Initialized session in 1451.51ms.
count=59 first=11147 curr=8812 min=7794 max=11147 avg=8779.68 std=1115

count=110 first=8325 curr=10016 min=7863 max=10688 avg=8680.33 std=591

Inference timings in us: Init: 1451507, First inference: 11147, Warmup (avg): 8779.68, \
Inference (avg): 8680.33
Peak memory footprint (MB): init=63.4883 overall=63.5
"""
REFUSED = """INFO: Though NNAPI delegate is explicitly applied, the model graph will not be \
executed by the delegate.
INFO: count=1 curr=1357602 p5=1357602 median=1357602 p95=1357602

INFO: count=50 first=1249964 curr=1240143 min=1238588 max=1252566 avg=1.24027e+06 std=2565 \
p5=1238753 median=1239807 p95=1247415

INFO: Inference timings in us: Init: 5579, First inference: 1357602, Warmup (avg): 1.3576e+06, \
Inference (avg): 1.24027e+06
"""


def test_what_benchmark_model_prints_is_understood():
    calls = {'load_ms': 41.377, 'first_call_ms': 31.876, 'mean_ms': 18.2405, 'runs': 55}
    calls |= {'min_ms': 17.978, 'max_ms': 19.902, 'p50_ms': 18.177, 'p95_ms': 18.73}
    expected = {**calls, 'memory_mb': 52.4102, 'ran': 'all on XNNPACK'}
    assert android.parse(NEW_CPU) == expected
    old = android.parse(OLD_GPU)
    assert (old['mean_ms'], old['p50_ms'], old['memory_mb']) == (8.68033, None, 63.5)
    assert (old['runs'], old['ran']) == (110, 'all on GPU')
    refused = android.parse(REFUSED)
    assert refused['mean_ms'] == pytest.approx(1240.27)
    assert (refused['memory_mb'], refused['ran']) == (None, 'on the CPU: the delegate refused')
    partly = NEW_CPU.replace('completely executed by the delegate', 'partially executed by the '
                             'delegate w/ 3 delegate kernels')  # fmt: skip
    assert android.parse(partly)['ran'].startswith('partly: 3 parts')
    with pytest.raises(ValueError, match='it said: ERROR: Failed to load model'):
        android.parse('INFO: STARTING!\nERROR: Failed to load model\nINFO: bye\n')


HEAD = '* daemon started successfully\nList of devices attached\n'


@pytest.mark.parametrize(
    ('listing', 'serial', 'message'),
    [
        (HEAD + '\n', None, 'adb sees no device: attach a phone'),
        (HEAD + 'A1\tdevice\nB2\tdevice\n', None, 'several devices: choose one of A1, B2'),
        (HEAD + 'A1\tunauthorized\n', None, 'A1: the phone has not allowed this computer'),
        (HEAD + 'A1\toffline\n', None, 'A1: the phone does not answer'),
        (HEAD + 'A1\tno permissions (udev?); see [http://x]\n', None, 'A1: this user may not'),
        (HEAD + 'A1\thost\n', None, "A1: adb says 'host'"),
        (HEAD + 'A1\tdevice\n', 'C3', '--serial C3: no such device; attached: A1'),
    ],
)
def test_a_phone_that_cannot_be_used_is_one_line(listing, serial, message):
    with pytest.raises(ValueError, match=message.replace('?', r'\?')) as caught:
        android.choose_device(listing, serial)
    assert '\n' not in str(caught.value)


def test_the_phone_is_chosen():
    assert android.choose_device(HEAD + 'A1\tdevice\n', None) == 'A1'
    assert android.choose_device(HEAD + 'A1\toffline\nB2\tdevice\n', 'B2') == 'B2'


def test_without_adb_or_the_binary_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match='adb is not on the PATH'):
        android.Phone()
    with pytest.raises(ValueError, match='no such file'):
        android.check_binary(tmp_path / 'benchmark_model')
    (tmp_path / 'benchmark_model').write_text('#!/bin/sh\n')
    with pytest.raises(ValueError, match='expected a program for Android'):
        android.check_binary(tmp_path / 'benchmark_model')


ADB = """#!{python} -IS
import pathlib, sys
folder = pathlib.Path({folder!r})
words = sys.argv[1:]
with open(folder / 'log', 'a') as log:
    log.write(' '.join(words) + '\\n')
if words == ['devices']:
    print('List of devices attached\\nA1\\tdevice\\n')
    sys.exit()
assert words[:2] == ['-s', 'A1'], words
words = words[2:]
if words[0] == 'push':
    print(words[1] + ': 1 file pushed, 0 skipped. 35.1 MB/s (17000000 bytes in 0.462s)')
    sys.exit()
command = words[1]
for start, name in {answers!r}:
    if start in command:
        print((folder / name).read_text(), end='')
        sys.exit(0)
if command.startswith(('mkdir', 'chmod', 'rm', 'getprop')):
    sys.exit(0)
print('/system/bin/sh: ' + command.split()[0] + ': Permission denied', file=sys.stderr)
sys.exit(126)
"""


def test_a_phone_is_measured_through_adb(monkeypatch, tmp_path):
    answers = {
        'use_gpu': OLD_GPU,
        'use_nnapi': REFUSED,
        'num_threads=4': NEW_CPU,
        'ro.product.model': 'Pixel 8\n',
        'ro.product.manufacturer': 'Google\n',
        'ro.build.version.release': '15\n',
        'scaling_governor': 'sched_pixel\nsched_pixel\nschedutil\n',
        'dumpsys battery': 'Current Battery Service state:\n  level: 80\n  temperature: 285\n',
    }
    for number, text in enumerate(answers.values()):
        (tmp_path / str(number)).write_text(text)
    starts = [(start, str(number)) for number, start in enumerate(answers)]
    adb = tmp_path / 'adb'
    adb.write_text(ADB.format(python=sys.executable, folder=str(tmp_path), answers=starts))
    adb.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    contender = {'name': 'tflite', 'size': 224, 'path': str(tmp_path / 'handpose_f32.tflite')}
    phone = android.Phone()
    found = android.measure(phone, tmp_path / 'benchmark_model', [contender], threads=[1, 4])
    assert found['device'] | {'chip': '', 'abi': '', 'sdk': ''} == found['device']
    assert found['device']['model'] == 'Pixel 8'
    assert found['device']['governors'] == ['sched_pixel', 'schedutil']
    assert found['temperature_before'] == found['temperature_after'] == 28.5
    rows = {row['on']: row for row in found['rows']}
    assert list(rows) == ['CPU, 1 thread', 'CPU, 4 threads', 'GPU', 'NNAPI']
    # The fake knows no answer to one thread: that row has the reason, the others are there.
    assert 'Permission denied' in rows['CPU, 1 thread']['error']
    assert rows['CPU, 4 threads']['p50_ms'] == 18.177
    assert rows['GPU']['ran'] == 'all on GPU'
    assert rows['NNAPI']['ran'] == 'on the CPU: the delegate refused'
    log = (tmp_path / 'log').read_text().splitlines()
    folder = android.FOLDER
    assert log[:4] == [
        'devices',
        f'-s A1 shell mkdir -p {folder}',
        f'-s A1 push {tmp_path}/benchmark_model {folder}/benchmark_model',
        f'-s A1 shell chmod +x {folder}/benchmark_model',
    ]
    run = next(line for line in log if 'use_gpu' in line)
    assert f'{folder}/benchmark_model --graph={folder}/handpose_f32.tflite --num_runs=50' in run
    table = report.phone_table(found)
    assert 'Google Pixel 8, Android 15' in table
    assert '28.5 degrees' in table


# --- tables ---------------------------------------------------------------------------------------


def make_results():
    rows = []
    for name, milliseconds, own in (('tflite', 50.0, True), ('hand_landmark_full', 30.0, False)):
        turns = [turn([milliseconds] * 3, [milliseconds - 1] * 3) for _ in range(4)]
        rows.append(summary(turns, turns, [80.0] * 4, name=name, backend='tflite', own=own))
    shared = {'batch': 1, 'device': 'cpu', 'size': 224, 'round_gflops': [80.0] * 4}
    shared |= {'matmul_gflops': 80.0, 'matmul_lowest': 79.0, 'matmul_highest': 81.0}
    groups = [{**shared, 'threads': threads, 'rows': rows} for threads in (1, 2)]
    machine = {'processor': 'p', 'cores': 2}
    made = {'weights': 'random', 'groups': groups, 'machine': machine, 'skipped': ['onnx: why']}
    return {**made, 'targets': report.targets(made)}


def test_the_report_says_what_was_measured_and_what_was_not(tmp_path):
    made = make_results()
    # 2 GFLOP in 49 ms are 40.8 of 80 GFLOP/s.
    share = made['targets']['tflite_share_of_matmul']
    assert share['measured'] == pytest.approx(0.51)
    assert share['met']
    assert 'jax_ratio_to_tflite' not in made['targets']
    text = report.markdown(made)
    assert '| hand_landmark_full | 1.50 | 20.0 | 30.0 |' in text
    assert 'Target decode_share_of_network, at most 0.05: 0.040, met.' in text
    assert 'Not measured: onnx: why' in text
    assert 'busy' not in text
    made['groups'][0]['rows'][0]['cores_used'] = 0.5
    assert 'The machine was busy: one thread had 50% of a core' in report.markdown(made)
    for name in ('a.svg', 'b.svg'):
        report.plot(made, tmp_path / name)
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_the_table_stands_between_its_marks_and_follows_the_results(monkeypatch):
    files = {'latency': make_results()}
    monkeypatch.setattr(results_file, 'read', lambda name, optional=False: files.get(name, {}))

    def replaced(text):
        return readme_table.replaced(text, latency_table.BEGIN, latency_table.table())

    new = replaced(f'before\n{latency_table.BEGIN}old\n{readme_table.END}after\n')
    assert replaced(new) == new
    assert new.startswith(f'before\n{latency_table.BEGIN}| median ms')
    assert new.endswith(f'{readme_table.END}after\n')
    assert '| hand_landmark_full (peer) | 30.0 | 30.0 |' in new
    assert 'No GPU and no phone measured yet' in new
    files['latency']['groups'][1]['rows'][1]['p50_ms'] = 31.0
    assert replaced(new) != new
    resident = {**files['latency']['groups'][0]['rows'][0], 'resident': {'frames_per_s': 9000.0}}
    files['latency_jax_gpu'] = {
        'groups': [{'batch': 256, 'size': 224, 'rows': [resident]}],
        'machine': {'device': 'NVIDIA X'},
    }
    assert '| 256 | 50.0 | 20 | 9,000 |' in latency_table.table()
    assert 'No phone measured yet' in latency_table.table()
    with pytest.raises(ValueError, match='latency'):
        replaced('# handpose_jax\n')
