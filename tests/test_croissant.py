"""croissant.json: what mlcroissant lets pass is refused here, one line a defect, and the files are as it says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import files
from curate.cards.check import RAI_KEYS, mlcroissant_says, problems, spdx
from curate.cards.croissant import CONTEXT, data_type
from curate.cards.dataset import Dataset, conserved, finished, open_dataset
from curate.cards.publish import check_card
from curate.errors import UserError
from tests.cards import fill, make_run

Document = dict[str, Any]
SHA = "0" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a complete card."""
    root = make_run(tmp_path_factory.mktemp("croissant"))
    fill(root)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def document(made: Path) -> Document:
    """Its croissant.json, to change."""
    return dict(files.read_json(made / "card" / "croissant.json"))


@pytest.fixture(scope="module")
def dataset(made: Path) -> Dataset:
    """What it describes."""
    return open_dataset(finished(made), with_images=True)


def file_object(document: Document, name: str = "shards/00000.tar") -> Document:
    return dict_of(next(n for n in document["distribution"] if n["@id"] == name))


def file_set(document: Document) -> Document:
    return dict_of(next(n for n in document["distribution"] if n["@id"] == "rows-files"))


def field(document: Document, name: str = "rows/num_chars") -> Document:
    return dict_of(next(f for f in document["recordSet"][0]["field"] if f["@id"] == name))


def dict_of(value: Any) -> Document:
    assert isinstance(value, dict)
    return value


def without(key: str) -> Callable[[Document], Any]:
    return lambda document: document.pop(key)


def with_(key: str, value: Any) -> Callable[[Document], Any]:
    return lambda document: document.update({key: value})


def test_a_complete_card_has_no_problem(document: Document, dataset: Dataset, made: Path) -> None:
    assert list(problems(document, dataset)) == []
    assert conserved(finished(made), dataset) == ""
    assert mlcroissant_says(made / "card" / "croissant.json") == ([], [])
    assert check_card(made) == ([], [])


