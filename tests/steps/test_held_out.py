"""held_out: a share of pictures, by hash."""

import pytest

from curate.step import load_step
from curate.steps.held_out import held_out


def test_share_and_stability() -> None:
    """About the share; the same picture always falls on the same side, another seed splits otherwise."""
    ids = [f"{n:032x}" for n in range(20_000)]
    out = held_out(ids, None, share=0.1)
    assert abs(sum(out) / len(out) - 0.1) < 0.01
    assert held_out(ids[::-1], None, share=0.1)[::-1] == out
    assert held_out(ids, None, share=0.1, seed=1) != out
    wider = held_out(ids, None, share=0.2)
    assert all(w for w, o in zip(wider, out, strict=True) if o), "a larger share contains a smaller one"


def test_copies_go_with_what_they_are_copies_of() -> None:
    """same_as, where it is there and says something, is the group."""
    ids = [f"{n:032x}" for n in range(1000)]
    copies = [f"{n + 5000:032x}" for n in range(1000)]
    assert held_out(copies, list(ids), share=0.3) == held_out(ids, None, share=0.3)
    assert held_out(ids, [None] * 1000, share=0.3) == held_out(ids, None, share=0.3)


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_share_must_be_a_share(share: float) -> None:
    """All or nothing held out is a mistake."""
    with pytest.raises(ValueError, match="should be (greater|less) than [01]"):
        load_step("held_out").settings["share"].check(share)
