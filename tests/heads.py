"""Small heads for tests, and a writer of Keras archives: what TensorFlow would have saved, as far as a head needs it."""

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from curate.heads.bundle import MAGIC, masked_crc
from curate.heads.convert import op_of, probe_rows
from curate.heads.head import Card, Head, Input, Op, Output, write
from curate.heads.layers import Layer, Linear

DIM = 16


def head(*layers: Layer, dim: int = DIM, column: str = "nsfw_prob", activation: str = "sigmoid", model: str = "curate-conv-64",
         pretrained: str = "random:0", normalize: bool = True, **card: Any) -> Head:
    """A head of these layers, or of one drawn linear layer; its probes expect what it scores."""
    layers = layers or (linear(dim),)
    made = Card(name="toy", input=Input(model=model, pretrained=pretrained, dim=dim, normalize=normalize),
                layers=tuple(Op(op=op_of(layer)) for layer in layers),       # type: ignore[arg-type]
                output=Output(activation=activation, column=column, meaning="made for a test"), **card)   # type: ignore[arg-type]
    found = Head(made, layers, probe_rows(dim), np.zeros(32, np.float32))
    return replace(found, expected=found.scores(found.probes))


def linear(dim: int, out: int = 1, seed: int = 0) -> Linear:
    """A drawn linear layer."""
    draw = np.random.default_rng(seed)
    return Linear(draw.standard_normal((out, dim)).astype(np.float32), draw.standard_normal(out).astype(np.float32))


def write_head(folder: Path, *layers: Layer, **options: Any) -> Path:
    """A folder with a head; its path."""
    write(folder, head(*layers, **options), "test")
    return folder


# ---- a Keras archive


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def bundle(tensors: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """(index, data) of float32 tensors; keys shared as LevelDB shares them, in one block."""
    data, entries = b"", [(b"", field(1, 1))]
    for name, tensor in sorted(tensors.items()):
        raw = tensor.astype("<f4").tobytes()
        shape = b"".join(field(2, field(1, n)) for n in tensor.shape)
        entries.append((name.encode(), field(1, 1) + field(2, shape) + field(4, len(data)) + field(5, len(raw))
                        + varint(6 << 3 | 5) + struct.pack("<I", masked_crc(raw))))
        data += raw
    file = block(entries)
    at, size = len(file), len(block([(b"z", varint(0) + varint(len(file) - 5))])) - 5
    file += block([(b"z", varint(0) + varint(at - 5))])
    footer = varint(0) + varint(0) + varint(at) + varint(size)
    return file + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC), data


def block(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    body, before = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before)))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    body += struct.pack("<II", 0, 1)
    return body + b"\0" + struct.pack("<I", masked_crc(body + b"\0"))


def node(name: str, op: str, inputs: Sequence[str] = (), **attributes: bytes) -> bytes:
    return field(1, name) + field(2, op) + b"".join(field(3, i) for i in inputs) \
        + b"".join(field(5, field(1, k) + field(2, v)) for k, v in attributes.items())


def function(name: str, arguments: Sequence[str], *nodes: bytes) -> bytes:
    return field(1, field(1, name) + b"".join(field(2, field(1, a)) for a in arguments)) + b"".join(field(3, n) for n in nodes)


def constant(name: str, kind: int, body: bytes) -> bytes:
    return node(name, "Const", value=field(8, field(1, kind) + body))


def calls(name: str) -> bytes:
    return field(10, field(1, name))


