"""One step of a training: the batch through the model, its loss back, the optimizer on."""

import time
from dataclasses import dataclass, replace

import torch

from train import checkpoint
from train.caching import Embedded, cached_backward
from train.config import Config
from train.dist import Ranks
from train.ema import Average
from train.errors import Diverged, TooLarge
from train.evaluate import evaluate
from train.loader import Batch
from train.log import Progress
from train.models.clip import autocast, normalised
from train.objectives import Objective
from train.optim import clip_gradients, learning_rate, set_learning_rate
from train.order import Order


class Clock:
    """Samples a second since the start, the first steps (which warm caches) not counted once there are more."""

    WARM = 3

    def __init__(self, first: int, batch: int) -> None:
        self._from, self._batch, self._since = first, batch, time.perf_counter()

    def rate(self, done: int) -> float:
        """Samples a second, `done` steps being done."""
        now = time.perf_counter()
        found = (done - self._from) * self._batch / max(1e-9, now - self._since)
        if done - self._from == self.WARM and self._from >= 0:
            self._from, self._since = done, now
        return found


@dataclass(frozen=True)
class Run:
    """What a step needs."""

    config: Config
    order: Order
    going: checkpoint.Going
    average: Average | None
    ranks: Ranks
    objective: Objective
    wrapped: torch.nn.Module
    """the objective as the processes' wrapper calls it"""
    num_steps: int
    clock: Clock

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step; what the log says of it. Raises Diverged (the loss is not finite) and TooLarge (memory ends)."""
        config, model, optimizer = self.config, self.going.loaded.model, self.going.optimizer
        torch.manual_seed(self.order.model_seed(step, self.ranks.rank))
        rate = learning_rate(step, self.num_steps, config)
        set_learning_rate(optimizer, rate)
        try:
            loss, embedded = self.backward(batch)
        except torch.OutOfMemoryError:
            at_once = min(len(batch.tokens_NL), config.micro_batch or config.batch)
            raise TooLarge(f"step {step + 1}: {at_once} pairs at once do not fit the memory of {self.ranks.device}; try "
                           f"micro_batch: {max(1, at_once // 2)}, which leaves the loss as it is") from None
        value = self.ranks.mean(loss)
        if not torch.isfinite(torch.tensor(value)):
            raise Diverged(f"step {step + 1}: the loss is {value}; try a lower lr than {config.lr:g} or a longer warmup "
                           f"than {config.warmup:g}")
        before = self._parts(value, embedded)
        norm = clip_gradients(model.parameters(), config.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        if self.average is not None:
            self.average.update(step + 1)
        return {"loss": value, **before, "grad_norm": float(norm), "lr": rate,
                "samples_seen": (step + 1) * config.batch, "epoch": self.order.epoch(step),
                "samples_per_second": self.clock.rate(step + 1)}

    def backward(self, batch: Batch) -> tuple[torch.Tensor, Embedded]:
        """(loss, embeddings) of this process's pairs, in chunks where the settings say so; the parameters have the gradients."""
        model, device = self.going.loaded.model, self.ranks.device

        def embed(rows: slice) -> Embedded:
            pixels_NCHW = normalised(batch.pixels_NHWC[rows], model, device)
            tokens_NL = batch.tokens_NL[rows].to(device, non_blocking=True)
            pictures_N = torch.from_numpy(batch.pictures[rows]).to(device)
            with autocast(device, precision_of(self.config, device)):
                embedded: Embedded = self.wrapped(pixels_NCHW, tokens_NL, pictures_N)
            return embedded

        def contrast(embedded: Embedded) -> torch.Tensor:
            return self.objective.contrast(embedded, self.ranks)

        num_pairs = len(batch.tokens_NL)
        size = self.config.micro_batch or num_pairs
        if size < num_pairs:
            chunks = [slice(at, min(at + size, num_pairs)) for at in range(0, num_pairs, size)]
            return cached_backward(self.objective, embed, chunks, contrast, lambda: self.ranks.apart(self.wrapped))
        embedded = embed(slice(num_pairs))
        loss = contrast(embedded)
        if embedded.own_P is not None:
            loss = loss + embedded.own_P.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss, embedded

    def _parts(self, loss: float, embedded: Embedded) -> dict[str, float]:
        """Scale, bias and the parts of the loss; the contrastive one is named where there are others."""
        found = {name: float(t.detach()) for name, t in (("scale", embedded.scale), ("bias", embedded.bias)) if t is not None}
        if embedded.own_P is None:
            return found
        own = {f"loss_{name}": self.ranks.mean(part) for name, part in
               zip(self.objective.own_parts, embedded.own_P, strict=True)}
        return {**found, "loss_contrastive": loss - sum(own.values()), **own}

    def learn(self) -> None:
        """Training mode; a frozen tower stays as it is, its running statistics too."""
        self.wrapped.train()
        if self.config.lr_image == 0:
            self.going.loaded.model.visual.eval()

    def figures(self) -> dict[str, float]:
        """What the settings ask to be measured, on the first process; the others wait."""
        self.going.loaded.model.eval()
        loaded = replace(self.going.result, precision=precision_of(self.config, self.ranks.device))
        figures = evaluate(loaded, self.config.eval) if self.ranks.is_first else {}
        self.ranks.wait()
        return figures

    def progress(self, done: int, values: dict[str, float]) -> Progress:
        """The same for people."""
        rate = values["samples_per_second"]
        return Progress(done, self.num_steps, done * self.config.batch, values["loss"], values["scale"], rate,
                        (self.num_steps - done) * self.config.batch / max(rate, 1e-9))


def precision_of(config: Config, device: torch.device) -> str:
    """fp32 or bf16: what the settings say, or what the device is good at."""
    if config.precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return config.precision
