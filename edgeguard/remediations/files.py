"""Files: put one back as the baseline has it, or take one away that should not be there.

Content comes from the vault, which the sensor daemon writes: it is believed only when its digest is the one in the
verified manifest. What was there goes to the quarantine first, with its SHA-256. How a path is reached safely is in
`place`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any

from edgeguard.codec import digests
from edgeguard.codec.digests import NUMBERS, Algorithm
from edgeguard.errors import RemediationFailed, RemediationRefused
from edgeguard.linux import fileflags
from edgeguard.model import Columns
from edgeguard.remediations import CAPABILITY, Order, Plan, World, quarantine
from edgeguard.remediations.place import (
    XATTRS_MAX,
    Facts,
    Place,
    clear,
    components,
    copy,
    digest_of,
    facts,
    from_document,
    hold,
    put,
    put_link,
    reach,
    same,
    temporary_name,
    xattrs_from_text,
    xattrs_text,
)

VAULT_FILE_MAX = 64 * 1024 * 1024  # bytes; the vault's whole budget by default

SETID = stat.S_ISUID | stat.S_ISGID


class RestoreFile:
    """Content, mode, owner, capabilities and link target as in the baseline."""

    verb = "restore-file"
    kinds = ("file",)

    def prepare(self, order: Order, world: World) -> Plan:
        path = os.fsencode(order.subject)
        components(path)
        entry = world.lookup(path)
        if entry is None:
            raise RemediationRefused("the baseline has no reference value for this path")
        with reach(path, world, trusted=True) as place:
            before = _what_is_there(place, order, world)
            want = _wanted(entry, before, world)
            if _is(place, want):
                if before["kept"]:
                    quarantine.drop(before["kept"], world)
                raise RemediationRefused("it is as it should be already")
        return {"path": path.hex(), "want": want, "before": before}

    def apply(self, plan: Plan, world: World) -> str:
        want = plan["want"]
        with reach(bytes.fromhex(plan["path"]), world, trusted=True) as place:
            _unchanged_since(place, plan["before"])
            if want["type"] == "symlink":
                put_link(place, want["target"], want["uid"], want["gid"])
                return "restored as a symlink"
            put(place, _facts_of(want), lambda fd: _fill(fd, want, plan["before"], world))
        kept = plan["before"]["kept"]
        return "restored from the protected copy" + (f"; what was there is in quarantine {kept}" if kept else "")

    def verify(self, plan: Plan, world: World) -> bool:
        want = plan["want"]
        with reach(bytes.fromhex(plan["path"]), world, trusted=True) as place:
            return _is(place, want)

    def revert(self, plan: Plan, world: World) -> str:
        with reach(bytes.fromhex(plan["path"]), world, trusted=True) as place:
            return _revert(place, plan["before"], plan["want"], world)


class QuarantineFile:
    """Take away a file that the baseline does not know. Its directory need not be trusted, only the way to it."""

    verb = "quarantine-file"
    kinds = ("file",)

    def prepare(self, order: Order, world: World) -> Plan:
        path = os.fsencode(order.subject)
        components(path)
        if world.lookup(path) is not None:
            raise RemediationRefused("the baseline knows this path; it can be restored, not taken away")
        with reach(path, world, trusted=False) as place:
            before = _what_is_there(place, order, world)
        if not before["type"]:
            raise RemediationRefused("it is gone already")
        runs_with_rights = before["mode"] & SETID or any(name == CAPABILITY for name, _ in before["xattrs"])
        if order.setid_only and not (before["type"] == "file" and runs_with_rights):
            raise RemediationRefused("it does not run with other rights, and nothing else is watched there")
        return {"path": path.hex(), "before": before}

    def apply(self, plan: Plan, world: World) -> str:
        with reach(bytes.fromhex(plan["path"]), world, trusted=False) as place:
            if place.status() is not None:
                _unchanged_since(place, plan["before"])
                hold(place, 0)
                os.unlink(place.name, dir_fd=place.parent)
                place.sync()
        return f"moved to quarantine {plan['before']['kept']}"

    def verify(self, plan: Plan, world: World) -> bool:
        with reach(bytes.fromhex(plan["path"]), world, trusted=False) as place:
            return place.status() is None

    def revert(self, plan: Plan, world: World) -> str:
        with reach(bytes.fromhex(plan["path"]), world, trusted=False) as place:
            if place.status() is not None:
                if _is(place, _want_of(plan["before"])):
                    hold(place, plan["before"].get("held", 0))
                    return "it is there as before"
                raise RemediationRefused("something else stands there now")
            _put_back(place, plan["before"], world)
        return "put back from quarantine"


def _what_is_there(place: Place, order: Order, world: World) -> dict[str, Any]:
    """What stands at the place, kept in the quarantine; type "" for nothing."""
    status = place.status()
    if status is None:
        return {"type": "", "kept": ""}
    kept = f"{order.finding}-{status.st_ino:x}-{status.st_ctime_ns:x}"
    if stat.S_ISLNK(status.st_mode):
        found = quarantine.note_link(place, order, world, kept)
        digest = ""
    elif stat.S_ISREG(status.st_mode):
        found, digest, status = quarantine.take_copy(place, order, world, kept)
    else:
        raise RemediationRefused("what stands there is neither a file nor a symlink; a person must look")
    identity = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return found.document() | {"kept": kept, "sha256": digest, "identity": identity}


def _wanted(entry: Columns, before: dict[str, Any], world: World) -> dict[str, Any]:
    """The reference value as a plan's "want"; refused where we hold no copy of it."""
    kind = entry.get("type")
    uid, gid, mode = entry.get("uid"), entry.get("gid"), entry.get("mode")
    if not isinstance(uid, int) or not isinstance(gid, int) or not isinstance(mode, int):
        raise RemediationRefused("the reference value is not complete")
    want: dict[str, Any] = {"type": kind, "uid": uid, "gid": gid, "mode": mode & 0o7777, "target": "", "xattrs": []}
    if kind == "symlink":
        return want | {"target": entry.get("target")}
    algorithm, digest = digests.held(entry)
    if kind != "file" or len(digest) != 32:
        raise RemediationRefused("only a file or a symlink can be restored")
    pairs, flags = _xattrs(entry, before, world)
    want |= {algorithm.value: digest.hex(), "size": entry.get("size"), "xattrs": pairs, "held": flags}
    if not _is_content(before, want, world):
        os.close(_open_vault(digest.hex(), world))
    return want