def saved_model(tables: Mapping[int, Mapping[str, int]], default: int = 0) -> bytes:
    """The graph of a model that looks columns up."""
    handles = [word for n in range(len(tables)) for word in (f"lookup_{n}_handle", f"lookup_{n}_default")]
    body, top = [], [node("serving_default_input_1", "Placeholder")]
    given = ["serving_default_input_1"]
    for n, (column, table) in enumerate(tables.items()):
        body += [node(f"AsString_{n}", "AsString", [f"m/split:output:{column}"]),
                 node(f"find_{n}", "LookupTableFindV2", [f"lookup_{n}_handle", f"AsString_{n}:output:0", f"lookup_{n}_default"])]
        keys = b"".join(field(8, k) for k in table)
        values = field(4, np.array([*table.values()], "<i8").tobytes())
        top += [node(f"table_{n}", "StatefulPartitionedCall", f=calls("maker")),
                constant(f"keys_{n}", 7, keys), constant(f"values_{n}", 9, values),
                constant(f"default_{n}", 9, field(10, default)),
                node(f"fill_{n}", "StatefulPartitionedCall", [f"table_{n}", f"keys_{n}", f"values_{n}"], f=calls("filler"))]
        given += [f"table_{n}", f"default_{n}"]
    top.append(node("serve", "StatefulPartitionedCall", given, f=calls("wrapper")))
    wrapper = function("wrapper", ["input_1", *handles], node("inner", "StatefulPartitionedCall", ["input_1", *handles],
                                                             f=calls("model")))
    library = field(1, wrapper) + field(1, function("model", ["input_1", *handles], *body))
    graph = b"".join(field(1, n) for n in top) + field(2, library)
    return field(2, field(2, graph))


def metadata(dim: int, tables: Mapping[int, Any], widths: Sequence[int]) -> bytes:
    """keras_metadata.pb of: input, encoding, normalisation, dense layers with ReLU between, dropout, sigmoid."""
    encoding = ["int" if i in tables else "none" for i in range(dim)]
    row: list[tuple[str, str, dict[str, Any]]] = [
        ("InputLayer", "input_1", {"batch_input_shape": {"class_name": "__tuple__", "items": [None, dim]}}),
        ("Custom>MultiCategoryEncoding", "encoding", {"encoding": encoding}), ("Normalization", "normalization", {})]
    for i, _ in enumerate(widths):
        row += [("ReLU", f"re_lu_{i}", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0})] * bool(i)
        row += [("Dense", f"dense_{i}", {"activation": "linear", "use_bias": True})]
    row += [("Dropout", "dropout", {"rate": 0.5}), ("Activation", "classification_head_1", {"activation": "sigmoid"})]
    layers = [{"class_name": kind, "name": name, "config": {"name": name, **config},
               "inbound_nodes": [[[row[i - 1][1], 0, 0, {}]]] if i else []} for i, (kind, name, config) in enumerate(row)]
    weighted = ["encoding", "normalization", *(f"dense_{i}" for i in range(len(widths)))]
    nodes = [("root", {"name": "model", "config": {"layers": layers}}),
             *((f"root.layer_with_weights-{i}", {"name": name}) for i, name in enumerate(weighted))]
    return b"".join(field(1, field(2, i) + field(3, path) + field(5, json.dumps(value))) for i, (path, value) in enumerate(nodes))


def write_keras(path: Path, dim: int = 6, tables: Mapping[int, Mapping[str, int]] | None = None,
                widths: Sequence[int] = (4, 3, 1), seed: int = 0, **members: bytes) -> dict[str, np.ndarray]:
    """A zip as LAION publishes its NSFW heads; the tensors in it. `members` replace whole files: saved_model, metadata."""
    draw = np.random.default_rng(seed)
    tables = {1: {"-0.562500": 1, "0.081360": 2}, 4: {"0.080994": 1}} if tables is None else tables
    start, end = "layer_with_weights-", "/.ATTRIBUTES/VARIABLE_VALUE"
    tensors = {f"{start}1/mean{end}": draw.normal(size=dim), f"{start}1/variance{end}": draw.uniform(0.5, 2, dim)}
    for i, (before, width) in enumerate(zip((dim, *widths), widths, strict=False)):
        tensors[f"{start}{i + 2}/kernel{end}"] = draw.normal(size=(before, width))
        tensors[f"{start}{i + 2}/bias{end}"] = draw.normal(size=width)
    index, data = bundle(tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/keras_metadata.pb", members.get("metadata", metadata(dim, tables, widths)))
        archive.writestr("toy/saved_model.pb", members.get("saved_model", saved_model(tables)))
        archive.writestr("toy/variables/variables.index", members.get("index", index))
        archive.writestr("toy/variables/variables.data-00000-of-00001", members.get("data", data))
    return {k.removeprefix(start).removesuffix(end): v.astype(np.float32) for k, v in tensors.items()}
