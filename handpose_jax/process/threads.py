"""One core for each worker process: keeps OpenCV's, BLAS's and Mitsuba's threads from competing."""

import cv2
import threadpoolctl


def keep_to_one_thread() -> None:
    """Stops the libraries of this process from starting threads for a single call.

    NumPy's BLAS wakes a thread per core even for matrices of a few rows, and these spin while they
    wait for the next: two workers on two cores then take a third longer each.
    """
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)
