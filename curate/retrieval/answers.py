"""`curate search`: a search from the command line as lines, JSON, or a list of uids that `curate shard --uids` takes."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate import files
from curate.errors import UserError
from curate.retrieval.search import Hit, Page, Part, Request, Searcher
from curate.shards import UID_PAIR, uid_bytes

MAX_TEXT = 200


def parts(text: str | None, image: Path | None, uid: str | None, minus: list[str]) -> tuple[Part, ...]:
    """The query that the arguments make. Raises UserError for a picture that is not there."""
    found = [Part(text=text)] if text else []
    if image is not None:
        try:
            found.append(Part(image=image.read_bytes()))
        except OSError as error:
            raise UserError(f"--image {image}: {error.strerror}") from None
    found += [Part(uid=uid)] if uid else []
    return (*found, *(Part(text=words, weight=-1.0) for words in minus))


def lines(searcher: Searcher, request: Request, as_json: bool) -> Iterator[str]:
    """A page: a hit a line, and a last line that says what was left out."""
    page = searcher.search(request)
    if as_json:
        yield json.dumps(as_plain(page), ensure_ascii=True, indent=1)
        return
    yield from map(_line, page.hits)
    out = ", ".join(f"{number:,} {reason.replace('_', ' ')}" for reason, number in page.left_out.items() if number)
    more = "" if page.exhausted else "; there are more"
    count = "1 hit" if len(page.hits) == 1 else f"{len(page.hits)} hits"
    yield f"{count}{more}" + (f"; left out before the last of them: {out}" if out else "")


def as_plain(page: Page) -> dict[str, Any]:
    """A page as JSON takes it."""
    return asdict(page)


def _line(hit: Hit) -> str:
    state = hit.state if hit.state == "kept" else f"{hit.state} at {hit.reason}"
    same = f"  (+{hit.group_size - 1} of the same picture)" if hit.group_size > 1 else ""
    return f"{hit.score:7.4f}  {_safe(hit.uid)}  {_safe(state)}  {_safe(hit.caption)}  {_safe(hit.url)}{same}"


def _safe(text: str | None) -> str:
    """A stranger's text for a terminal: no control characters, not endless."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in (text or "-")[:MAX_TEXT])
    return shown + ("…" if text and len(text) > MAX_TEXT else "")


def export(searcher: Searcher, request: Request, limit: int, path: Path, attempt: str) -> str:
    """Write the uids found: DataComp's sorted `u8,u8` array (.npy), or a table with a column `uid` in the order found."""
    if path.suffix not in (".npy", ".parquet"):
        raise UserError(f"--export {path}: a list of uids is a .npy or a .parquet file")
    uids = searcher.uids(request, limit)
    if path.suffix == ".parquet":
        files.write_table(path, pa.table({"uid": pa.array(uids, pa.string())}), attempt)
    else:
        with files.atomic(path, attempt) as file:
            np.save(file, np.sort(uid_bytes(uids)).view(">u8").astype("<u8").view(UID_PAIR))
    return f"{len(uids):,} uids: {path}"
