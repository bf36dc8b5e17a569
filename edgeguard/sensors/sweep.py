"""Learning all watched files, and finding later what changed among them with as little reading as possible.

Both are streams: the walk, `observed.db` (what was seen last) and the manifest (what should be) lie in the same order
and are merged directory by directory, so memory does not grow with the number of files. All of it runs in a
short-lived helper; files that the caller opens are written, and the caller syncs and renames them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from stat import S_IFMT, S_IFREG
from typing import BinaryIO

from edgeguard.codec import manifest as codec
from edgeguard.codec import sha
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.layers import Lookup
from edgeguard.codec.manifest import Block, Entry, Packed, order
from edgeguard.errors import DecodeError
from edgeguard.linux.glance import Told
from edgeguard.model import Observation, Origin, Watch
from edgeguard.sensors import observed
from edgeguard.sensors.look import absent, masked, unreadable
from edgeguard.sensors.looker import (
    NOTES_MAX,
    RACY_NS,
    Looker,
    Looks,
    Progress,
    Summary,
    directory_of,
    observation_of,
    record_of,
)
from edgeguard.sensors.observed import STAT, Record, same
from edgeguard.sensors.vault import Vault
from edgeguard.sensors.walk import Visit, Walker, resolved
from edgeguard.sensors.watching import Plan

HASH_FILE_MAX = 4 << 30  # bytes; settings.Budget.hash_file_max, for callers that have no settings
VAULT_MAX = 64 << 20  # bytes; settings.Budget.vault_bytes
PROGRESS_FILES = 256  # between two calls of `progress`
PROGRESS_BYTES = 8 << 20
COUNTED = b"counted"

Emit = Callable[[Observation], None]
References = Lookup | Callable[[], Lookup | None] | None
"""Reference values, or what opens them: a sweep that finds all as it saw it last needs none."""


def learn(
    watches: Sequence[Watch],
    root: str,
    manifest_out: BinaryIO,
    observed_out: BinaryIO,
    vault: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    now: int = 0,
    hash_file_max: int = HASH_FILE_MAX,
    vault_max: int = VAULT_MAX,
    emit: Emit | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
    algorithm: Algorithm = Algorithm.SHA256,
) -> Summary:
    """Read every watched file and write manifest and observed.db. `emit` gets each subject too (origin LEARN)."""
    plan = Plan(resolved(watches, root))
    summary = Summary(written=True)
    walker = Walker(plan, root)
    looker = Looker(
        summary, hash_file_max, Vault(vault, vault_max, anew=True) if vault else None, clock_ns, algorithm=algorithm
    )
    total = count(plan, root) if progress else (0, 0)
    manifest = codec.Writer(manifest_out, algorithm)
    out = observed.Writer(observed_out, identity(plan), None, algorithm)
    out.start(0)
    told = Progress(0, 0, *total)
    if emit is None:
        walker.learn = looker.learn
    for visit in walker:
        if visit.block and visit.watch is not None:
            directory, names = directory_of(visit), len(visit.packed) // STAT.size
            manifest.put(directory, visit.block, names, visit.watch.category)
            out.put(observed.joined(directory, visit.joined, visit.packed, visit.block, visit.listing), names, 0)
        else:
            looks, seen = looker.directory(visit, {}, {}, reread=True)
            subjects = {name: entry for name, (_, entry) in looks.items() if entry is not None}
            block = manifest.add(directory_of(visit), list(subjects), list(subjects.values()))
            out.put(record_of(visit, looks, block), len(looks), 0)
            if emit is not None:
                for name, entry in subjects.items():
                    emit(observation_of(visit, name, entry, algorithm, seen, now, Origin.LEARN))
        if progress and _due(summary, told):
            told = Progress(summary.files, summary.bytes_read, *total)
            progress(told)
    manifest.close()
    out.close()
    looker.close()
    _conclude(walker, summary)
    for path, why in walker.troubles:
        summary.unreadable += 1
        summary.note(f"{path}: {why}")
        if emit is not None:
            emit(unreadable(path, "", why, now, Origin.LEARN))
    if progress:
        progress(Progress(summary.files, summary.bytes_read, summary.files, summary.bytes_read))
    return summary


def sweep(
    watches: Sequence[Watch],
    root: str,
    manifest: References,
    observed_in: BinaryIO | None,
    observed_out: BinaryIO,
    now: int,
    origin: Origin,
    full: bool,
    emit: Emit,
    progress: Callable[[Progress], None] | None = None,
    *,
    compare: bool = False,
    cached: bool = False,
    start: str = "",
    since: int | None = None,
    hash_file_max: int = HASH_FILE_MAX,
    clock_ns: Callable[[], int] = time.time_ns,
    algorithm: Algorithm = Algorithm.SHA256,
) -> Summary:
    """Find what changed since `observed_in` was written and emit each subject whose state is another now.

    `full`: read every content again, thoroughly, and compare with the manifest; `cached`: thoroughly only what the page
    cache has otherwise than it was seen. `compare`: compare with the manifest, but only read what changed (after a new
    baseline). Without a usable `observed_in` all is read thoroughly and compared. `start`: only this tree. `since`:
    when the sweep before began (ns), if `observed_in` is as that left it, and nobody has set the clock or changed the
    mounts since: directories that have the change time that they had, one from before that, are not listed.
    `algorithm`: of the manifest's digests; what was seen with another one says nothing.
    """
    plan = Plan(resolved(watches, root))
    summary = Summary()
    if observed_in is not None:
        try:
            old = observed.Reader(observed_in)
            if old.algorithm is not algorithm:
                raise _OtherDigests(f"this baseline has digests by {algorithm.label}: all is read anew")
            asked = _opened(manifest) if full or compare else None
            sweeping = Sweep(plan, root, asked, now, origin, emit, summary, start, algorithm)
            sweeping.run(
                old, observed_in, observed_out, full, hash_file_max, clock_ns, progress, cached=cached, since=since
            )
            return summary
        except DecodeError as error:
            summary = Summary(damaged=not isinstance(error, _OtherDigests))
            summary.note(f"observed.db is read anew: {error}" if summary.damaged else str(error))
            observed_out.seek(0)
            observed_out.truncate()
    sweeping = Sweep(plan, root, _opened(manifest), now, origin, emit, summary, start, algorithm)
    sweeping.run(None, None, observed_out, True, hash_file_max, clock_ns, progress)
    return summary


class _OtherDigests(DecodeError):
    """What was seen last has digests of another kind than the baseline in force."""


def _opened(manifest: References) -> Lookup | None:
    return manifest() if callable(manifest) else manifest


def count(plan: Plan, root: str) -> tuple[int, int]:
    """(names, bytes of watched content): a first walk without reading, so that progress is a true percentage."""
    files = size = 0

    def add(_path: str, _fd: int, names: list[bytes], told: Told, watch: Watch) -> bytes:
        nonlocal files, size
        files += len(names)
        if watch.content and not watch.only:
            sizes = memoryview(told.stats).cast("Q")[2::3].tolist()
            size += sum([each for each, kind in zip(sizes, told.types, strict=True) if kind >> 4 == S_IFREG >> 12])
        return COUNTED

    walker = Walker(plan, root)
    walker.learn = add
    for visit in walker:
        files += len(visit.names)
        for at, name in enumerate(visit.stats):
            watch = visit.watch or visit.watches[at]
            if watch.content and not watch.only and S_IFMT(name.st_mode) == S_IFREG:
                size += name.st_size
    return files, size


def identity(plan: Plan) -> bytes:
    """Which watches an observed.db was written for."""
    value = sha.new()
    value.update(plan.describe())
    return value.digest()


class Sweep:
    """One sweep: three streams merged."""

    def __init__(
        self,
        plan: Plan,
        root: str,
        manifest: Lookup | None,
        now: int,
        origin: Origin,
        emit: Emit,
        summary: Summary,
        start: str,
        algorithm: Algorithm = Algorithm.SHA256,
    ) -> None:
        if manifest is not None and manifest.algorithm is not algorithm:
            raise DecodeError(f"manifest: it has digests by {manifest.algorithm.label}, not {algorithm.label}")
        self._algorithm = algorithm
        self._plan = plan
        self._start = "" if start == "/" else start
        self._walker = Walker(plan, root, self._start)
        self._references = _References(manifest, self._start) if manifest is not None else None
        self._now = now
        self._origin = origin
        self._emit = emit
        self._summary = summary
        self._known = False  # is there an observed.db to compare with?

    def run(
        self,
        old: observed.Reader | None,
        old_file: BinaryIO | None,
        out_file: BinaryIO | None,
        reread: bool,
        hash_file_max: int,
        clock_ns: Callable[[], int],
        progress: Callable[[Progress], None] | None,
        *,
        cached: bool = False,
        since: int | None = None,
    ) -> None:
        summary, walker, references = self._summary, self._walker, self._references
        self._known = old is not None
        looker = Looker(
            summary, hash_file_max, None, clock_ns, thorough=reread, cached=cached, algorithm=self._algorithm
        )
        plan = identity(self._plan)
        out = observed.Writer(out_file, plan, old_file, self._algorithm) if out_file is not None else None
        # Other watches: what was carried over may lack what is asked for now. Not listed: an earlier format.
        anew = old is None or old.plan != plan or not old.listed
        if anew and out is not None:
            out.start(0)
        quick = not reread and not anew and references is None

        def expected(path: str) -> Record | None:
            record = old.current if old is not None else None
            return record if record is not None and record.directory == os.fsencode(path) else None

        def confirm(fd: int, names: list[bytes], record: Record, watch: Watch | None) -> bool:
            """Nothing is said about what differs, and nothing taken: where all holds, `run` goes on to the next."""
            should = references.next if references is not None else None
            if watch is None or (references is not None and (should is None or should.directory != record.directory)):
                return False
            return looker.recheck(fd, names, record, should, watch)

        if quick or (cached and reread and not anew):
            walker.expected = expected
        if not quick:
            walker.confirm = confirm
        elif since is not None:
            walker.believe(since - RACY_NS)
        summary.began = clock_ns()
        told = Progress(0, 0, 0, 0)
        for visit in walker:
            if not visit.stats and old is not None and old.current is not None:  # all is exactly as it was seen
                summary.files += old.current.count
                summary.directories += 1
                if out is not None:
                    out.keep(old.current)
                old.advance()
                if quick:
                    continue
                if references is not None:
                    references.skip()
            else:
                self._merge(visit, old, out, looker, reread)
                self._troubles()
            if progress and _due(summary, told):
                told = Progress(summary.files, summary.bytes_read, max(summary.files, old.names if old else 0), 0)
                progress(told)
        self._rest(old, out)
        self._troubles()
        if out is not None:
            out.close()
            summary.written = out.started
        _conclude(walker, summary)

    def _merge(
        self,
        visit: Visit,
        old: observed.Reader | None,
        out: observed.Writer | None,
        looker: Looker,
        reread: bool,
    ) -> None:
        """One directory that is there now, against what was seen and what should be."""
        directory = directory_of(visit)
        key = order(directory)
        before: Looks = {}
        record: Record | None = None
        until = 0
        if old is not None:
            while old.current is not None and old.key() < key:
                self._gone(old, out)
            until = old.current.start if old.current is not None else old.offset
            if old.current is not None and old.current.directory == directory:
                record = old.current
                before = record.looks()
        reference: dict[bytes, Entry] = {}
        if self._references is not None:
            for block in self._references.until(key):
                self._missing(block)
            reference = self._references.take(directory)
        looks, notes = looker.directory(visit, before, reference, reread=reread)
        self._judge(visit, looks, notes, before, reference)
        if old is not None and record is not None:
            old.advance()
        if out is None:
            return
        raw = record_of(visit, looks) if looks else b""
        if record is not None and not out.started and raw == record.raw:
            out.keep(record)
        elif raw:
            out.put(raw, len(looks), until)
        else:
            out.start(until)

    def _judge(
        self, visit: Visit, looks: Looks, notes: dict[bytes, str], before: Looks, reference: dict[bytes, Entry]
    ) -> None:
        nothing: tuple[bytes, Entry | None] = (b"", None)
        for name, (packed, entry) in looks.items():
            earlier = before.get(name, nothing)[1]
            expected = reference.get(name)
            if entry is None:
                if earlier is not None or (expected is not None and self._references is not None):
                    self._no_longer(visit, name)
                continue
            changed = self._known and not same(earlier, entry)
            differs = self._references is not None and not same(self._asked(visit, name, expected), entry)
            unread = notes.get(name, "").startswith("!") and before.get(name, nothing)[0] != packed
            if changed or differs or unread:
                self._tell(observation_of(visit, name, entry, self._algorithm, notes, self._now, self._origin))
        for name in before.keys() | reference.keys():
            if name not in looks and (before.get(name, nothing)[1] is not None or name in reference):
                self._absent(directory_of(visit), name)

    def _asked(self, visit: Visit, name: bytes, expected: Entry | None) -> Entry | None:
        """A reference value as its watch looks at it."""
        if expected is None:
            return None
        watch = visit.watch or self._plan.decide(f"{visit.path}/{os.fsdecode(name)}")
        return masked(expected, watch) if watch is not None else expected

    def _no_longer(self, visit: Visit, name: bytes) -> None:
        """It was a program with other rights and is none now: tell how it is, so that a finding can end."""
        at = visit.joined.split(b"\0").index(name)
        stat = visit.stats[at]
        watch = visit.watch or visit.watches[at]
        entry = Entry(stat.st_mode, stat.st_uid, stat.st_gid, 0, watch.category)
        self._tell(observation_of(visit, name, entry, self._algorithm, {}, self._now, self._origin))

    def _gone(self, old: observed.Reader, out: observed.Writer | None) -> None:
        """A directory that was there and was not visited now."""
        record = old.current
        assert record is not None
        path = os.fsdecode(record.directory)
        if not self._inside(path):
            if out is not None:
                out.keep(record)  # only another tree was asked for
        elif self._walker.is_closed(path):
            if out is not None:
                out.keep(record)  # it could not be looked at: nothing is claimed
        else:
            for name, (_, entry) in record.looks().items():
                if entry is not None:
                    self._absent(record.directory, name)
            if out is not None:
                out.start(record.start)
        old.advance()

    def _inside(self, path: str) -> bool:
        return path == self._start or path.startswith(self._start + "/")

    def _missing(self, block: Block) -> None:
        """A directory of the manifest that was not visited."""
        if self._walker.is_closed(os.fsdecode(block.directory)):
            return
        for name in block.names:
            self._absent(block.directory, name)

    def _rest(self, old: observed.Reader | None, out: observed.Writer | None) -> None:
        while old is not None and old.current is not None:
            old.key()
            self._gone(old, out)
        if self._references is not None:
            for block in self._references.until(None):
                self._missing(block)

    def _absent(self, directory: bytes, name: bytes) -> None:
        path = os.fsdecode(directory + b"/" + name)
        watch = self._plan.decide(path)
        if watch is None or self._walker.is_blocked(path):
            return  # no longer watched, or not to be known
        self._tell(absent(path, watch.category, self._now, self._origin))

    def _troubles(self) -> None:
        if self._walker.troubles:
            self._summary.began = 0  # of what was not looked at an older record is kept
        for path, why in self._walker.troubles:
            watch = self._plan.decide(path)
            self._summary.unreadable += 1
            self._summary.note(f"{path}: {why}")
            self._tell(unreadable(path, watch.category if watch else "", why, self._now, self._origin))
        self._walker.troubles.clear()

    def _tell(self, observation: Observation) -> None:
        self._summary.emitted += 1
        self._emit(observation)


class _References:
    """The manifest's directories, in walk order, beside the walk."""

    def __init__(self, manifest: Lookup, start: str) -> None:
        self._blocks: Iterator[Packed] = manifest.packed_tree(os.fsencode(start)) if start else manifest.packed()
        self.next = next(self._blocks, None)  # that was not taken

    def skip(self) -> None:
        """The next one needs no look."""
        self.next = next(self._blocks, None)

    def until(self, key: bytes | None) -> Iterator[Block]:
        """All directories before `key`; None: all that are left."""
        while self.next is not None and (key is None or order(self.next.directory) < key):
            block = self.next.block()
            self.skip()
            yield block

    def take(self, directory: bytes) -> dict[bytes, Entry]:
        if self.next is None or self.next.directory != directory:
            return {}
        block = self.next.block()
        self.skip()
        return dict(zip(block.names, block.entries, strict=True))


def _due(summary: Summary, told: Progress) -> bool:
    return summary.files - told.files >= PROGRESS_FILES or summary.bytes_read - told.bytes >= PROGRESS_BYTES


def _conclude(walker: Walker, summary: Summary) -> None:
    summary.skipped = walker.skipped[:NOTES_MAX]
