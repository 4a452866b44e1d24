"""An index of sixty small pictures, without a model: colours and shapes are its dimensions, words of captions lead to them."""

import hashlib
import io
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from curate.errors import UserError
from curate.keep import KEPT, evaluate, parse
from curate.retrieval.query import BadQuery, Hit, Page, Part, Request

COLOURS = {"red": (214, 57, 57), "green": (47, 158, 88), "blue": (52, 101, 214), "yellow": (240, 196, 48), "black": (34, 34, 38)}
SHAPES = ("circle", "square", "triangle")
WORDS = (*COLOURS, *SHAPES)
SCRIPT = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script> a red circle"
"""The caption of row 0."""
DROPPED_BY = "line 7: num_words between 3 and 256"


def uid_of(row: int) -> str:
    """32 hex digits, as the source makes them."""
    return hashlib.blake2b(str(row).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Row:
    """A picture of a coloured shape: of every colour and shape four sizes, of which the last two are near-duplicates."""

    number: int

    @property
    def words(self) -> tuple[str, str]:
        return WORDS[self.number // 12], SHAPES[self.number // 4 % 3]

    @property
    def width_px(self) -> int:
        return (96, 128, 160, 160)[self.number % 4]

    @property
    def caption(self) -> str:
        return SCRIPT if self.number == 0 else f"a {self.words[0]} {self.words[1]} of {self.width_px} pixels"

    @property
    def state(self) -> str:
        return "dropped" if self.number % 12 == 5 else "kept"

    @property
    def url(self) -> str:
        return "javascript:window.hacked=1" if self.number == 0 else f"https://pictures.example/{self.number}.jpg"

    @property
    def values(self) -> dict[str, Any]:
        return {"width_px": self.width_px, "height_px": 96, "lang": "en", "num_words": 6, "clip_cos": 0.25, "is_dup": False}

    @property
    def vector(self) -> np.ndarray:
        size = 0.02 * min(self.number % 4, 2)
        return unit(np.array([(word in self.words) + size for word in WORDS], np.float32))

    def picture(self) -> bytes:
        image = Image.new("RGB", (self.width_px, 96), (246, 244, 240))
        draw, box = ImageDraw.Draw(image), (self.width_px // 2 - 34, 14, self.width_px // 2 + 34, 82)
        if self.words[1] == "circle":
            draw.ellipse(box, COLOURS[self.words[0]])
        elif self.words[1] == "square":
            draw.rectangle(box, COLOURS[self.words[0]])
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), (self.width_px // 2, box[1])], COLOURS[self.words[0]])
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()


ROWS = [Row(number) for number in range(60)]
TABLE = pa.Table.from_pylist([row.values for row in ROWS])


@dataclass
class Colours:
    """A `Searcher` over `ROWS`. `forbidden` rows are against the policy; `broken` ones have no picture that decodes."""

    forbidden: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    delay_seconds: float = 0.0
    fault: Exception | None = None
    requests: list[Request] = field(default_factory=list)

    @property
    def info(self) -> dict[str, Any]:
        columns = {name: {"kind": kind, "type": str(TABLE.schema.field(name).type)} for name, kind in
                   {"width_px": "number", "height_px": "number", "lang": "text", "num_words": "number", "clip_cos": "number",
                    "is_dup": "boolean"}.items()}
        return {"run": "runs/colours", "rows": len(ROWS), "kept": sum(r.state == "kept" for r in ROWS), "dims": len(WORDS),
                "kind": "flat", "recall": 1.0, "model": "colours", "weights_digest": "0" * 16, "policy": "", "policy_id": "p0",
                "index_id": "i0", "columns": columns, "has_text": True}

    def search(self, request: Request) -> Page:
        start = time.perf_counter()
        self.requests.append(request)
        time.sleep(self.delay_seconds)
        if self.fault:
            raise self.fault
        found, left_out = self._found(request)
        first = int(request.after or 0)
        page = found[first : first + request.k]
        more = first + request.k < len(found)
        return Page(tuple(page), left_out, len(ROWS), not more, str(first + request.k) if more else "",
                    {"search": (time.perf_counter() - start) * 1000})

    def uids(self, request: Request, limit: int) -> list[str]:
        return [hit.uid for hit in self._found(request)[0]][:limit]

    def sample(self, uid: str) -> dict[str, Any] | None:
        row = self._row(uid)
        if row is None:
            return None
        kept = row.state == "kept"
        return {"uid": uid, "caption": row.caption, "url": row.url, "state": row.state, "reason": None if kept else DROPPED_BY,
                "columns": {**row.values, "clip_cos": float("nan")},
                "verdicts": [{"line": 5, "text": "lang = 'en'", "verdict": "yes"},
                             {"line": 7, "text": "num_words between 3 and 256", "verdict": "yes" if kept else "no"}],
                "duplicates": [uid_of(row.number + 1)] if row.number % 4 == 2 else []}

    def image(self, uid: str) -> bytes | None:
        row = self._row(uid)
        if row is None:
            return None
        return b"\x89PNG\r\n\x1a\n broken" if row.number in self.broken else row.picture()

    def _row(self, uid: str) -> Row | None:
        return next((row for row in ROWS if uid_of(row.number) == uid and row.number not in self.forbidden), None)

    def _found(self, request: Request) -> tuple[list[Hit], dict[str, int]]:
        query = sum((self._vector(part) * part.weight for part in request.parts), np.zeros(len(WORDS), np.float32))
        if request.parts and not np.linalg.norm(query):
            raise BadQuery("the parts of the query cancel each other out")
        passes = self._passes(request.where)
        allowed = [row for row in ROWS if row.number not in self.forbidden]
        matching = [row for row in allowed if passes[row.number]]
        visible = [row for row in matching if request.dropped or row.state == "kept"]
        scores = {row.number: float(row.vector @ unit(query)) if request.parts else 0.0 for row in visible}
        hits = [Hit(uid_of(row.number), scores[row.number], row.caption, row.url, row.width_px, 96, row.state,
                    None if row.state == "kept" else DROPPED_BY)
                for row in sorted(visible, key=lambda row: (-round(scores[row.number], 6), row.number))]
        kept = _grouped(hits) if request.group else hits
        return kept, {"policy": len(ROWS) - len(allowed), "where": len(allowed) - len(matching),
                      "dropped": len(matching) - len(visible), "same_picture": len(hits) - len(kept)}

    def _passes(self, where: str) -> list[bool]:
        if not where:
            return [True] * len(ROWS)
        try:
            return [state == KEPT for state in evaluate(parse(where, {f.name: f.type for f in TABLE.schema}), TABLE).state]
        except UserError as error:
            raise BadQuery(str(error)) from None

    def _vector(self, part: Part) -> np.ndarray:
        if part.vector is not None:
            if len(part.vector) != len(WORDS):
                raise BadQuery(f"a vector has {len(WORDS)} numbers here, not {len(part.vector)}")
            return np.array(part.vector, np.float32)
        if part.text is not None:
            return unit(np.array([float(word in part.text) for word in WORDS], np.float32))
        if part.uid is not None:
            row = self._row(part.uid)
            if row is None:
                raise BadQuery(f"no row '{part.uid}'")
            return row.vector
        assert part.image is not None
        pixels = np.asarray(Image.open(io.BytesIO(part.image)).convert("RGB"))
        middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].astype(int)
        nearest = min(COLOURS, key=lambda name: int(np.abs(np.array(COLOURS[name]) - middle).sum()))
        return unit(np.array([float(word == nearest) for word in WORDS], np.float32))


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1, or as it is where it has none."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _grouped(hits: list[Hit]) -> list[Hit]:
    """The fourth of every four pictures folded into the third."""
    third = {uid_of(row.number + 1): uid_of(row.number) for row in ROWS if row.number % 4 == 2}
    there = {hit.uid for hit in hits}
    folded = {uid: first for uid, first in third.items() if uid in there and first in there}
    back = {first: uid for uid, first in folded.items()}
    return [replace(hit, group_size=2, group=(back[hit.uid],)) if hit.uid in back else hit for hit in hits
            if hit.uid not in folded]
