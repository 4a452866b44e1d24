"""`card/card.yaml`: what a card says that no run can know. Written once as a template, read ever after, never overwritten."""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from curate.document import read_yaml
from curate.errors import UserError, did_you_mean

TODO = "TODO-HUMAN"
TEMPLATE = f"""\
# What the card of this dataset says that no run can know. `curate card` writes this file once and only reads it afterwards.
# Wherever {TODO} stays, `curate card --check` fails and `curate publish` refuses, but for `--draft`.

name: {TODO}                # short, like my-pairs-1m
description: {TODO}         # what the rows are, in a sentence or two
url: {TODO}                 # the dataset's page: http:// or https://
license: {TODO}             # an SPDX identifier like CC-BY-4.0; of what is published, not of the pictures behind the urls
creator: {TODO}             # a name, or {{name: …, type: Person, url: https://…}}, or a list of them
datePublished: {TODO}       # like 2026-11-30
version: 1.0.0                  # MAJOR.MINOR.PATCH: other rows 2.0.0, more rows or columns 1.1.0, other files 1.0.1

# May be left out:
# pretty_name: My pairs         # the card's title; without it the name
# citeAs: "@misc{{…}}"            # BibTeX
# publisher: …                  # as creator
# keywords: [image-text]
# languages: [en]               # without it those that the step `language` found in at least 1 % of the captions
# task_categories: [image-to-text, text-to-image]               # Hugging Face's names
# dataCollectionType: [Web Scraping]                            # RAI's names; without it by the kind of source
"""
REQUIRED = ("name", "description", "url", "license", "creator", "datePublished", "version")
TEXTS = ("name", "description", "url", "datePublished", "version", "pretty_name", "citeAs")
LISTS = ("license", "keywords", "languages", "task_categories", "dataCollectionType")
PARTIES = ("creator", "publisher")
PARTY_KEYS = ("name", "type", "url", "email")
PARTY_TYPES = ("Organization", "Person")
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
NAME = re.compile(r"[^\s/\\][^/\\\n]{0,119}")
KEYS = (*TEXTS, *LISTS, *PARTIES)


@dataclass(frozen=True)
class CardSettings:
    """The checked content of a card.yaml; a value may still be TODO-HUMAN."""

    texts: Mapping[str, str]
    lists: Mapping[str, tuple[str, ...]]
    parties: Mapping[str, tuple[Mapping[str, str], ...]]

    @property
    def todos(self) -> list[str]:
        """The keys that still wait for a human."""
        parties = {k: [v for a in found for v in a.values()] for k, found in self.parties.items()}
        values: dict[str, list[str]] = {**{k: [v] for k, v in self.texts.items()},
                                        **{k: list(v) for k, v in self.lists.items()}, **parties}
        return [k for k in KEYS if any(TODO in v for v in values.get(k, ()))]

    @property
    def title(self) -> str:
        """What the card is called."""
        return self.texts.get("pretty_name") or self.texts["name"]


def read(path: Path) -> CardSettings:
    """The settings in a card.yaml. Raises UserError, one line with file and line, for what cannot stand there."""
    if not re.search(r"(?m)^\w+\s*:", path.read_text(errors="replace")):
        raise UserError(f"{path} holds no 'key: value'; remove it and `curate card` writes its template again")
    document, lines = read_yaml(path)
    for key in document:
        if key not in KEYS:
            raise UserError(f"no key '{key}'{did_you_mean(str(key), KEYS)}", f"{path}:{lines.get((key,), 1)}")
    for key in REQUIRED:
        if document.get(key) in (None, "", []):
            raise UserError(f"{path}: '{key}' is missing; write {TODO} where it is not known yet")
    given = {k: v for k, v in document.items() if v is not None}
    try:
        return CardSettings({k: _text(k, given[k]) for k in TEXTS if k in given},
                            {k: _list(k, given[k]) for k in LISTS if k in given},
                            {k: _parties(k, given[k]) for k in PARTIES if k in given})
    except _Wrong as error:
        raise UserError(str(error), f"{path}:{lines.get((error.key,), 1)}") from None


class _Wrong(Exception):
    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


def _text(key: str, value: Any) -> str:
    if isinstance(value, datetime.date):
        value = value.isoformat()
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(key, f"takes text, not {value!r}" + ("; put it in quotes" if isinstance(value, int | float) else ""))
    text = value.strip()
    if TODO not in text and (wrong := _form(key, text)):
        raise _Wrong(key, wrong)
    return text


def _form(key: str, text: str) -> str:
    """What is wrong with the form of a text, or nothing."""
    if key == "url" and not is_url(text):
        return f"'{text}' is no http:// or https:// address"
    if key == "version" and not VERSION.fullmatch(text):
        return f"'{text}' is not MAJOR.MINOR.PATCH, like 1.0.0"
    if key == "datePublished" and not is_date(text):
        return f"'{text}' is no date like 2026-11-30"
    if key in ("name", "pretty_name") and not NAME.fullmatch(text):
        return "takes one line of at most 120 characters without slashes"
    return ""


def _list(key: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise _Wrong(key, f"takes text or a list of texts, not {value!r}")
    return tuple(v.strip() for v in values)


def _parties(key: str, value: Any) -> tuple[Mapping[str, str], ...]:
    return tuple(_party(key, v) for v in (value if isinstance(value, list) else [value]))


def _party(key: str, value: Any) -> Mapping[str, str]:
    if isinstance(value, str) and value.strip():
        return {"name": value.strip(), "type": "Organization"}
    if not isinstance(value, dict) or not all(isinstance(v, str) and v.strip() for v in value.values()) or "name" not in value:
        raise _Wrong(key, f"takes a name or {{name: …, type: …, url: …, email: …}}, not {value!r}")
    for name in value:
        if name not in PARTY_KEYS:
            raise _Wrong(key, f"has no '{name}'{did_you_mean(str(name), PARTY_KEYS)}")
    party = {"type": "Organization", **{k: v.strip() for k, v in value.items()}}
    if party["type"] not in PARTY_TYPES:
        raise _Wrong(key, f"type is Organization or Person, not '{party['type']}'")
    if "url" in party and TODO not in party["url"] and not is_url(party["url"]):
        raise _Wrong(key, f"'{party['url']}' is no http:// or https:// address")
    return party


def is_url(text: str) -> bool:
    """Whether a text is an absolute http(s) address with a host and without spaces or control characters."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = not any(c.isspace() or ord(c) < 33 or c in '<>"{}|\\^`' for c in text)
    host = re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?|[0-9a-f:.]+", parts.hostname or "")
    return plain and parts.scheme in ("http", "https") and host is not None and port != 0


def is_date(text: str) -> bool:
    """Whether a text is an ISO 8601 date, or a date with a time, of a day that exists."""
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return re.match(r"\d{4}-\d{2}-\d{2}", text) is not None
