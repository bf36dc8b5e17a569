"""A hold on suspicious processes: a pidfd each in the sensor's epoll set, so that their end is told at once."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

from edgeguard.errors import Unavailable
from edgeguard.linux import pidfd
from edgeguard.linux.procfs import Procfs

HELD_MAX = 64  # of others the next look tells


class Holding:
    """`procfs` proves that a descriptor is of the process that was meant."""

    def __init__(self, procfs: Procfs) -> None:
        self._procfs = procfs
        self._epoll: select.epoll | None = None
        self._pids: dict[int, int] = {}  # pidfd -> pid
        self._fds: dict[int, int] = {}  # pid -> pidfd

    def begin(self, epoll: select.epoll) -> None:
        """From now on; before, and below another root, nothing is held."""
        self._epoll = epoll

    def __iter__(self) -> Iterator[int]:
        """The pids that are held."""
        return iter(self._fds)

    def pid_of(self, fd: int) -> int | None:
        """Whose end this descriptor of the epoll set tells."""
        return self._pids.get(fd)

    def hold(self, pid: int, start: int) -> bool:
        """Get told of the end of this process. False if it has ended already."""
        if pid in self._fds or len(self._pids) >= HELD_MAX or self._epoll is None:
            return True
        try:
            fd = pidfd.open_same(pid, start, self._procfs)
        except ProcessLookupError:
            return False
        except (OSError, Unavailable):  # no descriptors left, or an old kernel: the next look tells
            return True
        self._epoll.register(fd, select.EPOLLIN)
        self._pids[fd], self._fds[pid] = pid, fd
        return True

    def release(self, pid: int) -> None:
        fd = self._fds.pop(pid, None)
        if fd is not None:
            del self._pids[fd]
            os.close(fd)

    def close(self) -> None:
        for fd in self._pids:
            os.close(fd)
        self._pids.clear()
        self._fds.clear()
