"""A disk that remembers every write and every flush, and the disks that a power cut could have left of it.

    qemu-storage-daemon: raw file behind blklogwrites, exported by FUSE as one file
        -> loop device -> ext4, mounted in a mount namespace of the test's own

`Disk` is the living one. `Moments` rebuilds it: everything before the last flush is there; of what was written after it
some writes are, some are not, and some only in part, a block here and a block there. A block itself is never torn: no
ext4 would survive that of its superblock.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

SECTOR = 512
BLOCK = 4096
MAGIC = 0x6A736677736872  # of dm-log-writes, whose format blklogwrites writes
FLUSH, FUA, DISCARD = 1, 2, 4
MIB = 192  # sparse; the quarantine wants 64 MiB to stay free
START_S = 20.0
DIE_WITH_US = ("/usr/bin/setpriv", "--pdeathsig", "KILL")  # whatever becomes of the tests, no process stays
NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why there can be no such disk here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root"
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(path):
            return f"no {path}"
    for tool in ("qemu-storage-daemon", "mkfs.ext4", "losetup"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    return ""


def own_mounts() -> None:
    """From now on what this process mounts is seen by it and its children only, and goes with the last of them."""
    if _LIBC.unshare(NEWNS) or _LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace of our own")


def run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


class Entry(NamedTuple):
    """One line of the log: where on the disk, how much, and where in the log its bytes are."""

    at: int
    size: int
    flags: int
    data: int


class Disk:
    """The living disk, mounted at `mount`. Use it as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start = folder / "start.raw"  # as it was made
        self.log = folder / "writes.log"
        self.mount = folder / "disk"
        self._export = folder / "exported"
        self._loop = ""
        self._qemu: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.mount.mkdir(parents=True)
        image = self.folder / "image.raw"
        with open(self.start, "wb") as file:
            file.truncate(MIB << 20)
        run("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-O", "^resize_inode", "-J", "size=8", self.start)
        copy_sparse(self.start, image)
        for path in (self.log, self._export):
            path.touch()
        try:
            self._serve(image)
            self._loop = run("losetup", "--show", "--find", self._export).strip()
            run("mount", "-t", "ext4", "-o", "noatime", self._loop, self.mount)
            loop, self._loop = self._loop, ""
            run("losetup", "--detach", loop)  # it goes with the mount, also if this process is killed
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, image: Path) -> None:
        file = {"driver": "raw", "file": {"driver": "file", "filename": str(image)}}
        logged = {
            "driver": "blklogwrites",
            "node-name": "disk",
            "file": file,
            "log": {"driver": "file", "filename": str(self.log)},
            "log-sector-size": SECTOR,
            "log-super-update-interval": 1,  # so that `entries` is true at any time
        }
        export = f"type=fuse,id=disk,node-name=disk,mountpoint={self._export},writable=on,allow-other=off"
        with open(self.folder / "qemu.log", "wb") as words:
            self._qemu = subprocess.Popen(
                [*DIE_WITH_US, "qemu-storage-daemon", "--blockdev", json.dumps(logged), "--export", export],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )
        deadline = time.monotonic() + START_S
        while self._export.stat().st_size != MIB << 20:
            assert self._qemu.poll() is None, (self.folder / "qemu.log").read_text()
            assert time.monotonic() < deadline, "the disk was not exported"
            time.sleep(0.02)

    def entries(self) -> int:
        """How many writes and flushes there were: what is true now is promised for every later moment."""
        with open(self.log, "rb") as log:
            count: int = struct.unpack("<QQQI", log.read(28))[2]
        return count

    def unmount(self) -> None:
        if os.path.ismount(self.mount):
            run("umount", self.mount)

    def close(self) -> None:
        self.unmount()
        if self._loop:
            run("losetup", "--detach", self._loop)
            self._loop = ""
        if self._qemu is not None:
            self._qemu.terminate()
            self._qemu.wait(START_S)
            self._qemu = None


