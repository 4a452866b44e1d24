"""The settings of a training: YAML or plain data in, a frozen `Config` out, everything checked before anything is read.

    model: curate-conv-64             any name of open_clip's, or one of ours (train/models/*.json)
    init: null                        null: from scratch; or a pretrained tag, or a checkpoint of ours or anybody's
    data: shards/*.tar                tars, or a table, with scores, or several sources with weights: train/data_settings.py
    samples_seen: 50M                 or 3000, or 3 epochs
    batch: 256                        over all processes together
    eval: {retrieval: held_out/*.tar, every: 500}

A mistake is one line: `train.yaml:4: batch: 0 is not a whole number of 1 or more`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from train.checks import Check, as_number, crop_area, number, optional, paths, text, two, whole, word, words, yes_no
from train.choices import Distill, Lock, Spike, alphas, distill, lock, micro_batch, spike
from train.data_settings import Curriculum, curriculum, data
from train.data_settings import Data as Data
from train.errors import ConfigError, did_you_mean

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Length:
    """How long to train: a number of pairs, or of epochs (every picture once)."""

    samples: int = 0
    epochs: float = 0.0

    def steps(self, batch: int, steps_per_epoch: int) -> int:
        """Optimizer steps; at least one."""
        wanted = self.samples / batch if self.samples else self.epochs * steps_per_epoch
        return max(1, math.ceil(wanted - 1e-9))


def length(value: Any) -> Length:
    """`50M`, 3000, or `3 epochs`."""
    if isinstance(value, Length):
        return value
    match = re.fullmatch(r"\s*([\d_.]+)\s*(epochs?|[kmb]?)\s*", str(value).lower())
    amount = as_number(match[1]) if match and not isinstance(value, bool) else None
    if match is None or not amount:
        raise ValueError(f"{value!r} is not a number of samples like 50M or 3000, nor of epochs like '3 epochs'")
    if match[2].startswith("epoch"):
        return Length(epochs=float(amount))
    return Length(samples=max(1, round(amount * UNITS[match[2]])))


def setting(check: Check, default: Any = dataclasses.MISSING, *, operational: bool = False, later: bool = False) -> Any:
    """A field that knows how to check itself. `operational`: changes how fast or how observed, never what is learnt.

    `later`: its default is what there was before there was the setting, so that trainings from then are still known as the same.
    """
    return field(default=default, metadata={"check": check, "operational": operational, "later": later})


# ---- the settings


@dataclass(frozen=True)
class Eval:
    """What is measured while and after training."""

    retrieval: Data | None = setting(optional(data), None)
    """held-out pairs: recall in both directions"""
    images: str | None = setting(optional(text), None)
    """a folder with one folder of pictures a class: zero-shot accuracy"""
    classes: str | None = setting(optional(text), None)
    """a file of lines `folder TAB name`, or `name`; without it the folders' names are the classes"""
    images_train: str | None = setting(optional(text), None, later=True)
    """the like of `images` to train on: a linear probe on frozen embeddings, tested on `images`"""
    benchmarks: tuple[str, ...] = setting(paths, (), later=True)
    """folders as CLIP_benchmark publishes them: zero-shot accuracy or recall, by what is in them"""
    probe: bool = setting(yes_no, False, later=True)
    """also a linear probe on the train/ tars of every benchmark with classes"""
    captions: Data | None = setting(optional(data), None, later=True)
    """held-out pictures that the model writes a caption of, judged by all that the data has of each: `caption_cider_d` and
    others. For BLIPs with a decoder, and CoCas"""
    caption_prompt: str | None = setting(optional(words), None, later=True)
    """what those captions begin with while they are made, no part of them; null: what the model learns to write behind, which is
    `prompt` with `loss: blip_captioner` and nothing with the other losses"""
    caption_beams: int | None = setting(optional(whole(2)), None, later=True)
    """a beam search of this width for those captions, as published figures of BLIPs are made (3); null: drawn from a nucleus of
    0.9 by seed and picture, as CapFilt makes captions"""
    every: int = setting(whole(0), 0)
    """steps between two evaluations; 0: only at the end"""
    before: bool = setting(yes_no, False, later=True)
    """measure before the first step too: the figures then say what a fine-tuning forgot (`forgetting_`: before less after)"""
    keep_best: str | None = setting(optional(text), None, later=True)
    """a figure, like recall_at_1: of the evaluated weights those with the best one are kept in OUT/best, and exported"""
    stop_after: int | None = setting(optional(whole(1)), None, later=True)
    """end the training after so many evaluations in a row without a better `keep_best`"""


