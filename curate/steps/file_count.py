"""How many urls and hosts gave the very same file: a picture that says "image not available" comes from everywhere."""

import tempfile
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from curate.step import Chunks, Operational, int64, whole

COUNTS = """
    create table files as
        select file, count(distinct url) as file_urls, count(distinct host) as file_hosts from rows group by file;
    create table counts as select place, file_urls, file_hosts from rows join files using (file) order by place;
"""


@whole(adds={"file_urls": int64, "file_hosts": int64})
def file_count(sha256: Chunks, url: Chunks, *,
               memory_gb: Annotated[float, Field(gt=0), Operational] = 2) -> Iterator[dict[str, NDArray[np.int64]]]:
    """From how many different urls, and from how many different hosts, the file with this sha256 came; 1 or more.

    Over the rows alive here, by the bytes as they came (`sha256` of download), whatever was made of them. A placeholder is the
    same few bytes under thousands of urls. Our choice, as no paper gives a limit: `keep: file_urls <= 10`. `same_image` measures
    something else: it keeps one of the copies, this lets all of them go. Counted by DuckDB within memory_gb, on disk beyond it.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="curate-") as folder, duckdb.connect(
            f"{folder}/counts.db", config={"memory_limit": f"{memory_gb}GB", "temp_directory": folder}) as database:
        database.execute("create table rows (place bigint, file ubigint, url ubigint, host ubigint)")
        ends = [0]
        for files, urls in zip(sha256, url, strict=True):
            ends.append(ends[-1] + len(files))
            hosts = pa.array([_host(text) for text in urls.to_pylist()], pa.string())
            places = np.arange(ends[-2], ends[-1])
            database.register("shard", pa.table({"place": places, "file": files, "url": urls, "host": hosts}))
            database.execute("insert into rows select place, hash(file), hash(url), hash(host) from shard")
        database.execute(COUNTS)
        for start, end in zip(ends, ends[1:], strict=False):
            database.execute("select * exclude (place) from counts where place >= ? and place < ? order by place", [start, end])
            yield {name: np.asarray(values) for name, values in database.fetchnumpy().items()}


def _host(url: str) -> str:
    """The host in lower case without a dot at the end; of what is no url, nothing."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
