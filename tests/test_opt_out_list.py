"""The operator's list: what a line means, and that it is obeyed before anybody is asked anything, at every hop."""

from pathlib import Path
from typing import Any

import pytest

from curate.errors import UserError
from curate.fetching.fetch import Fetcher, Limits, Outcome
from curate.fetching.opt_out import OptOut
from curate.fetching.opt_out_list import OptOutList
from tests.helpers_http import LOOPBACK, Answer, Site, run, site

IMAGE = Answer(b"\xff\xd8\xff" + bytes(100))


def listed(folder: Path, *lines: str) -> OptOutList:
    (folder / "list.txt").write_text("\ufeff" + "\r\n".join(lines))
    return OptOutList(folder / "list.txt")


@pytest.mark.parametrize(("line", "url", "is_on"), [
    ("example.com", "http://example.com/a", True), ("example.com", "https://img.example.com:8443/a", True),
    ("example.com", "http://example.com./a", True), ("EXAMPLE.com", "http://eXample.com/a", True),
    ("*.example.com", "http://example.com/a", True), ("example.com", "http://myexample.com/a", False),
    ("example.com", "http://example.com.evil.example/", False), ("bücher.de", "http://xn--bcher-kva.de/", True),
    ("10.0.0.1", "http://10.0.0.1:99/x", True), ("localhost", "http://localhost/x", True),
    ("example.com   # by mail of 3 May", "http://example.com/", True), ("# example.com", "http://example.com/", False),
    ("https://example.org/photos", "http://example.org/photos", True),
    ("https://example.org/photos", "https://example.org/photos/a", True),
    ("https://example.org/photos", "https://example.org/photos?a", True),
    ("https://example.org/photos", "https://example.org/photos2", False),
    ("https://example.org/photos/", "https://example.org/photos", False),
    ("https://example.org/photos/", "https://example.org/photos/a", True),
    ("https://example.org/user_4*", "https://example.org/user_42/a", True),
    ("https://example.org/user_4*", "https://example.org/user_5", False),
    ("example.org/photos/", "http://example.org/photos/1", True),
    ("example.org/photos/", "http://www.example.org/photos/1", False),
    ("http://example.org:8080/a", "http://example.org:8080/a", True),
    ("http://example.org:8080/a", "http://example.org/a", False),
    ("https://example.org:443/a", "http://example.org:80/a", True), ("https://example.org/%7Ea", "https://example.org/~a", True),
    ("https://example.org/ä", "https://example.org/%C3%A4", True), ("https://example.org/", "https://example.org/any", True),
    ("https://example.org/a?id=1", "https://example.org/a?id=1", True),
    ("https://example.org/a?id=1", "https://example.org/a?id=12", False),
    ("https://example.org/a?id=1", "https://example.org/a", False),
    ("https://[2606:4700::1]/a", "http://[2606:4700::1]/a/b", True),
])
def test_what_a_line_means(tmp_path: Path, line: str, url: str, is_on: bool) -> None:
    found = listed(tmp_path, "", "# a list", line, "other.example").match_text(url)
    assert found == (line.partition(" ")[0] if is_on else None)


@pytest.mark.parametrize("line", ["exa mple.com", "example.com:80", "https://", "ftp://example.com/a", "https://example.com/*/a",
                                  "/photos", "-x.com", "https://user@example.com/", "a..b", "*"])
def test_a_line_that_means_nothing_is_a_mistake(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError) as error:
        listed(tmp_path, "# one", "example.org", line)
    assert str(error.value) == (f"{tmp_path}/list.txt:3: '{line}': a line is a domain like example.com, or a url like "
                                "https://example.com/photos/, with a * at its end or none")


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^cannot read the list .*gone.txt: "):
        OptOutList(tmp_path / "gone.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="^cannot read the list "):
        OptOutList(tmp_path / "list.txt")


def test_what_is_no_url_is_on_no_list(tmp_path: Path) -> None:
    assert listed(tmp_path, "example.com").match_text("data:image/png;base64,example.com") is None


async def get(url: str, **how: Any) -> Outcome:
    async with Fetcher(Limits(allow_private=LOOPBACK, timeout_seconds=1, deadline_seconds=2, **how)) as fetcher:
        return await fetcher.get(url)


def authority(here: Site) -> str:
    return here.base.removeprefix("http://")


@run
async def test_nobody_is_asked(tmp_path: Path) -> None:
    async with site({"/a": IMAGE, "/b": IMAGE}) as here:
        entry = f"{authority(here)}/a"
        found = await get(here.url("/a"), listed=listed(tmp_path, entry), deny=frozenset(), robots=False)
        assert (found.status, found.error, found.attempts) == ("opt_out", f"opt_out_list: {entry}", 1)
        assert found.said == OptOut("list", entry, f"opt_out_list: {entry}")
        assert not here.asked
        assert (await get(here.url("/b"), listed=listed(tmp_path, entry))).status == "ok"
        assert (await get(here.url("/b"), listed=listed(tmp_path, "127.0.0.1"))).status == "opt_out"


@run
async def test_every_hop_is_looked_up(tmp_path: Path) -> None:
    async with site({"/far": IMAGE}) as there, site({"/a": Answer(b"", 302, {"Location": there.url("/far")})}) as here:
        found = await get(here.url("/a"), listed=listed(tmp_path, f"{authority(there)}/"))
        assert (found.status, found.final_url) == ("opt_out", there.url("/far"))
        assert here.asked["/a"] == 1 and not there.asked
