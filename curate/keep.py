"""A keep: one SQL expression over the columns so far that says of each row whether it is kept, dropped or unknown.

The user's text is parsed by DuckDB and never run. Its tree is written anew, node by node, from this grammar. What has no place in
it is refused, and the new text must parse to the same tree: nothing (an alias, a filter, a from) is lost on the way.

    condition   condition and|or condition · not condition · test
    test        value = != < <= > >= value · value [not] between value and value · value [not] in (constants) ·
                value is [not] null · a boolean value. A test reads a column.
    value       column · constant · value + - * / // % value · -value · value [not] [i]like value · function(value, …) ·
                try_cast(value as type) · date '2026-01-31' · timestamp '2026-01-31 12:00:00'

A row with a null or NaN in a column that a clause reads is `unknown` to it, whatever SQL would say; so is a row for which the
clause cannot be computed (overflow, root of -1) or comes out null (division by zero, failed cast). Unknown never passes. NaN
counts as null because DuckDB sorts it above every number: `nan > 0.3` is true there.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UserError, did_you_mean

KEPT, DROPPED, UNKNOWN = 0, 1, 2
MAX_LENGTH, MAX_BRACKETS, MAX_DEPTH = 4000, 200, 100

KINDS = {"boolean": "bool", "number": r"u?int\d+|halffloat|float|double|decimal128.*", "text": "(large_)?string|string_view",
         "time": "(date|timestamp).*", "texts": "(large_)?list<.*: (large_)?string.*>", "numbers": r"(large_)?list<.*: u?int\d+.*>"}
"""What a column is to a keep, by the name of its Arrow type."""
SIGNATURES = {
    "number -> number": "abs ceil floor ln log10 round sign sqrt -",
    "number, number -> number": "round + - * / // %",
    "text -> text": "lower trim upper",
    "text -> number": "len length",
    "texts -> number": "len",
    "numbers -> number": "len",
    "text, text -> boolean": "contains ends_with regexp_matches starts_with ~~ !~~ ~~* !~~*",
    "texts, text -> boolean": "contains list_contains",
    "numbers, number -> boolean": "contains list_contains",
}
"""All that a keep may call, by the kinds it takes and gives; these below take values of one kind and give that. All are pure."""
ONE_KIND = ["coalesce", "greatest", "least", "nullif"]
OR, AND, NOT, COMPARE, ADD, TIMES, SIGN, ATOM = range(8)
INFIX = {"+": ("+", ADD), "-": ("-", ADD), "*": ("*", TIMES), "/": ("/", TIMES), "//": ("//", TIMES), "%": ("%", TIMES),
         "~~": ("like", COMPARE), "!~~": ("not like", COMPARE), "~~*": ("ilike", COMPARE), "!~~*": ("not ilike", COMPARE)}
"""DuckDB's name of an operator → how it is written, and how strongly it binds."""
FUNCTIONS = sorted({*" ".join(SIGNATURES.values()).split(), *ONE_KIND} - {*INFIX})
TESTS = {"COMPARE_EQUAL": "{} = {}", "COMPARE_NOTEQUAL": "{} != {}", "COMPARE_LESSTHAN": "{} < {}", "COMPARE_GREATERTHAN": "{} > {}",
         "COMPARE_LESSTHANOREQUALTO": "{} <= {}", "COMPARE_GREATERTHANOREQUALTO": "{} >= {}", "OPERATOR_IS_NULL": "{} is null",
         "OPERATOR_IS_NOT_NULL": "{} is not null", "COMPARE_BETWEEN": "{} {no}between {} and {}", "COMPARE_IN": "{} {no}in ({})"}
CASTS = {"boolean": "boolean", "integer": "number", "bigint": "number", "double": "number", "varchar": "text", "date": "time",
         "timestamp": "time"}
INSTEAD = {"||": "or", "|": "or", "&&": "and", "&": "and", "!": "not", "~": "regexp_matches", "regexp_full_match": "regexp_matches",
           "compare_not_distinct_from": "= or `is_dup`", "compare_distinct_from": "!= or `not is_dup`"}
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Node = dict[str, Any]


@dataclass(frozen=True)
class Clause:
    """One operand of the top-level `and`. `text` is the drop reason; `sql` is true, false or null over the columns."""

    text: str
    sql: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Keep:
    """A checked expression: as the user wrote it, its clauses in order, the columns it reads with the types they are judged in."""

    text: str
    clauses: tuple[Clause, ...]
    columns: Mapping[str, pa.DataType]


@dataclass(frozen=True)
class Verdicts:
    """One entry a row: `state` uint8 (KEPT, DROPPED or UNKNOWN) and `clause` int16 (which one said so; -1 when kept)."""

    state: np.ndarray
    clause: np.ndarray


