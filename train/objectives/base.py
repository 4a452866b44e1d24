"""What the loop asks of an objective.

The contrastive part compares all pairs of a batch: it is a function of embeddings, and gradient caching may cut the batch in
chunks. What a pair is asked by itself (a caption to write, a match to judge) is the objective's own part: computed chunk by
chunk in `forward`, its mean over the chunk in `Embedded.own_P`.

Shapes: N pairs of a chunk, C, H, W channels and pixels, L tokens, P own parts.
"""

import torch
from torch import Tensor, nn

from train.caching import Embedded
from train.config import Config
from train.dist import Ranks
from train.models.weights import Loaded


class Objective(nn.Module):
    """A model and its loss as one module: torch's distributed wrapper sees every parameter in one call."""

    own_parts: tuple[str, ...] = ()
    """names of the own parts, in the order of `Embedded.own_P`; the log shows them"""

    num_given: int = 1
    """tokens that a caption to write begins with and nobody asks for"""

    steps_per_epoch: int = 1
    """known once it is made (`make_objective`)"""

    def __init__(self, loaded: Loaded, config: Config) -> None:
        super().__init__()
        self.model = loaded.model

    def forward(self, pixels_NCHW: Tensor, tokens_NL: Tensor, pictures_N: Tensor) -> Embedded:
        """One chunk: embeddings of length 1, and the own parts, each already times its weight.

        `pictures_N` numbers the pictures: rows of one picture are no negatives of each other.
        """
        raise NotImplementedError

    def contrast(self, embedded: Embedded, ranks: Ranks) -> Tensor:
        """The contrastive part, over this process's pairs against those of all processes."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What must hold of the weights after an optimizer's step."""

    def beside(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the model: state of the loss's own, nothing for most."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}


def single(tensor: Tensor) -> Tensor:
    """At least in single precision, which a loss is taken in whatever the towers compute in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
