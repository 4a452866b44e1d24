"""LAION's NSFW heads as published: a zip of a Keras SavedModel that AutoKeras made, read without TensorFlow.

The order of layers is JSON in `keras_metadata.pb`, their numbers are in the tensor bundle, and what its categorical columns look
up are constants of the graph in `saved_model.pb` (MetaGraphDef, GraphDef, FunctionDef). Only a straight row of layers is read:
MultiCategoryEncoding, Normalization, Dense, ReLU, Dropout, sigmoid. Everything else is refused by name.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import UserError
from curate.heads.bundle import Bundle
from curate.heads.bundle import read as read_bundle
from curate.heads.layers import MILLIONTHS, Layer, Linear, Lookup, Matrix, Norm, Relu
from curate.heads.protowire import BadBytes, all_bytes, one_bytes, one_int, texts

MOST_BYTES = 1 << 26
"""Of one member of the zip; the larger published head has some 4 MB."""
EPSILON = np.float32(1e-7)
"""keras.backend.epsilon(), the least deviation that Normalization divides by."""
MEMBERS = ("keras_metadata.pb", "saved_model.pb", "variables.index", "variables.data-00000-of-00001")
INT64, STRING = 9, 7
BROKEN = (BadBytes, zipfile.BadZipFile, zlib.error, LookupError, ValueError, TypeError, AttributeError, RuntimeError, EOFError,
          OSError)
"""What zip, JSON and what is looked for in them raise where something is missing, cut short or of another kind."""
Table = tuple[NDArray[np.int64], Matrix]


@dataclass(frozen=True)
class Source:
    """A published head: its layers, its width, whether a sigmoid ends it; and its tables as they are there, texts to numbers."""

    layers: tuple[Layer, ...]
    dim: int
    sigmoid: bool
    names: Mapping[int, Mapping[str, float]]

    def reference(self, rows: Matrix) -> NDArray[np.float64]:
        """The scores by the graph's own words: numbers printed and looked up as texts, products by BLAS in double precision."""
        found: NDArray[np.float64] = rows.astype(np.float64)
        for column, table in self.names.items():
            found[:, column] = [table.get(f"{value:.6f}", 0) for value in rows[:, column].tolist()]
        for layer in self.layers:
            if isinstance(layer, Norm):
                found = (found - layer.mean) / layer.scale
            elif isinstance(layer, Linear):
                found = found @ layer.weight.T.astype(np.float64) + layer.bias
            elif isinstance(layer, Relu):
                found = np.maximum(found, 0)
        return 1 / (1 + np.exp(-found[:, 0])) if self.sigmoid else found[:, 0]


def read(path: Path) -> Source:
    """The head in a zip. UserError of one line where it is none that is understood."""
    try:
        metadata, model, index, data = _members(path)
        return _source(metadata, model, read_bundle(index, data))
    except BROKEN as error:
        raise UserError(f"{path} is no Keras head that is understood: {str(error) or type(error).__name__}") from None


