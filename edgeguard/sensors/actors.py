"""Who did it: processes as they are now, and a memory of those that just ended.

What changes a file is often gone when the change is looked at. So the processes sensor lets this memory read each
process at its exec, and `actor_of` answers from /proc where it can and from here where it must. Parents are
remembered the same way: `curl | sh` leaves no living parent either.

The address of a login comes from logind's session file and not from SSH_CONNECTION, which anybody can set.
"""

from __future__ import annotations

import time
from sys import intern
from typing import NamedTuple

from edgeguard.linux.procfs import DELETED, Process, Procfs
from edgeguard.model import NOBODY, Actor
from edgeguard.redact import shown
from edgeguard.sensors.users import Users

KEEP = 512  # processes remembered; about 1 KB each
PARENTS_MAX = 8
ARGV_CHARS = 1024  # of a remembered command line
GLIMPSES_MAX = 128  # programs of which only the path was seen
GLIMPSE_S = 2.0  # how long: what such a short-lived program did is told by then, and its number may be another's
SESSIONS_MAX = 64  # logins whose address is remembered after logind forgot them


class _Remembered(NamedTuple):
    process: Process
    parent_start: int | None  # so that a parent's number that was given away is noticed


class Actors:
    """Answers `actor_of(pid)`. Never raises for a process that vanished: the honest unknown is NOBODY."""

    def __init__(self, root: str = "/", keep: int = KEEP) -> None:
        self._procfs = Procfs(root)
        self._users = Users(root)
        self._keep = keep
        self._memory: dict[int, _Remembered] = {}  # by pid, least recently used first
        self._addresses: dict[str, str] = {}  # by session
        self._glimpses: dict[int, tuple[str, float]] = {}  # pid -> program, monotonic seconds; oldest first

    def remember(self, pid: int) -> Process | None:
        """Read a process that just started something, and keep it. None when it was gone already."""
        process = self._procfs.look(pid)
        if process is None:
            return None
        self._keep_chain(process, PARENTS_MAX)
        return process

    def glimpse(self, pid: int, path: str) -> None:
        """`pid` opens this program for execution; it may have ended before anybody can read more about it."""
        if path.rpartition("/")[2].startswith("ld-"):
            return  # its loader, opened after the program
        self._glimpses.pop(pid, None)
        self._glimpses[pid] = (path, time.monotonic())
        while len(self._glimpses) > GLIMPSES_MAX:
            del self._glimpses[next(iter(self._glimpses))]

    def actor_of(self, pid: int) -> Actor:
        """Who `pid` is, or was. NOBODY when neither /proc nor memory knows."""
        if pid <= 0:
            return NOBODY
        process = self._procfs.look(pid)
        if process is None:
            return self._ended_actor(pid)
        return self.describe(process)

    def _ended_actor(self, pid: int) -> Actor:
        """Who a process was that has ended. What was read of it may be from before it became its last program."""
        exe, at = self._glimpses.get(pid, ("", 0.0))
        if time.monotonic() - at > GLIMPSE_S:
            exe = ""
        remembered = self._memory.get(pid)
        if remembered is None or not self._ended(pid, remembered.process.start):
            return Actor(pid=pid, exe=exe)
        known = self.describe(remembered.process)
        return known if exe in ("", known.exe) else known._replace(exe=exe, argv=())

    def describe(self, process: Process) -> Actor:
        """The actor that this process is."""
        return Actor(
            pid=process.pid,
            exe=process.link.removesuffix(DELETED),
            argv=shown(process.argv),
            uid=process.uid,
            user=self._users.name(process.uid),
            login_uid=process.login_uid,
            login_user=self._users.name(process.login_uid),
            tty=process.tty,
            address=self._address(process.session),
            unit=process.unit,
            parents=self.parents(process),
        )

    def parents(self, process: Process) -> tuple[tuple[int, str], ...]:
        """The chain of parents, nearest first, without pid 0."""
        chain: list[tuple[int, str]] = []
        while process.ppid > 0 and len(chain) < PARENTS_MAX:
            parent = self._parent(process)
            if parent is None:
                break
            chain.append((parent.pid, parent.link.removesuffix(DELETED)))
            process = parent
        return tuple(chain)

    def user(self, uid: int | None) -> str:
        """The name of a user, "" if there is none."""
        return self._users.name(uid)

    def _parent(self, process: Process) -> Process | None:
        """From memory if it is known to be the same process, else from /proc.

        When the parent ended, the kernel gives the child to another process (pid 1); what was its parent at the time
        of its exec is the answer that is wanted, and only the memory has it.
        """
        own = self._memory.get(process.pid)
        if own is not None and own.process.start == process.start:
            process = own.process
            parent = self._memory.get(process.ppid)
            if parent is not None and parent.process.start == own.parent_start:
                return parent.process
        return self._procfs.look(process.ppid)

    def _keep_chain(self, process: Process, left: int) -> None:
        """Keep `process`, and those of its parents that are not kept yet (they may have forked only)."""
        parent_start = self._procfs.start(process.ppid) if process.ppid > 0 else None
        if parent_start is not None and left > 0:
            kept = self._memory.pop(process.ppid, None)
            if kept is not None and kept.process.start == parent_start:
                self._memory[process.ppid] = kept  # as the most recently used
            elif (parent := self._procfs.look(process.ppid)) is not None and parent.start == parent_start:
                self._keep_chain(parent, left - 1)
        self._memory.pop(process.pid, None)
        self._memory[process.pid] = _Remembered(_slim(process), parent_start)
        if process.session:
            self._address(process.session)  # now: logind forgets the session when it ends
        while len(self._memory) > self._keep:
            del self._memory[next(iter(self._memory))]

    def _ended(self, pid: int, start: int) -> bool:
        """Did the process that we remember end, and is nobody else using its number?"""
        return self._procfs.start(pid) in (None, start)

    def _address(self, session: str) -> str:
        if not session:
            return ""
        if session not in self._addresses:
            if len(self._addresses) >= SESSIONS_MAX:
                del self._addresses[next(iter(self._addresses))]
            self._addresses[session] = self._procfs.address(session)
        return self._addresses[session]


def _slim(process: Process) -> Process:
    """The same with bounded arguments and shared texts: hundreds are kept."""
    argv: list[str] = []
    left = ARGV_CHARS
    for item in process.argv:
        if left <= 0:
            break
        argv.append(item[:left])
        left -= len(item)
    return process._replace(
        argv=tuple(argv), link=intern(process.link), unit=intern(process.unit), tty=intern(process.tty)
    )
