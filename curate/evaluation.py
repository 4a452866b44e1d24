"""`curate evaluate` and `curate export`: a checkpoint by its name, what it is measured on, and what others can read of it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate import files
from curate.certificate import lacking
from curate.errors import UserError


def evaluate_checkpoint(checkpoint: str, model: str | None, settings: Mapping[str, Any],
                        results: Path | None = None) -> list[str]:
    """The figures that `settings`, those of `eval:`, ask for, a line each. With `results` they are appended to that file first,
    and the lines are a table with earlier ones. Raises UserError, or TrainError of `train`."""
    from train.config import from_mapping
    from train.evaluate import evaluate, opened
    from train.results import append, read, record, table

    wanted = {name: value for name, value in settings.items() if value or value == ""}
    if not wanted.keys() & {"images", "retrieval", "captions", "benchmarks"}:
        raise UserError("say what to evaluate on: --images DIR, --retrieval TARS, --captions TARS, --benchmark DIR")
    asked = from_mapping({"data": "none", "samples_seen": 1, **_taught(checkpoint, model), "eval": wanted}).eval
    earlier = read(results) if results is not None else []
    opened(asked)
    loaded = _loaded(checkpoint, model)
    figures = evaluate(loaded, asked)
    if results is None:
        return [f"{name}  {value:.4f}" for name, value in figures.items()]
    line = record(loaded, asked, figures)
    append(results, line)
    return list(table([*earlier, line], line))


def unchecked(checkpoint: str, places: Sequence[str]) -> Iterator[str]:
    """A line for each of these benchmarks that the checkpoint's training data is not known to be free of."""
    yield from lacking(_card(checkpoint).get("data", {}).get("decontaminated"), list(places))


def export_checkpoint(checkpoint: str, model: str | None, out: Path, kind: str) -> list[str]:
    """Write the checkpoint for others; lines that say how far it is from the original. Raises UserError, or TrainError."""
    from train.export import export, lines

    return lines(export(_loaded(checkpoint, model), out, kind, card=_card(checkpoint)), out)


def _taught(checkpoint: str, model: str | None) -> dict[str, str]:
    """The settings of the training that say what captions are written behind; Hugging Face's BLIPs have BLIP's prompt."""
    published = {"loss": "blip_captioner"} if (model or "").startswith("hf-blip:") else {}
    settings = _card(checkpoint).get("settings", published)
    return {name: settings[name] for name in ("loss", "prompt") if name in settings}


def _loaded(checkpoint: str, model: str | None) -> Any:
    from train.models.folder import CARD
    from train.models.weights import load

    card = _card(checkpoint)
    name = model or card.get("model")
    if name is None and "/" in checkpoint and not Path(checkpoint).exists():
        raise UserError(f"no file or folder {checkpoint}")
    if name is None and (Path(checkpoint) / "model" / CARD).exists():
        raise UserError(f"{checkpoint} is a training; its model is {Path(checkpoint) / 'model'}")
    if name is None:
        raise UserError(f"{checkpoint} does not say which model it is; name it with --model")
    return load(name, checkpoint)


def _card(checkpoint: str) -> Mapping[str, Any]:
    """What train.json says of a checkpoint of ours; nothing of anybody else's. Raises UserError, or DataError of `train`, where
    it is not what a training writes."""
    from train.data import checked_entries
    from train.models.folder import CARD

    path = Path(checkpoint) / CARD
    try:
        card = files.read_json(path) if path.is_file() else {}
    except ValueError:
        card = None
    if not isinstance(card, dict) or not isinstance(card.get("data", {}), dict):
        raise UserError(f"{path}: not what a training writes")
    checked_entries(path, card.get("data", {}).get("decontaminated", []))
    return card
