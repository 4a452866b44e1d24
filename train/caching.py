"""Gradient caching: the exact gradient of a loss over more pairs than fit the memory at once.

Gao et al. 2021 (arXiv 2101.06983, section 3): embed chunk by chunk without a graph; take the loss of all embeddings once, and its
gradient at each of them; embed every chunk again, now with a graph, and send those gradients back through it. The towers run
forward twice, and the memory holds what one chunk leaves behind.

Shapes: N pairs of this process, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Embedded(NamedTuple):
    """What a loss is a function of: that of a batch is the contrastive one plus the sum of `own_P`."""

    image_ND: Tensor
    text_ND: Tensor
    scale: Tensor
    bias: Tensor | None = None
    """of models that have one"""
    own_P: Tensor | None = None
    """losses that ask each pair by itself, each the mean over these pairs, times its weight"""
    steady: tuple[Tensor, ...] = ()
    """what else the loss needs of each pair, N rows each, and no gradient flows into"""


def cached_backward(model: nn.Module, embed: Callable[[slice], Embedded], chunks: Sequence[slice],
                    loss: Callable[[Embedded], Tensor],
                    apart: Callable[[], AbstractContextManager[None]] = nullcontext) -> tuple[Tensor, Embedded]:
    """(loss, embeddings) of all chunks together, without graphs; the loss's gradients are added to the parameters of `model`.

    `embed` runs `model` on some rows; `loss` is the contrastive part, own parts go back by their chunk's share of the pairs. Each
    chunk sees the same random numbers both times (dropout), running statistics move once (batch normalisation), scale and bias
    get one gradient. Inside `apart()` processes keep their gradients to themselves; they average once, on the last chunk's way
    back.
    """
    states, parts = [], []
    with torch.no_grad(), _buffers_kept(model):
        for rows in chunks:
            states.append(_random_state())
            parts.append(embed(rows))
    whole = _joined(parts)
    found = loss(whole)
    asked = [leaf for leaf in whole[:4] if leaf is not None]
    gradients = iter(torch.autograd.grad(found, asked, allow_unused=True))
    wanted = [None if leaf is None else next(gradients) for leaf in whole[:4]]
    own_P = None if parts[0].own_P is None else torch.zeros_like(parts[0].own_P)
    for rows, state in zip(chunks, states, strict=True):
        is_last, share = rows is chunks[-1], (rows.stop - rows.start) / len(whole.image_ND)
        with nullcontext() if is_last else apart():
            _set_random_state(state)
            again = embed(rows)
            if own_P is not None and again.own_P is not None:
                own_P += again.own_P.detach() * share
            _send_back(again, wanted, rows, share, is_last)
    total = found.detach() if own_P is None else found.detach() + own_P.sum()
    return total, Embedded(whole.image_ND.detach(), whole.text_ND.detach(), whole.scale.detach(),
                           None if whole.bias is None else whole.bias.detach(), own_P)


def _joined(parts: Sequence[Embedded]) -> Embedded:
    """The chunks' embeddings as one, all leaves that want gradients."""
    scale, bias = parts[0].scale, parts[0].bias
    rows = (torch.cat([part.image_ND for part in parts]), torch.cat([part.text_ND for part in parts]))
    steady = tuple(torch.cat(found) for found in zip(*(part.steady for part in parts), strict=True))
    return Embedded(rows[0].requires_grad_(), rows[1].requires_grad_(), scale.detach().requires_grad_(),
                    None if bias is None else bias.detach().requires_grad_(), steady=steady)


def _send_back(again: Embedded, wanted: Sequence[Tensor | None], rows: slice, share: float, with_scale: bool) -> None:
    """Gradients of a chunk's embeddings into the parameters, and its own parts' as far as its `share` of the pairs goes; those
    of scale and bias too, if asked. Frozen parts take none."""
    image, text, scale, bias = wanted
    pairs = [(again.image_ND, None if image is None else image[rows]), (again.text_ND, None if text is None else text[rows])]
    if with_scale:
        pairs += [(again.scale, scale)] if again.bias is None else [(again.scale, scale), (again.bias, bias)]
    found = [(output, gradient) for output, gradient in pairs if gradient is not None and output.requires_grad]
    if again.own_P is not None:
        found.append((again.own_P, torch.full_like(again.own_P, share)))
    if found:
        torch.autograd.backward([output for output, _ in found], [gradient for _, gradient in found])


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Buffers (running statistics) are afterwards what they were."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, old in zip(model.buffers(), before, strict=True):
        buffer.copy_(old)


def _random_state() -> list[Tensor]:
    """Of this process's CPU, and of its GPU where it has one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random_state(state: Sequence[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for of_gpu in state[1:]:
        torch.cuda.set_rng_state(of_gpu)
