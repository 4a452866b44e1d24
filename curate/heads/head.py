"""A head's file format: `head.json` says what it is, `head.safetensors` holds its numbers. Nothing is unpickled.

    {schema, name, input: {model, pretrained, dim, normalize}, layers: [{op}, …], output: {activation, column, meaning},
     calibration: {type, a, b}, threshold: {drop, review}, evaluated_on: {…}, licence, source, sha256}

The safetensors holds `layers.<n>.<tensor>`, `probes` (k, dim) with their `expected` scores (k,), and for an isotonic calibration
`calibration.x` and `calibration.y`. A head whose scores of its own probes differ from the expected ones is refused: that is the
test that it computes here what it computed where it came from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from curate import files
from curate.errors import UserError
from curate.heads.layers import Layer, Matrix, built, sigmoid

SCHEMA = "curate-head/1"
JSON, TENSORS = "head.json", "head.safetensors"
TOLERANCE = 1e-4
"""How far a probe's score may lie from the expected one, times the larger of 1 and the score: float32 sums on another machine
differ by some 1e-6, a wrong layer by far more (our choice)."""
MOST_JSON, MOST_TENSORS = 1 << 20, 1 << 28
"""Bytes; the largest published head over embeddings has 4 MB."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Input(_Strict):
    """Whose embeddings it takes."""

    model: str
    """a name of open_clip's, like ViT-L-14"""
    pretrained: str
    """the weights, as `clip_embed` names them"""
    dim: Annotated[int, Field(ge=1, le=1 << 16)]
    normalize: bool
    """whether a row is brought to length 1 first; else it is taken as it is stored"""


class Op(_Strict):
    """One layer; its tensors are found by its number."""

    op: Literal["linear", "relu", "norm", "lookup", "softmax"]


class Output(_Strict):
    """What comes out."""

    activation: Literal["none", "sigmoid", "unit"]
    """`unit` cuts to 0 … 1 what can only leave it by rounding"""
    column: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    """the column that a step with this head adds"""
    meaning: str
    """what a high number says, with its range"""


class Calibration(_Strict):
    """none; platt: sigmoid(a · raw + b) in place of the activation; isotonic: a rising line through calibration.x and .y."""

    type: Literal["none", "platt", "isotonic"] = "none"
    a: float = 1.0
    b: float = 0.0


class Threshold(_Strict):
    """Where its maker would cut; a pipeline's keep decides, not this."""

    drop: float | None = None
    review: float | None = None


class Card(_Strict):
    """The content of head.json."""

    schema_: Annotated[Literal["curate-head/1"], Field(alias="schema")] = "curate-head/1"
    name: str
    input: Input
    layers: tuple[Op, ...]
    output: Output
    calibration: Calibration = Calibration()
    threshold: Threshold = Threshold()
    evaluated_on: Mapping[str, Any] = Field(default_factory=dict)
    licence: str = "not stated"
    source: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Head:
    """A head ready to score."""

    card: Card
    layers: tuple[Layer, ...]
    probes: Matrix
    expected: Matrix
    line: tuple[Matrix, Matrix] | None = None
    """x and y of an isotonic calibration"""

    def scores(self, rows: Matrix) -> Matrix:
        """Scores of embeddings (n, dim): (n,), NaN where a row is all zeros or not finite. UserError for another dimension."""
        if not len(rows):
            return np.empty(0, np.float32)
        if rows.shape[1] != self.card.input.dim:
            raise UserError(f"head '{self.card.name}' takes embeddings of {self.card.input.dim} numbers "
                            f"({self.card.input.model}, {self.card.input.pretrained}), these have {rows.shape[1]}")
        lengths = np.sqrt(np.einsum("rd,rd->r", rows, rows, dtype=np.float64))
        usable = np.isfinite(lengths) & (lengths > 0)
        safe = np.where(usable[:, None], rows, np.float32(0))
        if self.card.input.normalize:
            safe = np.asarray(safe / np.where(usable, lengths, 1)[:, None], np.float32)
        return np.asarray(np.where(usable, self._calibrated(self.raw(safe)), np.nan), np.float32)

    def raw(self, rows: Matrix) -> Matrix:
        """What the last layer gives, (n,), before activation and calibration."""
        for layer in self.layers:
            rows = layer(rows)
        return rows[:, 0]

    def _calibrated(self, raw: Matrix) -> Matrix:
        calibration = self.card.calibration
        if calibration.type == "platt":
            return sigmoid(np.asarray(calibration.a * raw + calibration.b, np.float32))
        active = raw
        if self.card.output.activation == "sigmoid":
            active = sigmoid(raw)
        elif self.card.output.activation == "unit":
            active = np.clip(raw, np.float32(0), np.float32(1))
        return active if self.line is None else np.asarray(np.interp(active, *self.line), np.float32)


