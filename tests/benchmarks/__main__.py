"""`python -m tests.benchmarks [--only NAME]`: run the benchmarks, keep their rows in runs/bench.json, print the table.

Rows of benchmarks that were not run now stay as they were. Exit code 1 where a limit does not hold.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from curate import files
from tests.benchmarks import ROOT, Row

FIELDS = ("name", "unit", "ours", "peer", "ratio", "limit", "sizes", "command")


def main() -> int:
    """Run what is asked for; 0, 1 where a limit is broken, 2 for a benchmark that there is not."""
    there = sorted(p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Benchmarks against the neighbours.")
    parser.add_argument("--only", metavar="NAME", choices=there, help=f"one of {', '.join(there) or 'none yet'}")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench.json", help="where the rows are kept")
    options = parser.parse_args()
    rows = [row for name in ([options.only] if options.only else there) for row in measure(name)]
    kept = merge(files.read_json(options.out, []), rows)
    files.write_json(options.out, kept, f"bench{os.getpid()}")
    print(table(kept))
    broken = [row for row in rows if not row.holds]
    for row in broken:
        print(f"{row.name}: {_text(row.ours)} {row.unit}, ratio {_text(row.ratio)}, and must be {row.limit}", file=sys.stderr)
    return 1 if broken else 0


def measure(name: str) -> list[Row]:
    """The rows of one benchmark."""
    print(f"bench {name} …", file=sys.stderr, flush=True)
    rows: list[Row] = importlib.import_module(f"tests.benchmarks.bench_{name}").run()
    return [row if row.command else Row(**{**vars(row), "command": f"make bench ONLY={name}"}) for row in rows]


def merge(earlier: list[dict[str, Any]], rows: list[Row]) -> list[dict[str, Any]]:
    """Earlier rows and these, by name; these win."""
    by_name = {row["name"]: row for row in earlier} | {row.name: {f: getattr(row, f) for f in FIELDS} for row in rows}
    return [by_name[name] for name in sorted(by_name)]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text, numbers to the right."""
    lines = [list(FIELDS), *([_text(row[f]) for f in FIELDS] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(FIELDS))]
    align = [str.rjust if f in ("ours", "peer", "ratio") else str.ljust for f in FIELDS]
    return "\n".join("  ".join(a(cell, w) for a, cell, w in zip(align, line, widths, strict=True)).rstrip() for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
