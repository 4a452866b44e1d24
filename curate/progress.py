"""What a person sees while a run goes on: one line that moves on a terminal, nothing but the end elsewhere."""

import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from curate.work import Task


class Quiet:
    """No terminal: says nothing."""

    def stage(self, name: str, total: int, done: int) -> None:
        """See Watcher."""

    def task(self, task: Task, seconds: float) -> None:
        """See Watcher."""

    def told(self, statuses: Counter[str]) -> None:
        """See Watcher."""


    def close(self) -> None:
        """Nothing to leave."""


class Bar(Quiet):
    """A bar for each group of tasks, with the images' rate and their failures by kind."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[say]}"))
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task: TaskID | None = None
        self._statuses: Counter[str] = Counter()
        self._begin = time.monotonic()
        self._progress.start()

    def stage(self, name: str, total: int, done: int) -> None:
        """See Watcher."""
        self._begin = time.monotonic()
        self._task = self._progress.add_task(name, total=total, completed=done, say="")

    def task(self, task: Task, seconds: float) -> None:
        """See Watcher."""
        if self._task is not None:
            self._progress.advance(self._task)

    def told(self, statuses: Counter[str]) -> None:
        """See Watcher."""
        self._statuses.update(statuses)
        rate = self._statuses.total() / max(time.monotonic() - self._begin, 1e-3)
        counts = ", ".join(f"{n} {kind}" for kind, n in self._statuses.most_common(6))
        if self._task is not None:
            self._progress.update(self._task, say=f"{rate:.0f} images/s: {counts}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def watcher() -> Quiet:
    """A bar on a terminal, silence elsewhere."""
    return Bar() if sys.stderr.isatty() else Quiet()
