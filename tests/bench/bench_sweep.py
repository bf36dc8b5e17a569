"""Cost of an unchanged sweep of 100,000 files against `find TREE -size -0` over the same tree, in paired rounds.

Run by hand or by `make bench`: prints one line per round and the median ratio of CPU time of whole processes
(start of Python included), and the sweep's peak memory. The bar is 2.5.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

BAR = 2.5
HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = "/usr/bin/python3"

# What the helper does, and nothing else: the sandboxed start of Python, one sweep, one line.
SWEEP = """
import sys
sys.path.insert(0, {here!r})
from edgeguard.model import Origin, Watch
from edgeguard.sensors import sweep
with open({db!r}, "rb", 1 << 18) as old, open({db!r} + ".new", "wb") as new:
    s = sweep.sweep([Watch({tree!r}, "other")], "/", None, old, new, 0, Origin.SWEEP, False, lambda o: None)
print('{{"files": %d, "emitted": %d, "written": %d}}' % (s.files, s.emitted, s.written))
"""
LEARN = """
import sys, time
sys.path.insert(0, {here!r})
from edgeguard.model import Watch
from edgeguard.sensors import sweep
with open({db!r} + ".manifest", "wb") as manifest, open({db!r}, "wb") as new:
    sweep.learn([Watch({tree!r}, "other")], "/", manifest, new, clock_ns=lambda: time.time_ns() + 10**10)
"""


def make_tree(tree: str, files: int) -> None:
    """Twelve files a directory, as /usr has; a few bytes each."""
    made = 0
    while made < files:
        directory = f"{tree}/{made // 1200:03d}/{made // 12 % 100:02d}"
        os.makedirs(directory)
        for number in range(min(12, files - made)):
            with open(f"{directory}/lib-file-{number}.so", "wb") as file:
                file.write(b"x" * (number + 1))
        made += 12


def measured(command: list[str]) -> tuple[float, int, bytes]:
    """(CPU seconds, peak KiB, output) of one process."""
    read, write = os.pipe()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with open(read, "rb") as pipe:
        out = pipe.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed: {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss, out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tree, db = f"{scratch}/tree", f"{scratch}/observed.db"
        os.mkdir(tree)
        make_tree(tree, options.files)
        words = {"here": HERE, "db": db, "tree": tree}
        python = [PYTHON, "-IS", "-X", f"pycache_prefix={scratch}/pyc", "-c"]
        subprocess.run([*python, LEARN.format(**words)], check=True)
        find = [shutil.which("find") or "find", tree, "-size", "-0"]
        sweep = [*python, SWEEP.format(**words)]
        measured(find), measured(sweep)  # warm: pages, dentries, .pyc
        ratios = []
        for number in range(options.rounds):
            reference, _, _ = measured(find)
            cpu, peak, out = measured(sweep)
            answer = json.loads(out)
            if answer["files"] < options.files or answer["emitted"] or answer["written"]:
                raise SystemExit(f"the sweep is not an unchanged one: {answer}")
            ratios.append(cpu / reference)
            print(f"round {number + 1}: find {reference:.3f} s, sweep {cpu:.3f} s, ratio {ratios[-1]:.2f}, {peak} KiB")
        ratio = statistics.median(ratios)
        name = f"unchanged sweep of {options.files:,} files"
        figure = {"name": name, "value": round(ratio, 2), "unit": "x find", "bar": BAR}
        print(json.dumps(figure | {"reference": f"`find TREE -size -0` {reference:.3f} s CPU; peak {peak} KiB"}))
        return ratio > BAR


if __name__ == "__main__":
    sys.exit(main())
