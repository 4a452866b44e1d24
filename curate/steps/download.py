"""Fetch, decode, resize and store the picture behind each url; a `status` for every url, whatever it does."""

import asyncio
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

from pydantic import Field

from curate.fetch import Fetcher, Limits
from curate.images import BadImage, Encoding, Fit, ResizeMode, check_quality, encode, extension, load
from curate.opt_out import DENY
from curate.step import Operational, bool_, fetch, float32, image, int32, int64, string


@fetch(adds={"image": image, "status": string, "error": string, "http_status": int32, "num_bytes": int64, "sha256": string,
             "original_format": string, "original_width_px": int32, "original_height_px": int32,
             "exif_gps": bool_, "fetch_seconds": float32, "attempts": int32},
       volatile=("fetch_seconds", "attempts"), version=2)
class Download:
    """Stores the picture of a url; `status` is ok or why not, sizes in pixels, `num_bytes` and `sha256` of the file as it came.

    Sizes are of the upright picture (EXIF orientation applied), `exif_gps` says whether the file told a position; nothing of
    its metadata is stored. Names and modes are img2dataset's. The defaults differ from its `border` and upscaling: by
    `keep_ratio_largest` and only if bigger, nothing is stored that was not in the picture, and no picture is longer than
    `image_size`. Where less than the share `min_success` of 100 urls or more is ok, the run stops and says why.
    """

    def __init__(self, *, image_size: int = 256, resize_mode: ResizeMode = "keep_ratio_largest",
                 resize_only_if_bigger: bool = True, encode_format: Encoding = "jpg", encode_quality: int | None = None,
                 max_bytes: int = 16_777_216, max_pixels: int = 64_000_000,
                 opt_out: Literal["standard", "strict", "off"] = "standard",
                 timeout_seconds: Annotated[float, Operational] = 10, deadline_seconds: Annotated[float, Operational] = 20,
                 retries: Annotated[int, Operational] = 2, concurrency: Annotated[int, Operational] = 64,
                 per_host: Annotated[int, Operational] = 4, decoders: Annotated[int, Operational] = 0,
                 part_images: Annotated[int, Operational] = 512,
                 allow_private: Annotated[list[str] | None, Operational] = None, user_agent: Annotated[str, Operational] = "",
                 contact: Annotated[str, Operational] = "",
                 min_success: Annotated[float, Field(ge=0, le=1), Operational] = 0.05) -> None:
        check_quality(encode_format, encode_quality)
        self.concurrency, self.per_host, self.part_images = concurrency, per_host, part_images
        self._fit = Fit(image_size, resize_mode, resize_only_if_bigger)
        self._encode_format, self._quality, self._max_pixels = encode_format, encode_quality, max_pixels
        self._decoders = decoders or os.cpu_count() or 1
        self._limits = Limits(timeout_seconds=timeout_seconds, deadline_seconds=deadline_seconds, retries=retries,
                              concurrency=concurrency, per_host=per_host, max_bytes=max_bytes, allow_private=allow_private or (),
                              deny=DENY if opt_out != "off" else frozenset(), strict=opt_out == "strict", user_agent=user_agent,
                              contact=contact)

    async def start(self) -> None:
        """Open connections and threads, in the event loop that will use them."""
        self._room = asyncio.Semaphore(self._decoders + 8)
        self._threads = ThreadPoolExecutor(self._decoders, thread_name_prefix="decode")
        self._fetcher = Fetcher(self._limits, accept=lambda head: extension(head) != "bin", room=self._room)
        await self._fetcher.start()

    async def close(self) -> None:
        """Close them."""
        await self._fetcher.close()
        self._threads.shutdown()

    async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
        """The columns of one url and the file to store, if there is one."""
        outcome = await self._fetcher.get(url)
        row: dict[str, object] = {"status": outcome.status, "error": outcome.error or None, "http_status": outcome.http_status,
                                  "fetch_seconds": outcome.seconds, "attempts": outcome.attempts}
        if outcome.body is None:
            return row, None
        try:
            columns, stored = await asyncio.get_running_loop().run_in_executor(self._threads, self._store, outcome.body)
        finally:
            self._room.release()
        return row | columns, stored

    def _store(self, body: bytes) -> tuple[dict[str, object], bytes | None]:
        """Columns of what came, and the file to store; in a thread of its own."""
        came: dict[str, object] = {"num_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        try:
            picture = load(body, self._fit, self._max_pixels)
            stored = encode(picture.image, self._encode_format, self._quality)
        except BadImage as error:
            return came | {"status": error.status, "error": str(error)}, None
        return came | {"original_format": picture.format, "original_width_px": picture.width,
                       "original_height_px": picture.height, "exif_gps": picture.has_gps}, stored
