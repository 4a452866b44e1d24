"""Which url is next: hosts take turns, and none is given more than `per_host` at once, over all shards of a fetcher.

What a crowded host has left stays in its shard's list and costs neither a task nor a connection, and the room that it cannot use
goes to the next shard. The lowest shard comes first everywhere: shards are done one after another as far as hosts allow.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

Item = tuple[str, str]
"""(image_id, url)"""


class Crowd:
    """What all shards of a fetcher have under way, by host and in all, and what of it is not sealed yet; who waits is told.

    At most `per_host` urls are under way at a host and `under_way` in all. Where `unsealed` pictures or `unsealed_bytes` of them
    wait to be sealed, the shard that has most is to seal them. The sum of both counts is never exceeded.
    """

    def __init__(self, per_host: int, under_way: int, unsealed: int, unsealed_bytes: int) -> None:
        self._per_host, self._most_under_way = max(1, per_host), max(1, under_way)
        self._most_unsealed, self._most_bytes = max(1, unsealed), unsealed_bytes
        self._under_way: Counter[str] = Counter()
        self._num_under_way = 0
        self._for_host: dict[str, set[Turns]] = {}
        self._for_room: set[Turns] = set()
        self._unsealed: dict[Turns, tuple[int, int]] = {}

    def is_full(self, who: "Turns") -> bool:
        """Whether no url of this shard may go anywhere, or a lower shard is first; then it is woken when that is over."""
        held = self._num_under_way + sum(images for images, _ in self._unsealed.values())
        if self._num_under_way < self._most_under_way and held < self._most_under_way + self._most_unsealed \
                and not any(other.order < who.order for other in self._for_room):
            return False
        self._for_room.add(who)
        return True

    def enter(self, host: str, who: "Turns") -> bool:
        """Whether one more url went to the host; where not, the shard is told when one of the host's urls is done."""
        if self._under_way[host] >= self._per_host:
            self._for_host.setdefault(host, set()).add(who)
            return False
        self._under_way[host] += 1
        self._num_under_way += 1
        return True

    def leave(self, host: str) -> None:
        """A url is done: the lowest shard that waits for its host is told, and the lowest that waits for room."""
        self._under_way[host] -= 1
        self._num_under_way -= 1
        if not self._under_way[host]:
            del self._under_way[host]
        self.tell(host)
        self._tell_room()

    def tell(self, host: str) -> None:
        """Tell the lowest shard that waits for a host."""
        if waiting := self._for_host.get(host):
            waiting.remove(lowest := min(waiting, key=lambda turns: turns.order))
            if not waiting:
                del self._for_host[host]
            lowest.freed(host)

    def hold(self, who: "Turns", images: int, num_bytes: int) -> None:
        """So much of a shard is not sealed now."""
        self._unsealed[who] = images, num_bytes
        if not images:
            del self._unsealed[who]
            self._tell_room()
        if (most := self._to_seal()) is not None and most is not who:
            most.wake()

    def must_seal(self, who: "Turns") -> bool:
        """Whether there is too much that is not sealed, and this shard has most of it."""
        return self._to_seal() is who

    def forget(self, who: "Turns") -> None:
        """A shard is over: it waits for nothing and holds nothing."""
        for host in [host for host, waiting in self._for_host.items() if who in waiting]:
            self._for_host[host].remove(who)
            if not self._for_host[host]:
                del self._for_host[host]
        self._for_room.discard(who)
        self.hold(who, 0, 0)

    def _to_seal(self) -> "Turns | None":
        images, num_bytes = (sum(column) for column in zip((0, 0), *self._unsealed.values(), strict=True))
        if images < self._most_unsealed and num_bytes < self._most_bytes:
            return None
        return max(self._unsealed, key=lambda turns: (self._unsealed[turns][images < self._most_unsealed], -turns.order))

    def _tell_room(self) -> None:
        if self._for_room:
            self._for_room.remove(lowest := min(self._for_room, key=lambda turns: turns.order))
            lowest.wake()


class Turns:
    """The items of one shard that wait. `wake` is called when there may be one to take again, or something is to be sealed."""

    def __init__(self, items: Sequence[Item], crowd: Crowd, wake: Callable[[], None], order: int = 0) -> None:
        self.crowd, self.wake, self.order = crowd, wake, order
        self._items: dict[str, list[Item]] = defaultdict(list)
        for item in reversed(items):
            self._items[_host(item[1])].append(item)
        self._next = deque(dict.fromkeys(_host(url) for _, url in items))

    @property
    def left(self) -> bool:
        """Whether any item waits."""
        return bool(self._items)

    def take(self) -> Item | None:
        """The next item of the host whose turn it is; None where there is none or no room for it."""
        while self._next and not self.crowd.is_full(self):
            host = self._next.popleft()
            if self.crowd.enter(host, self):
                item = self._items[host].pop()
                if self._items[host]:
                    self._next.append(host)
                else:
                    del self._items[host]
                return item
        return None

    def freed(self, host: str) -> None:
        """One of the host's urls is done."""
        self._next.append(host)
        self.wake()

    def done(self, url: str) -> None:
        """An item that was taken is done."""
        self.crowd.leave(_host(url))

    def close(self) -> None:
        """Take no more. Hosts that it was told of and did not take are offered to the next."""
        self.crowd.forget(self)
        told, self._next = self._next, deque()
        for host in told:
            self.crowd.tell(host)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
