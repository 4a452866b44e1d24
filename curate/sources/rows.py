"""A chunk of a user's rows → the table of a source shard: who each row is, and its columns under names that do not clash.

- image_id: 128 bits of blake2b of the url, or of the picture's bytes where there is no url.
- uid: the user's own, else 128 bits of blake2b of (image_id, NUL, caption in NFC without white space around it).
- A column of the user's that is called like one of ours (upper and lower case are the same in SQL) is called `source_…`.
"""

import hashlib
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import columns
from curate.columns import Chunk, Unreadable, nfc
from curate.sources.locations import Names
from curate.step import image, string

NO_TEXT = pa.scalar(None, string)
BLANKS = "".join(map(chr, range(33)))
"""Every ASCII character that Unicode may call white space, and more."""
OURS = ("uid", "image_id", "url", "caption", "image", "source_error")


def shard_table(chunk: Chunk, names: Names, file: int, first: int, ignore: Collection[str] = ()) -> pa.Table:
    """The table of one shard from a chunk whose first row is row `first` of file number `file`, without the columns `ignore`.

    Raises Unreadable where a column with a meaning holds what is no text.
    """
    urls, captions, own_uids = (_named(chunk, n) for n in names)
    image_ids = _hashed(urls)
    if chunk.image_ids is not None:
        image_ids = pc.coalesce(image_ids, pa.array(chunk.image_ids, string))
    table = {"uid": pc.coalesce(own_uids, _uids(image_ids, captions, file, first)), "image_id": image_ids, "url": urls,
             "caption": captions}
    places = None if chunk.places is None else pa.array(chunk.places, image)
    if places is not None:
        table["image"] = places
    table["source_error"] = _errors(chunk, image_ids if places is None else places, captions)
    for name in [n for n in chunk.fields if n not in names and n not in ignore]:
        column = chunk.fields[name]
        while name.lower() in {*OURS, *(n.lower() for n in table)}:
            name = f"source_{name}"
        table[name] = columns.inferred(column) if chunk.is_text else column
    return pa.table(table)


def _hashed(texts: pa.Array) -> pa.Array:
    """128 bits of blake2b of each text's UTF-8 bytes, as 32 hex digits; null where there is none."""
    blake2b = hashlib.blake2b
    values = pc.fill_null(texts.cast(pa.binary()), b"").to_pylist()
    digits = b"".join([blake2b(v, digest_size=16).digest() for v in values]).hex().encode()
    offsets = np.arange(0, 32 * len(values) + 1, 32, dtype=np.int32)
    hashes = pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(digits))
    return pc.if_else(texts.is_valid(), hashes, NO_TEXT) if texts.null_count else hashes


def _uids(image_ids: pa.Array, captions: pa.Array, file: int, first: int) -> pa.Array:
    """The uids of rows without one of their own. What has no picture to tell it by is told by its place in the source."""
    texts = _normal(pc.fill_null(captions, ""))
    uids = _hashed(pc.binary_join_element_wise(image_ids, texts, "\0"))
    if not image_ids.null_count:
        return uids
    places = pa.array([f"row\0{file}\0{row}" for row in range(first, first + len(uids))], string)
    return pc.coalesce(uids, _hashed(places))


def _normal(texts: pa.Array) -> pa.Array:
    """Texts in NFC without white space around them. ASCII without blanks at its ends is that already, and most texts are such."""
    same = pc.equal(pc.binary_length(pc.ascii_trim(texts, characters=BLANKS)), pc.binary_length(texts))
    odd = pc.invert(pc.and_(pc.string_is_ascii(texts), same))
    if not pc.any(odd).as_py():
        return texts
    return pc.replace_with_mask(texts, odd, pc.utf8_trim_whitespace(nfc(texts.filter(odd))))


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
    return pc.if_else(blank, NO_TEXT, texts) if pc.any(blank).as_py() else texts


def _errors(chunk: Chunk, pictures: pa.Array, captions: pa.Array) -> pa.Array:
    """What the reader noted, and what a row lacks where the reader gave no reason. `pictures` is null where there is none."""
    noted = set(chunk.errors)
    for column, what in ((pictures, "no url" if chunk.places is None else "no picture"), (captions, "no caption")):
        for row in pc.indices_nonzero(column.is_null()).to_pylist() if column.null_count else ():
            if row not in noted:
                chunk.note(row, what)
    if not chunk.errors:
        return pa.nulls(chunk.rows, string)
    return columns.from_texts([chunk.errors.get(row) for row in range(chunk.rows)])[0]
