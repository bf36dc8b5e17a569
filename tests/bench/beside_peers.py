"""EdgeGuard, AIDE and samhain on the same trees in one run: 100,000 files made for it, and /usr.

CPU time (user and system) of whole processes, everything in memory, the same attributes for all. Ours is measured in
turn with `find TREE -size -0` (which asks for every file's attributes, too) and with `find | xargs sha256sum`; the
peers, whose times are tens of seconds, once, while the other core prepares the next. Needs root and, the first time, a
network; what is not to be had is said.

    beside_peers.py [--files N] [--usr PATH] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import peers
from bench_sweep import HERE, PYTHON, measured

KEPT = Path(HERE) / "build/bench/peers"
PER_DIRECTORY = 100
SMALLEST, LARGEST = 1024, 65536  # bytes; sizes are spread evenly over their logarithms, 15 kB on the average
JUDGED = 100_000  # files; with fewer, Python's start is most of it, and no bar holds
# Of the peers' CPU, in percent: what is allowed, and the goal in times.
PLAIN_BAR, PLAIN_GOAL = 2.5, 40
SHA256_BAR, SHA256_GOAL = 1.11, 90
SAMHAIN_BAR = 4.0
LEARN_BAR, CACHED_BAR, AGAIN_BAR = 0.6, 0.6, 1.8  # of `find | xargs sha256sum`
SWEEP_BAR = 1.6  # of `find -size -0`

OURS = """
import sys
sys.path.insert(0, {here!r})
from edgeguard import typing_names
typing_names.install()  # as the helper begins, and below as it ends
from edgeguard.model import Origin, Watch
from edgeguard.sensors import sweep
watches = [Watch({tree!r}, "other")]
"""
LEARN = (
    OURS
    + """
import os, time
with open({db!r} + ".manifest", "wb") as manifest, open({db!r}, "wb") as new:
    sweep.learn(watches, "/", manifest, new, clock_ns=lambda: time.time_ns() + 10**10)
os._exit(0)
"""
)
SWEEP = (
    OURS
    + """
import os
from edgeguard.codec import manifest
def references():
    return manifest.Reader(os.open({db!r} + ".manifest", os.O_RDONLY))
with open({db!r}, "rb") as old, open({db!r} + ".new", "wb") as new:
    done = sweep.sweep(watches, "/", references, old, new, 0, Origin.SWEEP, {full}, lambda seen: None,
        cached={cached}, since={since})
