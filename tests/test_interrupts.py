"""Ctrl-C is heard, also where Python loses its exception."""

import os
import signal
import threading
import time

import pytest

from curate.interrupts import heard


class Deaf:
    """Is interrupted while it goes."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finalizer_swallows_is_raised_again() -> None:
    since, alarm = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), heard(again_seconds=0.1):
        Deaf()
        swallowed = True
        time.sleep(20)
    assert swallowed and time.monotonic() - since < 10
    assert signal.getsignal(signal.SIGALRM) is alarm and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_who_handles_it_already_goes_on_doing_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heard():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    entered = []
    thread = threading.Thread(target=lambda: entered.append(heard().__enter__()))
    thread.start()
    thread.join()
    assert entered == [None]
