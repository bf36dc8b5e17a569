"""What takes long to make is made once and kept outside the tree: roots, disk images, devices frozen after their boot.

An artefact is whole or not there: it is made under another name and renamed. One maker at a time holds its lock file;
others wait and then find it. What a killed maker left is taken away by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

UNUSED_S = 21 * 86400  # an artefact that nobody asked for that long goes when another of its kind is made


def cache() -> Path:
    """Where artefacts are kept: $EDGEGUARD_CACHE, else below the user's cache directory."""
    named = os.environ.get("EDGEGUARD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeguard"


def week() -> str:
    """The ISO week, part of every root's key: so a root has the security updates of its week."""
    return datetime.now(UTC).strftime("%G-W%V")


def key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The artefact of that name; `make(part)` makes it, a file or a folder, where it is not there yet."""
    artefact = cache() / name
    if not artefact.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with locked(name):
            if not artefact.exists():
                _make(artefact, make)
    with contextlib.suppress(PermissionError):  # another user's cache
        os.utime(artefact, ns=(time.time_ns(), artefact.stat().st_mtime_ns))
    return artefact


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Alone among all who ask for that name; the file stays, since removing it would let two in."""
    with (cache() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(artefact: Path, make: Callable[[Path], None]) -> None:
    kind = artefact.name.rpartition("-")[0]
    for left in cache().glob(f".part-{artefact.name}.*"):
        _remove(left)
    for other in cache().glob(f"{kind}-*"):
        if time.time() - other.stat().st_atime > UNUSED_S:
            _remove(other)
    # in a folder of its own, so that its maker has a place for what it needs meanwhile
    work = cache() / f".part-{artefact.name}.{os.getpid()}"
    work.mkdir()
    try:
        make(work / artefact.name)
        (work / artefact.name).rename(artefact)
    finally:
        _remove(work)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
