"""/proc, read raw: one process at a time through a descriptor of its directory. Knows what fields mean, judges nothing.

Reading through a directory descriptor makes the parts of one look belong together: when the process ends and its
number is given away, the old descriptor answers ESRCH and never tells of the new process.
Everything may vanish between two calls; that is `None` or an OSError where said, never a surprise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import NamedTuple

from edgeguard.errors import DecodeError

PF_KTHREAD = 0x00200000
DELETED = " (deleted)"  # what the kernel appends to the name of an unlinked file; a real name may end like this too
NO_LOGIN = 0xFFFFFFFF  # loginuid and sessionid of what was not started in a login

ARGV_BYTES = 4096  # read of a command line; the rest says little and may be 2 MiB
ARGV_ITEMS = 64
FILE_BYTES = 8192  # stat, status, cgroup: some hundred bytes; a group list may be long
LINKS_MAX = 50_000  # readlink calls per search for socket owners, about 75 ms
_UNIT = re.compile(r"[^/]+\.(?:service|scope|socket|mount|swap)\Z")


class Stat(NamedTuple):
    name: str
    state: str  # R S D Z T t X I
    ppid: int
    session: int
    tty: int
    flags: int
    start: int  # clock ticks since boot: with the pid, the identity of a process


class Process(NamedTuple):
    """One process as it was at one moment. Unknown parts: None, "" or ()."""

    pid: int
    start: int
    ppid: int
    link: str  # /proc/PID/exe as read, with " (deleted)" if it is there; "": not for us to see
    argv: tuple[str, ...]
    uid: int | None  # real uid
    login_uid: int | None
    session: str  # id of the login session, as in /run/systemd/sessions/ID
    tty: str
    unit: str


class Owner(NamedTuple):
    """Who holds a socket, and through which descriptor."""

    pid: int
    fd: int


class Procfs:
    """A /proc below `root`."""

    def __init__(self, root: str = "/") -> None:
        self.path = root.rstrip("/") + "/proc"

    def pids(self) -> list[int]:
        """Numbers of all processes. Raises OSError when there is no /proc."""
        return [int(name) for name in os.listdir(self.path) if name.isdigit()]

    def open(self, pid: int) -> int:
        """A descriptor of the directory of `pid`; the caller closes it. Raises OSError."""
        return os.open(f"{self.path}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def exe(self, pid: int) -> str | None:
        """The exe link. "": no executable (kernel thread, zombie). None: gone, or not for us to see."""
        try:
            return os.readlink(f"{self.path}/{pid}/exe")
        except FileNotFoundError:
            return "" if os.path.exists(f"{self.path}/{pid}/stat") else None
        except OSError:
            return None

    def start(self, pid: int) -> int | None:
        """When the process started, in clock ticks since boot; None when it is gone."""
        try:
            return parse_stat(_read(f"{self.path}/{pid}/stat", None)).start
        except (OSError, DecodeError):
            return None

    def look(self, pid: int) -> Process | None:
        """All that Process holds, in one go; None when it is gone or is a kernel thread.

        Of a process that is not for us to look into, the rest is there and `link` is "".
        The exe link comes first: it is what matters most, and short-lived processes are gone in a moment.
        """
        try:
            fd = self.open(pid)
        except OSError:
            return None
        try:
            link = _exe(fd)
            argv = _bytes("cmdline", fd, ARGV_BYTES)
            stat = parse_stat(_read("stat", fd))
            return _process(pid, link, argv, stat, fd)
        except (OSError, DecodeError):
            return None
        finally:
            os.close(fd)

    def owners(self, inodes: Collection[int], first: Collection[int] = ()) -> dict[int, Owner]:
        """Which process holds each of these sockets, as far as it can be found.

        pid 1 is asked first, so that a socket which systemd passes on always belongs to it; then those in `first`;
        then all others, newest first, because new sockets mostly belong to new processes. Bounded by LINKS_MAX.
        """
        wanted = {f"socket:[{inode}]": inode for inode in inodes}
        found: dict[int, Owner] = {}
        left = LINKS_MAX
        others = sorted(self.pids(), reverse=True)
        for pid in dict.fromkeys((1, *first, *others)):
            if not wanted or left <= 0:
                break
            directory = f"{self.path}/{pid}/fd"
            try:
                names = os.listdir(directory)
            except OSError:
                continue
            left -= len(names)
            for name in names:
                try:
                    link = os.readlink(f"{directory}/{name}")
                except OSError:
                    continue
                if link in wanted:
                    found[wanted.pop(link)] = Owner(pid, int(name))
        return found

    def holds(self, owner: Owner, inode: int) -> bool:
        """Does that process still hold that socket through that descriptor?"""
        try:
            return os.readlink(f"{self.path}/{owner.pid}/fd/{owner.fd}") == f"socket:[{inode}]"
        except OSError:
            return False

    def address(self, session: str) -> str:
        """Where a login came from, by logind's own file; "" if it was local or is not known.

        Not from SSH_CONNECTION: a process may write what it likes into its environment.
        """
        if not session.isalnum():
            return ""
        try:
            data = _read(f"{self.path.removesuffix('/proc')}/run/systemd/sessions/{session}", None)
        except OSError:
            return ""
        for line in data.split(b"\n"):
            if line.startswith(b"REMOTE_HOST="):
                return os.fsdecode(line[len(b"REMOTE_HOST=") :])[:255]
        return ""


def parse_stat(data: bytes) -> Stat:
    """/proc/PID/stat. The name may hold spaces, brackets and newlines: it ends at the last bracket."""
    opening, closing = data.find(b"("), data.rfind(b")")
    fields = data[closing + 2 :].split()
    if opening < 0 or closing < opening or len(fields) < 20:
        raise DecodeError("stat: too few fields")
    try:
        numbers = [int(fields[index]) for index in (1, 3, 4, 6, 19)]
    except ValueError as error:
        raise DecodeError("stat: not a number") from error
    return Stat(os.fsdecode(data[opening + 1 : closing]), os.fsdecode(fields[0]), *numbers)


def parse_uid(status: bytes) -> int | None:
    """The real uid in /proc/PID/status."""
    at = status.find(b"\nUid:")
    fields = status[at + 5 : at + 64].split() if at >= 0 else []
    return int(fields[0]) if fields and fields[0].isdigit() else None


def parse_argv(data: bytes) -> tuple[str, ...]:
    """/proc/PID/cmdline. A process may overwrite its own, so anything can be in there."""
    parts = data.rstrip(b"\0").split(b"\0") if data else []
    return tuple(os.fsdecode(part) for part in parts[:ARGV_ITEMS])


def parse_cgroup(data: bytes) -> str:
    """The path in systemd's hierarchy: the unified one, or name=systemd where version 1 is still in use."""
    unified = ""
    for line in data.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if controllers == b"name=systemd":
            return os.fsdecode(path)
        if number == b"0" and not controllers:
            unified = os.fsdecode(path)
    return unified


