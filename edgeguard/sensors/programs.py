"""What can be said about a running program's file: is it still there, who could have put it there, is it known.

Works on names and stat only; nothing is opened. Names on file systems that may hang (network, FUSE) are not touched.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from edgeguard.errors import DecodeError
from edgeguard.linux import mounts
from edgeguard.linux.mounts import Mounts
from edgeguard.linux.procfs import DELETED, Process

MEMFD = "/memfd:"
TABLE_MAX = 256 * 1024  # bytes of another's mount table, some 2,000 mounts: 1 MiB while it is looked at
CACHE_MAX = 512  # programs and directories; forgotten at each full look

# Below these anybody may create files, whatever the directory itself says (systemd makes /run/user/UID 0700).
WRITABLE = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/user/", "/run/lock/", "/var/lock/", "/dev/mqueue/")  # noqa: S108 - judged, not used
# Where users keep their own programs; running them is what a home is for. World-writable counts there too.
HOMES = ("/home/", "/root/")
# A stat may wait for another machine or for a user's program, and the daemon has one thread.
HANGING = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "autofs", "fuse"))
INTERPRETERS = ("python", "perl", "ruby", "node", "lua", "php", "bash", "dash", "sh", "zsh", "ksh", "ld-linux")
OPTIONS = (  # last letter of an option that brings the program itself; that takes the next argument
    ("python", "cm", "XW"),
    ("perl", "eE", "I"),
    ("ruby", "e", "Ir"),
    ("php", "r", "dc"),
    (("bash", "dash", "sh", "zsh", "ksh"), "c", "oO"),
    ("ld-linux", "", ""),
)
LOADER_TAKING = frozenset(  # options of ld.so (its --help) that take the next argument
    (
        "--library-path",
        "--inhibit-rpath",
        "--audit",
        "--preload",
        "--argv0",
        "--glibc-hwcaps-prepend",
        "--glibc-hwcaps-mask",
    )
)
STAFF = 50  # Debian installs /usr/local as root:staff 2775; members of staff are as good as root there


class Program(NamedTuple):
    """The judgement of one program file, as columns."""

    subject: str
    exe: str
    exe_state: str  # ok, deleted, replaced, memfd, foreign, private, unknown
    writable_dir: bool
    exe_known: bool

    @property
    def scripted(self) -> bool:
        """Not the program is judged, but a script that it runs: that is the subject then."""
        return self.exe_state == "ok" and self.subject != self.exe

    @property
    def suspicious(self) -> bool:
        """A container's programs are not: the baseline speaks of this device's files, and there may be hundreds."""
        if self.exe_state == "foreign":
            return False
        return self.exe_state != "ok" or self.writable_dir or not self.exe_known or self.scripted

    @property
    def rank(self) -> int:
        """How much a person wants to hear of it: of several processes of one subject, the worst is shown."""
        state = ("ok", "foreign", "unknown", "replaced", "private", "deleted", "memfd").index(self.exe_state)
        return state * 4 + self.writable_dir * 2 + (not self.exe_known)


class Programs:
    """Judges program files below `root`."""

    def __init__(
        self, root: str, known_file: Callable[[str], bool], went: Callable[[str], bool] = lambda _path: False
    ) -> None:
        self._root = root.rstrip("/")
        self._known_file = known_file
        self._went = went
        self._judged: dict[tuple[str, int | None], tuple[bool, bool]] = {}  # (path, uid) -> (writable_dir, exe_known)
        self._mounts: Mounts | None = None
        if not self._root:
            try:
                self._mounts = Mounts()
            except (OSError, DecodeError):  # no /proc: then there are no processes either
                self._mounts = None

    def judge(self, pid: int, link: str, uid: int | None) -> Program:
        """The program behind /proc/`pid`/exe, which reads `link`, run by the user `uid`."""
        if link.startswith(MEMFD):
            name = "memfd:" + link.removesuffix(DELETED)[len(MEMFD) :]
            return Program(name, name, "memfd", writable_dir=False, exe_known=False)
        if not link.startswith("/"):  # "(unreachable)/x": outside of our root
            return Program(link, link, "unknown", writable_dir=False, exe_known=False)
        path, state = self._state(pid, link)
        if state == "foreign":  # not our file of that name, so not the same subject either
            return Program("foreign:" + path, path, state, writable_dir=False, exe_known=False)
        if state == "private":  # what anybody may write does not depend on who mounted it
            return Program(path, path, state, path.startswith(WRITABLE), exe_known=False)
        if state == "deleted":
            writable, known = self._place(path, uid)
            return Program(path, path, state, writable, known or self._went(path))  # its package was removed
        writable, known = self._place(path, uid)
        return Program(path, path, state, writable, known and state == "ok")

    def judge_path(self, path: str) -> Program:
        """A program of which only the path is known, because the process is gone."""
        writable, known = self._place(path, None)
        return Program(path, path, "unknown", writable, known)

    def script_of(self, process: Process, cwd: str | None) -> str:
        """The script that an interpreter runs: its first argument that is no option; "" if there is none."""
        name = process.link.removesuffix(DELETED).rpartition("/")[2]
        if not interprets(process.link):
            return ""
        loader = name.startswith("ld-linux")
        inline, taking = next((row[1:] for row in OPTIONS if name.startswith(row[0])), ("e", ""))
        rest = iter(process.argv[1:])
        for item in rest:
            if item == "-" or (item.startswith("-") and item[1:2] != "-" and item[-1] in inline):
                return ""
            short = item[1:2] != "-" and item[-1] in taking
            if item.startswith("-") and (short or (loader and item in LOADER_TAKING)):
                next(rest, "")
                continue
            if not item.startswith("-"):
                if item.startswith("/"):
                    return item
                return f"{cwd.rstrip('/')}/{item}" if cwd else ""
        return ""

    def writable(self, path: str, uid: int | None) -> bool:
        """Could somebody else than root and `uid` have put a file at `path`? In homes only "anybody" counts."""
        return self._place(path, uid)[0]

    def forget(self) -> None:
        """Look at directories and the manifest anew from now on."""
        self._judged.clear()

    def close(self) -> None:
        if self._mounts is not None:
            self._mounts.close()

    def _state(self, pid: int, link: str) -> tuple[str, str]:
        """(path without the kernel's mark, exe_state)."""
        if self._hangs(link):
            return link, "ok"
        try:
            running = os.stat(f"/proc/{pid}/exe") if not self._root else None
        except OSError:  # ended meanwhile, or not for us to see: only the name is left
            running = None
        if link.endswith(DELETED):
            # A real file may be called "x (deleted)". Then it is there, and it is the one that runs.
            if _same(running, self._stat(link)):
                return link, "ok"
            path = link.removesuffix(DELETED)
            return path, "deleted" if self._stat(path) is None else "replaced"
        there = self._stat(link)
        if running is None or _same(running, there):
            return link, "ok"
        if running.st_nlink == 0:  # unlinked between reading the link and now
            return link, "deleted" if there is None else "replaced"
        if self._moved_on(pid, link):
            return link, "ok"  # it started something else since; that is judged when its own turn comes
        # Another mount namespace. A container's file only has the same name; but whoever has our root and a mount of
        # his own over it (a service's PrivateTmp=, unshare) runs something that hides from us.
        return link, "private" if self._hides(pid, link, running.st_dev) else "foreign"

    def _hides(self, pid: int, link: str, device: int) -> bool:
        """Does the process have our root directory, and its file in a mount that only it has? By tables alone: a stat
        of another's directories may wait for whoever serves them."""
        if self._mounts is None:
            return False
        try:
            if os.readlink(f"/proc/{pid}/root") != "/":
                return False
            table = mounts.read(pid=pid, most=TABLE_MAX)
        except OSError:
            return False
        except DecodeError:  # anybody may make a hundred thousand mounts of his own; no container has that many
            return True
        theirs, ours = mounts.covering(table, "/"), self._mounts.of("/")
        file = mounts.covering(table, link)
        same_root = theirs is not None and ours is not None and theirs[2:4] == ours[2:4]  # device, and what of it
        # A program that only came in from outside (nsenter) lies on no mount that is here.
        return same_root and file is not None and file.device == f"{os.major(device)}:{os.minor(device)}"

    def _moved_on(self, pid: int, link: str) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/exe") != link
        except OSError:
            return True

    def _place(self, path: str, uid: int | None) -> tuple[bool, bool]:
        judged = self._judged.get((path, uid))
        if judged is None:
            if len(self._judged) >= CACHE_MAX:
                self._judged.clear()
            judged = (self._writable(path, uid), self._known_file(path))
            self._judged[path, uid] = judged
        return judged

    def _writable(self, path: str, uid: int | None) -> bool:
        if path.startswith(WRITABLE):
            return True
        if self._hangs(path):
            return self._fuse(path)
        home = path.startswith(HOMES)
        return any(self._loose(directory, uid, home=home) for directory in _above(path))

    def _loose(self, directory: str, uid: int | None, *, home: bool) -> bool:
        """May others than root and `uid` create or replace files in this directory?"""
        status = self._stat(directory)
        if status is None or not stat.S_ISDIR(status.st_mode):
            return False
        if status.st_mode & stat.S_IWOTH:
            return True
        # A group with the owner's number is the owner's own (Debian gives each user one).
        group = bool(status.st_mode & stat.S_IWGRP) and status.st_gid not in (0, STAFF, status.st_uid)
        return not home and (status.st_uid not in (0, uid) or group)

    def _hangs(self, path: str) -> bool:
        if self._mounts is None:
            return False
        try:
            self._mounts.changed()
        except (OSError, DecodeError):  # unreadable for once: the last table will do
            return False
        mount = self._mounts.of(path)
        return mount is not None and (mount.fstype in HANGING or mount.fstype.startswith("fuse."))

    def _fuse(self, path: str) -> bool:
        """FUSE file systems are made by users and hold what they like."""
        mount = self._mounts.of(path) if self._mounts else None
        return mount is not None and mount.fstype.startswith("fuse")

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(self._root + path)
        except (OSError, ValueError):
            return None


def interprets(link: str) -> bool:
    """May the program behind this exe link run scripts?"""
    return link.rpartition("/")[2].startswith(INTERPRETERS)


def _same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _above(path: str) -> list[str]:
    """The directories above `path`, nearest first, without /."""
    above: list[str] = []
    while (path := path.rpartition("/")[0]) and len(above) < 64:
        above.append(path)
    return above
