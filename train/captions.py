"""How good generated captions are, against the captions people wrote: BLEU-4, ROUGE-L, CIDEr-D; and how varied they are.

Pure functions of texts, without Java. The figures are defined as COCO's evaluation code has them (Chen et al. 2015, arXiv
1504.00325), so that they compare with published ones; but published figures are given times 100, and these are not.
Words come from `words`, a tokeniser in the manner of the Penn Treebank's, which COCO's code calls in Java. On the same words the
three figures are those of pycocoevalcap 1.2 to 5e-12 (30 random sets of up to 60 pictures); the words are those of its Java for
99.2 % of 8,000 captions of CC3M and 99.9 % of 10,000 of Flickr8k, and differ in brackets, smileys and signs of currency.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Words = tuple[str, ...]
Grams = Counter[Words]

ORDERS = 4
"""n-grams of one to four words."""
BETA = 1.2
"""ROUGE-L's weight of recall against precision, as COCO has it."""
SIGMA = 6.0
"""CIDEr-D's tolerance for a length that differs, in words (Vedantam et al. 2015, arXiv 1411.5726, section 6)."""

WORD = re.compile(r"(?:[a-z]\.){2,}|(?<![^\W_])'(?:s|m|d|re|ve|ll)(?![^\W_])|n't(?![^\W_])"
                  r"|[^\W_]+(?:(?:(?<=\d)[.,:](?=\d)|[-'/&.@](?=[^\W_]))[^\W_]+)*|[$%&#+*=@£€]")
"""An abbreviation with its dots (u.s.), a contraction that stands alone ('s), a word or number with what holds it together
(black-and-white, 3,000), a sign."""


def words(text: str) -> Words:
    """The words of a caption, lower case, without punctuation, contractions in two: `It isn't.` → it is n't.

    In the manner of the Penn Treebank: hyphenated words and numbers like 3,000 stay whole, `cannot` is can not. Our own rules;
    brackets go like all punctuation, where COCO's code leaves -lrb- behind.
    """
    found: list[str] = []
    for word in WORD.findall(text.lower().replace("’", "'")):
        found += ("can", "not") if word == "cannot" else _parted(word)
    return tuple(found)


def _parted(word: str) -> list[str]:
    """A contraction in its two parts; a word with no contraction at its end stays whole."""
    match = re.fullmatch(r"(.+?)(n't|'s|'m|'d|'re|'ve|'ll)", word)
    return [match[1], match[2]] if match else [word]


@dataclass(frozen=True)
class Captions:
    """The caption made for each picture, and those that people wrote of it, as words."""

    made: tuple[Words, ...]
    written: tuple[tuple[Words, ...], ...]

    @classmethod
    def of(cls, made: Sequence[str], written: Sequence[Sequence[str]]) -> "Captions":
        """From texts: one made, one or more written a picture. Raises ValueError where they do not pair up."""
        if len(made) != len(written) or not made or not all(written):
            raise ValueError(f"{len(made)} captions for {len(written)} pictures; each needs one, and a written one at least")
        return cls(tuple(words(text) for text in made), tuple(tuple(words(text) for text in texts) for texts in written))


