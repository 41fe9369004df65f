"""Compiled programs are kept in a folder that only their owner can write to."""

import os
import stat
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from handpose_jax.process import compilation_cache
print(compilation_cache.keep_compiled_programs())
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
"""


def run(cache, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env={**inherited, 'XDG_CACHE_HOME': str(cache), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_programs_are_kept_privately(tmp_path):
    folder = tmp_path / 'handpose_jax' / 'compiled'
    assert run(tmp_path) == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kept = {path.name for path in folder.iterdir() if path.name.endswith('-cache')}
    assert kept
    # The second run finds what the first one left.
    run(tmp_path)
    assert kept == {path.name for path in folder.iterdir() if path.name.endswith('-cache')}


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    folder = tmp_path / 'handpose_jax' / 'compiled'
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert run(tmp_path) == 'None'
    assert not list(folder.iterdir())


def test_a_link_to_elsewhere_is_not_used(tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir(mode=0o700)
    (tmp_path / 'handpose_jax').mkdir()
    (tmp_path / 'handpose_jax' / 'compiled').symlink_to(elsewhere)
    assert run(tmp_path) == 'None'
    assert not list(elsewhere.iterdir())


def test_the_users_own_choice_stands(tmp_path):
    chosen = tmp_path / 'chosen'
    assert run(tmp_path / 'cache', JAX_COMPILATION_CACHE_DIR=str(chosen)) == 'None'
    assert list(chosen.iterdir())
    assert not (tmp_path / 'cache').exists()
