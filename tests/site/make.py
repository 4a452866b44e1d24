"""Makes the site: a pool of (url, caption), the truth about every row, and the bytes behind every url.

Most rows have a scene of their own, number n for row n. `faults.FAULTS` says what is wrong with how many of them; a row has one
fault or none. truth.parquet has, beside the pool's columns:

    kind             `clean`, or the fault
    detail           which variant of it: the header, the edit, the language, where a redirect leads; else null
    expected_status  what a fetcher that knows its trade ends with; `ok` where it gets a picture
    twin_of          url of the clean row whose picture, url, or url and caption this row has; else null
    scene            number of the scene that the picture shows
    caption_scene    number of the scene that the caption tells of, or null; the caption is right where both are equal
    background, relation, groups    what the picture shows
"""

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from tests.site import captions
from tests.site.draw import render
from tests.site.faults import FAULTS, PAGE, SHARING, STATUS, TWINS, planted, png_bomb, spoiled, variant
from tests.site.loopback import HOSTS
from tests.site.routes import Mode, Plan, Route, save, save_table
from tests.site.scenes import Scene, scene

FOLDERS = ("img", "media", "uploads", "photos")
MODES: dict[str, Mode] = {"flaky_500": "flaky", "busy_429": "busy", "drip": "drip", "endless": "endless"}
CODE = ("scenes", "captions", "draw", "faults", "make", "routes")


@dataclass(frozen=True)
class Counts:
    """What was made: rows, rows by kind, files below site/ and their bytes."""

    rows: int
    kinds: Mapping[str, int]
    files: int
    num_bytes: int


@dataclass
class Row:
    """A row of the pool with its truth. `base` is the number of the clean row that a twin copies."""

    kind: str
    host: int
    path: str
    scene: int
    detail: str | None = None
    base: int | None = None
    caption: str = ""
    caption_scene: int | None = None
    page_lang: str | None = "en"


@dataclass
class _Site:
    """What is made so far."""

    folder: Path
    seed: int
    rows: list[Row]
    routes: dict[str, Route] = field(default_factory=dict)
    captions: set[str] = field(default_factory=set)
    files: int = 0
    num_bytes: int = 0

    def put(self, name: str, data: bytes) -> str:
        """Write a file below site/; its name."""
        (self.folder / "site" / name).write_bytes(data)
        self.files, self.num_bytes = self.files + 1, self.num_bytes + len(data)
        return name

    def caption(self, shown: Scene) -> str:
        """A right caption that no other row has, not even with other capitals, and that passes for English."""
        for text in captions.phrasings(shown):
            if captions.plain(text) not in self.captions and captions.language(text) == "en":
                break
        self.captions.add(captions.plain(text))
        return text


def make(out: Path, rows: int = 3000, seed: int = 0, mismatch: float = FAULTS["mismatched"], port: int = 8765,
         faults: Mapping[str, float] | None = None) -> Counts:
    """Write a site to `out`, in place of one that is there. `faults`, where given, are the only ones beside mismatched captions.

    Raises ValueError where the shares leave too few rows clean.
    """
    shares = {**(FAULTS if faults is None else faults), "mismatched": mismatch}
    site = _Site(out, seed, _rows(planted(rows, shares), seed))
    _clear(out)
    for n in sorted(range(rows), key=lambda n: site.rows[n].base is not None):      # twins copy what must be there
        _write_caption(site, n)
        site.routes.update(_answers(site, n))
    _save_tables(site, port)
    save(out, Plan(settings(rows, seed, mismatch, faults), port, HOSTS, dict(sorted(site.routes.items()))))
    return Counts(rows, dict(sorted(Counter(row.kind for row in site.rows).items())), site.files, site.num_bytes)


def settings(rows: int, seed: int, mismatch: float, faults: Mapping[str, float] | None) -> dict[str, object]:
    """All that decides what is made, this program included, but for the port."""
    code = hashlib.sha256(b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in CODE)).hexdigest()
    shares = dict(FAULTS if faults is None else faults)
    return {"rows": rows, "seed": seed, "mismatch": mismatch, "faults": shares, "code": code[:16]}


def _clear(out: Path) -> None:
    if (out / "routes.json").exists():
        (out / "routes.json").unlink()
        shutil.rmtree(out / "site")
    (out / "site").mkdir(parents=True, exist_ok=True)


def _rows(counts: Mapping[str, int], seed: int) -> list[Row]:
    """Every row with its kind, place and scene, without a caption yet. Some hosts have many more rows than others."""
    rng = random.Random(f"rows {seed}")
    kinds = [kind for kind, count in sorted(counts.items()) for _ in range(count)]
    rng.shuffle(kinds)
    rows = [Row(kind, host=1 + int(HOSTS * rng.random() ** 2), path=f"/{rng.choice(FOLDERS)}/{n:06d}.jpg", scene=n)
            for n, kind in enumerate(kinds)]
    twins, clean = [row for row in rows if row.kind in TWINS], [n for n, row in enumerate(rows) if row.kind == "clean"]
    for row, base in zip(twins, rng.sample(clean, len(twins)), strict=True):
        row.base = row.scene = base
        if row.kind in SHARING:
            row.host, row.path = rows[base].host, rows[base].path
    seen: Counter[str] = Counter()
    for row in rows:
        row.detail = variant(row.kind, seen[row.kind])
        seen[row.kind] += 1
    return rows


