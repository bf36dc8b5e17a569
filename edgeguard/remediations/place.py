"""A name in a directory, reached so that nobody can lead us elsewhere, and what stands there.

The kernel resolves a path anew with every call; whoever can rename a directory in it can send root anywhere between
two calls. So the way is walked once, component by component, never through a symlink that the baseline does not
know, and from then on only the open directory and the last name are used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

from edgeguard.codec.digests import Algorithm, swift
from edgeguard.errors import RemediationRefused
from edgeguard.linux import fileflags, xattr
from edgeguard.remediations import CAPABILITY, World

PATH_MAX = 4096  # bytes, linux/limits.h
NAME_MAX = 255  # bytes, linux/limits.h
LINKS_MAX = 8  # symlinks on one way; Debian's merged /usr needs one
XATTRS_MAX = 64 * 1024  # bytes of names and values of one file
CHUNK = 256 * 1024  # bytes read at once

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a FIFO must not stop us


class Place:
    """An open directory and a name in it. A context manager: closes the directory."""

    def __init__(self, parent: int, name: bytes, path: bytes) -> None:
        self.parent = parent
        self.name = name
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.parent)

    def status(self) -> os.stat_result | None:
        """What stands there, itself and not what it points to; None: nothing."""
        try:
            return os.stat(self.name, dir_fd=self.parent, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self) -> int:
        """Open a regular file for reading; anything else is refused."""
        try:
            fd = os.open(self.name, _LOOK, dir_fd=self.parent)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise RemediationRefused("it is not a regular file") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise RemediationRefused("it is not a regular file")
        return fd

    def sync(self) -> None:
        os.fsync(self.parent)


def reach(path: bytes, world: World, *, trusted: bool) -> Place:
    """Walk to the directory that holds `path`.

    `trusted`: every directory on the way must belong to root and be writable by nobody else, so that what is put
    there stays what we put. Without it only the way itself is safe: enough to take something away.
    """
    todo = components(path)
    walked: list[bytes] = []
    links = 0
    fd = os.open(world.root, _DIRECTORY)
    try:
        _check(fd, b"/", world, trusted)
        while len(todo) > 1:
            name = todo.pop(0)
            here = b"/" + b"/".join([*walked, name])
            try:
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                links += 1
                walked, todo = _turn(fd, name, here, walked, todo, links, world)
                above = os.open(world.root, _DIRECTORY)  # after a symlink the whole way is walked again
                os.close(fd)
                fd = above
                continue
            os.close(fd)
            fd = below
            walked.append(name)
            _check(fd, here, world, trusted)
    except BaseException:
        os.close(fd)
        raise
    return Place(fd, todo[0], b"/" + b"/".join([*walked, todo[0]]))


def components(path: bytes) -> list[bytes]:
    """The names in an absolute path that is written plainly: no empty, `.` or `..` component."""
    parts = path.split(b"/")
    plain = len(path) <= PATH_MAX and len(parts) > 1 and parts[0] == b"" and b"\0" not in path
    if not plain or any(part in (b"", b".", b"..") or len(part) > NAME_MAX for part in parts[1:]):
        raise RemediationRefused("the path is not absolute and plain")
    return parts[1:]


def _turn(
    fd: int, name: bytes, here: bytes, walked: list[bytes], todo: list[bytes], links: int, world: World
) -> tuple[list[bytes], list[bytes]]:
    """The rest of the way at a symlink that the baseline knows with this very target."""
    try:
        target = os.readlink(name, dir_fd=fd)
    except OSError as error:
        raise RemediationRefused("something on its way is not a directory") from error
    known = world.lookup(here)
    if links > LINKS_MAX or known is None or known.get("target") != os.fsdecode(target):
        raise RemediationRefused("a directory on its way is a symlink that the baseline does not know")
    base = [] if target.startswith(b"/") else list(walked)
    for part in target.split(b"/"):
        if part == b"..":
            base = base[:-1]
        elif part not in (b"", b"."):
            base.append(part)
    return [], [*base, *todo]


def _check(fd: int, _here: bytes, world: World, trusted: bool) -> None:
    if not trusted:
        return
    status = os.fstat(fd)
    group = status.st_mode & stat.S_IWGRP and status.st_gid not in world.trusted_uids
    if status.st_uid not in world.trusted_uids or status.st_mode & stat.S_IWOTH or group:
        raise RemediationRefused("a directory on its way can be written by others than root")


class Facts(NamedTuple):
    """What a file is, apart from its content; what undo needs to make it again."""

    type: str  # "file", "symlink"
    mode: int
    uid: int
    gid: int
    size: int
    target: str
    xattrs: tuple[tuple[str, str], ...]  # name, value in hex
    held: int = 0  # FS_IMMUTABLE_FL and FS_APPEND_FL

    def document(self) -> dict[str, object]:
        return self._asdict() | {"xattrs": [list(pair) for pair in self.xattrs]}


def facts(fd: int) -> Facts:
    """Of an open regular file."""
    status = os.fstat(fd)
    held = fileflags.get(fd) & fileflags.HOLDING
    mode = stat.S_IMODE(status.st_mode)
    return Facts("file", mode, status.st_uid, status.st_gid, status.st_size, "", extended(fd), held)


def extended(fd: int) -> tuple[tuple[str, str], ...]:
    """The extended attributes that belong to the file, sorted; labels that the kernel gives it are not ours."""
    names = xattr.names(fd)
    kept = [name for name in names if name == CAPABILITY or name in xattr.lasting(names)]
    pairs = tuple((name, xattr.get(fd, name).hex()) for name in kept)
    if sum(len(name) + len(value) // 2 for name, value in pairs) > XATTRS_MAX:
        raise RemediationRefused(f"its extended attributes are larger than {XATTRS_MAX} bytes")
    return pairs


def xattrs_text(pairs: Iterable[Sequence[str]]) -> bytes:
    """The bytes whose SHA-256 the manifest holds for all extended attributes but the capabilities; b"" for none."""
    text = b""
    for name, value in sorted(map(tuple, pairs)):
        if name != CAPABILITY:
            content = bytes.fromhex(value)
            text += os.fsencode(name) + b"\0" + len(content).to_bytes(4, "little") + content
    return text


def xattrs_from_text(text: bytes) -> list[list[str]]:
    """Extended attributes from the bytes of `xattrs_text`. Only for bytes whose digest the baseline holds."""
    pairs = []
    while text:
        name, _, rest = text.partition(b"\0")
        size = int.from_bytes(rest[:4], "little")
        pairs.append([os.fsdecode(name), rest[4 : 4 + size].hex()])
        text = rest[4 + size :]
    return pairs


def same(first: os.stat_result, second: os.stat_result | None) -> bool:
    """The same inode with the same content as far as the kernel's change time tells."""
    if second is None:
        return False
    keys = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return all(getattr(first, key) == getattr(second, key) for key in keys)