def _members(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        return [_member(archive, name) for name in MEMBERS]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    found = [i for i in archive.infolist() if i.filename.rpartition("/")[2] == name]
    if len(found) != 1:
        raise BadBytes(f"{name} stands in it {len(found)} times")
    if found[0].file_size > MOST_BYTES:
        raise BadBytes(f"{name} has more than {MOST_BYTES >> 20} MB")
    with archive.open(found[0]) as member:
        return member.read(MOST_BYTES + 1)


def _source(metadata: bytes, model: bytes, bundle: Bundle) -> Source:
    paths, config = _objects(metadata)
    tables: dict[int, Mapping[str, float]] = {}
    layers: list[Layer] = []
    dim, active = 0, False
    for at, (kind, settings) in enumerate(_row(config)):
        where = paths.get(settings["name"], "")
        if active:
            raise BadBytes(f"{kind} after the sigmoid")
        if kind == "InputLayer" and at == 0:
            dim = int(settings["batch_input_shape"]["items"][1])
        elif kind == "Custom>MultiCategoryEncoding" and at == 1:
            tables = _tables(model, settings["encoding"])
            layers.append(Lookup({column: _keyed(table) for column, table in tables.items()}))
        elif kind == "Normalization":
            mean, variance = (_variable(bundle, where, name) for name in ("mean", "variance"))
            layers.append(Norm(mean, np.maximum(np.sqrt(variance), EPSILON)))
        elif kind == "Dense" and settings["activation"] == "linear" and settings["use_bias"]:
            layers.append(Linear(np.ascontiguousarray(_variable(bundle, where, "kernel").T), _variable(bundle, where, "bias")))
        elif kind == "ReLU" and settings["max_value"] is None and not settings["negative_slope"] and not settings["threshold"]:
            layers.append(Relu())
        elif kind == "Activation" and settings["activation"] == "sigmoid":
            active = True
        elif kind != "Dropout":
            raise BadBytes(f"layer '{settings['name']}' is a {kind} that is not read here")
    return Source(tuple(layers), dim, active, tables)


def _objects(metadata: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Layer's name → its path in the bundle, and the model's own config."""
    paths, config = {}, {}
    for node in all_bytes(metadata, 1):
        path, said = one_bytes(node, 3).decode(), one_bytes(node, 5).decode()
        value = json.loads(said)
        if path == "root":
            config = value["config"]
        paths[str(value.get("name"))] = path.removeprefix("root.")
    return paths, config


def _row(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(class, settings) of the layers, in order; each takes the one before it and nothing else."""
    before: str | None = None
    for layer in config["layers"]:
        inbound = [node[0] for call in layer["inbound_nodes"] for node in call]
        if inbound != ([] if before is None else [before]):
            raise BadBytes(f"layer '{layer['name']}' takes {inbound}, not the layer before it")
        before = layer["name"]
        yield layer["class_name"], {**layer["config"], "name": layer["name"]}


def _variable(bundle: Bundle, where: str, name: str) -> Matrix:
    return bundle.tensor(f"{where}/{name}/.ATTRIBUTES/VARIABLE_VALUE")


def _keyed(table: Mapping[str, float]) -> Table:
    """Texts like -0.562500 as millionths, ascending. BadBytes for a text that no number prints."""
    keys = {_millionths(text): value for text, value in table.items()}
    order = sorted(keys)
    return np.array(order, np.int64), np.array([keys[k] for k in order], np.float32)


def _millionths(text: str) -> int:
    try:
        found = int(Decimal(text) * MILLIONTHS)
    except (InvalidOperation, ValueError, OverflowError):
        raise BadBytes(f"the table entry '{text[:40]}' is no number") from None
    if f"{Decimal(found) / MILLIONTHS:.6f}" != text:
        raise BadBytes(f"the table entry '{text[:40]}' is no number with six decimals")
    return found


# ---- the graph: which table belongs to which column, and what stands in it


def _tables(model: bytes, encoding: list[str]) -> dict[int, Mapping[str, float]]:
    """Column → its table. Which column is looked up stands in the graph, and so does what fills the table at the start."""
    graph = one_bytes(one_bytes(model, 2), 2)
    nodes = {n.name: n for n in map(_node, all_bytes(graph, 1))}
    functions = {texts(one_bytes(f, 1), 1)[0]: f for f in all_bytes(one_bytes(graph, 2), 1)}
    call, inner = _served(nodes, functions)
    given = dict(zip((texts(a, 1)[0] for a in all_bytes(one_bytes(inner, 1), 2)), call.inputs, strict=True))
    looked_up = {}
    body = {n.name: n for n in map(_node, all_bytes(inner, 3))}
    for found in (n for n in body.values() if n.op == "LookupTableFindV2"):
        handle, key, default = found.inputs[:3]
        printed = body[key.partition(":")[0]]
        split = re.fullmatch(r".*/split:output:(\d+)", printed.inputs[0])
        if printed.op != "AsString" or split is None:
            raise BadBytes(f"'{found.name}' does not look up a printed column")
        if _number(nodes[given[default]]) != 0:
            raise BadBytes(f"'{found.name}' takes something else than 0 for what is not in its table")
        looked_up[int(split[1])] = _filled(nodes, given[handle])
    wanted = [column for column, kind in enumerate(encoding) if kind == "int"]
    if sorted(looked_up) != wanted or set(encoding) - {"int", "none"}:
        raise BadBytes(f"the graph looks up columns {sorted(looked_up)}, its layer says {wanted}")
    return {column: looked_up[column] for column in wanted}


@dataclass(frozen=True)
class _Node:
    name: str
    op: str
    inputs: list[str]
    raw: bytes

    def attribute(self, name: str) -> bytes:
        return next((one_bytes(a, 2) for a in all_bytes(self.raw, 5) if texts(a, 1) == [name]), b"")


def _node(raw: bytes) -> _Node:
    return _Node(texts(raw, 1)[0], texts(raw, 2)[0], texts(raw, 3), raw)


def _served(nodes: Mapping[str, _Node], functions: Mapping[str, bytes]) -> tuple[_Node, bytes]:
    """The graph's call of the model, and the function with the model's body: a wrapper around it hands its arguments on."""
    [call] = [n for n in nodes.values() if n.op == "StatefulPartitionedCall" and n.inputs[:1]
              and n.inputs[0].startswith("serving_default")]
    wrapper = functions[_called(call)]
    arguments = [texts(a, 1)[0] for a in all_bytes(one_bytes(wrapper, 1), 2)]
    [inner] = [n for n in map(_node, all_bytes(wrapper, 3)) if n.op == "StatefulPartitionedCall"]
    if [i for i in inner.inputs if not i.startswith("^")] != arguments:
        raise BadBytes("the signature does not hand its arguments on in order")
    return call, functions[_called(inner)]


def _called(node: _Node) -> str:
    return texts(one_bytes(node.attribute("f"), 10), 1)[0]


def _filled(nodes: Mapping[str, _Node], table: str) -> dict[str, float]:
    """What is put into a table when the model is loaded: keys and values are constants."""
    [(keys, values)] = [(nodes[n.inputs[1]], nodes[n.inputs[2]]) for n in nodes.values()
                        if n.op == "StatefulPartitionedCall" and len(n.inputs) == 3 and n.inputs[0] == table]
    said, numbers = one_bytes(keys.attribute("value"), 8), one_bytes(values.attribute("value"), 8)
    if one_int(said, 1) != STRING or one_int(numbers, 1) != INT64:
        raise BadBytes(f"the table '{table}' is not from texts to whole numbers")
    entries = texts(said, 8)
    found = np.frombuffer(one_bytes(numbers, 4), "<i8")
    if len(entries) != len(found) or len(set(entries)) != len(entries) or not entries:
        raise BadBytes(f"the table '{table}' has {len(entries)} keys and {len(found)} values")
    return dict(zip(entries, found.astype(float).tolist(), strict=True))


def _number(node: _Node) -> int:
    """A constant that is one whole number."""
    value = one_bytes(node.attribute("value"), 8)
    if node.op != "Const" or one_int(value, 1) != INT64:
        raise BadBytes(f"'{node.name}' is no whole number")
    raw = one_bytes(value, 4)
    return int(np.frombuffer(raw, "<i8")[0]) if raw else one_int(value, 10)
