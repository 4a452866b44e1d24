"""The strict check of a croissant.json: what mlcroissant lets pass, and the files themselves.

mlcroissant 1.1.1 accepts a document without name, url or files, a sha256 that is none, a licence in free text and any `rai:` key.
Here all that is an error, every file is hashed again, and columns, types and row counts are compared with the parquet footers.
"""

import fnmatch
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curate import files
from curate.cards.croissant import CONTEXT, CROISSANT, MANY, RAI, SPDX, data_type
from curate.cards.dataset import Dataset, DatasetFile
from curate.cards.settings import TODO, VERSION, is_date, is_url
from curate.errors import did_you_mean

REQUIRED = ("@context", "@type", "conformsTo", "name", "description", "url", "license", "creator", "datePublished", "version",
            "distribution", "recordSet", "rai:dataCollection", "rai:dataCollectionType", "rai:dataPreprocessingProtocol",
            "rai:dataBiases", "rai:dataLimitations", "rai:dataUseCases", "rai:personalSensitiveInformation")
OPTIONAL = ("dateCreated", "dateModified", "citeAs", "alternateName", "keywords", "inLanguage", "publisher", "isLiveDataset",
            "size", "sameAs", "sdLicense", "sdVersion", "usageInfo", "prov:wasDerivedFrom", "prov:wasGeneratedBy",
            "prov:wasAttributedTo")
RAI_KEYS = tuple(f"rai:{key}" for key in (
    "dataCollection", "dataCollectionType", "dataCollectionMissingData", "dataCollectionRawData", "dataCollectionTimeframe",
    "dataImputationProtocol", "dataPreprocessingProtocol", "dataManipulationProtocol", "dataAnnotationProtocol",
    "dataAnnotationPlatform", "dataAnnotationAnalysis", "annotationsPerItem", "annotatorDemographics", "machineAnnotationTools",
    "dataBiases", "dataUseCases", "dataLimitations", "dataSocialImpact", "personalSensitiveInformation",
    "dataReleaseMaintenancePlan"))
"""The vocabulary of RAI 1.0 (mlcommons.org/croissant/RAI/1.0)."""
SHA256 = re.compile(r"[0-9a-f]{64}")
SIZE = re.compile(r"\d+ B")


@cache
def spdx() -> frozenset[str]:
    """The identifiers of the SPDX licence list 3.27 that are not deprecated."""
    return frozenset(json.loads((Path(__file__).parent / "spdx.json").read_text()))


def problems(document: Any, dataset: Dataset, draft: bool = False) -> Iterator[str]:
    """What is wrong with a document that describes `dataset`, one line each; a draft may still say TODO-HUMAN."""
    if not isinstance(document, dict):
        yield "is no JSON object"
        return
    yield from _required(document, draft)
    yield from _known(document)
    yield from _values({k: v for k, v in document.items() if not (draft and TODO in json.dumps(v))})
    nodes = document.get("distribution")
    nodes = nodes if isinstance(nodes, list) and all(isinstance(n, dict) for n in nodes) else []
    yield from _distribution(nodes, dataset)
    yield from _record_sets(document.get("recordSet"), nodes, dataset)
    yield from _rows(document, dataset)


def _required(document: Mapping[str, Any], draft: bool) -> Iterator[str]:
    for key in REQUIRED:
        if document.get(key) in (None, "", [], {}):
            yield f"'{key}' is missing"
    for key, value in document.items():
        if not draft and TODO in json.dumps(value):
            yield f"'{key}' still says {TODO}"


def _known(document: Mapping[str, Any]) -> Iterator[str]:
    known = (*REQUIRED, *OPTIONAL, *RAI_KEYS)
    for key in document:
        if key not in known:
            among = RAI_KEYS if key.startswith("rai:") else known
            yield f"no property '{key}' is known{did_you_mean(key, among)}"


