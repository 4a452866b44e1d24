"""`curate shard TARS --uids half.npy`: how fast tars are scanned for the chosen uids, and the whole command with its checksums.

The peer is the plain loop that one writes with webdataset: read every sample, look its uid up, write it into a new tar. Limits:
3 times the scanning and 1.5 times the whole of DataComp's own resharder: 4,114 such images a second, and 5.0 s, on two cores.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from curate.reshard import WORK, Choice, choose, read_uids, rows_of_files
from tests.benchmarks import ROOT, Row, median_seconds

IMAGES, PER_TAR, IMAGE_BYTES = 6_000, 1_000, 30_000
PEER = """
import glob, json, sys, time
import numpy as np
import webdataset as wds
begin = time.perf_counter()
wanted = {tuple(pair) for pair in np.load("half.npy").tolist()}
samples = wds.WebDataset(sorted(glob.glob("tars/*.tar")), shardshuffle=False, empty_check=False)
out = wds.TarWriter("peer.tar") if sys.argv[1] == "write" else None
kept = 0
for sample in samples:
    uid = json.loads(sample["json"])["uid"]
    if (int(uid[:16], 16), int(uid[16:], 16)) in wanted:
        kept += 1
        if out:
            out.write({key: sample[key] for key in ("__key__", "jpg", "txt", "json")})
if out:
    out.close()
assert kept == len(wanted), kept
print(time.perf_counter() - begin)
"""


def run() -> list[Row]:
    """Images scanned a second, and seconds of the whole command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder)
        sizes = f"{IMAGES:,} images of {IMAGE_BYTES // 1000} kB, half kept"
        scan = median_seconds(lambda: scanned(folder), repeats=3)
        peer_scan = peer(folder, "read")
        whole = median_seconds(lambda: command(folder), repeats=3)
        peer_whole = median_seconds(lambda: peer(folder, "write"), repeats=1)
    return [Row("reshard_scan", "images/s", IMAGES / scan, IMAGES / peer_scan, limit="ours >= 12342", sizes=sizes),
            Row("reshard_command", "s", whole, peer_whole, limit="ours <= 3.33", sizes=sizes)]


def write_tars(folder: Path) -> None:
    """Tars as DataComp's download tool leaves them, and a uid list of every second image at random."""
    import webdataset

    rng = np.random.default_rng(0)
    (folder / "tars").mkdir()
    uids = [hashlib.md5(b"%d" % i, usedforsecurity=False).hexdigest() for i in range(IMAGES)]
    for first in range(0, IMAGES, PER_TAR):
        with webdataset.TarWriter(str(folder / "tars" / f"{first // PER_TAR:08d}.tar")) as out:
            for i in range(first, first + PER_TAR):
                meta = {"uid": uids[i], "url": f"http://site.org/{i}.jpg", "caption": f"caption number {i}", "key": f"{i:012d}",
                        "status": "success", "error_message": None, "width": 512, "height": 384, "exif": "{}", "sha256": "0" * 64}
                out.write({"__key__": f"{i:012d}", "jpg": b"\xff\xd8\xff\xe0" + rng.bytes(IMAGE_BYTES - 4),
                           "txt": meta["caption"], "json": json.dumps(meta)})
    half = random.Random(0).sample(uids, IMAGES // 2)
    np.save(folder / "half.npy", np.sort(np.array([(int(u[:16], 16), int(u[16:], 16)) for u in half], np.dtype("u8,u8"))))


def scanned(folder: Path) -> None:
    """What `curate shard` does before it writes."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    choice = Choice(read_uids(folder / "half.npy"))
    given = rows_of_files(str(folder / "tars"), folder / WORK, "bench")
    for number in range(given.source.num_shards):
        choose(given, choice, number, "chosen")
    assert sum(given.store.kept_footer("chosen", n)[1] for n in range(given.source.num_shards)) == IMAGES // 2


def command(folder: Path) -> None:
    """The whole command, in a process of its own."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "curate", "shard", str(folder / "tars"), "--uids", str(folder / "half.npy"), "--out",
                    str(folder / "out"), "--workers", "2"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def peer(folder: Path, what: str) -> float:
    """The loop over webdataset, in a process of its own; the seconds it took once webdataset was imported."""
    command = [sys.executable, "-W", "ignore", "-c", PEER, what]
    return float(subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE).stdout)
