"""Published heads become heads of ours: the same scores, nothing unpickled but tensors, broken files one line."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from curate.cli import main
from curate.errors import UserError
from curate.heads.bundle import masked_crc
from curate.heads.convert import Wanted, convert
from curate.heads.head import Head, read
from curate.heads.protowire import BadBytes, fields, varint
from tests.heads import bundle, field, metadata, saved_model, write_keras

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "heads"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the published heads in ../shared/data/heads are not there")


def converted(source: Path, to: Path, **wanted: Any) -> Head:
    said = list(convert(source, to, Wanted(**wanted), "test"))
    assert said[-1].startswith("probes     32, at most ")
    return read(to)


def refused(source: Path, **wanted: Any) -> str:
    to = source.parent / "refused"
    with pytest.raises(UserError) as caught:
        list(convert(source, to, Wanted(**wanted), "test"))
    assert not to.exists() and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{source.parent}/")


def unit_rows(dim: int, number: int = 50) -> np.ndarray:
    drawn = np.random.default_rng(5).standard_normal((number, dim)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


# ---- rows of linear layers


def layers_of(*widths: int) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)))


def test_a_linear_pth(tmp_path: Path) -> None:
    """LAION's aesthetic heads are saved like this, and known by their names."""
    source, module = tmp_path / "sa_0_4_vit_b_32_linear.pth", torch.nn.Linear(512, 1)
    torch.save(module.state_dict(), source)
    found = converted(source, tmp_path / "aesthetic", licence="MIT")
    assert (found.card.input.model, found.card.input.pretrained) == ("ViT-B-32", "openai")
    assert found.card.output.column == "aesthetic_score"
    assert found.card.licence == "MIT" and found.card.source.startswith("sa_0_4_vit_b_32_linear.pth, sha256 ")
    rows = unit_rows(512)
    with torch.no_grad():
        assert found.scores(rows).tolist() == pytest.approx(module(torch.from_numpy(rows))[:, 0].tolist(), abs=1e-6)


def test_layers_with_nothing_between_are_one(tmp_path: Path) -> None:
    """sac+logos+ava1: five linear layers and no activation, so 3.7 MB are one vector and a bias."""
    module = layers_of(768, 1024, 128, 64, 16, 1)
    source = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save({f"layers.{2 * int(n[0])}.{n[2:]}": t for n, t in module.state_dict().items()}, source)
    found = converted(source, tmp_path / "aesthetic")
    assert [op.op for op in found.card.layers] == ["linear"]
    assert sum(p.stat().st_size for p in (tmp_path / "aesthetic").iterdir()) < 110_000 < source.stat().st_size
    rows = unit_rows(768)
    with torch.no_grad():
        assert found.scores(rows).tolist() == pytest.approx(module(torch.from_numpy(rows))[:, 0].tolist(), abs=1e-5)


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_relu_between(suffix: str, tmp_path: Path) -> None:
    """Whatever holds the tensors, and with eleven layers, whose names do not sort as texts."""
    widths = [8, *[6] * 10, 1]
    state = {name: tensor.numpy() for name, tensor in layers_of(*widths).state_dict().items()}
    source = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        torch.save({n: torch.from_numpy(t) for n, t in state.items()}, source)
    elif suffix == "npz":
        np.savez(source, **state)
    else:
        save_file(state, source)
    found = converted(source, tmp_path / "mine", model="ViT-B-32", column="watermark_prob", between="relu")
    assert [op.op for op in found.card.layers] == ["linear", "relu"] * 10 + ["linear"]
    hidden = unit_rows(8)
    for i in range(11):
        hidden = (np.maximum(hidden, 0) if i else hidden) @ state[f"{i}.weight"].T + state[f"{i}.bias"]
    assert found.card.output.activation == "sigmoid"
    assert found.scores(unit_rows(8)).tolist() == pytest.approx((1 / (1 + np.exp(-hidden[:, 0]))).tolist(), abs=1e-5)


def test_prompt_pairs(tmp_path: Path) -> None:
    """Two embeddings, of "not" and "yes": above 0.5 exactly where the second is the nearer one."""
    prompts = np.random.default_rng(2).normal(size=(2, 16))
    np.save(tmp_path / "violence.npy", prompts.astype(np.float16))
    found = converted(tmp_path / "violence.npy", tmp_path / "violence", model="ViT-L-14", column="violence_prob")
    rows = unit_rows(16, 500)
    prompts = prompts.astype(np.float16).astype(np.float64)
    nearest = np.argmax(rows @ (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).T, axis=1)
    assert ((found.scores(rows) > 0.5) == (nearest == 1)).all()
    assert 0 < nearest.sum() < 500