def _values(document: Mapping[str, Any]) -> Iterator[str]:
    """The form of every value that is there."""
    context = document.get("@context", {})
    wrong = [k for k, v in CONTEXT.items() if not isinstance(context, dict) or context.get(k) != v]
    if context and wrong:
        yield f"'@context' is not Croissant 1.1's: '{wrong[0]}' differs"
    if document.get("@type", "sc:Dataset") != "sc:Dataset":
        yield f"'@type' is {document['@type']!r}, not 'sc:Dataset'"
    conforms = _listed(document.get("conformsTo"))
    for standard in (CROISSANT, RAI) if conforms else ():
        if standard not in conforms:
            yield f"'conformsTo' does not name {standard}"
    for key in ("url", "sameAs"):
        yield from (f"'{key}': {v!r} is no http:// or https:// address" for v in _listed(document.get(key))
                    if not isinstance(v, str) or not is_url(v))
    for key in ("datePublished", "dateCreated", "dateModified", "rai:dataCollectionTimeframe"):
        yield from (f"'{key}': {v!r} is no ISO 8601 date" for v in _listed(document.get(key))
                    if not isinstance(v, str) or not is_date(v))
    version = document.get("version")
    if version is not None and not (isinstance(version, str) and VERSION.fullmatch(version)):
        yield f"'version': {version!r} is not MAJOR.MINOR.PATCH"
    for key in ("license", "sdLicense"):
        for licence in _listed(document.get(key)):
            name = str(licence).removeprefix(SPDX).removesuffix(".html")
            if name not in spdx():
                close = did_you_mean(name, spdx())
                yield f"'{key}': {str(licence)!r} is no SPDX identifier{close if 'did you' in close else ''}"
    for key in ("creator", "publisher"):
        for party in _listed(document.get(key)):
            if not isinstance(party, dict) or not party.get("name") or party.get("@type") not in ("sc:Person", "sc:Organization"):
                yield f"'{key}': {party!r} is no sc:Person or sc:Organization with a name"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def _distribution(nodes: list[dict[str, Any]], dataset: Dataset) -> Iterator[str]:
    known = {f.path: f for f in dataset.files}
    ids = [n.get("@id") for n in nodes]
    yield from (f"two things have the @id '{i}'" for i in sorted({str(i) for i in ids if ids.count(i) > 1}))
    listed = set()
    for node in nodes:
        name = node.get("@id", "?")
        for key in ("@id", "encodingFormat"):
            if not node.get(key):
                yield f"'{name}': '{key}' is missing"
        if node.get("@type") == "cr:FileObject":
            listed.add(node.get("contentUrl"))
            yield from _file(node, known.get(str(node.get("contentUrl"))))
        elif node.get("@type") == "cr:FileSet":
            yield from _file_set(node, ids, known)
        else:
            yield f"'{name}': '@type' is {node.get('@type')!r}, not cr:FileObject or cr:FileSet"
    if nodes and len(known) <= MANY:
        yield from (f"the file {path} is not in 'distribution'" for path in known if path not in listed)


def _file(node: Mapping[str, Any], file: DatasetFile | None) -> Iterator[str]:
    name = node.get("@id", "?")
    sha256, size = node.get("sha256"), node.get("contentSize")
    if not node.get("contentUrl"):
        yield f"'{name}': 'contentUrl' is missing"
        return
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        yield f"'{name}': sha256 is {sha256!r}, not 64 hex digits"
    if not isinstance(size, str) or not SIZE.fullmatch(size):
        yield f"'{name}': contentSize is {size!r}, not like '1234 B'"
    if file is None:
        yield f"'{name}': the dataset has no file '{node['contentUrl']}'"
    elif not file.local.is_file():
        yield f"'{name}': the file {file.local.name} is not there"
    else:
        actual = file.local.stat().st_size
        if isinstance(size, str) and SIZE.fullmatch(size) and size != f"{actual} B":
            yield f"'{name}': contentSize says {size} and the file has {actual} B"
        if isinstance(sha256, str) and SHA256.fullmatch(sha256) and files.file_digest(file.local) != sha256:
            yield f"'{name}': the file's sha256 is another one"


def _file_set(node: Mapping[str, Any], ids: list[Any], known: Mapping[str, DatasetFile]) -> Iterator[str]:
    name, includes = node.get("@id", "?"), _listed(node.get("includes"))
    if not includes:
        yield f"'{name}': 'includes' is missing"
    containers = [c.get("@id") if isinstance(c, dict) else c for c in _listed(node.get("containedIn"))]
    yield from (f"'{name}': containedIn names '{c}', which is not in 'distribution'" for c in containers if c not in ids)
    if includes and not containers and not any(fnmatch.fnmatch(path, str(p)) for path in known for p in includes):
        yield f"'{name}': no file of the dataset matches {', '.join(map(str, includes))}"


