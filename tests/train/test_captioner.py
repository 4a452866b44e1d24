"""Captions: drawn by seed, uid and candidate alone; what transformers' own generate gives where nothing is left to chance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForImageTextRetrieval

from tests.blips import SPECIAL, write_blip
from tests.train.blip_toys import saved, toy
from tests.train.toys import scene
from train.errors import ConfigError, WeightsError
from train.models.blip_folder import Blip, load
from train.models.captioner import Captioner, captioner
from train.models.sampling import Decoding, draw, uniforms
from train.models.weights import load as load_model

IMAGES = [scene(n) for n in range(5)]
UIDS = [f"{n:032x}" for n in range(5)]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    torch.set_num_threads(1)
    return load("BlipForConditionalGeneration", str(write_blip(tmp_path_factory.mktemp("blip"))))


@pytest.fixture(scope="module")
def two(blip: Blip) -> Captioner:
    return Captioner(blip, Decoding(candidates=2))


def generated(captioner: Captioner, images: list[Image.Image], prompt: str, **settings: Any) -> list[str]:
    """The new words by BlipForConditionalGeneration.generate."""
    blip = captioner._blip
    pixels = torch.stack([blip.pixels(image) for image in images])
    given = blip.tokenizer([prompt] * len(images), return_tensors="pt")
    found = blip.model.generate(pixels, given["input_ids"], given["attention_mask"], do_sample=False, repetition_penalty=1.1,
                                suppress_tokens=captioner._never, **settings)
    new = found[:, given["input_ids"].shape[1] - 1 :]
    return [text.strip() for text in blip.tokenizer.batch_decode(new, skip_special_tokens=True)]


# ---- the draw


def test_a_token_is_drawn_where_the_sum_of_probabilities_passes_the_number() -> None:
    scores = torch.tensor([[0.5, 0.0, 0.2, 0.3]]).log().expand(6, -1)
    found = draw(scores, torch.tensor([0.0, 0.4999, 0.5001, 0.6999, 0.7001, 0.999999999999]))
    assert found.tolist() == [0, 0, 2, 2, 3, 3]


def test_what_is_impossible_is_never_drawn() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(101, -1)
    assert set(draw(scores, torch.linspace(0, 1 - 2**-53, 101, dtype=torch.float64)).tolist()) == {1, 3}


def test_numbers_belong_to_seed_uid_and_candidate() -> None:
    one = uniforms(0, "a", 0, 30)
    assert (one == uniforms(0, "a", 0, 40)[:30]).all() and one.min() >= 0 and one.max() < 1
    others = [uniforms(1, "a", 0, 30), uniforms(0, "b", 0, 30), uniforms(0, "a", 1, 30)]
    assert not any((one == other).any() for other in others)
    many = np.concatenate([uniforms(0, str(n), 0, 30) for n in range(1000)])
    assert abs(many.mean() - 0.5) < 0.01 and abs(np.histogram(many, 10, (0, 1))[0] / 3000 - 1).max() < 0.1


# ---- captions


def test_a_row_s_captions_do_not_depend_on_its_neighbours(two: Captioner) -> None:
    together = two.captions(IMAGES, UIDS)
    assert [len(row) for row in together] == [2] * 5
    assert [two.captions([image], [uid])[0] for image, uid in zip(IMAGES, UIDS, strict=True)] == together
    assert two.captions(IMAGES[::-1], UIDS[::-1]) == together[::-1]
    crowd = two.captions(IMAGES * 4, [*(f"x{n}" for n in range(15)), *UIDS])        # three chunks, and last in them
    assert crowd[-5:] == together


def test_rows_of_one_picture_have_captions_of_their_own(two: Captioner) -> None:
    texts = [text for row in two.captions([IMAGES[0]] * 5, UIDS) for text in row]
    assert len(set(texts)) == 10


def test_more_candidates_leave_the_first_as_they_are(blip: Blip, two: Captioner) -> None:
    four = Captioner(blip, Decoding(candidates=4)).captions(IMAGES[:2], UIDS[:2])
    assert [row[:2] for row in four] == two.captions(IMAGES[:2], UIDS[:2])


def test_another_seed_says_something_else(blip: Blip, two: Captioner) -> None:
    other = Captioner(blip, Decoding(candidates=2, seed=1)).captions(IMAGES, UIDS)
    assert all(a != b for a, b in zip(other, two.captions(IMAGES, UIDS), strict=True))


def test_length_and_words(blip: Blip) -> None:
    """Every word of the toy is one token: 5 to 7 of them, no special token, and never the prompt in front."""
    found = Captioner(blip, Decoding(min_tokens=5, max_tokens=7)).captions(IMAGES * 8, [str(n) for n in range(40)])
    lengths = {len(text.split()) for (text,) in found}
    assert lengths <= {5, 6, 7} and len(lengths) > 1
    assert not any(sign in text for (text,) in found for sign in SPECIAL)
    assert not any(text.startswith("a picture of") for (text,) in found)


@pytest.mark.parametrize("prompt", ["a picture of ", ""])
def test_a_nucleus_of_one_token_is_transformers_greedy_search(blip: Blip, prompt: str) -> None:
    """The same cache, penalty, shortest and longest text; so what is left of ours is the draw."""
    captioner = Captioner(blip, Decoding(top_p=1e-9, prompt=prompt, min_tokens=5, max_tokens=20))
    ours = [row[0] for row in captioner.captions(IMAGES, UIDS)]
    assert ours == generated(captioner, IMAGES, prompt.strip(), min_new_tokens=5, max_new_tokens=20)


def test_beams_are_transformers_beams_and_do_not_ask_for_the_uid(blip: Blip) -> None:
    captioner = Captioner(blip, Decoding(beams=3, candidates=2))
    ours = captioner.captions(IMAGES, UIDS)
    theirs = generated(captioner, IMAGES, "a picture of", num_beams=3, num_return_sequences=2, min_new_tokens=5,
                       max_new_tokens=30)
    assert [text for row in ours for text in row] == theirs
    assert captioner.captions([IMAGES[3]], ["other"]) == [ours[3]]


def test_more_tokens_than_the_model_has_places(blip: Blip) -> None:
    with pytest.raises(WeightsError, match="takes texts of 64 tokens, too few for a prompt of 3 and 61 more"):
        Captioner(blip, Decoding(max_tokens=61))


def test_the_first_token_comes_as_often_as_the_nucleus_says(blip: Blip) -> None:
    """400 rows of one picture against the model's own probabilities, cut to 0.9 and scaled."""
    captioner = Captioner(blip, Decoding(min_tokens=0, max_tokens=1))
    found = [row[0] for row in captioner.captions([IMAGES[0]] * 400, [str(n) for n in range(400)])]
    expected = nucleus(captioner, IMAGES[0])
    assert set(found) <= expected.keys()
    for word, probability in expected.items():
        assert abs(found.count(word) / 400 - probability) < 4 * (probability * (1 - probability) / 400) ** 0.5 + 0.002, word


