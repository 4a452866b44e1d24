"""What the rounds of a loop learn: the captions that the shards have, from the first round on that knows them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import files
from curate.certificate import digest_of
from curate.folder import Folder
from curate.gc import _models
from curate.loop import run_rounds
from curate.pairs import SCHEMA, as_packed, identity
from curate.pipeline import Pipeline, load
from curate.plan import Column
from curate.progress import Quiet
from curate.start import Session, trainer_of
from curate.store import Store
from curate.training import Trainer
from tests.running import tree, write_pipeline
from tests.train.toys import caption, scene
from train.config import Data
from train.data import decontaminated, open_data

CHOICE = """\
import pyarrow as pa

from curate.step import step, string


@step(adds={"captions": pa.list_(string), "chosen_caption": string})
def choice(caption: list[str], *, word: str = "seen", every: int = 5) -> dict[str, list]:
    kept = [[] if int(text.split()[-1]) % every == 0 else [f"{word} {text}", text] for text in caption]
    return {"captions": kept, "chosen_caption": [texts[0] if texts else None for texts in kept]}
"""
"""One picture in `every` keeps no caption, the others a new one and the source's."""
SOURCE = "source: {images: photos.csv, path: file, caption: caption, shard_rows: 10}\n"
HELD_OUT = ("held_out: {share: 0.2}", "keep: not held_out")
MODEL = ("clip_embed: {as: loop, model: curate-conv-64, pretrained: loop, first: raw}", "clip_score: {of: loop}")
CHOOSE, ALL = "./choice.py:choice", "keep: {top: 1, by: loop_clip_cos}"
AFTER = """\
shards: {rows: 50%s}
train: {samples_seen: 64, batch: 8, threads: 1, tensorboard: false}
loop: {trainings: 2}
"""