def evaluation(value: Any) -> Eval:
    """A map of Eval's settings."""
    if isinstance(value, Eval):
        return value
    found: Eval = _build(Eval, {} if value is None else value, "eval has", "eval.")
    if found.classes is not None and found.images is None:
        raise ValueError("eval: classes need images, a folder with one folder a class")
    if found.images_train is not None and found.images is None:
        raise ValueError("eval: images_train needs images, the pictures that its probe is tested on")
    if found.probe and not found.benchmarks:
        raise ValueError("eval: probe needs benchmarks; over folders of pictures it is images_train")
    if found.captions is None and (found.caption_prompt is not None or found.caption_beams is not None):
        raise ValueError("eval: caption_prompt and caption_beams need captions, the pictures to write of")
    if (found.keep_best or found.before) and not (found.retrieval or found.captions or found.images or found.benchmarks):
        raise ValueError("eval: keep_best and before need something to measure: retrieval, captions, images or benchmarks")
    if found.stop_after and not (found.keep_best and found.every):
        raise ValueError("eval: stop_after needs keep_best, the figure that stops getting better, and every")
    return found


@dataclass(frozen=True)
class Config:
    """Everything a training depends on."""

    data: Data = setting(data)
    """the pairs to train on; a pipeline sets it"""
    samples_seen: Length = setting(length)
    """how many pairs the training sees, whatever the size of the data"""
    model: str = setting(text, "ViT-B-32")
    """a name of open_clip's, one of ours (`python -m train --models` lists them), or `hf-blip:NAME`, a BLIP of Hugging Face's"""
    init: str | None = setting(optional(text), None)
    """weights to start from: a published tag or a checkpoint; null starts from scratch"""
    batch: int = setting(whole(2), 256)
    """pairs in a step, over all processes together"""
    micro_batch: int | str | None = setting(optional(micro_batch), None, later=True)
    """pairs that go through the towers at once, in each process; the loss stays that of the whole `batch` by gradient caching
    (arXiv 2101.06983): less memory for a third more computing. null: all at once. auto: `batch` halved until it fits. Batch
    normalisation (`curate-conv-64` has it) takes its statistics from such a part, other models learn the same"""
    memory_mb: int = setting(whole(1), 4096, later=True)
    """of `micro_batch: auto` on a CPU: memory for what the pairs that are under way leave behind for the way back"""
    loss: str = setting(word("clip", "siglip", "coca", "blip", "blip_filter", "blip_captioner"), "clip", later=True)
    """clip: softmax over the batch, both ways (arXiv 2103.00020, figure 3). siglip: a sigmoid a pair, with a bias that learns
    (arXiv 2303.15343); weights without a bias start with the published scale 10 and bias -10. coca: CLIP's and a decoder that
    writes the caption (arXiv 2205.01917), for models that have one. blip: CLIP's, a head that judges pairs and a decoder that
    writes captions (arXiv 2201.12086); blip_filter the first two, blip_captioner the last alone: the fine-tunings of CapFilt"""
    caption_weight: float = setting(number(0), 2.0, later=True)
    """of `loss: coca`: the caption's part of the loss, the contrastive part being 1 (arXiv 2205.01917, table 2)"""
    momentum: float | None = setting(optional(number(0, 0.999999)), None, later=True)
    """of `loss: blip` and `blip_filter`: share of itself that a copy of the model keeps in a step; the contrastive part is then
    against what the copy makes of pairs (arXiv 2107.07651, BLIP's 0.995). null: no copy, CLIP's loss"""
    queue: int = setting(whole(0), 0, later=True)
    """of `momentum`: how many earlier pairs the contrastive part goes on comparing with; BLIP's 57600, and less than there are"""
    soft_labels: float = setting(number(0, 1), 0.0, later=True)
    """of `momentum`: share of the right answer that goes where the copy sees it, reached after two epochs; BLIP's 0.4"""
    prompt: str = setting(text, "a picture of ", later=True)
    """of `loss: blip_captioner`: what every caption begins with"""
    distill: Distill | None = setting(optional(distill), None, later=True)
    """learn from another model's stored embeddings too: `{of: ref, weight: 1, scale: 100}`. The score table has them, a row each,
    as ref_image_emb and ref_text_emb (without `of`: image_emb and text_emb). Added to the loss, times `weight`: how far the
    batch's similarities are from the teacher's, whose cosines count `scale` times (arXiv 2309.12314, section 3.1)"""
    lr: float = setting(number(0, above=True), 5e-4)
    """at the top of the schedule"""
    lr_image: float = setting(number(0), 1.0)
    """the image tower's share of `lr`; 0 freezes it"""
    lr_text: float = setting(number(0), 1.0)
    """the text tower's share of `lr`; 0 freezes it"""
    layer_decay: float = setting(number(0, 1, above=True), 1.0, later=True)
    """times this for every layer of a tower below its head, so that in fine-tuning what lies deep hardly moves (arXiv
    2106.08254); 0.75 is usual. Of open_clip's own transformers and ResNets"""
    lock: Lock = setting(lock, Lock(), later=True)
    """parts of towers that stay as they are, statistics of batch normalisation too (arXiv 2111.07991): `{image: all}`, or
    `{image: {but_last: 2}, text: all}` where the last two blocks and what stands above them learn"""
    patch_dropout: float = setting(number(0, 0.99), 0.0, later=True)
    """share of each picture's patches that training drops, others every time: 0.5 halves the picture tower's work (arXiv
    2212.00794), and a short fine-tuning without it closes the gap. Of open_clip's own ViT"""
    wise_ft: tuple[float, ...] | None = setting(optional(alphas), None, later=True)
    """after a fine-tuning, weights that are so far from the start to the tuned ones (arXiv 2109.01903), 0 to 1: of a list like
    [0, 0.25, 0.5, 0.75, 1] the one with the best `eval.keep_best` is exported, a single number as it is. null: the tuned ones"""
    spike: Spike | None = setting(optional(spike), None, later=True)
    """a loss that is more than `z` deviations above the median of the last `window` steps makes a batch suspect, as a loss or
    gradient that is no number always does: `{z: 6, window: 100}`. Deviations are robust: 1.4826 times the median distance from
    the median, and 1 % of it at least. Suspect batches are named in suspects.jsonl and passed over"""
    warmup: float = setting(number(0), 0.05)
    """steps, or a share of all steps where below 1"""
    weight_decay: float = setting(number(0), 0.2)
    """AdamW's, on matrices only"""
    betas: tuple[float, float] = setting(two(number(0, 0.99999)), (0.9, 0.98))
    """AdamW's"""
    clip_grad: float | None = setting(optional(number(0, above=True)), 1.0)
    """largest norm of all gradients together"""
    ema: float | None = setting(optional(number(0, 0.999999)), None, later=True)
    """share of itself that a moving average of the weights keeps in a step, or (1 + n) / (10 + n) after n steps where that is
    less; the average is what is evaluated and exported. null: none"""
    crop: tuple[float, float] = setting(crop_area, (0.9, 1.0))
    """share of the picture that a training crop shows, open_clip's default"""
    flip: bool = setting(yes_no, False)
    """mirror every second picture; wrong where captions say left and right"""
    mix: str = setting(word("pair", "batch"), "pair", later=True)
    """of several sources: pair fills each batch from all of them, batch each from one, whose pictures are then the negatives
    (open_clip's pull request 425: 60.1 against 59.5, and 61.6 against 59.8 on ImageNet with six sources)"""
    curriculum: Curriculum | None = setting(optional(curriculum), None, later=True)
    """the best pairs first: {by: a column of the scores, from: 0.3, until: 0.5} draws from the best `from` of each source at
    first, and after `until` of all steps from all; null: from all at once"""
    seed: int = setting(whole(0), 0)
    """of the weights at the start, the order of pairs and the crops"""
    precision: str = setting(word("auto", "fp32", "bf16"), "auto")
    """auto: bf16 on a GPU, fp32 on a CPU"""
    compile: bool = setting(yes_no, False, later=True)
    """compile the model with torch.compile: minutes at the start, then faster on most GPUs; needs a C++ compiler. Sums come in
    another order, so the bits differ"""
    eval: Eval = setting(evaluation, Eval())
    """what is measured while and after training"""
    rollbacks: int = setting(whole(0), 3, operational=True)
    """how many suspect batches a training passes over before it stops"""
    checkpoint_activations: bool = setting(yes_no, False, operational=True)
    """remember only what comes into each block and compute the rest again on the way back: far less memory for a third more
    computing, the same loss. Of open_clip's own transformers"""
    processes: int = setting(whole(1), 1, operational=True)
    """processes that train together, one a GPU: on this machine as `torchrun` starts them, from a pipeline also on Ray's nodes"""
    workers: int = setting(whole(1), 2, operational=True)
    """threads that decode, in each process"""
    cache_mb: int = setting(whole(0), 1024, operational=True)
    """memory for decoded pictures, where all fit and the model's pictures are small"""
    threads: int | None = setting(optional(whole(1)), None, operational=True)
    """CPU threads that compute; results on a CPU are the same for the same number"""
    checkpoint_every: int = setting(whole(1), 1000, operational=True)
    """steps between two checkpoints; one is always written at the end"""
    keep: int = setting(whole(1), 1, operational=True)
    """how many of the last checkpoints stay"""
    log_every: int = setting(whole(1), 10, operational=True)
    """steps between two lines of log.jsonl"""
    tensorboard: bool = setting(yes_no, True, operational=True)
    """write curves for TensorBoard too"""
    wandb: str | None = setting(optional(text), None, operational=True)
    """a project of Weights & Biases to send the log to; needs the package wandb. `WANDB_MODE=offline` keeps it here"""

    def __post_init__(self) -> None:
        if self.momentum is None and (self.queue or self.soft_labels):
            raise ValueError("momentum: queue and soft_labels need it, like 0.995")
        if self.momentum is not None and self.loss not in ("blip", "blip_filter"):
            raise ValueError(f"momentum: loss: {self.loss} knows none, only blip and blip_filter")
        if self.prompt != type(self).prompt and self.loss != "blip_captioner":
            raise ValueError(f"prompt: loss: {self.loss} knows none, only blip_captioner")
        if self.caption_weight != type(self).caption_weight and self.loss != "coca":
            raise ValueError(f"caption_weight: loss: {self.loss} knows none, only coca")
        if self.init is None and self.lock.image == self.lock.text == "all":
            raise ValueError("lock: both towers whole, and without init they stay random")
        if self.distill is not None and self.loss == "blip_captioner":
            raise ValueError("distill: loss: blip_captioner makes no embeddings")
        if self.wise_ft is not None and self.init is None:
            raise ValueError("wise_ft: needs init, the weights that a fine-tuning starts from")
        if self.wise_ft is not None and len(self.wise_ft) > 1 and self.eval.keep_best is None:
            raise ValueError("wise_ft: several shares need eval.keep_best, the figure that chooses one")
        if self.eval.captions is not None and self.eval.caption_prompt is None:
            learnt = self.prompt if self.loss == "blip_captioner" else ""
            object.__setattr__(self, "eval", dataclasses.replace(self.eval, caption_prompt=learnt))

    def identity(self) -> dict[str, Any]:
        """What the result depends on, as plain data; data and init count by content, which their digests say."""
        values = dataclasses.asdict(self)
        values["eval"] = {f.name: values["eval"][f.name] for f in fields(Eval)
                          if not (f.metadata["later"] and getattr(self.eval, f.name) == f.default)}
        return {f.name: _plain(values[f.name]) for f in fields(self)
                if not f.metadata["operational"] and f.name not in ("data", "init")
                and not (f.metadata["later"] and getattr(self, f.name) == f.default)}