def json_of(path: Path) -> Path:
    """The head.json that a path means: a folder's, or the file itself. UserError where there is none."""
    found = path / JSON if path.is_dir() else path
    if not found.is_file() or found.suffix != ".json":
        raise UserError(f"{path} is no head: it takes a folder with {JSON} and {TENSORS}, or the .json of such a pair; "
                        "`curate head convert` makes one of published files")
    return found


def read(path: Path) -> Head:
    """The head in a folder, or of a `name.json` beside `name.safetensors`, checked whole. UserError for what is wrong with it."""
    found = json_of(path)
    card = _card(found)
    data = _bytes(found.with_suffix(".safetensors"))
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise UserError(f"{found}: its sha256 is not that of {found.with_suffix('.safetensors').name}: one of them was changed")
    try:
        head = _head(card, load_tensors(data))
    except SafetensorError as error:
        raise UserError(f"{found.with_suffix('.safetensors')}: not a safetensors file: {error}") from None
    except ValueError as error:
        raise UserError(f"{found.with_suffix('.safetensors')}: {error}") from None
    _probe(head, found)
    return head


def write(folder: Path, head: Head, attempt: str) -> Head:
    """The two files of a head in a folder; the head as it will be read. UserError where its own probes fail."""
    card = head.card
    tensors = {f"layers.{i}.{name}": t for i, layer in enumerate(head.layers) for name, t in layer.tensors().items()}
    tensors |= {"probes": head.probes, "expected": head.expected}
    if head.line is not None:
        tensors |= {"calibration.x": head.line[0], "calibration.y": head.line[1]}
    data = save_tensors({n: np.ascontiguousarray(t) for n, t in sorted(tensors.items())})
    card = card.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    try:
        checked = _head(card, load_tensors(data))
    except ValueError as error:
        raise UserError(f"this would be no head: {error}") from None
    _probe(checked, folder / JSON)
    files.write_bytes(folder / TENSORS, data, attempt)
    files.write_json(folder / JSON, card.model_dump(by_alias=True), attempt)
    return checked


def with_probes(head: Head, probes: Matrix, expected: NDArray[np.floating[Any]]) -> Head:
    """The head with its self-test: rows and the scores that the source of the head gives for them."""
    return replace(head, probes=probes, expected=np.asarray(expected, np.float32))


def _card(path: Path) -> Card:
    text = _bytes(path, MOST_JSON)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema!r}; this version reads {SCHEMA!r}")
    try:
        return Card.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg'].removeprefix('Input ')}") from None


def _bytes(path: Path, most: int = MOST_TENSORS) -> bytes:
    try:
        if path.stat().st_size > most:
            raise UserError(f"{path} has more than {most >> 20} MB, so it is no head")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if path.suffix != ".json" and data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise UserError(f"{path} is a pickle, which can run code when it is read; `curate head convert` takes its tensors alone")
    return data


def _head(card: Card, tensors: Mapping[str, NDArray[np.generic]]) -> Head:
    """ValueError for tensors that are missing, too many, not finite or of the wrong shape."""
    rest = dict(tensors)
    layers, width = [], card.input.dim
    for i, spec in enumerate(card.layers):
        start = f"layers.{i}."
        layer = built(spec.op, {n.removeprefix(start): rest.pop(n) for n in list(rest) if n.startswith(start)})
        width = layer.width(width)
        layers.append(layer)
    if width != 1:
        raise ValueError(f"its layers end with {width} numbers a row, not one")
    probes, expected = _floats(rest, "probes"), _floats(rest, "expected")
    if probes.ndim != 2 or not len(probes) or probes.shape[1] != card.input.dim or expected.shape != probes.shape[:1]:
        raise ValueError(f"probes of {probes.shape} with {expected.shape} expected scores; it takes rows of {card.input.dim}")
    line = (_floats(rest, "calibration.x"), _floats(rest, "calibration.y")) if card.calibration.type == "isotonic" else None
    if line is not None and not (line[0].size and line[0].shape == line[1].shape and (np.diff(line[0]) > 0).all()
                                 and (np.diff(line[1]) >= 0).all()):
        raise ValueError("calibration.x and calibration.y are no rising line")
    if rest:
        raise ValueError(f"tensor '{min(rest)}' belongs to no layer")
    return Head(card, tuple(layers), probes, expected, line)


def _floats(tensors: dict[str, NDArray[np.generic]], name: str) -> Matrix:
    found = tensors.pop(name, None)
    if found is None:
        raise ValueError(f"tensor '{name}' is missing")
    if found.dtype != np.float32 or not np.isfinite(found).all():
        raise ValueError(f"tensor '{name}' is not all finite float32")
    return np.asarray(found, np.float32)


def _probe(head: Head, path: Path) -> None:
    got = head.scores(head.probes)
    wrong = ~(np.abs(got - head.expected) <= TOLERANCE * np.maximum(1, np.abs(head.expected)))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(f"{path}: {int(wrong.sum())} of {len(wrong)} probes fail: probe {i} scores {got[i]:.6g}, and "
                        f"{head.expected[i]:.6g} is expected (within {TOLERANCE:g})")
