"""What this process's cgroup (version 2) limits for real.

A service manager takes every limit and says nothing where it is void: a controller may be off in the kernel (memory on
a stock Raspberry Pi), kept by the host of a container, or mounted as version 1. Then its files are not there.
"""

from __future__ import annotations

import os

from edgeguard.errors import DecodeError, Unavailable
from edgeguard.linux import mounts

FILE_MAX = 4096  # bytes; a line per hierarchy, a number per limit
LIMITS = {"memory": "memory.max", "tasks": "pids.max"}


def own(proc: str = "/proc") -> str:
    """The directory of our own cgroup. Raises Unavailable where there is none of version 2."""
    try:
        with open(f"{proc}/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            inner = [line[3:].rstrip("\n") for line in file.read(FILE_MAX).splitlines() if line.startswith("0::")]
        table = mounts.read(proc)
    except (OSError, DecodeError) as error:
        raise Unavailable(f"our cgroup is not known: {error}") from error
    points = [mount.point for mount in table if mount.fstype == "cgroup2"]
    if not inner or not points:
        raise Unavailable("cgroup version 2 is not mounted")
    return points[-1] + inner[0].rstrip("/")


def limit(directory: str, name: str) -> int | None:
    """The value of a limit such as memory.max. None: there is none, whatever was asked for."""
    try:
        with open(os.path.join(directory, name), encoding="ascii") as file:
            text = file.read(FILE_MAX).strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def unlimited(proc: str = "/proc") -> tuple[str, ...]:
    """Of what we may use as much as there is, whatever our unit says."""
    try:
        directory = own(proc)
    except Unavailable:
        return tuple(LIMITS)
    return tuple(what for what, name in LIMITS.items() if limit(directory, name) is None)
