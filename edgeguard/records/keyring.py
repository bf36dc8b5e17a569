"""The key of the epoch that signs segments, and how one follows another. Used by the sealer alone.

The private key is in one file of the runtime directory (a tmpfs: memory), readable by the daemon's user only, together
with its statement, so that both come and go in one rename. A key that has sealed something is replaced, and the
old one overwritten, at the end of the first run after `EPOCH_MS`, at each start of the daemon and at each start of
the device: what lies there between two runs is, but for what was urgent within the hour, a key that has sealed nothing.
A device that is switched off loses the key. The next epoch then begins unannounced, which verifiers show.

A statement is in the outbox, durable under its name, before anything is sealed with its key.
Python cannot promise that memory is wiped; the process that held the key ends within seconds and leaves no core.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, IdentityUnusable, SegmentRefused, SignatureError
from edgeguard.records import epoch, outbox
from edgeguard.records.epoch import Before, Head, Statement

EPOCH_MS = 55 * 60 * 1000  # of a key: less than an hour, so that what runs once an hour replaces it
FILE = "epoch.key"
FILE_MAX = 8192  # bytes: the key and its statement have 500
VERSION = 1
AUDIT_MAX = 16  # newest statements that every run verifies; all of them on request
QUARANTINE_MAX = 64  # statements that were set aside, kept for a look


class Epoch(NamedTuple):
    """A key that can sign."""

    seed: bytes
    statement: Statement
    data: bytes  # the signed statement


class Keyring:
    """`identity` signs with the identity key, `write` puts a file into a directory for good (path, bytes, mode)."""

    def __init__(
        self, runtime: str, directory: str, identity: cose.Signer, clock: int, write: Callable[[str, bytes, int], None]
    ) -> None:
        self._path = os.path.join(runtime, FILE)
        self._outbox = directory
        self._identity = identity
        self._public = identity.public
        self._device = cose.device_id(self._public)
        self._clock = clock
        self._write = write
        self._known: dict[int, Statement | None] = {}
        self._used = 0  # the highest number that anything here knows of
        self.problem = ""  # why the key is not where it should be
        self.unsigned = ""  # why the identity key did not sign
        self._homeless = False  # does it live in this process only?
        self.current: Epoch | None = None

    # --- what is known -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """The key of the run before, if it is still there and still this device's."""
        try:
            self.current = self._read()
        except FileNotFoundError:
            self.current = None
        except (OSError, DecodeError, SignatureError) as error:
            self.problem = f"the epoch key {self._path}: {error}"
            self.current = None
        if self.current is None:
            return
        number = self.current.statement.number
        found = self.statement(number)
        if found is not None and found != self.current.statement:
            self.current = None  # of another history: this disk was put back under a system that went on
        else:
            self._known[number] = self.current.statement
        self.used(number)

    def used(self, number: int) -> None:
        """This number is taken."""
        self._used = max(self._used, number)

    def statement(self, number: int) -> Statement | None:
        """What the outbox holds of an epoch; None where it holds nothing that is whole."""
        if number not in self._known:
            try:
                found = epoch.opened(outbox.read_epoch(self._outbox, number), self._public)
                self._known[number] = found if found.number == number else None
            except (OSError, DecodeError, SignatureError, SegmentRefused):
                self._known[number] = None
        return self._known[number]

    def public(self, number: int) -> bytes | None:
        """The public key of an epoch. The statement of the next one names it, too."""
        own = self.statement(number)
        if own is not None:
            return own.public
        for later in [other for other in outbox.epochs(self._outbox) if other > number][:1]:
            following = self.statement(later)
            if following is not None and following.before is not None and following.before.number == number:
                return following.before.public
        return None

    # --- one after the other -----------------------------------------------------------------------------------------

    def begin(self, heads: tuple[Head, ...], boot: int, *, fresh: bool) -> None:
        """Before sealing: another start of the device, or of the daemon (`fresh`), begins another epoch."""
        if self.current is None:
            return
        another = self.current.statement.boot < boot
        if another or (self._sealed(heads) and fresh):
            self._follow(heads, boot, must=another)

    def ready(self, heads: tuple[Head, ...], boot: int) -> Epoch:
        """The key to seal with; its statement is durable. Raises OSError, IdentityUnusable."""
        if self.current is None:
            last = self._last()
            self._take(self._made(heads, max(boot, last.boot if last else 0), None), must=True)
        assert self.current is not None
        self._publish()
        return self.current

    def end(self, heads: tuple[Head, ...], boot: int) -> None:
        """After sealing: a key whose time is over is replaced now and not before the next sealing, so that what lies
        there meanwhile has sealed nothing. Raises OSError when its statement cannot be stored; the next run does it."""
        if self.current is not None and self._sealed(heads) and (self._old() or self._homeless):
            self._follow(heads, boot, must=False)
            self._publish()

    def let_go(self) -> None:
        """Statements of which no segment is here any more: they were delivered with them. The newest stays."""
        numbers = outbox.epochs(self._outbox)
        if len(numbers) < 2:
            return
        names = outbox.listing(self._outbox)
        for number, later in itertools.pairwise(numbers):
            own, following = self.statement(number), self.statement(later)
            if own is None:
                continue
            if following is None or any(
                own.head(name.stream) < name.sequence <= following.head(name.stream) for name in names
            ):
                return
            os.unlink(os.path.join(self._outbox, outbox.epoch_file(number)))

    def tidy(self, quarantine: str, move: Callable[[str, str], None], *, audit: bool) -> None:
        """Set aside statements that are not whole; the one of the key at hand is written anew."""
        for number in outbox.epochs(quarantine):
            self.used(number)
        numbers = outbox.epochs(self._outbox)
        for number in numbers:
            self.used(number)
        for number in numbers if audit else numbers[-AUDIT_MAX:]:
            if not self._in_file(number):
                name = outbox.epoch_file(number)
                move(os.path.join(self._outbox, name), os.path.join(quarantine, name))
                if self.current is not None and self.current.statement.number == number:
                    self._publish()
        for number in outbox.epochs(quarantine)[:-QUARANTINE_MAX]:
            os.unlink(os.path.join(quarantine, outbox.epoch_file(number)))

    # --- steps -------------------------------------------------------------------------------------------------------

    def _in_file(self, number: int) -> bool:
        current = self.current
        if current is not None and current.statement.number == number:
            try:
                return outbox.read_epoch(self._outbox, number) == current.data
            except (OSError, SegmentRefused):
                return False
        return self.statement(number) is not None

    def _sealed(self, heads: tuple[Head, ...]) -> bool:
        return self.current is not None and self.current.statement.heads != heads

    def _old(self) -> bool:
        """By the clock that nobody sets. One that begins in the future is of another start of the device."""
        assert self.current is not None
        age = _boot_ms() - self.current.statement.mono
        return not 0 <= age < EPOCH_MS

    def _follow(self, heads: tuple[Head, ...], boot: int, *, must: bool) -> None:
        assert self.current is not None
        try:
            following = self._made(heads, max(boot, self.current.statement.boot), self.current)
        except IdentityUnusable as error:
            self.unsigned = str(error)
            if must:
                raise
            return  # records that are sealed late by an old key are better than none; it is said, and tried again
        self._take(following, must=must)

    def _made(self, heads: tuple[Head, ...], boot: int, before: Epoch | None) -> Epoch:
        seed = cose.generate_seed()
        last = before.statement if before else self._last()
        number = self._used + 1
        statement = Statement(
            self._device,
            number,
            cose.public_of(seed),
            boot,
            _boot_ms(),
            time.time_ns() // 1_000_000,
            self._clock,
            heads,
            Before(last.number, last.public) if last else None,
            before is not None,
        )
        return Epoch(seed, statement, epoch.issue(statement, self._identity, before.seed if before else None))

    def _last(self) -> Statement | None:
        """The newest statement that is whole."""
        for number in reversed(outbox.epochs(self._outbox)):
            if statement := self.statement(number):
                return statement
        return None

    def _take(self, following: Epoch, *, must: bool) -> None:
        """Put it in the place of the one at hand. Where the runtime directory does not take it, the one at hand goes
        on; if it must not, or there is none, the new one lives as long as this process."""
        try:
            self._store(following)
        except OSError as error:
            self.problem = f"the epoch key {self._path}: {error.strerror or error}"
            if not must:
                return
            self._homeless = True
        else:
            self._homeless = False
        self.current = following
        self._known[following.statement.number] = following.statement
        self.used(following.statement.number)

    def _publish(self) -> None:
        assert self.current is not None
        number = self.current.statement.number
        if self._in_file(number):
            return
        self._write(os.path.join(self._outbox, outbox.epoch_file(number)), self.current.data, 0o640)

    # --- the file ----------------------------------------------------------------------------------------------------

    def _read(self) -> Epoch:
        fd = os.open(self._path, outbox.O_READ)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise DecodeError("not a file that is ours alone")
            data = file.read(FILE_MAX + 1)
        parts = cbor.decode(data, depth=1, size=FILE_MAX)
        if not isinstance(parts, list) or len(parts) != 3 or parts[0] != VERSION:
            raise DecodeError("not an epoch key")
        _, seed, signed = parts
        if not isinstance(seed, bytes) or len(seed) != cose.SEED_SIZE or not isinstance(signed, bytes):
            raise DecodeError("not an epoch key")
        statement = epoch.opened(signed, self._public)
        if cose.public_of(seed) != statement.public:
            raise DecodeError("its statement is of another key")
        return Epoch(seed, statement, signed)

    def _store(self, following: Epoch) -> None:
        """In one rename, then nothing is left of the old key's bytes. Raises OSError; the old one is there still."""
        temporary = f"{self._path}.tmp"
        old = _opened(self._path)
        try:
            _wipe(temporary)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with open(fd, "wb") as file:
                    file.write(cbor.encode([VERSION, following.seed, following.data]))
                os.replace(temporary, self._path)
            except OSError:
                _wipe(temporary)
                raise
            self.problem = _overwritten(old, self._path)
        finally:
            if old >= 0:
                os.close(old)


def _opened(path: str) -> int:
    """To be overwritten; -1 where there is nothing, or nothing of ours."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1


def _overwritten(fd: int, path: str) -> str:
    """Put zeros over all of it. The problem in words, or ""; the file has no name any more, or soon has none."""
    try:
        if fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode):
            os.pwrite(fd, bytes(os.fstat(fd).st_size), 0)
    except OSError as error:
        return f"the old key {path} could not be overwritten: {error.strerror or error}"
    return ""


def _wipe(path: str) -> None:
    """What a killed run left. Raises OSError."""
    fd = _opened(path)
    if fd >= 0:
        _overwritten(fd, path)
        os.close(fd)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
