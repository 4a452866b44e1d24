"""The pictures of a batch of rows: each read and decoded once, whoever shares it; those in an object store many at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.decoding import images

Ref = Mapping[str, Any]
"""The fields of `curate.step.image`: file, offset, length."""
Place = tuple[str, int]
"""file and offset, which tell pictures apart"""


class Pictures:
    """Gives references their pictures. `ahead` are bytes that were read before, by place (`read_ahead`)."""

    def __init__(self, root: Path, ahead: Mapping[Place, bytes] | None = None) -> None:
        self._root, self._ahead = root, ahead or {}
        self._given: dict[tuple[bool, Place], Any] = {}

    def of(self, refs: Sequence[Ref], raw: bool) -> list[Any]:
        """The stored bytes of each reference (`raw`) or its decoded picture; those that share one get the same object."""
        places = [_place(ref) for ref in refs]
        new = {place: ref for place, ref in zip(places, refs, strict=True) if (raw, place) not in self._given}
        for place, data in self._bytes(new):
            self._given[raw, place] = data if raw else images.decode(data)
        return [self._given[raw, place] for place in places]

    def _bytes(self, refs: Mapping[Place, Ref]) -> Iterator[tuple[Place, bytes]]:
        if refs.keys() <= self._ahead.keys():
            return ((place, self._ahead[place]) for place in refs)
        return zip(refs, images.read_each(list(refs.values()), self._root), strict=True)


def read_ahead(refs: Iterable[Ref], root: Path) -> dict[Place, bytes]:
    """The bytes of those references that lie in object stores, at once: for who then takes the pictures one by one."""
    urls = {_place(ref): ref for ref in refs if "://" in ref["file"]}
    return dict(zip(urls, images.read_each(list(urls.values()), root), strict=True))


def _place(ref: Ref) -> Place:
    return ref["file"], ref["offset"]