class Moments:
    """Disks as a power cut could have left them. Moments go forward: each one is at or after the one before."""

    def __init__(self, disk: Disk, folder: Path, dice: random.Random) -> None:
        self.entries = read_log(disk.log)
        self._log = open(disk.log, "rb")  # noqa: SIM115 - closed with us
        self._base = folder / "base.raw"  # everything that was flushed
        self._flushed = 0  # entries that are in it
        self._dice = dice
        self.image = folder / "crashed.raw"
        copy_sparse(disk.start, self._base)

    def close(self) -> None:
        self._log.close()

    def cut(self, moment: int) -> str:
        """Leave in `image` what `entries[:moment]` could have become; says in a word how much was lost."""
        flush = max((i for i in range(self._flushed, moment) if self.entries[i].flags & FLUSH), default=-1)
        with open(self._base, "r+b") as base:
            for entry in self.entries[self._flushed : flush + 1]:
                self._put(base.fileno(), entry)
        self._flushed = max(self._flushed, flush + 1)
        copy_sparse(self._base, self.image)
        fate = self._dice.choice(("half", "most", "all", "torn"))
        lost = 0
        with open(self.image, "r+b") as image:
            for entry in self.entries[self._flushed : moment]:
                lost += self._unflushed(image.fileno(), entry, fate)
        return f"{fate}: {lost} of {moment - self._flushed}"

    def _unflushed(self, image: int, entry: Entry, fate: str) -> bool:
        """True: the write, or a part of it, is gone."""
        if entry.flags & FUA:
            self._put(image, entry)
            return False
        if fate == "torn":
            kept = [self._dice.random() < 0.5 for _ in range(0, entry.size, BLOCK)]
            for number in (number for number, keep in enumerate(kept) if keep):
                self._put(image, _block(entry, number))
            return not all(kept)
        gone = self._dice.random() < {"half": 0.5, "most": 0.9, "all": 1.0}[fate]
        if not gone:
            self._put(image, entry)
        return gone

    def _put(self, image: int, entry: Entry) -> None:
        if entry.size:
            data = bytes(entry.size) if entry.flags & DISCARD else os.pread(self._log.fileno(), entry.size, entry.data)
            os.pwrite(image, data, entry.at)

    def choose(self, count: int, first: int) -> list[int]:
        """`count` different moments from `first` on, spread over the whole run."""
        everything = range(first, len(self.entries) + 1)
        return sorted(self._dice.sample(everything, min(count, len(everything))))


def _block(entry: Entry, number: int) -> Entry:
    """The n-th block of a write, be it aligned or not: ext4 writes whole ones, but for its superblock when mounting."""
    start = number * BLOCK
    return Entry(entry.at + start, min(BLOCK, entry.size - start), entry.flags, entry.data + start)


def read_log(path: Path) -> list[Entry]:
    found = []
    with open(path, "rb") as log:
        magic, _, count, size = struct.unpack("<QQQI", log.read(28))
        assert (magic, size) == (MAGIC, SECTOR)
        at = SECTOR
        for _ in range(count):
            log.seek(at)
            sector, sectors, flags, _ = struct.unpack("<QQQQ", log.read(32))
            found.append(Entry(sector * SECTOR, sectors * SECTOR, flags, at + SECTOR))
            at += SECTOR + (0 if flags & DISCARD else sectors * SECTOR)
    return found


def copy_sparse(source: Path, target: Path) -> None:
    """Only what was ever written."""
    with open(source, "rb") as old, open(target, "wb") as new:
        end = os.fstat(old.fileno()).st_size
        new.truncate(end)
        for first, last in _extents(old.fileno(), end):
            new.seek(first)
            done = first
            while done < last:
                done += os.sendfile(new.fileno(), old.fileno(), done, last - done)


def _extents(fd: int, end: int) -> Iterator[tuple[int, int]]:
    hole = 0
    while hole < end:
        try:
            data = os.lseek(fd, hole, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole
            return
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        yield data, hole


@contextmanager
def mounted(image: Path, where: Path, options: Sequence[str] = ("noatime",)) -> Iterator[Path]:
    """A rebuilt disk, as the first boot after the cut mounts it: ext4 replays its journal."""
    where.mkdir(exist_ok=True)
    run("mount", "-o", ",".join(("loop", *options)), image, where)
    try:
        yield where
    finally:
        run("umount", where)
