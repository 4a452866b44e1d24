"""Heads of one's own: what is fitted, that it is measured on pictures it never saw, and that it is the same every time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.cli import main
from curate.errors import UserError
from curate.fit import place, read_labels, train
from curate.folder import Folder
from curate.heads.head import read
from curate.heads.logistic import fit, for_recall, log_loss, platt, point
from tests.embedded import DIMS, drawn, make_run
from tests.running import tree

ROWS = 900
AXIS = np.random.default_rng(99).standard_normal(DIMS)
NONE = {5, 17}          # rows without an embedding
PICS = [-1 if n in NONE else n // 2 for n in range(ROWS)]       # two rows a picture


def wanted(pic: int) -> bool:
    """What a picture is labelled: by a direction that the head has to find, one label in 25 wrong."""
    vector = np.random.default_rng(pic).standard_normal(DIMS)
    return bool(vector @ AXIS / np.linalg.norm(vector) / np.linalg.norm(AXIS) > 0.1) != (pic % 25 == 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 900 rows in three shards, of which a keep dropped some."""
    return make_run(tmp_path_factory.mktemp("run"), PICS, keep="n < 800", shard_rows=300)


@pytest.fixture(scope="module")
def labels(run: Path) -> Path:
    """All rows labelled, two uids that the run does not know, one row without a label."""
    folder = Folder.open(run)
    uids = [uid for shard in range(3) for uid in folder.source.table(shard, ["uid"])["uid"].to_pylist()]
    found: list[bool | None] = [wanted(pic) if pic >= 0 else True for pic in PICS]
    found[0] = None
    path = run.parent / "labels.parquet"
    pq.write_table(pa.table({"uid": [*uids, "stranger", "another"], "label": [*found, True, False]}), path)
    return path


def trained(labels: Path, run: Path, to: Path, **options: Any) -> list[str]:
    settings = {"column": "nsfw_prob", "prefix": "", "label": "label", "recall": 0.95, "licence": "not stated", "attempt": "test"}
    return list(train(labels, run, to, **{**settings, **options}))


# ---- the arithmetic


def test_newton_finds_the_minimum() -> None:
    """Where the slope of the penalised loss is zero, even where the classes lie apart."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(400, 6))
    for truth in (rows[:, 0] + draw.normal(size=400) > 0.5, rows[:, 0] > 0):
        weights, bias = fit(rows, truth.astype(float), 1e-4)
        found = 1 / (1 + np.exp(-(rows @ weights + bias)))
        assert np.abs(rows.T @ (found - truth) / 400 + 1e-4 * weights).max() < 1e-5
        assert abs((found - truth).mean()) < 1e-5


def test_platt_exact() -> None:
    """Two scores, 3 of 10 and 8 of 10 true: with Platt's targets the two shares are met exactly."""
    raw, truth = np.repeat([0.0, 1.0], 10), np.array([1] * 3 + [0] * 7 + [1] * 8 + [0] * 2, np.bool_)
    a, b = platt(raw, truth)
    high, low = 12 / 13, 1 / 11
    assert 1 / (1 + np.exp(-b)) == pytest.approx((3 * high + 7 * low) / 10, abs=1e-6)
    assert 1 / (1 + np.exp(-a - b)) == pytest.approx((8 * high + 2 * low) / 10, abs=1e-6)
    assert log_loss(np.zeros(4), np.array([True, True, False, False])) == pytest.approx(np.log(2))


def test_thresholds_exact() -> None:
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 1, 0], np.bool_)
    assert [for_recall(scores, truth, r) for r in (1 / 3, 0.34, 2 / 3, 0.9, 1)] == [0.9, 0.7, 0.7, 0.6, 0.6]
    found = point(scores, truth, 0.7)
    assert (found.flagged, found.hits, found.precision, found.recall) == (3, 2, 2 / 3, 2 / 3)
    assert point(scores, truth, 0.95).precision == 1


def test_a_picture_is_in_one_part() -> None:
    """By its id alone; 60, 20 and 20 % of many."""
    places = np.array([place(f"image {n}") for n in range(4000)])
    assert places.min() >= 0 and places.max() < 1
    assert [(places < 0.6).mean(), (places < 0.8).mean()] == pytest.approx([0.6, 0.8], abs=0.02)
    assert place("image 7") == places[7]


# ---- a head


def test_a_head_learns_the_labels(labels: Path, run: Path, tmp_path: Path) -> None:
    said = trained(labels, run, tmp_path / "mine", licence="CC0-1.0")
    assert said[0].startswith("897 labelled rows with an embedding, ") and "; 4 labels without one; penalty " in said[0]
    head = read(tmp_path / "mine")
    assert (head.card.output.column, head.card.calibration.type, head.card.licence) == ("nsfw_prob", "platt", "CC0-1.0")
    assert head.card.input.dim == DIMS and head.card.source.startswith("curate head train on labels.parquet, sha256 ")
    fresh = np.arange(10_000, 10_400)
    clean = np.array([wanted(int(p)) != (p % 25 == 0) for p in fresh])
    assert ((head.scores(drawn(*fresh.tolist())) > 0.5) == clean).mean() > 0.88
    weights = head.layers[0].tensors()["weight"][0].astype(float)
    assert weights @ AXIS / np.linalg.norm(weights) / np.linalg.norm(AXIS) > 0.95


