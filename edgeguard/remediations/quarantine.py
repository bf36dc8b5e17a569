"""The quarantine: copies of what was taken away, with all that is needed to make it again.

quarantine/<id>/content        what it held, mode 0400: never executable, whatever it was
quarantine/<id>/manifest.json  path, type, mode, owner, extended attributes, digest, when and why

Only root enters. What was taken away is never deleted by EdgeGuard: it is evidence. When it is full, acts that need it
are refused.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from edgeguard.errors import RemediationRefused
from edgeguard.remediations import Order, World
from edgeguard.remediations.place import Facts, Place, copy, facts, same
from edgeguard.remediations.undo import write_whole

FILE_MAX = 256 * 1024 * 1024  # bytes of one file; a larger one is left where it is, and that is said
TOTAL_MAX = 1024 * 1024 * 1024  # bytes of all
FREE_MIN = 64 * 1024 * 1024  # bytes that stay free on the disk
TRIES = 3  # a file that changes while it is copied is tried again so often


def take_copy(place: Place, order: Order, world: World, now_id: str) -> tuple[Facts, str, os.stat_result]:
    """Copy what stands at `place`: its facts, the digest in hex, and its status at that time."""
    for _ in range(TRIES):
        fd = place.open()
        try:
            before = os.fstat(fd)
            _room(world, before.st_size)
            found = facts(fd)
            digest = _store(fd, now_id, world)
            steady = same(before, os.fstat(fd)) and same(before, place.status())
        finally:
            os.close(fd)
        if steady:
            _describe(now_id, order, place.path, found, digest, world)
            return found, digest, before
    raise RemediationRefused("it changes while it is copied")


def note_link(place: Place, order: Order, world: World, now_id: str) -> Facts:
    """Keep what is to be known of a symlink."""
    status = os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
    target = os.fsdecode(os.readlink(place.name, dir_fd=place.parent))
    found = Facts("symlink", 0o777, status.st_uid, status.st_gid, 0, target, ())
    _make(now_id, world)
    _describe(now_id, order, place.path, found, "", world)
    return found


def open_content(kept: str, world: World) -> int:
    """The kept content, for putting it back."""
    return os.open(_inside(kept, world, "content"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def drop(kept: str, world: World) -> None:
    """Forget a copy that turned out not to be needed."""
    for name in ("content", "manifest.json"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_inside(kept, world, name))
    with contextlib.suppress(OSError):  # a copy of an earlier act shares the directory
        os.rmdir(os.path.join(world.quarantine, kept))


def _store(fd: int, kept: str, world: World) -> str:
    _make(kept, world)
    path = _inside(kept, world, "content")
    if os.path.lexists(path):
        os.unlink(path)  # the same state of the same file, kept before
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    try:
        digest = copy(fd, target, FILE_MAX)
        os.fsync(target)
    finally:
        os.close(target)
    return digest.hex()


def _make(kept: str, world: World) -> None:
    os.makedirs(os.path.join(world.quarantine, kept), mode=0o700, exist_ok=True)


def _describe(kept: str, order: Order, path: bytes, found: Facts, digest: str, world: World) -> None:
    document: dict[str, Any] = found.document() | {
        "v": 1,
        "finding": order.finding,
        "code": order.code,
        "path": os.fsdecode(path),
        "path_hex": path.hex(),
        "sha256": digest,
    }
    directory = os.open(os.path.join(world.quarantine, kept), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write_whole(directory, "manifest.json", json.dumps(document, sort_keys=True, indent=1).encode())
    finally:
        os.close(directory)


def _room(world: World, size: int) -> None:
    if size > FILE_MAX:
        raise RemediationRefused(f"it is larger than {FILE_MAX >> 20} MiB and would fill the quarantine")
    os.makedirs(world.quarantine, mode=0o700, exist_ok=True)
    disk = os.statvfs(world.quarantine)
    if disk.f_bavail * disk.f_frsize - size < FREE_MIN:
        raise RemediationRefused("the disk has no room for the quarantine copy")
    if _used(world) + size > TOTAL_MAX:
        raise RemediationRefused(f"the quarantine holds {TOTAL_MAX >> 20} MiB; empty {world.quarantine} first")


def _used(world: World) -> int:
    total = 0
    with os.scandir(world.quarantine) as entries:
        for entry in entries:
            try:
                total += os.stat(os.path.join(entry.path, "content"), follow_symlinks=False).st_size
            except OSError:
                continue  # a symlink's entry has no content
    return total


def _inside(kept: str, world: World, name: str) -> str:
    return os.path.join(world.quarantine, kept, name)
