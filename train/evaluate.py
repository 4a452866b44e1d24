"""How good a model is: retrieval with several right captions, zero-shot accuracy, and how well scores tell right from wrong.

The figures are pure functions of embeddings or scores; exact, and in chunks so that memory holds no full table of similarities.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.config import Eval
from train.data import Index, open_data
from train.errors import DataError
from train.models.clip import embed_images, embed_texts
from train.models.weights import Loaded
from train.pictures import BrokenPicture, decode

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]

AT = (1, 5, 10)
CHUNK_BYTES = 64 << 20
"""Memory for one chunk of similarities."""
TEMPLATES = Path(__file__).with_name("templates.txt")
"""OpenAI's 80 ImageNet prompts (github.com/openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb), `{}` for the class."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


# ---- pure functions


def recall_at_k(image_emb: Vectors, text_emb: Vectors, image_of_text: Ints, at: Sequence[int] = AT) -> dict[str, float]:
    """Share of queries whose right answer is among the k most similar, 0 to 1, both ways and their mean.

    Every caption of a picture is right for it. Equal similarities rank by position, as a stable sort does; other right
    captions of the same picture never push one down.
    """
    to_image = _ranks(text_emb, image_emb, np.arange(len(text_emb)), image_of_text)
    by_image = np.argsort(image_of_text, kind="stable")
    to_text = _ranks(image_emb, text_emb, image_of_text[by_image], by_image)
    figures: dict[str, float] = {}
    for k in at:
        both = float(np.mean(to_image < k)), float(np.mean(to_text < k))
        figures[f"text_to_image_recall_at_{k}"], figures[f"image_to_text_recall_at_{k}"] = both
        figures[f"recall_at_{k}"] = sum(both) / 2
    return figures


def auroc(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """Probability that a positive scores above a negative, ties counted half: 0.5 is chance. NaN without both kinds."""
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    return float((middle[inverse][positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def accuracy_at_k(image_emb: Vectors, class_emb: Vectors, labels: Ints, at: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of pictures whose class is among the k most similar, 0 to 1."""
    ranks = _ranks(image_emb, class_emb, np.arange(len(image_emb)), labels)
    return {f"accuracy_at_{k}": float(np.mean(ranks < k)) for k in at if k <= len(class_emb)}


def _ranks(queries: Vectors, candidates: Vectors, query_of_pair: Ints, right_of_pair: Ints) -> Ints:
    """For each query how many wrong candidates stand before its best right one; pairs (query, right candidate) by query.

    A query without a right candidate ranks behind everything.
    """
    ranks = np.full(len(queries), len(candidates), np.int64)
    step = max(1, CHUNK_BYTES // (4 * max(1, len(candidates))))
    for at in range(0, len(queries), step):
        similar = queries[at : at + step] @ candidates.T
        low, high = np.searchsorted(query_of_pair, [at, at + len(similar)])
        rows, rights = query_of_pair[low:high] - at, right_of_pair[low:high]
        own = similar[rows, rights]
        best_first = np.lexsort((rights, -own, rows))
        found, where = np.unique(rows[best_first], return_index=True)
        best = best_first[where]
        before = similar[found] > own[best, None]
        ties = similar[found] == own[best, None]
        ties &= np.arange(len(candidates)) < rights[best, None]
        ranks[at + found] = (before | ties).sum(1)
    return ranks


# ---- a model on data


def evaluate(loaded: Loaded, settings: Eval, batch: int = 64) -> dict[str, float]:
    """All figures that `settings` ask for."""
    figures: dict[str, float] = {}
    if settings.retrieval is not None:
        figures |= evaluate_retrieval(loaded, open_data(settings.retrieval), batch)
    if settings.images is not None:
        figures |= evaluate_classes(loaded, Path(settings.images), Path(settings.classes) if settings.classes else None, batch)
    return figures


def evaluate_retrieval(loaded: Loaded, rows: Index, batch: int = 64) -> dict[str, float]:
    """Recall of the pictures' captions and of the captions' pictures; broken pictures are left out."""
    numbers, image_emb = _embedded(loaded, (rows.read(i) for i in range(len(rows))), batch)
    texts = [caption for i in numbers for caption in rows.captions(i)]
    image_of_text = np.repeat(np.arange(len(numbers)), [rows.first[i + 1] - rows.first[i] for i in numbers])
    if not texts:
        raise DataError("retrieval: no picture can be decoded")
    return recall_at_k(image_emb, embed_texts(loaded, texts, batch), image_of_text)


def evaluate_classes(loaded: Loaded, images: Path, classes: Path | None = None, batch: int = 64) -> dict[str, float]:
    """Zero-shot accuracy over a folder with one folder of pictures a class, prompted with OpenAI's templates."""
    names = read_classes(images, classes)
    files = [(label, path) for label, folder in enumerate(names) for path in sorted((images / folder).rglob("*"))
             if path.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"no pictures in the class folders of {images}")
    numbers, image_emb = _embedded(loaded, (path.read_bytes() for _, path in files), batch)
    labels = np.array([files[i][0] for i in numbers], np.int64)
    return accuracy_at_k(image_emb, class_embeddings(loaded, list(names.values()), batch), labels)


def class_embeddings(loaded: Loaded, names: Sequence[str], batch: int = 64) -> Vectors:
    """One embedding a class: the mean over the templates, of length 1 again (Radford et al. 2021, section 3.1.4)."""
    templates = TEMPLATES.read_text().splitlines()
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
        lines = [line.strip() for line in classes.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{classes}: {error.strerror or error}") from None
    names = {folder: name or folder for folder, _, name in (line.partition("\t") for line in lines)}
    for folder in names:
        if not (images / folder).is_dir():
            raise DataError(f"{classes}: no folder {images / folder}")
    return names


def _embedded(loaded: Loaded, stored: Iterator[bytes], batch: int) -> tuple[list[int], Vectors]:
    """(numbers of the pictures that decode, their embeddings), one batch of decoded pictures in memory at a time."""
    numbers: list[int] = []
    parts: list[Vectors] = []
    counted = enumerate(stored)
    with ThreadPoolExecutor(2) as pool:
        while chunk := list(islice(counted, batch)):
            decoded = [(i, picture) for i, picture in pool.map(_decoded, chunk) if picture is not None]
            numbers += [i for i, _ in decoded]
            parts.append(embed_images(loaded, [picture for _, picture in decoded], batch))
    kept = [part for part in parts if len(part)]
    return numbers, np.concatenate(kept) if kept else np.empty((0, 0), np.float32)


def _decoded(numbered: tuple[int, bytes]) -> tuple[int, Image.Image | None]:
    try:
        return numbered[0], decode(numbered[1])
    except BrokenPicture:
        return numbered[0], None
