"""How good a model is: retrieval, captions, zero-shot accuracy, a linear probe, over shards, folders of classes and benchmarks.

What the figures are is in `train.figures`, `train.captions` and `train.probe`; here a model meets data.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from train.benchmarks import CLASSIFICATION, RETRIEVAL, Benchmark, Split, open_benchmark
from train.best import value_of
from train.captioning import writer, written_figures
from train.captions import caption_figures
from train.config import Eval
from train.data import Index, matches, open_data
from train.errors import DataError
from train.figures import Ints, Vectors, accuracy_at_k, class_ranks, mean_per_class, recall_at_k
from train.geometry import geometry
from train.models.clip import embed_images, embed_texts
from train.models.weights import Loaded
from train.pictures import decoded
from train.probe import PROBED, Labelled, probe_figures

TEMPLATES = Path(__file__).with_name("templates.txt")
"""OpenAI's 80 ImageNet prompts (github.com/openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb), `{}` for the class."""
GEOMETRY_PAIRS = 10_000
"""Pairs at most that the figures of geometry are taken over: they compare all with all."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def evaluate(loaded: Loaded, settings: Eval, batch: int = 64) -> dict[str, float]:
    """All figures that `settings` ask for; those of a benchmark are called `<folder>/<figure>`.

    Raises ConfigError, before anything is measured, where captions are asked of a model that writes none.
    """
    benchmarks, writes = opened(settings), writer(loaded, settings)
    figures: dict[str, float] = {}
    if settings.retrieval is not None:
        figures |= evaluate_retrieval(loaded, open_data(settings.retrieval), batch)
    if settings.captions is not None and writes is not None:
        figures |= written_figures(writes, open_data(settings.captions), batch)
    if settings.images is not None:
        figures |= evaluate_classes(loaded, Path(settings.images), Path(settings.classes) if settings.classes else None,
                                    Path(settings.images_train) if settings.images_train else None, batch)
    for benchmark in benchmarks:
        found = evaluate_benchmark(loaded, benchmark, probe=settings.probe, batch=batch)
        figures |= {f"{benchmark.name}/{name}": value for name, value in found.items()}
    return figures


def opened(settings: Eval) -> list[Benchmark]:
    """The benchmarks. Raises DataError, before any time is spent, for anything that `settings` name and is not there."""
    for held_out in (settings.retrieval, settings.captions):
        for part in held_out.parts if held_out is not None else ():
            matches(part.shards or part.table)
    if settings.images is not None:
        names = read_classes(Path(settings.images), Path(settings.classes) if settings.classes else None)
        if settings.images_train is not None:
            _check_folders(Path(settings.images_train), names)
    benchmarks = [open_benchmark(Path(folder)) for folder in settings.benchmarks]
    seen: dict[str, Path] = {}
    for benchmark in benchmarks:
        if benchmark.name in seen:
            raise DataError(f"two benchmarks are called {benchmark.name}: {seen[benchmark.name]} and {benchmark.folder}")
        seen[benchmark.name] = benchmark.folder
        benchmark.check("test", *(("train",) if settings.probe and benchmark.kind == CLASSIFICATION else ()))
    return benchmarks


def check(settings: Eval) -> None:
    """Before hours are spent on what cannot be judged: all that `settings` name is read once, but for pictures, and the figure
    that weights are kept by is one that there will be. Raises DataError or ConfigError."""
    benchmarks = opened(settings)
    for held_out in (settings.retrieval, settings.captions):
        if held_out is not None:
            open_data(held_out)
    for benchmark in benchmarks:
        probed = settings.probe and benchmark.kind == CLASSIFICATION
        for part in ("test", *(part for part in ("train", "val") if probed and benchmark.has(part))):
            benchmark.split(part)
    if settings.images is not None:
        names = read_classes(Path(settings.images), Path(settings.classes) if settings.classes else None)
        for folder in (settings.images, settings.images_train):
            if folder is not None:
                _files(Path(folder), names)
    if settings.keep_best is not None:
        value_of(settings.keep_best, dict.fromkeys(measured(settings, benchmarks), 0.0))


def measured(settings: Eval, benchmarks: Sequence[Benchmark]) -> list[str]:
    """The names of the figures that `evaluate` gives, of the same functions on what is small."""
    eye = np.eye(2, dtype=np.float32)
    recall = [*recall_at_k(eye, eye, np.arange(2)), *geometry(torch.from_numpy(eye), torch.from_numpy(eye))]
    found = recall if settings.retrieval is not None else []
    if settings.captions is not None:
        found = [*found, *(f"caption_{name}" for name in caption_figures(["a"], [["a"]]))]
    if settings.images is not None:
        names = read_classes(Path(settings.images), Path(settings.classes) if settings.classes else None)
        found = [*found, *_class_figures(len(names), settings.images_train is not None)]
    for benchmark in benchmarks:
        classified = benchmark.kind == CLASSIFICATION
        of_one = _class_figures(len(benchmark.classes), settings.probe) if classified else recall
        found = [*found, *(f"{benchmark.name}/{name}" for name in of_one)]
    return found


def _class_figures(num_classes: int, probed: bool) -> list[str]:
    class_emb = np.eye(min(num_classes, 10), dtype=np.float32)      # a figure of more than ten there is not
    return [*_classified(Labelled(class_emb[:1], np.zeros(1, np.int64)), class_emb), *(PROBED if probed else ())]


def evaluate_retrieval(loaded: Loaded, rows: Index, batch: int = 64) -> dict[str, float]:
    """Recall of the pictures' captions and of the captions' pictures; broken pictures are left out."""
    numbers, image_emb = _embedded(loaded, (rows.read(i) for i in range(len(rows))), batch)
    return _recall(loaded, image_emb, [rows.captions(i) for i in numbers], batch)


def evaluate_classes(loaded: Loaded, images: Path, classes: Path | None = None, training: Path | None = None,
                     batch: int = 64) -> dict[str, float]:
    """Zero-shot accuracy over a folder with one folder of pictures a class, prompted with OpenAI's templates; and, with a like
    folder to train on, a linear probe."""
    names = read_classes(images, classes)
    test = _labelled(loaded, *_files(images, names), batch)
    if not len(test):
        raise DataError(f"{images}: no picture can be decoded")
    figures = _classified(test, class_embeddings(loaded, list(names.values()), batch=batch))
    if training is not None:
        _check_folders(training, names)
        learnt = _labelled(loaded, *_files(training, names), batch)
        if not len(learnt):
            raise DataError(f"{training}: no picture can be decoded")
        figures |= probe_figures(learnt, test)
    return figures


def _classified(test: Labelled, class_emb: Vectors) -> dict[str, float]:
    right = class_ranks(test.emb, class_emb, test.labels) == 0
    return {**accuracy_at_k(test.emb, class_emb, test.labels), "mean_per_class": mean_per_class(right, test.labels)}


def evaluate_benchmark(loaded: Loaded, benchmark: Benchmark, *, probe: bool = False, batch: int = 64) -> dict[str, float]:
    """Recall, or zero-shot accuracy with the benchmark's own templates, on its test pictures; and a probe from its train ones."""
    test = benchmark.split("test")
    if benchmark.kind == RETRIEVAL:
        numbers, image_emb = _embedded(loaded, test.pictures(), batch)
        return _recall(loaded, image_emb, [test.captions[i] for i in numbers], batch)
    found = _labelled(loaded, test.pictures(), test.labels, batch)
    if not len(found):
        raise DataError(f"{benchmark.folder}: no picture of test/ can be decoded")
    figures = _classified(found, class_embeddings(loaded, benchmark.classes, benchmark.templates, batch))
    if probe:
        parts = [_split(loaded, benchmark.split(part), batch) if benchmark.has(part) else None for part in ("train", "val")]
        if parts[0] is None or not len(parts[0]):
            raise DataError(f"{benchmark.folder}: no picture of train/ can be decoded")
        figures |= probe_figures(parts[0], found, parts[1])
    return figures


