"""croissant.json: a run's dataset as Croissant 1.1 (JSON-LD), with the Responsible-AI vocabulary 1.0 and PROV-O lineage.

The context is that of the specification (mlcommons.org/croissant/1.1, appendix 1) with the schema.org namespace as mlcroissant
reads it. Tables are one FileSet, since a field has one source; each of their files stands beside it with sha256 and size.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from curate.cards import facts
from curate.cards.census import Census
from curate.cards.dataset import PARQUET, TAR, Dataset, DatasetFile
from curate.cards.markdown import counted
from curate.cards.settings import CardSettings
from curate.folder import Folder

CROISSANT, RAI = "http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"
SPDX = "https://spdx.org/licenses/"
LANGUAGE_MAP = {"@container": "@language"}
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "arrayShape": "cr:arrayShape", "citeAs": "cr:citeAs",
    "column": "cr:column", "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "description": LANGUAGE_MAP, "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "excludes": "cr:excludes", "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isArray": "cr:isArray", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
    "key": "cr:key", "md5": "cr:md5", "name": LANGUAGE_MAP, "parentField": "cr:parentField", "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#", "rai": "http://mlcommons.org/croissant/RAI/", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "samplingRate": "cr:samplingRate", "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source",
    "subField": "cr:subField", "transform": "cr:transform"}
MANY = 2_000
"""More files than this are not listed one by one: their manifest is, and it lists them (our choice)."""
TYPES = {"bool": "sc:Boolean", "int8": "cr:Int8", "int16": "cr:Int16", "int32": "cr:Int32", "int64": "cr:Int64",
         "uint8": "cr:UInt8", "uint16": "cr:UInt16", "uint32": "cr:UInt32", "uint64": "cr:UInt64", "halffloat": "cr:Float16",
         "float": "cr:Float32", "double": "cr:Float64", "string": "sc:Text", "large_string": "sc:Text", "null": "sc:Text",
         "date32[day]": "sc:Date", "date64[ms]": "sc:Date"}
MACHINES = ("language", "head", "blip_caption", "blip_match")
"""Steps that hold a model without a setting `model`."""
ROWS, PICTURES = "rows", "pictures"


def document(folder: Folder, dataset: Dataset, settings: CardSettings, prose: Mapping[str, str], census: Census,
             languages: list[str], draft: bool = False) -> dict[str, Any]:
    """The JSON-LD document. `prose` are the hand-written sections of the card, which fill the fields that need judgement."""
    texts = settings.texts
    optional = {"citeAs": texts.get("citeAs"), "alternateName": texts.get("pretty_name"),
                "keywords": list(settings.lists.get("keywords", ())) or None, "inLanguage": languages or None,
                "publisher": [_party(a) for a in settings.parties["publisher"]] if "publisher" in settings.parties else None}
    return {
        "@context": CONTEXT, "@type": "sc:Dataset", "conformsTo": [CROISSANT, RAI], "name": texts["name"],
        "description": ("DRAFT. " if draft else "") + texts["description"], "url": texts["url"],
        "license": [f"{SPDX}{i}" for i in settings.lists["license"]], "creator": [_party(a) for a in settings.parties["creator"]],
        "datePublished": texts["datePublished"], "dateCreated": facts.time_of(folder), "version": texts["version"],
        **{k: v for k, v in optional.items() if v}, "isLiveDataset": False,
        "size": {"@type": "sc:QuantitativeValue", "value": dataset.rows, "unitText": "rows"},
        **_rai(folder, settings, prose, census), **_lineage(folder),
        "distribution": list(_distribution(dataset)), "recordSet": list(_record_sets(dataset, folder))}


def _party(party: Mapping[str, str]) -> dict[str, str]:
    return {"@type": f"sc:{party['type']}", **{k: v for k, v in party.items() if k != "type"}}


def _rai(folder: Folder, settings: CardSettings, prose: Mapping[str, str], census: Census) -> dict[str, Any]:
    """What a run knows of itself, then what a human wrote."""
    downloads = next((s for s in folder.stages if s.get("step") == "download"), None)
    kind = "Web Scraping" if downloads else "Secondary Data Analysis"
    counts = census.values.get(downloads["adds"]["status"]) if downloads else None
    statuses = dict(counts[0]) if counts else {}
    missing = ", ".join(f"{n:,} {s}" for s, n in sorted(statuses.items(), key=lambda i: (-i[1], i[0])) if s != "ok")
    machines = [f"{s.what}: " + (f"{s.settings['model']}, weights {s.weights or s.settings.get('pretrained', '')}"
                                 if "model" in s.settings else f"version {s.version}; adds {', '.join(s.adds)}")
                for s in facts.steps(folder) if "model" in s.settings or s.step in MACHINES]
    found = {
        "dataCollection": facts.collection(folder),
        "dataCollectionType": list(settings.lists.get("dataCollectionType", (kind,))),
        "dataCollectionTimeframe": [facts.time_of(folder)],
        "dataCollectionMissingData": f"Rows whose picture could not be had or was not taken: {missing}." if missing else None,
        "dataCollectionRawData": f"The source's files by digest: {folder.source.digest}.",
        "dataPreprocessingProtocol": [_stage_said(e) for e in facts.funnel(folder)],
        "dataManipulationProtocol": _pictures_said(downloads),
        "machineAnnotationTools": machines or None,
        "personalSensitiveInformation": [facts.privacy(folder, census)],
        "dataBiases": [prose["bias-analysis"]], "dataUseCases": [prose["intended-use"]],
        "dataLimitations": [prose["out-of-scope"]], "dataReleaseMaintenancePlan": prose["contact"]}
    return {f"rai:{k}": v for k, v in found.items() if v}


def _stage_said(entry: Mapping[str, Any]) -> str:
    gone = [f"{entry[s]:,} {s}" for s in ("dropped", "unknown", "quarantined", "removed") if entry[s]]
    ends = ", ".join([*gone, f"{entry['kept']:,} kept"])
    return f"{facts.public(entry['what'])}: {entry['in']:,} rows in, {ends}"


def _pictures_said(downloads: Mapping[str, Any] | None) -> str:
    if downloads is None:
        return "Pictures are the source's own files, unchanged."
    settings = downloads["settings"]
    size = f"{settings.get('resize_mode')}, image_size {settings.get('image_size')}"
    return (f"Pictures are decoded, resized ({size}) and encoded as {settings.get('encode_format')}; metadata of the file is not "
            "stored.")


def _lineage(folder: Folder) -> dict[str, Any]:
    """PROV-O: the source's files, and one activity a step with all that its columns depend on."""
    parts = [p for p in folder.source.parts[:MANY] if p.sha256]
    derived = [{"@id": f"urn:sha256:{p.sha256}", "prov:label": facts.public(p.path)} for p in parts]
    source = [{"@id": f"urn:curate:source:{folder.source.digest}", "prov:label": "the source as it was read"}]
    activities = [{"@type": "prov:Activity", "@id": f"urn:curate:step:{s.id}:{i}", "prov:label": s.what,
                   "description": "; ".join(_step_said(s))} for i, s in enumerate(facts.steps(folder)) if s.id]
    run = {"@type": "prov:Activity", "@id": f"urn:curate:run:{folder.chain}", "prov:label": "curate run",
           "prov:endedAtTime": facts.time_of(folder)}
    return {"prov:wasDerivedFrom": [*source, *derived], "prov:wasGeneratedBy": [run, *activities]}


