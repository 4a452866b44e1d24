"""Runs with cards for tests: made once a session, copied for each test that changes them."""

import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.cards.card import SECTIONS, write_card
from tests.running import run_here, write_pipeline
from tests.sources import PNG, write_tar

HOSTILE = ["a | b | c cell", "first line\nsecond line", "<script>alert(1)</script> shown", "--- a rule ---",
           "<!-- /human --> a marker", "[click](javascript:alert(1)) a link", "![x](http://evil.example/x.png) seen",
           "www.evil.example and http://evil.example", "*bold* _em_ `code` ~~gone~~", "&amp; &#60; entities",
           "{{ 7 * 7 }} {% raw %} braces", "TODO-HUMAN is no todo in a caption",
           "\u202egnp.exe right to left", "# heading\n\n- item"]
PLAIN = [f"a plain caption number {i}" for i in range(6)]
YAML = """\
name: some-pairs
description: Twenty rows with hostile captions.
url: https://example.org/some-pairs
license: CC-BY-4.0
creator: {name: A. Person, type: Person}
datePublished: 2026-11-30
version: 1.0.0
citeAs: "@misc{pairs}"
"""


def write_pool(captions: Sequence[str], path: Path) -> None:
    """A tar as img2dataset writes it: uid, url on one of three hosts, and numbers in the .json."""
    members = []
    for i, caption in enumerate(captions):
        host = ("a.example", "www.a.example", "b.example", "A.example:8080", "c.example")[i % 5]
        row = {"uid": f"{i * 7919:032x}", "url": f"https://{host}/{i}.png", "n": i, "score": i / 8}
        members += [(f"{i:04d}.png", PNG + str(i).encode()), (f"{i:04d}.txt", caption.encode()),
                    (f"{i:04d}.json", json.dumps(row).encode())]
    path.parent.mkdir(parents=True)
    write_tar(path, members)


def make_run(here: Path, captions: Sequence[str] = (*HOSTILE, *PLAIN), after: str = "shards: {rows: 8}\n",
             keep: str = "num_chars >= 5 and n != 3") -> Path:
    """A run over such pictures, in `here`; its folder."""
    write_pool(captions, here / "pool" / "00000.tar")
    source = f"source: {{shards: {here}/pool/*.tar, uid: uid, shard_rows: 7}}\n"
    run_here(write_pipeline(here, "caption_length", f"keep: {keep}", source=source, after=after), here / "out")
    return here / "out"


def fill(root: Path, yaml: str = YAML, **sections: str) -> None:
    """Write the card as its human would: card.yaml, then every section."""
    (root / "card").mkdir(exist_ok=True)
    (root / "card" / "card.yaml").write_text(yaml)
    readme = root / "card" / "README.md"
    if not readme.exists():
        list(write_card(root, "test"))
    write_sections(readme, **{name: f"\nWritten by hand: {name}.\n" for name in SECTIONS} | sections)
    list(write_card(root, "test"))


def write_sections(readme: Path, **sections: str) -> None:
    """Put texts between the markers, as an editor would."""
    text = readme.read_bytes().decode()
    for name, body in sections.items():
        head, _, rest = text.partition(f"<!-- human: {name} -->")
        text = f"{head}<!-- human: {name} -->{body}<!-- /human -->{rest.partition('<!-- /human -->')[2]}"
    readme.write_bytes(text.encode())


def rows_of(readme: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading."""
    lines = readme.split(heading + "\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| ---"))
    table = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return table


def jpeg(colour: tuple[int, int, int], gps: bool = False) -> bytes:
    """A picture of one colour, with or without a position in its EXIF."""
    out = io.BytesIO()
    exif = Image.Exif()
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0), 3: "E", 4: (11.0, 34.0, 0.0)})
    Image.new("RGB", (64, 48), colour).save(out, "JPEG", exif=exif)
    return out.getvalue()


@contextmanager
def web(routes: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A server on loopback that answers as `routes` say; its address."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = routes.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"Content-Type": "image/jpeg", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_downloaded(here: Path) -> Path:
    """A run that fetched ten pictures: seven came (one told a position), one owner said no, two were gone."""
    routes = {f"/{i}.jpg": (200, {}, jpeg((20 * i, 90, 250 - 20 * i), gps=i == 2)) for i in range(7)}
    routes["/no.jpg"] = (200, {"X-Robots-Tag": "noai"}, jpeg((1, 2, 3)))
    names = [*(f"{i}.jpg" for i in range(7)), "no.jpg", "gone.jpg", "lost.jpg"]
    captions = [f"picture {n.partition('.')[0]}" for n in names]
    captions[7] = "a secret of its owner"
    with web(routes) as base:
        pq.write_table(pa.table({"url": [f"{base}/{n}" for n in names], "caption": captions}), here / "pool.parquet")
        source = f"source: {{pairs: {here}/pool.parquet, url: url, caption: caption, shard_rows: 4}}\n"
        run_here(write_pipeline(here, "download: {image_size: 32, allow_private: [127.0.0.0/8], retries: 0}",
                                "keep: status = 'ok'", source=source, after="shards: {rows: 5}\n"), here / "out")
    return here / "out"
