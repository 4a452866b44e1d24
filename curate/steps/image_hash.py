"""Four ways to know a picture again: its bytes, its pixels, its coarse structure and its coarse colours."""

import hashlib

from PIL.Image import Image

from curate.decoding.images import decode
from curate.fingerprint import phash, thumb
from curate.step import step, string

ADDS = {"image_sha256": string, "pixel_hash": string, "phash": string, "thumb": string}


@step(adds=ADDS, batch=64)
def image_hash(image: list[bytes]) -> dict[str, list[str]]:
    """Hashes of the stored picture in hex digits: two are equal for equal bytes or pixels, two alike where pictures look alike.

    image_sha256  of the file's bytes: 64 digits
    pixel_hash    blake2b of width, height and decoded RGB pixels: 32 digits
    phash         64 bits, 16 digits: which of the 8x8 lowest frequencies of a 32x32 grey copy lie above their median. The common
                  definition, with the bits where the imagehash package has them (phash, hash_size 8). Compare by Hamming distance
    thumb         a 4x4 copy: 96 digits, 2 a byte, rows from the top, red, green, blue from 0 to 255. Our choice, because phash
                  sees no colour: red and blue of the same shirt have one phash

    COYO-700M (README) removes pairs of equal phash and text. Bytes that are no picture are quarantined.
    """
    found: dict[int, dict[str, str]] = {}
    for data in image:
        if id(data) not in found:  # rows with the same picture come with the same object
            picture = decode(data)
            found[id(data)] = {"image_sha256": hashlib.sha256(data).hexdigest(), "pixel_hash": _pixel_hash(picture),
                               "phash": phash(picture), "thumb": thumb(picture)}
    return {name: [found[id(data)][name] for data in image] for name in ADDS}


def _pixel_hash(picture: Image) -> str:
    size = f"{picture.width}x{picture.height} ".encode()
    return hashlib.blake2b(size + picture.tobytes(), digest_size=16).hexdigest()
