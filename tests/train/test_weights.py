"""Weights by name and by content; nothing is unpickled that is more than tensors."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.train.toys import caption, scene
from train.checkpoint import write_model
from train.errors import WeightsError
from train.files import write_json
from train.models.clip import embed_images, embed_texts
from train.models.folder import CARD, WEIGHTS, weights_digest
from train.models.weights import Loaded, load, tensors_digest

MODELS = ("toy-conv-32", "toy-vit-32")


def saved(loaded: Loaded, folder: Path) -> Path:
    folder.mkdir()
    write_model(folder, loaded)
    write_json(folder / CARD, {"model": loaded.name})
    return folder


def test_random_weights_come_from_their_seed() -> None:
    state = torch.get_rng_state()
    digests = [load("toy-vit-32", name).digest for name in ("random:3", "random:3", "random:4", "random", "random:0")]
    assert torch.equal(torch.get_rng_state(), state)
    assert digests[0] == digests[1] != digests[2]
    assert digests[3] == digests[4] == weights_digest("toy-vit-32", "random")


@pytest.mark.parametrize("model", MODELS)
def test_one_digest_for_the_model_and_all_its_files(model: str, tmp_path: Path) -> None:
    loaded = load(model, "random:1")
    folder = saved(loaded, tmp_path / "ours")
    torch.save(loaded.model.state_dict(), tmp_path / "weights.pt")
    for source in (folder, folder / WEIGHTS, tmp_path / "weights.pt"):
        assert weights_digest(model, str(source)) == loaded.digest == load(model, str(source)).digest
    (folder / CARD).unlink()        # a folder of somebody else's
    assert weights_digest(model, str(folder)) == loaded.digest


def test_a_checkpoint_s_digest_needs_no_torch(tmp_path: Path) -> None:
    """Which takes seconds to load, in every run of a pipeline."""
    loaded = load(MODELS[0], "random:1")
    folder = saved(loaded, tmp_path / "ours")
    asked = ("import sys; from train.models.folder import weights_digest; "
             "print(weights_digest(*sys.argv[1:]), *{'torch', 'open_clip', 'transformers'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", asked, MODELS[0], str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{loaded.digest}\n"


def test_a_digest_sees_name_type_shape_and_bytes() -> None:
    base = {"a": torch.arange(6.0), "b": torch.ones(2)}
    others = [{"a": torch.arange(6.0), "c": torch.ones(2)}, {"a": torch.arange(6.0).double(), "b": torch.ones(2)},
              {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, {"a": torch.arange(6.0), "b": torch.zeros(2)}]
    digests = [tensors_digest(tensors) for tensors in (base, *others)]
    assert len(set(digests)) == 5
    assert tensors_digest(dict(reversed(base.items()))) == digests[0]
    assert tensors_digest({"a": torch.arange(6.0).view(2, 3).T.contiguous().T.reshape(6), "b": torch.ones(2)}) == digests[0]


@pytest.mark.parametrize("model", MODELS)
def test_open_clip_loads_what_we_save_and_gives_the_same_embeddings(model: str, tmp_path: Path) -> None:
    loaded = load(model, "random:1")
    folder = saved(loaded, tmp_path / "ours")
    pictures, texts = [scene(n) for n in range(5)], [caption(n) for n in range(5)]
    ours = embed_images(loaded, pictures, 8), embed_texts(loaded, texts, 8)
    for name, pretrained in ((f"local-dir:{folder}", None), (model, str(folder / WEIGHTS))):
        theirs, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        theirs.eval()
        with torch.no_grad():
            pixels = torch.stack([preprocess(picture) for picture in pictures])
            image = theirs.encode_image(pixels, normalize=True).numpy()
            text = theirs.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True).numpy()
        assert np.abs(image - ours[0]).max() < 1e-5 and np.abs(text - ours[1]).max() < 1e-5


def test_embeddings_do_not_depend_on_neighbours_or_number(tmp_path: Path) -> None:
    loaded = load("curate-conv-64", "random:1")
    pictures, texts = [scene(n) for n in range(10)], [caption(n) for n in range(10)]
    images, words = embed_images(loaded, pictures, 8), embed_texts(loaded, texts, 8)
    assert images.dtype == np.float32 and images.shape == (10, 128)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    assert (embed_images(loaded, pictures[:1], 8) == images[:1]).all()
    assert (embed_images(loaded, [pictures[0], *pictures[5:]], 8)[0] == images[0]).all()
    assert (embed_texts(loaded, [texts[0], *texts[5:]], 8)[0] == words[0]).all()
    assert embed_images(loaded, [], 8).shape == embed_texts(loaded, [], 8).shape == (0, 0)


@pytest.mark.parametrize(("model", "pretrained", "message"), [
    ("ViT-B33", "random", "no model 'ViT-B33'; did you mean 'ViT-B-32'?"),
    ("nothing like it", "random", "no model 'nothing like it'; `python -m train --models` lists them"),
    ("ViT-B-32", "laion2b_s34b_b79",
     ("no file, checkpoint folder or pretrained tag 'laion2b_s34b_b79' of ViT-B-32; did you mean 'laion2b_s34b_b79k'?")),
    ("toy-vit-32", "runs/none", "no file, checkpoint folder or pretrained tag 'runs/none' of toy-vit-32"),
    ("toy-vit-32", "random:x", "no file, checkpoint folder or pretrained tag 'random:x' of toy-vit-32"),
])
def test_names_that_lead_nowhere(model: str, pretrained: str, message: str) -> None:
    with pytest.raises(WeightsError) as error:
        load(model, pretrained)
    assert str(error.value) == message


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = saved(load("toy-conv-32", "random"), tmp_path / "ours")
    for use in (load, weights_digest):
        with pytest.raises(WeightsError) as error:
            use("toy-vit-32", str(folder))
        assert str(error.value) == f"{folder} is a toy-conv-32, not a toy-vit-32"
    with pytest.raises(WeightsError, match=r"not weights of toy-vit-32: Error\(s\) in loading state_dict"):
        load("toy-vit-32", str(folder / WEIGHTS))


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"open({str(self.target)!r}, 'w')",)


def test_a_pickle_with_a_payload_is_refused(tmp_path: Path) -> None:
    state = {**load("toy-vit-32", "random").model.state_dict(), "payload": Payload(tmp_path / "ran")}
    torch.save(state, tmp_path / "weights.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    for name in ("weights.pt", "plain.bin"):
        with pytest.raises(WeightsError, match="holds more than tensors, which could run a program"):
            load("toy-vit-32", str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_broken_safetensors(tmp_path: Path) -> None:
    folder = saved(load("toy-vit-32", "random"), tmp_path / "ours")
    whole = (folder / WEIGHTS).read_bytes()
    header = json.dumps({"a": {"dtype": "F32"}}).encode()
    for data in (b"", b"short", b"\xff" * 64, whole[:-100], len(header).to_bytes(8, "little") + header):
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(WeightsError):
            weights_digest("toy-vit-32", str(folder))
    save_file({"a": torch.ones(3)}, folder / WEIGHTS)
    with pytest.raises(WeightsError, match="not weights of toy-vit-32"):
        load("toy-vit-32", str(folder))
