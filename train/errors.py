"""What can go wrong, and what the command line makes of it: one line, no traceback.

    TrainError
    ├── ConfigError     a setting is wrong, or settings do not fit together     exit code 2
    ├── DataError       the shards or the table cannot be trained on            exit code 2
    ├── WeightsError    the weights are missing, another model's, or unsafe     exit code 2
    ├── Diverged        the loss is no number any more                          exit code 3
    ├── TooLarge        a step does not fit the accelerator's memory            exit code 3
    └── Stopped         Ctrl-C or SIGTERM, behind a step and its checkpoint     exit code 130 or 143
"""

import difflib
from collections.abc import Iterable


class TrainError(Exception):
    """One line for the user, and the exit code that goes with it."""

    exit_code = 1


class ConfigError(TrainError):
    """A mistake in the settings. `where` is `file:line` or empty."""

    exit_code = 2

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)


class DataError(TrainError):
    """Shards that are cut short or mispaired, a table without its columns, pictures that do not decode."""

    exit_code = 2


class WeightsError(TrainError):
    """No such weights, weights of another model, or a file that holds more than tensors."""

    exit_code = 2


class Diverged(TrainError):
    """The loss is not finite; the last checkpoint is from before."""

    exit_code = 3


class TooLarge(TrainError):
    """What goes through the model at once does not fit the memory of the accelerator."""

    exit_code = 3


class Stopped(TrainError):
    """It was asked to end, and did so behind a step; the same command goes on."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'model'?` for a near miss, the list of what there is for a far one."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there is {', '.join(names)}" if names else ""
