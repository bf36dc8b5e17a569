"""Looking at some paths because somebody has a reason: what the resident daemon leaves to a helper (large files, large
new trees, other names of a touched file), findings that are looked at again, and copies of what was accepted or is to
be kept from now on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from stat import S_IFMT, S_IFREG
from typing import BinaryIO

from edgeguard.codec import digests
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.layers import Lookup
from edgeguard.errors import DecodeError
from edgeguard.model import Origin, Watch
from edgeguard.sensors import observed
from edgeguard.sensors.copies import kept
from edgeguard.sensors.look import CannotLook, Eye, observe
from edgeguard.sensors.looker import Summary
from edgeguard.sensors.sweep import HASH_FILE_MAX, VAULT_MAX, Emit, Sweep
from edgeguard.sensors.vault import Vault
from edgeguard.sensors.walk import Walker, resolved
from edgeguard.sensors.watching import Plan, literal_root


def revisit(
    watches: Sequence[Watch],
    root: str,
    manifest: Lookup | None,
    targets: Sequence[str],
    now: int,
    origin: Origin,
    emit: Emit,
    *,
    observed_in: BinaryIO | None = None,
    hash_file_max: int = HASH_FILE_MAX,
) -> Summary:
    """Look at some paths and all that is below them; emit the paths themselves and, below, what differs from the
    manifest. For what the resident daemon leaves to a helper: large files, large new trees, and files that were touched
    under a name that nobody watches (their watched names are found in `observed_in`)."""
    summary = Summary()
    plan = Plan(resolved(watches, root))
    algorithm = manifest.algorithm if manifest is not None else Algorithm.SHA256
    eye = Eye(hash_file_max, thorough=True, digester=digests.swift(algorithm))
    names = _watched_names(plan, root, targets, observed_in, summary) if observed_in is not None else []
    for target in (*targets, *names):
        watch = plan.decide(target)
        expected = manifest.lookup(os.fsencode(target)) if manifest is not None else None
        seen = observe(eye, watch, root, target, now, origin, expected=expected)
        summary.files += 1
        known = expected is not None
        if watch is not None and (watch.only != "setid" or seen.columns.get("setid") or known):
            emit(seen)
            summary.emitted += 1
        inner = Summary()
        Sweep(plan, root, manifest, now, origin, emit, inner, target, algorithm).run(
            None, None, None, True, hash_file_max, time.time_ns, None
        )
        summary.files += inner.files
        summary.emitted += inner.emitted
        summary.bytes_read += inner.bytes_read
    summary.bytes_read += eye.bytes_read
    return summary


def _watched_names(plan: Plan, root: str, targets: Sequence[str], observed_in: BinaryIO, summary: Summary) -> list[str]:
    """Watched names of those targets that have several names of which nobody watches this one."""
    wanted: set[tuple[int, int]] = set()
    prefix = root.rstrip("/")
    for target in targets:
        watch = plan.decide(target)
        if watch is not None and not watch.only:
            continue
        with contextlib.suppress(OSError):
            at = os.lstat(prefix + target)
            if at.st_nlink > 1 and S_IFMT(at.st_mode) == S_IFREG:
                wanted.add((at.st_dev, at.st_ino))
    if not wanted:
        return []
    numbers = {number for _, number in wanted}
    found = []
    try:
        for record in observed.Reader(observed_in).records():
            found += [os.fsdecode(path) for path, number in record.inodes() if number in numbers]
    except DecodeError as error:
        summary.note(f"observed.db cannot be searched: {error}")
    return [path for path in found if path not in targets and _inode(prefix + path) in wanted]


def _inode(path: str) -> tuple[int, int] | None:
    """On other file systems other files have the same number."""
    try:
        at = os.lstat(path)
    except OSError:
        return None
    return at.st_dev, at.st_ino


def protect(
    watches: Sequence[Watch],
    root: str,
    paths: Sequence[str],
    vault: str,
    *,
    vault_max: int = VAULT_MAX,
    algorithm: Algorithm = Algorithm.SHA256,
) -> list[bytes]:
    """Keep copies of these files as they are now (after they were accepted). Digests of what is in the vault then;
    paths of which no watch keeps a copy, or that cannot be read, are left out."""
    plan = Plan(resolved(watches, root))
    store = Vault(vault, vault_max)
    eye = Eye(HASH_FILE_MAX, digester=digests.swift(algorithm))
    held = []
    for path in paths:
        watch = plan.decide(path)
        if watch is None:
            continue
        parent, _, name = (root.rstrip("/") + path).rpartition("/")
        try:
            fd = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                size = os.lstat(name, dir_fd=fd).st_size
                if not kept(watch, path, size):
                    continue
                seen = store.look(eye, fd, name, path, size, watch)
            finally:
                os.close(fd)
        except (OSError, CannotLook):
            continue
        if seen.entry.digest and os.path.exists(f"{vault}/{seen.entry.digest.hex()}"):
            held.append(seen.entry.digest)
    store.sync()
    return held


def complete(
    watches: Sequence[Watch],
    root: str,
    expected: Callable[[str], bytes],
    vault: str,
    *,
    wanted: Callable[[Watch, str, int], bool] = kept,
    vault_max: int = VAULT_MAX,
    algorithm: Algorithm = Algorithm.SHA256,
) -> int:
    """Keep the copies that watches ask for and that are not there yet, of files that are as they should be; how many.

    For a policy that asks for more than the one before, for a baseline from elsewhere, which no learning here came
    before, and for what packages brought. `expected`: path -> digest of the content, b"" where there is none.
    """
    plan = Plan(resolved(watches, root))
    store = Vault(vault, vault_max)
    eye = Eye(HASH_FILE_MAX, digester=digests.swift(algorithm))
    count = 0
    for start in _starts(plan.watches, root):
        for visit in Walker(plan, root, start):
            for at, name in enumerate(visit.names):
                watch, stat = visit.watch or visit.watches[at], visit.stats[at]
                path = f"{visit.path}/{name}"
                if S_IFMT(stat.st_mode) != S_IFREG or not wanted(watch, path, stat.st_size):
                    continue
                digest = expected(path)
                if not digest or os.path.exists(f"{vault}/{digest.hex()}"):
                    continue
                with contextlib.suppress(OSError, CannotLook):
                    if eye.look(visit.fd, name, watch).entry.digest == digest:
                        store.look(eye, visit.fd, name, path, stat.st_size, watch)
                        count += os.path.exists(f"{vault}/{digest.hex()}")
    store.sync()
    return count


def _starts(watches: Sequence[Watch], root: str) -> list[str]:
    """Directories in or below which everything lies of which a copy is kept; none inside another."""
    found: set[str] = set()
    for watch in watches:
        if watch.protect or watch.diff:
            place = literal_root(watch.path)
            tree = watch.recurse and os.path.isdir(root.rstrip("/") + place)
            found.add(place if tree else place.rpartition("/")[0])
    return [place for place in sorted(found) if not any(place.startswith(f"{other}/") for other in found - {place})]
