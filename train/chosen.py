"""Rows that numbers choose; and on torch's meta device, where there are no numbers and `train.flops` counts what a pair costs,
all of them: what is counted there is the most that a pair can cost.

Shapes: N pairs, L tokens.
"""

from torch import Tensor


def chosen(rows: Tensor, where: Tensor) -> Tensor:
    """`rows[where]`, `where` being true or false for each of its leading places; on the meta device all rows."""
    return rows.flatten(0, where.ndim - 1) if where.is_meta else rows[where]


def longest(tokens_NL: Tensor, pad_id: int) -> int:
    """Tokens up to the last one of any row that is no padding; on the meta device L. A token inside may have the padding's id."""
    return tokens_NL.shape[1] if tokens_NL.is_meta else int((tokens_NL != pad_id).nonzero()[:, 1].max()) + 1
