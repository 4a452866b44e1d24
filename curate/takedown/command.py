"""`curate takedown`: what is on a list, or looks like a picture, or has a uid, leaves a run (or tars) with all its copies.

    find      which rows and pictures; nothing is changed, and a dry run ends here
    begin     the decision is written down; a takedown that is killed after this goes on with it
    scrub     out of index, report, shards, tombstones in, out of pictures, source, columns, states, tables of pairs
    pack      shards, funnel; then index, report and card anew, those there were
    end       a line in takedowns.jsonl

Nothing is on the way back: no backup is made, and no file holds what is gone but the operator's own list.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import files, tombstones
from curate.cards.card import write_card
from curate.cards.publish import PUBLISHED
from curate.errors import UserError
from curate.folder import Folder
from curate.pages.page import write as write_report
from curate.pipeline import ShardSettings
from curate.sources.source import Source
from curate.store import ALIVE, Store
from curate.takedown import journal, packed, tars
from curate.takedown.evidence import Evidence
from curate.takedown.find import Found, find
from curate.takedown.journal import Plan
from curate.takedown.scrub import scrub
from curate.takedown.wanted import Wanted, wanted

UNTOUCHED = "not touched: trained models, publications, copies elsewhere, backups, and the source's own files"


def takedown(target: str, *, file: Path | None, image: Path | None, uids: Sequence[str], bits: int, dry_run: bool,
             attempt: str) -> Iterator[str]:
    """Take down; lines that say what went. With `dry_run` only say it. Raises UserError, before anything changes."""
    root, asked = Path(target), file is not None or image is not None or bool(uids)
    if not (root / "run.json").exists():
        yield from tars.takedown(target, lambda: wanted(file, image, uids, bits), dry_run, attempt)
        return
    pending = journal.read(root)
    if pending is not None and not dry_run:
        yield f"going on with a takedown of {pending.num_rows:,} rows that did not come to its end"
        yield from _carry_out(root, pending, attempt)
    if asked or pending is None:
        yield from _of_run(root, wanted(file, image, uids, bits), dry_run, attempt)


def _of_run(root: Path, asked: Wanted, dry_run: bool, attempt: str) -> Iterator[str]:
    folder = Folder.open(root)
    store = Store(root, attempt)
    with store.lock():
        found = find(Evidence(store, folder.source, asked), asked)
        plan = _plan(folder, found, asked)
        if plan.rows and not dry_run:
            journal.begin(root, plan, attempt)
    if not plan.rows:
        yield f"{root} holds nothing of it"
        return
    tied = found.num_rows - found.seeds - found.near
    yield (f"{found.num_rows:,} rows of {len(found.image_ids):,} pictures{' would' if dry_run else ''} go: {found.seeds:,} on "
           f"the list, {found.near:,} that look like them, {tied:,} tied to these (one picture, copies, duplicates)")
    if asked.listed.md5 and not folder.source.has_images:
        yield "md5 was compared with files as they are stored: of those that came, a run keeps only the sha256"
    if dry_run:
        yield from (f"  {uid}" for uid in _uids(folder, found))
        yield from _told(plan)
    else:
        yield from _carry_out(root, plan, attempt)


def _plan(folder: Folder, found: Found, asked: Wanted) -> Plan:
    root = folder.root
    again = [n for n, path in (("index", "index/index.json"), ("report", "report/index.html"), ("card", "card/README.md"))
             if (root / path).exists()]
    index = files.read_json(root / "index" / "index.json", {})
    published = list(dict.fromkeys(p["to"] for p in files.read_json(root / PUBLISHED, [])))
    return journal.plan_of(found, asked.listed.digest, asked.bits, kept_rows=_kept(folder, found), models=_models(root, found),
                           published=published, again=again, shards=packed.settings_of(root),
                           index_model=index.get("model", {}).get("prefix", ""))


def _kept(folder: Folder, found: Found) -> int:
    states = [folder.store.read_kept(folder.chain, n).state[rows] for n, rows in found.rows.items() if folder.is_through(n)]
    return int(sum((state == ALIVE).sum() for state in states))


def _models(root: Path, found: Found) -> list[str]:
    """Models of which it is known that they were trained on one of the rows, and those of which it is not known."""
    rounds = files.read_json(root / "rounds.json", [])
    trained = [r for r in rounds if r["weights"].startswith("models/")]
    tables = {Path(r["weights"]).parts[1]: f"pairs-{r['trained_on']}.parquet" for r in trained}
    uids = pa.array(sorted(found.uids), pa.string())
    saw = []
    for path in sorted(p for p in (root / "models").glob("*") if p.is_dir() and not p.name.startswith(".")):
        table = root / "models" / tables.get(path.name, "")
        if not table.is_file() or pc.any(pc.is_in(pq.read_table(table, columns=["uid"])["uid"], uids)).as_py():
            saw.append(f"models/{path.name}")
    return saw


def _uids(folder: Folder, found: Found) -> Iterator[str]:
    for number, rows in found.rows.items():
        yield from folder.source.table(number, ["uid"])["uid"].take(pa.array(np.array(rows))).to_pylist()


def _carry_out(root: Path, plan: Plan, attempt: str) -> Iterator[str]:
    store, rewritten = Store(root, attempt), 0
    with store.lock():
        files.sweep(root)
        tombstones.add(root, plan.tombstones, attempt)
        for name in ("index", "report"):
            shutil.rmtree(root / name, ignore_errors=True)
        rewritten += sum(1 for _ in packed.drop(root, plan))
        rewritten += sum(1 for _ in scrub(store, Source.open(store.source), plan))
        rewritten += sum(1 for _ in packed.pack(root, ShardSettings(**plan.shards), attempt))
    for name in plan.again:
        yield from _again(root, name, plan, attempt)
    with store.lock():
        journal.end(root, plan, rewritten, attempt)
    yield f"{rewritten:,} files rewritten; {plan.num_rows:,} rows are `removed` in the funnel: {root / journal.RECORD}"
    yield from _told(plan)


def _again(root: Path, name: str, plan: Plan, attempt: str) -> Iterator[str]:
    """Make one of them anew. What cannot be made is gone (the index, the report), or stops the takedown (the card)."""
    if name == "card":
        for line in write_card(root, attempt):
            yield f"card: {line}"
        return
    try:
        if name == "index":
            from curate.retrieval.indexed import build

            for line in build(root, model=plan.index_model, attempt=attempt):
                yield f"index: {line}"
        else:
            yield f"report: {write_report(root, attempt)}"
    except UserError as error:
        yield f"{name}: gone; it could not be made anew: {error}"


def _told(plan: Plan) -> Iterator[str]:
    if plan.models:
        yield f"trained on it, or may be: {', '.join(plan.models)}; a model does not forget, only a new training does without"
    if plan.published:
        yield f"published with it, maybe: {', '.join(plan.published)}; publish again, and tell who took copies"
    yield UNTOUCHED