@dataclass
class Toy(Trainer):
    """Gives other random weights for every table, each better than the ones before; notes which tables it was given."""

    root: Path
    given: list[Path] = field(default_factory=list)
    untrained: str = "random:0"
    config_digest: str = "toy"

    def train(self, pairs: Path, chain: str) -> str:
        self.given.append(pairs)
        return f"random:{random.Random(chain).randrange(1, 1000)}"

    def recall(self, weights: str, pairs: Path) -> dict[str, float]:
        return {"recall_at_10": float(len(self.given))}

    def digest(self, weights: str) -> str:
        return weights


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of 30 pictures, each with a caption that ends with its number, and the step that chooses."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "choice.py").write_text(CHOICE)
    (folder / "pictures").mkdir()
    for n in range(30):
        scene(n).save(folder / f"pictures/{n:03d}.png")
    lines = [f'pictures/{n:03d}.png,"{caption(n)}, number {n}"' for n in range(30)]
    (folder / "photos.csv").write_text("\n".join(["file,caption", *lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def rounds(here: Path, *steps: str, chosen: bool = True, out: str = "out") -> list[Path]:
    """Run a loop of two trainings; the tables that they were given."""
    pipeline = load(write_pipeline(here, *steps, source=SOURCE, after=AFTER % (", caption: chosen_caption" if chosen else "")))
    trainer = Toy(here / out)
    run_loop(pipeline, trainer, here / out)
    return trainer.given


def run_loop(pipeline: Pipeline, trainer: Trainer, out: Path) -> None:
    store = Store(out, "test")
    with store.lock():
        run_rounds(pipeline, store, Session(store, "local", 0, watch=Quiet), trainer, lambda line: None)


def seen(data: Data) -> dict[bytes, list[str]]:
    """picture → the captions that a training sees of it."""
    index = open_data(data)
    return {index.read(i): index.captions(i) for i in range(len(index))}


def of_table(path: Path) -> dict[bytes, list[str]]:
    return seen(Data(table=(str(path),), root=str(path.parents[1])))


def of_shards(here: Path, out: str = "out") -> dict[bytes, list[str]]:
    return seen(Data(shards=(str(here / out / "shards/*.tar"),)))


def texts(found: dict[bytes, list[str]]) -> set[str]:
    return {text for captions in found.values() for text in captions}


def test_a_round_learns_what_the_shards_have(here: Path) -> None:
    """All captions that were chosen of a picture; a picture without one is not seen. The raw pool, before the choice, has the
    web's."""
    raw, second = rounds(here, *HELD_OUT, *MODEL, CHOOSE, ALL)
    assert of_table(second) == of_shards(here) and len(of_table(second)) < len(of_table(raw))
    assert {len(captions) for captions in of_table(second).values()} == {2}
    assert all(web == text.removeprefix("seen ") != text for text, web in of_table(second).values())
    assert {len(captions) for captions in of_table(raw).values()} == {1}
    assert not any(text.startswith("seen") for text in texts(of_table(raw)))


def test_a_choice_before_the_loop_s_model_is_learnt_from_the_start(here: Path) -> None:
    raw, second = rounds(here, CHOOSE, *HELD_OUT, *MODEL, ALL, out="early")
    assert of_table(raw) == of_table(second) == of_shards(here, "early")


def test_tables_say_what_their_rows_were_checked_for(here: Path) -> None:
    """That of the raw pool, before the loop's keep, and that behind it; both behind the check."""
    (here / "exam").mkdir()
    scene(500).save(here / "exam/asked.png")
    check = ("image_hash", "decontaminate: {against: exam}", "keep: not contaminated")
    entry = {"benchmark": "exam", "digest": digest_of(str(here / "exam")), "keep": "not contaminated", "bytes": True,
             "hash_bits": 4, "max_levels": 24}
    tables = rounds(here, *check, *HELD_OUT, *MODEL, CHOOSE, ALL, out="checked")
    assert len(tables) == 2
    assert all(decontaminated(Data(table=(str(table),))) == {"decontaminated": [entry]} for table in tables)


@pytest.mark.slow
def test_models_are_judged_by_what_the_web_says(here: Path) -> None:
    """Also where a choice stands before the pictures are held out: another choice is judged by the same."""
    for steps in ((CHOOSE, *HELD_OUT), (*HELD_OUT, CHOOSE)):
        rounds(here, *steps, *MODEL, ALL, out="judged")
    tables = [pq.read_table(path) for path in sorted((here / "judged/models").glob("held_out-*"))]
    assert [table.column_names for table in tables] == [["uid", "image_id", "caption", "image"]] * 2
    assert tables[0]["caption"].to_pylist() == tables[1]["caption"].to_pylist()
    assert not any(text.startswith("seen") for text in tables[0]["caption"].to_pylist())


@pytest.mark.slow
def test_another_choice_is_another_training_and_the_same_choice_none(here: Path) -> None:
    """No keep stands behind the choice: the rows are the same. The tables of an earlier attempt are not written again."""
    steps = (*HELD_OUT, *MODEL)
    first = rounds(here, *steps, f"{CHOOSE}: {{every: 100}}", ALL, out="again")
    before = tree(here / "again", "models", "shards", "rounds.json")
    assert rounds(here, *steps, f"{CHOOSE}: {{every: 100}}", ALL, out="again") == first
    assert tree(here / "again", "models", "shards", "rounds.json") == before
    other = rounds(here, *steps, f"{CHOOSE}: {{every: 100, word: other}}", ALL, out="again")
    assert other[0] == first[0], "the raw pool knows no choice"
    assert other[1] != first[1] and "other" in str(texts(of_table(other[1])))
    recorded = files.read_json(here / "again/rounds.json")
    assert [f"pairs-{r['trained_on']}.parquet" for r in recorded[1:]] == [path.name for path in other]
    assert [r["data"]["digest"] for r in recorded[1:-1]] == [r["trained_on"] for r in recorded[2:]]
    assert list(_models(Folder.open(here / "again"))) == [first[1]], "what gc drops: the table of the choice before"


def column(name: str, kind: pa.DataType, made: str = "source") -> Column:
    return Column(name, kind, f"{made}.{name}")


PLAIN = {n: column(n, kind) for n, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)}
LISTS = pa.list_(pa.string())


def test_without_a_choice_a_training_is_named_as_it_was() -> None:
    """By the rows alone, whatever other columns there are: a run of an earlier version finds its models."""
    there = {**PLAIN, "caption_clean": column("caption_clean", pa.string(), "a"), "captions": column("captions", pa.string())}
    for caption_ in ("caption", "chosen_caption"):
        assert as_packed(there, caption_) == PLAIN
    assert identity("rows", PLAIN) == "rows"


def test_a_training_is_named_by_the_captions_that_are_not_the_source_s() -> None:
    """Another column, the same column made otherwise, or a list beside it; a list of the source's too, since shards have it."""
    clean, cleaner = ({**PLAIN, "caption_clean": column("caption_clean", pa.string(), made)} for made in "ab")
    assert as_packed(clean, "caption_clean") == {**PLAIN, "caption": clean["caption_clean"]}
    tables = [as_packed(clean, "caption_clean"), as_packed(cleaner, "caption_clean"),
              *(as_packed({**PLAIN, "captions": column("captions", LISTS, made)}, "caption") for made in ("a", "source"))]
    assert len({"rows", *(identity("rows", table) for table in tables)}) == 5


class Stopped(Exception):
    """Stands for a run that is killed when it begins to train."""


@dataclass
class Stopping(Toy):
    """Trains nothing."""

    def train(self, pairs: Path, chain: str) -> str:
        raise Stopped


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_of_a_loop_has_learnt_the_captions_that_were_chosen(here: Path) -> None:
    """Two of each picture, by the model's own card; the same bytes where the run was stopped before it trained."""
    model = (MODEL[0].replace("raw", "random:0"), MODEL[1])
    after = AFTER.replace("trainings: 2", "trainings: 1") % ", caption: chosen_caption"
    pipeline = load(write_pipeline(here, *HELD_OUT, *model, f"{CHOOSE}: {{every: 100}}", ALL, source=SOURCE, after=after))
    with pytest.raises(Stopped):
        run_loop(pipeline, Stopping(here / "stopped"), here / "stopped")
    for out in ("whole", "stopped"):
        trainer = trainer_of(pipeline, Store(here / out, "test"))
        assert trainer is not None
        run_loop(pipeline, trainer, here / out)
    [card] = [files.read_json(path)["data"] for path in (here / "whole/models").glob("*/model/train.json")]
    assert card["captions"] == 2 * card["pictures"] > 0
    tables = [f"models/{path.name}" for path in (here / "whole/models").glob("*.parquet")]
    same = ("shards", "funnel.json", "rounds.json", *tables)
    assert len(tables) == 2 and tree(here / "stopped", *same) == tree(here / "whole", *same)
