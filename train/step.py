"""One step of a training: the batch through the model, its loss back, the optimizer on."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from train import checkpoint
from train.caching import Embedded, cached_backward
from train.config import Config
from train.dist import Ranks
from train.ema import Average
from train.errors import TooLarge
from train.evaluate import evaluate
from train.layers import still
from train.loader import Batch
from train.log import Progress
from train.memory import AtOnce
from train.models.clip import autocast, normalised
from train.objectives import Objective
from train.objectives.distill import taught_part
from train.optim import clip_gradients, learning_rate, set_learning_rate
from train.order import Order
from train.pace import Clock
from train.watch import Watch

Backward = tuple[torch.Tensor, Embedded, torch.Tensor | None]
"""The loss, the embeddings, and the part of the loss that a teacher has."""


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
    at_once: AtOnce
    watch: Watch

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step; what the log says of it. Raises Suspect (the batch is not to be learnt from) and TooLarge (memory
        ends)."""
        config, model, optimizer = self.config, self.going.loaded.model, self.going.optimizer
        rate = learning_rate(step, self.num_steps, config)
        set_learning_rate(optimizer, rate)
        loss, embedded, taught = self._backward_that_fits(step, batch)
        value = self.ranks.mean(loss)
        before = self._parts(value, embedded, taught)
        norm = clip_gradients(model.parameters(), config.clip_grad)
        self.watch.check(step, value, float(norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        if self.average is not None:
            self.average.update(step + 1)
        return {"loss": value, **before, "grad_norm": float(norm), "lr": rate,
                "samples_seen": (step + 1) * config.batch, "epoch": self.order.epoch(step),
                "samples_per_second": self.clock.rate(step + 1)}

    def _backward_that_fits(self, step: int, batch: Batch) -> Backward:
        """`backward`, with fewer pairs at once where memory ends and they may be halved."""
        while True:
            torch.manual_seed(self.order.model_seed(step, self.ranks.rank))
            try:
                return self.backward(batch)
            except torch.OutOfMemoryError:
                size = min(len(batch.tokens_NL), self.at_once.size)
            self.going.optimizer.zero_grad(set_to_none=True)    # outside the handler, whose traceback holds tensors
            if not self.at_once.halve():
                raise TooLarge(f"step {step + 1}: {size} pairs at once do not fit the memory of {self.ranks.device}; try "
                               f"micro_batch: {max(1, size // 2)}, which leaves the loss as it is")

    def backward(self, batch: Batch) -> Backward:
        """The loss of this process's pairs, in chunks where the settings say so; the parameters have the gradients."""
        model, device = self.going.loaded.model, self.ranks.device
        taught: torch.Tensor | None = None

        def embed(rows: slice) -> Embedded:
            pixels_NCHW = normalised(batch.pixels_NHWC[rows], model, device)
            tokens_NL = batch.tokens_NL[rows].to(device, non_blocking=True)
            pictures_N = torch.from_numpy(batch.pictures[rows]).to(device)
            with autocast(device, precision_of(self.config, device)):
                embedded: Embedded = self.wrapped(pixels_NCHW, tokens_NL, pictures_N)
            if batch.taught_N2E is None:
                return embedded
            return embedded._replace(steady=(*embedded.steady, batch.taught_N2E[rows].to(device, non_blocking=True)))

        def contrast(embedded: Embedded) -> torch.Tensor:
            if self.config.distill is None:
                return self.objective.contrast(embedded, self.ranks)
            nonlocal taught
            *steady, taught_N2E = embedded.steady
            taught = taught_part(self.config.distill, embedded, taught_N2E, self.ranks)
            return self.objective.contrast(embedded._replace(steady=tuple(steady)), self.ranks) + taught

        num_pairs, size = len(batch.tokens_NL), self.at_once.size
        if size < num_pairs:
            cuts = np.linspace(0, num_pairs, -(-num_pairs // size) + 1).astype(int).tolist()
            chunks = [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
            loss, embedded = cached_backward(self.objective, embed, chunks, contrast, lambda: self.ranks.apart(self.wrapped))
            return loss, embedded, taught
        embedded = embed(slice(num_pairs))
        loss = contrast(embedded)
        if embedded.own_P is not None:
            loss = loss + embedded.own_P.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss, embedded, taught

    def _parts(self, loss: float, embedded: Embedded, taught: torch.Tensor | None) -> dict[str, float]:
        """Scale, bias and the parts of the loss; the contrastive one is named where there are others."""
        found = {name: float(t.detach()) for name, t in (("scale", embedded.scale), ("bias", embedded.bias)) if t is not None}
        parts = {} if embedded.own_P is None else dict(zip(self.objective.own_parts, embedded.own_P, strict=True))
        if taught is not None:
            parts["distill"] = taught.detach()
        if not parts:
            return found
        own = {f"loss_{name}": self.ranks.mean(part) for name, part in parts.items()}
        return {**found, "loss_contrastive": loss - sum(own.values()), **own}

    def learn(self) -> None:
        """Training mode; what is locked stays as it is, its running statistics too."""
        self.wrapped.train()
        still(self.going.loaded.model)

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
