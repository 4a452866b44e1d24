"""docs/steps.md: every step, from its signature, its decorator and its docstring."""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa

from curate import step
from curate.step import REQUIRED, Operational, Spec, known_steps, load_step
from tests.docs.markdown import NOTICE, code, prose, table
from tests.docs.words import setting_default, type_in_words

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
KINDS = {"step": "row by row", "whole": "a barrier: it needs every row that is alive", "fetch": "a fetch: it asks the network"}
USES = {"blocklist": "- blocklist: {words: words.txt, domains: domains.txt}",
        "join": "- join: {file: scores/*.parquet, as: theirs}",
        "concept_match": "- concept_match: {entries: metadata.json}",
        "hypernym": "- hypernym: {table: names.tsv}",
        "word_list": "- word_list: {words: wikipedia_counts.tsv, min_count: 5}",
        "head": "- head: {of: ref, file: heads/mine}",
        "aesthetic": "- aesthetic: {of: ref, file: heads/aesthetic}",
        "watermark": "- watermark: {of: ref, file: heads/watermark}"}
"""A line of use for steps that no pipeline of ours has and that do not run without a setting."""

TOP = """\
# Steps

A step measures: it reads columns, adds columns, and never drops a row. `curate steps` prints the same as this page in short.

Three kinds:

- **row by row** (`@step`): the value of a row depends on that row only. Changing a keep before it measures only the rows that
  come back.
- **barrier** (`@whole`): the value depends on the other rows, so it waits for all of them. When other rows reach it, it runs
  again, and so does everything that reads its columns.
- **fetch** (`@fetch`): asks the network. What it got belongs to the picture, not to the row, and is kept.

An *operational* setting changes how fast or how politely a step works, never what it measures. It is not part of the identity of
the columns, so changing it measures nothing again. All other settings are part of it: see
[how it works](how_it_works.md#identity-of-a-column).

## Settings of every step

| setting | what it does | example |
| --- | --- | --- |
| `as: prefix` | puts the prefix before the columns that the step adds, so that a step can be used twice | \
`- clip_embed: {as: ref}` adds `ref_image_emb`, `ref_text_emb` |
| `of: prefix` | reads the columns with that prefix instead of the plain ones | \
`- clip_score: {of: ref}` reads `ref_image_emb`, `ref_text_emb` |
| `reads: {a: b}` | reads column `b` where the step says `a` | `- caption_length: {reads: {caption: title}, as: title}` |
| `first: weights` | only beside `pretrained: loop`: the weights of round 0, or `raw` | [settings](settings.md#loop) |

A step whose columns are *named after the model* takes the prefix of `of:` for what it adds, unless `as:` gives another.

## All steps

"""


def steps_page() -> str:
    """The whole page."""
    specs = [load_step(name) for name in known_steps()]
    overview = table(["step", "kind", "adds"], ([f"[{code(s.name)}](#{s.name})", _kind(s), ", ".join(map(code, _adds(s)))
                                                 or "columns that depend on its settings"] for s in specs))
    return f"{NOTICE}\n{TOP}{overview}\n" + "\n".join(map(_section, specs))


def _kind(spec: Spec) -> str:
    return KINDS[spec.kind].split(":")[0]


def _adds(spec: Spec) -> dict[str, pa.DataType]:
    return {} if callable(spec.adds) else dict(spec.adds)


def _section(spec: Spec) -> str:
    facts = [f"- kind: {KINDS[spec.kind]}", f"- reads: {_reads(spec)}",
             *(["- takes a GPU where there is one, else the CPU"] if spec.gpus else []),
             *(["- its columns are named after the model: `of: ref` gives `ref_…`"] if spec.follows else []),
             *(["- adds: columns that depend on its settings"] if callable(spec.adds) else [])]
    settings = [[code(s.name), type_in_words(s.annotation) + " (operational)" * (Operational in s.tags), setting_default(s)]
                for s in spec.settings.values()]
    parts = [f"### {spec.name}\n", prose(inspect.getdoc(spec.target) or ""), f"```yaml\n{use_of(spec.name)}\n```\n",
             "\n".join(facts) + "\n", _adds_table(spec), table(["setting", "takes", "default"], settings) if settings else ""]
    return "\n".join(part for part in parts if part)


def _reads(spec: Spec) -> str:
    return ", ".join(code(name) + (" (if there is one)" if name in spec.optional else "") for name in spec.reads) or "nothing"


def _adds_table(spec: Spec) -> str:
    notes = dict.fromkeys(spec.volatile, " (volatile: in no keep, shard or hash)")
    rows = [[code(name), _type(kind) + notes.get(name, "")] for name, kind in _adds(spec).items()]
    return table(["adds", "type"], rows) if rows else ""


def _type(kind: pa.DataType) -> str:
    return "vector, half precision" if kind == step.vector else "image: file, offset, length" if kind == step.image else str(kind)


def use_of(name: str) -> str:
    """A YAML list item that uses the step: from a pipeline of ours, or made up."""
    if name in USES:
        return USES[name]
    needed = [s.name for s in load_step(name).settings.values() if s.default is REQUIRED]
    plain = f"- {name}: {{{', '.join(f'{n}: …' for n in needed)}}}" if needed else f"- {name}"
    return next((line for line in _lines() if re.match(rf"- {name}(:|$)", line)), plain)


@cache
def _lines() -> list[str]:
    return list(_read())


def _read() -> Iterator[str]:
    for path in sorted(PIPELINES.glob("*.yaml")):
        for line in path.read_text().splitlines():
            yield re.sub(r" +#.*", "", line.strip())
