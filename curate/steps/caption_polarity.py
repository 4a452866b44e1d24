"""How far a caption praises or scolds, by a list of words with their valences."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.captions.words import folded, read_list, words_of
from curate.errors import UserError
from curate.step import File, float64, step

ALPHA = 15
"""Hutto and Gilbert 2014 (VADER): sum / sqrt(sum² + 15) brings a sum of valences into -1 to 1."""


@step(adds={"polarity": float64}, batch=10_000)
class CaptionPolarity:
    """Sentiment of the caption, -1 (all bad) to 1 (all good); 0 where no listed word stands in it.

    The list is yours: a line is a word, a tab and its valence, about -4 to 4; more columns are not read. VADER's
    vader_lexicon.txt (MIT licence) is such a list, and its normalisation is used: sum / sqrt(sum² + 15) over the words of the
    caption, each as often as it stands there (Hutto and Gilbert, ICWSM 2014). Its rules for negation, degree and capitals are
    not: "not good" is as good as "good".

    CC3M (ACL P18-1238, section 3) drops a text whose polarity, by a service of Google's, is too high or too low, without a
    number; `keep: polarity between -0.6 and 0.6` is our choice.
    """

    def __init__(self, *, words: File) -> None:
        valences: dict[str, float] = {}
        for where, line in read_list("caption_polarity", words):
            word, *others = line.split("\t")
            try:
                valence = float(others[0]) if others else np.nan
            except ValueError:
                valence = np.nan
            if not np.isfinite(valence):
                raise UserError("a line is a word, a tab and its valence, a number", where)
            valences.setdefault(folded(pa.array([word]))[0].as_py(), valence)
        valences.pop("", None)      # emoticons: words here are letters and digits
        self._words = pa.array(valences, pa.string())
        self._valences = np.array([*valences.values(), 0.0])

    def __call__(self, caption: pa.Array) -> NDArray[np.float64]:
        row, kind, kinds = words_of(caption)
        listed = pc.fill_null(pc.index_in(kinds, self._words), len(self._words)).to_numpy()
        total = np.bincount(row, weights=self._valences[listed][kind], minlength=len(caption))
        polarity: NDArray[np.float64] = total / np.sqrt(total**2 + ALPHA)
        return polarity
