"""needs.json: which folders of a run its present pipeline refers to, as the driver went through them; `curate gc` goes by it.

A command may run the pipeline several times (the rounds of a loop): what all of them need counts together. `finished` is only
true of a command that came to its end: not of one with --until, not between the rounds.
"""

from collections.abc import Iterable

from curate import files
from curate.store import Store

_NAME = "needs.json"


def note(store: Store, folders: Iterable[str], finished: bool) -> None:
    """Add what one run of this attempt needs: paths below the run's folder. What an earlier attempt needed is forgotten."""
    known = files.read_json(store.root / _NAME, {})
    before = known["folders"] if known.get("attempt") == store.attempt else []
    files.write_json(store.root / _NAME, {"attempt": store.attempt, "finished": finished,
                                          "folders": sorted({*before, *folders})}, store.attempt)


def needed(store: Store) -> set[str] | None:
    """What the present pipeline needs; None where the last command did not come to its end, or is of an earlier version."""
    known, run = files.read_json(store.root / _NAME, {}), files.read_json(store.root / "run.json", {})
    whole = known.get("finished") and known["attempt"] == run.get("attempt")
    return set(known["folders"]) if whole else None
