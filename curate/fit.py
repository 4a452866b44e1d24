"""`curate head train`: a head of your own, from labelled rows and the embeddings of a run.

Image groups (a picture and what `same_image` found to be copies of it) fall by hash into three parts: 60 % fit a logistic
regression, 20 % choose its penalty and calibrate it (Platt), 20 % are only measured on. All numbers here are our choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import files
from curate.errors import UserError, did_you_mean
from curate.folder import STATE, Embedder, Folder
from curate.heads import convert
from curate.heads.head import JSON, Calibration, Card, Head, Input, Op, Output, Threshold, with_probes, write
from curate.heads.layers import Linear, Matrix
from curate.heads.logistic import Floats, Point, Truths, fit, for_recall, log_loss, platt, point
from curate.measure import matrix
from curate.store import REMOVED, STATE_NAMES
from curate.units import wilson

FIT, CALIBRATE = 0.6, 0.8
"""Where the parts end, of 1."""
LEAST, LEAST_IN_PART = 50, 8
"""Rows of each label, in all and in each part: below, the figures say nothing."""
MOST_ROWS = 100_000
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
UNKNOWN = "not stated"
SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Labelled:
    """Rows with a label and an embedding: of length 1, (n, dim), and where of 0 to 1 each one's image group falls."""

    rows: Matrix
    labels: Truths
    places: Floats
    missing: int
    """labels whose uid has no usable embedding in the run"""

    def part(self, low: float, high: float) -> tuple[Floats, Truths]:
        """The rows of a part."""
        inside = (self.places >= low) & (self.places < high)
        return self.rows[inside].astype(np.float64), self.labels[inside]


def train(table: Path, run: Path, to: Path, *, column: str, prefix: str, label: str, recall: float, licence: str,
          attempt: str) -> Iterator[str]:
    """Fit a head, write it to the folder `to`, and say what it is worth. UserError where there is too little to learn from."""
    if not 0 < recall <= 1:
        raise UserError(f"--recall {recall:g} is not a share above 0 and at most 1")
    if (to / JSON).exists():
        raise UserError(f"{to} holds a head already; give --to another folder")
    wanted = read_labels(table, label)
    folder = Folder.open(run)
    embedder = _embedder(folder, prefix)
    found = gather(folder, embedder, wanted)
    for low, high, name in ((0.0, FIT, "to fit"), (FIT, CALIBRATE, "to calibrate"), (CALIBRATE, 1.0, "to measure")):
        _enough(found.part(low, high)[1], LEAST_IN_PART, name)
    output = Output(activation="sigmoid", column=column, meaning=convert.MEANINGS.get(column, column))
    takes = Input(model=embedder.model or UNKNOWN, pretrained=embedder.weights or UNKNOWN, dim=found.rows.shape[1],
                  normalize=True)
    source = f"curate head train on {table.name}, sha256 {files.file_digest(table)}"
    head, penalty = _fitted(found, Card(name=to.name, input=takes, layers=(Op(op="linear"),), output=output, licence=licence,
                                        source=source))
    head, points = _measured(head, found, recall)
    head = write(to, head, attempt)
    yield (f"{len(found.labels):,} labelled rows with an embedding, {int(found.labels.sum()):,} of them positive; "
           f"{found.missing:,} labels without one; penalty {penalty:g}")
    yield from table_lines(points, recall)
    yield f"{to}: keep rows by `keep: {column} < {head.card.threshold.drop:g}`"


def read_labels(path: Path, label: str) -> dict[str, bool]:
    """uid → label of a parquet file; rows without one are left out. UserError for another table, or a uid with two labels."""
    try:
        names = pq.read_schema(path).names
        for name in ("uid", label):
            if name not in names:
                raise UserError(f"{path} has no column '{name}'{did_you_mean(name, names)}")
        found = pq.read_table(path, columns=["uid", label]).drop_null()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:160]}") from None
    values = found[label].to_pylist()
    wrong = next((v for v in values if v not in (0, 1)), None)
    if wrong is not None:
        raise UserError(f"{path}: label {wrong!r}; a label is true or false, 1 or 0")
    labels: dict[str, bool] = {}
    for uid, value in zip(map(str, found["uid"].to_pylist()), values, strict=True):
        if labels.setdefault(uid, bool(value)) != bool(value):
            raise UserError(f"{path}: uid '{uid}' stands twice, with two labels")
    if len(labels) > MOST_ROWS:
        raise UserError(f"{path} has {len(labels):,} labels; a logistic head learns nothing more from over {MOST_ROWS:,}")
    _enough(np.array([*labels.values()], np.bool_), LEAST, "in all")
    return labels


