"""`curate card`: the README.md and croissant.json of a run, from the run itself and from the little that only a human knows.

    card/card.yaml        name, licence, creator, address: a template at first, read ever after
    card/README.md        Hugging Face front matter and the card; hand-written sections survive
    card/croissant.json   Croissant 1.1 with RAI 1.0

The same run, card.yaml and hand-written sections give the same bytes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from curate import files, recaptioned, searched
from curate.cards import census, facts
from curate.cards import settings as card_settings
from curate.cards.census import Census
from curate.cards.croissant import document
from curate.cards.dataset import Dataset, finished, open_dataset
from curate.cards.markdown import Safe, escaped, number, sections, share
from curate.cards.settings import TODO, CardSettings
from curate.folder import Folder
from curate.sketch import Sketch
from curate.store import STATE_NAMES, Store

SECTIONS = {
    "motivation": "why the dataset was made, by whom, and who paid for it",
    "intended-use": "what it is for",
    "out-of-scope": "what it must not be used for, and its known limitations",
    "bias-analysis": "who and what is over- and under-represented, and how that was looked at",
    "licence": "which rights cover the rows, which the pictures behind the urls, and on what ground they are used",
    "contact": "who answers, how a person has a row taken down, and how long the dataset is kept up",
}
SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MOST = {"values": 20, "files": 200, "sources": 20}
MIN_LANGUAGE = 0.01
"""The share of captions from which a language stands in the front matter (our choice)."""
TASKS = ("image-to-text", "text-to-image", "zero-shot-image-classification")
HF_LICENCES = frozenset("""
    apache-2.0 mit openrail bigscience-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause c-uda
    cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0
    gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl""".split())  # noqa: SIM905  sixty words in quotes are no clearer
"""Licences that Hugging Face's hub knows (hub-docs, repositories-licenses); others become `other` with a name."""
SIZES = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000), ("1M<n<10M", 10_000_000),
         ("10M<n<100M", 100_000_000), ("100M<n<1B", 1_000_000_000), ("1B<n<10B", 10_000_000_000))


@dataclass(frozen=True)
class Card:
    """Everything a card is made of."""

    folder: Folder
    settings: CardSettings
    human: Mapping[str, bytes]
    census: Census

    @cached_property
    def todos(self) -> list[str]:
        """What still waits for a human: keys of card.yaml, names of sections."""
        return [*self.settings.todos, *(name for name, body in self.human.items() if TODO.encode() in body)]

    @cached_property
    def prose(self) -> dict[str, str]:
        """The hand-written sections as texts."""
        return {name: body.decode("utf-8", "replace").strip() for name, body in self.human.items()}

    def readme(self, dataset: Dataset, draft: bool = False) -> bytes:
        """README.md for the dataset as these files."""
        return _render(self, dataset, draft)

    def croissant(self, dataset: Dataset, draft: bool = False) -> dict[str, Any]:
        """croissant.json for the dataset as these files."""
        return document(self.folder, dataset, self.settings, self.prose, self.census, self.languages, draft)

    @property
    def languages(self) -> list[str]:
        """The languages of the captions, the commonest first."""
        if "languages" in self.settings.lists:
            return list(self.settings.lists["languages"])
        return [v for n in self._columns_of("language", "lang") for v, _ in self.census.values[n][1].most_common()
                if self.census.share(n, v) >= MIN_LANGUAGE]

    def _columns_of(self, step: str, own: str) -> list[str]:
        names = [s["adds"][own] for s in self.folder.stages if s.get("step") == step and own in s["adds"]]
        return [n for n in names if n in self.census.values]


def write_card(root: Path, attempt: str) -> Iterator[str]:
    """Write or refresh RUN/card; lines that say what came out. Raises UserError before anything is written."""
    folder = finished(root)
    with Store(root, attempt).lock():
        path = root / "card" / "card.yaml"
        if not path.exists():
            files.write_bytes(path, card_settings.TEMPLATE.encode(), attempt)
            yield f"{path}: a template; fill it in and run the same command again"
        card = read_card(folder)
        dataset = open_dataset(folder, with_images=True)
        readme, croissant = card.readme(dataset), card.croissant(dataset)
        files.write_bytes(root / "card" / "README.md", readme, attempt)
        files.write_json(root / "card" / "croissant.json", croissant, attempt)
    yield f"{root / 'card' / 'README.md'} and croissant.json: {dataset.rows:,} rows, {len(dataset.files)} files"
    if card.todos:
        yield f"{TODO}: {', '.join(card.todos)}"


