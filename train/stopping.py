"""A training that is asked to end, by Ctrl-C or by SIGTERM (a machine is wanted back), ends behind its step, with a checkpoint.

A second Ctrl-C ends it at once.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from train.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Asked:
    """Whether a training is to end, and by which signal it was asked."""

    number: int | None = None

    def stopped(self, message: str) -> Stopped:
        """What ends it, with exit code 130 or 143."""
        found = Stopped(message)
        if self.number is not None:
            found.exit_code = 128 + self.number
        return found


@contextmanager
def listening(tell: Callable[[], Any] | None = None) -> Iterator[Asked]:
    """For the length of the block such a signal is noted, and told on, instead of ending the process.

    Handlers belong to the main thread: in another one nothing is heard. A signal that was ignored stays so.
    """
    asked = Asked()

    def hear(number: int, _: object) -> None:
        if number == signal.SIGINT:
            if asked.number is not None:
                raise KeyboardInterrupt
            os.write(2, b"stopping after this step; Ctrl-C once more stops at once\n")
        asked.number = asked.number or number
        if tell is not None:
            tell()

    heard = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: handler for number in heard if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, hear)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
