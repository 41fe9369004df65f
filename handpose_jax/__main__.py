"""python -m handpose_jax: the same as the console command `handpose`."""

from handpose_jax.cli import main

main()
