import time
from pathlib import Path

import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.steps.blocklist import Blocklist


@pytest.fixture
def lists(tmp_path: Path) -> tuple[Path, Path]:
    words, domains = tmp_path / "words.txt", tmp_path / "domains.txt"
    words.write_text("\ufeffSale\n\n hot dog \nhot dog stand\nStraße\nहिन्दी\nसफ\ncaf\u00e9\n50%\n")
    domains.write_text("pinimg.com\n*.Shopify.com\nbücher.de\n\n10.0.0.1\nlocalhost\n")
    return words, domains


@pytest.mark.parametrize(("caption", "word"), [
    ("a summer sale", "Sale"),
    ("SALE!", "Sale"),
    ("wholesale", None),
    ("sale_sale", "Sale"),
    ("ｓａｌｅ", "Sale"),
    ("sa\u00adle", "Sale"),
    ("sa\u200ble", "Sale"),
    ("\u202esale", "Sale"),
    ("null\0sale\0", "Sale"),
    ("a hot-dog, please", "hot dog"),
    ("hot dogs", None),
    ("dog hot", None),
    ("a hot dog stand", "hot dog stand"),
    ("hot hot dog", "hot dog"),
    ("hot dog on sale", "hot dog"),
    ("STRASSE", "Straße"),
    ("cafe\u0301", "caf\u00e9"),
    ("cafe", None),
    ("हिन्दी भाषा", "हिन्दी"),
    ("हन्द", None),
    ("50 years", "50%"),
    ("=sale()|' /C calc'!A0", "Sale"),
    ("<b>sale</b>", "Sale"),
    ("犬", None),
    ("", None),
])
def test_words(lists: tuple[Path, Path], caption: str, word: str | None) -> None:
    assert Blocklist(words=lists[0])(pa.array([caption]), None) == {
        "blocked_word": [word], "blocked_domain": [None], "is_blocked": [word is not None]}


@pytest.mark.parametrize(("url", "domain"), [
    ("https://pinimg.com/a.jpg", "pinimg.com"),
    ("https://I.PinImg.com:8443/a.jpg", "pinimg.com"),
    ("http://user:secret@i.pinimg.com./a.jpg", "pinimg.com"),
    ("//i.pinimg.com/a.jpg", "pinimg.com"),
    ("http://notpinimg.com/", None),
    ("http://pinimg.com.example/", None),
    ("http://example.com/pinimg.com", None),
    ("http://shopify.com/", "*.Shopify.com"),
    ("http://cdn.shopify.com/", "*.Shopify.com"),
    ("http://www.bücher.de/", "bücher.de"),
    ("http://xn--bcher-kva.de/", "bücher.de"),
    ("http://10.0.0.1/", "10.0.0.1"),
    ("http://210.0.0.1/", None),
    ("http://localhost:80/", "localhost"),
    ("http://[::1/", None),
    ("http://[::1]/", None),
    ("http://" + "ü" * 300 + ".de/", None),
    ("http://..../", None),
    ("not a url", None),
    ("", None),
    (None, None),
])
def test_domains(lists: tuple[Path, Path], url: str | None, domain: str | None) -> None:
    assert Blocklist(domains=lists[1])(pa.array(["a sale"]), [url]) == {
        "blocked_word": [None], "blocked_domain": [domain], "is_blocked": [domain is not None]}


def test_both_lists_and_rows_side_by_side(lists: tuple[Path, Path]) -> None:
    values = Blocklist(words=lists[0], domains=lists[1])(pa.array(["sale", "dog", "cat"]), ["http://pinimg.com/", None, "http://localhost/"])
    assert values == {"blocked_word": ["Sale", None, None], "blocked_domain": ["pinimg.com", None, "localhost"],
                      "is_blocked": [True, False, True]}


def test_empty_batch(lists: tuple[Path, Path]) -> None:
    blocklist = Blocklist(words=lists[0], domains=lists[1])
    nothing: dict[str, list[object]] = {"blocked_word": [], "blocked_domain": [], "is_blocked": []}
    assert blocklist(pa.array([], pa.string()), []) == nothing
    assert blocklist(pa.array([], pa.string()), None) == nothing


def test_linear_time(lists: tuple[Path, Path]) -> None:
    """Marks of two classes in turn are the worst case of Unicode's canonical order, dots that of looking up parents."""
    captions = ["a" + "\u0301\u0323" * 500_000, "hot " * 250_000, "hot dog stan " * 80_000, "x" * 10**6]
    begin = time.perf_counter()
    values = Blocklist(words=lists[0], domains=lists[1])(pa.array(captions), ["http://" + "a." * 500_000 + "pinimg.com/"] * 4)
    assert values["blocked_word"] == [None, None, "hot dog", None]
    assert values["blocked_domain"] == ["pinimg.com"] * 4
    assert time.perf_counter() - begin < 6


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"

    def answer(**lists: Path) -> str:
        with pytest.raises(UserError) as caught:
            Blocklist(**lists)
        return str(caught.value).replace(str(tmp_path), "DIR")

    assert answer() == "step 'blocklist' needs a list: words: FILE, domains: FILE, or both"
    assert answer(words=path) == (
        "step 'blocklist': cannot read the list DIR/list.txt: [Errno 2] No such file or directory: 'DIR/list.txt'")
    path.write_text("dog\n!!!\n")
    assert answer(words=path) == "DIR/list.txt:2: '!!!' has no letter or digit to match"
    path.write_text("example.com\n\nhttps://example.com/\n")
    assert answer(domains=path) == "DIR/list.txt:3: 'https://example.com/' is no domain like example.com"
    path.write_bytes("café".encode("latin-1"))
    assert answer(words=path).startswith("step 'blocklist': cannot read the list DIR/list.txt: 'utf-8' codec can't decode byte")
