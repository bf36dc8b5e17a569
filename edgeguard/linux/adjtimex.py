"""Does the clock follow a time source? The kernel knows; adjtimex by ctypes asks it.

Asking needs no right, but a sandbox that forbids to set the clock (ProtectClock=yes) forbids this call with it, also
where it only reads. Then systemd-timesyncd's own sign is looked at, which is what Debian and Raspberry Pi OS run; of
another time daemon nothing is known there, and "no" is the answer.
"""

from __future__ import annotations

import ctypes
import os

TIME_ERROR = 5  # <linux/timex.h>: clock not synchronised
TIMESYNCD = "/run/systemd/timesync/synchronized"  # touched at each synchronisation; gone after a reboot

_libc = ctypes.CDLL(None, use_errno=True)


def synchronised() -> bool:
    """What timedatectl calls "System clock synchronized"."""
    timex = ctypes.create_string_buffer(
        512
    )  # struct timex has at most 208 bytes; its first field, modes = 0, only reads
    state: int = _libc.adjtimex(timex)
    return state < TIME_ERROR if state >= 0 else os.path.exists(TIMESYNCD)
