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

from curate import head_cli, model_cli
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
def init(sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Tables with urls, tars, folders of images.")],
         out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")] = Path("pipeline.yaml"),
         url: Annotated[str | None, typer.Option("--url", metavar="NAME", help="The column of image urls.")] = None,
         caption: Annotated[str | None, typer.Option("--caption", metavar="NAME", help="The column of captions.")] = None,
         uid: Annotated[str | None, typer.Option("--uid", metavar="NAME", help="The column of uids, if there is one.")] = None,
         ) -> None:
    """Look at your own files, guess what is what, and write a pipeline over them. Overwrites nothing."""
    from curate.planning.init import init as write

    for line in write(sources, out, url=url, caption=caption, uid=uid, attempt=secrets.token_hex(4)):
        print(line)


@app.command(rich_help_panel=BUILD)
def plan(file: PipelineFile, out: Out = None,
         rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the sample.")] = 1000,
         on: Annotated[str, typer.Option("--on", metavar="local|ray", help="Where the sample runs.")] = "local",
         workers: Workers = None,
         as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
         sets: Sets = []) -> None:  # noqa: B006
    """What a run will keep, take and cost: a sample of the rows goes through every step, and leaves nothing behind."""
    from curate.planning.estimate import estimate
    from curate.planning.estimated import lines

    found = estimate(file, out, rows=rows, on=on, workers=workers, sets=sets, attempt=secrets.token_hex(4))
    for line in [json.dumps(found.record(), indent=1, ensure_ascii=False)] if as_json else lines(found):
        print(line)


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
          vectors: Annotated[list[str], typer.Option("--vectors", metavar="COLUMN",
                                                     help="Embeddings for the tables beside the tars.")] = [],  # noqa: B006
          workers: Workers = None) -> None:
    """Build shards from a run, tars or a folder of images, all of it or a chosen part."""
    from curate.reshard import reshard

    for line in reshard(source, out, uids=uids, where=where, rows=rows, dropped_too=dropped_too, vectors=vectors,
                        workers=_workers(workers), attempt=secrets.token_hex(4)):
        print(line)


@app.command(rich_help_panel=BUILD)
def train(file: Annotated[Path, typer.Argument(metavar="TRAINING", help="Settings of a training (YAML).")],
          out: Out = None, sets: Sets = []) -> None:  # noqa: B006
    """Train CLIP, SigLIP, CoCa or BLIP on shards: ours or anybody's webdataset. On several GPUs: `torchrun -m train FILE`."""
    from train.__main__ import main as train_file

    words = [str(file), *(word for s in sets for word in ("--set", s)), *(("--out", str(out)) if out else ())]
    raise typer.Exit(train_file(words))


app.command(rich_help_panel=BUILD)(model_cli.evaluate)
app.command(rich_help_panel=BUILD)(model_cli.export)


@app.command(rich_help_panel=BUILD)
def index(folder: RunFolder,
          model: Annotated[str, typer.Option("--model", metavar="PREFIX", help="Whose embeddings. [default: the only]")] = "",
          recall: Annotated[float, typer.Option("--recall", help="Of the 40 nearest, the share to find.")] = 0.95) -> None:
    """Make what a run has embedded searchable, kept and dropped rows, with its recall as measured."""
    from curate.retrieval.indexed import build

    for line in build(folder, model=model, recall=recall, attempt=secrets.token_hex(4)):
        print(line)


app.add_typer(head_cli.app, name="head", rich_help_panel=BUILD)


@app.command(rich_help_panel=BUILD)
def card(folder: RunFolder,
         check: Annotated[bool, typer.Option("--check", help="Check the one that is there, strictly.")] = False) -> None:
    """Write the card of a finished run: README.md for the Hugging Face hub and croissant.json, from the run itself."""
    from curate.cards.card import write_card
    from curate.cards.publish import check_card

    if not check:
        for line in write_card(folder, secrets.token_hex(4)):
            print(line)
        return
    wrong, warned = check_card(folder)
    for line in [*wrong, *(f"mlcroissant warns: {w}" for w in warned)]:
        print(line)
    if wrong:
        raise typer.Exit(1)
    print(f"{folder / 'card'}: complete, and every file is as it says")


