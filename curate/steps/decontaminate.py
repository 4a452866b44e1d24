"""Which pictures belong to a benchmark, and must not be trained on."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import Field

from curate.benchmark import NONE, Embed, Embedded, Looks, as_bits, read, stored_embeddings
from curate.errors import UserError, did_you_mean
from curate.heads.use import embedder
from curate.step import Maker, NamedFiles, Weights, bool_, step, string

Ints = NDArray[np.int64]


def _completes(settings: Mapping[str, Any], makers: Mapping[str, Maker]) -> Mapping[str, Any]:
    """With `cos`, the model and weights that embed the pictures of benchmarks are those of the embeddings that are read."""
    if not settings["bytes"] and settings["hash_bits"] is None and settings["cos"] is None:
        raise UserError("step 'decontaminate' compares nothing: it takes bytes: true, hash_bits: 4, cos: 0.975, or several")
    known = settings["embeddings"] or {}
    for name in known:
        if name not in settings["against"]:
            raise UserError(f"step 'decontaminate': embeddings of '{name}'{did_you_mean(name, settings['against'])}")
    if settings["cos"] is None:
        return settings
    maker = makers.get("image_emb")
    if maker is not None and maker.loop:
        raise UserError("step 'decontaminate' reads embeddings of the weights that the loop trains; it takes a frozen clip_embed")
    lacking = [name for name in settings["against"] if name not in known]
    given = (settings["model"], settings["pretrained"]) if settings["pretrained"] else None
    theirs = embedder(maker)
    if lacking and not (given or theirs):
        raise UserError(f"step 'decontaminate': nothing says which model made image_emb, so '{lacking[0]}' cannot be embedded; "
                        "give model and pretrained, or embeddings: {" + lacking[0] + ": DIR}")
    if given and theirs and given != theirs:
        raise UserError(f"step 'decontaminate': {' '.join(map(str, given))} for embeddings of {' '.join(theirs)}")
    model, pretrained = (given or theirs or ("", None)) if lacking else ("", None)
    return {**settings, "model": model, "pretrained": pretrained}


@step(adds={"contaminated": bool_, "contaminated_by": string, "contaminated_how": string}, batch=1024, completes=_completes)
class Decontaminate:
    """Whether the picture is one of a benchmark's, which benchmark's, and how that shows: by bytes, hash or embedding.

    bytes       the file as it came (`sha256` of download, where there is one) or as it is stored is the benchmark's file
    hash_bits   phash at most so many of 64 bits away, and no value of the 4x4 thumb more than max_levels of 255: as same_image
    cos         the embedding at least so near. Needs image_emb of a frozen model; the benchmark's pictures are embedded by the
                same one, or their embeddings are given (`embeddings: {coco: DIR}`, .npy as clip-retrieval writes them)

    `against`: folders or tars of pictures, on this machine: one, a list, or a map of names to them. The first benchmark in that
    order is named, the first way of the three. ALIGN (arXiv 2102.05918, appendix A) calls pictures near-duplicates above cos
    0.975 of its own embedding; DataComp takes 0.604169 with ISC descriptors, which `join` and `embeddings` bring in; COYO-700M
    (README) equal phash. hash_bits: 4 is our choice. Edits that phash does not bear (rotations, flips, crops of more than some
    per cent), and pictures stored by center_crop or border, take `cos`. `keep: not contaminated` lets them go, and the shards'
    manifest then says against what they were checked, as does that of any choice from these shards. An embedding that is missing
    or has no direction gives null where bytes and hash found nothing. Each worker reads the benchmarks once: some 200 pictures a
    second a core, embedding apart.
    """

    def __init__(self, *, against: NamedFiles, bytes: bool = True, hash_bits: Annotated[int, Field(ge=0, le=8)] | None = 4,
                 max_levels: Annotated[int, Field(ge=0, le=255)] = 24, cos: Annotated[float, Field(gt=0, le=1)] | None = None,
                 embeddings: NamedFiles | None = None, model: str = "", pretrained: Weights | None = None) -> None:
        stored = {name: stored_embeddings(path) for name, path in (embeddings or {}).items()} if cos is not None else {}
        made = {name: _embed(model, str(pretrained)) for name in against if name not in stored} if cos is not None else {}
        pictures = read(against, hash_bits is not None, made)
        self._names = pa.array(pictures.names, string)
        self._of = pictures.of
        self._sha256 = pa.array(pictures.sha256, string) if bytes else None
        self._looks = Looks(pictures, hash_bits, max_levels) if hash_bits is not None else None
        self._emb, self._emb_of = None, np.empty(0, np.int64)
        if cos is not None:
            parts = [{**stored, **pictures.emb}[name] for name in against]
            if len({part.shape[1] for part in parts}) > 1:
                sizes = " and ".join(str(size) for size in sorted({part.shape[1] for part in parts}))
                raise UserError(f"step 'decontaminate': the benchmarks' embeddings have {sizes} numbers")
            self._emb = Embedded(np.concatenate(parts), cos)
            self._emb_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def __call__(self, phash: list[str], thumb: list[str], image_sha256: pa.Array, sha256: pa.Array | None,
                 image_emb: pa.Array | None) -> dict[str, pa.Array]:
        rows, blind = len(phash), np.zeros(len(phash), np.bool_)
        ways = dict.fromkeys(("bytes", "hash", "embedding"), np.full(rows, NONE))
        if self._sha256 is not None:
            columns = [c for c in (image_sha256, sha256) if c is not None]
            ways["bytes"] = _named(np.min([self._same(column) for column in columns], axis=0), self._of)
        if self._looks is not None:
            thumbs = np.frombuffer(b"".join(map(bytes.fromhex, thumb)), np.uint8).reshape(rows, -1)
            ways["hash"] = _named(self._looks.first(as_bits(phash), thumbs), self._of)
        if self._emb is not None:
            found, blind = _near(self._emb, image_emb, rows)
            ways["embedding"] = _named(found, self._emb_of)
        table = np.stack(list(ways.values()))
        how = (table != NONE).argmax(axis=0)
        hit = table[how, np.arange(rows)]
        clean = hit == NONE
        by = self._names.take(pa.array(np.where(clean, 0, hit)))
        return {"contaminated": pa.array(~clean, mask=clean & blind),
                "contaminated_by": pc.if_else(pa.array(clean), pa.scalar(None, string), by),
                "contaminated_how": pa.array(np.array(list(ways))[how], string, mask=clean)}

    def _same(self, sha256: pa.Array) -> Ints:
        """The first picture with these bytes, else NONE."""
        found: Ints = pc.fill_null(pc.index_in(sha256, self._sha256).cast(pa.int64()), NONE).to_numpy()
        return np.where(sha256.is_null(), NONE, found)


def _named(pictures: Ints, of: Ints) -> Ints:
    """The benchmark of each picture; NONE stays NONE."""
    return np.where(pictures == NONE, NONE, of[np.where(pictures == NONE, 0, pictures)])


def _near(pictures: Embedded, image_emb: pa.Array | None, rows: int) -> tuple[Ints, NDArray[np.bool_]]:
    """The first picture near to each row's embedding, else NONE; and which rows have no embedding that says anything."""
    if image_emb is None:
        raise UserError("step 'decontaminate': cos needs the column image_emb; put a frozen clip_embed before it")
    found, there = np.full(rows, NONE), image_emb.drop_null()
    if len(there):
        lengths = pc.min_max(pc.list_value_length(there)).as_py()
        if lengths != {"min": pictures.dims, "max": pictures.dims}:
            raise UserError(f"step 'decontaminate': image_emb has {lengths['max']} numbers and the benchmark's {pictures.dims}")
        halves = there.flatten().to_numpy(zero_copy_only=False).astype(np.float16).reshape(len(there), -1)
        where = np.flatnonzero(image_emb.is_valid())
        directed = np.isfinite(halves).all(axis=1) & (halves != 0).any(axis=1)
        found[where[directed]] = pictures.first(halves[directed])
        return found, ~np.isin(np.arange(rows), where[directed])
    return found, np.ones(rows, np.bool_)


def _embed(model: str, pretrained: str) -> Embed:
    """What clip_embed makes of pictures."""
    import torch

    from train.models.clip import embed_images
    from train.models.weights import load

    if torch.cuda.is_available():
        loaded = load(model, pretrained, "cuda", "bf16")
    else:
        torch.set_num_threads(1)
        loaded = load(model, pretrained)

    def embed(pictures: list[Image]) -> NDArray[np.float32]:
        return embed_images(loaded, pictures)

    return embed
