"""The verbs about one model: `curate evaluate`, `curate export`. Thin, like the rest of the command line."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def evaluate(checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a pretrained tag.")],
             model: Annotated[str | None, typer.Option("--model", help="Its name, where the checkpoint has none.")] = None,
             images: Annotated[Path | None, typer.Option("--images", metavar="DIR", help="A folder of pictures a class.")] = None,
             classes: Annotated[Path | None, typer.Option("--classes", metavar="FILE", help="Lines of: folder TAB name.")] = None,
             retrieval: Annotated[str | None, typer.Option("--retrieval", metavar="TARS", help="Held out.")] = None,
             captions: Annotated[str | None, typer.Option("--captions", metavar="TARS",
                                                          help="Held out: a caption is written of each picture.")] = None,
             caption_prompt: Annotated[str | None, typer.Option("--caption-prompt",
                                                                help="What it begins with; no part of it.")] = None,
             caption_beams: Annotated[int | None, typer.Option("--caption-beams", metavar="N",
                                                               help="Search instead of drawing.")] = None,
             benchmarks: Annotated[list[str], typer.Option("--benchmark", metavar="DIR",
                                                           help="As CLIP_benchmark publishes them.")] = [],  # noqa: B006
             images_train: Annotated[Path | None, typer.Option("--images-train", metavar="DIR",
                                                               help="The like of --images: a linear probe.")] = None,
             probe: Annotated[bool, typer.Option("--probe", help="A linear probe on the benchmarks' train/.")] = False,
             results: Annotated[Path | None, typer.Option("--results", metavar="FILE",
                                                          help="Append the figures; a table with earlier ones.")] = None) -> None:
    """Zero-shot accuracy over classes, retrieval recall, captions, linear probes: over shards, folders and benchmarks."""
    from curate.evaluation import evaluate_checkpoint, unchecked

    held_out = (("images", images), ("retrieval", retrieval), ("captions", captions))
    places = {name: str(place) for name, place in held_out if place is not None}
    asked = {**places, "caption_prompt": caption_prompt, "caption_beams": caption_beams,
             "classes": classes and str(classes), "images_train": images_train and str(images_train),
             "benchmarks": benchmarks, "probe": probe}
    for line in evaluate_checkpoint(checkpoint, model, asked, results):
        print(line)
    for line in unchecked(checkpoint, [*places.values(), *benchmarks]):
        print(line, file=sys.stderr)


def export(checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a pretrained tag.")],
           out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
           kind: Annotated[str, typer.Option("--format", metavar="huggingface|safetensors", help="For whom.")] = "huggingface",
           model: Annotated[str | None, typer.Option("--model", help="Its name, where the checkpoint has none.")] = None) -> None:
    """Write a model as transformers or open_clip load it, and say how far its embeddings are from the original's."""
    from curate.evaluation import export_checkpoint

    for line in export_checkpoint(checkpoint, model, out, kind):
        print(line)