def class_embeddings(loaded: Loaded, names: Sequence[str], templates: Sequence[str] = (), batch: int = 64) -> Vectors:
    """One embedding a class: the mean over the templates, of length 1 again (Radford et al. 2021, section 3.1.4).

    Without `templates` OpenAI's.
    """
    templates = templates or TEMPLATES.read_text().splitlines()
    prompts = embed_texts(loaded, [template.replace("{}", name) for name in names for template in templates], batch)
    mean = prompts.reshape(len(names), len(templates), -1).mean(1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)


def read_classes(images: Path, classes: Path | None) -> Mapping[str, str]:
    """Folder → name of the class. Without a file the folders' names, `_` as a space. Raises DataError."""
    if not images.is_dir():
        raise DataError(f"no folder {images}")
    if classes is None:
        return {path.name: path.name.replace("_", " ") for path in sorted(images.iterdir()) if path.is_dir()}
    try:
        lines = [line.strip() for line in classes.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{classes}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{classes} is not UTF-8") from None
    names = {folder: name or folder for folder, _, name in (line.partition("\t") for line in lines)}
    for folder in names:
        if not (images / folder).is_dir():
            raise DataError(f"{classes}: no folder {images / folder}")
    return names


def _check_folders(training: Path, names: Mapping[str, str]) -> None:
    for folder in names:
        if not (training / folder).is_dir():
            raise DataError(f"no folder {training / folder} to train a probe of that class on")


def _files(images: Path, names: Mapping[str, str]) -> tuple[Iterator[bytes], Ints]:
    """The pictures in the class folders, and the class of each. Raises DataError where there are none."""
    files = [(label, path) for label, folder in enumerate(names) for path in sorted((images / folder).rglob("*"))
             if path.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"no pictures in the class folders of {images}")
    return (path.read_bytes() for _, path in files), np.array([label for label, _ in files], np.int64)


def _split(loaded: Loaded, split: Split, batch: int) -> Labelled:
    return _labelled(loaded, split.pictures(), split.labels, batch)


def _labelled(loaded: Loaded, stored: Iterator[bytes], labels: Ints, batch: int) -> Labelled:
    """The pictures that decode as embeddings, with their classes."""
    numbers, emb = _embedded(loaded, stored, batch)
    return Labelled(emb, labels[numbers])


def _recall(loaded: Loaded, image_emb: Vectors, captions: Sequence[Sequence[str]], batch: int) -> dict[str, float]:
    """Recall, where captions[i] are the right ones of picture i; and how the first pairs lie (`train.geometry`)."""
    texts = [caption for own in captions for caption in own]
    if not texts:
        raise DataError("retrieval: no picture can be decoded")
    image_of_text = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    text_emb = embed_texts(loaded, texts, batch)
    images, words = image_emb[image_of_text[:GEOMETRY_PAIRS]], text_emb[:GEOMETRY_PAIRS]
    finite = np.isfinite(images).all() and np.isfinite(words).all()     # else the model is broken, and recall is 0
    lying = geometry(torch.from_numpy(images), torch.from_numpy(words)) if len(words) > 1 and finite else {}
    return {**recall_at_k(image_emb, text_emb, image_of_text), **lying}


def _embedded(loaded: Loaded, stored: Iterator[bytes], batch: int) -> tuple[list[int], Vectors]:
    """(numbers of the pictures that decode, their embeddings), one batch of decoded pictures in memory at a time."""
    numbers: list[int] = []
    parts: list[Vectors] = []
    for chunk in decoded(stored, batch):
        numbers += [i for i, _ in chunk]
        parts.append(embed_images(loaded, [picture for _, picture in chunk], batch))
    kept = [part for part in parts if len(part)]
    return numbers, np.concatenate(kept) if kept else np.empty((0, 0), np.float32)
