"""Ctrl-C that is heard: Python loses a KeyboardInterrupt that arrives while a finalizer or another library's callback runs."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_SECONDS = 2.0


@contextmanager
def heard(again_seconds: float = AGAIN_SECONDS) -> Iterator[None]:
    """Inside, a SIGINT raises KeyboardInterrupt, and again every `again_seconds` until the block is left.

    Where somebody else handles or ignores SIGINT (another thread, a shell's background job) nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    alarm = signal.getsignal(signal.SIGALRM)
    is_armed = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal is_armed
        is_armed = True
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, again_seconds)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if is_armed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGINT, signal.default_int_handler)
