"""What a training is made of, besides its loop (handpose_jax/train.py)."""
