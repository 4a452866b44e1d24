"""Which pictures are set aside to judge models by."""

from hashlib import blake2b
from typing import Annotated

from pydantic import Field

from curate.step import bool_, step


@step(adds={"held_out": bool_})
def held_out(image_id: list[str], same_as: list[str | None] | None, *,
             share: Annotated[float, Field(gt=0, lt=1)] = 0.1, seed: int = 0) -> list[bool]:
    """Whether a row belongs to the held-out share, true or false; all texts of a picture fall on the same side.

    By a hash of the picture's id and the seed, so the split does not depend on what else is in the pool. Where same_image stands
    before it, copies of a picture go with the one they are copies of. `keep: not held_out` then sets them aside; `loop:` and
    `train:` evaluate on them. The share is our choice.
    """
    line = round(share * 2**64)
    groups = image_id if same_as is None else [kept or own for kept, own in zip(same_as, image_id, strict=True)]
    return [int.from_bytes(blake2b(f"{seed} {group}".encode(), digest_size=8).digest()) < line for group in groups]
