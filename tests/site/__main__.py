"""Makes and serves the faulty site.

    python -m tests.site make runs/site --rows 3000 --seed 0 --mismatch 0.3 --port 8765
    python -m tests.site serve runs/site            on the port that the urls in pool.parquet name, until interrupted
    python -m tests.site serve runs/site --port 0   on a free one; pool.parquet is made to name it
"""

import argparse
import asyncio
import sys
from pathlib import Path

from tests.site.faults import FAULTS
from tests.site.make import make
from tests.site.server import serve_until_told


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.site", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help="write a site")
    making.add_argument("out", type=Path, metavar="DIR")
    making.add_argument("--rows", type=int, default=3000, metavar="N")
    making.add_argument("--seed", type=int, default=0, metavar="N")
    making.add_argument("--mismatch", type=float, default=FAULTS["mismatched"], metavar="SHARE",
                        help="share of rows with the caption of another picture")
    making.add_argument("--port", type=int, default=8765, metavar="N", help="the port that the urls name")
    serving = verbs.add_parser("serve", help="answer its urls")
    serving.add_argument("folder", type=Path, metavar="DIR")
    serving.add_argument("--port", type=int, metavar="N")
    args = parser.parse_args()
    if args.verb == "make":
        counts = make(args.out, args.rows, args.seed, args.mismatch, args.port)
        print(f"{counts.rows} rows, {counts.files} files, {counts.num_bytes / 1e6:.1f} MB in {args.out}")
        print(", ".join(f"{number} {kind}" for kind, number in counts.kinds.items()))
        return
    try:
        asyncio.run(serve_until_told(args.folder, args.port))
    except FileNotFoundError:
        sys.exit(f"no site in {args.folder}; make one: python -m tests.site make {args.folder}")
    except OSError as error:
        sys.exit(f"cannot serve {args.folder}: {error}")


if __name__ == "__main__":
    main()