def _record_sets(record_sets: Any, nodes: list[dict[str, Any]], dataset: Dataset) -> Iterator[str]:
    sources = {n.get("@id") for n in nodes}
    described: set[str] = set()
    fields = [(s, f) for s in _listed(record_sets) if isinstance(s, dict) for f in _listed(s.get("field")) if isinstance(f, dict)]
    ids = [f.get("@id") for _, f in fields]
    yield from (f"two fields have the @id '{i}'" for i in sorted({str(i) for i in ids if ids.count(i) > 1}))
    for record_set in _listed(record_sets):
        name = record_set.get("@id", "?") if isinstance(record_set, dict) else record_set
        if not isinstance(record_set, dict) or record_set.get("@type") != "cr:RecordSet" or not record_set.get("field"):
            yield f"'{name}' is no cr:RecordSet with fields"
            continue
        yield from (f"'{name}': its key '{k.get('@id')}' is no field" for k in _listed(record_set.get("key"))
                    if k.get("@id") not in ids)
    for _, field in fields:
        yield from _field(field, sources, ids, dataset, described)
    if fields:
        yield from (f"the column '{c}' is not in 'recordSet'" for c in dataset.schema.names if c not in described)


def _field(field: Mapping[str, Any], sources: set[Any], ids: list[Any], dataset: Dataset, described: set[str]) -> Iterator[str]:
    name, source = field.get("@id", "?"), field.get("source")
    source = source if isinstance(source, dict) else {}
    reference = source.get("fileSet") or source.get("fileObject") or {}
    if field.get("@type") != "cr:Field":
        yield f"'{name}': '@type' is {field.get('@type')!r}, not cr:Field"
    named = reference.get("@id") if isinstance(reference, dict) else reference
    if named not in sources:
        yield f"'{name}': its source '{named}' is not in 'distribution'"
    target = (field.get("references") or {}).get("@id")
    if target is not None and target not in ids:
        yield f"'{name}': it references '{target}', which is no field"
    column = str((source.get("extract") or {}).get("column"))
    if column not in dataset.schema.names:
        near = did_you_mean(column, dataset.schema.names)
        yield f"'{name}': the tables have no column '{column}'{near if 'did you' in near else ''}"
        return
    described.add(column)
    fitting = data_type(column, dataset.schema.field(column).type)
    found = {k: field.get(k) for k in fitting}
    if found != fitting:
        yield f"'{name}': dataType {found['dataType']} does not fit the column's, which is {fitting['dataType']}"


def _rows(document: Mapping[str, Any], dataset: Dataset) -> Iterator[str]:
    """Row counts against the footers of the tables, and their columns against each other."""
    said = document.get("size", {}).get("value") if isinstance(document.get("size"), dict) else None
    there = [f for f in dataset.tables if f.local.is_file()]
    footers = [pq.read_metadata(f.local) for f in there]
    total = sum(footer.num_rows for footer in footers)
    if said != total:
        yield f"'size' says {said!r} rows and the tables hold {total:,}"
    schema = [(f.name, f.type) for f in dataset.schema]
    for file, footer in zip(there, footers, strict=True):
        if [(f.name, f.type) for f in footer.schema.to_arrow_schema()] != schema:
            yield f"'{file.path}': its columns are not those of the other tables"
    entries = dataset.manifest["shards"] if dataset.manifest else []
    for file, footer, entry in zip(there, footers, entries, strict=False):
        if footer.num_rows != entry["rows"]:
            yield f"'{file.path}': {footer.num_rows:,} rows, and the manifest says {entry['rows']:,}"


def mlcroissant_says(path: Path) -> tuple[list[str], list[str]]:
    """Errors and warnings of mlcroissant about a croissant.json; it reads no data here."""
    quiet = logging.getLogger("absl")
    level = quiet.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # of its dependencies, about themselves
        import mlcroissant  # type: ignore[import-untyped]

        quiet.setLevel(logging.CRITICAL)
        try:
            metadata = mlcroissant.Dataset(str(path)).metadata
        except mlcroissant.ValidationError as error:
            return [" ".join(str(error).split())], []
        finally:
            quiet.setLevel(level)
    issues = metadata.ctx.issues
    return sorted(map(_line, issues.errors)), sorted(map(_line, issues.warnings))


def _line(issue: Any) -> str:
    return " ".join(str(issue).split())
