"""How common a text is among images, and how many texts an image has."""

import tempfile
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from curate.columns import nfc
from curate.step import Chunks, Operational, int64, whole

COUNTS = """
    create table pairs as select distinct text, image from rows;
    create table texts as select text, count(*) as text_images from pairs group by text;
    create table images as select image, count(*) as image_texts from pairs group by image;
    create table counts as select place, text_images, image_texts from rows join texts using (text) join images using (image)
        order by place;
"""


@whole(adds={"text_images": int64, "image_texts": int64})
def caption_count(caption: Chunks, image_id: Chunks, *,
                  memory_gb: Annotated[float, Field(gt=0), Operational] = 2) -> Iterator[dict[str, NDArray[np.int64]]]:
    """In how many different images the caption's text occurs, and how many different texts its image has; 1 or more.

    Over the rows alive here. Texts are compared in NFC and lower case with every run of whitespace as one space. ALIGN (arXiv
    2102.05918, section 3) drops a text shared by more than 10 images and an image with more than 1000 texts; COYO-700M (README) a
    text that occurs more than 10 times. An image is its url, or its bytes where there is none. Counted by DuckDB within
    memory_gb, on disk beyond it: in the folder for temporary files, about 50 bytes a row.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="curate-") as folder, duckdb.connect(
            f"{folder}/counts.db", config={"memory_limit": f"{memory_gb}GB", "temp_directory": folder}) as database:
        database.execute("create table rows (place bigint, text ubigint, image ubigint)")
        ends = [0]
        for texts, images in zip(caption, image_id, strict=True):
            ends.append(ends[-1] + len(texts))
            shard = {"place": np.arange(ends[-2], ends[-1]), "text": _folded(texts), "image": images}
            database.register("shard", pa.table(shard))
            database.execute("insert into rows select place, hash(text), hash(image) from shard")
        database.execute(COUNTS)
        for start, end in zip(ends, ends[1:], strict=False):
            database.execute("select * exclude (place) from counts where place >= ? and place < ? order by place", [start, end])
            yield {name: np.asarray(values) for name, values in database.fetchnumpy().items()}


def _folded(texts: pa.Array) -> pa.Array:
    """Texts as they are compared: lower case, single spaces, NFC."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.utf8_lower(texts)))
    return nfc(pc.binary_join(words, " "))