def gather(folder: Folder, embedder: Embedder, wanted: dict[str, bool]) -> Labelled:
    """The embeddings of labelled rows, shard by shard; of kept and dropped rows alike, but of none that was taken down."""
    uids = pa.array(list(wanted), pa.string())
    groups = ["image_id", *(["same_as"] if "same_as" in folder.columns else [])]
    rows, labels, places = [], [], []
    for shard in range(folder.source.num_shards):
        if not pc.any(pc.is_in(folder.source.table(shard, ["uid"])["uid"], value_set=uids)).as_py():
            continue
        table = folder.table(shard, ["uid", *groups, embedder.image])
        usable = pc.and_(pc.is_in(table["uid"], value_set=uids), pc.is_valid(table[embedder.image]))
        table = table.filter(pc.and_(usable, pc.not_equal(table[STATE], STATE_NAMES[REMOVED])))
        if table.num_rows:
            rows.append(matrix(table[embedder.image].combine_chunks()))
            labels += [wanted[uid] for uid in table["uid"].to_pylist()]
            same = table[groups[-1]].to_pylist()
            places += [place(kept or own) for kept, own in zip(same, table["image_id"].to_pylist(), strict=True)]
    if not rows:
        raise UserError(f"{folder.root}: none of the {len(wanted):,} labelled uids has an embedding in this run")
    found = np.concatenate(rows)
    lengths: NDArray[np.float64] = np.linalg.norm(found.astype(np.float64), axis=1)
    good = np.isfinite(lengths) & (lengths > 0)
    unit = np.asarray(found[good] / lengths[good, None], np.float32)
    return Labelled(unit, np.array(labels, np.bool_)[good], np.array(places)[good], len(wanted) - int(good.sum()))


def place(group: str) -> float:
    """Where an image group falls, 0 to 1, by a hash of its id alone."""
    return int.from_bytes(blake2b(f"head {group}".encode(), digest_size=6).digest()) / 2**48


def table_lines(points: list[Point], recall: float) -> Iterator[str]:
    """The precision-recall table, with 95 % intervals; the last line is the threshold for the recall asked for."""
    yield "threshold  flagged  precision (95 %)       recall (95 %)"
    for i, p in enumerate(points):
        precision, found = wilson(p.hits, p.flagged), wilson(p.hits, p.positives)
        note = f"   for a recall of {recall:g}" if i == len(points) - 1 else ""
        yield (f"{p.threshold:9.4f}  {p.flagged:7,}  {p.precision:.3f} ({precision[0]:.3f}-{precision[1]:.3f})    "
               f"{p.recall:.3f} ({found[0]:.3f}-{found[1]:.3f}){note}")


def _fitted(found: Labelled, card: Card) -> tuple[Head, float]:
    (rows, labels), (others, truth) = found.part(0, FIT), found.part(FIT, CALIBRATE)
    tried = {}
    for penalty in PENALTIES:
        weights, bias = fit(rows, labels.astype(np.float64), penalty)
        tried[log_loss(others @ weights + bias, truth)] = (penalty, weights, bias)
    penalty, weights, bias = tried[min(tried)]
    a, b = platt(others @ weights + bias, truth)
    layer = Linear(np.asarray(weights[None, :], np.float32), np.array([bias], np.float32))
    card = card.model_copy(update={"calibration": Calibration(type="platt", a=a, b=b)})
    probes = convert.probe_rows(found.rows.shape[1])
    expected = 1 / (1 + np.exp(-(a * (convert.unit(probes).astype(np.float64) @ weights + bias) + b)))
    return with_probes(Head(card, (layer,), probes, probes[:, 0]), probes, expected), penalty


def _measured(head: Head, found: Labelled, recall: float) -> tuple[Head, list[Point]]:
    """The head with its thresholds and what they gave on rows it never saw; and the whole table."""
    rows, labels = found.part(CALIBRATE, 1)
    scores = head.scores(rows.astype(np.float32)).astype(np.float64)
    drop, review = (np.floor(for_recall(scores, labels, r) * 1e6) / 1e6 for r in (recall, (1 + recall) / 2))
    best = point(scores, labels, float(drop))
    evaluated = {"rows": len(labels), "positives": best.positives, "threshold": float(drop),
                 "precision": best.precision, "precision_95": wilson(best.hits, best.flagged),
                 "recall": best.recall, "recall_95": wilson(best.hits, best.positives),
                 "split": "20 % of the labelled pictures by a hash of their group, never trained on"}
    cuts = Threshold(drop=float(drop), review=float(review))
    card = head.card.model_copy(update={"threshold": cuts, "evaluated_on": evaluated})
    return replace(head, card=card), [*(point(scores, labels, t) for t in SHOWN), best]


def _embedder(folder: Folder, prefix: str) -> Embedder:
    names = {e.prefix: e for e in folder.embedders}
    if not names:
        raise UserError(f"{folder.root} has no embeddings; put clip_embed into its pipeline")
    if not prefix and len(names) == 1:
        return next(iter(names.values()))
    if prefix not in names:
        said = ", ".join(n or "(without prefix)" for n in names)
        raise UserError(f"{folder.root} has embeddings of {said}; say which by --of" if not prefix else
                        f"--of {prefix}: no such embeddings{did_you_mean(prefix, names)}")
    return names[prefix]


def _enough(labels: Truths, least: int, what: str) -> None:
    yes, no = int(labels.sum()), int((~labels).sum())
    if min(yes, no) < least:
        raise UserError(f"{yes:,} positive and {no:,} negative labels {what}; it takes at least {least} of each, "
                        "below that the figures say nothing")