def read_card(folder: Folder) -> Card:
    """The card of a finished run, with what a human wrote so far. Raises UserError for damaged markers or settings."""
    where = folder.root / "card" / "README.md"
    settings = card_settings.read(folder.root / "card" / "card.yaml")
    human = {name: f"\n{TODO}: {wanted}.\n".encode() for name, wanted in SECTIONS.items()}
    if where.exists():
        human = sections(where.read_bytes(), str(where), tuple(SECTIONS))
    facts.funnel(folder)
    return Card(folder, settings, human, census.take(folder))


def _render(card: Card, dataset: Dataset, draft: bool) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True, finalize=escaped, autoescape=False)
    environment.filters |= {"safe_md": Safe, "dashes": lambda _: Safe("---:")}
    marks = {name: f"\0{name}\0" for name in SECTIONS}      # put in as bytes below: nothing touches what a human wrote
    text = environment.get_template("card.md.j2").render(
        human=lambda name: Safe(marks[name]), draft=draft, **_values(card, dataset, draft))
    made = text.encode()
    for name, mark in marks.items():
        made = made.replace(mark.encode(), b"<!-- human: %s -->%s<!-- /human -->" % (name.encode(), card.human[name]))
    return made


def _values(card: Card, dataset: Dataset, draft: bool) -> dict[str, Any]:
    """What the template shows. Numbers and our own words are `Safe`; everything else is escaped when it is put in."""
    folder, found, settings = card.folder, card.census, card.settings
    return {
        "front_matter": Safe(_front_matter(card, dataset, draft)), "title": settings.title, "todos": card.todos or ["nothing"],
        "description": _long(settings.texts["description"]), "kept": number(found.kept), "rows": number(found.rows),
        "kept_share": share(found.kept, found.rows), "num_tars": number(len(dataset.tars)),
        "num_tables": number(len(dataset.tables)), "size": number(dataset.bytes), "version": settings.texts["version"],
        "published": settings.texts["datePublished"], "licence": " and ".join(settings.lists["license"]),
        "creator": ", ".join(a["name"] for a in settings.parties["creator"]), "url": settings.texts["url"],
        "time": Safe(facts.time_of(folder)), "cite_as": _long(settings.texts.get("citeAs", "")),
        "columns": [{"name": f.name, "type": str(f.type), "by": _measured_by(folder, f.name)} for f in dataset.schema],
        **_distributions(found), "hosts": _hosts(found), **_collection(folder, found), "funnel": list(_funnel(folder)),
        "duplicates": list(_duplicates(folder, found)),
        "searched": list(searched.lines(folder)), "recaptioned": list(recaptioned.lines(folder)),
        "privacy": Safe(facts.privacy(folder, found)), **_rounds(folder),
        "examples": list(_examples(found)), "steps": list(_steps(folder)),
        "hashes": [{"what": h.what, "value": h.value} for h in facts.hashes(folder, dataset.manifest)], **_files(dataset),
        "freshness": Safe(_freshness(folder)),
    }


def _long(text: str) -> Safe:
    return Safe(escaped(text, limit=10_000))


def _front_matter(card: Card, dataset: Dataset, draft: bool) -> str:
    """The YAML that Hugging Face's hub reads; written by a YAML writer, so no name or text can leave its place."""
    licences = [i.lower() for i in card.settings.lists["license"]]
    licence: dict[str, Any] = {"license": licences[0] if len(licences) == 1 else licences}
    if not set(licences) <= HF_LICENCES:
        licence = {"license": "other", "license_name": "-and-".join(licences),
                   "license_link": f"https://spdx.org/licenses/{card.settings.lists['license'][0]}.html"}
    tables = {"config_name": "metadata" if dataset.with_images else "default",
              "data_files": [{"split": "train", "path": f"{dataset.folder}/*.parquet"}]}
    pictures = {"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]}
    matter = {
        "language": card.languages or ["und"], **licence, "pretty_name": card.settings.title,
        "tags": sorted({"croissant", "image-text-pairs", *(["webdataset"] if dataset.with_images else []),
                        *(["draft"] if draft else []), *card.settings.lists.get("keywords", ())}),
        "size_categories": [next((name for name, below in SIZES if dataset.rows < below), "n>1T")],
        "task_categories": list(card.settings.lists.get("task_categories", TASKS)),
        "configs": [pictures, tables] if dataset.with_images else [tables],
        "dataset_info": {"config_name": tables["config_name"], "features": [_feature(f.name, f.type) for f in dataset.schema],
                         "splits": [{"name": "train", "num_bytes": dataset.row_bytes, "num_examples": dataset.rows}],
                         "download_size": sum(f.bytes for f in dataset.tables), "dataset_size": dataset.row_bytes}}
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=120)


