"""Results that stay: a line an evaluation, the same for the same, and never changed."""

import json
from pathlib import Path

import pytest

from tests.train.test_benchmarks import classification
from tests.train.test_evaluate import colours
from tests.train.toys import shard
from train.config import Data, Eval
from train.errors import DataError
from train.results import append, read, record, table


def test_the_same_evaluation_is_the_same_line_but_for_its_date(tmp_path: Path) -> None:
    """Wherever the files lie: what counts is what is in them."""
    lines = []
    for place in ("here", "there"):
        folder = classification(tmp_path / place / "colours", test=range(6))
        settings = Eval(retrieval=Data(shards=(str(shard(tmp_path / place / "0.tar", range(4))),)), benchmarks=(str(folder),))
        lines.append(record(colours(), settings, {"colours/accuracy_at_1": 0.5}))
    dates = [line.pop("date") for line in lines]
    assert lines[0] == lines[1] and all(date.endswith("+00:00") for date in dates)
    assert list(lines[0]["data"]) == ["retrieval", "colours"]
    assert {"python", "torch", "open_clip_torch"} <= lines[0]["versions"].keys()


def test_the_config_hash_sees_data_settings_and_weights(tmp_path: Path) -> None:
    folder = classification(tmp_path / "colours", test=range(6), train=range(6))
    plain, probed = (record(colours(), Eval(benchmarks=(str(folder),), probe=probe), {})["config"] for probe in (False, True))
    (folder / "classnames.txt").write_text("a\nb\nc\nd\ne\nf\n")
    renamed = record(colours(), Eval(benchmarks=(str(folder),)), {})["config"]
    other = colours()
    other.model.logit_scale.data += 1
    trained = record(other, Eval(benchmarks=(str(folder),)), {})["config"]
    assert len({plain, probed, renamed, trained}) == 4


def line(checkpoint: str, accuracy: float, data: str = "d", date: str = "2026-01-02T03:04:05+00:00") -> dict[str, object]:
    return {"config": "c", "model": "toy", "checkpoint": checkpoint, "data": {"x": data}, "settings": {},
            "figures": {"accuracy_at_1": accuracy}, "versions": {}, "date": date}


def test_appended_and_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    assert read(path) == []
    append(path, line("aaaaaaaaaa", 0.25))
    before = path.read_bytes()
    append(path, line("bbbbbbbbbb", 0.5))
    assert path.read_bytes().startswith(before)
    assert [found["checkpoint"][0] for found in read(path)] == ["a", "b"]


def test_a_line_that_a_killed_process_left_is_ended_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, line("a", 0.25))
    path.write_bytes(path.read_bytes() + b'{"config": "c", "mod')
    append(path, line("b", 0.5))
    assert path.read_bytes().count(b"\n") == 3
    assert [found["checkpoint"] for found in read(path)] == ["a", "b"]


@pytest.mark.parametrize("content", [b"lr: 3\n", b"\xff\xfe", json.dumps({"lr": 3}).encode(), b"[1]\n"])
def test_another_file_is_no_file_of_results(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.yaml: not a file of results"):
        read(tmp_path / "train.yaml")


def test_the_table_has_what_was_measured_alike() -> None:
    lines = [line("aaaaaaaaaa", 0.25), line("bbbbbbbbbb", 0.75, data="other"), line("cccccccccc", 0.5, date="2026-02-03")]
    assert list(table(lines, lines[-1])) == ["                      toy         toy",
                                             "checkpoint       aaaaaaaa    cccccccc",
                                             "date           2026-01-02  2026-02-03",
                                             "accuracy_at_1      0.2500      0.5000"]
    assert len(next(table([lines[0]] * 9, lines[0])).split()) == 6
