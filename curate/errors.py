"""What can go wrong, and what the command line makes of it.

    CurateError
    ├── UserError      the pipeline or the command is wrong: one line, exit code 2, nothing written
    └── RunStopped     the run cannot go on (no memory, no disk, every row fails): one line, exit code 3; what is measured stays

Bad data is neither: it is a value in a `status` column, or a quarantined row.
"""

import difflib
from collections.abc import Iterable


class CurateError(Exception):
    """One line for the user, and the exit code that goes with it."""

    exit_code = 1


class UserError(CurateError):
    """A mistake in a pipeline file or on the command line. `where` is `file:line` or empty."""

    exit_code = 2

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)


class RunStopped(CurateError):
    """The run stopped before its end; the same command goes on from there."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'language'?` for a near miss, the sorted list of what there is for a far one."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there is {', '.join(names)}" if names else ""