def _feature(name: str, kind: pa.DataType) -> dict[str, Any]:
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type):
        return {"name": name, "list": [_feature(f.name, f.type) for f in kind.value_type]}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"name": name, "sequence": _dtype(kind.value_type)}
    return {"name": name, "dtype": _dtype(kind)}


def _dtype(kind: pa.DataType) -> str:
    """Hugging Face's word for an Arrow type."""
    return {"double": "float64", "float": "float32", "halffloat": "float16"}.get(str(kind), str(kind))


def _measured_by(folder: Folder, column: str) -> str:
    return "the packing: names a row's members in its tar" if column == "key" else facts.measured_by(folder, column)


def _distributions(found: Census) -> dict[str, Any]:
    def cells(sketch: Sketch) -> list[Safe]:
        return [number(sketch.count), *(number(sketch.quantile(s)) for s in SHARES)]

    def values(name: str, before: Counter[str], after: Counter[str]) -> dict[str, Any]:
        ranked = sorted(before, key=lambda v: (-after[v], -before[v], str(v)))
        shown, rest = ranked[: MOST["values"]], ranked[MOST["values"] :]
        rest_before, rest_after = sum(before[v] for v in rest), sum(after[v] for v in rest)
        return {"name": name, "others": len(rest), "others_before": number(rest_before), "others_after": number(rest_after),
                "others_share": share(rest_after, after.total()),
                "rows": [{"value": v, "before": number(before[v]), "after": number(after[v]),
                          "share": share(after[v], after.total())} for v in shown]}

    return {"distributions": [{"name": n, "before": cells(b), "after": cells(a)} for n, (b, a) in found.numbers.items()],
            "truths": [{"name": n, "before": number(b[True]), "before_of": number(b.total()), "after": number(a[True]),
                        "after_of": number(a.total())} for n, (b, a) in found.truths.items()],
            "values": [values(n, b, a) for n, (b, a) in found.values.items() if b]}


def _hosts(found: Census) -> dict[str, Any] | None:
    hosts = found.hosts
    if hosts is None:
        return None
    return {"distinct": number(hosts.distinct), "source_distinct": number(hosts.source_distinct), "hhi": number(hosts.hhi),
            "gini": number(hosts.gini),
            "share_10": share(hosts.top_10, hosts.rows), "share_100": share(hosts.top_100, hosts.rows),
            "top": [{"host": h, "rows": number(n), "share": share(n, hosts.rows)} for h, n in hosts.top]}


def _collection(folder: Folder, found: Census) -> dict[str, Any]:
    parts = folder.source.parts
    downloads = [s for s in folder.stages if s.get("step") == "download"]
    statuses = found.values.get(downloads[0]["adds"]["status"]) if downloads else None
    return {
        "collection": Safe(facts.collection(folder)), "more_sources": max(len(parts) - MOST["sources"], 0),
        "sources": [{"name": facts.public(p.path), "rows": number(p.rows), "sha256": p.sha256 or "not hashed: read from afar"}
                    for p in parts[: MOST["sources"]]],
        "opt_outs": list(_opt_outs(folder, found)),
        "statuses": [{"name": n, "rows": number(c), "share": share(c, statuses[0].total())}
                     for n, c in sorted(statuses[0].items(), key=lambda i: (-i[1], i[0]))] if statuses else []}


def _opt_outs(folder: Folder, found: Census) -> Iterator[dict[str, Any]]:
    """Every step that asks whether somebody said no: under which policy it did, and what it found by which signal."""
    for stage in (s for s in folder.stages if s.get("step") in ("download", "opt_out")):
        noted = "opt_out_signal" in stage["adds"]                       # not by versions of `download` before the third
        counts = found.values[stage["adds"]["opt_out_signal"]][0] if noted else Counter[str]()
        none: list[tuple[str, int | None]] = [("none", 0) if noted else ("not noted", None)]
        signals = sorted(counts.items(), key=lambda i: (-i[1], i[0])) or none
        policy = stage["settings"].get("opt_out" if stage["step"] == "download" else "policy", "standard")
        yield {"what": stage["what"], "policy": policy, "asked": ", ".join(_asked(stage, policy)) or "nothing",
               "signals": [{"name": name, "rows": number(count)} for name, count in signals]}


