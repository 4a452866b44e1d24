import math
from pathlib import Path

import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.steps.caption_polarity import CaptionPolarity


def polarity(path: Path, *captions: str) -> list[float]:
    return [float(p) for p in CaptionPolarity(words=path)(pa.array(captions, pa.string()))]


def test_sums_brought_into_minus_one_to_one(tmp_path: Path) -> None:
    """VADER's lines: a word, its valence, what else; x / sqrt(x² + 15)."""
    path = tmp_path / "lexicon.txt"
    path.write_text("Good\t1.9\t0.9\t[2, 1]\nawful\t-3\n:-)\t2\n")
    one, two = 1.9 / math.sqrt(1.9**2 + 15), 3.8 / math.sqrt(3.8**2 + 15)
    found = polarity(path, "a GOOD dog.", "good, good", "good awful", "not good", "a dog", "", ":-)")
    assert found == pytest.approx([one, two, -1.1 / math.sqrt(1.1**2 + 15), one, 0, 0, 0])
    assert polarity(path) == []
    assert -1 < polarity(path, "awful " * 1000)[0] < -0.99


@pytest.mark.parametrize("line", ["good", "good\tmuch", "good\tnan", "good\t"])
def test_wrong_lines(line: str, tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text(f"fine\t1\n{line}\n")
    with pytest.raises(UserError, match=r"lexicon.txt:2: a line is a word, a tab and its valence, a number"):
        CaptionPolarity(words=path)
