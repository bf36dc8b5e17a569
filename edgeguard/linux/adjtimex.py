"""Does the kernel's clock follow a time source? adjtimex by ctypes; asking needs no right."""

from __future__ import annotations

import ctypes

TIME_ERROR = 5  # <linux/timex.h>: clock not synchronised

_libc = ctypes.CDLL(None, use_errno=True)


def synchronised() -> bool:
    """What timedatectl calls "System clock synchronized"."""
    timex = ctypes.create_string_buffer(
        512
    )  # struct timex has at most 208 bytes; its first field, modes = 0, only reads
    state: int = _libc.adjtimex(timex)
    return 0 <= state < TIME_ERROR