def _asked(stage: Mapping[str, Any], policy: str) -> Iterator[str]:
    """What such a step reads; a run of an earlier version has no setting for what it did not know."""
    given = stage["settings"]
    tdmrep = given.get("tdmrep", False)
    if policy != "off":
        yield "X-Robots-Tag and tdm-reservation in headers"
        if given.get("robots"):
            yield "robots.txt"
        if policy == "strict" if tdmrep is None else tdmrep:
            yield "tdmrep.json"
    if given.get("opt_out_list") or given.get("list"):
        yield "a list of the operator's"


def _funnel(folder: Folder) -> Iterator[dict[str, Any]]:
    for entry in facts.funnel(folder):
        gone = {s: entry[s] for s in STATE_NAMES[1:] if entry[s]}
        clauses = entry.get("clauses") or [{"text": "", **gone}]
        reasons = [Safe(f"{number(c[s])} {s}" + (f": <code>{escaped(c['text'], 400)}</code>" if c["text"] else ""))
                   for c in clauses for s in STATE_NAMES[1:] if c.get(s)]
        if listed := sum(c.get(s, 0) for c in clauses for s in STATE_NAMES[1:]) - sum(gone.values()):
            reasons.append(Safe(f"{number(-listed)} for other reasons"))
        yield {"what": Safe(escaped(facts.public(entry["what"]), 400)), "came": number(entry["in"]),
               "left": number(sum(gone.values())), "kept": number(entry["kept"]), "reasons": reasons}


def _duplicates(folder: Folder, found: Census) -> Iterator[dict[str, Any]]:
    yield {"kind": "repeated rows (one uid twice): the first stays", "rows": number(folder.source.num_repeated)}
    for name, (before, after) in found.truths.items():
        if name.endswith(("is_same_image", "is_dup")):
            yield {"kind": f"{name} measured true", "rows": number(before[True])}
            yield {"kind": f"{name} true among the rows kept", "rows": number(after[True])}
    for name in (n for n in found.values if n.endswith("same_how")):
        for how, count in sorted(found.values[name][0].items()):
            yield {"kind": f"the same picture, found by {how}", "rows": number(count)}


def _rounds(folder: Folder) -> dict[str, Any]:
    found = facts.rounds(folder)
    names = list(dict.fromkeys(n for r in found for n in r["figures"]))
    return {"figures": [Safe(escaped(n)) for n in names], "rounds": [{
        "round": number(r["round"]), "weights": r["weights_digest"], "rows": number(r["data"]["rows"]),
        "figures": [number(r["figures"].get(n)) for n in names], "promoted": "yes" if r["promoted"] else "no"} for r in found]}


def _examples(found: Census) -> Iterator[dict[str, Any]]:
    rejected = [e for reason in sorted(found.rejected) for e in found.rejected[reason]]
    for example in [*found.typical, *found.near, *rejected]:
        yield {"why": Safe(escaped(example.why, 200)), "caption": example.caption, "figure": number(example.figure)}


def _steps(folder: Folder) -> Iterator[dict[str, Any]]:
    for fact in facts.steps(folder):
        settings = ", ".join(f"{n}: {v}" for n, v in fact.settings.items())
        yield {"what": fact.what, "version": fact.version or "–", "settings": Safe(escaped(settings, 600)),
               "reads": ", ".join(fact.reads), "id": fact.id, "weights": fact.weights or "–"}


def _files(dataset: Dataset) -> dict[str, Any]:
    return {"more_files": max(len(dataset.files) - MOST["files"], 0),
            "files": [{"path": f.path, "bytes": number(f.bytes), "rows": number(f.rows), "sha256": f.sha256}
                      for f in dataset.files[: MOST["files"]]]}


def _freshness(folder: Folder) -> str:
    text = f"The run's record was written at {facts.time_of(folder)}. "
    if any(s.get("step") == "download" for s in folder.stages):
        return text + "Urls were asked once, before that; whether they still answer has not been checked since."
    return text + "No url was asked."
