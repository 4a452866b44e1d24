"""`curate verify RUN --links`: whether the urls of the rows that a run kept still give a picture. Asks, and stores nothing.

Rows are drawn by a hash of uid and seed, so the same command asks the same urls. It asks as the run's own download did, with its
limits and its manners, opt-outs included, but reads the beginning of each answer only: enough to see that it is a picture.

    alive            a picture comes; with `whole`: the very file that the run got
    changed          with `whole`: a picture comes, and it is another one
    gone             the server means it for good, forbids it, or gives no picture
    could not tell   a failure that may pass (`addresses.PASSING`)

Link rot is the share of gone among those that could be told.
"""

import asyncio
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from curate.cards.dataset import finished
from curate.decoding.images import extension
from curate.errors import UserError
from curate.fetching.addresses import PASSING
from curate.fetching.fetch import Fetcher, Limits
from curate.folder import Folder
from curate.step import load_step
from curate.units import wilson

HEAD_BYTES = 1024
"""So much of an answer shows that it is a picture (16 would do; servers send no less than a packet)."""


class Link(NamedTuple):
    """A kept row's url, and the hash of the file it gave, if the run knows it. `draw` orders rows by chance."""

    draw: bytes
    uid: str
    url: str
    sha256: str | None


@dataclass(frozen=True)
class Found:
    """What became of the links of a sample, counted in rows."""

    rows: int
    """rows that the run kept and that have a url: the pool"""
    sampled: int
    urls: int
    seed: int
    whole: bool
    statuses: Counter[str]
    """by status as the download's, but `changed` for an ok that is another file"""

    @property
    def unknown(self) -> int:
        """Rows that could not be told."""
        return sum(n for status, n in self.statuses.items() if status in PASSING)

    @property
    def gone(self) -> int:
        """Rows without a picture any more."""
        return self.sampled - self.unknown - self.statuses["ok"] - self.statuses["changed"]

    @property
    def rot(self) -> tuple[float, float, float]:
        """The share of gone among those told, 0 to 1, and Wilson's 95 % interval of it."""
        told = self.sampled - self.unknown
        return (self.gone / told if told else 0.0, *wilson(self.gone, told))

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        share, low, high = self.rot
        return {"rows_kept_with_url": self.rows, "rows_sampled": self.sampled, "urls_asked": self.urls, "seed": self.seed,
                "whole_files": self.whole, "alive": self.statuses["ok"], "changed": self.statuses["changed"], "gone": self.gone,
                "could_not_tell": self.unknown, "link_rot": round(share, 6),
                "link_rot_95": [round(low, 6), round(high, 6)], "statuses": dict(sorted(self.statuses.items()))}


def ask_again(root: Path, *, rows: int, seed: int, whole: bool) -> Found:
    """Draw `rows` kept rows of a finished run and ask for their urls. Raises UserError where there is none."""
    folder = finished(root)
    total, links = sample(folder, rows, seed)
    if not links:
        raise UserError(f"{root} kept no row with a url")
    if whole and not any(link.sha256 for link in links):
        raise UserError(f"--bytes: {root} does not know the sha256 of its files, as `download` measures it; leave --bytes out")
    statuses = asyncio.run(_ask(links, limits_of(folder), whole))
    return Found(total, len(links), len({link.url for link in links}), seed, whole, Counter(statuses))


def sample(folder: Folder, rows: int, seed: int) -> tuple[int, list[Link]]:
    """(kept rows with a url, `rows` of them by chance): memory holds one source shard and the sample."""
    total = 0

    def links() -> Iterator[Link]:
        nonlocal total
        for number in range(folder.source.num_shards):
            for uid, url, sha256 in _kept(folder, number):
                total += 1
                yield Link(hashlib.blake2b(f"{seed}\0{uid}".encode(), digest_size=16).digest(), uid, url, sha256)

    found = heapq.nsmallest(rows, links())
    return total, found


def _kept(folder: Folder, number: int) -> Iterator[tuple[str, str, str | None]]:
    """(uid, url, sha256) of a shard's kept rows that have a url."""
    shard = folder.shard(number)
    use, index = _download(folder), pa.array(shard.kept.alive)
    url = shard.column(folder.columns[use["reads"]["url"] if use else "url"]).take(index)
    known = use is not None and use["adds"].get("sha256") in folder.columns
    sha256 = shard.column(folder.columns[use["adds"]["sha256"]]).take(index) if use and known else pa.nulls(len(url), pa.string())
    table = pa.table({"uid": shard.column(folder.columns["uid"]).take(index), "url": url, "sha256": sha256})
    table = table.filter(pc.is_valid(table["url"]))
    return zip(*(table[name].to_pylist() for name in ("uid", "url", "sha256")), strict=True)


def _download(folder: Folder) -> dict[str, Any] | None:
    """The run's use of `download`, if it has one."""
    return next((s for s in folder.stages if s.get("step") == "download"), None)


def limits_of(folder: Folder) -> Limits:
    """How the run's download asked; as `download` does by default where the run has none."""
    spec, use = load_step("download"), _download(folder)
    settings = {n: v for n, v in use["settings"].items() if n in spec.settings} if use else {}
    limits: Limits = spec.target(**settings).limits
    return limits


async def _ask(links: Sequence[Link], limits: Limits, whole: bool) -> list[str]:
    """The status of each link, in order; a url that stands twice is asked once."""
    if not whole:
        limits = replace(limits, max_bytes=HEAD_BYTES)
    async with Fetcher(limits, accept=lambda head: extension(head) != "bin", whole=whole) as fetcher:
        async def one(url: str) -> tuple[str, str]:
            outcome = await fetcher.get(url)
            return outcome.status, hashlib.sha256(outcome.body or b"").hexdigest()

        urls = list(dict.fromkeys(link.url for link in links))
        answers = dict(zip(urls, await asyncio.gather(*map(one, urls)), strict=True))
    return [_status(link, *answers[link.url], whole) for link in links]


def _status(link: Link, status: str, sha256: str, whole: bool) -> str:
    return "changed" if whole and status == "ok" and link.sha256 not in (None, sha256) else status


def lines(found: Found) -> Iterator[str]:
    """What was found, in lines."""
    share, low, high = found.rot
    told = found.sampled - found.unknown
    yield (f"{found.sampled:,} of the {found.rows:,} rows kept that have a url, drawn by uid (seed {found.seed}); "
           f"{found.urls:,} urls asked")
    yield f"alive           {found.statuses['ok']:>9,}" + ("  the same file" if found.whole else "")
    if found.whole:
        yield f"changed         {found.statuses['changed']:>9,}  another picture"
    yield f"gone            {found.gone:>9,}"
    yield f"could not tell  {found.unknown:>9,}" + ("  failures that may pass; ask again another day" if found.unknown else "")
    if told:
        yield f"link rot: {share:.1%} of the {told:,} that could be told, 95 % interval {low:.1%} to {high:.1%}"
    else:
        yield "link rot: not one could be told; check the network"
    for status, number in sorted(found.statuses.items(), key=lambda pair: (-pair[1], pair[0])):
        yield f"  {status:<20}{number:>9,}"
