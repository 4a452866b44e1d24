"""Heads: what a head computes, what is in its files, and everything for which one is refused."""

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from curate.cli import main
from curate.errors import UserError
from curate.heads.head import Calibration, Threshold, read, write
from curate.heads.layers import Linear, Lookup, Norm, Relu, Softmax, sigmoid
from tests.heads import DIM, head, linear, write_head


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# ---- what layers compute


def test_layers_exact() -> None:
    twice = Linear(rows([1, 2], [0, -1]), column(0.5, 0))
    assert twice(rows([1, 1], [-1, 0])).tolist() == [[3.5, -1], [-0.5, 0]]
    assert Relu()(rows([-1, 0, 2])).tolist() == [[0, 0, 2]]
    assert Norm(column(1, 2), column(2, 0.5))(rows([3, 2])).tolist() == [[1, 0]]
    assert Softmax()(rows([1000, 1000], [-1000, 0])).tolist() == [[0.5, 0.5], [0, 1]]
    assert sigmoid(column(0, 200, -200)).tolist() == pytest.approx([0.5, 1, 0])


def test_a_lookup_goes_by_the_number_as_printed() -> None:
    """Six decimals, half to even on the exact value; what is not in the table is 0, and -0.000000 is not 0.000000."""
    table = Lookup({1: (np.array([-562500, 0, 81360]), column(7, 8, 9))})
    values = [-0.5625, 0.08136, 0.0813604, 0.0813606, 0.0, -1e-9, 1e-9, 0.3, 0.5625, 3e30]
    for value, found in zip(values, table(rows(*([5, v] for v in values))).tolist(), strict=True):
        printed = f"{np.float32(value):.6f}"
        assert found == [5, {"-0.562500": 7, "0.000000": 8, "0.081360": 9}.get(printed, 0)], printed


def test_scores_exact() -> None:
    toy = head(Linear(rows([3, 4]), column(1)), dim=2, activation="none")
    assert toy.scores(rows([3, 4], [0, 10], [-1, 0])).tolist() == pytest.approx([6, 5, -2])
    stored = head(Linear(rows([3, 4]), column(1)), dim=2, activation="none", normalize=False)
    assert stored.scores(rows([3, 4], [0, 10])).tolist() == [26, 41]


def test_calibration_exact() -> None:
    raw = Linear(rows([1.0, 0]), column(0))
    toy = head(raw, dim=2, normalize=False, calibration=Calibration(type="platt", a=2, b=-1))
    assert toy.scores(rows([0, 1], [0.5, 0], [2, 0])).tolist() == pytest.approx([1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-3))])
    line = replace(head(raw, dim=2, normalize=False, activation="none", calibration=Calibration(type="isotonic")),
                   line=(column(0, 1, 2), column(0.1, 0.1, 0.9)))
    assert line.scores(rows([-5, 1], [1, 0], [1.5, 0], [7, 0])).tolist() == pytest.approx([0.1, 0.1, 0.5, 0.9])


@pytest.mark.parametrize("normalize", [True, False])
def test_nothing_to_score_is_nan(normalize: bool) -> None:
    toy = head(linear(2), dim=2, normalize=normalize)
    found = toy.scores(rows([0, 0], [np.nan, 1], [np.inf, 1], [1, 1]))
    assert np.isnan(found).tolist() == [True, True, True, False]
    assert toy.scores(np.empty((0, 0), np.float32)).shape == (0,)


def test_a_row_has_one_score_whatever_stands_beside_it() -> None:
    """To the bit: a batch of one, and the same row among 300."""
    toy = head(linear(DIM, 64), Relu(), linear(64, 33, seed=1), Relu(), linear(33, seed=2))
    many = np.random.default_rng(1).normal(size=(300, DIM)).astype(np.float32)
    together = toy.scores(many)
    assert [toy.scores(many[i : i + 1])[0] for i in range(300)] == together.tolist()
    assert toy.scores(many[7:]).tolist() == together[7:].tolist()


