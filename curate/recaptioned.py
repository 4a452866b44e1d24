"""What became of the captions that were made for pictures, in words: how many were made, spoilt, rejected, chosen."""

from collections.abc import Iterator, Mapping
from typing import Any

from curate import files
from curate.folder import Folder

TOLD = ("caption_degenerate", "choose_caption")


def lines(folder: Folder) -> Iterator[str]:
    """Sentences about the steps caption_degenerate and choose_caption of a run, in its order; nothing where it has none."""
    for stage in folder.stages:
        if stage.get("step") in TOLD and stage["folder"]:
            facts = files.read_json(folder.root / "columns" / stage["folder"] / "done.json", {}).get("facts")
            if facts is not None:
                yield from (_degenerate if stage["step"] == "caption_degenerate" else _chosen)(stage["what"], facts)


def _degenerate(what: str, facts: Mapping[str, Any]) -> Iterator[str]:
    faults = ", ".join(f"{name} {number:,}" for name, number in facts["faults"].items())
    yield (f"{what}: {facts['degenerate']:,} of {facts['captions']:,} synthetic captions are degenerate"
           f"{f' ({faults}; one may have several)' if faults else ''}.")


def _chosen(what: str, facts: Mapping[str, Any]) -> Iterator[str]:
    yield (f"{what}: by {facts['rule']} {facts['web']:,} of {facts['rows']:,} rows keep the web's text, {facts['synthetic']:,} "
           f"synthetic ones, {facts['both']:,} both, {facts['none']:,} none; {facts['captions']:,} captions in all.")
    if facts["synthetic_judged"]:
        yield (f"{what}: the filter rejects {_share(facts, 'synthetic')} synthetic captions (ITM below {facts['itm']:g}) and "
               f"{_share(facts, 'web')} web texts.")
        yield (f"{what}: BLIP (arXiv 2201.12086, section 4.4): 25 % of the synthetic ones with captioner and filter tuned apart, "
               "8 % where they share weights.")


def _share(facts: Mapping[str, Any], source: str) -> str:
    """The rejected of one source, with what they are a share of."""
    below, judged = facts[f"{source}_below"], facts[f"{source}_judged"]
    return f"{below / max(judged, 1):.1%} of {judged:,}"
