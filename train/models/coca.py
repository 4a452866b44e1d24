"""The decoder of open_clip's CoCa models (Yu et al. 2022, arXiv 2205.01917)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def has_decoder(model: Any) -> bool:
    """Whether a model writes captions: open_clip's CoCa, and BLIPs but the half that judges."""
    return getattr(model, "text_decoder", None) is not None


def start_decoder(model: Any) -> None:
    """Random weights for the decoder of a model built from nothing; call it where torch's seed is set.

    open_clip 3.3 leaves the decoder's output projection as the memory was (`MultimodalTransformer.init_parameters` is never
    called). The deviations are those it means to set: CLIP's, for a transformer of this width and depth (Radford et al. 2021,
    released code).
    """
    decoder = model.text_decoder
    width, layers = decoder.width, decoder.layers
    for block in (*decoder.resblocks, *decoder.cross_attn):
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    nn.init.normal_(decoder.text_projection, std=width**-0.5)


def words_of(decoder: Any, pick: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Inside a `with` block the decoder computes its words from those of its last states (N, L, D) that `pick` leaves."""
    last: nn.Module = decoder.ln_final
    return last.register_forward_hook(lambda _module, _given, states_NLD: pick(states_NLD))
