"""How a made site lies on disk.

    pool.parquet    url, caption, page_lang: what a pipeline is given
    truth.parquet   the same rows in the same order, and what is wrong with each
    site/           bytes
    routes.json     settings, port, hosts, and for every path a Route; written last, so a folder with it is whole
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Mode = Literal["plain", "flaky", "busy", "drip", "endless"]


@dataclass(frozen=True)
class Route:
    """What one path answers. `{port}` in a header's value stands for the server's port.

    plain    status, headers and the file's bytes
    flaky    500 the first time, then plain
    busy     429 with `Retry-After: 1` the first time, then plain
    drip     the file's bytes, one a second
    endless  the file's bytes and then zeros, without a length, as long as the client listens
    """

    file: str = ""
    """Name below `site/`; empty for an answer without a body."""
    status: int = 200
    type: str = "image/jpeg"
    mode: Mode = "plain"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The content of routes.json. The site lies on 127.0.0.1 to 127.0.0.`hosts`; every path is answered on each of them."""

    settings: Mapping[str, Any]
    port: int
    hosts: int
    routes: Mapping[str, Route]


def load(folder: Path) -> Plan:
    """What `make` wrote there. Raises FileNotFoundError where there is no whole site."""
    raw = json.loads((folder / "routes.json").read_text())
    return Plan(**{**raw, "routes": {path: Route(**route) for path, route in raw["routes"].items()}})


def save(folder: Path, plan: Plan) -> None:
    """routes.json, at once or not at all."""
    new = folder / "routes.json.new"
    new.write_text(json.dumps(asdict(plan), indent=0) + "\n")
    os.replace(new, folder / "routes.json")


def save_table(path: Path, table: pa.Table) -> None:
    """A parquet file, at once or not at all; equal tables give equal bytes."""
    new = path.with_name(path.name + ".new")
    pq.write_table(table, new, compression="zstd")
    os.replace(new, path)


def truth(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of truth.parquet, or those of one kind."""
    rows: list[dict[str, Any]] = pq.read_table(folder / "truth.parquet").to_pylist()
    return [row for row in rows if kind in (None, row["kind"])]


def pool_for(folder: Path, port: int) -> Path:
    """The pool whose urls name this port: the urls in pool.parquet and truth.parquet are changed where they name another one."""
    plan, pool = load(folder), folder / "pool.parquet"
    if plan.port != port:
        for path in (pool, folder / "truth.parquet"):
            table = pq.read_table(path)
            for name in {"url", "twin_of"} & set(table.column_names):
                moved = pc.replace_substring_regex(table[name], r"^(http://127\.0\.0\.\d+):\d+/", rf"\1:{port}/")
                table = table.set_column(table.column_names.index(name), name, moved)
            save_table(path, table)
        save(folder, Plan(plan.settings, port, plan.hosts, plan.routes))
    return pool
