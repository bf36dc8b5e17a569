"""A device on paper: settings in a temporary directory, a key, a spool, and records to put in it."""

from __future__ import annotations

import errno
import os

from edgeguard.codec import cbor, cose
from edgeguard.model import Actor, Change, Finding, Origin, Severity, State, Transition
from edgeguard.records import compose, epoch, examine, outbox, seal, wire
from edgeguard.records.certify import Keys
from edgeguard.records.compose import Moment
from edgeguard.records.spool import Spool
from edgeguard.settings import Budget, Paths, Settings, Uplink

WALL = 1_795_416_177_140
BOOT_ID = b"first boot......"


def moment(mono: int = 1000, clock: int = 2) -> Moment:
    return Moment(mono, WALL + mono, clock)


def finding(subject: str = "/usr/sbin/sshd", severity: Severity = Severity.CRITICAL, **changes) -> Change:
    values = {
        "id": "F-7K2M", "code": "EG-FILE-002", "rule": "programs-content", "kind": "file", "subject": subject,
        "severity": severity, "state": State.OPEN, "title": "content changed", "first_seen": WALL, "last_seen": WALL,
        "count": 1, "origin": Origin.LIVE, "expected": {"sha256": bytes(32)}, "observed": {"sha256": b"\x77" * 32},
        "actor": Actor(2198, "/usr/bin/cp", ("cp", "x", "/usr/sbin/sshd"), 0, "root", 1001, "anna", "pts/0", "10.0.3.8",
                       "session-3.scope", ((2100, "/usr/bin/bash"), (1990, "/usr/sbin/sshd"))),
        "details": {"type": "file", "size": 1400000, "mode": 0o755, "uid": 0, "category": "program"},
    }  # fmt: skip
    return Change(Transition.OPENED, Finding(**(values | changes)), None)


def state(text: str = "hello", mono: int = 1000):
    return compose.state("start", moment(mono), text)


EPOCH_SEED = b"\x07" * 32


def statement(
    identity: bytes | cose.Signer = b"\x01" * 32,
    number: int = 1,
    seed: bytes = EPOCH_SEED,
    *,
    boot: int = 1,
    heads: tuple[epoch.Head, ...] = (),
    before: epoch.Before | None = None,
    announced_by: bytes | None = None,
) -> bytes:
    """The word of an identity key about the key of an epoch."""
    device = cose.device_id(cose.public_of(identity) if isinstance(identity, bytes) else identity.public)
    said = epoch.Statement(device, number, cose.public_of(seed), boot, 1000, WALL, 2, heads, before)
    return epoch.issue(said, identity, announced_by)


class Device:
    """Paths, key and the two halves of the spool of one device."""

    def __init__(self, root: str, *, size: int = 128 * 1024, **budget: int) -> None:
        paths = Paths(state=f"{root}/state", runtime=f"{root}/run", exchange=f"{root}/exchange")
        self.settings = Settings(paths=paths, budget=Budget()._replace(**budget))
        self.spool_directory = f"{root}/state/spool"
        self.outbox = f"{root}/exchange/outbox"
        self.inbox = f"{root}/exchange/inbox"
        self.size = size
        for directory in (f"{root}/state/keys", f"{root}/run", self.inbox):
            os.makedirs(directory, exist_ok=True)
        self.seed = b"\x01" * 32
        with open(f"{root}/state/keys/device.key", "wb") as file:
            file.write(self.seed)
        self.public = cose.public_of(self.seed)
        self.id = cose.device_id(self.public)

    def with_collector(self, public: bytes, url: str = "https://localhost:1") -> None:
        path = f"{self.settings.paths.state}/collector.pub"
        with open(path, "w") as file:
            file.write(public.hex() + "\n")
        self.settings = self.settings._replace(uplink=Uplink(url=url, collector_key=path))

    def spool(self, boot_id: bytes = BOOT_ID, files=None) -> Spool:
        return Spool(self.spool_directory, self.outbox, boot_id, size=self.size, files=files)

    def seal(self, *, audit: bool = False, started: bool = False) -> dict:
        return seal.run(self.settings, audit=audit, drop_privileges=False, started=started)

    def record_and_seal(self, *records) -> dict:
        """Put records in, close the journal, seal it."""
        spool = self.spool()
        spool.open()
        for record in records:
            spool.append(record)
        spool.rotate(10_000_000, force=True)
        spool.close()
        return self.seal()

    def statements(self) -> dict[str, bytes]:
        return {outbox.epoch_file(n): outbox.read_epoch(self.outbox, n) for n in outbox.epochs(self.outbox)}

    def epoch_seed(self) -> bytes:
        """The private key that the next segment would be signed with."""
        with open(f"{self.settings.paths.runtime}/epoch.key", "rb") as file:
            return cbor.decode(file.read())[1]

    def opened(self, data: bytes) -> wire.Segment:
        """A segment, verified with what lies in the outbox."""
        keys = Keys([self.public])
        for said in self.statements().values():
            keys.admit(said)
        return examine.opened(data, keys)

    def segments(self) -> dict[str, bytes]:
        found = {}
        for name in sorted(os.listdir(self.outbox)) if os.path.isdir(self.outbox) else ():
            if name.endswith(".egs"):
                with open(os.path.join(self.outbox, name), "rb") as file:
                    found[name] = file.read()
        return found


class FailingFiles:
    """The `os` module's calls, until told to fail."""

    def __init__(self) -> None:
        self.error = 0
        self.syncs = 0
        self.written = 0
        self.short = False

    def _check(self) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path, flags, mode=0o777):
        if flags & os.O_CREAT:
            self._check()
        return os.open(path, flags, mode)

    def pwrite(self, fd, data, offset):
        self._check()
        self.written += len(data)
        return os.pwrite(fd, data[: max(1, len(data) // 2)] if self.short else data, offset)

    def fdatasync(self, fd):
        self._check()
        self.syncs += 1
        os.fdatasync(fd)

    def fsync(self, fd):
        self._check()
        os.fsync(fd)

    def close(self, fd):
        os.close(fd)


FULL, BROKEN = errno.ENOSPC, errno.EIO
