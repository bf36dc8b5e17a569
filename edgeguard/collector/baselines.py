"""Manifests that the collector holds, so that devices may write paths as numbers: DIR/baselines/<sha256>.egm.

Content-addressed, so there is nothing to trust but the digest, which is computed when one is added.
"""

from __future__ import annotations

import os
import shutil

from edgeguard.codec.manifest import Reader, digest
from edgeguard.errors import DecodeError
from edgeguard.records import receipts
from edgeguard.records.references import SUFFIX, Places, manifest_id
from edgeguard.records.wire import Resolve

OPEN_MAX = 4  # manifests kept open


class Baselines:
    """The folder, read again whenever it is asked: manifests are added by another process."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: dict[bytes, Places] = {}

    def add(self, path: str) -> bytes:
        """Take a manifest in, after reading all of it. Returns its id. Raises OSError or DecodeError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            Reader(fd).verify()
            name = digest(fd).hex() + SUFFIX
        finally:
            os.close(fd)
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        target = os.path.join(self._directory, name)
        if not os.path.exists(target):
            shutil.copyfile(path, target + ".tmp")
            os.replace(target + ".tmp", target)
        return bytes.fromhex(name[:16])

    def ids(self) -> tuple[bytes, ...]:
        """For receipts: the newest that fit in one."""
        try:
            with os.scandir(self._directory) as entries:
                found = [(entry.stat().st_mtime_ns, manifest_id(entry.name)) for entry in entries]
        except FileNotFoundError:
            return ()
        known = sorted((time, name) for time, name in found if name is not None)
        return tuple(name for _, name in known[-receipts.BASELINES_MAX :])

    def places(self, baseline: bytes) -> Places | None:
        """What turns numbers of this manifest into paths and digests; None if it is not here (any more)."""
        places = self._open.get(baseline)
        if places is None:
            path = self._path(baseline)
            if path is None:
                return None
            try:
                places = Places(path)
            except (OSError, DecodeError):
                return None
            if len(self._open) >= OPEN_MAX:
                self._open.pop(next(iter(self._open))).close()
            self._open[baseline] = places
        return places

    def resolver(self, baseline: bytes) -> Resolve | None:
        """What turns numbers of this manifest into paths; None if it is not here (any more)."""
        places = self.places(baseline)
        return places.resolve if places else None

    def _path(self, baseline: bytes) -> str | None:
        if not any(baseline):
            return None
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return None
        return next((os.path.join(self._directory, name) for name in names if manifest_id(name) == baseline), None)
