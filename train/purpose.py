"""What a training is, and whether a folder has it finished: told, where possible, without torch, which takes seconds to load."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import Config
from train.data import Index, decontaminated, open_data
from train.errors import ConfigError
from train.files import read_json
from train.models.folder import CARD, versions, weights_digest

FORMAT = 1


@dataclass(frozen=True)
class Purpose:
    """What a training is: a checkpoint of another purpose is not gone on from."""

    settings: Mapping[str, Any]
    init: str
    """digest of the weights at the start"""
    start: str | None
    """what they are called, see `start_of`"""
    data: Mapping[str, Any]
    """digest, pictures, captions"""

    def card(self, model: str, step: int, samples_seen: int, weights: str, figures: Mapping[str, float]) -> dict[str, Any]:
        """The content of `train.json`."""
        return {"format": FORMAT, "model": model, "step": step, "samples_seen": samples_seen, "weights": weights,
                "init": self.init, **({"start": self.start} if self.start else {}), "data": dict(self.data),
                "settings": dict(self.settings), "figures": dict(figures)}

    def check(self, card: Mapping[str, Any], folder: Path) -> None:
        """Raises ConfigError where the checkpoint in `folder` was made for another purpose."""
        if card.get("format") != FORMAT:
            raise ConfigError(f"{folder} is a checkpoint of another version of this program")
        there: Mapping[str, Any] = card["settings"]
        differ = list(_differences(there, self.settings))
        if card["data"]["digest"] != self.data["digest"]:
            differ.append("other data")
        if card["init"] != self.init:
            differ.append("other initial weights")
        if differ:
            raise ConfigError(f"{folder} holds another training ({'; '.join(differ)}); choose another --out, or remove it")

    def finished(self, out: Path) -> dict[str, Any] | None:
        """The card of the finished model of this training in `out`, or None. Raises ConfigError for another training's."""
        card = read_json(out / "model" / CARD)
        if card is not None:
            self.check(card, out / "model")
        return card


def index_of(config: Config) -> Index:
    """The data of a training. Raises DataError."""
    return open_data(config.data, config.curriculum.by if config.curriculum else None,
                     config.distill.columns if config.distill else ())


def purpose_of(config: Config, init: str, index: Index) -> Purpose:
    """Of a training that starts from weights of the digest `init`. Raises DataError."""
    return Purpose(config.identity(), init, start_of(config), {**index.card, **decontaminated(config.data)})


def start_of(config: Config) -> str | None:
    """What names the same weights again: a seed or a published tag, and the libraries that make them of it. None for files."""
    if config.init is not None and Path(config.init).exists():
        return None
    return f"{config.init or f'random:{config.seed}'} {versions()}"


def finished_before(config: Config, out: Path) -> dict[str, Any] | None:
    """The card of this training, finished in `out`; None where there is none, or where only torch could tell.

    Raises ConfigError for another training's, and DataError.
    """
    card = read_json(out / "model" / CARD)
    if card is None or not _starts_alike(config, card):
        return None
    return purpose_of(config, card["init"], index_of(config)).finished(out)


def _starts_alike(config: Config, card: Mapping[str, Any]) -> bool:
    """Whether it is known without torch that the training of a card began with the weights that this one begins with."""
    start = start_of(config)
    if start is not None:
        return bool(card.get("start") == start)
    init = Path(str(config.init))
    return (init / CARD).is_file() and bool(card.get("init") == weights_digest(config.model, str(init)))


def _differences(there: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for name in sorted({*there, *now}):
        before, after = there.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{within}{name}.")
        elif before != after:
            yield f"{within}{name}: {before} there, {after} now"