def unit_of(cgroup: str) -> str:
    """The systemd unit of a cgroup path: its first part that is a unit and no slice; "" if there is none."""
    for part in cgroup.split("/"):
        if _UNIT.match(part):
            return part.removeprefix("_")  # systemd's escape for names that look like kernel files
    return ""


def session_of(cgroup: str) -> str:
    """The login session of a cgroup path (logind puts each into session-ID.scope)."""
    _, mark, rest = cgroup.rpartition("/session-")
    name, dot, _ = rest.partition(".scope")
    return name if mark and dot and name.isalnum() else ""


def tty_name(number: int) -> str:
    """The name below /dev of a terminal's device number, as stat gives it; "" for none."""
    if not number:
        return ""
    major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    if major == 204 and 64 <= minor < 78:
        return f"ttyAMA{minor - 64}"  # the serial port of a Raspberry Pi
    names = {166: "ttyACM", 188: "ttyUSB", 229: "hvc"}
    return f"{names[major]}{minor}" if major in names else f"char {major}:{minor}"


def _exe(fd: int) -> str:
    try:
        return os.readlink("exe", dir_fd=fd)
    except PermissionError:
        return ""


def _process(pid: int, link: str, argv: bytes, stat: Stat, fd: int) -> Process:
    cgroup = parse_cgroup(_bytes("cgroup", fd))
    session = session_of(cgroup) or _number("sessionid", fd)
    return Process(
        pid,
        stat.start,
        stat.ppid,
        link,
        parse_argv(argv),
        parse_uid(_bytes("status", fd)),
        int(login) if (login := _number("loginuid", fd)) else None,
        session,
        tty_name(stat.tty),
        unit_of(cgroup),
    )


def _number(name: str, fd: int) -> str:
    """A number that is 2^32-1 for "none"; "" then, and where the kernel does not have the file."""
    text = _bytes(name, fd, 32).strip()
    return text.decode() if text.isdigit() and int(text) != NO_LOGIN else ""


def _bytes(name: str, fd: int, limit: int = FILE_BYTES) -> bytes:
    """A file of a process directory, b"" where it cannot be read (gone, or not built into this kernel)."""
    try:
        return _read(name, fd, limit)
    except OSError:
        return b""


def _read(path: str, directory: int | None, limit: int = FILE_BYTES) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)
