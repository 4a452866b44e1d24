"""A keep: one SQL expression over the columns so far that says of each row whether it is kept, dropped or unknown.

DuckDB parses the user's text and never runs it. The tree is written anew, node by node, from this grammar; what has no place in
it is refused, and the new text must parse to the same tree: nothing (an alias, a filter, a from) gets lost on the way.

    condition   condition and|or condition · not condition · test
    test        value = != < <= > >= value · value [not] between value and value · value [not] in (constants) ·
                value is [not] null · a boolean value; each reads a column
    value       column · constant · value + - * / // % value · -value · value [not] [i]like value · function(value, …) ·
                try_cast(value as type)

A row with a null or NaN in a column that a clause reads is `unknown` to it, whatever SQL would say; so is one for which it comes
out null (division by zero, failed cast), computes NaN or fails (overflow, root of -1). Unknown never passes. NaN must not be left
to DuckDB, which sorts it above every number: `nan > 0.3` is true there.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from curate.errors import UserError, did_you_mean

KEPT, DROPPED, UNKNOWN = 0, 1, 2
MAX_LENGTH, MAX_BRACKETS, MAX_DEPTH = 4000, 200, 100
KINDS = {"boolean": "bool", "number": r"u?int\d+|float|double|decimal128.*", "text": "(large_)?string|string_view",
         "list of text": r"\w*list<\w+: \w*string( not null)?>", "list of number": r"\w*list<\w+: u?int\d+( not null)?>"}
"""What a column is to a keep, by the name of its Arrow type."""
CASTS = {"boolean": "boolean", "integer": "number", "bigint": "number", "double": "number", "varchar": "text"}
SIGNATURES = {
    "number -> number": "abs ceil floor ln log10 round sign sqrt -",
    "number, number -> number": "round + - * / // %",
    "text -> text": "lower trim upper",
    "text -> number": "len length",
    "list of text -> number": "len",
    "list of number -> number": "len",
    "text, text -> boolean": "contains ends_with regexp_matches starts_with ~~ !~~ ~~* !~~*",
    "list of text, text -> boolean": "contains list_contains",
    "list of number, number -> boolean": "contains list_contains",
}
ONE_KIND = ("coalesce", "greatest", "least", "nullif")
"""All that a keep may call: by the kinds it takes and gives, or on values of one kind, giving that kind. All are pure."""
OR, AND, NOT, COMPARE, ADD, TIMES, SIGN, ATOM = range(8)
INFIX = {"+": ("+", ADD), "-": ("-", ADD), "*": ("*", TIMES), "/": ("/", TIMES), "//": ("//", TIMES), "%": ("%", TIMES),
         "~~": ("like", COMPARE), "!~~": ("not like", COMPARE), "~~*": ("ilike", COMPARE), "!~~*": ("not ilike", COMPARE)}
"""DuckDB's name of an operator → how it is written, and how strongly it binds."""
FUNCTIONS = sorted({*" ".join(SIGNATURES.values()).split(), *ONE_KIND} - {*INFIX})
TESTS = {"COMPARE_EQUAL": "{} = {}", "COMPARE_LESSTHAN": "{} < {}", "COMPARE_LESSTHANOREQUALTO": "{} <= {}",
         "COMPARE_NOTEQUAL": "{} != {}", "COMPARE_GREATERTHAN": "{} > {}", "COMPARE_GREATERTHANOREQUALTO": "{} >= {}",
         "COMPARE_BETWEEN": "{} {no}between {} and {}", "COMPARE_IN": "{} {no}in ({})", "OPERATOR_IS_NULL": "{} is null",
         "OPERATOR_IS_NOT_NULL": "{} is not null"}
INSTEAD = {"||": "; write or", "|": "; write or", "&&": "; write and", "&": "; write and", "!": "; write not",
           "regexp_full_match": "; write regexp_matches", "compare distinct from": " (is not true); write `not x` or !=",
           "compare not distinct from": " (is true); write `x` or ="}
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
    """A checked expression: as the user wrote it, its clauses in order, the columns it reads and the types they are judged in."""

    text: str
    clauses: tuple[Clause, ...]
    columns: dict[str, pa.DataType]


@dataclass(frozen=True)
class Verdicts:
    """One entry a row: `state` uint8 (KEPT, DROPPED or UNKNOWN) and `clause` int16 (which one said so; -1 when kept)."""

    state: np.ndarray
    clause: np.ndarray


def parse(text: str, columns: Mapping[str, pa.DataType]) -> Keep:
    """The checked keep over `columns` (leave out those that must not decide, such as volatile ones).

    Raises UserError with one line for what is not in the grammar, names no column, or mixes unlike kinds.
    """
    text = text.strip()
    tree = _tree(text)
    (root,) = tree["select_list"]
    reader = _Reader(columns, text)
    plain = reader.condition(root).sql
    if _tree(plain) != tree:
        raise UserError(f"a keep is one expression and no more; of this only `{plain}` would count")
    if len({name.lower() for name in reader.reads}) < len(reader.reads):
        raise UserError(f"of columns that differ only in case a keep can read one; this reads {', '.join(reader.reads)}")
    parts = root["children"] if root["type"] == "CONJUNCTION_AND" else [root]
    clauses = tuple(_Reader(columns, text).clause(part) for part in parts)
    keep = Keep(text, clauses, {name: _plain(columns[name]) for name in reader.reads})
    try:
        evaluate(keep, pa.Table.from_arrays([pa.nulls(0, type_) for type_ in keep.columns.values()], names=[*keep.columns]))
    except duckdb.Error as error:
        raise UserError(f"`{plain}` can't be computed: {str(error).splitlines()[0].partition('. ')[0]}") from None
    return keep