def _step_said(fact: facts.StepFact) -> Iterator[str]:
    yield f"step {fact.step}" + (f" version {fact.version}" if fact.version else "")
    if fact.settings:
        yield "settings " + ", ".join(f"{n}={v}" for n, v in fact.settings.items())
    yield f"reads {', '.join(fact.reads) or 'nothing'}"
    yield f"adds {', '.join(fact.adds)}"
    if fact.weights:
        yield f"weights {fact.weights}"


def _distribution(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Every file with its sha256; of very many the manifest that lists them."""
    listed = dataset.files if len(dataset.files) <= MANY else [f for f in dataset.files if f.path.endswith("manifest.json")]
    yield from (_file_object(f) for f in listed)
    yield {"@type": "cr:FileSet", "@id": f"{ROWS}-files", "name": f"{ROWS}-files", "encodingFormat": PARQUET,
           "description": f"The tables: {counted(len(dataset.tables), 'file')}, {counted(dataset.rows, 'row')}.",
           "includes": f"{dataset.folder}/*.parquet"}
    if dataset.tars and len(dataset.files) <= MANY:
        yield {"@type": "cr:FileSet", "@id": f"{PICTURES}-files", "name": f"{PICTURES}-files", "encodingFormat": "image/jpeg",
               "description": "The pictures inside the tars, each named by its row's key.",
               "containedIn": [{"@id": f.path} for f in dataset.tars], "includes": "*.jpg"}
    elif dataset.tars:
        yield {"@type": "cr:FileSet", "@id": f"{PICTURES}-tars", "name": f"{PICTURES}-tars", "encodingFormat": TAR,
               "description": f"The tars with pictures: {counted(len(dataset.tars), 'file')}.", "includes": "shards/*.tar"}


def _file_object(file: DatasetFile) -> dict[str, Any]:
    return {"@type": "cr:FileObject", "@id": file.path, "name": file.path.rpartition("/")[2], "contentUrl": file.path,
            "contentSize": f"{file.bytes} B", "encodingFormat": file.media_type, "sha256": file.sha256}


def _record_sets(dataset: Dataset, folder: Folder) -> Iterator[dict[str, Any]]:
    yield {"@type": "cr:RecordSet", "@id": ROWS, "name": ROWS,
           "description": f"One picture and caption a row; {counted(dataset.rows, 'row')}.",
           "key": {"@id": f"{ROWS}/uid"}, "field": [_field(f.name, f.type, folder) for f in dataset.schema]}


def _field(name: str, kind: pa.DataType, folder: Folder) -> dict[str, Any]:
    by = "names the row's members in its tar" if name == "key" else f"measured by: {facts.measured_by(folder, name)}"
    return {"@type": "cr:Field", "@id": f"{ROWS}/{name}", "name": name, "description": by, **data_type(name, kind),
            "source": {"fileSet": {"@id": f"{ROWS}-files"}, "extract": {"column": name}}}


def data_type(name: str, kind: pa.DataType) -> dict[str, Any]:
    """The dataType of a column, and isArray where it is a list."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return {**data_type(name, kind.value_type), "isArray": True, "arrayShape": "-1"}
    if pa.types.is_timestamp(kind):
        return {"dataType": "sc:DateTime"}
    if pa.types.is_time(kind):
        return {"dataType": "sc:Time"}
    if name == "url" and pa.types.is_string(kind):
        return {"dataType": "sc:URL"}
    return {"dataType": TYPES.get(str(kind), "sc:Text" if not pa.types.is_nested(kind) else "sc:StructuredValue")}