def _write_caption(site: _Site, n: int) -> None:
    """The row's caption, whose scene it tells of, and the language of its page."""
    row, rng = site.rows[n], random.Random(f"caption {site.seed} {n}")
    if row.kind == "boilerplate":
        row.caption, row.page_lang = captions.boilerplate(rng), None
    elif row.kind == "frequent_text":
        row.caption = captions.FREQUENT
    elif row.kind == "foreign":
        row.page_lang, row.caption = captions.foreign(rng)
        row.detail = row.page_lang
    elif row.kind == "mismatched":
        other = _other(site, row.scene, rng)
        row.caption, row.caption_scene = site.caption(other), other.index
    elif row.kind == "repeated_row":
        row.caption, row.caption_scene = site.rows[row.scene].caption, row.scene
    elif row.kind == "repeated_words":
        row.caption = captions.repeated(rng, site.caption(scene(site.seed, row.scene)))
    else:
        row.caption, row.caption_scene = site.caption(scene(site.seed, row.scene)), row.scene
        if row.kind == "shouting":
            row.caption = captions.shouted(rng, row.caption)


def _other(site: _Site, shown: int, rng: random.Random) -> Scene:
    """A scene of another row (or of none, in a tiny pool) that has nothing in common with the one shown."""
    things, rows = scene(site.seed, shown).things(), len(site.rows)
    numbers = (rng.randrange(rows if tries < 20 else 10 * rows + 100) for tries in range(1000))
    return next(other for other in (scene(site.seed, number) for number in numbers) if not other.things() & things)


def _answers(site: _Site, n: int) -> dict[str, Route]:
    """The routes of the row's url and of where it leads; writes the bytes behind them."""
    row = site.rows[n]
    if row.kind in SHARING:
        return {}
    if row.kind == "exact_dup":
        return {row.path: site.routes[site.rows[row.scene].path]}
    if row.kind in ("dead_404", "gone_410"):
        return {row.path: Route(status=int(row.kind[-3:]))}
    if row.kind in ("redirect_private", "redirect_file"):
        return {row.path: Route(status=302, headers={"Location": row.detail or ""})}
    if row.kind == "redirect_loop":
        again = "/again" + row.path
        return {here: Route(status=302, headers={"Location": there}) for here, there in ((row.path, again), (again, row.path))}
    if row.kind == "bomb":
        return {row.path: Route(site.put(f"{n:06d}.png", png_bomb()), type="image/png")}
    if row.kind == "html":
        return {row.path: Route(site.put(f"{n:06d}.html", PAGE), type=row.detail or "")}
    file = site.put(f"{n:06d}.jpg", spoiled(render(scene(site.seed, row.scene)), row.kind, row.detail))
    if row.kind == "redirect":
        status, way = (row.detail or "").split()
        there = "/moved" + row.path
        elsewhere = f"http://127.0.0.{row.host % HOSTS + 1}:{{port}}" if way == "absolute" else ""
        return {row.path: Route(status=int(status), headers={"Location": elsewhere + there}), there: Route(file)}
    said = {"X-Robots-Tag": row.detail or ""} if row.kind in ("opt_out", "noindex", "not_opt_out") else {}
    return {row.path: Route(file, mode=MODES.get(row.kind, "plain"), headers=said)}


def _save_tables(site: _Site, port: int) -> None:
    rows, shown = site.rows, [scene(site.seed, row.scene) for row in site.rows]
    urls = [f"http://127.0.0.{row.host}:{port}{row.path}" for row in rows]
    pool = pa.table({"url": pa.array(urls), "caption": pa.array([r.caption for r in rows]),
                     "page_lang": pa.array([r.page_lang for r in rows], pa.string())})
    truth = {"kind": pa.array([r.kind for r in rows]), "detail": pa.array([r.detail for r in rows], pa.string()),
             "expected_status": pa.array([STATUS.get(r.kind, "ok") for r in rows]),
             "twin_of": pa.array([None if r.base is None else urls[r.base] for r in rows], pa.string()),
             "scene": pa.array([r.scene for r in rows]), "caption_scene": pa.array([r.caption_scene for r in rows], pa.int64()),
             "background": pa.array([s.background for s in shown]),
             "relation": pa.array([s.relation for s in shown], pa.string()),
             "groups": pa.array([[asdict(g) for g in s.groups] for s in shown])}
    save_table(site.folder / "pool.parquet", pool)
    for name, column in truth.items():
        pool = pool.append_column(name, column)
    save_table(site.folder / "truth.parquet", pool)
