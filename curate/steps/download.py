"""Fetch, decode, resize and store the picture behind each url; a `status` for every url, whatever it does."""

import asyncio
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from curate.block_list import BlockList, read
from curate.decoding.blur import BadBoxes, Box, read_boxes
from curate.decoding.convert import WORK, Recipe
from curate.decoding.decode import Decoders
from curate.decoding.images import Encoding, Fit, ResizeMode, check_quality, decode, extension
from curate.errors import UserError
from curate.fetching.fetch import Fetcher, Limits
from curate.fetching.opt_out import DENY, Policy
from curate.fetching.opt_out_list import OptOutList
from curate.step import File, Operational, bool_, fetch, float32, image, int32, int64, string


@fetch(adds={"image": image, "status": string, "error": string, "http_status": int32, "num_bytes": int64, "sha256": string,
             "original_format": string, "original_width_px": int32, "original_height_px": int32,
             "exif_gps": bool_, "opt_out_signal": string, "opt_out_value": string, "fetch_seconds": float32, "attempts": int32},
       volatile=("fetch_seconds", "attempts"), version=4)
class Download:
    """Stores the picture of a url; `status` is ok or why not, sizes in pixels, `num_bytes` and `sha256` of the file as it came.

    Sizes are of the upright picture (EXIF orientation applied), `exif_gps` says whether the file told a position; nothing of
    its metadata is stored. Names and modes are img2dataset's. The defaults differ from its `border` and upscaling: by
    `keep_ratio_largest` and only if bigger, nothing is stored that was not in the picture, and no picture is longer than
    `image_size`. With `skip_reencode` a JPEG that needs no change is stored as it came, but for its metadata. Where less than
    the share `min_success` of 100 urls or more is ok, the run stops and says why.

    `engine: img2dataset` asks and resizes with that library's own functions, for its pixels or to compare; see docs/download.md.

    Where the table has `face_bboxes` (lists of [x0, y0, x1, y1] as shares of the picture, as DataComp's), what is in them is
    blurred before the picture is stored: a tenth of the longer side around a box too, as Yang et al. 2021 (A Study of Face
    Obfuscation in ImageNet) do. Boxes of all rows that share a picture count. Where they cannot be read the status is bad_boxes.

    `block_list` names what must not come in at all: addresses are not asked for, and a file on it (by sha256 or md5 as it comes,
    by phash or PDQ once it is decoded) is dropped before it is stored. Status blocked; the row keeps the kind and the digest of
    the list, no hash or size. The list of today is used for what is asked for today: a longer one makes nothing be fetched
    anew, and `curate takedown --list` clears what is there. What lists hold is in docs/takedown.md.

    `opt_out_signal` is how somebody said no: x-robots-tag, tdm-reservation, robots.txt, tdmrep.json, or list for the operator's
    own; `opt_out_value` is the line that says so, at most 200 characters. RFC 9309 is followed for robots.txt; what else counts
    under which policy is our choice.
    """

    def __init__(self, *, engine: Literal["native", "img2dataset"] = "native", image_size: int = 256,
                 resize_mode: ResizeMode = "keep_ratio_largest", resize_only_if_bigger: bool = True,
                 encode_format: Encoding = "jpg", encode_quality: int | None = None,
                 skip_reencode: bool = False, max_bytes: int = 16_777_216, max_pixels: int = 64_000_000,
                 opt_out: Policy = "standard", robots: bool = True, tdmrep: bool | None = None, opt_out_list: File | None = None,
                 block_list: Annotated[Path, "file", Operational] | None = None,
                 timeout_seconds: Annotated[float, Operational] = 10, deadline_seconds: Annotated[float, Operational] = 20,
                 retries: Annotated[int, Operational] = 2, concurrency: Annotated[int, Field(ge=1), Operational] = 64,
                 per_host: Annotated[int, Field(ge=1), Operational] = 4,
                 per_host_rate: Annotated[float, Field(ge=0), Operational] = 0.0,
                 give_up_host_after: Annotated[int, Field(ge=0), Operational] = 200,
                 decoders: Annotated[int, Operational] = 0, part_images: Annotated[int, Operational] = 512,
                 allow_private: Annotated[list[str] | None, Operational] = None, user_agent: Annotated[str, Operational] = "",
                 contact: Annotated[str, Operational] = "",
                 min_success: Annotated[float, Field(ge=0, le=1), Operational] = 0.05) -> None:
        check_quality(encode_format, encode_quality)
        if tdmrep and opt_out == "off":
            raise UserError("tdmrep: true and opt_out: off contradict each other: with off nothing that a site says is read")
        self.concurrency, self.per_host, self.part_images = concurrency, per_host, part_images
        self._recipe = Recipe(Fit(image_size, resize_mode, resize_only_if_bigger), encode_format, encode_quality, max_pixels,
                              skip_reencode)
        self._engine = engine
        self._listed: BlockList | None = read(block_list) if block_list else None
        self._num_decoders = decoders or (os.cpu_count() or 1) + 1     # one more: each waits now and then for who feeds it
        self._limits = Limits(timeout_seconds=timeout_seconds, deadline_seconds=deadline_seconds, retries=retries,
                              concurrency=concurrency, per_host=per_host, per_host_rate=per_host_rate,
                              give_up_host_after=give_up_host_after, max_bytes=max_bytes, allow_private=allow_private or (),
                              deny=DENY if opt_out != "off" else frozenset(), strict=opt_out == "strict",
                              robots=robots and opt_out != "off", tdmrep=opt_out == "strict" if tdmrep is None else tdmrep,
                              listed=OptOutList(opt_out_list) if opt_out_list else None, user_agent=user_agent, contact=contact)

    @property
    def limits(self) -> Limits:
        """How it asks."""
        return self._limits

    async def start(self) -> None:
        """Open connections and threads, in the event loop that will use them. Each thread talks to a decoder process."""
        self._room = asyncio.Semaphore(self._num_decoders + 8)
        self._threads = ThreadPoolExecutor(self._num_decoders, thread_name_prefix="decode")
        fetcher, work = _engine(self._engine)
        self._decoders = Decoders(work, self._recipe.settings, self._recipe.memory_bytes)
        self._fetcher = fetcher(self._limits, accept=lambda head: extension(head) != "bin", room=self._room)
        await self._fetcher.start()

    async def close(self) -> None:
        """Close them."""
        await self._fetcher.close()
        self._decoders.close()
        self._threads.shutdown(cancel_futures=True)

    async def one(self, url: str, face_bboxes: list[Any] | None = None) -> tuple[dict[str, object], bytes | None]:
        """The columns of one url and the file to store, if there is one; `face_bboxes` of each row that holds it."""
        try:
            boxes = read_boxes(face_bboxes) if face_bboxes is not None else ()
        except BadBoxes as error:
            return {"status": "bad_boxes", "error": str(error), "fetch_seconds": 0.0, "attempts": 0}, None
        if self._listed is not None and (kind := self._listed.match_url(url)):
            return self._blocked(kind, self._listed), None
        outcome = await self._fetcher.get(url)
        row: dict[str, object] = {"status": outcome.status, "error": outcome.error or None, "http_status": outcome.http_status,
                                  "fetch_seconds": outcome.seconds, "attempts": outcome.attempts,
                                  "opt_out_signal": outcome.said.signal if outcome.said else None,
                                  "opt_out_value": outcome.said.value if outcome.said else None}
        if outcome.body is None:
            return row, None
        try:
            columns, stored = await asyncio.get_running_loop().run_in_executor(self._threads, self._store, outcome.body, boxes,
                                                                               outcome.final_url)
        finally:
            self._room.release()
        if columns.get("status") == "blocked":
            return columns | {name: row[name] for name in ("fetch_seconds", "attempts")}, None
        return row | columns, stored

    def _store(self, body: bytes, boxes: Sequence[Box] = (), url: str = "") -> tuple[dict[str, object], bytes | None]:
        """Columns of what came from `url`, and the file to store; in a thread of its own, which waits for a decoder process."""
        listed = self._listed
        if listed is not None and (kind := listed.match_url(url) or listed.match_bytes(body)):
            return self._blocked(kind, listed), None
        came: dict[str, object] = {"num_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        columns, stored = self._decoders.decode(body, {"boxes": boxes})
        if listed is not None and listed.by_looks and stored is not None and (kind := listed.match_picture(decode(stored))):
            return self._blocked(kind, listed), None
        return came | columns, stored

    def _blocked(self, kind: str, listed: BlockList) -> dict[str, object]:
        """All that is kept of what the list names: no address, no hash, no size."""
        return {"status": "blocked", "error": f"{kind} on list {listed.digest}", "fetch_seconds": 0.0, "attempts": 0}


def _engine(name: str) -> tuple[type[Fetcher], str]:
    """Who asks for a url, and the work of the decoders. Raises UserError where the library is not there."""
    if name == "native":
        return Fetcher, WORK
    from curate import engine_img2dataset

    return engine_img2dataset.Img2DatasetFetcher, engine_img2dataset.WORK