@app.command(rich_help_panel=BUILD)
def publish(folder: RunFolder,
            to: Annotated[str, typer.Option("--to", metavar="DIR|URL", help="A folder, or any place that fsspec knows.")],
            images: Annotated[bool, typer.Option("--with-images/--metadata-only", help="The pictures too, as shards.")] = False,
            draft: Annotated[bool, typer.Option("--draft", help="Although the card still waits for a human.")] = False) -> None:
    """Publish a finished run: metadata, uids, card and checksums. The same command goes on where it stopped."""
    from curate.cards.publish import publish as put

    for line in put(folder, to, with_images=images, draft=draft, attempt=secrets.token_hex(4)):
        print(line)


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
    """The funnel: rows in and out of every stage, with each reason; and all of a run as a page, RUN/report/index.html."""
    from curate.report import funnel_lines, funnel_of

    funnel = funnel_of(folder)
    if as_json:
        print(json.dumps(funnel, indent=1, ensure_ascii=False))
        return
    from curate.folder import Folder
    from curate.pages.page import write
    from curate.recaptioned import lines

    page = write(folder, secrets.token_hex(4))
    for line in (*funnel_lines(funnel), *lines(Folder.open(folder))):
        print(line)
    print(page)


@app.command(rich_help_panel=LOOK)
def why(folder: RunFolder, row: Annotated[str, typer.Argument(metavar="UID|URL", help="The row.")]) -> None:
    """Every measurement of a row, every keep's verdict, and which one dropped it."""
    from curate.report import why as explain

    for line in explain(folder, row):
        print(line)


