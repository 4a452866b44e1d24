"""Benchmarks as CLIP_benchmark publishes them: folders of webdataset tars, read without trust.

    DIR/test/*.tar                                a picture and `cls` (its class, from 0), or a picture and `txt` (its captions)
    DIR/train/*.tar  DIR/val/*.tar                if there are any, for a linear probe
    DIR/classnames.txt                            a line a class
    DIR/zeroshot_classification_templates.txt     a line a prompt, `{c}` for the class; OpenAI's 80 where there is none
    DIR/dataset_type.txt                          `retrieval`, where pictures have captions and no classes

A txt holds all captions of its picture, one a line. A folder of which anything is wrong is refused, and so is a member that is a
pickle: nothing in here is ever unpickled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.errors import DataError
from train.figures import Ints
from train.tars import MAX_TEXT, PICTURES, Member, members, split_name

CLASSES, TEMPLATES, TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
PICKLES = ("pkl", "pickle", "pyd", "pt", "pth")
"""Members that webdataset would unpickle."""
CLASSIFICATION, RETRIEVAL = "classification", "retrieval"


@dataclass(frozen=True)
class Split:
    """The pictures of one part of a benchmark, where they lie, and what is right for each."""

    files: tuple[Path, ...]
    places: Ints
    """(num_pictures, 3): number of the file, offset, length"""
    labels: Ints
    """(num_pictures,): the class of each, from 0; empty where pictures have captions"""
    captions: tuple[tuple[str, ...], ...]
    """of each picture; empty where pictures have classes"""

    def __len__(self) -> int:
        return len(self.places)

    def pictures(self) -> Iterator[bytes]:
        """The stored bytes of every picture, in order."""
        for number, path in enumerate(self.files):
            with open(path, "rb") as file:
                for _, offset, length in self.places[self.places[:, 0] == number].tolist():
                    file.seek(offset)
                    yield file.read(length)


@dataclass(frozen=True)
class Benchmark:
    """One folder: its kind, and the words for its classes."""

    folder: Path
    kind: str
    """classification or retrieval"""
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    """with `{}` for the class; empty where the folder has none"""

    @property
    def name(self) -> str:
        """The folder's, what its figures are called by."""
        return self.folder.resolve().name

    def has(self, part: str) -> bool:
        """Whether it has tars of `part`: train, val or test."""
        return any((self.folder / part).glob("*.tar"))

    def check(self, *parts: str) -> None:
        """Raises DataError where one of `parts` has no tars."""
        for part in parts:
            if not self.has(part):
                raise DataError(f"{self.folder}: no tars in {part}/")

    def split(self, part: str) -> Split:
        """The pictures of `part`. Raises DataError for tars that are cut short, mispaired, or of another kind."""
        self.check(part)
        files = tuple(sorted((self.folder / part).glob("*.tar"), key=lambda path: (len(path.name), path.name)))
        places: list[tuple[int, int, int]] = []
        labels: list[int] = []
        captions: list[tuple[str, ...]] = []
        for number, path in enumerate(files):
            for key, picture, right in _samples(path, "txt" if self.kind == RETRIEVAL else "cls"):
                places.append((number, picture.offset, picture.length))
                if self.kind == RETRIEVAL:
                    captions.append(_captions(f"{path}: '{key}.txt'", right))
                else:
                    labels.append(self._label(f"{path}: '{key}.cls'", right))
        return Split(files, np.array(places, np.int64).reshape(-1, 3), np.array(labels, np.int64), tuple(captions))

    def _label(self, where: str, content: bytes) -> int:
        text = content.strip()
        if not text.isdigit() or len(text) > 9:
            raise DataError(f"{where} is not the number of a class")
        if int(text) >= len(self.classes):
            raise DataError(f"{where} says class {int(text)}, and {CLASSES} has {len(self.classes)}")
        return int(text)


def open_benchmark(folder: Path) -> Benchmark:
    """The benchmark in `folder`. Raises DataError where it is none, or of a kind that is not evaluated here."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    kind = " ".join(_lines(folder / TYPE)) or CLASSIFICATION
    if kind not in (CLASSIFICATION, RETRIEVAL):
        raise DataError(f"{folder / TYPE}: '{kind}'; there is {CLASSIFICATION}, {RETRIEVAL}")
    classes = _lines(folder / CLASSES)
    if kind == CLASSIFICATION and not classes:
        raise DataError(f"{folder} has no {CLASSES} with a line a class; where pictures have captions instead, {TYPE} says "
                        f"'{RETRIEVAL}'")
    templates = tuple(line.replace("{c}", "{}") for line in _lines(folder / TEMPLATES))
    for template in templates:
        if "{}" not in template:
            raise DataError(f"{folder / TEMPLATES}: '{template}' has no {{c}} for the class")
    return Benchmark(folder, kind, classes, templates)


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a file, none where there is no file. Raises DataError for a blank one: classes are numbered by line."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").rstrip().splitlines()]
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None
    if "" in lines:
        raise DataError(f"{path}:{lines.index('') + 1}: a blank line")
    return tuple(lines)


def _samples(path: Path, wanted: str) -> Iterator[tuple[str, Member, bytes]]:
    """(key, picture, content of its `wanted` member) of every sample."""
    try:
        with open(path, "rb") as file:
            for key, group in _grouped(list(members(file)), wanted):
                pictures = [group[extension] for extension in PICTURES if extension in group]
                if len(pictures) != 1 or wanted not in group:
                    raise DataError(f"'{key}' has {len(pictures)} pictures and {'a' if wanted in group else 'no'} {wanted}")
                if group[wanted].length > MAX_TEXT:
                    raise DataError(f"'{group[wanted].name}' is larger than {MAX_TEXT >> 20} MiB")
                file.seek(group[wanted].offset)
                yield key, pictures[0], file.read(group[wanted].length)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _grouped(found: list[Member], wanted: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """The members of each key that matter, in the order of keys' first members. Raises DataError for a pickle."""
    groups: dict[str, dict[str, Member]] = {}
    for member in found:
        key, extension = split_name(member.name)
        if extension.rpartition(".")[2] in PICKLES:
            raise DataError(f"'{member.name}' is a pickle, and what is in it could be a program")
        if extension not in (*PICTURES, wanted):
            continue
        if extension in groups.setdefault(key, {}):
            raise DataError(f"'{member.name}' stands twice")
        groups[key][extension] = member
    yield from groups.items()


def _captions(where: str, content: bytes) -> tuple[str, ...]:
    captions = tuple(line.strip() for line in content.decode("utf-8", "replace").split("\n") if line.strip())
    if not captions:
        raise DataError(f"{where} has no caption")
    return captions
