"""The parts of latency.py: what is measured, in which process, in which order, what is written."""
