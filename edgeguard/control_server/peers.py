"""Who asks, as the kernel says, what they may, and the socket file that lets them in."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import NamedTuple

from edgeguard.control import Access

BACKLOG = 64  # connections the kernel keeps for us between two turns of the loop
GROUPS_MAX = 1024  # bytes of SO_PEERGROUPS that Python's getsockopt reads: 256 groups
SO_PEERGROUPS = 59  # asm-generic/socket.h; not in the socket module

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_NO_LOGIN = 2**32 - 1


class Peer(NamedTuple):
    """Who asks, as the kernel says. `pid` is for information only: it may be another process by now."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    login_uid: int | None = None  # so that `sudo edgeguard accept` is recorded under the person's name


class Rights(NamedTuple):
    """Whom the two kinds of verbs are for; group ids are looked up by the wiring. -1: there is no such group."""

    owner: int = 0  # the daemon's own uid
    readers: int = -1
    admins: int = -1

    def allows(self, peer: Peer, access: Access) -> bool:
        if peer.uid in {0, self.owner}:
            return True
        mine = {peer.gid, *peer.groups}
        if self.admins >= 0 and self.admins in mine:
            return True
        return access is Access.READ and self.readers >= 0 and self.readers in mine


def listen(path: str, rights: Rights) -> socket.socket:
    """The socket file: 0660, of the reader group where there is one. A stale one of ours is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    old = os.umask(0o777)  # nobody gets in between bind and chmod
    try:
        listener.bind(path)
    finally:
        os.umask(old)
    if rights.readers >= 0:
        with contextlib.suppress(PermissionError):  # a daemon of an ordinary user: only that user asks
            os.chown(path, -1, rights.readers)
    os.chmod(path, 0o660)
    listener.listen(BACKLOG)
    return listener


def peer_of(connection: socket.socket) -> Peer:
    """What the kernel noted when the peer connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid, gid, _groups_of(connection), _login_uid(pid))


def _groups_of(connection: socket.socket) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_MAX)
    except OSError:  # ERANGE: in more groups than we read; then only the primary one counts
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _login_uid(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/loginuid", "rb") as file:
            uid = int(file.read(16))
    except (OSError, ValueError):
        return None
    return None if uid == _NO_LOGIN else uid


def who_may(access: Access) -> str:
    if access is Access.ACT:
        return "only root and members of group edgeguard-admin may do this"
    return "only root and members of group edgeguard or edgeguard-admin may ask"
