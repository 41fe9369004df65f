"""Options that XLA may not know are left out; those it knows change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handpose_jax.process import compiler_options


@pytest.mark.parametrize('options', [compiler_options.for_training, compiler_options.for_inference])
def test_programs_compile_with_them_and_say_the_same(options):
    x = np.random.default_rng(0).normal(size=(37, 53)).astype(np.float32)

    def function(x):
        return jnp.exp(x) @ x.T

    found = jax.jit(function, compiler_options=options())(x)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)) @ x.T, rtol=1e-4, atol=1e-4)


def test_this_xla_knows_them():
    """Written for the pinned version: a later one that drops an option should be seen here."""
    if jax.default_backend() != 'cpu':
        pytest.skip('no CPU backend')
    assert len(compiler_options.for_inference()) == 2
    assert len(compiler_options.for_training()) == 1


def test_what_xla_does_not_know_is_left_out():
    name = 'xla_cpu_prefer_vector_width'
    wanted = (('xla_cpu_no_such_option', '1'), (name, '512'))
    assert compiler_options._known(*wanted) == {name: '512'}
    assert compiler_options._known(wanted[0]) is None


def test_other_platforms_have_none(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert compiler_options.for_inference() is None
    assert compiler_options.for_training() is None
