"""Captions with a listed word, and urls on a listed domain."""

import re
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from curate.captions.words import read_list
from curate.errors import UserError
from curate.step import File, bool_, step, string

HOST, LONGEST_HOST = re.compile(r"[\w-]+(\.[\w-]+)*"), 253


@step(adds={"blocked_word": string, "blocked_domain": string, "is_blocked": bool_}, batch=10_000)
class Blocklist:
    """Whether the caption holds a listed word or phrase or the url lies on a listed domain, and the first entry of each, or null.

    COYO-700M (README) drops captions by three public profanity lists, LAION-400M (its crawler) urls by domain; the lists are the
    user's, one entry a line, and how to match is our choice: whole words in any case and Unicode form (NFKC, case folded, no
    invisible characters), the words of a phrase whatever stands between them, a domain with all below it.
    """

    def __init__(self, *, words: File | None = None, domains: File | None = None) -> None:
        if words is None and domains is None:
            raise UserError("step 'blocklist' needs a list: words: FILE, domains: FILE, or both")
        self._phrases: dict[tuple[str, ...], str] = {}
        self._lengths: dict[str, list[int]] = {}
        self._domains: dict[str, str] = {}
        for where, entry in read_list("blocklist", words) if words else ():
            phrase = tuple(_words(pa.array([entry]))[0])
            if not phrase:
                raise UserError(f"'{entry}' has no letter or digit to match", where)
            self._phrases.setdefault(phrase, entry)
            self._lengths[phrase[0]] = sorted({len(phrase), *self._lengths.get(phrase[0], ())}, reverse=True)
        for where, entry in read_list("blocklist", domains) if domains else ():
            name = entry.removeprefix("*.")
            host = _host(f"//{name}") if HOST.fullmatch(name) else ""
            if not host:
                raise UserError(f"'{entry}' is no domain like example.com", where)
            self._domains[host] = entry

    def __call__(self, caption: pa.Array, url: list[str | None] | None) -> dict[str, list[str | None] | list[bool]]:
        word = [self._word_in(words) for words in _words(caption)]
        domain = [self._domain_of(address) for address in url or [None] * len(caption)]
        is_blocked = [w is not None or d is not None for w, d in zip(word, domain, strict=True)]
        return {"blocked_word": word, "blocked_domain": domain, "is_blocked": is_blocked}

    def _word_in(self, words: list[str]) -> str | None:
        spans = (tuple(words[i : i + n]) for i, word in enumerate(words) for n in self._lengths.get(word, ()))
        return next((self._phrases[span] for span in spans if span in self._phrases), None)

    def _domain_of(self, url: str | None) -> str | None:
        labels = _host(url or "")[-LONGEST_HOST:].split(".")
        parents = (".".join(labels[i:]) for i in range(len(labels)))
        return next((self._domains[parent] for parent in parents if parent in self._domains), None)


def _words(text: pa.Array) -> list[list[str]]:
    """The folded words of each text. Marks after the 16th on one letter are cut: to bring many in order takes quadratic time."""
    seen = pc.replace_substring_regex(text, r"\p{Cf}+", "")
    short = pc.replace_substring_regex(seen, r"(\p{M}{16})\p{M}+", r"\1")
    spaced = pc.replace_substring_regex(pc.utf8_normalize(short, form="NFKC"), r"[^\p{L}\p{M}\p{N}]+", " ")
    return [line.casefold().split() for line in spaced.to_pylist()]


def _host(url: str) -> str:
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
        return host if host.isascii() else host.encode("idna").decode()
    except ValueError:
        return ""