def parse(text: str, columns: Mapping[str, pa.DataType]) -> Keep:
    """The checked keep over `columns` (leave out those that must not decide, such as volatile ones). Runs nothing of the text.

    Raises UserError with one line for what is not in the grammar, names no column, or compares unlike kinds.
    """
    text = text.strip()
    tree = _tree(text)
    (root,) = tree["select_list"]
    reader = _Reader(columns, text)
    plain = reader.condition(root).sql
    if _tree(plain) != tree:
        raise UserError(f"a keep is one expression and no more; of this only `{plain}` would count")
    clauses = tuple(_clause(part, columns) for part in (root["children"] if root["type"] == "CONJUNCTION_AND" else [root]))
    keep = Keep(text, clauses, {name: _plain(columns[name]) for name in reader.reads})
    try:
        evaluate(keep, pa.table({name: pa.array([], type_) for name, type_ in keep.columns.items()}))
    except duckdb.Error as error:
        raise UserError(f"`{plain}` can't be computed: {_first_line(error)}") from None
    return keep


def _clause(node: Node, columns: Mapping[str, pa.DataType]) -> Clause:
    reader = _Reader(columns)
    text, read = reader.condition(node).sql, tuple(dict.fromkeys(reader.reads))
    unknown = [f"{_quoted(name)} is null" for name in read] + [f"isnan(({number})::double)" for number in reader.numbers]
    return Clause(text, f"try(case when {' or '.join(unknown)} then null else {text} end)", read)


def evaluate(keep: Keep, table: pa.Table) -> Verdicts:
    """Judge each row of `table`: the first clause that is not true decides; a row that none stops is kept."""
    judged = ", ".join(f"{clause.sql} as v{i}" for i, clause in enumerate(keep.clauses))
    codes = " ".join(f"when v{i} is null then {-i - 1} when not v{i} then {i + 1}" for i in range(len(keep.clauses)))
    with _database(os.getpid()).cursor() as cursor:
        cursor.register("batch", pa.table({name: _nan_to_null(table[name].cast(type_)) for name, type_ in keep.columns.items()}))
        cursor.execute(f"select (case {codes} else 0 end)::smallint as code from (select {judged} from batch)")
        code = np.asarray(cursor.fetchnumpy()["code"], np.int16)
    assert len(code) == table.num_rows
    state = np.where(code == 0, KEPT, np.where(code > 0, DROPPED, UNKNOWN)).astype(np.uint8)
    return Verdicts(state, np.abs(code) - np.int16(1))


@cache
def _database(pid: int) -> duckdb.DuckDBPyConnection:
    """An empty database in memory that reaches neither files nor network nor extensions; one a process, also after a fork."""
    return duckdb.connect(":memory:", config={
        "enable_external_access": "false", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
        "python_enable_replacements": "false", "threads": "1", "max_expression_depth": str(MAX_DEPTH),
        "ieee_floating_point_ops": "false", "error_on_division_by_zero": "false", "lock_configuration": "true"})


def _tree(text: str) -> Node:
    """The tree of `select text`, without the places in the text. Nothing is run."""
    _check_source(text)
    with _database(os.getpid()).cursor() as cursor:
        (answer,) = cursor.execute("select json_serialize_sql($1::varchar)", ["select " + text]).fetchall()[0]
    parsed = json.loads(answer, object_hook=lambda d: {k: v for k, v in d.items() if not k.startswith("query_location")})
    if parsed["error"]:
        raise UserError(f"not an expression: {_first_line(parsed['error_message'])}")
    node: Node = parsed["statements"][0]["node"]
    if node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1:
        raise UserError("a keep is one expression and no more; join several with and, or")
    return node


def _check_source(text: str) -> None:
    """Refuse what must not reach the parser, and what the tree no longer shows."""
    if not text:
        raise UserError("the expression is empty")
    if len(text) > MAX_LENGTH or sum(map(text.count, "([{")) > MAX_BRACKETS:
        raise UserError(f"the expression is too long: at most {MAX_LENGTH} characters and {MAX_BRACKETS} brackets")
    if UNSAFE.search(" ".join(text.split())):
        raise UserError("the expression holds a control character")
    for offset, kind in duckdb.tokenize(text):
        if kind == duckdb.token_type.comment:
            raise UserError("no comments inside a keep; write them behind # in the pipeline file")
        if text.encode()[offset:offset + 1] == b";":
            raise UserError("a keep is one expression, without ;")


def _first_line(error: object) -> str:
    line = str(error).splitlines()[0]
    return f"nested more than {MAX_DEPTH} levels deep" if "Max expression depth" in line else line


