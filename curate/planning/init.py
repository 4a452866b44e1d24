"""`curate init`: from somebody's own file to a pipeline that runs. Looks at a few hundred rows, guesses, says why, writes YAML.

Nothing is overwritten, and nothing is written that `curate run` would refuse: the source is opened as the pipeline will open it.
"""

import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from curate import files
from curate.errors import UserError
from curate.planning import guess
from curate.planning.guess import Found, Look, shown
from curate.planning.look import Given, opened
from curate.sources import cut
from curate.sources.locations import FOLDER, parse_source
from curate.sources.rows import OURS
from curate.step import known_steps, load_step
from curate.units import duration, size

FETCHED_BYTES, STORED_BYTES = 130_000, 30_000
"""Of one picture: 130 MB/s of traffic and 30 MB/s of writes at 1,000 pictures a second (img2dataset README)."""
A_SECOND = 100
"""Pictures; ours."""


@dataclass(frozen=True)
class Names:
    """The columns with a meaning."""

    url: Found | None
    caption: Found | None
    uid: Found | None


def init(sources: Sequence[str], out: Path, *, url: str | None, caption: str | None, uid: str | None, attempt: str) -> list[str]:
    """Write a pipeline over `sources` to `out`; lines that say what was found. Raises UserError, and then writes nothing."""
    if os.path.lexists(out):
        raise UserError(f"{out} is there already; give another --out")
    given = opened(sources, caption, url)
    names = _names(given, url, caption, uid)
    where = _where(sources, given, out)
    settings = _settings(given, names, where)
    text, first = _template(given, names), cut.peek(parse_source(settings, out.parent))
    ignored = _measured_anew(text, dict.fromkeys([*first, *given.values]))
    if ignored:
        settings["ignore"] = ignored
        cut.peek(parse_source(settings, out.parent))
    text = _rendered(text, given, names, settings, out)
    try:
        files.write_bytes(out, text.encode(), attempt)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    said = [f"left out of the source, because steps measure what is called so: {', '.join(ignored)}"] if ignored else []
    return [f"{_rows(given)} rows in {_counted(given)}; looked at {given.rows_seen:,}", _guessed(given, names), *said,
            f"wrote {out}; next: curate plan {shlex.quote(str(out))}"]


def _names(given: Given, url: str | None, caption: str | None, uid: str | None) -> Names:
    looks = given.looks
    found_url = found_caption = None
    if url is not None:
        found_url = guess.named(url, looks)
    elif given.kind == "pairs":
        found_url = _url(looks)
    taken = found_url.name if found_url else None
    if caption is not None:
        found_caption = guess.named(caption, looks)
    elif given.kind == "pairs":
        found_caption = guess.caption(looks, taken)
    elif any(x.name == "caption" and x.values for x in looks):
        found_caption = Found("caption", "the text beside each picture")
    elif any(x.texts > guess.MOSTLY and guess.is_named(x, "caption") for x in looks):
        found_caption = guess.caption(looks, "url")
    found_uid = None
    if uid is not None:
        found_uid = guess.named(uid, looks)
    elif given.kind == "pairs":
        found_uid = guess.uid(looks, (taken, found_caption.name if found_caption else None))
    names = Names(found_url, found_caption, found_uid)
    return _renamed(given, names) if given.header else names


def _url(looks: Sequence[Look]) -> Found:
    paths = [x for x in looks if x.pictures > guess.MOSTLY and not x.http]
    if paths and not any(x.http > guess.MOSTLY for x in looks):
        raise UserError(f"no column holds http urls, but '{shown(paths[0].name)}' names picture files: write a pipeline with "
                        "source: {images: FILE, path: COLUMN}")
    return guess.url(looks)


def _renamed(given: Given, names: Names) -> Names:
    """Of a file without a header line the columns get the names that we give them."""
    ours = {f.name: meaning for meaning, f in (("url", names.url), ("caption", names.caption), ("uid", names.uid)) if f}
    given.values = {ours.get(n, n): v for n, v in given.values.items()}
    given.header = [ours.get(n, n) for n in given.header]
    return Names(*(f and Found(ours[f.name], f"{f.why}; column {f.name[7:]}, the file has no header line")
                   for f in (names.url, names.caption, names.uid)))


def _where(sources: Sequence[str], given: Given, out: Path) -> str | list[str]:
    """The source as it is found from the folder of `out`: relative where it lies below that, else absolute."""
    patterns = _as_one_pattern(sources)
    found = [p if "://" in p else _from(p, out) for p in patterns]
    try:
        "".join(found).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name '{shown(found[0])}' is no valid text; rename the file") from None
    return found[0] if len(found) == 1 else found


def _as_one_pattern(sources: Sequence[str]) -> Sequence[str]:
    """What a shell made of `folder/*.parquet`, put together again where it is exactly that."""
    folders = {os.path.split(s)[0] for s in sources}
    suffixes = {"".join(Path(s).suffixes[-1:]) for s in sources}
    if len(sources) > 1 and len(folders) == len(suffixes) == 1:
        pattern = os.path.join(glob.escape(min(folders)), f"*{min(suffixes)}")
        if min(suffixes) and sorted(glob.glob(pattern)) == sorted(sources):
            return [pattern]
    return list(dict.fromkeys(sources))


