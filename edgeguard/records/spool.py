"""The daemon's half of the spool: records become durable here, and nowhere is "durable" said before fdatasync.

Two preallocated journals are written in turn (measured: 591 bytes of flash per event in commits of ten, against 2,036
for appending to a growing file). When one is full enough it is closed, `edgeguard-seal` turns it into signed segments
and marks it free. A kill or a power cut leaves at worst a torn last frame, which its CRC gives away.
When the disk fails or both journals are taken, records wait in a bounded queue in memory; what overflows is counted
and recorded as a drop. The directory: journal.0, journal.1, quarantine/, receipt.egr.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from typing import NamedTuple, cast

from edgeguard.errors import SegmentRefused, SpoolError
from edgeguard.model import Severity
from edgeguard.records import compose, journal, outbox, registry, wire
from edgeguard.records.compose import Moment
from edgeguard.records.journal import ACTIVE, CLOSED, FRAMES_AT, FREE, STREAMS, Content, Files, Header
from edgeguard.records.wire import Record

JOURNALS = ("journal.0", "journal.1")
UNTOLD = ".untold"  # behind the name of one that was set aside, until a durable record says so
SEAL_RECORDS = 256
SEAL_BYTES = 48 * 1024
COMMIT_BYTES = 4 * 1024
COMMIT_MS = (0, 2_000, 60_000, 10_000)  # by stream: findings at once, security, metrics, verbose
BLOCK = 4096  # bytes; a card writes no less, however little of it is new
HEADER_COST = 2 * BLOCK  # two copies, one after the other
MARKS_ROOM = 2 * (journal.COMMIT_MAX + journal.FRAME_OVERHEAD)  # bytes: one before a commit, one at the end
NUMBER_MAX = 1 << 48  # of a record, and of a start of the device: what no device reaches
BOOT_MAX = 1 << 31  # the header of a journal has room for 32 bits
UNREADABLE_MAX = 3  # times that a journal may fail to be read before the next is begun
_NO_FILE = frozenset({errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO})
QUEUE_MAX = 1024  # records in memory while the disk does not take them, about 1 MB
RETRY_MS = 1_000  # after a failed commit
RETRY_MS_MAX = 600_000  # between attempts to seal a journal that could not be sealed
_EVICT_ORDER = (registry.Stream.VERBOSE, registry.Stream.METRICS, registry.Stream.SECURITY, registry.Stream.FINDINGS)


class Status(NamedTuple):
    """For status and doctor."""

    boot: int
    next: tuple[int, ...]  # record sequence numbers by stream
    pending: int  # records not yet durable
    queued: int  # records that wait in memory because the disk does not take them
    lost: tuple[int, ...]  # records by stream that memory could not hold, not yet recorded as a drop
    waiting: int  # journals that wait for the sealer
    error: str  # "" or why records are not durable


class Spool:
    """`open` first; without it, or after it failed, records queue in memory and `commit` tries again."""

    def __init__(
        self,
        directory: str,
        outbox_directory: str,
        boot_id: bytes,
        *,
        flush_s: int = 3600,
        size: int = journal.SIZE,
        files: Files | None = None,
    ) -> None:
        self._directory = directory
        self._outbox = outbox_directory
        self._boot_id = boot_id.ljust(16, b"\0")[:16]
        self._flush_ms = flush_s * 1000
        self._size = size
        self._files = files if files is not None else cast("Files", os)
        self._opened = False
        self._headers: list[Header | None] = [None, None]
        self._active: int | None = None
        self._fd = -1
        self._end = FRAMES_AT
        self._boot = 0
        self._next = [1] * STREAMS
        self._pending = bytearray()
        self._pending_records = 0
        self._deadline: int | None = None  # mono ms by which the pending records must be durable
        self._last_mono = [0] * STREAMS
        self._records = 0  # in the active journal
        self._oldest: int | None = None  # mono ms of the first of them
        self._urgent = False
        self._queue: deque[Record] = deque()
        self._lost = [0] * STREAMS
        self._attempted = 0
        self._failures = 0
        self._error = ""
        self._retry: int | None = None  # mono ms of the next attempt after a failure
        self._unreadable = [0, 0]  # times that a journal could not be read
        self.written = 0  # bytes that this cost the disk: whole blocks, each time they were written
        self.damaged: list[str] = []  # journals that were set aside, of which no durable record tells yet
        self._told = False  # they are among the records that the next commit makes durable

    # --- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Find out what is there and go on after it. Raises SpoolError when the disk does not let us."""
        try:
            self._open()
        except OSError as error:
            raise self._fail(error) from error
        self._error = ""

    def close(self) -> None:
        """Make durable what can be, and let go. Raises SpoolError like `commit`."""
        try:
            if self._opened or self._queue:
                self.commit()
        finally:
            if self._fd >= 0:
                self._files.close(self._fd)
                self._fd = -1
            self._opened = False

    def append(self, record: Record) -> tuple[int, int]:
        """Take a record; it gets its sequence number now and is durable after `commit`.

        Raises SpoolError when it can only be kept in memory for now; nothing more need be done about it.
        """
        self._enqueue(record)
        if self._opened:
            self._drain()
        if self._queue:
            raise SpoolError(self._error or "both journals wait to be sealed; records are kept in memory")
        return record.stream, self._next[record.stream] - 1

    def commit(self) -> None:
        """Make all that was appended durable. Raises SpoolError; then try again later, nothing is forgotten."""
        if not self._opened:
            self.open()
        self._drain()
        while self._pending:
            self._flush()
            self._drain()
        if self._queue:
            raise SpoolError("both journals wait to be sealed; records are kept in memory")
        if self._told:
            self._told = False
            self._have_told()

    def told(self) -> None:
        """Records about all of `damaged` were appended: once they are durable, these journals are not named again."""
        self._told = True

    def commit_due(self, now_mono: int) -> int | None:
        """Milliseconds until `commit` should be called, 0 for now, None when all is durable."""
        if self._error and (self._pending or self._queue):  # the disk failed: try again, but do not spin
            if self._retry is None:
                self._retry = now_mono + RETRY_MS
            return max(0, self._retry - now_mono)
        if self._deadline is None:
            return None
        if len(self._pending) >= COMMIT_BYTES:
            return 0
        return max(0, self._deadline - now_mono)

    def seal_in(self, now_mono: int) -> int | None:
        """Milliseconds until `rotate` should be called and a sealer be started, 0 for now, None while nothing waits."""
        if self._closed():
            pause = min(RETRY_MS_MAX, 1_000 << min(self._failures, 20)) if self._failures else 0
            return max(0, self._attempted + pause - now_mono)
        if self._records == 0 or self._oldest is None or self._free() is None:
            return None
        if self._urgent or self._records >= SEAL_RECORDS or self._end - FRAMES_AT >= SEAL_BYTES:
            return 0
        return max(0, self._oldest + self._flush_ms - now_mono)

    def seal_due(self, now_mono: int) -> bool:
        """Is it time for that?"""
        return self.seal_in(now_mono) == 0

    def rotate(self, now_mono: int, *, force: bool = False) -> bool:
        """Close the active journal if a free one can take over. True when a sealer has something to do.

        `force`: also when nothing is due (at stop, or when somebody asks to send now). Raises SpoolError.
        """
        due = force or self.seal_due(now_mono)
        if self._opened and self._active is None:
            self._restart()
        if self._active is not None and not self._closed() and due and self._records:
            self.commit()
            if not self._closed() and self._records:  # commit may have rotated to make room
                try:
                    self._turn()
                except OSError as error:
                    raise self._fail(error) from error
        if not self._closed():
            return False
        self._attempted = now_mono
        self._failures += 1  # until `refresh` sees that it was sealed
        return True

    def refresh(self) -> None:
        """After a sealer ended: see which journals it freed, and let waiting records in. Raises SpoolError."""
        if not self._opened:
            return
        try:
            for index in range(len(JOURNALS)):
                if index != self._active:
                    self._headers[index] = self._read_header(index)
            if not self._closed():
                self._failures = 0
            self._settle()
            if self._active is None and self._free() is not None:
                self._start()
        except OSError as error:
            raise self._fail(error) from error
        self._drain()

    @property
    def status(self) -> Status:
        return Status(
            self._boot,
            tuple(self._next),
            self._pending_records,
            len(self._queue),
            tuple(self._lost),
            sum(header is not None and header.state == CLOSED for header in self._headers),
            self._error,
        )

    # --- opening -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
        found = [self._load(index) for index in range(len(JOURNALS))]
        self._headers = [content.header if content else None for content in found]
        self.damaged = [name for name in JOURNALS if os.path.lexists(self._aside(name + UNTOLD))]
        self._recover_counters([content for content in found if content])
        actives = [index for index, content in enumerate(found) if content and content.header.state == ACTIVE]
        actives.sort(key=self._generation)
        for index in actives[:-1]:  # killed between starting one and closing the other
            self._mark(index, CLOSED)
        self._active = None
        if actives:
            content = found[actives[-1]]
            assert content is not None
            self._continue(actives[-1], content)
            self._opened = True
            return
        self._opened = True
        if self._free() is not None:
            self._start()

    def _load(self, index: int) -> Content | None:
        """A journal as it stands; what cannot be read is set aside and reported, never a stop."""
        try:
            data = journal.read(self._path(index))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unreadable[index] += 1
            if error.errno not in _NO_FILE and self._unreadable[index] < UNREADABLE_MAX:
                raise
            self._put_aside(index)
            return None
        content = journal.parse(data)
        if content is None and data.strip(b"\0"):
            self._put_aside(index)
        return content

    def _put_aside(self, index: int) -> None:
        aside = self._aside(JOURNALS[index] + UNTOLD)
        os.makedirs(os.path.dirname(aside), mode=0o700, exist_ok=True)
        os.replace(self._path(index), aside)

    def _have_told(self) -> None:
        for name in self.damaged:
            with contextlib.suppress(OSError):  # it is named twice then, which is better than never
                os.replace(self._aside(name + UNTOLD), self._aside(name))

    def _read_header(self, index: int) -> Header | None:
        try:
            return journal.parse_header(journal.read(self._path(index))[:FRAMES_AT])
        except FileNotFoundError:
            return None

    def _recover_counters(self, contents: list[Content]) -> None:
        """Sequence numbers and the boot counter go on after the highest that anything on disk knows of."""
        boots = {content.boot: content.boot_id for content in contents}
        following = [max([1, *(content.next[stream] for content in contents)]) for stream in range(STREAMS)]
        for name in outbox.newest(outbox.listing(self._outbox)).values():
            try:
                header = outbox.header(self._outbox, name)
            except (SegmentRefused, OSError):
                continue  # the sealer looks at it closely and reports it by name
            if header.first >= NUMBER_MAX or header.boot >= BOOT_MAX:
                continue  # nobody has verified it: damage must not use up the numbers of all times to come
            following[name.stream] = max(following[name.stream], header.first + header.n)
            boots.setdefault(header.boot, b"")
        last = max(boots, default=0)
        self._boot = last if boots.get(last) == self._boot_id else last + 1
        # `open` may be tried again while records already have numbers
        self._next = [max(known, own) for known, own in zip(following, self._next, strict=True)]

    def _continue(self, index: int, content: Content) -> None:
        """Go on in a journal that was being written when the daemon ended."""
        self._fd = self._files.open(self._path(index), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        # Behind a torn frame there may be whole ones of the same generation that were never reported durable.
        journal.write_all(self._files, self._fd, bytes(max(0, self._capacity() - content.end)), content.end)
        self._files.fdatasync(self._fd)
        self._active, self._end = index, content.end
        self._records = len(content.frames)
        self._oldest = None
        if content.frames:
            self._oldest = -self._flush_ms  # from before a restart, perhaps something urgent: due at once
        if content.boot_id != self._boot_id:
            self._put(journal.boot_mark(self._boot, self._boot_id))

    def _start(self) -> None:
        """Make a free journal the active one."""
        index = self._free()
        assert index is not None
        path = self._path(index)
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size != self._size:
                os.ftruncate(fd, 0)
                journal.write_all(self._files, fd, bytes(self._size), 0)
                self._files.fsync(fd)
                self.written += self._size
                self._sync_directory()
            generation = max([0, *(header.generation for header in self._headers if header)]) + 1
            header = Header(generation, ACTIVE, self._boot, self._boot_id, tuple(self._next))
            journal.write_header(self._files, fd, header)
            self.written += HEADER_COST
        except OSError:
            self._files.close(fd)
            raise
        if self._fd >= 0:
            self._files.close(self._fd)
        self._headers[index] = header
        self._active, self._fd, self._end = index, fd, FRAMES_AT
        self._records, self._oldest, self._urgent = 0, None, False

    def _turn(self) -> None:
        """Close the active journal and start the other. A kill between the two leaves none active: `open` starts.

        Whether the mark fails or not, nothing more is written there: it may be on disk, and then a sealer frees it.
        """
        assert self._active is not None
        mark = self._commit_mark()  # so that damage to the last commit is seen, too
        index, self._active = self._active, None
        if self._end > FRAMES_AT:
            journal.write_all(self._files, self._fd, mark, self._end)
            self._files.fdatasync(self._fd)
        self._mark(index, CLOSED)
        self._failures = 0
        self._attempted = 0
        self._start()

    # --- records -------------------------------------------------------------------------------------------------

    def _enqueue(self, record: Record) -> None:
        self._queue.append(record)
        if len(self._queue) <= QUEUE_MAX:
            return
        for stream in _EVICT_ORDER:
            for index, waiting in enumerate(self._queue):
                if waiting.stream == stream:
                    del self._queue[index]
                    self._lost[stream] += 1
                    return

    def _drain(self) -> None:
        """Let waiting records in, in order, with a drop for those that memory could not hold."""
        while self._queue:
            record = self._queue[0]
            for stream, count in enumerate(self._lost):
                if count:
                    moment = Moment(record.mono, record.wall, record.clock)
                    if not self._admit(compose.drop(stream, "memory full", moment, count=count)):
                        return
                    self._lost[stream] = 0
            if not self._admit(record):
                return
            self._queue.popleft()

    def _admit(self, record: Record) -> bool:
        record = self._in_order(record)
        content = wire.encode_record(record)
        if len(content) > wire.RECORD_MAX:
            content = wire.encode_record(wire.shrink(record))
        if not self._room(len(content) + journal.FRAME_OVERHEAD):
            return False
        self._put(content)
        self._next[record.stream] += 1
        self._pending_records += 1
        self._records += 1
        if self._oldest is None:
            self._oldest = record.mono
        if record.type == registry.FINDING.number and record.severity >= Severity.HIGH:
            self._urgent = True
        due = record.mono + COMMIT_MS[record.stream]
        self._deadline = due if self._deadline is None else min(self._deadline, due)
        return True

    def _in_order(self, record: Record) -> Record:
        """Time never runs back within a stream: what two sensors tell in the wrong order is dated a little later."""
        behind = self._last_mono[record.stream] - record.mono
        if behind <= 0:
            self._last_mono[record.stream] = record.mono
            return record
        wall = None if record.wall is None else record.wall + behind
        return record._replace(mono=record.mono + behind, wall=wall)

    def _put(self, content: bytes) -> None:
        assert self._active is not None
        if not self._pending:
            self._pending += self._commit_mark()
        self._pending += journal.frame(self._generation(self._active), content)

    def _commit_mark(self) -> bytes:
        assert self._active is not None
        return journal.frame(self._generation(self._active), journal.commit_mark(self._boot, tuple(self._next)))

    def _room(self, size: int) -> bool:
        """Is there room for a frame in the active journal, after turning to the other one if need be?"""
        if self._active is None and not self._restart():
            return False
        if self._end + len(self._pending) + size + MARKS_ROOM <= self._capacity():
            return True
        if self._free() is None:
            return False
        try:
            self._flush()
            self._turn()
        except OSError as error:
            self._fail(error)
            return False
        except SpoolError:
            return False
        return True

    def _settle(self) -> None:
        """Close what is active on disk and not for us: the disk failed while it was being closed, or started."""
        for index, header in enumerate(self._headers):
            if index != self._active and header is not None and header.state == ACTIVE:
                self._mark(index, CLOSED)

    def _restart(self) -> bool:
        """No journal is active because the disk failed while turning: try again."""
        try:
            self._settle()
            if self._free() is None:
                return False
            self._start()
        except OSError as error:
            self._fail(error)
            return False
        return True

    def _flush(self) -> None:
        if self._pending:
            data = bytes(self._pending)
            try:
                # After a failed fdatasync the kernel may believe the pages clean: write them again each time.
                journal.write_all(self._files, self._fd, data, self._end)
                self._files.fdatasync(self._fd)
            except OSError as error:
                raise self._fail(error) from error
            self.written += -(-(self._end + len(data)) // BLOCK) * BLOCK - self._end // BLOCK * BLOCK
            self._end += len(data)
        self._pending.clear()
        self._pending_records = 0
        self._deadline = None
        self._error = ""

    # --- small things --------------------------------------------------------------------------------------------

    def _path(self, index: int) -> str:
        return os.path.join(self._directory, JOURNALS[index])

    def _aside(self, name: str) -> str:
        return os.path.join(self._directory, "quarantine", name)

    def _capacity(self) -> int:
        return min(os.fstat(self._fd).st_size, journal.SIZE_MAX)

    def _generation(self, index: int) -> int:
        header = self._headers[index]
        return header.generation if header else 0

    def _free(self) -> int | None:
        for index, header in enumerate(self._headers):
            if index != self._active and (header is None or header.state == FREE):
                return index
        return None

    def _closed(self) -> bool:
        return any(header is not None and header.state == CLOSED for header in self._headers)

    def _mark(self, index: int, state: int) -> None:
        header = self._headers[index]
        assert header is not None
        header = header._replace(state=state)
        fd = self._files.open(self._path(index), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            journal.write_header(self._files, fd, header)
            self.written += HEADER_COST
        finally:
            self._files.close(fd)
        self._headers[index] = header

    def _sync_directory(self) -> None:
        fd = self._files.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._files.fsync(fd)
        finally:
            self._files.close(fd)

    def _fail(self, error: OSError) -> SpoolError:
        what = {errno.ENOSPC: "the disk is full", errno.EROFS: "the disk is read-only", errno.EIO: "the disk fails"}
        reason = what.get(error.errno or 0, error.strerror or str(error))
        self._error = f"{self._directory}: {reason}"
        self._retry = None
        return SpoolError(self._error)
