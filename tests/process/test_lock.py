"""One process at a time writes into a folder."""

import json
import os
import subprocess
import sys

import pytest

from handpose_jax.process import lock

HOLD = """
import sys, time
from handpose_jax.process import lock
with lock.hold(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path / 'w')], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_is_told_who_is_there(tmp_path, holder):
    with (
        pytest.raises(ValueError, match=f'process {holder.pid} on .* is writing there'),
        lock.hold(tmp_path / 'w'),
    ):
        pass


def test_a_killed_process_bars_nobody(tmp_path, holder):
    holder.kill()
    holder.wait()
    with lock.hold(tmp_path / 'w'):
        assert json.loads((tmp_path / 'w' / lock.FILE).read_text())['process'] == os.getpid()
    assert list((tmp_path / 'w').iterdir()) == []


def test_it_is_let_go_of_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock.hold(tmp_path):
        raise KeyError
    with lock.hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with (
        pytest.raises(ValueError, match='file/w: cannot write there'),
        lock.hold(tmp_path / 'file' / 'w'),
    ):
        pass