class _Piece(NamedTuple):
    """Written SQL, how strongly it binds, and the kind of its value."""

    sql: str
    strength: int = ATOM
    kind: str = "boolean"

    def within(self, strength: int) -> str:
        """The SQL as an operand of something that binds with `strength`."""
        return self.sql if self.strength >= strength else f"({self.sql})"


class _Reader:
    """Reads a tree by writing it anew; notes the columns it reads, and the numbers in it that could come out as NaN."""

    def __init__(self, columns: Mapping[str, pa.DataType], source: str = "") -> None:
        self.columns, self.source = columns, source
        self.reads: list[str] = []
        self.numbers: list[str] = []

    def condition(self, node: Node, no: str = "") -> _Piece:
        if node["class"] == "CONJUNCTION":
            word, strength = ("and", AND) if node["type"] == "CONJUNCTION_AND" else ("or", OR)
            return _Piece(f" {word} ".join(self.condition(child).within(strength) for child in node["children"]), strength)
        if node["type"] == "OPERATOR_NOT":
            (child,) = node["children"]
            if "{no}" in TESTS.get(child["type"], ""):
                return self.condition(child, no="not ")
            return _Piece(f"not {self.condition(child).within(NOT)}", NOT)
        before = len(self.reads)
        test = self.test(node, no)
        if len(self.reads) == before:
            raise UserError(f"`{test.sql}` reads no column: it is the same for every row")
        return test

    def test(self, node: Node, no: str) -> _Piece:
        if node["type"] not in TESTS:
            value = self.value(node)
            if value.kind != "boolean":
                raise UserError(f"`{value.sql}` is {value.kind}, not true or false; compare it with something")
            return value
        sides = [node[side] for side in ("input", "lower", "upper", "left", "right") if side in node] or node["children"]
        pieces = [self.value(side) for side in sides]
        first, *others = [piece.within(ADD) for piece in pieces]
        if node["type"] == "COMPARE_IN":
            if any(side["class"] not in ("CONSTANT", "CAST") for side in sides[1:]):
                raise UserError(f"`{first} {no}in ({', '.join(others)})`: only constants stand in the brackets")
            others = [", ".join(others)]
        text = TESTS[node["type"]].format(first, *others, no=no)
        if node["type"] == "OPERATOR_IS_NULL" and sides[0]["class"] == "COLUMN_REF":
            raise UserError(f"`{text}` keeps nothing: a row without a value is unknown, and unknown never passes")
        _check_kinds(text, [piece.kind for piece in pieces])
        if first in others:
            raise UserError(f"`{text}` compares a thing with itself")
        return _Piece(text, COMPARE)

    def value(self, node: Node) -> _Piece:
        match node["class"]:
            case "COLUMN_REF":
                return self.column(node["column_names"])
            case "CONSTANT":
                return _constant(node["literal"]["kind"], node["literal"]["text"])
            case "CAST":
                return self.cast(node["type_expr"].get("type_name", ""), node["try_cast"], node["child"])
            case "FUNCTION":
                return self.call(node["function_name"], [given["expression"] for given in node["arguments"]], node["is_operator"])
            case "OPERATOR" if node["type"] == "OPERATOR_COALESCE":
                return self.call("coalesce", node["children"])
        word = node["type" if node["class"] in ("OPERATOR", "COMPARISON") else "class"].lower()
        raise UserError(f"no {word.replace('_', ' ')} here{_instead(word)}; a keep has only comparisons of columns, constants and "
                        "functions of them, joined by and, or, not")

    def column(self, path: Sequence[str]) -> _Piece:
        name = path[0]
        if len(path) > 1:
            raise UserError(f"`{'.'.join(path)}`: no table or field names here; a column with a dot in its name goes in double quotes")
        if name not in self.columns:
            same = [known for known in self.columns if known.lower() == name.lower()]
            hint = f"; a text goes in single quotes: '{name}'" if f'"{name}"' in self.source else did_you_mean(name, self.columns)
            raise UserError(f"no column '{name}'" + (f"; did you mean '{same[0]}'?" if same else hint))
        kind = _kind(self.columns[name])
        if not kind:
            raise UserError(f"column '{name}' is {self.columns[name]}; a keep reads {', '.join(KINDS)}")
        if twin := next((other for other in self.reads if other != name and other.lower() == name.lower()), ""):
            raise UserError(f"columns '{twin}' and '{name}' differ only in case; a keep can read one of them")
        self.reads.append(name)
        return _Piece(_quoted(name), kind=kind)

    def cast(self, type_: str, trying: bool, child: Node) -> _Piece:
        """`try_cast(… as …)`, `date '…'` and `timestamp '…'`; a plain cast would fail at the first value that does not fit."""
        value, kind = self.value(child), CASTS.get(type_.lower(), "")
        if trying and kind:
            text = f"try_cast({value.sql} as {type_})"
            self.numbers += [text] if kind == "number" else []
            return _Piece(text, kind=kind)
        if kind == "time" and re.fullmatch(r"'\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?'", value.sql):
            return _Piece(f"{type_} {value.sql}", kind=kind)
        raise UserError(f"no cast of {value.sql} to {type_.lower()} here; there is try_cast(… as {'|'.join(CASTS)}), date '2026-01-31' "
                        "and timestamp '2026-01-31 12:00:00'")

    def call(self, name: str, arguments: Sequence[Node], is_operator: bool = False) -> _Piece:
        if name not in (INFIX if is_operator else FUNCTIONS):
            hint = _instead(name) or did_you_mean(name, INFIX if is_operator else FUNCTIONS)
            raise UserError(f"no {'operator' if is_operator else 'function'} '{name.removesuffix('_star')}' here{hint}")
        pieces = [self.value(argument) for argument in arguments]
        word, strength = INFIX.get(name, (name, ATOM))
        if is_operator and len(pieces) == 2:
            text = f"{pieces[0].within(strength)} {word} {pieces[1].within(strength + 1)}"
        elif is_operator:
            text, strength = word + pieces[0].within(ATOM), SIGN
        else:
            text = f"{name}({', '.join(piece.sql for piece in pieces)})"
        kinds = [piece.kind for piece in pieces]
        result = _result(text, name, kinds)
        self.numbers += [text] if is_operator and result == "number" else []
        return _Piece(text, strength, result)