def test_another_dimension_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        head().scores(np.ones((3, 512), np.float32))
    assert str(caught.value) == "head 'toy' takes embeddings of 16 numbers (curate-conv-64, random:0), these have 512"


# ---- the files


def test_written_and_read_is_the_same(tmp_path: Path) -> None:
    table = Lookup({3: (np.array([1, 5]), column(1, 2)), 11: (np.array([-3]), column(9))})
    scale = np.full(DIM, 2, np.float32)
    toy = head(table, Norm(scale, scale), linear(DIM, 5), Relu(), linear(5, seed=3), normalize=False, licence="MIT",
               threshold=Threshold(drop=0.5), evaluated_on={"rows": 3})
    written = write(tmp_path / "toy", toy, "test")
    many = np.random.default_rng(0).normal(size=(20, DIM)).astype(np.float32)
    for found in (written, read(tmp_path / "toy"), read(tmp_path / "toy/head.json")):
        assert found.scores(many).tolist() == toy.scores(many).tolist()
        assert found.card.licence == "MIT" and found.card.threshold.drop == 0.5 and found.card.evaluated_on == {"rows": 3}
    before = {p.name: p.read_bytes() for p in (tmp_path / "toy").iterdir()}
    write(tmp_path / "again", toy, "other")
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == before


def test_a_pair_beside_each_other(tmp_path: Path) -> None:
    write_head(tmp_path / "a")
    for name in ("json", "safetensors"):
        (tmp_path / f"a/head.{name}").rename(tmp_path / f"mine.{name}")
    assert read(tmp_path / "mine.json").card.name == "toy"


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change head.json."""
    def apply(folder: Path) -> None:
        value = json.loads((folder / "head.json").read_text())
        change(value)
        (folder / "head.json").write_text(json.dumps(value))
    return apply


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the tensors, and the hash with them: what a careless maker of heads could do."""
    def apply(folder: Path) -> None:
        found = load((folder / "head.safetensors").read_bytes())
        change(found)
        data = save(found)
        (folder / "head.safetensors").write_bytes(data)
        edit(lambda card: card.update(sha256=hashlib.sha256(data).hexdigest()))(folder)
    return apply


