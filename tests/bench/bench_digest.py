"""What a baseline costs with BLAKE2b against one with SHA-256, where the processor has no instructions for SHA-256.

OpenSSL is told not to use them (`OPENSSL_ia32cap`, `OPENSSL_armcap`); the interpreter's own functions never do.
Learning and both ways of reading everything again, whole processes, in pairs: CPU time of BLAKE2b's divided by
SHA-256's, and their peak memory. `--native` measures with whatever the processor has.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = "/usr/bin/python3"
WITHOUT = {"OPENSSL_ia32cap": ":~0x20000000", "OPENSSL_armcap": "0x1"}  # no SHA on x86; nothing but NEON on ARM
BAR = 1.0
PEAK_BAR = 0.9

WORK = """
import sys, time
sys.path[:0] = [{here!r}]
sys.path.append("/usr/lib/python3/dist-packages")
from edgeguard import typing_names
typing_names.install()
from edgeguard.codec import manifest
from edgeguard.codec.digests import Algorithm
from edgeguard.model import Origin, Watch
from edgeguard.sensors import sweep
watches, late, db = [Watch({tree!r}, "other")], lambda: time.time_ns() + 10**10, {db!r}
what, algorithm = sys.argv[1], Algorithm(sys.argv[2])
if what == "learn":
    with open(db + ".egm", "wb") as made, open(db, "wb") as new:
        sweep.learn(watches, "/", made, new, clock_ns=late, algorithm=algorithm)
else:
    with open(db, "rb") as old, open(db + ".new", "w+b") as new, open(db + ".egm", "rb") as known:
        told = []
        reader = manifest.Reader(known.fileno())
        more = dict(cached=what == "cached", clock_ns=late, algorithm=algorithm)
        done = sweep.sweep(watches, "/", reader, old, new, 0, Origin.SWEEP, True, told.append, **more)
        assert not told and done.bytes_read, (told, done.bytes_read)
with open("/proc/self/status") as file:
    print(next(line for line in file if line.startswith("VmHWM")).split()[1])
"""
STEPS = {"learn": "first learn", "cached": "all read again, page cache", "full": "all read again, disk and memory"}


def make_tree(tree: str, files: int, largest: int) -> None:
    """A hundred files a directory, of 1 byte to `largest`, the same in every run."""
    dice = random.Random(1)
    for number in range(files):
        if number % 100 == 0:
            folder = f"{tree}/{number // 100:04d}"
            os.makedirs(folder)
        with open(f"{folder}/{number:06d}", "wb") as file:
            file.write(dice.randbytes(dice.randrange(1, largest)))


def measured(scratch: str, what: str, algorithm: str, environment: dict[str, str]) -> tuple[float, int]:
    """(CPU seconds, peak KiB) of one process."""
    before = os.times()
    text = WORK.format(here=HERE, tree=f"{scratch}/tree", db=f"{scratch}/{algorithm}")
    command = [PYTHON, "-ISOO", "-X", f"pycache_prefix={scratch}/pyc", "-c", text, what, algorithm]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, int(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--largest", type=int, default=64 << 10, help="bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--native", action="store_true", help="let OpenSSL use what the processor has")
    options = parser.parse_args()
    environment = {**os.environ, **({} if options.native else WITHOUT)}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:  # a disk: /tmp may be memory
        make_tree(f"{scratch}/tree", options.files, options.largest)
        os.sync()
        for name in ("sha256", "blake2b"):
            measured(scratch, "learn", name, environment)  # warm: pages, .pyc
        for what, words in STEPS.items():
            pairs, peaks = [], []
            for _ in range(options.rounds):
                (sha, sha_peak), (blake, blake_peak) = (
                    measured(scratch, what, name, environment) for name in ("sha256", "blake2b")
                )
                pairs.append((blake / sha, blake, sha))
                peaks.append((blake_peak, sha_peak))
            ratio, blake, sha = (statistics.median(column) for column in zip(*pairs, strict=True))
            bar = None if options.native else BAR
            figure(f"{words}, BLAKE2b", round(ratio, 2), "x SHA-256", bar, f"{blake:.2f} s against {sha:.2f} s CPU")
            most, other = max(peak for peak, _ in peaks), min(peak for _, peak in peaks)
            figure("its peak memory", round(most / other, 2), "x SHA-256", PEAK_BAR, f"{most} kB against {other} kB")
    return 0


def figure(name: str, value: float, unit: str, bar: float | None, reference: str) -> None:
    print(json.dumps({"name": name, "value": value, "unit": unit, "bar": bar, "reference": reference}))


if __name__ == "__main__":
    sys.exit(main())