def _result(text: str, name: str, kinds: Sequence[str]) -> str:
    """The kind that a function or operator gives for arguments of these kinds."""
    if name in ONE_KIND and len(kinds) > 1 and len({*kinds}) == 1:
        return kinds[0]
    signatures = [signature.split(" -> ") for signature, names in SIGNATURES.items() if name in names.split()]
    results = {takes: result for takes, result in signatures}
    if ", ".join(kinds) in results:
        return results[", ".join(kinds)]
    takes = " or ".join(f"({takes})" for takes in results) or "two or more values of one kind"
    raise UserError(f"`{text}`: {INFIX.get(name, (name, 0))[0]} takes {takes}, not ({', '.join(kinds)})")


def _instead(word: str) -> str:
    return f"; write {INSTEAD[word]}" if word in INSTEAD else ""


def _constant(kind: str, text: str) -> _Piece:
    if kind == "NULL_LITERAL":
        raise UserError("no null here: a row without a value is unknown, and unknown never passes")
    if UNSAFE.search(text):
        raise UserError("a constant holds a line break or a control character")
    if kind == "STRING":
        return _Piece("'" + text.replace("'", "''") + "'", kind="text")
    if kind == "BOOLEAN":
        return _Piece(text)
    if kind in ("INTEGER", "NUMERIC") and sum(map(str.isdigit, text)) <= 18 and math.isfinite(float(text)):
        return _Piece(text, SIGN if text.startswith("-") else ATOM, "number")
    raise UserError(f"no constant {text} here; there are numbers of up to 18 digits, texts in single quotes, true and false")


def _check_kinds(text: str, kinds: Sequence[str]) -> None:
    """Values under comparison are of one kind, and that is no list."""
    first, other = kinds[0], next((kind for kind in kinds if kind != kinds[0]), "")
    if other:
        hint = "; write date '2026-01-31' or timestamp '2026-01-31 12:00:00'" if {first, other} == {"time", "text"} else ""
        raise UserError(f"`{text}` compares {first} with {other}{hint}")
    if first in ("texts", "numbers"):
        raise UserError(f"`{text}` compares lists; use list_contains or len")


@cache
def _quoted(name: str) -> str:
    """A column's name as SQL has it: in double quotes unless it is a plain word, and none of SQL's own."""
    with _database(os.getpid()).cursor() as cursor:
        own = cursor.execute("select keyword_name from duckdb_keywords() where keyword_category != 'unreserved'").fetchall()
    is_plain = re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) and (name.lower(),) not in own
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def _kind(type_: pa.DataType) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, str(_plain(type_)))), "")


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type a column is judged in: whole numbers wide enough for products, times in UTC."""
    if pa.types.is_dictionary(type_):
        return type_.value_type
    if pa.types.is_timestamp(type_):
        return pa.timestamp(type_.unit)
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return pa.int64()
    return pa.float32() if pa.types.is_float16(type_) else type_


def _nan_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_float = pa.types.is_floating(column.type)
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column) if is_float else column