def caption_figures(made: Sequence[str], written: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu_4, rouge_l (0 to 1), cider_d (0 to 10), distinct_1, distinct_2 (0 to 1) and words a caption, over all pictures."""
    captions = Captions.of(made, written)
    cider = cider_d(captions)
    return {"bleu_4": bleu(captions), "rouge_l": float(np.mean([rouge_l(c, r) for c, r in _pairs(captions)])),
            "cider_d": float(np.mean(cider)), "distinct_1": distinct(captions.made, 1), "distinct_2": distinct(captions.made, 2),
            "num_words": float(np.mean([len(caption) for caption in captions.made]))}


def bleu(captions: Captions, orders: int = ORDERS) -> float:
    """BLEU over all pictures together, 0 to 1: the geometric mean of the shares of n-grams that a written caption has too, each
    at most as often as in the one that has it most; times exp(1 - r/c) where the made captions (c words) are shorter than the
    written ones nearest in length (r words, the shorter of two as near).

    Papineni et al. 2002. An order without a match counts 1e-15, so the score is 0 in effect; not smoothed per picture.
    """
    matched, guessed, num_made, num_written = np.zeros(orders), np.zeros(orders), 0, 0
    for made, written in _pairs(captions):
        num_made += len(made)
        num_written += min((abs(len(text) - len(made)), len(text)) for text in written)[1]
        for n in range(1, orders + 1):
            most: Grams = Counter()
            for text in written:
                most |= _grams(text, n)
            found = _grams(made, n)
            matched[n - 1] += (found & most).total()
            guessed[n - 1] += found.total()
    if not num_made:
        return 0.0
    precision = float(np.exp(np.mean(np.log((matched + 1e-15) / (guessed + 1e-9)))))
    return precision * min(1.0, math.exp(1 - num_written / num_made))


def rouge_l(made: Words, written: Sequence[Words]) -> float:
    """ROUGE-L of one caption, 0 to 1: the longest common subsequence as a share of its words and of a written one's, the best
    of each over the written ones, weighed by `BETA` (Lin 2004; COCO takes the two bests apart, and so does this)."""
    common = [_common(made, text) for text in written]
    precision = max(common) / len(made) if made else 0.0
    recall = max((c / len(text) for c, text in zip(common, written, strict=True) if text), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider_d(captions: Captions) -> list[float]:
    """CIDEr-D of every caption, 0 to 10: how alike its tf-idf vectors of n-grams are to those of the written captions.

    Cosine with the made counts clipped to the written ones, times exp(-(difference in length)^2 / 2 `SIGMA`^2), mean over
    written captions and over n = 1 to 4, times 10 (Vedantam et al. 2015, arXiv 1411.5726, section 6). Document frequencies are
    those of the written captions given here, a picture being a document: with one picture all weights, and the score, are 0.
    """
    weights = _Weights.of(captions.written)
    return [10 * float(np.mean([weights.similarity(made, text, penalty=True) for text in written]))
            for made, written in _pairs(captions)]


def distinct(captions: Iterable[Words], n: int) -> float:
    """Different n-grams as a share of all n-grams of the captions, 0 to 1; low: the captions repeat themselves. 0 without any.

    Li et al. 2016 (arXiv 1510.03055), section 5. It falls with the number of captions: compare equal numbers.
    """
    found: Grams = Counter()
    for caption in captions:
        found += _grams(caption, n)
    return len(found) / found.total() if found else 0.0


def self_cider(of_one: Sequence[Words], written: Sequence[Sequence[Words]]) -> float:
    """How different several captions of one picture are, 0 (all say the same) to 1; NaN for fewer than two.

    Wang & Chan 2019 (arXiv 1903.12020), section 3.2: -log_m of the largest share among the square roots of the eigenvalues of
    the captions' CIDEr similarities, with the document frequencies of `written`, the whole corpus.
    """
    if len(of_one) < 2:
        return math.nan
    weights = _Weights.of(written)
    alike = np.array([[weights.similarity(a, b, penalty=False) for b in of_one] for a in of_one])
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(alike), 0, None))
    if not roots.sum():
        return 0.0
    return float(-math.log(roots.max() / roots.sum(), len(of_one))) + 0.0


@dataclass(frozen=True)
class _Weights:
    """How rare n-grams are in a corpus of pictures with their captions."""

    documents: Grams
    num_pictures: int

    @classmethod
    def of(cls, written: Sequence[Sequence[Words]]) -> "_Weights":
        documents: Grams = Counter()
        for texts in written:
            documents.update({gram for text in texts for n in range(1, ORDERS + 1) for gram in _grams(text, n)})
        return cls(documents, len(written))

    def vector(self, text: Words, n: int) -> dict[Words, float]:
        """tf-idf by n-gram; one that the corpus has not is as rare as one it has once."""
        return {gram: count * (math.log(self.num_pictures) - math.log(max(1, self.documents[gram])))
                for gram, count in _grams(text, n).items()}

    def similarity(self, made: Words, written: Words, *, penalty: bool) -> float:
        """Mean over n of the cosines, 0 to 1; with CIDEr-D's clipping and penalty for another length, or plain."""
        cosines = []
        for n in range(1, ORDERS + 1):
            a, b = self.vector(made, n), self.vector(written, n)
            norms = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
            dot = sum((min(a[gram], b[gram]) if penalty else a[gram]) * b[gram] for gram in a.keys() & b.keys())
            cosines.append(dot / norms if norms else 0.0)
        # COCO's code measures length in pairs of words: one fewer than words, and none for none.
        apart = max(0, len(made) - 1) - max(0, len(written) - 1)
        return math.fsum(cosines) / ORDERS * (math.exp(-apart**2 / (2 * SIGMA**2)) if penalty else 1.0)


def _pairs(captions: Captions) -> Iterable[tuple[Words, tuple[Words, ...]]]:
    return zip(captions.made, captions.written, strict=True)


def _grams(text: Words, n: int) -> Grams:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, start=1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
