"""The operator's own list of who said no: by mail, in a contract, by a court. Matched before anybody is asked anything.

    # one entry a line
    example.com                     the domain and all below it, whatever port
    https://example.org/photos      that address and all below it, with or without TLS
    example.org/user_42*            all that begins so
"""

import re
from collections.abc import Iterable
from pathlib import Path

from yarl import URL

from curate.errors import UserError
from curate.fetching.addresses import Failure, parse_url
from curate.fetching.robots import canonical

_DOMAIN = re.compile(r"[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)*")
_COMMENT = re.compile(r"(?:^|\s)#.*")
ALLOWED = "a line is a domain like example.com, or a url like https://example.com/photos/, with a * at its end or none"


class OptOutList:
    """The entries of a file, about 200 bytes of memory each. Raises UserError for a file or a line that cannot be read."""

    def __init__(self, path: Path, lines: Iterable[tuple[int, str]] | None = None) -> None:
        """`lines`, by number, where somebody has read them already."""
        self._domains: dict[str, str] = {}
        self._paths: dict[str, dict[str, tuple[str, bool]]] = {}
        for number, line in _lines(path) if lines is None else lines:
            if entry := _COMMENT.sub("", line).strip():
                try:
                    self._add(entry)
                except Failure:
                    raise UserError(f"'{entry}': {ALLOWED}", f"{path}:{number}") from None
        self._lengths = {site: sorted({len(path) for path in paths}) for site, paths in self._paths.items()}

    def match(self, url: URL) -> str | None:
        """The entry that a url falls under, as it stands in the list, or None."""
        labels = _host(url).split(".")
        parents = (".".join(labels[i:]) for i in range(len(labels)))
        domain = next((self._domains[parent] for parent in parents if parent in self._domains), None)
        return domain or self._match_path(url)

    def match_text(self, url: str) -> str | None:
        """As `match`; None for what is no url that could be asked for."""
        try:
            return self.match(parse_url(url))
        except Failure:
            return None

    def _match_path(self, url: URL) -> str | None:
        paths = self._paths.get(_site(url))
        if paths is None:
            return None
        path = canonical(url.raw_path_qs)
        for length in self._lengths[_site(url)]:
            entry, begins = paths.get(path[:length], ("", False))
            if entry and (begins or length == len(path) or path[length - 1] == "/" or path[length] in "/?"):
                return entry
        return None

    def _add(self, entry: str) -> None:
        """Raises Failure."""
        if "/" not in entry:
            name = entry.removeprefix("*.")
            if not _DOMAIN.fullmatch(name):
                raise Failure("bad_url", entry)
            self._domains[_host(parse_url(f"http://{name}"))] = entry
            return
        stem = entry.removesuffix("*")
        if "*" in stem:
            raise Failure("bad_url", entry)
        url = parse_url(stem if "://" in stem else f"http://{stem}")
        self._paths.setdefault(_site(url), {})[canonical(url.raw_path_qs)] = (entry, stem != entry)


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        return enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from None


def _host(url: URL) -> str:
    return (url.raw_host or "").lower().rstrip(".")


def _site(url: URL) -> str:
    """Host, and port where it is not that of the scheme."""
    return _host(url) if url.is_default_port() else f"{_host(url)}:{url.port}"
