"""The command line. Thin: it reads arguments, opens what a verb needs (imported there, so `--help` stays light), prints.

A mistake is one line on stderr and exit code 2, a run that has to stop one line and 3, an interrupt 130. Nothing prints a
traceback but a fault of the program itself.
"""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from curate.errors import CurateError, UserError
from train.errors import TrainError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Turn rows of (url, alt text), or tars, into an image-text dataset: measure, decide, build shards.")
INTERRUPTED = 130
BUILD, LOOK, MAINTAIN = "Build", "Look", "Maintain"

PipelineFile = Annotated[Path, typer.Argument(metavar="PIPELINE", help="A pipeline file (YAML).")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, like runs/quickstart.")]
Sets = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override, like download.image_size=384.")]
On = Annotated[str, typer.Option("--on", metavar="local|ray|ray://HOST:PORT", help="Where the work runs.")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Worker processes; 0: this one. [default: one a core]")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder. [default: runs/<file name>]")]


@app.command(rich_help_panel=BUILD)
def run(file: PipelineFile, out: Out = None, on: On = "ray", workers: Workers = None,
        limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N rows of the source.")] = None,
        until: Annotated[str | None, typer.Option("--until", metavar="STEP", help="Stop after this step.")] = None,
        part: Annotated[str | None, typer.Option("--part", metavar="I/N", help="Every Nth source shard, from I.")] = None,
        retry: Annotated[str | None, typer.Option("--retry", metavar="quarantined", help="Measure such rows again.")] = None,
        sets: Sets = []) -> None:  # noqa: B006  typer reads the default, nobody changes it
    """Run a pipeline: from rows to shards. The same command goes on where it stopped."""
    from curate.start import start

    if retry not in (None, "quarantined"):
        raise UserError(f"--retry {retry}: there is only 'quarantined'")
    folder = out or Path("runs") / (file.stem + (f"-limit{limit}" if limit else ""))
    done = start(file, folder, on=on, workers=_workers(workers), limit=limit, until=until, part=_part(part),
                 retry=retry is not None, sets=sets, attempt=secrets.token_hex(4))
    for line in done:
        print(line)


@app.command(rich_help_panel=BUILD)
def shard(source: Annotated[str, typer.Argument(metavar="RUN|TARS|IMAGES", help="A run, tars, a folder of images.")],
          out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the shards go.")],
          uids: Annotated[Path | None, typer.Option("--uids", metavar="FILE", help="Only these: .npy or parquet.")] = None,
          where: Annotated[str | None, typer.Option("--where", metavar="EXPRESSION", help="Only rows that pass.")] = None,
          rows: Annotated[int, typer.Option("--rows", min=1, help="Rows a shard.")] = 10_000,
          dropped_too: Annotated[bool, typer.Option("--dropped-too", help="Also rows that the run did not keep.")] = False,
          workers: Workers = None) -> None:
    """Build shards from a run, tars or a folder of images, all of it or a chosen part."""
    from curate.reshard import reshard

    for line in reshard(source, out, uids=uids, where=where, rows=rows, dropped_too=dropped_too,
                        workers=_workers(workers), attempt=secrets.token_hex(4)):
        print(line)


@app.command(rich_help_panel=BUILD)
def train(file: Annotated[Path, typer.Argument(metavar="TRAINING", help="Settings of a training (YAML).")],
          out: Out = None, sets: Sets = []) -> None:  # noqa: B006
    """Train CLIP on shards: ours or anybody's webdataset. On several GPUs: `torchrun -m train FILE`."""
    from train.__main__ import main as train_file

    words = [str(file), *(word for s in sets for word in ("--set", s)), *(("--out", str(out)) if out else ())]
    raise typer.Exit(train_file(words))


@app.command(rich_help_panel=BUILD)
def evaluate(checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a pretrained tag.")],
             model: Annotated[str | None, typer.Option("--model", help="Its name, where the checkpoint has none.")] = None,
             images: Annotated[Path | None, typer.Option("--images", metavar="DIR", help="A folder of pictures a class.")] = None,
             classes: Annotated[Path | None, typer.Option("--classes", metavar="FILE", help="Lines of: folder TAB name.")] = None,
             retrieval: Annotated[str | None, typer.Option("--retrieval", metavar="TARS", help="Held out.")] = None) -> None:
    """Zero-shot accuracy over a folder of classes, and retrieval recall over held-out shards."""
    from curate.training import evaluate_checkpoint

    for name, value in evaluate_checkpoint(checkpoint, model, images, classes, retrieval).items():
        print(f"{name}  {value:.4f}")


@app.command(rich_help_panel=LOOK)
def steps(names: Annotated[list[str] | None, typer.Argument(metavar="[STEP]...", help="Only these.")] = None) -> None:
    """Every step: what it measures, which columns it reads and adds, which settings it takes."""
    from curate.report import step_lines

    for line in step_lines(names or ()):
        print(line)


@app.command(rich_help_panel=LOOK)
def status(folder: RunFolder) -> None:
    """How far a run is, and what became of its downloads."""
    from curate.report import status_lines

    for line in status_lines(folder):
        print(line)


@app.command(rich_help_panel=LOOK)
def report(folder: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """The funnel: rows in and out of every stage, with each reason."""
    from curate.report import funnel_lines, funnel_of

    funnel = funnel_of(folder)
    if as_json:
        print(json.dumps(funnel, indent=1, ensure_ascii=False))
        return
    for line in funnel_lines(funnel):
        print(line)


@app.command(rich_help_panel=LOOK)
def why(folder: RunFolder, row: Annotated[str, typer.Argument(metavar="UID|URL", help="The row.")]) -> None:
    """Every measurement of a row, every keep's verdict, and which one dropped it."""
    from curate.report import why as explain

    for line in explain(folder, row):
        print(line)


@app.command(rich_help_panel=MAINTAIN)
def verify(folder: Annotated[Path, typer.Argument(metavar="RUN|SHARDS", help="A run's folder, or a folder of shards.")]) -> None:
    """Re-hash every shard against the manifest."""
    from curate.shards import verify as check

    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    shards = folder / "shards" if (folder / "shards").is_dir() else folder
    problems = list(check(shards))
    for line in problems:
        print(line)
    if problems:
        raise typer.Exit(1)
    print(f"{shards}: every file is as the manifest says")


def _workers(number: int | None) -> int:
    return os.cpu_count() or 1 if number is None else number


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--part {text}: write it as I/N with I from 0 to N-1")
    return int(index), int(count)


def main(arguments: list[str] | None = None) -> None:
    """The entry point of `curate`."""
    sys.path.insert(0, os.getcwd())   # a user's own steps are found where the command is run
    try:
        code: Any = app(args=arguments, prog_name="curate", standalone_mode=False)
        if code == INTERRUPTED:         # what typer makes of a KeyboardInterrupt
            _say("interrupted; the same command goes on from here", code)
    except (CurateError, TrainError) as error:
        code = _say(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _say("interrupted; the same command goes on from here", INTERRUPTED)
    except typer.TyperException as error:
        code = _say(_usage(error), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: typer.TyperException) -> str:
    said = " ".join(error.format_message().split())
    return said if said.endswith("?") else said.rstrip(".") + "; see --help"


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
