"""The command line where there is no home, no stdout, no Unicode or no user, as in containers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 54321
"""A user that /etc/passwd does not know."""


def run(words, *, environment=None, without=(), before=(), after='', cwd=None):
    """Runs a command of the package by a shell, which closes and connects what is asked for."""
    kept = {key: value for key, value in os.environ.items() if key not in without}
    command = [*before, sys.executable, '-m', 'handpose_jax', *words]
    return subprocess.run(
        ['bash', '-o', 'pipefail', '-c', f'"$@" {after}', 'bash', *command],
        env={**kept, 'PYTHONPATH': str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        encoding='utf-8',
    )


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('words', [['--help'], ['predict', '--help']])
def test_a_reader_that_goes_away_is_no_error(words, unbuffered):
    done = run(words, after='| true', environment={'PYTHONUNBUFFERED': unbuffered})
    assert done.stderr == ''
    assert done.returncode in (0, 1)
    done = run(words, after='| head -1', environment={'PYTHONUNBUFFERED': unbuffered})
    assert done.stderr == ''
    assert done.stdout.startswith('usage: handpose')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='only Linux has /dev/full')
@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_full_disk_behind_stdout_is_one_sentence(unbuffered):
    done = run(['--help'], after='> /dev/full', environment={'PYTHONUNBUFFERED': unbuffered})
    assert done.returncode == 1
    assert done.stderr == 'error: standard output cannot be written: No space left on device\n'


@pytest.mark.parametrize('after', ['>&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_closed_streams_are_no_error(after):
    done = run(['--version'], after=after)
    assert (done.returncode, done.stderr) == (0, '')


def test_a_file_does_not_get_the_number_of_a_closed_stdout(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import os\nfrom handpose_jax.process import streams\n'
        'with streams.guarded():\n'
        f'    with open({str(tmp_path / "file")!r}, "w") as file:\n'
        '        os.write(1, b"from a library")\n',
        encoding='utf-8',
    )
    subprocess.run(
        ['bash', '-c', '"$@" >&-', 'bash', sys.executable, str(script)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        check=True,
    )
    assert (tmp_path / 'file').read_bytes() == b''


ASCII = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}


@pytest.mark.parametrize(
    'environment',
    [{'LC_ALL': 'C'}, {'LC_ALL': 'POSIX'}, ASCII, {'PYTHONIOENCODING': 'ascii'}],
    ids=['C', 'POSIX', 'ascii locale', 'ascii streams'],
)
def test_a_name_that_the_locale_cannot_write_is_told(environment, tmp_path):
    words = ['predict', '--workdir', 'W', 'Händchen.jpg', '--out', str(tmp_path)]
    done = run(words, environment=environment)
    assert done.returncode == 1
    assert done.stderr.startswith('error: H')
    assert 'no such image file' in done.stderr
    assert done.stderr.count('\n') == 1


def nobody():
    """The beginning of a command that runs as a user without a name, who may read all files."""
    if shutil.which('setpriv') is None or os.getuid() != 0:
        pytest.skip('only root can run a command as another user, by setpriv of util-linux')
    # The interpreter may lie in a home that others cannot enter.
    rights = [f'--{kind}-caps=+dac_read_search' for kind in ('inh', 'ambient')]
    before = ['setpriv', f'--reuid={NOBODY}', '--clear-groups', *rights]
    if subprocess.run([*before, 'true'], capture_output=True, check=False).returncode:
        pytest.skip('this container does not let root hand on the right to read files')
    return before


HOMELESS = {'without': ('HOME', 'XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR')}


def test_a_user_without_a_name_or_home_has_all_commands(tmp_path):
    for words in (['--version'], ['train', '--help'], ['prepare', '--help']):
        done = run(words, before=nobody(), cwd=tmp_path, **HOMELESS)
        assert done.returncode == 0, done.stderr
        assert 'handpose' in done.stdout


def test_without_a_cache_a_folder_is_asked_for(tmp_path):
    words = ['prepare', 'synthetic_hands', '--count', '1']
    done = run(words, before=nobody(), cwd=tmp_path, **HOMELESS)
    assert done.returncode == 1
    assert done.stderr.startswith('error: this user has no home folder to keep a cache in')
    assert done.stderr.count('\n') == 1
    for environment in ({'XDG_CACHE_HOME': '/proc/none'}, {'HOME': '/proc/none'}):
        done = run(words, environment=environment, without=HOMELESS['without'])
        assert done.returncode == 1
        assert 'cannot write there' in done.stderr
        assert done.stderr.count('\n') == 1


def test_results_go_to_a_folder_that_can_be_written(tmp_path):
    (tmp_path / 'closed').mkdir(mode=0o500)
    words = ['train', '--config', 'quickstart:smoke']
    done = run(words, before=nobody(), cwd=tmp_path / 'closed', **HOMELESS)
    assert done.returncode == 1
    assert 'cannot write there (Permission denied)' in done.stderr
    assert done.stderr.count('\n') == 1