def nucleus(captioner: Captioner, image: Image.Image) -> dict[str, float]:
    """First word → probability, by the definition: the smallest set of likeliest tokens whose sum reaches 0.9."""
    blip = captioner._blip
    with torch.inference_mode():
        states = blip.states([image], 1)
        logits = blip.model.text_decoder(input_ids=captioner._prompt[None], encoder_hidden_states=states).logits[0, -1]
    logits = logits.clone()
    seen = captioner._prompt
    logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.1, logits[seen] / 1.1)
    logits[captioner._never] = -torch.inf
    order = logits.softmax(0).sort(descending=True)
    count = int((order.values.cumsum(0) < 0.9).sum()) + 1
    chosen = dict(zip(order.indices[:count].tolist(), order.values[:count].tolist(), strict=True))
    words = {"" if token == captioner._end else blip.tokenizer.decode([token]): p for token, p in chosen.items()}
    return {word: p / sum(words.values()) for word, p in words.items()}


# ---- a model in memory


def test_a_model_in_memory_says_what_its_folder_says(tmp_path: Path) -> None:
    """Drawn and searched; pictures of the size that it takes, since the two packages make others smaller each in its way."""
    loaded = toy()
    theirs = load("BlipForConditionalGeneration", str(saved(loaded, tmp_path / "model")))
    images = [scene(n, side=32) for n in range(5)]
    for how in (Decoding(max_tokens=12), Decoding(beams=3, max_tokens=12)):
        found = captioner(loaded, how).captions(images, UIDS)
        assert found == Captioner(theirs, how).captions(images, UIDS) and len({row[0] for row in found}) > 1


def test_the_half_that_judges_writes_no_captions(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    BlipForImageTextRetrieval.from_pretrained(write_blip(folder)).save_pretrained(folder)
    with pytest.raises(ConfigError, match="writes no captions; coca_ViT-B-32 does, and a BLIP with a decoder"):
        captioner(load_model(f"hf-blip:{folder}", str(folder)), Decoding())
