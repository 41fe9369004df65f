"""handpose_jax: the 21 keypoints of a hand in an ordinary photograph, in JAX.

Importing this package imports nothing heavy; import the module you need.
"""

__version__ = '0.1.0'
