"""What a running daemon takes: memory, CPU and wake-ups over a window. Used by `make bench`; not a test by itself.

    window.py PID [SECONDS] [--json] [--limits]

CPU comes from /proc/PID/task/*/schedstat in nanoseconds, so that one millisecond a minute still shows; wake-ups are
voluntary context switches. Short-lived children (sweeps, seals) are counted where the kernel adds them up: in the
times of children that were waited for. `--limits` exits 1 when a limit of the design is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import NamedTuple

# The design's limits for the resident daemon with all sensors after learning 50,000 files.
RSS_KB = 24 * 1024
PRIVATE_DIRTY_KB = 14 * 1024
CPU_S_PER_HOUR = 2.0
WAKEUPS_PER_MINUTE = 10.0

_TICKS = os.sysconf("SC_CLK_TCK")


class Use(NamedTuple):
    """Counters of one process since it started."""

    cpu_ns: int
    children_s: float
    wakeups: int


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def use(pid: int) -> Use:
    cpu = wakeups = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        cpu += int(read(f"/proc/{pid}/task/{task}/schedstat").split()[0])
        for line in read(f"/proc/{pid}/task/{task}/status").splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                wakeups += int(line.split()[1])
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return Use(cpu, (int(fields[13]) + int(fields[14])) / _TICKS, wakeups)


def memory(pid: int) -> dict[str, int]:
    """kB by name, from smaps_rollup."""
    found = {}
    for line in read(f"/proc/{pid}/smaps_rollup").splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return found


def measure(pid: int, seconds: float) -> dict[str, float]:
    """All figures over one window."""
    before, began = use(pid), time.monotonic()
    time.sleep(seconds)
    after, window = use(pid), time.monotonic() - began
    kb = memory(pid)
    return {
        "rss_kb": kb["Rss"],
        "pss_kb": kb["Pss"],
        "private_dirty_kb": kb["Private_Dirty"],
        "cpu_s_per_hour": round((after.cpu_ns - before.cpu_ns) / 1e9 / window * 3600, 3),
        "children_s_per_hour": round((after.children_s - before.children_s) / window * 3600, 3),
        "wakeups_per_minute": round((after.wakeups - before.wakeups) / window * 60, 1),
        "window_s": round(window, 1),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


def exceeded(figures: dict[str, float]) -> list[str]:
    limits = {
        "rss_kb": RSS_KB,
        "private_dirty_kb": PRIVATE_DIRTY_KB,
        "cpu_s_per_hour": CPU_S_PER_HOUR,
        "wakeups_per_minute": WAKEUPS_PER_MINUTE,
    }
    return [f"{name}: {figures[name]} > {limit}" for name, limit in limits.items() if figures[name] > limit]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pid", type=int)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--limits", action="store_true")
    options = parser.parse_args()
    try:
        figures = measure(options.pid, options.seconds)
    except FileNotFoundError:
        print(f"no process {options.pid}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value:>12}")
    problems = exceeded(figures) if options.limits else []
    for line in problems:
        print(f"exceeded: {line}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
