"""What a step that uses a head checks while the pipeline is checked: the head is whole, gives what the step adds, and reads the
embeddings it was made for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate.errors import UserError
from curate.heads.head import Head, json_of, read
from curate.step import Completes, Maker


def completes(step: str, column: str | None) -> Completes:
    """For `@step(completes=…)`: `file` becomes the path of its head.json, whose content holds the hash of all numbers; without
    one, `model` and `pretrained` become those of the embeddings that are read. A head for other embeddings is refused."""
    def check(settings: Mapping[str, Any], makers: Mapping[str, Maker]) -> Mapping[str, Any]:
        maker = makers.get("image_emb")
        if maker is not None and maker.loop:
            raise UserError(f"step '{step}' reads embeddings of the weights that the loop trains; what is learnt for one set of "
                            "weights says nothing of others, so it takes a frozen clip_embed")
        if settings["file"] is None:
            return {**settings, **_same(step, settings, maker)}
        for name in ("model", "pretrained"):
            if settings.get(name) is not None:
                raise UserError(f"step '{step}': '{name}' belongs to prompts; a head's file says it itself")
        path = json_of(Path(settings["file"]))
        _check(step, read(path), path, column, maker)
        return {**settings, "file": path}
    return check


def _check(step: str, head: Head, path: Path, column: str | None, maker: Maker | None) -> None:
    if column is not None and head.card.output.column != column:
        raise UserError(f"step '{step}': {path} gives {head.card.output.column}, not {column}; the step head takes any")
    theirs = embedder(maker)
    wanted = (head.card.input.model, head.card.input.pretrained)
    if theirs is not None and _plain(*theirs) != _plain(*wanted):
        raise UserError(f"step '{step}': {path} takes embeddings of {_name(*wanted)}, these are of {_name(*theirs)}; if "
                        "those are the same weights by another name, write that name into the file")


def _same(step: str, settings: Mapping[str, Any], maker: Maker | None) -> dict[str, str]:
    """The model and weights for prompts: those of the embeddings, which settings may repeat but not contradict."""
    given = {n: settings[n] for n in ("model", "pretrained") if settings[n] is not None}
    theirs = embedder(maker)
    found = {**dict(zip(("model", "pretrained"), theirs, strict=True)), **given} if theirs else given
    if len(found) < 2:
        raise UserError(f"step '{step}': nothing says whose embeddings these are; give model and pretrained, or a head as file")
    if theirs is not None and _plain(*found.values()) != _plain(*theirs):
        raise UserError(f"step '{step}': prompts of {_name(**found)} for embeddings of {_name(*theirs)}")
    if found["pretrained"] == "loop":
        raise UserError(f"step '{step}' takes frozen weights, not pretrained: loop")
    return {n: str(v) for n, v in found.items()}


def embedder(maker: Maker | None) -> tuple[str, str] | None:
    """(model, pretrained) of the step that made the embeddings; None where it does not say, or no step made them."""
    named = [maker.settings.get(n) if maker else None for n in ("model", "pretrained")]
    return (str(named[0]), str(named[1])) if all(named) else None


def _plain(model: str, pretrained: str) -> tuple[str, str]:
    return model.replace("/", "-"), pretrained


def _name(model: str, pretrained: str) -> str:
    return f"{model} ({pretrained})"