def copy(source: int, target: int, limit: int, algorithm: Algorithm = Algorithm.SHA256) -> bytes:
    """Copy an open file from its start; the digest of what was copied. A file that grows past `limit` is refused."""
    digest = swift(algorithm).new()
    offset = 0
    while True:
        chunk = os.pread(source, CHUNK, offset)
        if not chunk:
            return digest.digest()
        offset += len(chunk)
        if offset > limit:
            raise RemediationRefused(f"it is larger than {limit} bytes")
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]


def digest_of(fd: int, limit: int, algorithm: Algorithm) -> bytes:
    """The digest of an open file, b"" if it is larger than `limit`."""
    digest = swift(algorithm).new()
    offset = 0
    while chunk := os.pread(fd, CHUNK, offset):
        offset += len(chunk)
        if offset > limit:
            return b""
        digest.update(chunk)
    return digest.digest()


def put(place: Place, document: Facts, fill: Callable[[int], None]) -> None:
    """Make a regular file under a temporary name, complete in every attribute, then rename it into place.

    Owner before mode: chown clears the set-id bits, and a file must not be set-id while it has another owner.
    """
    temporary = temporary_name(place.name)
    clear(place, temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=place.parent)
    try:
        fill(fd)
        _dress(fd, document)
        os.fsync(fd)
        hold(place, 0)
        os.rename(temporary, place.name, src_dir_fd=place.parent, dst_dir_fd=place.parent)
        fileflags.hold(fd, document.held)
    except BaseException:
        clear(place, temporary)
        raise
    finally:
        os.close(fd)
    place.sync()


def put_link(place: Place, target: str, uid: int, gid: int) -> None:
    """Make a symlink in place of what is there."""
    temporary = temporary_name(place.name)
    clear(place, temporary)
    os.symlink(os.fsencode(target), temporary, dir_fd=place.parent)
    try:
        os.chown(temporary, uid, gid, dir_fd=place.parent, follow_symlinks=False)
        hold(place, 0)
        os.rename(temporary, place.name, src_dir_fd=place.parent, dst_dir_fd=place.parent)
    except BaseException:
        clear(place, temporary)
        raise
    place.sync()


def hold(place: Place, flags: int) -> None:
    """Set the flags of what stands there; 0 takes those away that keep even root from replacing it."""
    status = place.status()
    if status is None or not stat.S_ISREG(status.st_mode):
        return
    fd = place.open()
    try:
        fileflags.hold(fd, flags)
    finally:
        os.close(fd)


def temporary_name(name: bytes) -> bytes:
    """In the same directory; always the same for a name, so that a crash leaves at most one, and short enough."""
    return b".edgeguard-" + hashlib.sha256(name).hexdigest()[:16].encode()


def clear(place: Place, temporary: bytes) -> None:
    try:
        os.unlink(temporary, dir_fd=place.parent)
    except FileNotFoundError:
        return  # the usual case: no crash left one


def _dress(fd: int, document: Facts) -> None:
    os.fchown(fd, document.uid, document.gid)
    for name, value in document.xattrs:
        if name != CAPABILITY:
            os.setxattr(fd, name, bytes.fromhex(value))
    os.fchmod(fd, document.mode)
    for name, value in document.xattrs:
        if name == CAPABILITY:  # last: any change of owner drops it
            os.setxattr(fd, name, bytes.fromhex(value))


def from_document(document: dict[str, object]) -> Facts:
    """Facts as read back from an undo record or a quarantine manifest of our own making."""
    values = dict(document)
    pairs = values.pop("xattrs")
    assert isinstance(pairs, list)
    return Facts(**values, xattrs=tuple((name, value) for name, value in pairs))  # type: ignore[arg-type] # own JSON
