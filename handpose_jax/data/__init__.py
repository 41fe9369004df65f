"""Data: from files on disk to batches of crops (NumPy; nothing here imports TensorFlow).

images      bytes -> RGB pixels, safely
sources     records -> Sample, one hand in one image
transforms  Sample -> one example of a Batch: crop, augmentation
pipeline    source -> stream of Batch, with Grain
"""
