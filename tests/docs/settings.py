"""docs/settings.md: every key of a pipeline file and of a training, from the dataclasses that hold them."""

import dataclasses
from typing import Any

from curate.document import LOOP_KEYS, TOP_KEYS
from curate.expectation import EXPECT_KEYS, Expectation
from curate.keep import CASTS, FUNCTIONS
from curate.loop_settings import LoopSettings
from curate.pipeline import Pipeline, ShardSettings
from curate.sources.locations import ALL_KINDS, KINDS, SourceSettings, parse_source
from curate.stages import TopUse
from tests.docs.checks import check_takes, defaults_of, docs_of, pipeline_takes, source_takes
from tests.docs.markdown import NOTICE, code, table
from tests.docs.words import default
from train.config import Config, Data, Eval

SOURCES = {
    "pairs": "tables of urls and captions: parquet, csv, tsv, jsonl or json, each also packed as .gz",
    "shards": "tars as webdataset, img2dataset and DataComp write them; pictures stay where they are",
    "images": "a folder of pictures with texts beside them, or a table that names them",
}
FIELD_OF = {"steps": "stages", "promote_if": "figure", "top": "fraction", "of": "of_source"}
"""A key of YAML → the field that holds it, where the two differ."""
HEAD = ["key", "takes", "default", "what"]

TOP = """\
# Settings

A pipeline is a YAML file with these keys. A relative path is looked for in the current folder, then in the folder of the file.
`--set` overrides any key: `--set source.limit=1000`, `--set download.image_size=384` (a step by its name or its `as`).
"""
GROWS = ("A source only grows: a new file adds source shards. A file that changed or went is a mistake, exit code 2.\n"
         "A path may be a url, like `s3://bucket/*.parquet`: see [object_stores.md](object_stores.md).\n")
STEPS = """\
## steps

A list. An item is a step (`- language`), a step with settings (`- download: {image_size: 384}`), or a [keep](#keep). The steps
that ship are in [steps.md](steps.md); one of your own is `- ./my_steps.py:name` or `- package.module:name`.
"""
KEEP = """\
## keep

A keep is one expression over the columns so far, as in SQL. Each operand of its top-level `and` is a reason of its own in the
funnel. A row that has no value in a column that the expression reads is *unknown*, and unknown never passes.

```yaml
- keep: num_words between 3 and 50 and lang = 'en'
```

| what may stand in it | |
| --- | --- |
| comparisons | `=` `!=` `<` `<=` `>` `>=` `between … and …` `in (…)` `like` `ilike`, each also with `not` |
| logic | `and` `or` `not`, and a column that is true or false by itself |
| arithmetic | `+` `-` `*` `/` `//` (whole) `%` |
"""
RANK = """\
## top

A keep by rank, for scores that mean something only beside each other. Ties go by uid. It is a barrier.

```yaml
- keep: {top: 0.3, by: clip_cos}
```
"""
SHARDS = """\
## shards

`shards: none` packs nothing; without the key the defaults hold.

```yaml
shards: {rows: 1000}
```
"""
TRAIN = """\
## train

The same keys stand in the file of `curate train FILE`, there at the top level. In a pipeline `data` is set for you and `model` is
that of the loop. An *operational* key changes how fast or how observed, never what is learnt.

```yaml
train: {samples_seen: 50M, batch: 4096, lr: 5e-4}
```
"""
DATA = """\
### train.data

Tars by themselves (`data: shards/*.tar`), or a map of these, with either shards or a table, or a list of such maps:
"""
LOOP = """\
## loop

A step with `pretrained: loop` holds the weights that the loop trains; its `first:` names those of round 0, or is `raw`: then the
first training takes the raw pool. `held_out` and `keep: not held_out` stand before it, and only `top` decides on its columns.
Trainings have the captions that the [shards](#shards) have, `shards: {caption: …}` and a list `captions` too, as far as they are
there at that point of the list: the raw pool has those that stand before it. Judged is by the source's captions.

```yaml
loop: {trainings: 2, promote_if: recall_at_10 improves}
```
"""
EXPECT = """\
## expect

What should come out of a pipeline over the pools it was made for. A run that ends with something else is no mistake: it prints a
line that begins with `warning:`, and its report says the same. `--until` checks nothing.

```yaml
expect: {kept_share: [0.01, 0.2]}
```
"""