def _digest(want: dict[str, Any]) -> tuple[Algorithm, str]:
    """Of a regular file's content, in hex, as its reference value has it; of what is in quarantine it is SHA-256."""
    return next((algorithm, want[algorithm.value]) for algorithm in NUMBERS if algorithm.value in want)


def _is_content(before: dict[str, Any], want: dict[str, Any], world: World) -> bool:
    """Does what was there hold what should be there, so that only its attributes differ?"""
    algorithm, digest = _digest(want)
    if algorithm is Algorithm.SHA256 or before["type"] != "file":
        return bool(before.get("sha256") == digest)
    kept = quarantine.open_content(before["kept"], world)
    try:
        return digest_of(kept, quarantine.FILE_MAX, algorithm).hex() == digest
    finally:
        os.close(kept)


def _xattrs(entry: Columns, before: dict[str, Any], world: World) -> tuple[list[list[str]], int]:
    """Attributes, and the flags that hold the file. Capabilities come from the baseline. Of the rest it has a digest:
    that of what the file has with any of the flags, or else the vault knows what it is the digest of."""
    caps, digest = entry.get("caps"), entry.get("xattrs")
    pairs = [[CAPABILITY, caps]] if isinstance(caps, str) and caps else []
    if not isinstance(digest, bytes) or not digest:
        return pairs, 0
    there = [list(pair) for pair in before.get("xattrs", []) if pair[0] != CAPABILITY]
    for known in (there, []):
        for held in fileflags.COMBINATIONS:
            if hashlib.sha256(xattrs_text(known) + fileflags.text(held)).digest() == digest:
                return pairs + known, held
    with open(_open_vault(digest.hex(), world), "rb") as file:
        text = file.read(XATTRS_MAX + 1)
    if hashlib.sha256(text).digest() != digest:
        raise RemediationRefused("the protected copy of its extended attributes is not what the baseline says")
    return pairs + xattrs_from_text(text), 0


