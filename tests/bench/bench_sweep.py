"""Cost of an unchanged sweep of 100,000 files against `find TREE -size -0` over the same tree, in paired rounds.

Run by hand or by `make bench`: prints one line per round and the median ratio of CPU time of whole processes. Ours is
the helper that the daemon starts, its start and its settings included: as it is most of the time, and as it is once a
day, when it lists every directory. Its peak memory, as the kernel counts it for the process itself, is measured with a
tenth of the files, too: it must not grow with them.
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
import time
from collections.abc import Sequence
from typing import NamedTuple

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [HERE]

from edgeguard.codec import cbor  # noqa: E402 - of the tree that this file is in
from edgeguard.daemon.frames import Unpacker, watches_to_plain  # noqa: E402
from edgeguard.model import Origin, Watch  # noqa: E402

BAR = 1.6  # it is 1.1 to 1.2
LISTING_BAR = 1.9  # it is 1.3 to 1.5
PEAK_BAR_KB = 14 * 1024
GROWTH_BAR_KB = 512
PYTHON = "/usr/bin/python3"

# `edgeguard-helper sweep`, and then its own peak memory: what wait4 tells is also that of the process that started it.
SWEEP = """
import os, sys
sys.argv[:] = ["edgeguard-helper", "sweep", "--settings", {settings!r}]
sys.path += [{here!r}, "/usr/lib/python3/dist-packages"]
from edgeguard import typing_names
typing_names.install()
from edgeguard.daemon.helper import main
status = main(sys.argv[1:])
with open("/proc/self/status") as file:
    sys.stderr.write(next(line for line in file if line.startswith("VmHWM")))
sys.stderr.flush()
os._exit(status)
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


def measured(command: list[str], files: Sequence[tuple[int, int, int]] = ()) -> tuple[float, int, bytes]:
    """(CPU seconds, peak KiB, output) of one process. The peak is not below that of this one."""
    read, write = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write, 1), *files]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    os.close(write)
    with open(read, "rb") as pipe:
        out = pipe.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed: {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss, out


class World(NamedTuple):
    """A tree that was learned, and the commands that go through it."""

    find: list[str]
    sweep: list[str]
    files: int


def make_world(scratch: str, files: int) -> World:
    tree, state, settings = f"{scratch}/tree", f"{scratch}/state", f"{scratch}/agent.toml"
    os.makedirs(tree)
    os.mkdir(state)
    make_tree(tree, files)
    with open(settings, "w") as file:
        file.write(f'[paths]\nstate = "{state}"\n')
    words = {"here": HERE, "db": f"{state}/observed.db", "tree": tree, "settings": settings}
    python = [PYTHON, "-ISOO", "-X", f"pycache_prefix={os.path.dirname(scratch)}/pyc", "-c"]
    subprocess.run([*python, LEARN.format(**words)], check=True)
    asked = {
        "watches": watches_to_plain((Watch(tree, "other"),)),
        "origin": int(Origin.SWEEP),
        "full": False,
        "cached": False,
        "compare": False,
        "low": True,
        "manifest": None,
        "targets": [],
        "since": time.time_ns() + 10**10,  # as it is asked while nobody sets the clock
    }
    for name, more in (("request", {}), ("listing", {"since": None})):
        with open(f"{scratch}/{name}", "wb") as request:
            request.write(cbor.encode(asked | more))
    sweep = [*python, SWEEP.format(**words)]
    return World([shutil.which("find") or "find", tree, "-size", "-0"], sweep, files)


def swept(world: World, scratch: str, name: str = "request") -> tuple[float, int]:
    """(CPU seconds, peak KiB) of an unchanged sweep."""
    with open(f"{scratch}/{name}", "rb") as request, open(f"{scratch}/said", "w+b") as said:
        to = [(os.POSIX_SPAWN_DUP2, request.fileno(), 0), (os.POSIX_SPAWN_DUP2, said.fileno(), 2)]
        cpu, _, out = measured(world.sweep, to)
        said.seek(0)
        peak = int(said.read().split()[-2])
    messages = Unpacker().feed(out)
    summary = messages[-1].get("summary", messages[-1])
    if summary.get("files", 0) < world.files or summary["emitted"] or summary["written"]:
        raise SystemExit(f"the sweep is not an unchanged one: {summary}")
    return cpu, peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        small = make_world(f"{scratch}/small", max(1, options.files // 10))
        large = make_world(f"{scratch}/large", options.files)
        swept(small, f"{scratch}/small"), measured(large.find)  # warm: pages, dentries, .pyc
        _, least = swept(small, f"{scratch}/small")
        swept(large, f"{scratch}/large")
        ratios, listing = [], []
        for number in range(options.rounds):
            reference, _, _ = measured(large.find)
            cpu, peak = swept(large, f"{scratch}/large")
            ratios.append(cpu / reference)
            listing.append(swept(large, f"{scratch}/large", "listing")[0] / reference)
            print(f"round {number + 1}: find {reference:.3f} s, sweep {cpu:.3f} s, ratio {ratios[-1]:.2f}, {peak} KiB")
        ratio = statistics.median(ratios)
        name = f"unchanged sweep of {options.files:,} files"
        figure(name, round(ratio, 2), "x find", BAR, f"`find TREE -size -0` {reference:.3f} s CPU; goal 1.6")
        most = round(statistics.median(listing), 2)
        figure("one that lists every directory", most, "x find", LISTING_BAR, "once a day; goal 1.6")
        figure("its peak memory", peak, "kB", PEAK_BAR_KB, "the whole helper")
        figure("what nine tenths of the files add", peak - least, "kB", GROWTH_BAR_KB, f"{least} kB with a tenth")
    return 0


def figure(name: str, value: float, unit: str, bar: float, reference: str) -> None:
    print(json.dumps({"name": name, "value": value, "unit": unit, "bar": bar, "reference": reference}))


if __name__ == "__main__":
    sys.exit(main())
