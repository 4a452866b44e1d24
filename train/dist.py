"""Several processes as one: torch's own distributed, started by torchrun, by `processes:` in the settings or by somebody else, or
nothing at all.

    torchrun --nproc-per-node 8 -m train FILE
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor, nn

from train.errors import ConfigError
from train.launch import MEETING

PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which evaluates alone; torch's own 10 or 30 minutes would end a training there."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many, and what it computes on."""

    rank: int
    num_ranks: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The one process that writes files and reports."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """Pairs of each process in a batch of all. Raises ConfigError where they do not divide."""
        if batch % self.num_ranks:
            raise ConfigError(f"batch: {batch} does not divide among {self.num_ranks} processes")
        return batch // self.num_ranks

    def wait(self) -> None:
        """Until all processes are here."""
        if self.num_ranks > 1:
            torch.distributed.barrier()

    def mean(self, value: Tensor) -> float:
        """The mean over all processes of a number."""
        if self.num_ranks == 1:
            return float(value.item())
        total = value.detach().clone().double()
        torch.distributed.all_reduce(total)
        return float(total.item()) / self.num_ranks

    def least(self, value: int) -> int:
        """The smallest of all processes' values."""
        if self.num_ranks == 1:
            return value
        found = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        return int(found.item())

    def gather(self, rows_ND: Tensor) -> Tensor:
        """The rows of all processes, (num_ranks * N, D); gradients flow back to the process a row came from."""
        if self.num_ranks == 1:
            return rows_ND
        gathered: Tensor = _Gather.apply(rows_ND, self.rank, self.num_ranks)
        return gathered

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over all processes."""
        if self.num_ranks == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def apart(self, model: nn.Module) -> AbstractContextManager[None]:
        """For the length of the block what `wrap` gave adds up gradients in this process, without averaging them."""
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return model.no_sync()
        return nullcontext()


@contextmanager
def processes() -> Iterator[Ranks]:
    """This process's place among those that were started together, for the length of the block; alone where there is one.

    A process group that is there already stays its opener's: it is neither opened nor closed here.
    """
    num_ranks, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if num_ranks == 1:
        yield Ranks(0, 1, device)
        return
    if torch.distributed.is_initialized():
        yield Ranks(torch.distributed.get_rank(), num_ranks, device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=os.environ.get(MEETING),
                                         rank=int(os.environ["RANK"]), world_size=num_ranks, timeout=PATIENCE)
    try:
        yield Ranks(torch.distributed.get_rank(), num_ranks, device)
    finally:
        torch.distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """all_gather whose gradient for a row is the sum of what all processes want of it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows_ND: Tensor, rank: int, num_ranks: int) -> Tensor:
        ctx.mine = slice(rank * len(rows_ND), (rank + 1) * len(rows_ND))  # type: ignore[attr-defined]
        parts = [torch.empty_like(rows_ND) for _ in range(num_ranks)]
        torch.distributed.all_gather(parts, rows_ND.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient_MD: Tensor) -> tuple[Tensor, None, None]:
        total = gradient_MD.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total[ctx.mine], None, None  # type: ignore[attr-defined]
