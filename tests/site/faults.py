"""What is planted, how often, and what becomes of it. The one place for shares and variants."""

import io
import struct
import zlib
from collections.abc import Mapping

from PIL import Image, ImageEnhance

FAULTS: dict[str, float] = {
    "mismatched": .3,
    "boilerplate": .03, "frequent_text": .02, "repeated_words": .015, "shouting": .015, "foreign": .02,
    "exact_dup": .02, "near_dup": .03, "shared_url": .03, "repeated_row": .01,
    "tiny": .01, "stretched": .01, "html": .005, "truncated": .005, "bomb": .001,
    "dead_404": .01, "gone_410": .005, "flaky_500": .005, "busy_429": .005, "drip": .001, "endless": .001,
    "opt_out": .006, "noindex": .003, "not_opt_out": .005,
    "redirect": .006, "redirect_loop": .001, "redirect_private": .001, "redirect_file": .001}
"""Share of all rows, by fault; the rest are clean. At least one row of every fault whose share is not 0.

mismatched        a right caption of another scene, which shares no (colour, shape) with the picture
boilerplate       IMG_1234.JPG, stock photo …
frequent_text     one sentence, the same everywhere
repeated_words    one word, 8 to 20 times
shouting          the right caption in capitals, with a shop around it
foreign           a sentence in one of six languages
exact_dup         the bytes of another row's url on a url of its own, with another right caption
near_dup          the picture of another row, edited as EDITS says, with another right caption
shared_url        another row's url with another right caption
repeated_row      another row's url and caption
tiny, stretched   24x24 and 600x60 pixels
not_opt_out, flaky_500, busy_429, redirect      a fetcher that knows its trade gets the picture
"""

STATUS = {"dead_404": "http_404", "gone_410": "http_410", "drip": "slow", "endless": "too_large", "html": "wrong_type",
          "truncated": "decode_error", "bomb": "too_many_pixels", "opt_out": "opt_out", "noindex": "opt_out",
          "redirect_loop": "too_many_redirects", "redirect_private": "private_address", "redirect_file": "bad_scheme"}
"""The `status` a fetch ends with, by fault; `ok` for the others."""

OPT_OUT = ("noai", "NoAI, NoImageAI", "max-image-preview:large, noai", "noai, unavailable_after: 25 Jun 2030 15:00:00 PST",
           "noimageai")
NOINDEX = ("noindex, max-image-preview:large", "none")
NOT_OPT_OUT = ("otherbot: noai", "max-image-preview:large", "nofollow")
EDITS = ("resized to 60 %", "resized to 150 %", "quality 55", "brightened", "darkened")
REDIRECTS = ("301 relative", "302 absolute", "307 relative", "308 absolute")
PRIVATE = "http://169.254.169.254/latest/meta-data/"
VARIANTS: dict[str, tuple[str, ...]] = {
    "opt_out": OPT_OUT, "noindex": NOINDEX, "not_opt_out": NOT_OPT_OUT, "near_dup": EDITS, "redirect": REDIRECTS,
    "html": ("text/html", "image/jpeg"), "redirect_private": (PRIVATE,), "redirect_file": ("file:///etc/passwd",)}
"""What the rows of a fault take in turn; it stands in the truth's `detail`."""
SHARING = ("shared_url", "repeated_row")
TWINS = ("exact_dup", "near_dup", *SHARING)
"""Faults of rows that need another, clean row; no clean row gets two of them."""

PAGE = b"<!doctype html><title>Sign in</title><p>Please sign in to continue.</p>"
BOMB_SIDE = 20_000
QUALITY = 88


def planted(rows: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many rows have each fault: the share of all rows, rounded, but at least one; and how many are clean.

    Raises ValueError where too few stay clean for the twins.
    """
    counts = {kind: max(1, round(share * rows)) for kind, share in shares.items() if share}
    clean, twins = rows - sum(counts.values()), sum(counts.get(kind, 0) for kind in TWINS)
    if clean < twins:
        raise ValueError(f"{rows} rows: {rows - clean} faults leave {clean} clean ones, and {twins} rows each copy one")
    return {**counts, "clean": clean}


def variant(kind: str, number: int) -> str | None:
    """The variant that the `number`th row of a kind takes, from 0."""
    choices = VARIANTS.get(kind)
    return choices[number % len(choices)] if choices else None


def spoiled(picture: Image.Image, kind: str, detail: str | None) -> bytes:
    """The JPEG of a picture, made worse as the kind says, or as it is."""
    quality = QUALITY
    if kind == "tiny":
        picture = picture.resize((24, 24))
    elif kind == "stretched":
        picture = picture.resize((600, 60))
    elif kind == "near_dup":
        picture, quality = _edited(picture, detail or "")
    data = jpeg(picture, quality)
    return data[:len(data) * 3 // 5] if kind == "truncated" else data


def jpeg(picture: Image.Image, quality: int = QUALITY) -> bytes:
    """The picture as a JPEG file."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def png_bomb(side: int = BOMB_SIDE) -> bytes:
    """A valid PNG of `side` x `side` black pixels, one bit each: 400 million of them in some 50 kB."""
    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    deflate = zlib.compressobj(9)
    lines = b"\0" * ((side // 8 + 1) * 100)
    body = b"".join(deflate.compress(lines) for _ in range(side // 100)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _edited(picture: Image.Image, edit: str) -> tuple[Image.Image, int]:
    """The same picture as another site would show it, and its JPEG quality."""
    if edit.startswith("resized"):
        scale = .6 if "60" in edit else 1.5
        return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS), QUALITY
    if edit == "quality 55":
        return picture, 55
    return ImageEnhance.Brightness(picture).enhance(1.06 if edit == "brightened" else .94), QUALITY