DEFECTS: dict[str, tuple[Callable[[Document], Any], str]] = {
    # The facts' table: mlcroissant passes these in silence, or with a warning
    "no name": (without("name"), "'name' is missing"),
    "no description": (without("description"), "'description' is missing"),
    "no url": (without("url"), "'url' is missing"),
    "no creator": (without("creator"), "'creator' is missing"),
    "no distribution": (without("distribution"), "'distribution' is missing"),
    "no recordSet": (without("recordSet"), "'recordSet' is missing"),
    "no license": (without("license"), "'license' is missing"),
    "no datePublished": (without("datePublished"), "'datePublished' is missing"),
    "no version": (without("version"), "'version' is missing"),
    "a sha256 that is none": (lambda d: file_object(d).update(sha256="nothex"),
                              "'shards/00000.tar': sha256 is 'nothex', not 64 hex digits"),
    "a licence in free text": (with_("license", "free for all"), "'license': 'free for all' is no SPDX identifier"),
    "a licence nearly right": (with_("license", "CC-BY-4"),
                               "'license': 'CC-BY-4' is no SPDX identifier; did you mean 'CC-BY-4.0'?"),
    "a malformed url": (with_("url", "htp:/example"), "'url': 'htp:/example' is no http:// or https:// address"),
    "an unknown rai key": (with_("rai:dataBias", "x"), "no property 'rai:dataBias' is known; did you mean 'rai:dataBiases'?"),
    # … and these it finds too
    "no sha256": (lambda d: file_object(d).pop("sha256"), "'shards/00000.tar': sha256 is None, not 64 hex digits"),
    "a FileSet without includes": (lambda d: file_set(d).pop("includes"), "'rows-files': 'includes' is missing"),
    "a field without dataType": (lambda d: field(d).pop("dataType"),
                                 "'rows/num_chars': dataType None does not fit the column's, which is cr:Int32"),
    "a date that is none": (with_("datePublished", "30.11.2026"), "'datePublished': '30.11.2026' is no ISO 8601 date"),
    "a day that never was": (with_("datePublished", "2026-02-30"), "'datePublished': '2026-02-30' is no ISO 8601 date"),
    "no conformsTo": (without("conformsTo"), "'conformsTo' is missing"),
    # Ours
    "another standard": (with_("conformsTo", ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]),
                         "'conformsTo' does not name http://mlcommons.org/croissant/1.1"),
    "no context": (without("@context"), "'@context' is missing"),
    "another context": (with_("@context", {**CONTEXT, "rai": "http://example.org/"}),
                        "'@context' is not Croissant 1.1's: 'rai' differs"),
    "another type": (with_("@type", "sc:Thing"), "'@type' is 'sc:Thing', not 'sc:Dataset'"),
    "a version of two parts": (with_("version", "1.0"), "'version': '1.0' is not MAJOR.MINOR.PATCH"),
    "a key in English spelling": (with_("licence", "MIT"), "no property 'licence' is known; did you mean 'license'?"),
    "an open TODO": (with_("rai:dataBiases", ["TODO-HUMAN"]), "'rai:dataBiases' still says TODO-HUMAN"),
    "no use cases": (without("rai:dataUseCases"), "'rai:dataUseCases' is missing"),
    "a creator without a name": (with_("creator", [{"@type": "sc:Person"}]),
                                 "'creator': {'@type': 'sc:Person'} is no sc:Person or sc:Organization with a name"),
    "another sha256": (lambda d: file_object(d).update(sha256=SHA), "'shards/00000.tar': the file's sha256 is another one"),
    "another size": (lambda d: file_object(d, "shards/manifest.json").update(contentSize="1 B"),
                     "'shards/manifest.json': contentSize says 1 B and the file has SIZE B"),
    "a size without a unit": (lambda d: file_object(d).update(contentSize="9 kB"),
                              "'shards/00000.tar': contentSize is '9 kB', not like '1234 B'"),
    "a file left out": (lambda d: d["distribution"].remove(file_object(d, "shards/manifest.json")),
                        "the file shards/manifest.json is not in 'distribution'"),
    "a file there is not": (lambda d: d["distribution"].append({**file_object(d), "@id": "x", "contentUrl": "shards/9.tar"}),
                            "'x': the dataset has no file 'shards/9.tar'"),
    "a file outside": (lambda d: d["distribution"].append({**file_object(d), "@id": "x", "contentUrl": "../../etc/passwd"}),
                       "'x': the dataset has no file '../../etc/passwd'"),
    "an @id twice": (lambda d: d["distribution"].append(file_object(d)), "two things have the @id 'shards/00000.tar'"),
    "a set that matches nothing": (lambda d: file_set(d).update(includes="rows/*.parquet"),
                                   "'rows-files': no file of the dataset matches rows/*.parquet"),
    "a set in no container": (lambda d: file_set(d).update(containedIn={"@id": "gone"}),
                              "'rows-files': containedIn names 'gone', which is not in 'distribution'"),
    "a source that does not resolve": (lambda d: field(d)["source"].update(fileSet={"@id": "gone"}),
                                       "'rows/num_chars': its source 'gone' is not in 'distribution'"),
    "a column there is not": (lambda d: d["recordSet"][0]["field"].append(
        {**field(d), "@id": "rows/x", "source": {"fileSet": {"@id": "rows-files"}, "extract": {"column": "num_char"}}}),
        "'rows/x': the tables have no column 'num_char'; did you mean 'num_chars'?"),
    "a column left out": (lambda d: d["recordSet"][0]["field"].remove(field(d)), "the column 'num_chars' is not in 'recordSet'"),
    "a type that does not fit": (lambda d: field(d).update(dataType="sc:Text"),
                                 "'rows/num_chars': dataType sc:Text does not fit the column's, which is cr:Int32"),
    "a key that is no field": (lambda d: d["recordSet"][0].update(key={"@id": "rows/id"}),
                              "'rows': its key 'rows/id' is no field"),
    "a reference to no field": (lambda d: field(d).update(references={"@id": "x/y"}),
                                "'rows/num_chars': it references 'x/y', which is no field"),
    "another number of rows": (lambda d: d["size"].update(value=20), "'size' says 20 rows and the tables hold 19"),
}


@pytest.mark.parametrize(("breaks", "line"), DEFECTS.values(), ids=DEFECTS.keys())
def test_every_defect_is_one_line(document: Document, dataset: Dataset, breaks: Callable[[Document], Any], line: str) -> None:
    size = file_object(document, "shards/manifest.json")["contentSize"].split()[0]
    breaks(document)
    assert list(problems(document, dataset))[:1] == [line.replace("SIZE", size)]


