"""User names by number, from root's own /etc/passwd. Not by NSS, which may ask a directory server and wait for it."""

from __future__ import annotations

import os

from edgeguard.sensors.parse_accounts import users

SIZE_MAX = 1024 * 1024  # bytes; a device has about 40 users of 60 bytes


class Users:
    """Numbers to names. Reads the file again when it was changed."""

    def __init__(self, root: str = "/") -> None:
        self._path = root.rstrip("/") + "/etc/passwd"
        self._stamp: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}

    def name(self, uid: int | None) -> str:
        """The name of a user; "" for none, and for a number that has none here."""
        if uid is None:
            return ""
        self._refresh()
        return self._names.get(uid, "")

    def _refresh(self) -> None:
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                data = os.read(fd, SIZE_MAX)
            finally:
                os.close(fd)
        except OSError:
            return  # what was known stays known
        self._stamp = stamp
        self._names = parse(data)


def parse(data: bytes) -> dict[int, str]:
    """Names by uid; of several names for one number the first counts, as with getpwuid. But root is root: a line
    that somebody puts before it must not give its name to everything that root does."""
    names: dict[int, str] = {}
    for user in users(data):
        if not user.nis and (user.uid not in names or (user.uid == 0 and user.name == "root")):
            names[user.uid] = user.name
    return names
