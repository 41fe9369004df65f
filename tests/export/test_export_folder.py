"""The folder of an export survives kills: the old one or the new one, whole."""

import subprocess
import sys

import pytest

from handpose_jax.export import folder

KILLED = """
import os, pathlib, shutil, sys
from handpose_jax.export import folder

if sys.argv[2] == 'renames':
    folder._exchange = lambda one, other: False
home, states = pathlib.Path(sys.argv[1]), set()


def look(workdir):
    target = workdir / 'export'
    if not target.exists():
        return 'none'
    texts = {name: (target / name).read_text() for name in ('export.json', 'a', 'b')}
    assert len(set(texts.values())) == 1, texts
    return texts['a']


def make(workdir, text):
    with folder.unfinished(workdir) as new:
        for name in ('a', 'b', 'export.json'):
            (new / name).write_text(text)
        folder.swap_in(new, workdir)


def die_at(number):
    left = [number]

    def hook(event, arguments):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)

    sys.addaudithook(hook)


def leaves(number):
    workdir = home / str(number)
    workdir.mkdir()
    make(workdir, 'old')
    (workdir / 'export_unfinished_1234').mkdir()
    child = os.fork()
    if not child:
        die_at(number)
        make(workdir, 'new')
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    after = look(workdir)
    with folder.unfinished(workdir):
        cleared = look(workdir)
    assert sorted(path.name for path in workdir.iterdir()) == ['export'], number
    states.add((after, cleared))
    make(workdir, 'next')
    assert look(workdir) == 'next'
    shutil.rmtree(workdir)
    return killed


number = 1
while leaves(number):
    number += 1
print(number, *sorted(states))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='renameat2 is of Linux')
@pytest.mark.parametrize('how', ['exchange', 'renames'])
def test_a_kill_at_any_moment_leaves_the_old_export_or_the_new_one(tmp_path, how):
    done = subprocess.run(
        [sys.executable, '-c', KILLED, str(tmp_path), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kills, *states = done.stdout.split(' ', 1)
    assert int(kills) > 20
    expected = [('new', 'new'), ('old', 'old')]
    # Where a disk cannot swap two folders, the next export puts the old one back.
    expected += [('none', 'old')] if how == 'renames' else []
    assert states == [' '.join(map(str, sorted(expected))) + '\n']


def test_a_failure_between_the_two_renames_puts_the_old_one_back(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, '_exchange', lambda one, other: False)
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'export.json').write_text('old')
    with pytest.raises(FileNotFoundError), folder.unfinished(tmp_path) as new:
        folder.swap_in(new.with_name('lost'), tmp_path)
    assert (tmp_path / 'export' / 'export.json').read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['export']


def test_hidden_files_are_nobodys(tmp_path):
    (tmp_path / 'export.json').write_text('{}')
    (tmp_path / '.DS_Store').write_bytes(b'')
    folder.check(tmp_path, ['a'])
    (tmp_path / 'b').write_bytes(b'')
    with pytest.raises(ValueError, match='b: was not written by an export, so it is not replaced'):
        folder.check(tmp_path, ['a'])
    folder.check(tmp_path, ['a', 'b'])
