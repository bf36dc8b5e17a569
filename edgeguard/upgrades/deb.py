"""What a .deb says: every path with digest, mode, owner and target, its settings files and its scripts.

`dpkg-deb` takes it apart: that is what will unpack it on this device, so no second reader of ar, xz or zstd can
disagree with it. What it hands over is read as a stream, within bounds, and never written anywhere.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import IO, NamedTuple

from edgeguard.codec.digests import Digester
from edgeguard.codec.manifest import PATH_MAX, TARGET_MAX
from edgeguard.errors import DecodeError
from edgeguard.upgrades.transactions import ARCHITECTURE, PACKAGE

DPKG_DEB = "/usr/bin/dpkg-deb"
MEMBERS_MAX = 500_000  # of one package; the largest of Debian have 60,000
CONTROL_MAX = 8 << 20  # bytes of one file of the control part; its list of digests is the largest
CHUNK = 1 << 20
ID_MAX = (1 << 32) - 1
SIZE_MAX = (1 << 63) - 1
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "DPKG_DEB_THREADS_MAX": "1"}
FIELDS = ("Package", "Version", "Architecture")
SAME = "Multi-Arch"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")
_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}


class Member(NamedTuple):
    """One path that a package brings."""

    path: bytes  # absolute
    st_mode: int
    user: str
    group: str
    uid: int
    gid: int
    size: int
    digest: bytes
    target: bytes


class Control(NamedTuple):
    """Who a package is, and what dpkg does with it besides unpacking."""

    name: str
    version: str
    architecture: str
    conffiles: frozenset[bytes]
    scripts: Mapping[str, bytes]  # preinst, postinst, ... -> content
    stem: str  # of its files below /var/lib/dpkg/info


class Package:
    """One .deb, open. What is read of it and what is hashed are the same bytes: `dpkg-deb` gets them from us."""

    def __init__(self, path: str) -> None:
        """Raises DecodeError for what is no regular file, OSError."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._digests: set[bytes] = set()
        self._unread = ""  # why the disk did not give all of it
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise DecodeError("not a regular file")

    def control(self) -> Control:
        """The control part. Raises DecodeError."""
        with self._part("--ctrl-tarfile") as stream, untar(stream) as tar:
            return controlled(tar)

    def members(self, digester: Digester) -> Iterator[Member]:
        """Every path, in the order of the package. A hard link is what it links to. Raises DecodeError."""
        with self._part("--fsys-tarfile") as stream, untar(stream) as tar:
            yield from listed(tar, digester)

    @property
    def sha256(self) -> bytes:
        """Of all that was read. Raises DecodeError where two readings gave two files."""
        if len(self._digests) != 1:
            raise DecodeError("it changed while it was read")
        return next(iter(self._digests))

    def close(self) -> None:
        os.close(self._fd)

    @contextmanager
    def _part(self, part: str) -> Iterator[IO[bytes]]:
        """One part, unpacked by dpkg-deb. What that cannot read is a DecodeError."""
        with subprocess.Popen(
            [DPKG_DEB, part, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            feeder = threading.Thread(target=self._feed, args=(child.stdin,), daemon=True)
            feeder.start()
            try:
                yield child.stdout
                _drain(child.stdout)
            finally:
                child.kill()
                feeder.join()
        if self._unread:
            raise DecodeError(self._unread)
        if child.returncode not in (0, -9):
            raise DecodeError("dpkg-deb cannot read it")

    def _feed(self, pipe: IO[bytes]) -> None:
        """The whole file, also where dpkg-deb has read enough of it."""
        value, offset, listening = sha256(), 0, True
        try:
            while chunk := os.pread(self._fd, CHUNK, offset):
                value.update(chunk)
                offset += len(chunk)
                if listening:
                    try:
                        pipe.write(chunk)
                    except OSError:
                        listening = False
            self._digests.add(value.digest())
        except OSError as error:  # of the disk: dpkg-deb must not wait for what will not come
            self._unread = error.strerror or str(error)
        finally:
            with suppress(OSError):
                pipe.close()


def controlled(tar: tarfile.TarFile) -> Control:
    """The control part as a stream."""
    found: dict[str, bytes] = {}
    for member in _bounded(tar):
        name = member.name.removeprefix("./")
        if member.isreg() and "/" not in name and member.size <= CONTROL_MAX:
            file = tar.extractfile(member)
            found[name] = file.read() if file else b""
    fields = _fields(found.get("control", b""))
    if not all(fields[name] for name in FIELDS) or PACKAGE.fullmatch(fields["Package"]) is None:
        raise DecodeError("its control file names no package")
    if ARCHITECTURE.fullmatch(fields["Architecture"]) is None:
        raise DecodeError("its control file names no architecture")
    conffiles = frozenset(line.strip() for line in found.get("conffiles", b"").split(b"\n") if line.startswith(b"/"))
    scripts = {name: found[name] for name in SCRIPTS if name in found}
    name, architecture = fields["Package"], fields["Architecture"]
    stem = f"{name}:{architecture}" if fields[SAME] == "same" else name
    return Control(name, fields["Version"], architecture, conffiles, scripts, stem)


def listed(tar: tarfile.TarFile, digester: Digester) -> Iterator[Member]:
    """The part with the files as a stream."""
    links: dict[str, Member] = {}
    for info in _bounded(tar):
        name = _absolute(info.name)
        if name == b"/":
            continue
        if info.islnk():
            original = links.get(info.linkname.removeprefix("./"))
            if original is None:
                raise DecodeError(f"{name!r} is a hard link to what is not there")
            found = original._replace(path=name)
        else:
            found = _member(tar, info, name, digester)
        if stat.S_ISREG(found.st_mode):
            links[info.name.removeprefix("./")] = found
        yield found


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, name: bytes, digester: Digester) -> Member:
    kind = _KINDS.get(info.type)
    if kind is None:
        raise DecodeError(f"{name!r} is of no type that dpkg knows")
    if not (0 <= info.uid <= ID_MAX and 0 <= info.gid <= ID_MAX and 0 <= info.size <= SIZE_MAX):
        raise DecodeError(f"{name!r} has an owner or a size that no file has")
    digest = b""
    if kind == stat.S_IFREG:
        value = digester.new()
        file = tar.extractfile(info)
        while file is not None and (chunk := file.read(CHUNK)):
            value.update(chunk)
        digest = value.digest()
    target = os.fsencode(info.linkname)[:TARGET_MAX] if kind == stat.S_IFLNK else b""
    size = info.size if kind == stat.S_IFREG else 0
    mode = kind | (0o777 if kind == stat.S_IFLNK else info.mode & 0o7777)
    return Member(name, mode, info.uname, info.gname, info.uid, info.gid, size, digest, target)


def _absolute(name: str) -> bytes:
    raw = os.fsencode(name)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in raw or len(raw) >= PATH_MAX:
        raise DecodeError(f"{raw!r} is no path of a package")
    return b"/" + b"/".join(parts)


def _bounded(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(tar):
        if count >= MEMBERS_MAX:
            raise DecodeError(f"more than {MEMBERS_MAX} paths in one package")
        tar.members = []  # type: ignore[attr-defined]  # else the reader keeps all of them
        yield member


@contextmanager
def untar(stream: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """A tar as a stream. What is wrong with it is a DecodeError."""
    try:
        with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape") as tar:
            yield tar
    # Python's reader calls itself for each of the headers that only say something of the next.
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError, RecursionError) as error:
        raise DecodeError(f"not a package that can be read: {error}") from error


def _drain(stream: IO[bytes]) -> None:
    """The padding after the end; without it dpkg-deb would be told that nobody listens."""
    while stream.read(CHUNK):
        pass


def _fields(text: bytes) -> dict[str, str]:
    found = dict.fromkeys((*FIELDS, SAME), "")
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":")
        key = name.decode("ascii", "replace")
        if key in found and not found[key]:
            found[key] = os.fsdecode(value.strip())[:256]
    return found