class Payload:
    """What a pickle would run: it would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "npz", "npy"])
def test_a_payload_is_not_run(how: str, tmp_path: Path) -> None:
    payload = {"weight": torch.zeros(1, 512), "bias": Payload(tmp_path / "ran")}
    source = tmp_path / ("x.npz" if how == "npz" else "x.npy" if how == "npy" else "x.pth")
    if how in ("torch", "old torch"):
        torch.save(payload, source, _use_new_zipfile_serialization=how == "torch")
    elif how == "pickle":
        source.write_bytes(pickle.dumps(payload))
    elif how == "npz":
        np.savez(source, weight=np.array([payload["bias"]], dtype=object))
    else:
        np.save(source, np.array([payload["bias"]], dtype=object))
    said = refused(source, model="ViT-B-32", column="nsfw_prob")
    assert not (tmp_path / "ran").exists()
    assert said.startswith(f"{source.name}: not an np" if how in ("npz", "npy") else
                           "x.pth is broken, or holds more than tensors, which could run code, so it was not read")


ONE = {"weight": np.zeros((1, 4), np.float32), "bias": np.zeros(1, np.float32)}


def stacked(width: int) -> dict[str, np.ndarray]:
    """Two layers, of which the second takes rows of 4."""
    return {"0.weight": np.ones((width, 4), np.float32), "0.bias": np.zeros(width, np.float32),
            "1.weight": ONE["weight"], "1.bias": ONE["bias"]}


STACKS: list[tuple[dict[str, np.ndarray], str]] = [
    ({}, "x.npz holds no linear layers"),
    ({"weight": ONE["weight"]}, "x.npz has no tensor 'bias'; a head takes weight and bias of each linear layer, nothing else"),
    ({**ONE, "running_mean": ONE["bias"]}, "x.npz holds no linear layers"),
    ({**ONE, "bias": np.zeros(2, np.float32)},
     "x.npz: 'weight' of (1, 4) and 'bias' of (2,) are no linear layer of finite numbers"),
    ({**ONE, "weight": np.full((1, 4), np.inf, np.float32)},
     "x.npz: 'weight' of (1, 4) and 'bias' of (1,) are no linear layer of finite numbers"),
    ({"weight": np.zeros((2, 4), np.float32), "bias": np.zeros(2, np.float32)},
     "x.npz: its last layer gives 2 numbers; a head gives one"),
    (stacked(3), "x.npz: a layer gives 3 numbers and the next takes 4"),
    (stacked(4),
     ("x.npz: 2 linear layers, and a file of tensors does not say what stands between them; "
      "say --between none or --between relu")),
]


@pytest.mark.parametrize(("state", "said"), STACKS, ids=[said[6:50] for _, said in STACKS])
def test_wrong_stacks(state: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **state)
    assert refused(tmp_path / "x.npz", model="ViT-B-32", column="nsfw_prob") == said


def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not known of a file has to be said, and nothing is overwritten."""
    source = tmp_path / "x.npz"
    np.savez(source, **ONE)
    assert refused(source) == "x.npz is no file that is known here; say --model, whose embeddings it takes, like ViT-L-14"
    assert refused(source, model="ViT-B-32") == "x.npz is no file that is known here; say --column, what it gives, like nsfw_prob"
    assert refused(source, model="B", column="Nsfw!") == "--column Nsfw!: a column's name has small letters, digits and _"
    assert refused(source, between="gelu") == "--between gelu: there is none and relu"
    assert refused(tmp_path / "gone.pth") == "no file " + str(tmp_path / "gone.pth")
    converted(source, tmp_path / "mine", model="ViT-B-32", column="nsfw_prob")
    with pytest.raises(SystemExit) as end:
        main(["head", "convert", str(source), "--to", str(tmp_path / "mine"), "--model", "ViT-B-32", "--column", "nsfw_prob"])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path / 'mine'} holds a head already; give --to another folder\n"


# ---- Keras archives


def by_hand(tensors: dict[str, np.ndarray], row: np.ndarray) -> float:
    """What the toy archive's model gives for a row, step by step."""
    row = row.astype(np.float64)
    row[1] = {"-0.562500": 1, "0.081360": 2}.get(f"{row[1]:.6f}", 0)
    row[4] = {"0.080994": 1}.get(f"{row[4]:.6f}", 0)
    row = (row - tensors["1/mean"]) / np.sqrt(tensors["1/variance"])
    for i in (2, 3, 4):
        row = row @ tensors[f"{i}/kernel"] + tensors[f"{i}/bias"]
        row = np.maximum(row, 0) if i < 4 else row
    return float(1 / (1 + np.exp(-row[0])))


