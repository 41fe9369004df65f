"""Ctrl-C and SIGTERM as a request to finish the step, save and leave."""

import os
import signal
import threading
from types import FrameType

EXIT_CODE = 75
"""A run that was asked to stop ends with it. Source: EX_TEMPFAIL of BSD's sysexits.h."""


class Interrupted(Exception):
    """The run was asked to stop, and saved what it had."""


class StopRequest:
    """A context in which the first signal only sets `requested`; the second leaves at once.

    Signals reach Python in the main thread alone; entered from another one, the context does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested:
            # No clean-up: whoever asks twice does not want to wait for a checkpoint.
            os._exit(128 + number)
        self.requested = True
        os.write(2, b'\nstopping after this step; once more to leave at once\n')
