"""What was searched for among all rows, and how far to trust it, in words: near-duplicates, pictures of benchmarks, stand-ins."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from curate import files
from curate.folder import Folder


def lines(folder: Folder) -> Iterator[str]:
    """Sentences about the steps dedupe and decontaminate of a run, in its order; then what its tars came with."""
    certified = files.read_json(folder.root / "run.json").get("decontaminated", [])
    own = set[str]()
    for stage in folder.stages:
        if stage.get("step") == "dedupe":
            yield from _near_duplicates(folder, stage)
        elif stage.get("step") == "decontaminate":
            own |= set(stage["settings"]["against"])
            yield from _benchmarks(folder, stage, certified)
    for entry in certified:
        if entry["benchmark"] not in own:
            yield (f"The manifests of the tars that were read say: free of pictures of the benchmark {entry['benchmark']}, by "
                   f"`{entry['keep']}`, content digest {entry['digest']}.")


def stand_ins(folder: Folder) -> Iterator[str]:
    """A sentence for each step that had to do without a tagger."""
    for stage in folder.stages:
        if stage.get("settings", {}).get("tagger") == "stand_in":
            yield f"{stage['what']}: lists and patterns stand in for a part-of-speech tagger; `tagger: spacy:MODEL` is one."


def _near_duplicates(folder: Folder, stage: Mapping[str, Any]) -> Iterator[str]:
    done = files.read_json(folder.root / "columns" / stage["folder"] / "done.json", {}) if stage["folder"] else {}
    facts = done.get("facts")
    if facts is None:
        return
    text = (f"{stage['what']}: near-duplicates among {facts['rows']:,} rows ({facts['different']:,} different embeddings), "
            f"cos {facts['cos']:g}")
    if facts["without_direction"]:
        text += f"; {facts['without_direction']:,} rows have no embedding to compare"
    if facts["how"] == "exact":
        yield f"{text}. Every embedding was compared with every one kept before it."
        return
    recall = facts["recall"]
    text += f". Each was compared with those in {facts['probes']:,} of {facts['cells']:,} cells. "
    if not recall["pairs"]:
        yield f"{text}Brute force found no near pair of {recall['queries']:,} rows drawn at random, so the recall is not known."
        return
    yield (f"{text}Of {recall['pairs']:,} near pairs that brute force found for {recall['queries']:,} rows drawn at random, it "
           f"finds {100 * recall['value']:.2f} % (95 % interval {100 * recall['low']:.2f} to {100 * recall['high']:.2f} %).")


def _benchmarks(folder: Folder, stage: Mapping[str, Any], certificates: list[dict[str, Any]]) -> Iterator[str]:
    settings, held = stage["settings"], {entry["benchmark"]: entry for entry in certificates}
    found, kept = _counts(folder, stage["adds"]["contaminated_by"])
    ways = {"the same bytes": settings["bytes"], f"phash within {settings['hash_bits']} bits": settings["hash_bits"] is not None,
            f"embeddings at cos {settings['cos']} or nearer": settings["cos"] is not None}
    by = ", ".join(way for way, is_on in ways.items() if is_on)
    for name in settings["against"]:
        text = (f"{stage['what']}: {found[name]:,} rows show a picture of the benchmark {name} ({by}), {kept[name]:,} of them "
                "were kept. ")
        if name in held and not kept[name]:
            entry = held[name]
            yield f"{text}Certificate: `{entry['keep']}`, content digest of the benchmark {entry['digest']}."
        else:
            yield f"{text}No certificate: no keep stops them."


def _counts(folder: Folder, column: str) -> tuple[Counter[str], Counter[str]]:
    """Rows by the value of a column: all, and those kept. A row in two benchmarks counts for the first."""
    found, kept = Counter[str](), Counter[str]()
    if column not in folder.columns:
        return found, kept
    for number in range(folder.source.num_shards):
        shard = folder.shard(number)
        values = shard.column(folder.columns[column])
        for counter, part in ((found, values), (kept, values.take(shard.kept.alive))):
            counter.update({v["values"]: v["counts"] for v in part.drop_null().value_counts().to_pylist()})
    return found, kept