def evaluate(keep: Keep, table: pa.Table) -> Verdicts:
    """Judge each row of `table`: the first clause that is not true decides; a row that none stops is kept."""
    judged = ", ".join(f"{clause.sql} as v{i}" for i, clause in enumerate(keep.clauses))
    codes = " ".join(f"when v{i} is null then {-i - 1} when not v{i} then {i + 1}" for i in range(len(keep.clauses)))
    batch = pa.Table.from_arrays([table[name].cast(type_) for name, type_ in keep.columns.items()], names=[*keep.columns])
    with _database(os.getpid()).cursor() as cursor:
        cursor.register("batch", batch)
        cursor.execute(f"select (case {codes} else 0 end)::smallint as code from (select {judged} from batch)")
        code = np.asarray(cursor.fetchnumpy()["code"], np.int16)
    assert len(code) == table.num_rows
    return Verdicts(np.array([KEPT, DROPPED, UNKNOWN], np.uint8)[np.sign(code)], np.abs(code) - np.int16(1))  # -1 is the last


@cache
def _database(pid: int) -> duckdb.DuckDBPyConnection:
    """An empty database in memory that reaches neither files nor network nor extensions; one a process, also after a fork."""
    return duckdb.connect(":memory:", config={
        "enable_external_access": "false", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
        "python_enable_replacements": "false", "threads": "1", "max_expression_depth": str(MAX_DEPTH),
        "ieee_floating_point_ops": "false", "error_on_division_by_zero": "false", "lock_configuration": "true"})


def _tree(text: str) -> Node:
    """The tree of `select text`, without the places in the text. Comments leave no trace in it and are refused before."""
    if not text:
        raise UserError("the expression is empty")
    if len(text) > MAX_LENGTH or sum(map(text.count, "([{")) > MAX_BRACKETS:
        raise UserError(f"the expression is too long: at most {MAX_LENGTH} characters and {MAX_BRACKETS} brackets")
    if UNSAFE.search(" ".join(text.split())):
        raise UserError("the expression holds a control character")
    if any(kind == duckdb.token_type.comment for _, kind in duckdb.tokenize(text)):
        raise UserError("no comments inside a keep; write them behind # in the pipeline file")
    with _database(os.getpid()).cursor() as cursor:
        (answer,) = cursor.execute("select json_serialize_sql($1::varchar)", ["select " + text]).fetchall()[0]
    parsed = json.loads(answer, object_hook=lambda d: {k: v for k, v in d.items() if not k.startswith("query_location")})
    if parsed["error"]:
        raise UserError(f"not an expression: {parsed['error_message'].partition('. ')[0]}")
    node: Node = parsed["statements"][0]["node"]
    if len(parsed["statements"]) != 1 or node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1:
        raise UserError("a keep is one expression and no more; join several with and, or")
    return node


class _Piece(NamedTuple):
    """Written SQL, how strongly it binds, and the kind of its value; in brackets within something that binds more strongly."""

    sql: str
    strength: int = ATOM
    kind: str = "boolean"

    def within(self, strength: int) -> str:
        return self.sql if self.strength >= strength else f"({self.sql})"


