"""Asking an index: by text, picture, uid or vector, added and subtracted, within a policy and a condition, page by page.

A policy is set by whoever opens the index, a condition by whoever asks; both are keeps, parsed and never run as text, over the
scalar columns. A row that the policy does not pass, or for which it is unknown, is as if it were not there: not found, not shown,
no neighbour, no part of a query. Whoever asks can only narrow.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from curate import files
from curate.decoding import images
from curate.errors import UserError
from curate.folder import Folder
from curate.index import Space
from curate.keep import DROPPED, KEPT, Keep, evaluate, parse
from curate.retrieval.encoder import Encoder
from curate.retrieval.indexed import IMAGE, TEXT, chosen, kind_of, open_manifest
from curate.retrieval.lookup import Ints, Mask, Rows
from curate.retrieval.query import BadQuery, Hit, Page, Part, Request, check, combined, cursor, direction, identity, position
from curate.retrieval.ranking import Allowed, Found, Matrix, Pictures, Ranking, by_score, by_uid, first_probes, nearest

__all__ = ["BadQuery", "Hit", "Page", "Part", "Request", "Searcher"]

MAX_DEPTH, MAX_FOUND = 10_000, 100_000
"""Hits that one may page through; uids that one may take away of what a query finds."""
LISTS, MASKS = 32, 8
"""Lists of hits, and masks of conditions (2 bytes a row each), that are remembered."""
T = TypeVar("T")


class Recent:
    """Remembers the last few answers. What several threads ask for at once is computed once, and others do not wait for it."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._slots: OrderedDict[str, tuple[threading.Lock, list[Any]]] = OrderedDict()

    def get_or(self, key: str, make: Callable[[], T]) -> T:
        """The answer remembered for `key`, or the one that `make` gives."""
        with self._lock:
            lock, answer = self._slots.setdefault(key, (threading.Lock(), []))
            self._slots.move_to_end(key)
            while len(self._slots) > self._size:
                self._slots.popitem(last=False)
        with lock:
            if not answer:
                answer.append(make())
            found: T = answer[0]
            return found


