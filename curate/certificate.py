"""What a set of shards may say of itself: against which benchmarks its rows were checked, and how."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from curate import files, remote
from curate.keep import KEPT, evaluate, parse
from curate.sources.locations import SourceFile, content
from curate.sources.source import Source
from curate.stages import KeepUse, Stage, StepUse

NAMES = ("benchmark", "digest", "keep")
HOW = ("bytes", "hash_bits", "max_levels", "cos", "model", "pretrained")


def certified(stages: Sequence[Stage], source: Source) -> list[dict[str, Any]]:
    """What may be said of the rows that a run over `source` keeps: by its own stages, and by the sets that its tars are of."""
    own = certificates(stages)
    return own + [entry for entry in certified_source(source) if entry not in own]


def certificates(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """An entry for each benchmark of each `decontaminate` behind which a keep lets nothing contaminated or unknown pass.

    {benchmark, digest (of its files' contents), keep, and the settings that said how}.
    """
    return [entry for number, stage in enumerate(stages) if isinstance(stage, StepUse) and stage.spec.name == "decontaminate"
            for entry in _of(stage, stages[number + 1 :])]


def certified_source(source: Source) -> list[dict[str, Any]]:
    """What the manifests beside all tars of a source say of benchmarks; rows taken from these tars may say the same.

    A tar counts where a manifest of ours is as it was written and names it at its size: one foreign tar, and nothing is said.
    """
    if source.settings["kind"] != "shards":
        return []
    beside = defaultdict[str, dict[str, int]](dict)
    for part in source.parts:
        folder, _, name = part.path.rpartition("/")
        beside[folder][name] = part.bytes
    said = [_manifest_entries(folder, sizes) for folder, sizes in sorted(beside.items())]
    return [entry for entry in (said[0] if said else []) if all(entry in entries for entries in said)]


def _manifest_entries(folder: str, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """The entries of the manifest in a folder; none where it is not as it was written, or knows other tars than these."""
    file = SourceFile(f"{folder}/manifest.json", "")
    try:
        with remote.told(f"read '{file.shown}'"), suppress(FileNotFoundError, PermissionError), file.open() as opened:
            manifest = json.loads(opened.read())
            as_written = manifest.pop("digest") == files.digest(manifest)
            listed = {entry["file"]: entry["bytes"] for entry in manifest["shards"]}
            entries = [entry for entry in manifest["decontaminated"] if all(isinstance(entry[name], str) for name in NAMES)]
            return entries if as_written and sizes.items() <= listed.items() else []
    except (ValueError, TypeError, AttributeError, LookupError):
        pass            # a manifest of somebody else's
    return []


def digest_of(where: str) -> str:
    """The digest that a certificate has for the files at `where`: a folder, a file or a pattern. Raises UserError without any."""
    return str(content({"": where})[""])


def lacking(entries: Sequence[Mapping[str, Any]] | None, benchmarks: Sequence[str]) -> Iterator[str]:
    """A line for each place of benchmark files that a training set, of which `entries` are known, is not known to be free of."""
    for where in benchmarks:
        if not entries:
            yield (f"nothing says that the training data was checked for the pictures of {where}: decontaminate, "
                   "keep: not contaminated")
        elif digest_of(where) not in {entry["digest"] for entry in entries}:
            names = ", ".join(sorted({entry["benchmark"] for entry in entries}))
            yield f"the training data was checked for the pictures of {names}, not for those of {where}"


def _of(stage: StepUse, behind: Sequence[Stage]) -> Iterator[dict[str, Any]]:
    column = stage.adds["contaminated"]
    clauses = (c for s in behind if isinstance(s, KeepUse) for c in s.keep.clauses if c.columns == (column,))
    keep = next((clause.text for clause in clauses if _drops(clause.text, column)), None)
    if keep is not None:
        how = {name: stage.settings[name] for name in HOW if stage.settings[name] not in (None, "", False)}
        if "hash_bits" not in how:
            how.pop("max_levels", None)
        for name, digest in content(stage.settings["against"]).items():
            yield {"benchmark": name, "digest": digest, "keep": keep, **how}


def _drops(clause: str, column: str) -> bool:
    """Whether a keep stops a row that is contaminated, and one of which that is not known."""
    rows = pa.table({column: pa.array([True, None])})
    return not bool((evaluate(parse(clause, {column: pa.bool_()}), rows).state == KEPT).any())