def _from(pattern: str, out: Path) -> str:
    pattern, here, base = os.path.expanduser(pattern), os.getcwd(), os.path.abspath(out.parent)
    is_pattern = glob.has_magic(pattern) and not os.path.lexists(pattern)
    full = os.path.normpath(os.path.join(glob.escape(here) if is_pattern else here, pattern))
    relative = os.path.relpath(full, glob.escape(base) if is_pattern and full.startswith(glob.escape(base)) else base)
    return full if relative.startswith("..") or relative == "." else relative   # "." is any folder that one stands in


def _settings(given: Given, names: Names, where: str | list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {given.kind: where}
    for meaning, column in (("url", names.url), ("caption", names.caption), ("uid", names.uid)):
        if column is not None and (given.kind == "pairs" or column.name != meaning):
            found[meaning] = column.name
    return found | ({"header": given.header} if given.header else {})


def _measured_anew(text: str, known: Collection[str]) -> list[str]:
    """Columns of the source that a step of the pipeline adds, in whatever case (SQL's rule): no two may have one name."""
    steps = re.findall(r"^  (?:# )?- (\w+)", text, re.MULTILINE)
    adds = {name.lower() for step in steps if step in known_steps() for name in load_step(step).columns({})}
    return [name for name in known if name.lower() in adds and name not in OURS]


def _template(given: Given, names: Names) -> str:
    """The blocks of init.txt that this source needs."""
    blocks = _blocks()
    wanted = ["head", "cost_pairs" if given.kind == "pairs" else "cost_here", "source"]
    wanted += ["texts"] if names.caption else []
    wanted += ["download" if given.kind == "pairs" else "here", "pictures", "more"]
    return "".join(blocks[name] for name in wanted)


def _rendered(template: str, given: Given, names: Names, settings: Mapping[str, Any], out: Path) -> str:
    """The text of the pipeline."""
    plain = all(value.isprintable() for value in settings.values() if isinstance(value, str))    # else YAML folds odd line breaks
    source_line = yaml.safe_dump(dict(settings), default_flow_style=True, width=1 << 30, sort_keys=False, allow_unicode=plain)
    lang, lang_why = _language(given, names.caption)
    bytes_here = sum(f.stamp().bytes for f in given.files)
    rows = given.num_rows
    title = {"pairs": "(url, caption) rows to image-text shards.", "shards": "Tars somebody downloaded to image-text shards.",
             "images": "A folder of pictures to image-text shards."}[given.kind]
    return Template(template).substitute(
        title=title, file=shown(shlex.quote(str(out))), run=shown(shlex.quote(f"runs/{out.stem}")), rows=_rows(given),
        guessed="\n# ".join(_guessed(given, names).split("; ")), source=source_line.strip(), lang=lang, lang_why=lang_why,
        traffic=size(rows * FETCHED_BYTES), stored=size(rows * STORED_BYTES if given.kind == "pairs" else bytes_here),
        hours=duration(rows / A_SECOND))


def _blocks() -> dict[str, str]:
    parts = (Path(__file__).parent / "init.txt").read_text().split("%% ")[1:]
    return {name: text for name, _, text in (part.partition("\n") for part in parts)}


def _language(given: Given, caption: Found | None) -> tuple[str, str]:
    """The language of most captions of the sample, and the words behind its rule."""
    if caption is None:
        return "en", ""
    captions = given.values[caption.name].drop_null().to_pylist()
    found: Counter[str] = Counter(x for x in load_step("language").target()(captions)["lang"] if x)
    lang, times = found.most_common(1)[0] if found else ("en", 0)
    kept = "DataComp basic_filter" if lang == "en" else "as DataComp basic_filter keeps English"
    return lang, f"{kept}; {times / max(len(captions), 1):.0%} of the rows looked at"


def _guessed(given: Given, names: Names) -> str:
    said = [f"{meaning}: '{shown(found.name)}', {found.why}" for meaning, found in
            (("url", names.url), ("caption", names.caption), ("uid", names.uid)) if found]
    if given.kind != "pairs" and names.caption is None:
        said.append("no captions: the steps on texts are left out")
    if names.uid is None:
        said.append("no uid: a row is its url and caption" if given.kind == "pairs" else "uid: a sample's own, if it has one")
    return "; ".join(said)


def _rows(given: Given) -> str:
    return f"{given.num_rows:,}" if given.exact else f"about {float(f'{given.num_rows:.2g}'):,.0f}"


def _counted(given: Given) -> str:
    what = given.files[0].format if given.files[0].format == FOLDER else f"{given.files[0].format} file"
    return f"1 {what}" if len(given.files) == 1 else f"{len(given.files):,} {what}s"
