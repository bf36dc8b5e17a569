"""File systems on which the change time of a directory says whether its names are still those that it held.

Each name that comes to a directory or goes from it gives it the time of now. So a directory that has the change time
that it had holds the names that it held, and need not be listed, if three things are known:

* the file system does so, and keeps it (`tests/root/test_directory_times.py`). FAT forgets the times of its root when
  it is unmounted; below an overlay lies whatever somebody put there; of btrfs the mount table names another device than
  stat; at others nobody looked;
* nobody has set the clock since the names were seen: root can set it to that time and make a name then;
* it is the same file system: times of another one may be anything.

A time that was just then when the directory was seen, and could be given twice, is never kept (`looker.RACY_NS`).
"""

from __future__ import annotations

import os

from edgeguard.errors import DecodeError
from edgeguard.linux import mounts

TYPES = {"ext2", "ext3", "ext4", "xfs"}


def devices() -> frozenset[int]:
    """All that have such a file system (st_dev)."""
    try:
        table = mounts.read()
    except (OSError, DecodeError):
        return frozenset()
    return frozenset(os.makedev(*map(int, mount.device.split(":"))) for mount in table if mount.fstype in TYPES)
