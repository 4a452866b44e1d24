"""Work in a process of its own: its answer, its errors, its death."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from curate.errors import RunStopped, UserError
from curate.store import Store
from curate.training import Trainer, _apart, train_here
from tests.train.toys import table


def mistaken() -> None:
    """A user's mistake."""
    raise UserError("no such thing")


def broken() -> None:
    """A fault of the program."""
    raise KeyError("nothing")


def test_answers_and_errors_come_back() -> None:
    """What it returns; our own errors as they are, others with their traceback in words."""
    assert _apart(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="^no such thing$"):
        _apart(mistaken)
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        _apart(broken)


def test_a_killed_training_is_one_line() -> None:
    """The process dies in the middle: the run stops, and says that it can go on."""
    with pytest.raises(RunStopped, match="^the training process was killed .* goes on from its last checkpoint$"):
        _apart(signal.raise_signal, signal.SIGKILL)


@pytest.mark.parametrize(("settings", "message"), [
    (True, "train: True is not a map of settings"), ({"data": "x", "samples_seen": 1}, "train: data is the run's own")])
def test_a_wrong_block_is_one_line(settings: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(Store(tmp_path, "a"), settings, "", "pipeline.yaml:3")  # type: ignore[arg-type]


def test_a_block_without_a_model_has_the_default(tmp_path: Path) -> None:
    assert Trainer(Store(tmp_path, "a"), {"samples_seen": 100}, "", "").config.model == "ViT-B-32"


def test_what_random_weights_hash_to_is_remembered_in_the_run_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later attempt loads no model for it; and what a step asked in the meantime stays known."""
    block = {"model": "curate-conv-64", "samples_seen": 100}
    one, other = (Trainer(Store(tmp_path, name), block, "", "") for name in "ab")
    found = [one.digest("random:1"), other.digest("random:2"), one.digest("random:3")]
    assert len(set(found)) == 3
    monkeypatch.setattr("train.models.folder.weights_digest", lambda *_: pytest.fail("it was not remembered"))
    assert [Trainer(Store(tmp_path, "c"), block, "", "").digest(f"random:{seed}") for seed in (1, 2, 3)] == found


def test_what_is_finished_is_handed_to_nobody(tmp_path: Path) -> None:
    """Neither to a process with torch nor to Ray; a card that does not say what its training began with is."""
    block = {"model": "curate-conv-64", "samples_seen": 8, "batch": 4, "threads": 1, "tensorboard": False}
    pairs, asked = table(tmp_path, range(8)), list[Path]()

    def trained_again(settings: Mapping[str, Any], out: Path) -> str:
        asked.append(out)
        return "model"

    name = Trainer(Store(tmp_path, "a"), block, "", "", train_here).train(pairs, "chain")
    again = Trainer(Store(tmp_path, "b"), block, "", "", trained_again)
    assert again.train(pairs, "chain") == name and not asked
    card = json.loads((tmp_path / name / "train.json").read_text())
    del card["start"]
    (tmp_path / name / "train.json").write_text(json.dumps(card))
    assert again.train(pairs, "chain") == name and asked == [(tmp_path / name).parent]
