"""What the processor can do, as /proc/cpuinfo says it: "flags" on x86, "Features" on ARM, one line a core.

The Raspberry Pi 4 and older have no instructions for SHA-256, the Pi 5 has. Linux tells on ARM only what all cores
have, so the first line counts.
"""

from __future__ import annotations

CPUINFO = "/proc/cpuinfo"
READ_MAX = 64 * 1024  # bytes: a core takes some 1.5 KiB, and the first is enough
SHA256 = frozenset((b"sha_ni", b"sha2"))


def computes_sha256(path: str = CPUINFO) -> bool | None:
    """Are there instructions for SHA-256? None where nothing tells."""
    try:
        with open(path, "rb") as file:
            text = file.read(READ_MAX)
    except OSError:
        return None
    for line in text.split(b"\n"):
        name, colon, words = line.partition(b":")
        if colon and name.strip() in (b"flags", b"Features"):
            return not SHA256.isdisjoint(words.split())
    return None