PASSED = ["no name", "no description", "no url", "no creator", "no distribution", "no recordSet", "a sha256 that is none",
          "a licence in free text", "a malformed url", "an unknown rai key", "another sha256", "a file left out", "an open TODO"]


@pytest.mark.parametrize("defect", PASSED)
def test_mlcroissant_passes_what_ours_refuses(document: Document, tmp_path: Path, defect: str) -> None:
    DEFECTS[defect][0](document)
    if defect == "no distribution":
        document.pop("recordSet")       # a field without its source is all that it would miss
    (tmp_path / "croissant.json").write_text(json.dumps(document))
    assert mlcroissant_says(tmp_path / "croissant.json") == ([], [])


@pytest.mark.parametrize(("defect", "word"), [("no sha256", "sha256"), ("a FileSet without includes", "includes"),
                                              ("a date that is none", "30.11.2026")])
def test_what_mlcroissant_says_is_passed_on(document: Document, tmp_path: Path, defect: str, word: str) -> None:
    DEFECTS[defect][0](document)
    (tmp_path / "croissant.json").write_text(json.dumps(document))
    errors, _ = mlcroissant_says(tmp_path / "croissant.json")
    assert len(errors) == 1 and word in errors[0] and "\n" not in errors[0]


def test_no_document_at_all(dataset: Dataset) -> None:
    assert list(problems([], dataset)) == ["is no JSON object"]
    assert "'name' is missing" in list(problems({}, dataset))


def test_a_changed_file_is_found(run: Path) -> None:
    tar = run / "shards" / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    (run / "shards" / "00000_stats.json").unlink()
    shutil.copy(run / "shards" / "00001_stats.json", run / "shards" / "00002_stats.json")
    wrong, _ = check_card(run)
    croissant = run / "card" / "croissant.json"
    assert f"{croissant}: 'shards/00001.tar': the file's sha256 is another one" in wrong
    assert f"{croissant}: 'shards/00000_stats.json': the file 00000_stats.json is not there" in wrong
    assert f"{croissant}: 'shards/00002_stats.json': the file's sha256 is another one" in wrong
    (run / "shards" / "00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=f"^cannot read {run}/shards/00000.parquet: "):
        check_card(run)


def test_a_table_with_other_rows_is_found(run: Path) -> None:
    path = run / "shards" / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array([0, 0, *range(2, len(table))])), path)
    folder = finished(run)
    assert conserved(folder, open_dataset(folder, True)) == "the tables do not hold the rows that were kept of source shard 0"


def test_every_column_has_a_type() -> None:
    kinds = {pa.int8(): "cr:Int8", pa.uint64(): "cr:UInt64", pa.float32(): "cr:Float32", pa.bool_(): "sc:Boolean",
             pa.string(): "sc:Text", pa.timestamp("us", "UTC"): "sc:DateTime", pa.date32(): "sc:Date", pa.time64("us"): "sc:Time",
             pa.binary(): "sc:Text", pa.struct([("a", pa.int8())]): "sc:StructuredValue"}
    assert {k: data_type("x", k)["dataType"] for k in kinds} == kinds
    assert data_type("tags", pa.list_(pa.string())) == {"dataType": "sc:Text", "isArray": True, "arrayShape": "-1"}
    assert data_type("url", pa.string()) == {"dataType": "sc:URL"}


def test_the_lists_are_whole() -> None:
    assert len(RAI_KEYS) == 20
    assert {"CC0-1.0", "CC-BY-4.0", "Apache-2.0", "MIT", "ODC-By-1.0", "CDLA-Permissive-2.0"} <= spdx()
    assert not {"GPL-3.0", "cc-by-4.0", "free"} & spdx()


def test_lineage_names_steps_source_and_run(document: Document, made: Path) -> None:
    run = files.read_json(made / "run.json")
    activities = document["prov:wasGeneratedBy"]
    assert activities[0]["@id"] == f"urn:curate:run:{run['chain']}"
    assert activities[1]["prov:label"] == "caption_length"
    assert activities[1]["description"] == "step caption_length; version 1; reads caption; adds num_chars, num_words".replace(
        "; version", " version")
    assert [d["prov:label"] for d in document["prov:wasDerivedFrom"]] == ["the source as it was read", "00000.tar"]
