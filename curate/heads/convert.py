"""Published heads of other formats → head.json and head.safetensors, with probes scored by the source's own arithmetic."""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.errors import UserError
from curate.heads import keras, stack
from curate.heads.head import JSON, Card, Head, Input, Op, Output, with_probes, write
from curate.heads.layers import OPS, Layer, Lookup, Matrix, Norm, sigmoid

PROBES = 32
COLUMN = re.compile(r"[a-z][a-z0-9_]{0,62}")
BETWEEN, ACTIVATIONS = ("none", "relu"), ("none", "sigmoid")


@dataclass(frozen=True)
class Kind:
    """What is known of a published file by its name: whose embeddings it takes, what stands between its layers, what it gives."""

    model: str
    column: str
    normalize: bool = True
    between: str | None = None


AESTHETIC, NSFW = "aesthetic_score", "nsfw_prob"
KNOWN = {
    "sa_0_4_vit_b_32_linear": Kind("ViT-B-32", AESTHETIC),
    "sa_0_4_vit_b_16_linear": Kind("ViT-B-16", AESTHETIC),
    "sa_0_4_vit_l_14_linear": Kind("ViT-L-14", AESTHETIC),
    "sac+logos+ava1-l14-linearMSE": Kind("ViT-L-14", AESTHETIC, between="none"),
    "clip_autokeras_nsfw_b32": Kind("ViT-B-32", NSFW, normalize=False),
    "clip_autokeras_binary_nsfw": Kind("ViT-L-14", NSFW, normalize=False),
}
"""LAION's files over openai's CLIP (LAION-AI/aesthetic-predictor, christophschuhmann/improved-aesthetic-predictor,
LAION-AI/CLIP-based-NSFW-Detector). The Keras heads look some columns up by the half precision number that clip_embed stores, so
a row is not normalised once more."""
MEANINGS = {AESTHETIC: "how much people like to look at it, about 1 to 10",
            NSFW: "probability that it is not safe for work, 0 to 1",
            "watermark_prob": "probability of a watermark, 0 to 1"}


@dataclass(frozen=True)
class Wanted:
    """What the command line says of a head; None is taken from what is known of the file."""

    model: str | None = None
    pretrained: str = "openai"
    column: str | None = None
    between: str | None = None
    activation: str | None = None
    licence: str = "not stated"


def convert(source: Path, to: Path, wanted: Wanted, attempt: str) -> Iterator[str]:
    """Write the head of a published file into the folder `to`; says what it is. UserError where it cannot be, or `to` has one."""
    if not source.is_file():
        raise UserError(f"no file {source}")
    if (to / JSON).exists():
        raise UserError(f"{to} holds a head already; give --to another folder")
    for name, value, known in (("between", wanted.between, BETWEEN), ("activation", wanted.activation, ACTIVATIONS)):
        if value not in (None, *known):
            raise UserError(f"--{name} {value}: there is {' and '.join(known)}")
    known_file = KNOWN.get(source.name.removesuffix("".join(source.suffixes[-1:])))
    model = wanted.model or (known_file.model if known_file else "")
    column = wanted.column or (known_file.column if known_file else "")
    if not model:
        raise UserError(f"{source.name} is no file that is known here; say --model, whose embeddings it takes, like ViT-L-14")
    if not column:
        raise UserError(f"{source.name} is no file that is known here; say --column, what it gives, like nsfw_prob")
    if not COLUMN.fullmatch(column):
        raise UserError(f"--column {column}: a column's name has small letters, digits and _")
    yield from _written(source, to, model, column, known_file, wanted, attempt)


def _written(source: Path, to: Path, model: str, column: str, known: Kind | None, wanted: Wanted, attempt: str) -> Iterator[str]:
    found: keras.Source | stack.Stack
    if _is_saved_model(source):
        found = keras.read(source)
        activation, normalize = "sigmoid" if found.sigmoid else "none", False
    else:
        found = stack.read(source, wanted.between or (known.between if known else None))
        activation = wanted.activation or ("sigmoid" if source.suffix == ".npy" or column.endswith("_prob") else "none")
        normalize = known.normalize if known else True
    card = Card(name=to.name, input=Input(model=model, pretrained=wanted.pretrained, dim=found.dim, normalize=normalize),
                layers=tuple(Op(op=op_of(layer)) for layer in found.layers),     # type: ignore[arg-type]
                output=Output(activation=activation, column=column, meaning=MEANINGS.get(column, column)),  # type: ignore[arg-type]
                licence=wanted.licence, source=f"{source.name}, sha256 {files.file_digest(source)}")
    probes = probe_rows(found.dim, found.layers)
    raw = found.reference(unit(probes) if normalize else probes)
    expected = sigmoid(np.asarray(raw, np.float32)) if activation == "sigmoid" and isinstance(found, stack.Stack) else raw
    head = write(to, with_probes(Head(card, found.layers, probes, probes[:, 0]), probes, expected), attempt)
    yield from lines(head)
    off = float(np.abs(head.scores(probes) - expected).max())
    yield f"probes     {len(probes)}, at most {off:.1e} from the source's own arithmetic"


def lines(head: Head) -> Iterator[str]:
    """A head in words."""
    card = head.card
    yield f"head       {card.name}: adds {card.output.column}, {card.output.meaning}"
    yield (f"input      {card.input.model} ({card.input.pretrained}), {card.input.dim} numbers, "
           f"{'brought to length 1' if card.input.normalize else 'as they are stored'}")
    yield f"layers     {', '.join(op.op for op in card.layers)}; activation {card.output.activation}"
    said = f" (a {card.calibration.a:.6g}, b {card.calibration.b:.6g})" if card.calibration.type == "platt" else ""
    yield f"calibrated {card.calibration.type}{said}"
    cuts = [f"{name} {value:g}" for name, value in card.threshold.model_dump().items() if value is not None]
    yield f"thresholds {', '.join(cuts) or 'none: a keep decides'}"
    yield f"evaluated  {', '.join(f'{k} {v}' for k, v in card.evaluated_on.items()) or 'not stated'}"
    yield f"licence    {card.licence}"
    yield f"source     {card.source or 'not stated'}"
    yield f"sha256     {card.sha256}"


def op_of(layer: Layer) -> str:
    """What head.json calls a layer."""
    return next(name for name, kind in OPS.items() if type(layer) is kind)


def probe_rows(dim: int, layers: tuple[Layer, ...] = ()) -> Matrix:
    """Seeded rows on the grid of half precision, as embeddings are stored: of length 1 and 2 in turn, or as spread as a head's
    norm says its training rows were; in half of them, looked up columns hold entries of their tables."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((PROBES, dim)).astype(np.float32)
    usual = next((layer for layer in layers if isinstance(layer, Norm)), None)
    rows = unit(rows) * (1 + np.arange(PROBES) % 2)[:, None] if usual is None else usual.mean + usual.scale * rows
    rows = rows.astype(np.float16).astype(np.float32)
    for lookup in (layer for layer in layers if isinstance(layer, Lookup)):
        for column, (keys, _) in lookup.tables.items():
            rows[::2, column] = draw.choice(keys, len(rows[::2])) / 1e6
    return rows


def unit(rows: Matrix) -> Matrix:
    """Rows of length 1."""
    lengths: NDArray[np.float64] = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows / lengths, np.float32)


def _is_saved_model(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("saved_model.pb") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
