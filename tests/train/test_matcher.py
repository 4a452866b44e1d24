"""ITM and ITC: transformers' own numbers where [CLS] stays, and what [ENC] changes."""

import numpy as np
import pytest
import torch

from tests.blips import SPECIAL, WORDS, write_blip
from tests.train.toys import scene
from train.errors import WeightsError
from train.models.blip_folder import enc_id
from train.models.matcher import Matcher

IMAGES = [scene(n) for n in range(3)]
TEXTS = ["a red circle", "two cats near the beach", "square " * 60]
ENC = len(SPECIAL) + len(WORDS) + 1


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return str(write_blip(tmp_path_factory.mktemp("blip")))


def theirs(matcher: Matcher, image: int, text: str, first: int | None = None) -> tuple[float, float]:
    """(probability, cosine) by BlipForImageTextRetrieval.forward, with another first token where one is given."""
    blip = matcher._blip
    given = blip.tokenizer([text], padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    pixels = blip.pixels(IMAGES[image])[None]
    with torch.inference_mode():
        cosine = blip.model(given["input_ids"], pixels, attention_mask=given["attention_mask"], use_itm_head=False).itm_score
        if first is not None:
            given["input_ids"][:, 0] = first
        logits = blip.model(given["input_ids"], pixels, attention_mask=given["attention_mask"]).itm_score
    return float(logits.softmax(-1)[0, 1]), float(cosine[0, 0])


@pytest.mark.parametrize(("first", "token"), [("cls", None), ("enc", ENC)])
def test_numbers_are_those_of_transformers_forward(first: str, token: int | None, blip: str) -> None:
    """`cls` as it comes; `enc` with the token put in its place by hand, and the cosine without it."""
    matcher = Matcher(blip, first)  # type: ignore[arg-type]
    pairs = [(n, text) for n in range(3) for text in TEXTS]
    probs, cosines = matcher.match(IMAGES, pairs)
    expected = np.array([theirs(matcher, n, text, token) for n, text in pairs])
    np.testing.assert_allclose(probs, expected[:, 0], atol=2e-6)
    np.testing.assert_allclose(cosines, expected[:, 1], atol=2e-6)
    assert probs.min() >= 0 and probs.max() <= 1


def test_the_first_token_matters(blip: str) -> None:
    enc, cls = (Matcher(blip, first).match(IMAGES, [(0, TEXTS[0])]) for first in ("enc", "cls"))  # type: ignore[arg-type]
    assert abs(enc[0][0] - cls[0][0]) > 1e-4
    assert enc[1][0] == cls[1][0]


def test_a_pair_has_one_answer_whatever_stands_beside_it(blip: str) -> None:
    matcher = Matcher(blip)
    pairs = [(n % 3, text) for n in range(7) for text in TEXTS]        # two chunks
    together = np.stack(matcher.match(IMAGES, pairs))
    alone = np.stack([np.stack(matcher.match([IMAGES[n]], [(0, text)]))[:, 0] for n, text in pairs], axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_a_text_cannot_end_itself(blip: str) -> None:
    """What looks like a special token in a stranger's caption is characters."""
    matcher = Matcher(blip)
    assert matcher._tokens(["a dog [SEP] [ENC] [PAD]"])[0].tolist().count(3) == 1
    probs, _ = matcher.match(IMAGES, [(0, "a dog"), (0, "a dog [SEP] grass"), (0, "a dog [PAD]")])
    assert len(set(probs.tolist())) == 3


def test_no_pair_and_a_vocabulary_without_enc(blip: str, tmp_path: object) -> None:
    assert [len(part) for part in Matcher(blip).match([], [])] == [0, 0]
    matcher = Matcher(blip, "cls")
    matcher._blip.model.config.text_config.vocab_size = ENC
    with pytest.raises(WeightsError, match=r"^here: its vocabulary has no \[ENC\]; 'first_token: cls' does without"):
        enc_id("here", matcher._blip.tokenizer, matcher._blip.model.config)


def test_a_tokenizer_that_names_enc_is_believed(blip: str) -> None:
    matcher = Matcher(blip)
    assert matcher._first == ENC
    matcher._blip.tokenizer.add_special_tokens({"additional_special_tokens": ["[DEC]", "[ENC]"]})
    tokenizer = matcher._blip.tokenizer
    assert enc_id("here", tokenizer, matcher._blip.model.config) == tokenizer.convert_tokens_to_ids("[ENC]")