def _open_vault(digest: str, world: World) -> int:
    try:
        fd = os.open(os.path.join(world.vault, digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RemediationRefused("there is no protected copy of it; reinstall its package") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RemediationRefused("its protected copy is not a file")
    return fd


def _fill(fd: int, want: dict[str, Any], before: dict[str, Any], world: World) -> None:
    """The content, from the file itself (kept in quarantine) where only its attributes differ, else the vault."""
    algorithm, wanted = _digest(want)
    untouched = _is_content(before, want, world)
    source = quarantine.open_content(before["kept"], world) if untouched else _open_vault(wanted, world)
    try:
        digest = copy(source, fd, max(VAULT_FILE_MAX, quarantine.FILE_MAX), algorithm)
    finally:
        os.close(source)
    if digest.hex() != wanted:
        raise RemediationFailed("the protected copy is not what the baseline says; nothing was changed")


def _unchanged_since(place: Place, before: dict[str, Any]) -> None:
    """What stands there is still what was copied: else the copy in quarantine would not be what is replaced."""
    status = place.status()
    if status is None:
        return
    identity = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if before.get("identity") != identity:
        raise RemediationRefused("it was changed again in the meantime")


def _facts_of(want: dict[str, Any]) -> Facts:
    pairs = [list(pair) for pair in want["xattrs"]]
    size = want.get("size") or 0
    return from_document(
        {key: want[key] for key in ("type", "mode", "uid", "gid", "target")}
        | {"size": size, "xattrs": pairs, "held": want.get("held", 0)}
    )


def _want_of(before: dict[str, Any]) -> dict[str, Any]:
    return {key: before[key] for key in ("type", "mode", "uid", "gid", "target", "sha256", "xattrs")}


def _is(place: Place, want: dict[str, Any], *, flags: bool = True) -> bool:
    """Does this stand there, in content and every attribute? `flags`: also in those that hold the file."""
    status = place.status()
    if status is None:
        return False
    if want["type"] == "symlink":
        is_link = stat.S_ISLNK(status.st_mode)
        return is_link and os.fsdecode(os.readlink(place.name, dir_fd=place.parent)) == want["target"]
    if not stat.S_ISREG(status.st_mode):
        return False
    fd = place.open()
    try:
        found = facts(fd)
        there = dict(found.xattrs)
        attributes = (found.mode, found.uid, found.gid) == (want["mode"], want["uid"], want["gid"])
        sound = attributes and there == dict(want["xattrs"]) and (not flags or found.held == want.get("held", 0))
        algorithm, digest = _digest(want)
        content = sound and digest_of(fd, quarantine.FILE_MAX, algorithm).hex() == digest
        return content and same(os.fstat(fd), place.status())
    finally:
        os.close(fd)


def _revert(place: Place, before: dict[str, Any], want: dict[str, Any], world: World) -> str:
    """Put back what was there before a restore, unless somebody has changed it since."""
    clear(place, temporary_name(place.name))
    status = place.status()
    was_there = bool(before["type"])
    if (status is None and not was_there) or (was_there and _is(place, _want_of(before))):
        hold(place, before.get("held", 0))  # a crash may have come between taking the flags away and the rename
        return "it is as before"
    if status is not None and not _is(place, want, flags=False):  # they come last, and a crash may have been before
        raise RemediationRefused("it was changed again after it was restored")
    if was_there:
        _put_back(place, before, world)
        return "put back from quarantine"
    os.unlink(place.name, dir_fd=place.parent)
    place.sync()
    return "taken away again: it was missing before"


def _put_back(place: Place, before: dict[str, Any], world: World) -> None:
    if before["type"] == "symlink":
        put_link(place, before["target"], before["uid"], before["gid"])
        return
    source = quarantine.open_content(before["kept"], world)
    try:
        put(place, _facts_of(before), lambda fd: _copy_all(source, fd, before["sha256"]))
    finally:
        os.close(source)


def _copy_all(source: int, target: int, digest: str) -> None:
    if copy(source, target, quarantine.FILE_MAX).hex() != digest:
        raise RemediationFailed("the copy in quarantine was changed")
