"""What a pair costs: floating point operations and memory, counted on a copy without numbers; and what a device could do.

The copy lies on torch's meta device: shapes go through it and nothing is computed. Operations are those of torch's
`flop_counter`: matrix products and convolutions, a multiplication and an addition being two.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

PAIRS = 2
"""Counted together, since batch normalisation refuses a single row."""
PEAKS: dict[str, tuple[float | None, float]] = {
    "H200": (989, 67), "H100 PCIe": (756, 51), "H100 NVL": (835, 60), "H100": (989, 67), "B200": (2250, 75), "A100": (312, 19.5),
    "L40S": (362, 91.6), "L4": (121, 30.3), "A40": (149.7, 37.4), "A10G": (70, 31.2), "A10": (125, 31.2), "V100": (None, 15.7),
    "T4": (None, 8.1), "RTX 4090": (165.2, 82.6), "RTX 3090": (71, 35.6)}
"""Part of a device's name → dense TFLOP/s of bf16 (None: it has none) and of fp32 without TF32, from the makers' data sheets;
the first that fits. An H100 without more said is the SXM one."""


class Cost(NamedTuple):
    """Of one pair."""

    forward: float
    """floating point operations"""
    backward: float
    """the same on the way back, less where parts are frozen"""
    saved_bytes: float
    """what the way back needs to be remembered, in fp32"""


COSTS: dict[tuple[object, ...], Cost | None] = {}
"""Counting takes a second, and many trainings in one process have the same model."""


def cost(objective: nn.Module, size_px: int, context: int, *, checkpointed: bool) -> Cost | None:
    """What a pair costs in training, pictures of `size_px` a side and `context` tokens.

    Where numbers choose rows (`train.chosen`) all are counted: captions without padding, and for each pair of BLIP's both wrong
    ones, which is the most that a pair can cost. None for a model that looks at numbers otherwise. `checkpointed` says whether
    activations are computed twice: then the operations are still those of the model, and the memory is what the checkpoints
    leave.
    """
    what = tuple((name, p.shape, p.requires_grad) for name, p in objective.named_parameters())
    drops = tuple(getattr(m, "prob", 0.0) for m in objective.modules() if type(m).__name__ == "PatchDropout")
    key = (type(objective), getattr(objective, "num_given", 1), what, drops, size_px, context, checkpointed)
    if key not in COSTS:
        COSTS[key] = _counted(objective, size_px, context, checkpointed)
    return COSTS[key]


def _counted(objective: nn.Module, size_px: int, context: int, checkpointed: bool) -> Cost | None:
    copy, saved = _shapes_only(objective), dict[int, int]()
    rows = (torch.zeros(PAIRS, 3, size_px, size_px, device="meta"),
            torch.zeros(PAIRS, context, dtype=torch.int64, device="meta"), torch.arange(PAIRS, device="meta"))
    try:
        with _counting_saved(copy, saved):
            copy(*rows)
        if checkpointed:
            copy.get_submodule("model").set_grad_checkpointing(False)  # type: ignore[operator]
        with FlopCounterMode(display=False) as forward:
            out = copy(*rows)
        graphs = [part.sum() for part in _tensors(out) if part.requires_grad]
        with FlopCounterMode(display=False) as backward:
            torch.autograd.backward(graphs)
    except (NotImplementedError, RuntimeError):     # what torch raises where a shape depends on numbers
        return None
    return Cost(forward.get_total_flops() / PAIRS, backward.get_total_flops() / PAIRS, sum(saved.values()) / PAIRS)


def _tensors(found: object) -> Iterator[Tensor]:
    """All of them in tuples of tuples."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, tuple):
        for part in found:
            yield from _tensors(part)


def _shapes_only(module: nn.Module) -> nn.Module:
    """A copy on the meta device; the original's memory is not copied on the way."""
    memo: dict[int, Tensor] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
                               for p in module.parameters()}
    memo |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    copy: nn.Module = deepcopy(module, memo)
    return copy


def _counting_saved(copy: nn.Module, saved: dict[int, int]) -> AbstractContextManager[None]:
    """Inside the block, bytes by storage of what autograd saves, without the parameters themselves."""
    own = {p.untyped_storage()._cdata for p in copy.parameters()}
    held: list[Tensor] = []     # a storage that is freed gives its number to another one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    hooks: Callable[..., AbstractContextManager[None]] = torch.autograd.graph.saved_tensors_hooks
    return hooks(pack, lambda tensor: tensor)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations a second that the device could do in bf16 or fp32: a GPU's by its data sheet, a CPU's as its best matrix product
    runs with the present threads; None for what is not known."""
    if device.type != "cuda":
        return measured_peak(torch.get_num_threads(), precision)
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    tera = None if found is None else found[0] if precision == "bf16" else found[1]
    return None if tera is None else tera * 1e12


@lru_cache
def measured_peak(num_threads: int, precision: str, side: int = 768, times: int = 5) -> float:
    """Operations a second of the fastest of some products of square matrices. `num_threads` are those of now, for the cache."""
    matrix = torch.ones(side, side, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