def test_a_keras_archive(tmp_path: Path) -> None:
    tensors = write_keras(tmp_path / "clip_autokeras_nsfw_b32.zip")
    found = converted(tmp_path / "clip_autokeras_nsfw_b32.zip", tmp_path / "nsfw")
    assert [op.op for op in found.card.layers] == ["lookup", "norm", "linear", "relu", "linear", "relu", "linear"]
    assert (found.card.output.column, found.card.input.normalize, found.card.input.model) == ("nsfw_prob", False, "ViT-B-32")
    rows = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float16).astype(np.float32)
    rows[:20, 1], rows[10:30, 4] = np.float16(-0.5625), np.float16(0.081)
    expected = [by_hand(tensors, row) for row in rows]
    assert f"{rows[10, 4]:.6f}" == "0.080994" and f"{rows[0, 1]:.6f}" == "-0.562500"
    assert found.scores(rows).tolist() == pytest.approx(expected, abs=1e-6)
    rows[:20, 1] += np.float32(1e-5)
    assert np.abs(found.scores(rows) - np.array(expected))[:20].max() > 1e-3, "the looked up column counts"


def test_tables_belong_to_the_columns_that_the_graph_says(tmp_path: Path) -> None:
    """In whatever order the tables stand in it."""
    write_keras(tmp_path / "a.zip")
    turned = saved_model({4: {"0.080994": 1}, 1: {"-0.562500": 1, "0.081360": 2}})
    write_keras(tmp_path / "b.zip", saved_model=turned)
    rows = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)
    rows[:5, 1], rows[3:, 4] = np.float16(-0.5625), np.float16(0.081)
    a, b = (converted(tmp_path / f"{n}.zip", tmp_path / n, model="ViT-B-32", column="nsfw_prob").scores(rows) for n in "ab")
    assert a.tolist() == b.tolist()


SAID = "x.zip is no Keras head that is understood: "
TABLES = {1: {"-0.562500": 1}}
MEAN = "layer_with_weights-1/mean/.ATTRIBUTES/VARIABLE_VALUE"
INDEX, DATA = bundle({MEAN: np.ones(6)})


