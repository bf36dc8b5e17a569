"""File systems on which the change time of a directory says whether its names are still those that it held.

Each name that comes to a directory or goes from it gives it the time of now. So a directory that has the change time
that it had holds the names that it held, and need not be listed, if

* the file system does so, and keeps it (`tests/root/test_directory_times.py`). FAT forgets the times of its root when
  it is unmounted; below an overlay lies whatever somebody put there; of btrfs the mount table names another device than
  stat; at others nobody looked;
* nobody has set the clock or changed the mounts since the names were looked at (`daemon.times`), nor put a mount into
  another's place by renaming a directory above it, of which no event tells;
* the time is from before that look, and not just before it: the clock has steps (`looker.RACY_NS`), and may have been
  ahead once.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from edgeguard.errors import DecodeError
from edgeguard.linux import mounts

TYPES = {"ext2", "ext3", "ext4", "xfs"}
LAST = (2**31 - 1) * 1_000_000_000
"""ns: where seconds have 32 bits (inodes of 128 bytes, xfs without bigtime) all that comes later has this time."""


class Believed(NamedTuple):
    """The change time of a directory on one of these devices (st_dev) can be believed if it is from before `until`."""

    devices: frozenset[int] = frozenset()
    until: int = 0  # ns


def believed(watched: set[int], until: int) -> Believed:
    """`watched`: devices that watches begin on; `until`: ns, before the last look at all names began."""
    try:
        table = [mount for mount in mounts.read() if _device(mount) in watched]
        moved = any(os.lstat(above).st_ctime_ns >= until for above in _above(table))
    except (OSError, DecodeError):
        return Believed()
    if moved:
        return Believed()
    return Believed(frozenset(_device(mount) for mount in table if mount.fstype in TYPES), min(until, LAST))


def _device(mount: mounts.Mount) -> int:
    return os.makedev(*map(int, mount.device.split(":")))


def _above(table: list[mounts.Mount]) -> set[bytes]:
    """All directories above mount points. Who renames one, and so moves the mount, gives it a new change time."""
    found = set()
    for mount in table:
        place = os.fsencode(mount.point)
        while place != b"/":
            place = os.path.dirname(place)
            found.add(place)
    return found