def settings_page() -> str:
    """The whole page."""
    keep = KEEP + (f"| functions | {' '.join(map(code, FUNCTIONS))} |\n"
                   f"| casts | `try_cast(… as TYPE)`, null where it fails, to {' '.join(map(code, CASTS))} |\n")
    source = [f"{NOTICE}\n{TOP}", _top(), _source()]
    train = [TRAIN, _fields(Config, ""), DATA, _data(), "### train.eval\n", _fields(Eval, "eval.")]
    return "\n".join([*source, STEPS, keep, RANK, _rank(), SHARDS, _shards(), *train, LOOP, _loop(), EXPECT, _expect()])


def _top() -> str:
    says = docs_of(Pipeline)
    return table(["key", "needed", "what"], ([f"[{code(key + ':')}](#{key})", "yes" if key in ("source", "steps") else "no",
                                              says[FIELD_OF.get(key, key)]] for key in TOP_KEYS))


def _source() -> str:
    kinds = table(["key", "takes", "what"], ([code(k), source_takes(k, k, ""), SOURCES[k]] for k in KINDS))
    keys = [*dict.fromkeys(k for keys in KINDS.values() for k in keys), *ALL_KINDS]
    rows = table(["key", "with", "takes", "default", "what"], map(_source_row, keys))
    return f"## source\n\nOne of these, and keys beside it:\n\n{kinds}\n{rows}\n{GROWS}"


def _source_row(key: str) -> list[str]:
    kinds = [k for k in KINDS if key in (*KINDS[k], *ALL_KINDS)]
    where = "all" if len(kinds) == len(KINDS) else ", ".join(map(code, kinds))
    return [code(key), where, source_takes(kinds[-1], key, {1: 2}), _source_default(key, kinds), docs_of(SourceSettings)[key]]


def _source_default(key: str, kinds: list[str]) -> str:
    """What `parse_source` makes of a source without the key, kind by kind."""
    found = {kind: getattr(parse_source({kind: "x"}), key) for kind in kinds}
    if len(set(found.values())) == 1:
        return _value(found[kinds[0]])
    return ", ".join(f"{_value(value)} with {code(kind)}" for kind, value in found.items())


def _rank() -> str:
    says = docs_of(TopUse)
    rows = [["top", pipeline_takes("keep top: False is not ", keep="{top: no, by: num_chars}"), "**required**"],
            ["by", "a column", "**required**"], ["of", "`source`", "null"]]
    return table(HEAD, ([code(key), takes, given, says[FIELD_OF.get(key, key)]] for key, takes, given in rows))


def _shards() -> str:
    defaults, says = defaults_of(ShardSettings), docs_of(ShardSettings)
    return table(HEAD, ([code(key), pipeline_takes(f"shards.{key}: False is not ", more=f"shards: {{{key}: no}}"),
                         _value(defaults[key]), says[key]] for key in defaults if key != "write"))


def _fields(kind: Any, prefix: str) -> str:
    says = docs_of(kind)
    return table(HEAD, ([code(prefix + f.name), check_takes(f.metadata["check"]) + " (operational)" * f.metadata["operational"],
                         _value(f.default), says[f.name]] for f in dataclasses.fields(kind)))


def _data() -> str:
    says, takes = docs_of(Data), {"root": "text", "missing": "drop, keep", "weight": "a number above 0",
                                  "sources": "a list of such maps, without a key of its own"}
    return table(HEAD, ([code(f"data.{name}"), takes.get(name, "a path or a list of paths"), _value(value), says[name]]
                        for name, value in defaults_of(Data).items()))


def _loop() -> str:
    takes = {"trainings": pipeline_takes("loop.trainings: False is not ", more="loop: {trainings: no}"),
             "promote_if": pipeline_takes("loop.promote_if: False; write it as ", more="loop: {promote_if: no}"),
             "truth": "a parquet file", "mismatched": "an expression, as in a [keep](#keep)"}
    defaults = {"trainings": "1", "promote_if": code("recall_at_10 improves"), "truth": "null", "mismatched": code("mismatched")}
    says = docs_of(LoopSettings)
    return table(HEAD, ([code(key), takes[key], defaults[key], says[FIELD_OF.get(key, key)]] for key in LOOP_KEYS))


def _expect() -> str:
    takes = pipeline_takes("expect.kept_share: False is not ", more="expect: {kept_share: no}")
    says = docs_of(Expectation)
    return table(HEAD, ([code(key), takes, "**required**", says[key]] for key in EXPECT_KEYS))


def _value(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "**required**"
    if isinstance(value, Eval):
        return "see [below](#traineval)"
    return default(value) if value != () else "none"
