"""What a worker process does at its start: one core for each, and none outlives its parent."""

import multiprocessing
import os
import threading

import cv2
import threadpoolctl


def become_worker() -> None:
    """Keeps to one thread, and ends when the process that started this one has ended."""
    keep_to_one_thread()
    end_with_parent()


def keep_to_one_thread() -> None:
    """Stops the libraries of this process from starting threads for a single call.

    NumPy's BLAS wakes a thread per core even for matrices of a few rows, and these spin while they
    wait for the next: two workers on two cores then take a third longer each.
    """
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)


def end_with_parent() -> None:
    """Ends this process of multiprocessing as soon as its parent has ended, however it did.

    A killed parent cannot tell its workers, which would work on, or wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
