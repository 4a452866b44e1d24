"""Benchmarks as CLIP_benchmark writes them, and folders that are none."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.toys import caption, colour_of, encoded, scene, write_tar
from train.benchmarks import open_benchmark
from train.errors import DataError

CLASSES = [colour_of(n) for n in range(6)]


def classification(folder: Path, **parts: range) -> Path:
    """A benchmark of colours; numbers of the pictures in each part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    for part, numbers in parts.items():
        (folder / part).mkdir()
        (folder / part / "nshards.txt").write_text("2\n")
        for half in (0, 1):
            members = [member for n in numbers[half::2] for member in
                       ((f"s{n:07d}.cls", str(n % 6).encode()), (f"s{n:07d}.png", encoded(scene(n))))]
            write_tar(folder / part / f"{half}.tar", members)
    return folder


def retrieval(folder: Path, numbers: range) -> Path:
    """A benchmark of pictures with two captions each, as a txt of two lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    members = [member for n in numbers for member in
               ((f"s{n:07d}.txt", f"{caption(n)}\n{colour_of(n)}, and a shape\n".encode()), (f"s{n:07d}.png", encoded(scene(n))))]
    write_tar(folder / "test" / "0.tar", members)
    return folder


def test_classes(tmp_path: Path) -> None:
    found = open_benchmark(classification(tmp_path / "colours", test=range(12), train=range(4)))
    assert (found.name, found.kind, found.classes, found.templates) == ("colours", "classification", tuple(CLASSES), ())
    split = found.split("test")
    assert split.labels.tolist() == [0, 2, 4, 0, 2, 4, 1, 3, 5, 1, 3, 5]
    assert list(split.pictures()) == [encoded(scene(n)) for n in (*range(0, 12, 2), *range(1, 12, 2))]
    assert found.has("train") and not found.has("val") and len(found.split("train")) == 4


def test_tars_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = classification(tmp_path / "colours", test=range(2))
    for number in (10, 9):
        write_tar(folder / "test" / f"{number}.tar", [(f"x{number}.cls", b"3\n"), (f"x{number}.jpg", b"")])
    assert [path.name for path in open_benchmark(folder).split("test").files] == ["0.tar", "1.tar", "9.tar", "10.tar"]


def test_captions_are_the_lines_of_the_txt(tmp_path: Path) -> None:
    found = open_benchmark(retrieval(tmp_path / "scenes", range(2)))
    assert found.kind == "retrieval"
    assert found.split("test").captions == (("a red circle", "red, and a shape"), ("a blue circle", "blue, and a shape"))


def test_its_templates_with_its_own_mark(tmp_path: Path) -> None:
    folder = classification(tmp_path / "colours", test=range(2))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}\n")
    assert open_benchmark(folder).templates == ("a photo of a {}.", "{}")


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def packed(*members: tuple[str, bytes]) -> Callable[[Path], object]:
    return lambda folder: write_tar(folder / "test" / "0.tar", members)


PICTURE = ("a.png", encoded(scene(0)))
BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (written("dataset_type.txt", "multilabel"), "dataset_type.txt: 'multilabel'; there is classification, retrieval"),
    (written("classnames.txt", "a\n\nb\n"), "classnames.txt:2: a blank line"),
    (written("classnames.txt", ""), "has no classnames.txt with a line a class"),
    (written("zeroshot_classification_templates.txt", "a photo"), "'a photo' has no {c} for the class"),
    (packed(PICTURE, ("a.cls", b"6")), "0.tar: 'a.cls' says class 6, and classnames.txt has 6"),
    (packed(PICTURE, ("a.cls", b"-1")), "'a.cls' is not the number of a class"),
    (packed(PICTURE), "0.tar: 'a' has 1 pictures and no cls"),
    (packed(("a.cls", b"1")), "0.tar: 'a' has 0 pictures and a cls"),
    (packed(PICTURE, ("a.jpg", b""), ("a.cls", b"1")), "0.tar: 'a' has 2 pictures and a cls"),
    (packed(PICTURE, ("a.cls", b"1"), ("a.cls", b"2")), "0.tar: 'a.cls' stands twice"),
    (packed(PICTURE, ("a.cls", b"1"), ("a.pkl", pickle.dumps([1]))), "0.tar: 'a.pkl' is a pickle"),
    (packed(PICTURE, ("a.cls", b"1"), ("a.cls.PTH", b"")), "0.tar: 'a.cls.PTH' is a pickle"),
    (lambda folder: (folder / "test" / "0.tar").write_bytes(b"no tar" * 200), "0.tar: "),
    (lambda folder: [path.unlink() for path in (folder / "test").glob("*.tar")], "no tars in test/"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_what_is_wrong_is_refused(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = classification(tmp_path / "colours", test=range(6))
    change(folder)
    with pytest.raises(DataError) as error:
        open_benchmark(folder).split("test")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_txt_without_a_caption_and_one_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = retrieval(tmp_path / "scenes", range(1))
    packed(PICTURE, ("a.txt", b" \n\n"))(folder)
    with pytest.raises(DataError, match=r"0\.tar: 'a\.txt' has no caption"):
        open_benchmark(folder).split("test")
    monkeypatch.setattr("train.benchmarks.MAX_TEXT", 1 << 20)
    packed(PICTURE, ("a.txt", b"x" * (1 << 20) + b"x"))(folder)
    with pytest.raises(DataError, match="larger than 1 MiB"):
        open_benchmark(folder).split("test")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder .*/none"):
        open_benchmark(tmp_path / "none")
