"""The messages of the retrieval server: what a request may say, checked before anything runs, and what an answer says."""

import base64
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curate.decoding import images
from curate.decoding.images import BadImage
from curate.retrieval.query import MAX_PARTS, MAX_TEXT, BadQuery, Hit, Page, Part, Request

MAX_PAGE, MAX_DIMS, MAX_UID, MAX_WHERE, MAX_CURSOR, MAX_EXPORT = 200, 8192, 256, 4000, 4096, 100_000
"""Hits of a page; numbers of a vector; characters of a uid, an expression, a cursor; uids of an export."""
MAX_IMAGE_PIXELS = images.LARGE_PIXELS
"""Pixels of a picture that is asked about: one of 50 MiB decoded; a model looks at some 0.05 million of them."""

B = TypeVar("B", bound="Asked")


class Asked(BaseModel):
    """What a client sends: nothing unknown, no text for a number, no NaN and no infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True)


class Term(Asked):
    """One part of a query: exactly one of text, image_b64, uid and vector, and its weight, negative to lead away from it."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None
    image_b64: Annotated[str, Field(min_length=1, description="A JPEG, PNG, WebP or GIF in base64, "
                                    f"of at most {MAX_IMAGE_PIXELS:,} pixels.")] | None = None
    uid: Annotated[str, Field(min_length=1, max_length=MAX_UID, description="A row of this run.")] | None = None
    vector: Annotated[list[float], Field(min_length=1, max_length=MAX_DIMS, description="As many numbers as the index has "
                                         "dimensions; its length does not matter, but is not 0.")] | None = None
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0

    @model_validator(mode="after")
    def _one(self) -> "Term":
        if sum(given is not None for given in (self.text, self.image_b64, self.uid, self.vector)) != 1:
            raise ValueError("give exactly one of text, image_b64, uid and vector")
        return self

    def part(self) -> Part:
        """The part of a query that this is. Raises BadQuery for a picture that is none or too large, before it is decoded."""
        return Part(self.text, self._picture(), self.uid, tuple(self.vector) if self.vector is not None else None, self.weight)

    def _picture(self) -> bytes | None:
        if self.image_b64 is None:
            return None
        try:
            data = base64.b64decode(self.image_b64, validate=True)
            images.probe(data, MAX_IMAGE_PIXELS)
        except ValueError as error:
            said = str(error) if isinstance(error, BadImage) else "not base64"
            raise BadQuery(f"image_b64: {said}") from None
        return data


class Question(Asked):
    """What rows are looked for."""

    query: Annotated[list[Term], Field(max_length=MAX_PARTS, description="Added up by weight; none: browse.")] = []
    where: Annotated[str, Field(max_length=MAX_WHERE, description="An expression over the columns, as in a keep: "
                                "`width_px >= 256 and lang = 'en'`.")] = ""
    dropped: Annotated[bool, Field(description="Also rows that the run did not keep.")] = False
    group: Annotated[bool, Field(description="Fold near-duplicates into the best of them.")] = True
    against: Annotated[Literal["image", "text"], Field(description="What is compared: pictures or captions.")] = "image"

    def request(self, k: int, after: str = "") -> Request:
        """The same as the index takes it. Raises BadQuery."""
        return Request(tuple(term.part() for term in self.query), k, self.where, self.dropped, self.group, after, self.against)


class SearchBody(Question):
    """A search."""

    k: Annotated[int, Field(ge=1, le=MAX_PAGE, description="Hits of a page.")] = 40
    after: Annotated[str, Field(max_length=MAX_CURSOR, description="`after` of the page before.")] = ""


class ExportBody(Question):
    """An export of what a search finds."""

    format: Annotated[Literal["npy", "parquet"], Field(description="npy: DataComp's sorted u8,u8 pairs; parquet: a column `uid`, "
                                                       "best first. `curate shard --uids` takes both.")] = "npy"
    limit: Annotated[int, Field(ge=1, le=MAX_EXPORT)] = MAX_EXPORT


class Problem(BaseModel):
    """Every answer that is no success."""

    error: Annotated[str, Field(description="A word for programs: bad_query, not_found, too_many_requests, …")]
    message: Annotated[str, Field(description="A line for people.")]


class Result(BaseModel):
    """A row found."""

    uid: str
    score: Annotated[float, Field(description="Cosine to the query, -1 to 1; 0 when browsing.")]
    caption: str | None
    url: str | None
    width_px: int | None
    height_px: int | None
    state: Annotated[str, Field(description="kept, dropped, unknown, quarantined or removed")]
    reason: Annotated[str | None, Field(description="The line and clause that dropped it.")]
    group_size: Annotated[int, Field(description="It and the near-duplicates folded into it.")]
    group: list[str]
    thumb: Annotated[str, Field(description="Where its thumbnail is, on this server.")]


class SearchAnswer(BaseModel):
    """A page of hits, best first, and what is not among them and why."""

    results: list[Result]
    left_out: Annotated[dict[str, int], Field(description="policy, where, dropped, same_picture → rows")]
    searched: Annotated[int, Field(description="Rows that were looked at.")]
    exhausted: Annotated[bool, Field(description="There is nothing after this page.")]
    after: Annotated[str, Field(description="The cursor of the next page, empty where there is none.")]
    timings_ms: dict[str, float]
    index_id: str
    policy_id: str

    @classmethod
    def of(cls, page: Page, thumb: str, info: dict[str, Any]) -> "SearchAnswer":
        """A page as it is sent; `thumb` is the address of a thumbnail with {uid} in it."""
        return cls(results=[_result(hit, thumb) for hit in page.hits], left_out=page.left_out, searched=page.searched,
                   exhausted=page.exhausted, after=page.after, timings_ms=page.milliseconds,
                   index_id=str(info["index_id"]), policy_id=str(info["policy_id"]))


def read(model: type[B], body: bytes) -> B:
    """The message in a body. Raises BadQuery with one line that says where and what."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadQuery(f"{place}: {first['msg']}" if place else first["msg"]) from None


def _result(hit: Hit, thumb: str) -> Result:
    return Result(uid=hit.uid, score=hit.score, caption=hit.caption, url=hit.url, width_px=hit.width_px, height_px=hit.height_px,
                  state=hit.state, reason=hit.reason, group_size=hit.group_size, group=list(hit.group),
                  thumb=thumb.replace("{uid}", quote(hit.uid, safe="")))