def test_it_is_measured_on_pictures_it_never_saw(labels: Path, run: Path, tmp_path: Path) -> None:
    """The figures in head.json can be had again from the labels, the hash of each picture and the head."""
    said = trained(labels, run, tmp_path / "mine", recall=0.9)
    head, folder, truth = read(tmp_path / "mine"), Folder.open(run), read_labels(labels, "label")
    rows, seen = [], []
    for shard in range(3):
        for uid, image, vector in zip(*(folder.table(shard, ["uid", "image_id", "image_emb"])[n].to_pylist()
                                        for n in ("uid", "image_id", "image_emb")), strict=True):
            if uid in truth and vector is not None and place(image) >= 0.8:
                rows.append(vector)
                seen.append(truth[uid])
    scores, labelled = head.scores(np.array(rows, np.float32)), np.array(seen)
    evaluated, drop = head.card.evaluated_on, head.card.threshold.drop
    assert drop is not None and head.card.threshold.review is not None and head.card.threshold.review <= drop
    flagged = scores >= drop
    assert (evaluated["rows"], evaluated["positives"]) == (len(rows), int(labelled.sum()))
    assert evaluated["recall"] == pytest.approx((flagged & labelled).sum() / labelled.sum())
    assert evaluated["precision"] == pytest.approx((flagged & labelled).sum() / flagged.sum())
    assert evaluated["recall"] >= 0.9
    low, high = evaluated["recall_95"]
    assert low < evaluated["recall"] < high <= 1
    assert said[-1] == f"{tmp_path / 'mine'}: keep rows by `keep: nsfw_prob < {drop:g}`"
    assert said[-2].split()[:2] == [f"{drop:.4f}", str(int(flagged.sum()))] and said[-2].endswith("for a recall of 0.9")


def test_the_same_bytes_every_time(labels: Path, run: Path, tmp_path: Path) -> None:
    for name in ("a/mine", "b/mine"):
        trained(labels, run, tmp_path / name)
    assert tree(tmp_path / "a", "mine") == tree(tmp_path / "b", "mine")


def test_the_head_is_used(labels: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line into the next run."""
    with pytest.raises(SystemExit) as end:
        main(["head", "train", str(labels), "--embeddings", str(run), "--to", str(tmp_path / "mine"), "--recall", "0.9"])
    said = capsys.readouterr()
    assert end.value.code == 0 and "threshold  flagged  precision (95 %)" in said.out, said.err
    drop = json.loads((tmp_path / "mine/head.json").read_text())["threshold"]["drop"]
    use = f"nsfw: {{file: {tmp_path / 'mine'}}}"
    folder = Folder.open(make_run(tmp_path / "next", PICS[:100], use, keep=f"nsfw_prob < {drop}"))
    states = folder.table(0, [])["state"].to_pylist()
    assert [states[n] for n in sorted(NONE)] == ["unknown", "unknown"]
    assert 0 < states.count("dropped") < 60


# ---- refusals


def table(path: Path, uids: list[str], labels: list[Any], name: str = "label") -> Path:
    pq.write_table(pa.table({"uid": uids, name: labels}), path)
    return path


def test_too_little_to_learn_from(labels: Path, run: Path, tmp_path: Path) -> None:
    def said(file: Path, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            trained(file, run, tmp_path / "mine", **options)
        assert not (tmp_path / "mine").exists()
        return str(caught.value).replace(f"{tmp_path}/", "").replace(f"{run}", "RUN")

    few = table(tmp_path / "few.parquet", [str(n) for n in range(100)], [n < 49 for n in range(100)])
    assert said(few) == ("49 positive and 51 negative labels in all; it takes at least 50 of each, "
                         "below that the figures say nothing")
    strange = table(tmp_path / "strange.parquet", [str(n) for n in range(200)], [n < 100 for n in range(200)])
    assert said(strange) == "RUN: none of the 200 labelled uids has an embedding in this run"
    assert said(table(tmp_path / "x.parquet", ["a", "b"], ["yes", "no"])) == (
        "x.parquet: label 'yes'; a label is true or false, 1 or 0")
    assert said(table(tmp_path / "x.parquet", ["a", "a"], [1, 0])) == "x.parquet: uid 'a' stands twice, with two labels"
    assert said(table(tmp_path / "x.parquet", ["a"], [1], "lable")) == "x.parquet has no column 'label'; did you mean 'lable'?"
    empty = table(tmp_path / "x.parquet", ["a"], [None])
    assert said(empty).startswith("0 positive and 0 negative labels in all")
    assert said(tmp_path / "gone.parquet").startswith("cannot read gone.parquet: ")
    assert said(labels, recall=1.5) == "--recall 1.5 is not a share above 0 and at most 1"
    assert said(labels, prefix="ref") == "--of ref: no such embeddings; there is "


def test_too_few_in_a_part(run: Path, tmp_path: Path) -> None:
    """120 labels, whose pictures all fall into the part to fit."""
    folder = Folder.open(run)
    found = [(uid, image) for shard in range(3)
             for uid, image in zip(*(folder.source.table(shard, [n])[n].to_pylist() for n in ("uid", "image_id")), strict=True)]
    uids = [uid for uid, image in found if place(image) < 0.6][:120]
    file = table(tmp_path / "x.parquet", uids, [n % 2 == 0 for n in range(120)])
    with pytest.raises(UserError) as caught:
        trained(file, run, tmp_path / "mine")
    assert str(caught.value) == ("0 positive and 0 negative labels to calibrate; it takes at least 8 of each, "
                                 "below that the figures say nothing")


def test_a_head_is_not_overwritten(labels: Path, run: Path, tmp_path: Path) -> None:
    trained(labels, run, tmp_path / "mine")
    with pytest.raises(UserError, match="holds a head already"):
        trained(labels, run, tmp_path / "mine")