@app.command(rich_help_panel=LOOK)
def whatif(folder: RunFolder,
           expression: Annotated[str, typer.Argument(metavar="EXPRESSION", help="A keep, like 'num_words >= 4'.")],
           instead_of: Annotated[str | None, typer.Option("--instead-of", metavar="KEEP|LINE", help="For which keep.")] = None,
           rows: Annotated[int, typer.Option("--rows", min=0, help="Rows to look at, a group.")] = 3,
           as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """What a keep would do to a finished run: who stays, what shifts, what would run again. Measures nothing, in seconds."""
    from curate.deciding.whatif import lines, record
    from curate.deciding.whatif import whatif as answer

    found = answer(folder, expression, instead_of, rows)
    for line in [json.dumps(record(found), indent=1, ensure_ascii=True)] if as_json else lines(found):
        print(line)


@app.command(rich_help_panel=LOOK)
def diff(a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A finished run.")],
         b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
         rows: Annotated[int, typer.Option("--rows", min=0, help="Rows to look at, a side.")] = 3,
         as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Two runs side by side: rows that only one kept and why the other did not, changed settings, funnels, shifts."""
    from curate.deciding.diff import diff as compare
    from curate.deciding.diff import lines, record

    found = compare(a, b, rows)
    for line in [json.dumps(record(found), indent=1, ensure_ascii=True)] if as_json else lines(found):
        print(line)


@app.command(rich_help_panel=LOOK)
def search(folder: RunFolder,
           text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to look for.")] = None,
           k: Annotated[int, typer.Option("--k", help="How many hits, or uids of a query.")] = 10,
           where: Annotated[str, typer.Option("--where", metavar="EXPRESSION", help="Only rows that pass.")] = "",
           dropped: Annotated[bool, typer.Option("--dropped", help="Also rows that the run did not keep.")] = False,
           image: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="What looks like this.")] = None,
           uid: Annotated[str | None, typer.Option("--uid", metavar="UID", help="What looks like this row's picture.")] = None,
           minus: Annotated[list[str], typer.Option("--minus", metavar="TEXT", help="Away from this.")] = [],  # noqa: B006
           as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
           out: Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Uids: .npy or .parquet.")] = None) -> None:
    """Search an indexed run by text, picture or row, or browse it; --export takes the uids to `curate shard --uids`."""
    from curate.retrieval.answers import export, lines, parts
    from curate.retrieval.search import Request, Searcher

    searcher = Searcher.open(folder)
    request = Request(parts(text, image, uid, minus), k=k, where=where, dropped=dropped, group=out is None)
    if out is not None:
        print(export(searcher, request, k if request.parts else searcher.info["rows"], out, secrets.token_hex(4)))
        return
    for line in lines(searcher, request, as_json):
        print(line)


@app.command(rich_help_panel=LOOK)
def serve(folder: RunFolder,
          host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
          port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
          policy: Annotated[str, typer.Option("--policy", metavar="EXPRESSION", help="What a row must be to be seen.")] = "",
          model: Annotated[str, typer.Option("--model", metavar="PREFIX", help="The embedder, if the run has several.")] = "",
          rate: Annotated[float, typer.Option("--rate", min=0.1, help="Searches a second and client.")] = 20,
          threads: Annotated[int, typer.Option("--threads", min=1, help="Searches at once.")] = 2,
          names: Annotated[list[str], typer.Option("--name", metavar="HOST", help="A further name it has.")] = []) -> None:  # noqa: B006
    """Search a run in a browser: by text, picture and example; why each row was kept or dropped."""
    from curate.retrieval.server import serve as start

    start(folder, host=host, port=port, policy=policy, model=model, rate=rate, threads=threads, names=names)


@app.command(rich_help_panel=MAINTAIN)
def heal(folder: RunFolder, on: On = "ray", workers: Workers = None, sets: Sets = []) -> None:  # noqa: B006
    """Ask again for pictures that failed in a way that may pass, and bring the run up to date with what came."""
    from curate.start import heal as ask_again

    for line in ask_again(folder, on=on, workers=_workers(workers), sets=sets, attempt=secrets.token_hex(4)):
        print(line)


@app.command(rich_help_panel=MAINTAIN)
def verify(place: Annotated[str, typer.Argument(metavar="RUN|SHARDS|PUBLICATION", help="A folder, or a publication's url.")],
           links: Annotated[bool, typer.Option("--links", help="Ask for urls of a run's kept rows again instead.")] = False,
           rows: Annotated[int | None, typer.Option("--rows", min=1, help="With --links: how many rows. [default: 400]")] = None,
           seed: Annotated[int | None, typer.Option("--seed", help="With --links: another draw. [default: 0]")] = None,
           whole: Annotated[bool, typer.Option("--bytes", help="With --links: read whole files, and compare them.")] = False,
           as_json: Annotated[bool, typer.Option("--json", help="With --links: as JSON.")] = False) -> None:
    """Re-hash every file of a run's shards, or of a publication, against the manifest; or see which links have died since."""
    if links:
        from curate.links import ask_again, lines

        found = ask_again(Path(place), rows=rows or 400, seed=seed or 0, whole=whole)
        for line in [json.dumps(found.record(), indent=1)] if as_json else lines(found):
            print(line)
        return
    if whole or as_json or rows is not None or seed is not None:
        raise UserError("--rows, --seed, --bytes and --json belong to --links")
    from curate.cards.verify import verify as check

    what, problems = check(place)
    for line in problems:
        print(line)
    if problems:
        raise typer.Exit(1)
    print(f"{what}: every file is as the manifest says")


@app.command(rich_help_panel=MAINTAIN)
def takedown(place: Annotated[str, typer.Argument(metavar="RUN|TARS", help="A run, or a folder of tars.")],
             file: Annotated[Path | None, typer.Option("--list", metavar="FILE", help="Hashes, addresses, uids.")] = None,
             image: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="What looks like this.")] = None,
             uids: Annotated[list[str], typer.Option("--uid", metavar="UID", help="A row's picture.")] = [],  # noqa: B006
             near: Annotated[int, typer.Option("--near", metavar="BITS", help="Of 64 bits of phash, how many may differ.")] = 4,
             dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False) -> None:
    """Take pictures and their captions out of a run or tars for good, with all copies; what was taken down never comes back."""
    from curate.takedown.command import takedown as take_down

    for line in take_down(place, file=file, image=image, uids=uids, bits=near, dry_run=dry_run, attempt=secrets.token_hex(4)):
        print(line)


@app.command(rich_help_panel=MAINTAIN)
def gc(folder: RunFolder, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False) -> None:
    """Drop what a finished run holds of earlier settings: columns, pictures, states and models that nothing refers to."""
    from curate.gc import gc as collect

    for line in collect(folder, secrets.token_hex(4), dry_run):
        print(line)


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
