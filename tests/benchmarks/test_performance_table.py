"""README's performance table says what the results files say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'benchmarks' / 'performance_table.py'


with pytest.MonkeyPatch.context() as context:
    context.syspath_prepend(str(SCRIPT.parent))
    import performance_table
    import readme_table


def test_readme_is_up_to_date():
    done = subprocess.run([sys.executable, SCRIPT, '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_changed_result_is_noticed(monkeypatch):
    readme = (ROOT / 'README.md').read_text()
    assert performance_table.replaced(readme) == readme
    read = performance_table._read

    def other(name):
        results = read(name)
        if name == 'throughput':
            results['train_112']['images_per_s'] += 1
        return results

    monkeypatch.setattr(performance_table, '_read', other)
    changed = performance_table.replaced(readme)
    assert changed != readme
    # Only the table: what stands around it stays.
    before, _, after = readme.partition(performance_table.BEGIN)
    assert changed.startswith(before)
    assert changed.endswith(after.partition(readme_table.END)[2])


def test_a_readme_without_a_place_for_it_is_an_error():
    with pytest.raises(ValueError, match='performance'):
        performance_table.replaced('# handpose_jax\n')
