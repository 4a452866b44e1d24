"""The curve of a training beside open_clip's own parts: its model, loss, parameter groups, AdamW and schedule on our batches."""

import math
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr

from tests.train.toys import config, logged, shard
from train.data import open_data
from train.loader import Loader
from train.loop import train
from train.models.clip import image_size, normalised
from train.models.weights import load
from train.order import Order
from train.pictures import TrainCrop

BATCH, STEPS, LR = 8, 9, 1e-3


def test_the_curve_is_open_clips(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(24))
    settings = config(data=str(tmp_path / "0.tar"), model="toy-vit-32", batch=BATCH, samples_seen=BATCH * STEPS, lr=LR, warmup=0,
                      weight_decay=0.2, clip_grad=1.0)
    train(settings, tmp_path / "run")
    ours = [line["loss"] for line in logged(tmp_path / "run") if "loss" in line]
    with torch.random.fork_rng():
        assert ours == pytest.approx(reference(tmp_path / "0.tar"), rel=1e-4)


def reference(shards: Path) -> list[float]:
    """Losses of a plain loop as open_clip 3.3's `train_one_epoch` has it, from the same initial weights."""
    loaded = load("toy-vit-32", "random:0")
    model = loaded.model.train()
    gains, rest = [], []
    for name, parameter in model.named_parameters():
        is_gain = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (gains if is_gain else rest).append(parameter)
    optimizer = torch.optim.AdamW([{"params": gains, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}], lr=LR,
                                  betas=(0.9, 0.98), eps=1e-8)
    schedule, loss_of = cosine_lr(optimizer, LR, 0, STEPS), ClipLoss()
    index = open_data(config(data=str(shards)).data)
    crop = TrainCrop(image_size(model), (0.9, 1.0), False, loaded.squash)
    losses = []
    for step, batch in enumerate(Loader(index, Order(len(index), BATCH, 0), crop, loaded.tokenizer).batches(0, STEPS)):
        schedule(step)
        optimizer.zero_grad()
        found = model(normalised(batch.pixels_NHWC, model, torch.device("cpu")), batch.tokens_NL)
        loss = loss_of(*found)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))
    return losses
