"""Words, BLEU, ROUGE-L, CIDEr-D and diversity, by hand."""

import math

import pytest

from train.captions import Captions, Words, bleu, caption_figures, cider_d, distinct, rouge_l, self_cider, words


@pytest.mark.parametrize(("text", "expected"), [
    ("A dog runs.", "a dog runs"),
    ("It isn't John's; they'll cannot!", "it is n't john 's they 'll can not"),
    ("a man 's back", "a man 's back"),
    ("black-and-white t-shirt", "black-and-white t-shirt"),
    ("3,000 people, 3.5 m, 12:30, 4k, 20th", "3,000 people 3.5 m 12:30 4k 20th"),
    ("the U.S. flag (and a 'quoted' \"word\") ...", "the u.s. flag and a quoted word"),
    ("salt & pepper #7 50%", "salt & pepper # 7 50 %"),
    ("Über größe — 犬と猫", "über größe 犬と猫"),
    (" \t\n .,!? ", ""),
])
def test_words(text: str, expected: str) -> None:
    assert words(text) == tuple(expected.split())


def test_bleu_by_hand() -> None:
    """Made: 6 words; the written one nearest in length has 6 too, so nothing is taken off.

    `the cat sat on a mat`: 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours are in `the cat sat on the mat`.
    """
    captions = Captions.of(["the cat sat on a mat"], [["the cat sat on the mat", "cats"]])
    assert bleu(captions) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu(captions, orders=1) == pytest.approx(5 / 6)


def test_bleu_counts_a_word_as_often_as_one_written_caption_has_it() -> None:
    """Papineni's example: seven times `the`, of which the first reference has two."""
    captions = Captions.of(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]])
    assert bleu(captions, orders=1) == pytest.approx(2 / 7)


def test_bleu_takes_off_for_shortness_over_all_pictures_together() -> None:
    captions = Captions.of(["a b", "c d e f"], [["a b c d"], ["c d e f"]])
    assert bleu(captions, orders=1) == pytest.approx(math.exp(1 - 8 / 6))
    nearest = Captions.of(["a b c"], [["a b c d", "a b"]])           # 2 and 4 are as near: the shorter counts
    assert bleu(nearest, orders=1) == pytest.approx(1.0)


def test_rouge_by_hand() -> None:
    """`a d c` shares `a c` with `a b c d`: precision 2/3, recall 2/4."""
    p, r = 2 / 3, 2 / 4
    assert rouge_l(tuple("adc"), [tuple("abcd")]) == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p))
    assert rouge_l(tuple("xy"), [tuple("abcd")]) == 0.0
    # The best precision and the best recall may come from different written captions.
    assert rouge_l(tuple("ab"), [tuple("abcd"), tuple("b")]) == pytest.approx((1 + 1.44) * 1 * 1 / (1 + 1.44 * 1))


def test_cider_by_hand() -> None:
    """Two pictures, so what stands at one weighs ln 2, what stands at both 0; a single word has no pairs: orders 2 to 4 are 0."""
    found = cider_d(Captions.of(["red", "blue"], [["red"], ["green"]]))
    assert found == pytest.approx([10 / 4, 0.0])
    # `red dog` and `red cat`: red weighs at both alike; one of two words and no pair in common. Lengths are equal.
    found = cider_d(Captions.of(["red dog", "x"], [["red cat"], ["y"]]))
    assert found[0] == pytest.approx(10 / 4 * 1 / 2)
    # Said twice, it is clipped to what is written: 1 of 2; and the length differs by one pair.
    found = cider_d(Captions.of(["red red", "x"], [["red"], ["y"]]))
    assert found[0] == pytest.approx(10 / 4 * 1 / 2 * math.exp(-1 / 72))


def test_figures() -> None:
    written = [["a dog runs on grass", "the dog is running"], ["two red boats at sea", "boats"]]
    same = caption_figures([texts[0] for texts in written], written)
    assert same == {"bleu_4": pytest.approx(1), "rouge_l": pytest.approx(1), "cider_d": pytest.approx(same["cider_d"]),
                    "distinct_1": 1.0, "distinct_2": 1.0, "num_words": 5.0}
    assert 5 <= same["cider_d"] < 10
    nothing = caption_figures(["", "..."], written)
    assert list(nothing.values()) == [0.0] * 6
    for made, given in ((["a"], []), ([], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="each needs one"):
            caption_figures(made, given)


def test_diversity() -> None:
    captions = [words("a red dog"), words("a red cat")]
    assert distinct(captions, 1) == 4 / 6 and distinct(captions, 2) == 3 / 4
    assert distinct([words("a")], 2) == 0.0
    corpus: list[list[Words]] = [[words("a red dog")], [words("blue sky")], [words("x")]]
    assert self_cider([words("a red dog")] * 3, corpus) == pytest.approx(0, abs=1e-6)
    assert self_cider([("red",), ("blue",)], corpus) == pytest.approx(1.0)
    assert math.isnan(self_cider([("red",)], corpus))


def test_document_frequencies_count_a_picture_once() -> None:
    """A word at both captions of one picture is in one document of two: it weighs ln 2 all the same."""
    assert cider_d(Captions.of(["red", "x"], [["red", "red"], ["y"]])) == pytest.approx([10 / 4, 0.0])