class _Reader:
    """Reads a tree by writing it anew; notes the columns it reads as written, and the numbers in it that can be NaN."""

    def __init__(self, columns: Mapping[str, pa.DataType], source: str) -> None:
        self.columns, self.source = columns, source
        self.reads: dict[str, str] = {}
        self.numbers: list[str] = []

    def clause(self, node: Node) -> Clause:
        text = self.condition(node).sql
        unknown = [f"{name} is null" for name in self.reads.values()] + [f"isnan(({number})::double)" for number in self.numbers]
        return Clause(text, f"try(case when {' or '.join(unknown)} then null else {text} end)", tuple(self.reads))

    def condition(self, node: Node, no: str = "") -> _Piece:
        if node["class"] == "CONJUNCTION":
            word, strength = ("and", AND) if node["type"] == "CONJUNCTION_AND" else ("or", OR)
            return _Piece(f" {word} ".join(self.condition(child).within(strength) for child in node["children"]), strength)
        if node["type"] == "OPERATOR_NOT":
            (child,) = node["children"]
            if "{no}" in TESTS.get(child["type"], ""):
                return self.condition(child, no="not ")
            return _Piece(f"not {self.condition(child).within(NOT)}", NOT)
        others, self.reads = self.reads, {}
        test = self.test(node, no)
        if not self.reads:
            raise UserError(f"`{test.sql}` reads no column: it is the same for every row")
        self.reads = others | self.reads
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
        text = TESTS[node["type"]].format(first, *([", ".join(others)] if node["type"] == "COMPARE_IN" else others), no=no)
        if node["type"] == "COMPARE_IN" and any(side["class"] != "CONSTANT" for side in sides[1:]):
            raise UserError(f"`{text}`: only constants stand in the brackets behind in")
        if node["type"] == "OPERATOR_IS_NULL" and sides[0]["class"] == "COLUMN_REF":
            raise UserError(f"`{text}` keeps nothing: a row without a value is unknown, and unknown never passes")
        if others and ({piece.kind for piece in pieces} != {pieces[0].kind} or pieces[0].kind.startswith("list")):
            raise UserError(f"`{text}` compares {' with '.join(piece.kind for piece in pieces)}")
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
                return self.call(node["function_name"], [a["expression"] for a in node["arguments"]], node["is_operator"])
            case "OPERATOR" if node["type"] == "OPERATOR_COALESCE":
                return self.call("coalesce", node["children"])
        word = "comparison" if node["type"] in TESTS else node["type"].lower().replace("_", " ")
        raise UserError(f"no {word} here{INSTEAD.get(word, '')}; a keep has only comparisons of columns, constants and functions "
                        "of them, joined by and, or, not")

    def column(self, path: Sequence[str]) -> _Piece:
        name, quoted = path[0], '"' + path[0].replace('"', '""') + '"'
        if len(path) > 1:
            raise UserError(f"`{'.'.join(path)}`: no table or field names here; a name with a dot goes in double quotes")
        if name not in self.columns:
            same = [known for known in self.columns if known.lower() == name.lower()]
            hint = f"; a text goes in single quotes: '{name}'" if quoted in self.source else did_you_mean(name, self.columns)
            raise UserError(f"no column '{name}'" + (f"; did you mean '{same[0]}'?" if same else hint))
        type_ = str(_plain(self.columns[name]))
        kind = next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, type_)), "")
        if not kind:
            raise UserError(f"column '{name}' is {type_}; a keep reads {', '.join(KINDS)}")
        self.reads[name] = sql = quoted if quoted in self.source else name
        self.numbers += [sql] if type_ in ("float", "double") else []
        return _Piece(sql, kind=kind)

    def cast(self, type_: str, trying: bool, child: Node) -> _Piece:
        text = f"try_cast({self.value(child).sql} as {type_})"
        if not trying or type_.lower() not in CASTS:
            raise UserError(f"no cast to {type_.lower()} here; there is try_cast(… as {'|'.join(CASTS)}), null where it fails")
        self.numbers += [text] if type_.lower() == "double" else []
        return _Piece(text, kind=CASTS[type_.lower()])

    def call(self, name: str, arguments: Sequence[Node], is_operator: bool = False) -> _Piece:
        what, known = ("operator", [word for word, _ in INFIX.values()]) if is_operator else ("function", FUNCTIONS)
        word, strength = INFIX.get(name, (name, ATOM))
        if word not in known:
            raise UserError(f"no {what} '{name}' here{INSTEAD.get(name) or did_you_mean(name, known)}")
        pieces = [self.value(argument) for argument in arguments]
        text = f"{name}({', '.join(piece.sql for piece in pieces)})"
        if is_operator and len(pieces) == 1:
            text, strength = word + pieces[0].within(ATOM), SIGN
        elif is_operator:
            text = f"{pieces[0].within(strength)} {word} {pieces[1].within(strength + 1)}"
        kinds = ", ".join(piece.kind for piece in pieces)
        results = {takes: gives for takes, _, gives in (s.partition(" -> ") for s in SIGNATURES if name in SIGNATURES[s].split())}
        if name in ONE_KIND and len(pieces) > 1 and len({piece.kind for piece in pieces}) == 1:
            results = {kinds: pieces[0].kind}
        if kinds not in results:
            takes = " or ".join(f"({takes})" for takes in results) or "two or more values of one kind"
            raise UserError(f"`{text}`: {word} takes {takes}, not ({kinds})")
        self.numbers += [text] if is_operator and results[kinds] == "number" else []
        return _Piece(text, strength, results[kinds])


def _constant(kind: str, text: str) -> _Piece:
    if kind == "NULL_LITERAL":
        raise UserError("no null here: a row without a value is unknown, and unknown never passes")
    if UNSAFE.search(text):
        raise UserError("a constant holds a line break or a control character")
    if kind == "STRING":
        return _Piece("'" + text.replace("'", "''") + "'", kind="text")
    if kind == "BOOLEAN":
        return _Piece(text)
    if kind in ("INTEGER", "NUMERIC") and sum(map(str.isdigit, text)) <= 18 and abs(float(text)) < 1e30:
        return _Piece(text, SIGN if text.startswith("-") else ATOM, "number")
    raise UserError(f"no constant {text} here; there are numbers of up to 18 digits, texts in single quotes, true and false")


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type a column is judged in: whole numbers wide enough for products; half precision is none that DuckDB reads."""
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return pa.int64()
    return pa.float32() if pa.types.is_float16(type_) else type_
