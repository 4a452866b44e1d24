"""Numbers for people."""

import math

Z = 1.959964
"""The normal quantile of a two-sided interval of 95 %."""


def size(num_bytes: float) -> str:
    """Bytes for people: `3.2 GB`, decimal."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}" if num_bytes < 1000 else f"{num_bytes:,.0f} {unit}"


def duration(seconds: float) -> str:
    """Seconds for people: `41 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def wilson(part: int, whole: int) -> tuple[float, float]:
    """Bounds of a share, 0 to 1, if `part` of a random `whole` have it: Wilson's score interval, 95 %; (0, 1) of nothing."""
    if not whole:
        return 0.0, 1.0
    share, spread = part / whole, Z * Z / whole
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / whole + spread / (4 * whole))
    return max(0.0, middle - half), min(1.0, middle + half)