def from_mapping(values: Mapping[str, Any], *, where: str = "") -> Config:
    """The settings in `values`. Raises ConfigError of one line, `where` before it."""
    try:
        config: Config = _build(Config, values, "train has", "")
    except ValueError as error:
        raise ConfigError(str(error), where) from None
    return config


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The settings in a YAML file with `key=value` overrides (`eval.every=100`). Raises ConfigError with file and line."""
    values, lines = _read_yaml(path)
    if {"source", "steps"} <= values.keys():
        raise ConfigError(f"{path} is a pipeline, which `curate run {path}` runs; a training has data and samples_seen")
    for override in overrides:
        _override(values, override)
    try:
        config: Config = _build(Config, values, "train has", "")
    except ValueError as error:
        key = re.match(r"(?:train has no setting ')?([\w.]+)", str(error))
        top = key[1].split(".")[0] if key else ""
        said = next((text for text in reversed(overrides) if re.split(r"[.=]", text)[0] == top), None)
        raise ConfigError(str(error), f"{path}:{lines.get(top, 1)}" if said is None else f"--set {said}") from None
    return config


def _build(kind: Any, values: Any, who: str, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'train'}: {values!r} is not a map of settings")
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"{who} no setting '{name}'{did_you_mean(str(name), known)}")
    for name, f in known.items():
        if name not in values and f.default is dataclasses.MISSING:
            raise ValueError(f"train needs the setting '{name}'")
    return kind(**{name: _checked(known[name], value, prefix) for name, value in values.items()})


def _checked(f: Any, value: Any, prefix: str) -> Any:
    try:
        return f.metadata["check"](value)
    except ValueError as error:
        nested = str(error).startswith((f"{f.name}.", f"{f.name}:", f"{f.name} has"))
        raise ValueError(str(error) if nested else f"{prefix}{f.name}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The document and the line of every top-level key."""
    try:
        content = path.read_text()
        node = yaml.compose(content, Loader=yaml.SafeLoader)
        values = yaml.safe_load(content)
    except FileNotFoundError:
        raise ConfigError(f"no settings file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read settings file {path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"not YAML: {error.problem}", f"{path}:{line}") from None
    except yaml.YAMLError:
        raise ConfigError("not YAML", f"{path}:1") from None
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError("a training is a map of settings, with 'data:' and 'samples_seen:'", f"{path}:1")
    for key in _repeated(node):
        raise ConfigError(f"'{key.value}' stands twice", f"{path}:{key.start_mark.line + 1}")
    return values, {key.value: key.start_mark.line + 1 for key, _ in node.value}


def _repeated(top: yaml.Node) -> Iterator[yaml.Node]:
    """Keys that stood in the same map before, at any depth; YAML would take the last."""
    nodes = [top]
    for node in nodes:
        if isinstance(node, yaml.MappingNode):
            keys, inner = [key for key, _ in node.value], [value for _, value in node.value]
            yield from (key for n, key in enumerate(keys) if key.value in {before.value for before in keys[:n]})
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        nodes += [n for n in inner if n not in nodes]      # `*name` may lead back


def _override(values: dict[str, Any], assignment: str) -> None:
    """Apply one `--set key=value` or `--set eval.key=value`."""
    key, equals, raw = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > 2:
        raise ConfigError(f"--set {assignment}: write it as key=value, like lr=1e-3")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError(f"--set {assignment}: '{raw}' is not YAML") from None
    if len(parts) == 1:
        values[parts[0]] = value
        return
    inner = values.get(parts[0]) or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"--set {assignment}: '{parts[0]}' holds {inner!r}, nothing can be set inside it")
    values[parts[0]] = {**inner, parts[1]: value}
