"""What a run's folder says about how it was made, for cards: steps with versions and weights, hashes, source files, the funnel.

Nothing here names a place on this machine: of an absolute path only the last part is told.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate import files
from curate.cards.census import Census
from curate.cards.markdown import counted
from curate.errors import UserError
from curate.folder import Folder
from curate.heads.head import read as read_head
from curate.step import known_steps, load_step
from curate.store import STATE_NAMES

HEADS = ("head", "nsfw", "aesthetic", "watermark")
LOCKS = ("requirements.lock", "uv.lock")
ELSEWHERE = re.compile(r"^(/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\|[a-z0-9+.-]+://)")


@dataclass(frozen=True)
class StepFact:
    """One step as it measured: `weights` is the digest of its model's tensors, or empty."""

    what: str
    step: str
    version: str
    settings: dict[str, Any]
    reads: tuple[str, ...]
    adds: tuple[str, ...]
    id: str
    weights: str


@dataclass(frozen=True)
class Hash:
    """A digest and what it is the digest of."""

    what: str
    value: str


def public(value: Any) -> Any:
    """A setting without the places it names: of an absolute path or an address only the last part."""
    if isinstance(value, Mapping):
        return {str(k): public(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [public(v) for v in value]
    if isinstance(value, str) and ELSEWHERE.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def steps(folder: Folder) -> list[StepFact]:
    """The steps of a run in order."""
    known, digests = set(known_steps()), _weights(folder)
    facts = []
    for stage in folder.stages:
        if "step" not in stage:
            continue
        settings = {n: public(v) for n, v in stage["settings"].items() if v is not None and v != ""}
        version = stage.get("version", load_step(stage["step"]).version if stage["step"] in known else "")
        names = [v for v in stage["settings"].values() if isinstance(v, str)]
        weights = next((d for n in names if (d := digests.of(n, stage["settings"]))), "")
        facts.append(StepFact(str(public(stage["what"])), stage["step"], str(version), settings, tuple(stage["reads"].values()),
                              tuple(stage["adds"].values()), stage["folder"].rpartition("-")[2], weights))
    return facts


@dataclass(frozen=True)
class _Weights:
    rounds: Mapping[str, str]
    seen: Mapping[str, str]

    def of(self, name: str, settings: Mapping[str, Any]) -> str:
        """The digest of weights by the name that a setting gives them; empty where nothing was recorded."""
        if name in self.rounds:
            return self.rounds[name]
        start = f"{settings.get('model', '')} "
        found = {d for k, d in self.seen.items() if k.startswith(start) and f"{name} " in k[len(start) - 1 :]}
        return found.pop() if len(found) == 1 else ""


def _weights(folder: Folder) -> _Weights:
    return _Weights({r["weights"]: r["weights_digest"] for r in rounds(folder)},
                    files.read_json(folder.root / "weights.json", {}))


def rounds(folder: Folder) -> list[dict[str, Any]]:
    """rounds.json, or nothing where there was no loop."""
    return list(files.read_json(folder.root / "rounds.json", []))


def time_of(folder: Folder) -> str:
    """When run.json was written, in UTC."""
    return str(files.read_json(folder.root / "run.json")["time"])


def funnel(folder: Folder) -> list[dict[str, Any]]:
    """The funnel; raises UserError where it does not add up, and where its end is not what the kept files say."""
    found = list(files.read_json(folder.root / "funnel.json"))
    before = folder.source.num_rows
    for entry in found:
        if entry["in"] != before or entry["in"] != entry["kept"] + sum(entry[s] for s in STATE_NAMES[1:]):
            raise UserError(f"{folder.root}/funnel.json does not add up at '{entry['what']}'; run the pipeline again")
        before = entry["kept"]
    kept = sum(folder.store.kept_footer(folder.chain, s)[1] for s in range(folder.source.num_shards))
    if before != kept:
        raise UserError(f"{folder.root}/funnel.json ends with {before:,} rows and the run kept {kept:,}; run the pipeline again")
    return found


def hashes(folder: Folder, manifest: Mapping[str, Any] | None) -> Iterator[Hash]:
    """Everything by which two runs can be compared."""
    if manifest is not None:
        yield Hash("manifest.json of the shards, sha256", files.file_digest(folder.store.shards / "manifest.json"))
        yield Hash("table of shards (every file's sha256, rows and uids)", manifest["digest"])
    yield Hash("rows kept (source and all that was decided)", files.digest([folder.source.digest, folder.chain]))
    yield Hash("chain of stages", folder.chain)
    yield Hash("source (what its files hold and how they are read)", folder.source.digest)
    recipe = [{k: v for k, v in s.items() if k in ("what", "clauses", "settings", "reads", "adds", "top")} for s in folder.stages]
    yield Hash("recipe (stages and settings as they ran)", files.digest(recipe))
    pipeline = Path(folder.pipeline)
    if pipeline.is_file():
        yield Hash(f"{pipeline.name} as it lay there when this card was made, sha256", files.file_digest(pipeline))
        lock = next((p / name for p in pipeline.resolve().parents[:3] for name in LOCKS if (p / name).is_file()), None)
        if lock is not None:
            yield Hash(f"{lock.name} beside it, sha256", files.file_digest(lock))
    yield from (Hash(f"weights of '{s.what}', by tensor", s.weights) for s in steps(folder) if s.weights)
    yield from heads(folder)


def heads(folder: Folder) -> Iterator[Hash]:
    """The heads that steps used, as they lie there now, calibration and their makers' thresholds; one that is gone says so."""
    for stage in folder.stages:
        file = stage.get("settings", {}).get("file")
        if stage.get("step") not in HEADS or file is None:
            continue
        try:
            found = read_head(Path(file)).card
        except UserError:
            yield Hash(f"head of '{public(stage['what'])}', which cannot be read any more", "none")
            continue
        cuts = ", ".join(f"{name} {cut:g}" for name, cut in found.threshold.model_dump().items() if cut is not None)
        yield Hash(f"head of '{public(stage['what'])}' as it lay there when this card was made: {found.name}, calibration "
                   f"{found.calibration.type}, its maker's thresholds {cuts or 'none'}, licence {found.licence}; sha256 of its "
                   "numbers", found.sha256)


def measured_by(folder: Folder, column: str) -> str:
    """The stage that adds a column of the shards, or `source`."""
    caption = files.read_json(folder.root / "run.json").get("shards", {}).get("caption", "caption")
    column = {"caption": caption, "source_caption": "caption"}.get(column, column) if caption != "caption" else column
    return next((str(public(s["what"])) for s in folder.stages if column in s.get("adds", {}).values()), "source")


def collection(folder: Folder) -> str:
    """How the rows came here, in a sentence; our own words."""
    kinds = {"pairs": "tables of urls and captions", "shards": "tars of pictures with captions",
             "images": "folders of pictures with captions"}
    source = folder.source
    text = (f"The source: {counted(source.num_rows, 'row')} in {counted(len(source.parts), 'file')}, "
            f"{kinds[source.settings['kind']]}, read as {counted(source.num_shards, 'shard')}. ")
    if any(s.get("step") == "download" for s in folder.stages):
        return text + "Each picture was fetched once from its url, decoded, resized and encoded anew by the step download."
    return text + "The pictures lay there already; this run fetched none."


def privacy(folder: Folder, found: Census) -> str:
    """What is known about personal data, and what is not; our own words."""
    text = []
    for name, (before, after) in found.truths.items():
        if name.endswith("exif_gps"):
            text.append(f"{before[True]:,} of {before.total():,} rows with a fetched picture had a GPS position in its file's "
                        f"EXIF, {after[True]:,} of them were kept.")
    if any(s.get("step") == "download" for s in folder.stages):
        text.append("Stored pictures are encoded anew from their pixels: no EXIF, XMP, IPTC or other metadata of the file is "
                    "stored.")
    else:
        text.append("Pictures are the source's own files: metadata in them (EXIF, GPS, XMP) was neither counted nor removed.")
    scans = sorted({s["step"] for s in folder.stages if s.get("step") in ("private_data", "faces", "blocklist")})
    text.append(f"Captions or pictures were also looked through by: {', '.join(scans)}." if scans else
                "Captions were not searched for names, addresses or numbers, and pictures not for faces.")
    return " ".join(text)
