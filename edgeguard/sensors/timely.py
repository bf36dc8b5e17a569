"""File systems on which the change time of a directory says whether its names are still those that it held.

Each name that comes to a directory or goes from it gives it the time of now. So a directory that has the change time
that it had holds the names that it held, and need not be listed, if

* the file system does so, and keeps it (`tests/root/test_directory_times.py`). FAT forgets the times of its root when
  it is unmounted; below an overlay lies whatever somebody put there; of btrfs the mount table names another device than
  stat; at others nobody looked;
* nobody has set the clock or changed the mounts since the names were looked at (`daemon.times`);
* the time is from before that look, and not just before it: the clock has steps (`looker.RACY_NS`), and may have been
  ahead once.
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
