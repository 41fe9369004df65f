"""benchmarks/results_file.py: what every results file says of itself; and README's tables."""

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import performance_table
import pytest
import readme_table
import results_file

from handpose_jax.training import provenance

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(results_file.RESULTS.glob('*.json'))


def test_the_head_says_what_ran_when_where_and_on_which_code(monkeypatch, tmp_path):
    monkeypatch.setenv('HANDPOSE_ASSETS', '/home/me/photos')
    first = results_file.head('accuracy/x', ['x', 'two sets=/home/me/w'], assets=True)
    assert tuple(first) == results_file.HEAD
    assert first['command'] == "HANDPOSE_ASSETS=DIR python benchmarks/accuracy.py x 'two sets=W'"
    assert first['date'] == datetime.date.today().isoformat()
    assert first['commit'] == provenance.git_revision()
    assert first['machine']['packages']['jax'] == importlib.metadata.version('jax')
    path = tmp_path / 'new' / 'x.json'
    assert results_file.write(path, first, {'figure': 1}) == json.loads(path.read_text())
    assert json.loads(path.read_text()) == {**first, 'figure': 1}
    assert results_file.head('x', [])['command'] == 'python benchmarks/x.py'


@pytest.mark.parametrize(
    ('word', 'told'),
    [
        ('/home/me/hand.tflite', 'DIR/hand.tflite'),
        ('--output=/home/me/x.json', '--output=DIR/x.json'),
        ('label=runs/me', 'label=W'),
        ('/home/me/lr=0.1', 'DIR/lr=0.1'),
        ('--limit=64', '--limit=64'),
        ('112', '112'),
    ],
)
def test_a_command_holds_no_folder_of_this_machine(word, told):
    assert results_file.command_words([word]) == [told]


def test_a_config_is_told_without_the_folders_of_its_paths():
    data = {'root': '/home/me/rhd', 'rigs': ('/a/one.glb', 'bundled'), 'scale': 2.2, 'photos': ''}
    told = results_file.without_folders({'init_from': None, 'data': {'sources': [data]}})
    expected = {'root': 'rhd', 'rigs': ['one.glb', 'bundled'], 'scale': 2.2, 'photos': ''}
    assert told == {'init_from': None, 'data': {'sources': [expected]}}


def test_runs_that_stay_keep_the_head_they_were_measured_under(monkeypatch, tmp_path):
    flags = argparse.Namespace(output=tmp_path / 'x.json')

    def measure(runs, **first):
        monkeypatch.setattr(results_file, 'head', lambda name, assets: {'benchmark': name, **first})
        flags.runs = runs
        return results_file.measure_runs('x', flags, lambda workdir: {'of': workdir})

    measure([('a', 'A'), ('b', 'B')], date='monday')
    measure([('b', 'B2')], date='tuesday')
    found = measure([('c', 'C')], date='friday')
    assert found == json.loads(flags.output.read_text())
    assert found['date'] == 'friday'
    assert found['runs'] == {
        'a': {'of': 'A', 'measured': {'date': 'monday'}},
        'b': {'of': 'B2', 'measured': {'date': 'tuesday'}},
        'c': {'of': 'C'},
    }
    with pytest.raises(SystemExit, match='error: invalid literal'):
        results_file.measure_runs('x', flags, int)


def test_a_run_is_named_by_its_label_or_its_workdir():
    parser = results_file.parser('a script', 'x')
    results_file.add_runs(parser)
    flags = parser.parse_args(['two sets=runs/w', 'runs/v'])
    assert flags.runs == [('two sets', 'runs/w'), ('v', 'runs/v')]
    assert flags.output == results_file.RESULTS / 'x.json'


@pytest.mark.parametrize('path', COMMITTED, ids=lambda path: path.stem)
def test_every_committed_file_is_readable_and_says_where_it_was_measured(path):
    results = results_file.read(path.stem)
    assert ' cores of ' in results_file.machine_of(results)
    datetime.date.fromisoformat(results['date'])
    text = path.read_text()
    assert not [place for place in ('/home', '/root', '/tmp', '/work') if place in text]


@pytest.mark.parametrize('name', ['performance_table', 'latency_table'])
def test_readme_is_up_to_date(name):
    script = ROOT / 'benchmarks' / f'{name}.py'
    done = subprocess.run([sys.executable, script, '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def edited(monkeypatch):
    """Committed results that a test may change: a function from names to what is read."""
    files = {path.stem: json.loads(path.read_text()) for path in COMMITTED}
    monkeypatch.setattr(results_file, 'read', files.get)
    return files


def test_a_changed_result_is_noticed_and_what_stands_around_the_table_stays(edited):
    readme = (ROOT / 'README.md').read_text()
    begin = performance_table.BEGIN
    assert readme_table.replaced(readme, begin, performance_table.table()) == readme
    edited['throughput']['train_112']['images_per_s'] += 1
    changed = readme_table.replaced(readme, begin, performance_table.table())
    assert changed != readme
    before, _, after = readme.partition(begin)
    assert changed.startswith(before)
    assert changed.endswith(after.partition(readme_table.END)[2])
    with pytest.raises(ValueError, match='performance'):
        readme_table.replaced('# handpose_jax\n', begin, '')


def test_rows_name_their_machine_where_it_differs_from_the_neighbours(edited):
    assert results_file.machine_notes([]) == []
    assert results_file.machine_notes(['a', 'a']) == ['', '']
    assert results_file.machine_notes(list('aabba')) == [' (a)', '', ' (b)', '', ' (a)']
    assert 'cores' not in performance_table.table().split('Measured on')[0]
    other = {**edited['rendering']['machine'], 'cores': 64, 'device': 'NVIDIA X'}
    edited['rendering']['machine'] = other
    edited['throughput']['train_224']['measured'] = {'machine': other}
    named = [' cores of ' in row for row in performance_table.table().splitlines()[2:7]]
    # Training at 112 and 224 px, photographs, rendering, the first step.
    assert named == [True, True, True, True, True]
    assert '64 cores of' in performance_table.table().splitlines()[3]
    assert 'with NVIDIA X) |' in performance_table.table().splitlines()[5]
    del edited['throughput']['train_224']['measured']
    named = [' cores of ' in row for row in performance_table.table().splitlines()[2:7]]
    assert named == [True, False, False, True, True]


def test_a_table_whose_results_are_missing_says_which():
    with pytest.raises(ValueError, match=r'results/nothing\.json: no such file'):
        results_file.read('nothing')
    assert results_file.read('nothing', optional=True) == {}