def files(**contents: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for suffix, data in contents.items():
            (folder / f"head.{suffix}").write_bytes(data)
    return apply


class Payload:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('the payload ran')",)


WEIGHT = np.zeros((1, DIM), np.float32)
WRONG = [
    (edit(lambda c: c.update(schema="curate-head/9")), "head.json: schema 'curate-head/9'; this version reads 'curate-head/1'"),
    (files(json=b"[]"), "head.json: schema None; this version reads 'curate-head/1'"),
    (files(json=b"{"), "head.json: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    (edit(lambda c: c.pop("input")), "head.json: input: Field required"),
    (edit(lambda c: c.update(trust="me")), "head.json: trust: Extra inputs are not permitted"),
    (edit(lambda c: c["layers"][0].update(op="eval")),
     "head.json: layers.0.op: should be 'linear', 'relu', 'norm', 'lookup' or 'softmax'"),
    (edit(lambda c: c["output"].update(column="drop table")), "head.json: output.column: String should match pattern"),
    (edit(lambda c: c["input"].update(dim=17)), "head.safetensors: linear of weight (1, 16) and bias (1,) after rows of 17"),
    (edit(lambda c: c["calibration"].update(type="isotonic")), "head.safetensors: tensor 'calibration.x' is missing"),
    (edit(lambda c: c["layers"].clear()), "head.safetensors: its layers end with 16 numbers a row, not one"),
    (edit(lambda c: c["calibration"].update(type="platt", a=3.0)), "head.json: 32 of 32 probes fail: probe 0 scores "),
    (edit(lambda c: c["input"].update(normalize=False)), "probes fail"),
    (files(safetensors=b"cut"), "head.json: its sha256 is not that of head.safetensors: one of them was changed"),
    (files(safetensors=pickle.dumps(Payload())),
     "head.safetensors is a pickle, which can run code when it is read; `curate head convert` takes its tensors alone"),
    (files(safetensors=b"PK\3\4torch"), "head.safetensors is a pickle, which can run code when it is read"),
    (tensors(lambda t: t.update({"layers.0.weight": WEIGHT + np.nan})), "tensor 'weight' holds numbers that are not finite"),
    (tensors(lambda t: t.update({"layers.0.weight": WEIGHT.astype(np.float64)})), "tensor 'weight' is float64; it takes float32"),
    (tensors(lambda t: t.update({"layers.0.weight": WEIGHT})), "32 of 32 probes fail"),
    (tensors(lambda t: t.update({"layers.0.bias": t["layers.0.bias"] + 1e-2})), "probes fail"),
    (tensors(lambda t: t.update({"layers.0.extra": WEIGHT})), "head.safetensors: linear has no tensor 'extra'"),
    (tensors(lambda t: t.update({"layers.1.weight": WEIGHT})), "head.safetensors: tensor 'layers.1.weight' belongs to no layer"),
    (tensors(lambda t: t.pop("layers.0.bias")), "head.safetensors: tensor 'bias' is missing"),
    (tensors(lambda t: t.pop("probes")), "head.safetensors: tensor 'probes' is missing"),
    (tensors(lambda t: t.update(probes=t["probes"][:0], expected=t["expected"][:0])), "probes of (0, 16) with (0,) expected"),
    (lambda folder: (folder / "head.safetensors").unlink(), "head.safetensors: No such file or directory"),
    (lambda folder: (folder / "head.json").unlink(), "is no head: it takes a folder with head.json and head.safetensors"),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[said[:60] for _, said in WRONG])
def test_refused(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    """One line that says what is wrong, and nothing of it is used."""
    spoil(write_head(tmp_path / "toy"))
    with pytest.raises(UserError) as caught:
        read(tmp_path / "toy")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_safetensors_file_of_the_right_hash_that_is_none(tmp_path: Path) -> None:
    write_head(tmp_path / "toy")
    data = b"\xff" * 100
    files(safetensors=data)(tmp_path / "toy")
    edit(lambda card: card.update(sha256=hashlib.sha256(data).hexdigest()))(tmp_path / "toy")
    with pytest.raises(UserError, match="not a safetensors file"):
        read(tmp_path / "toy")


def test_a_rounding_of_another_machine_passes(tmp_path: Path) -> None:
    """1e-5 is what sums in another order may differ by; a wrong layer differs by far more."""
    tensors(lambda t: t.update(expected=t["expected"] + np.float32(1e-5)))(write_head(tmp_path / "toy"))
    assert read(tmp_path / "toy").card.name == "toy"


def test_a_head_that_fails_its_own_probes_is_not_written(tmp_path: Path) -> None:
    toy = head()
    with pytest.raises(UserError, match="probes fail"):
        write(tmp_path / "toy", replace(toy, expected=toy.expected + 1), "test")
    assert not (tmp_path / "toy").exists()


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_head(tmp_path / "toy", licence="MIT", threshold=Threshold(drop=0.5, review=0.25),
               calibration=Calibration(type="platt", a=2, b=-1), evaluated_on={"rows": 100})
    with pytest.raises(SystemExit) as end:
        main(["head", "show", str(tmp_path / "toy")])
    said = capsys.readouterr().out
    assert end.value.code == 0
    for line in ("head       toy: adds nsfw_prob, made for a test",
                 "input      curate-conv-64 (random:0), 16 numbers, brought to length 1",
                 "layers     linear; activation sigmoid", "calibrated platt (a 2, b -1)", "thresholds drop 0.5, review 0.25",
                 "evaluated  rows 100", "licence    MIT"):
        assert line in said.splitlines()
    with pytest.raises(SystemExit) as end:
        main(["head", "show", str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err == (f"{tmp_path} is no head: it takes a folder with head.json and head.safetensors, or the "
                                       ".json of such a pair; `curate head convert` makes one of published files\n")
