"""handpose_jax: the 21 keypoints of a hand in an ordinary photograph, in JAX.

    model = handpose_jax.load('workdirs/quickstart')
    hand = model('photo.jpg', box=(40, 60, 210, 250))

Importing this package imports nothing heavy; `load` and `Hand` are imported when they are used.
"""

from typing import Any

__version__ = '0.1.0'

__all__ = ['Hand', '__version__', 'load']


def __getattr__(name: str) -> Any:
    if name in ('Hand', 'load'):
        from handpose_jax import predictor

        return getattr(predictor, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
