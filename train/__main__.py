"""`python -m train FILE [--set key=value] [--out DIR]`, or `torchrun --nproc-per-node N -m train FILE` for several processes."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.config import Config, load
from train.errors import Stopped, TrainError
from train.purpose import finished_before


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the file says; the exit code. A mistake is one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        if options.models:
            return _list_models()
        if options.file is None:
            _parser().error("say which file of settings, or --models")
        config = load(options.file, options.set)
        out = options.out or Path("runs") / options.file.stem
        finished = (out / "model").exists()
        figures = trained(config, out)
    except TrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return Stopped.exit_code
    if os.environ.get("RANK", "0") == "0":
        for line in ended(out / "model", finished):
            print(line)
        for name, value in figures.items():
            print(f"{name}  {value:.4f}")
        print(f"model: {out / 'model'}")
    return 0


def trained(config: Config, out: Path) -> dict[str, float]:
    """The figures of the training, which need not be done again where `out` has it."""
    card = finished_before(config, out)
    if card is not None:
        return dict(card["figures"])
    from train.log import Progress
    from train.loop import train

    def show(progress: Progress) -> None:
        print(progress.line, flush=True)

    return train(config, out, show).figures


def ended(model: Path, finished: bool) -> Iterator[str]:
    """What a person should know of a training that is over, besides its figures."""
    from train.files import read_json
    from train.models.folder import CARD

    card = read_json(model / CARD) or {}
    if finished:
        yield "it was finished before, and nothing is trained"
    if "last_step" in card:
        yield f"exported: step {card['step']} of the {card['last_step']} there were, the best by {card['chosen_by']}"
    if "alpha" in card:
        yield f"exported: {card['alpha']:g} of the way from the start to there (wise_ft)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train",
                                     description="Train a CLIP, SigLIP, CoCa or BLIP model on image-text shards.")
    parser.add_argument("file", type=Path, nargs="?", help="YAML file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a setting, like lr=1e-3 or eval.every=100")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for checkpoints, logs and the model (runs/NAME)")
    parser.add_argument("--models", action="store_true", help="list the models there are")
    return parser


def _list_models() -> int:
    import open_clip

    import train.models.weights  # noqa: F401  adds ours
    from train.models.blip_weights import names

    print("\n".join([*open_clip.list_models(), *names()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
