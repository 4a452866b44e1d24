"""A chunk of a user's rows → the table of a source shard: who each row is, and its columns under names that do not clash.

- image_id: 128 bits of blake2b of the url, or of the picture's bytes where there is no url.
- uid: the user's own, else 128 bits of blake2b of (image_id, NUL, caption in NFC without white space around it).
- A column of the user's that is called like one of ours (upper and lower case are the same in SQL) is called `source_…`.
"""

import hashlib
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

from curate import columns
from curate.columns import Chunk, Unreadable
from curate.locations import Names
from curate.step import image, string

OURS = ("uid", "image_id", "url", "caption", "image", "source_error")


def url_id(url: str) -> str:
    """The image_id of a url: 128 bits of blake2b of its UTF-8 bytes, as 32 hex digits."""
    return hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


def row_uid(image_id: str, caption: str | None) -> str:
    """The uid of a row without one of its own: image_id, NUL, and the caption in NFC without white space around it."""
    text = caption or ""
    text = text.strip() if text.isascii() else unicodedata.normalize("NFC", text).strip()
    return hashlib.blake2b(f"{image_id}\0{text}".encode(), digest_size=16).hexdigest()


def _lost_uid(file: int, row: int) -> str:
    """The uid of a row that has no picture to tell it by: its place in the source (number of the file, number of the row)."""
    return hashlib.blake2b(f"row\0{file}\0{row}".encode(), digest_size=16).hexdigest()


def shard_table(chunk: Chunk, names: Names, file: int, first: int) -> pa.Table:
    """The table of one shard from a chunk whose first row is row `first` of file number `file`.

    Raises Unreadable where a column with a meaning holds what is no text.
    """
    urls, captions, own_uids = (_named(chunk, n) for n in names)
    by_bytes = chunk.image_ids or [None] * chunk.rows
    url_list, caption_list = urls.to_pylist(), captions.to_pylist()
    image_ids = [other if url is None else url_id(url) for url, other in zip(url_list, by_bytes, strict=True)]
    uids = [_lost_uid(file, first + row) if image_id is None else row_uid(image_id, caption)
            for row, (image_id, caption) in enumerate(zip(image_ids, caption_list, strict=True))]
    table = {"uid": pc.coalesce(own_uids, pa.array(uids, string)), "image_id": pa.array(image_ids, string),
             "url": urls, "caption": captions}
    if chunk.places is not None:
        table["image"] = pa.array(chunk.places, image)
    table["source_error"] = pa.array(_errors(chunk, image_ids, captions), string)
    for name in [n for n in chunk.fields if n not in names]:
        column = chunk.fields[name]
        while name.lower() in {*OURS, *(n.lower() for n in table)}:
            name = f"source_{name}"
        table[name] = columns.inferred(column) if chunk.is_text else column
    return pa.table(table)


def _named(chunk: Chunk, name: str | None) -> pa.Array:
    """A column with a meaning, as texts; what is missing or blank is null."""
    column = chunk.fields.get(name) if name else None
    if column is None:
        return pa.nulls(chunk.rows, string)
    try:
        texts, mended = columns.as_strings(column)
    except TypeError as error:
        raise Unreadable(f"column '{name}' is {error}") from None
    for row in mended:
        chunk.note(row, f"{name}: invalid characters replaced")
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0)
    return pc.if_else(blank, pa.scalar(None, string), texts) if pc.any(blank).as_py() else texts


def _errors(chunk: Chunk, image_ids: list[str | None], captions: pa.Array) -> list[str | None]:
    lacking = "no url" if chunk.places is None else "no picture"
    there = image_ids if chunk.places is None else chunk.places
    for row in [i for i, value in enumerate(there) if value is None]:
        if row not in chunk.errors:
            chunk.note(row, lacking)
    if captions.null_count:
        for row in pc.indices_nonzero(captions.is_null()).to_pylist():
            if row not in chunk.errors or chunk.errors[row] == lacking:
                chunk.note(row, "no caption")
    return [chunk.errors.get(row) for row in range(chunk.rows)] if chunk.errors else [None] * chunk.rows