print(done.files, done.emitted, flush=True)
os._exit(0)
"""
)


class Tree(NamedTuple):
    name: str
    path: str
    work: Path
    files: int  # at least
    judged: bool


def make_tree(top: str, files: int) -> None:
    """The same every time; no two files have the same content."""
    chance = random.Random(1)
    stuff = chance.randbytes(8 << 20)
    low, high = math.log(SMALLEST), math.log(LARGEST)
    for number in range(files):
        directory = f"{top}/{number // PER_DIRECTORY // 32:03d}/{number // PER_DIRECTORY % 32:02d}"
        if number % PER_DIRECTORY == 0:
            os.makedirs(directory)
        size = int(math.exp(chance.uniform(low, high)))
        at = chance.randrange(len(stuff) - size)
        with open(f"{directory}/f{number:06d}.dat", "wb", buffering=0) as file:
            file.write(number.to_bytes(8, "little") + stuff[at : at + size - 8])


def cpu(command: list[str]) -> float:
    return measured(command)[0]


def ours(tree: Tree, text: str, **more: object) -> list[str]:
    since = time.time_ns()  # as the daemon asks for it, while nobody sets the clock
    words = {"here": HERE, "db": f"{tree.work}/observed.db", "tree": tree.path, "since": since, **more}
    return [PYTHON, "-ISOO", "-X", f"pycache_prefix={KEPT.parent}/pyc", "-c", text.format(**words)]


def figure(name: str, value: float, unit: str, bar: float | None, reference: str) -> None:
    row = {"name": name, "value": round(value, 3), "unit": unit, "reference": reference}
    print(json.dumps(row if bar is None else row | {"bar": bar}), flush=True)


def pairs(rounds: int, one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float, float]:
    """(median ratio, median of one, median of the other), in turn."""
    found = [(one(), other()) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in found)
    return ratio, statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def ourselves(tree: Tree, rounds: int) -> float:
    """Our figures of one tree; the CPU seconds of an unchanged sweep."""
    find = ["/usr/bin/find", tree.path, "-xdev", "-size", "-0"]
    sums = f"find {shlex.quote(tree.path)} -xdev -type f -print0 | xargs -0 sha256sum > /dev/null 2>&1 || [ $? = 123 ]"
    xargs = ["/bin/sh", "-c", sums]
    learn = ours(tree, LEARN)
    sweep = ours(tree, SWEEP, full=False, cached=False)
    cpu(xargs), cpu(learn), cpu(find)  # warm: pages, names, compiled code
    ratio, mine, theirs = pairs(rounds, lambda: swept(tree, sweep), lambda: cpu(find))
    figure(
        f"{tree.name}: unchanged sweep",
        ratio,
        "x find",
        SWEEP_BAR if tree.judged else None,
        f"{mine:.3f} s CPU, find {theirs:.3f} s; goal 1.6",
    )
    unchanged = mine
    listing = ours(tree, SWEEP, full=False, cached=False, since=None)
    ratio, mine, theirs = pairs(max(1, rounds // 3), lambda: swept(tree, listing), lambda: cpu(find))
    figure(f"{tree.name}: one that lists every directory", ratio, "x find", None, f"{mine:.3f} s CPU, once a day")
    floor = [PYTHON, "-ISOO", f"{HERE}/tests/bench/floor.py", tree.path]
    for name, command, bar in (
        ("floor: the barest loop in Python that leaves nothing out", floor, None),
        ("first learn", learn, LEARN_BAR),
        ("all read again, as programs get it", ours(tree, SWEEP, full=True, cached=True), CACHED_BAR),
        ("all read again, disk and memory", ours(tree, SWEEP, full=True, cached=False), AGAIN_BAR),
    ):
        ratio, mine, theirs = pairs(max(1, rounds // 3), partial(cpu, command), partial(cpu, xargs))
        text = f"{mine:.2f} s CPU, find | xargs sha256sum {theirs:.2f} s" + ("; goal 0.4" if command != floor else "")
        figure(f"{tree.name}: {name}", ratio, "x sha256sum", bar if tree.judged else None, text)
    return unchanged


def swept(tree: Tree, command: list[str]) -> float:
    spent, _, out = measured(command)
    files, emitted = map(int, out.split())
    if emitted and tree.path == "/usr":
        print(f"/usr changed meanwhile: {emitted} told")  # somebody else's doing, and too little to matter
    elif files < tree.files or emitted:
        raise SystemExit(f"{tree.path}: the sweep is not an unchanged one: {files} names, {emitted} told")
    return spent


def aide(there: peers.Peers, tree: Tree, *, sha256: bool) -> float:
    """CPU seconds of a check that finds nothing."""
    conf = peers.aide_setup(tree.work, tree.path, sha256=sha256)
    with_libraries(there, [there.aide, "-c", conf, "--init"])
    os.rename(conf.replace(".conf", ".new"), conf.replace(".conf", ".db"))
    return with_libraries(there, [there.aide, "-c", conf, "--check"])


def samhain(there: peers.Peers, tree: Tree) -> tuple[float, float]:
    """CPU seconds of making its database and of a check that finds nothing."""
    room = peers.samhain_setup(tree.work, tree.path)
    first = with_libraries(there, peers.samhain_command(there, room, "-t", "init", "-p", "none"))
    again = with_libraries(there, peers.samhain_command(there, room, "-t", "check", "--foreground", "-p", "none"))
    return first, again


def with_libraries(there: peers.Peers, command: list[str]) -> float:
    path = ["/usr/bin/env", f"LD_LIBRARY_PATH={there.libraries}"]
    # Below 8: AIDE found differences, because /usr lives; from 8 on it failed.
    return cpu(["/bin/sh", "-c", f"{shlex.join([*path, *command])} > /dev/null 2>&1 || [ $? -lt 8 ]"])


def against(there: peers.Peers, tree: Tree, unchanged: float, found: dict[str, object]) -> None:
    for key, name, bar, goal in (
        ("plain", "AIDE without hashes", PLAIN_BAR, PLAIN_GOAL),
        ("sha256", "AIDE with SHA-256", SHA256_BAR, SHA256_GOAL),
    ):
        spent = found.get(key)
        if isinstance(spent, float):
            text = f"AIDE {there.versions['aide']} {spent:.1f} s CPU: {spent / unchanged:.0f} times; goal {goal}"
            figure(f"{tree.name}: sweep of {name}", 100 * unchanged / spent, "%", bar if tree.judged else None, text)
    if isinstance(found.get("samhain"), tuple):
        first, again = found["samhain"]
        text = (
            f"samhain {there.versions['samhain']} {again:.1f} s CPU: {again / unchanged:.0f} times; init {first:.1f} s"
        )
        figure(
            f"{tree.name}: sweep of samhain's check",
            100 * unchanged / again,
            "%",
            SAMHAIN_BAR if tree.judged else None,
            text,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--usr", default="/usr")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if os.geteuid():
        print("needs root: samhain has its paths compiled in, and is given a room of its own")
        return 77
    there = peers.fetch(KEPT)
    for name, why in there.why.items():
        print(f"not compared with {name}: {why}")
    with tempfile.TemporaryDirectory(prefix="edgeguard-bench-", dir="/tmp") as scratch:
        made, judged = f"{scratch}/tree", options.files >= JUDGED
        trees = [Tree(f"{options.files:,} files", made, Path(scratch) / "made", options.files, judged)]
        trees.append(Tree(options.usr, options.usr, Path(scratch) / "usr", 1, judged))
        for tree in trees:
            tree.work.mkdir()
        os.mkdir(made)
        make_tree(made, options.files)
        # Two lanes, one a core: what takes longest goes first.
        with ThreadPoolExecutor(2) as lanes:
            jobs: dict[tuple[str, str], object] = {}
            for tree in reversed(trees):
                if there.aide:
                    jobs[tree.name, "sha256"] = lanes.submit(aide, there, tree, sha256=True)
                    jobs[tree.name, "plain"] = lanes.submit(aide, there, tree, sha256=False)
                if there.samhain:
                    jobs[tree.name, "samhain"] = lanes.submit(samhain, there, tree)
            own = {tree.name: lanes.submit(ourselves, tree, options.rounds) for tree in trees}
            for tree in trees:
                kinds = {kind: job.result() for (name, kind), job in jobs.items() if name == tree.name}
                against(there, tree, own[tree.name].result(), kinds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