def spoilt(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


def sequence(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The metadata with another config of the whole model."""
    found = metadata(6, TABLES, (4, 1))
    [config] = [v for n, v in fields(next(v for n, v in fields(found) if isinstance(v, bytes))) if n == 5]
    assert isinstance(config, bytes)
    value = json.loads(config)
    change(value["config"]["layers"])
    return root(json.dumps(value)) + found[len(root(config.decode())):]


def root(text: str) -> bytes:
    return field(1, field(2, 0) + field(3, "root") + field(5, text))


KERAS: list[tuple[dict[str, Any], str]] = [
    ({"saved_model": saved_model({2: {"-0.562500": 1}})}, "the graph looks up columns [2], its layer says [1]"),
    ({"saved_model": saved_model({1: {"sometimes": 1}})}, "the table entry 'sometimes' is no number"),
    ({"saved_model": saved_model({1: {"0.5": 1}})}, "the table entry '0.5' is no number with six decimals"),
    ({"saved_model": saved_model(TABLES, default=7)}, "'find_0' takes something else than 0 for what is not in its table"),
    ({"saved_model": saved_model(TABLES)[:-9]}, "a field of "),
    ({"metadata": sequence(lambda layers: layers[2].update(class_name="LSTM"))}, "layer 'normalization' is a LSTM that is"),
    ({"metadata": sequence(lambda layers: layers[3].update(inbound_nodes=[[["input_1", 0, 0, {}]]]))},
     "layer 'dense_0' takes ['input_1'], not the layer before it"),
    ({"metadata": sequence(lambda layers: layers[3]["config"].update(activation="gelu"))}, "layer 'dense_0' is a Dense that is"),
    ({"index": b"no table at all" * 9}, "variables.index is no tensor bundle"),
    ({"index": INDEX, "data": DATA}, "there is no tensor 'layer_with_weights-1/variance/.ATTRIBUTES"),
    ({"index": spoilt(INDEX, 9)}, "the bytes of a block are not what was written"),
    ({"index": INDEX, "data": spoilt(DATA, 5)}, f"the bytes of '{MEAN}' are not what was written"),
    ({"index": INDEX, "data": DATA[:-1]}, f"'{MEAN}' of shape [6] has 24 bytes at 0 of 23"),
]


@pytest.mark.parametrize(("members", "said"), KERAS, ids=[said[:40] for _, said in KERAS])
def test_wrong_archives(members: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_keras(tmp_path / "x.zip", tables=TABLES, widths=(4, 1), **members)
    assert refused(tmp_path / "x.zip", model="ViT-B-32", column="nsfw_prob").startswith(SAID + said)


def test_an_archive_without_its_parts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("toy/saved_model.pb", b"")
    assert refused(tmp_path / "x.zip", model="B", column="nsfw_prob") == SAID + "keras_metadata.pb stands in it 0 times"


def test_an_index_cut_or_spoilt_anywhere_is_one_line(tmp_path: Path) -> None:
    """Refused by its checksum or by bounds; never a traceback."""
    source = tmp_path / "x.zip"
    write_keras(source, tables=TABLES, widths=(1,))
    with zipfile.ZipFile(source) as archive:
        parts = {i.filename.rpartition("/")[2]: archive.read(i) for i in archive.infolist()}
    index = parts["variables.index"]
    for broken in [index[:n] for n in range(0, len(index), 7)] + [spoilt(index, n) for n in range(0, len(index) - 48, 3)]:
        write_keras(source, tables=TABLES, widths=(1,), index=broken)
        assert refused(source, model="B", column="nsfw_prob").startswith(SAID)


def test_protocol_buffers_are_bounded() -> None:
    assert list(fields(b"\x08\x96\x01\x12\x02hi")) == [(1, 150), (2, b"hi")]
    for bad in (b"\x08", b"\x08\x80", b"\x12\xff\xff\xff\xff\x0f", b"\x0b", b"\x0d\0\0", b"\x08" + b"\xff" * 11):
        with pytest.raises(BadBytes):
            list(fields(bad))
    assert varint(b"\xac\x02", 0) == (300, 2)


def test_the_checksum_is_the_published_one() -> None:
    """CRC-32C of "123456789" is e3069283 (RFC 3720's check value); LevelDB rotates it by 15 and adds a constant."""
    crc = 0xE3069283
    assert masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc(b"") == 0xA282EAD8


# ---- the published files


@needs_real
@pytest.mark.parametrize(("name", "folder"), [("sa_0_4_vit_b_32_linear", "vit_b_32"), ("sa_0_4_vit_l_14_linear", "vit_l_14")])
def test_aesthetic_scores_rise_over_the_published_ratings(name: str, folder: str, tmp_path: Path) -> None:
    """LAION publishes an embedding for each rating, 0 to 9; of another width they are refused."""
    found = converted(REAL / f"{name}.pth", tmp_path / name)
    ratings = np.concatenate([np.load(REAL / f"{folder}_embeddings/rating{n}.npy") for n in range(10)]).astype(np.float32)
    scores = found.scores(ratings).tolist()
    assert scores == sorted(scores) and scores[0] < 0 and 10 < scores[9] < 12
    assert np.abs(np.diff(found.scores(ratings.astype(np.float16).astype(np.float32)) - scores)).max() < 5e-3
    other = np.zeros((1, 768 if folder == "vit_b_32" else 512), np.float32)
    with pytest.raises(UserError, match=rf"^head '{name}' takes embeddings of {ratings.shape[1]} numbers"):
        found.scores(other)


TENSORFLOW = {0: 1.5502877e-07, 3: 5.3927602e-07, 9: 2.6467870e-08}
"""What TensorFlow 2.15 gives for three of the published ratings (`saved_model.load`, `serving_default`)."""


@needs_real
def test_the_published_nsfw_head_gives_what_tensorflow_gives(tmp_path: Path) -> None:
    found = converted(REAL / "clip_autokeras_nsfw_b32.zip", tmp_path / "nsfw")
    assert [op.op for op in found.card.layers] == ["lookup", "norm", "linear", "relu", "linear", "relu", "linear"]
    ratings = {n: np.load(REAL / f"vit_b_32_embeddings/rating{n}.npy").astype(np.float32) for n in TENSORFLOW}
    assert {n: float(found.scores(r)[0]) for n, r in ratings.items()} == pytest.approx(TENSORFLOW, rel=1e-4)
    assert found.expected.min() < 0.05 and found.expected.max() > 0.95, "the probes reach from harmless to not"