@dataclass
class Searcher:
    """An opened index. Safe to use from several threads."""

    folder: Folder
    manifest: dict[str, Any]
    rows: Rows
    spaces: dict[str, Space]
    encoder: Encoder
    policy: str
    permitted: Mask
    """rows that the policy passes"""
    _lists: Recent = field(default_factory=lambda: Recent(LISTS))
    _masks: Recent = field(default_factory=lambda: Recent(MASKS))

    @classmethod
    def open(cls, root: Path, *, model: str = "", policy: str = "", threads: int = 1) -> "Searcher":
        """The index of the run at `root`. Raises UserError where it is missing, damaged or of another state of the run, where it
        is not of `model`, and where the policy can't be decided on its columns."""
        folder = Folder.open(root)
        manifest = open_manifest(folder)
        made_by = manifest["model"]
        if model not in ("", made_by["prefix"]):
            raise UserError(f"the index is of '{made_by['prefix']}'; `curate index {root} --model {model}` makes another")
        rows = Rows(root / "index", manifest)
        spaces = {n: Space.open(root / "index" / f"{n}.faiss", entry, threads) for n, entry in manifest["indexes"].items()}
        if any(rows.vectors[name].count != space.rows for name, space in spaces.items()):
            raise UserError(f"{root / 'index'}: vectors and rows do not fit together; `curate index {root}` makes it anew")
        permitted = rows.passing(_policy(policy, rows)) if policy.strip() else np.ones(rows.num_rows, bool)
        encoder = Encoder(made_by["name"], chosen(folder, made_by["prefix"]).weights, made_by["weights_digest"], threads)
        return cls(folder, manifest, rows, spaces, encoder, policy.strip(), permitted)

    @cached_property
    def index_id(self) -> str:
        """What cursors are bound to: changes when anything in the index does."""
        return files.digest(self.manifest)

    @property
    def info(self) -> dict[str, Any]:
        """What the index is, and what may be asked of it. `rows` and `kept` count what the policy passes."""
        entry = self.manifest["indexes"].get(IMAGE) or self.manifest["indexes"][TEXT]
        columns = {n: {"kind": kind_of(t), "type": str(t)} for n, t in self.rows.columns.items()}
        return {"run": self.folder.root.resolve().name, "rows": int(self.permitted.sum()),
                "kept": int((self.permitted & self.rows.kept).sum()), "dims": entry["dims"], "kind": entry["kind"],
                "recall": entry["recall"]["value"], "model": self.manifest["model"]["name"],
                "weights_digest": self.manifest["model"]["weights_digest"], "policy": self.policy,
                "policy_id": files.digest(self.policy), "index_id": self.index_id, "columns": columns,
                "has_text": TEXT in self.spaces}

    def search(self, request: Request) -> Page:
        """One page of what a request finds; as many hits as it asks for, while there are any. Raises BadQuery."""
        begin = time.perf_counter()
        check(request)
        whose = identity(request, self.index_id, self.policy)
        start = position(request.after, whose) if request.after else 0
        if start >= MAX_DEPTH:
            raise BadQuery(f"pages end at hit {MAX_DEPTH:,}; narrow the search, or take the uids away as a list")
        ranking, query = self._ranking(request, whose)
        asked = time.perf_counter()
        end = min(start + request.k, MAX_DEPTH)
        ranking.upto(end + 1)
        found = ranking.found[start:end]
        exhausted = ranking.finished and len(ranking.found) <= end
        left_out = self._left_out(request, query, ranking, found, exhausted)
        searched = time.perf_counter()
        hits = tuple(self._hit(one) for one in found)
        after = cursor(end, whose) if not exhausted and end < MAX_DEPTH else ""
        spent = {"query": asked - begin, "search": searched - asked, "rows": time.perf_counter() - searched}
        return Page(hits, left_out, self._looked_at(request, query), exhausted, after,
                    {name: round(1000 * seconds, 3) for name, seconds in spent.items()})

    def sample(self, uid: str) -> dict[str, Any] | None:
        """All that is known of a row, each keep's verdict on it, and which rows show the same picture."""
        row = self._permitted_row(uid)
        if row is None:
            return None
        shown, values = self.rows.shown(row), self.rows.values(row)
        same = self.rows.pictures.rows(int(self.rows.pictures.of[row]))
        same = same[self.permitted[same] & (same != row)][:MAX_DEPTH]
        return {**{n: shown[n] for n in ("uid", "caption", "url", "state", "reason")},
                "columns": {n: _plain(values[n][0].as_py()) for n in self.rows.columns},
                "verdicts": [{"line": line, "text": text, "verdict": _verdict(keep, line, values, shown)}
                             for line, text, keep in self._clauses], "duplicates": [self.rows.uid(int(r)) for r in same]}

    @cached_property
    def _clauses(self) -> list[tuple[int, str, Keep | None]]:
        """(line, text, the keep) of all clauses of the run's keeps, in order; a `top` is none."""
        types = {f.name: f.type for f in self.rows.schema}
        found: list[tuple[int, str, Keep | None]] = []
        for stage in self.folder.stages:
            found += [(stage["line"], text, parse(text, types)) for text in stage["clauses"]]
            found += [(stage["line"], stage["what"], None)] if "top" in stage else []
        return found

    def image(self, uid: str) -> bytes | None:
        """The stored bytes of a row's picture; None also where it has none."""
        row = self._permitted_row(uid)
        ref = self.rows.image(row) if row is not None else None
        return images.read(ref, self.folder.root) if ref and ref["file"] else None

    def uids(self, request: Request, limit: int) -> list[str]:
        """The uids of what a request finds, best first; `k` and `after` do not count. Raises BadQuery."""
        check(request)
        if limit < 1 or (request.parts and limit > MAX_FOUND):
            raise BadQuery(f"a search gives at most {MAX_FOUND:,} uids, a condition alone any number")
        if not request.parts:
            return [self.rows.uid(int(row)) for row in self._browsed(request)[:limit]]
        ranking, _ = self._ranking(request, identity(request, self.index_id, self.policy))
        ranking.upto(limit)
        return [self.rows.uid(found.row) for found in ranking.found[:limit]]

    def _browsed(self, request: Request) -> Ints:
        order = self.rows.order[self._allowed(request).rows[self.rows.order]].astype(np.int64)
        if not request.group:
            return order
        first = np.unique(self.rows.pictures.of[order], return_index=True)[1]
        return order[np.sort(first)]

    def _ranking(self, request: Request, whose: str) -> tuple[Ranking, Matrix | None]:
        found: tuple[Ranking, Matrix | None] = self._lists.get_or(whose, lambda: self._ranked(request))
        return found

    def _ranked(self, request: Request) -> tuple[Ranking, Matrix | None]:
        allowed = self._allowed(request)
        if not request.parts:
            return Ranking(self.rows, allowed, by_uid(self.rows, allowed), Pictures(None, None) if request.group else None), None
        if request.against not in self.spaces:
            raise BadQuery(f"the run has no {request.against} embeddings to search")
        space, vectors = self.spaces[request.against], self.rows.vectors[request.against]
        query = combined([(part.weight, self._direction(part, space.dims)) for part in request.parts])
        found = nearest(space, query, allowed.vectors(vectors))
        same = Pictures(self.spaces.get(IMAGE), self.rows.vectors.get(IMAGE)) if self.manifest["same_by"] == "cosine" \
            else Pictures(None, None)
        return Ranking(self.rows, allowed, by_score(self.rows, vectors, allowed, found), same if request.group else None), query

    def _direction(self, part: Part, dims: int) -> Any:
        if part.vector is not None:
            return direction(part.vector, dims)
        if part.text is not None:
            return direction(self.encoder.text(part.text), dims)
        if part.image is not None:
            return direction(self.encoder.image(part.image), dims)
        row = self._permitted_row(part.uid or "")
        if row is None:
            raise BadQuery(f"no row has the uid '{part.uid}'")
        for name in (IMAGE, TEXT):
            if name in self.spaces and (at := int(self.rows.vectors[name].of[row])) >= 0:
                return direction(self.spaces[name].vectors(np.array([at]))[0], dims)
        raise BadQuery(f"the row '{part.uid}' has no embedding")

    def _permitted_row(self, uid: str) -> int | None:
        row = self.rows.row_of(uid)
        return row if row is not None and self.permitted[row] else None

    def _allowed(self, request: Request) -> Allowed:
        found: Allowed = self._masks.get_or(f"{request.dropped} {request.where.strip()}", lambda: self._mask(request))
        return found

    def _mask(self, request: Request) -> Allowed:
        where = self.rows.passing(_condition(request.where, self.rows)) if request.where.strip() else None
        mask = self.permitted if request.dropped else self.permitted & self.rows.kept
        return Allowed(mask if where is None else mask & where, where)

    def _left_out(self, request: Request, query: Matrix | None, ranking: Ranking, found: list[Found],
                  exhausted: bool) -> dict[str, int]:
        """How many rows stand before the last hit and are not in the list; before the end, where this is the last page."""
        last = found[-1] if found and not exhausted else None
        folded = last.folded if last else ranking.folded
        allowed = self._allowed(request)
        if allowed.rows.all():
            before: Any = np.empty(0, np.int64)
        elif query is None:
            before = self.rows.order[: self.rows.rank[last.row]] if last else self.rows.order
        else:
            vectors = self.rows.vectors[request.against]
            positions = self.spaces[request.against].above(query, last.score) if last else np.arange(vectors.count)
            before = vectors.expand(positions)[0]
        policy, dropped, where = self._why(request, allowed, before)
        return {"policy": policy, "dropped": dropped, "where": where, "same_picture": folded}

    def _why(self, request: Request, allowed: Allowed, rows: Any) -> tuple[int, int, int]:
        rows = rows[~allowed.rows[rows]]
        permitted = rows[self.permitted[rows]]
        gone = permitted[~self.rows.kept[permitted]] if not request.dropped else permitted[:0]
        return len(rows) - len(permitted), len(gone), len(permitted) - len(gone)

    def _looked_at(self, request: Request, query: Matrix | None) -> int:
        if query is None:
            return self.rows.num_rows
        space, vectors = self.spaces[request.against], self.rows.vectors[request.against]
        return space.looked_at(query, first_probes(space, self._allowed(request).vectors(vectors)))

    def _hit(self, found: Found) -> Hit:
        score = round(max(-1.0, min(1.0, found.score)), 6)
        return Hit(score=score, group_size=found.size, group=tuple(self.rows.uid(row) for row in found.group),
                   **self.rows.shown(found.row))


def _policy(text: str, rows: Rows) -> Keep:
    try:
        return parse(text, rows.columns)
    except UserError as error:
        raise UserError(f"the policy `{text.strip()}` can't be decided: {error}") from None


def _condition(text: str, rows: Rows) -> Keep:
    try:
        return parse(text, rows.columns)
    except UserError as error:
        raise BadQuery(f"where: {error}") from None


def _plain(value: Any) -> Any:
    """What JSON has a form for; NaN and infinities as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _verdict(keep: Keep | None, line: int, values: pa.Table, shown: dict[str, Any]) -> str:
    """What a clause says of a row; of a `top`, what became of the row there."""
    if keep is not None:
        return {KEPT: "yes", DROPPED: "no"}.get(int(evaluate(keep, values).state[0]), "unknown")
    if shown["state"] == "kept":
        return "yes"
    left = (shown["reason"] or "").removeprefix("line ").partition(":")[0]
    if left.isdigit() and int(left) == line:
        return "no" if shown["state"] == "dropped" else "unknown"
    return "yes" if left.isdigit() and int(left) > line else "unknown"
