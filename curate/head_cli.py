"""`curate head …`: make heads of published files, train your own, look at one. Thin, as `cli` is."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich",
                  help="Heads, classifiers over embeddings: convert published ones, train your own, look at one.")

To = Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write, with head.json and head.safetensors.")]
Licence = Annotated[str, typer.Option("--licence", help="The head's licence, for cards.")]


@app.command()
def convert(source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .pth, .safetensors, .npz, .npy or Keras zip.")],
            to: To,
            model: Annotated[str | None, typer.Option("--model", help="Whose embeddings it takes, like ViT-L-14.")] = None,
            pretrained: Annotated[str, typer.Option("--pretrained", help="The weights, as clip_embed names them.")] = "openai",
            column: Annotated[str | None, typer.Option("--column", help="What it gives, like nsfw_prob.")] = None,
            between: Annotated[str | None, typer.Option("--between", metavar="none|relu", help="Between its layers.")] = None,
            activation: Annotated[str | None, typer.Option("--activation", metavar="none|sigmoid", help="At the end.")] = None,
            licence: Licence = "not stated") -> None:
    """Make a head of a published file: LAION's aesthetic and NSFW heads are known by their names. Unpickles tensors only."""
    from curate.heads.convert import Wanted
    from curate.heads.convert import convert as make

    for line in make(source, to, Wanted(model, pretrained, column, between, activation, licence), secrets.token_hex(4)):
        print(line)


@app.command()
def train(table: Annotated[Path, typer.Argument(metavar="TABLE", help="Parquet with a uid and a label a row.")],
          embeddings: Annotated[Path, typer.Option("--embeddings", metavar="RUN", help="The run that embedded these rows.")],
          to: To,
          column: Annotated[str, typer.Option("--column", help="The column that the head will add.")] = "nsfw_prob",
          of: Annotated[str, typer.Option("--of", metavar="PREFIX", help="Whose embeddings. [default: the only]")] = "",
          label: Annotated[str, typer.Option("--label", metavar="NAME", help="The column of labels: true or false.")] = "label",
          recall: Annotated[float, typer.Option("--recall", help="The share of the true that its threshold finds.")] = 0.95,
          licence: Licence = "not stated") -> None:
    """Fit a head on rows you labelled, calibrate it, and say what each threshold finds, on pictures it was not trained on."""
    from curate.fit import train as fit

    for line in fit(table, embeddings, to, column=column, prefix=of, label=label, recall=recall, licence=licence,
                    attempt=secrets.token_hex(4)):
        print(line)


@app.command()
def show(head: Annotated[Path, typer.Argument(metavar="HEAD", help="A head's folder, or its .json.")]) -> None:
    """Check a head, its probes too, and say what it is."""
    from curate.heads.convert import lines
    from curate.heads.head import read

    for line in lines(read(head)):
        print(line)
