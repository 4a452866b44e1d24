"""Whether a download is worth going on with: said after half a minute of it, and at its end.

A broken resolver fails a million urls in minutes, each with a status that looks like the web's fault. Where hardly anything comes
the run stops with the commonest cause and what to do about it; what came stays, and `curate heal` asks again for the rest.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from curate.errors import RunStopped
from curate.sources.source import Source
from curate.stages import StepUse
from curate.store import Store

SECONDS, ENOUGH = 30, 100
"""No verdict before so many seconds of answers, nor on fewer urls (our choice)."""
NETWORK = "check the network, a firewall, a proxy"
ADVICE = {
    "dns": "check the network and /etc/resolv.conf", "connect": NETWORK, "timeout": NETWORK, "tls": f"{NETWORK}, and the clock",
    "slow": "lower concurrency; the line is full", "http_429": "lower per_host", "http_5xx": "wait, and lower per_host",
    "http_4xx": "the servers refuse; say who asks with user_agent and contact, and check the urls",
    "http_404": "the pages are gone; check that 'url' names the right column, and how old the list is",
    "http_410": "the pages are gone; check how old the list is", "opt_out": "the sites do not want it",
    "private_address": "private addresses are refused; name your own network in allow_private",
    "host_down": "most hosts do not answer; check the network, and whether your line is full",
    "host_refuses": "the hosts want no crawlers; say who asks with user_agent and contact, or leave them out with blocklist",
    "wrong_type": "what comes is no picture; check that 'url' names the column of pictures",
    "bad_boxes": "boxes of faces are lists of [x0, y0, x1, y1], shares of 0 to 1; source: {ignore: [face_bboxes]} goes without",
    "decode_crash": "decoders crash; check that Pillow is the release that requirements.lock names",
    "decode_memory": "decoders run out of memory; check `ulimit -v`",
}
"""Status → what to do where most urls end in it."""


class Verdict:
    """Hears how images end while they are fetched, and stops a run that gets too few. `least` is a share, 0 to 1."""

    def __init__(self, least: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least, self._clock = least, clock
        self._begin = clock()
        self._heard: Counter[str] = Counter()

    def told(self, statuses: Mapping[str, int]) -> None:
        """So many more ended so. Raises RunStopped."""
        if not self._heard:
            self._begin = self._clock()
        self._heard.update(statuses)
        if self._clock() - self._begin >= SECONDS:
            judge(self._heard, self._least)


def judge(statuses: Mapping[str, int], least: float) -> None:
    """Raises RunStopped where fewer than `least` of enough urls ended ok."""
    total, ok = sum(statuses.values()), statuses.get("ok", 0)
    if total < ENOUGH or ok >= least * total:
        return
    cause, number = max(((s, n) for s, n in statuses.items() if s != "ok"), key=lambda pair: (pair[1], pair[0]))
    advice = ADVICE.get(cause, "see curate status")
    raise RunStopped(f"only {ok:,} of {total:,} downloads are ok, and {number:,} are {cause}: {advice}; then `curate heal` the "
                     "run, or go on as it is with --set download.min_success=0")


def least_of(stages: Sequence[object]) -> float:
    """What the fetch steps among `stages` demand, as a share; 0 where none does."""
    uses = [s for s in stages if isinstance(s, StepUse) and s.spec.kind == "fetch"]
    return max((float(s.settings.get("min_success", 0)) for s in uses), default=0.0)


def ended(store: Store, source: Source, folder: str, column: str = "status") -> Counter[str]:
    """How many images of a fetch step's column folder have which value of a column. A part that heals lies over an older one."""
    total: Counter[str] = Counter()
    for shard in range(source.num_shards):
        table = store.read_parts(folder, shard, ["image_id", column])
        if table is not None:
            total.update(dict(zip(table["image_id"].to_pylist(), table[column].to_pylist(), strict=True)).values())
    del total[None]
    return total
