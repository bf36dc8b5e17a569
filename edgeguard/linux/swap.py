"""Where the kernel may write memory to: swap. What is compressed in memory (zram) is memory."""

from __future__ import annotations

import os

FILE_MAX = 64 * 1024  # bytes of /proc/swaps; a line has 80
_ZRAM = "/dev/zram"


def places(path: str = "/proc/swaps") -> tuple[str, ...]:
    """Files and devices that are swapped to; () where there are none, or the kernel has no swap at all."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()
    with open(fd, "rb") as file:
        lines = file.read(FILE_MAX).decode("utf-8", "surrogateescape").splitlines()
    names = (line.split()[0] for line in lines[1:] if line.strip())
    return tuple(name for name in names if not name.startswith(_ZRAM))
