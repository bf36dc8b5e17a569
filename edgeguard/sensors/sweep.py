"""Learning all watched files, and finding later what changed among them with as little reading as possible.

Both are streams: the walk, `observed.db` (what was seen last) and the manifest (what should be) lie in the same order
and are merged directory by directory, so memory does not grow with the number of files. All of it runs in a
short-lived helper; files that the caller opens are written, and the caller syncs and renames them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from stat import S_IFMT, S_IFREG
from typing import BinaryIO, NamedTuple

from edgeguard.codec import manifest as codec
from edgeguard.codec import sha
from edgeguard.codec.manifest import Block, Entry, order
from edgeguard.errors import DecodeError
from edgeguard.model import Observation, Origin, Watch
from edgeguard.sensors import observed
from edgeguard.sensors.look import CannotLook, Eye, Seen, absent, is_subject, observe, openssl, present, unreadable
from edgeguard.sensors.observed import STAT, UNSURE, Record, same
from edgeguard.sensors.vault import Vault
from edgeguard.sensors.walk import Visit, Walker, resolved
from edgeguard.sensors.watching import Plan

RACY_NS = 2_000_000_000  # a file changed less than this before the look may change again within the same ctime tick
HASH_FILE_MAX = 4 << 30  # bytes; settings.Budget.hash_file_max, for callers that have no settings
VAULT_MAX = 64 << 20  # bytes; settings.Budget.vault_bytes
NOTES_MAX = 100  # lines kept in a summary; a broken disk could give one a file
PROGRESS_FILES = 256  # between two calls of `progress`
PROGRESS_BYTES = 8 << 20

Emit = Callable[[Observation], None]
Looks = dict[bytes, tuple[bytes, Entry | None]]


class Progress(NamedTuple):
    files: int
    bytes: int
    total_files: int
    total_bytes: int


@dataclass(slots=True)
class Summary:
    """What a sweep or learning did."""

    files: int = 0  # names looked at
    subjects: int = 0
    directories: int = 0
    bytes_read: int = 0
    emitted: int = 0
    unreadable: int = 0
    protected: int = 0  # bytes of new protected copies
    written: bool = False  # observed.db differs: the caller renames the new one into place
    damaged: bool = False  # the old observed.db could not be read: everything was read again
    notes: list[str] = field(default_factory=list)  # plain sentences: what has a limit
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (mount point, why it was not entered)

    def note(self, line: str) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(line)
        elif len(self.notes) == NOTES_MAX:
            self.notes.append("there are more notes than these")


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
) -> Summary:
    """Read every watched file and write manifest and observed.db. `emit` gets each subject too (origin LEARN)."""
    plan = Plan(resolved(watches, root))
    summary = Summary(written=True)
    walker = Walker(plan, root)
    looker = _Looker(summary, hash_file_max, Vault(vault, vault_max) if vault else None, clock_ns)
    total = count(plan, root) if progress else (0, 0)
    manifest = codec.Writer(manifest_out)
    out = observed.Writer(observed_out, identity(plan), None)
    out.start(0)
    told = Progress(0, 0, *total)
    for visit in walker:
        looks, seen = looker.directory(visit, {}, {}, reread=True)
        subjects = {name: entry for name, (_, entry) in looks.items() if entry is not None}
        manifest.add(_directory(visit), list(subjects), list(subjects.values()))
        out.put(_record(visit, looks), len(looks), 0)
        if emit is not None:
            for name, entry in subjects.items():
                emit(_observation(visit, name, entry, seen, now, Origin.LEARN))
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
    manifest: codec.Reader | None,
    observed_in: BinaryIO | None,
    observed_out: BinaryIO,
    now: int,
    origin: Origin,
    full: bool,
    emit: Emit,
    progress: Callable[[Progress], None] | None = None,
    *,
    compare: bool = False,
    start: str = "",
    hash_file_max: int = HASH_FILE_MAX,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Summary:
    """Find what changed since `observed_in` was written and emit each subject whose state is another now.

    `full`: read every content again, thoroughly, and compare with the manifest. `compare`: compare with the manifest,
    but only read what changed (after a new baseline). Without a usable `observed_in` both happen. `start`: only this
    tree.
    """
    plan = Plan(resolved(watches, root))
    summary = Summary()
    if observed_in is not None:
        try:
            old = observed.Reader(observed_in)
            sweeping = _Sweep(plan, root, manifest if full or compare else None, now, origin, emit, summary, start)
            sweeping.run(old, observed_in, observed_out, full, hash_file_max, clock_ns, progress)
            return summary
        except DecodeError as error:
            summary = Summary(damaged=True)
            summary.note(f"observed.db is read anew: {error}")
            observed_out.seek(0)
            observed_out.truncate()
    sweeping = _Sweep(plan, root, manifest, now, origin, emit, summary, start)
    sweeping.run(None, None, observed_out, True, hash_file_max, clock_ns, progress)
    return summary


def revisit(
    watches: Sequence[Watch],
    root: str,
    manifest: codec.Reader | None,
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
    eye = Eye(hash_file_max, thorough=True, new_hash=openssl)
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
        _Sweep(plan, root, manifest, now, origin, emit, inner, target).run(
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
    watches: Sequence[Watch], root: str, paths: Sequence[str], vault: str, *, vault_max: int = VAULT_MAX
) -> list[bytes]:
    """Keep copies of these files as they are now (after they were accepted). Digests of what is in the vault then;
    paths that no watch protects, or that cannot be read, are left out."""
    plan = Plan(resolved(watches, root))
    store = Vault(vault, vault_max)
    eye = Eye(HASH_FILE_MAX, new_hash=openssl)
    kept = []
    for path in paths:
        watch = plan.decide(path)
        if watch is None or not watch.protect or not watch.content:
            continue
        parent, _, name = (root.rstrip("/") + path).rpartition("/")
        try:
            fd = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                seen = store.look(eye, fd, name, path, os.lstat(name, dir_fd=fd).st_size, watch)
            finally:
                os.close(fd)
        except (OSError, CannotLook):
            continue
        if seen.entry.sha256 and os.path.exists(f"{vault}/{seen.entry.sha256.hex()}"):
            kept.append(seen.entry.sha256)
    store.sync()
    return kept


def count(plan: Plan, root: str) -> tuple[int, int]:
    """(names, bytes of watched content): a first walk without reading, so that progress is a true percentage."""
    files = size = 0
    for visit in Walker(plan, root):
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


class _Looker:
    """Looks at the files of one directory after the other, and carries over what needs no look."""

    def __init__(
        self,
        summary: Summary,
        hash_file_max: int,
        vault: Vault | None,
        clock_ns: Callable[[], int],
        *,
        thorough: bool = False,
    ) -> None:
        self._summary = summary
        self._eye = Eye(hash_file_max, thorough=thorough, new_hash=openssl)
        self._vault = vault
        self._clock_ns = clock_ns

    def directory(
        self, visit: Visit, old: Looks, reference: dict[bytes, Entry], *, reread: bool
    ) -> tuple[Looks, dict[bytes, str]]:
        """All names with packed stat and entry, and notes for some. `reread`: nothing is carried over."""
        looks: Looks = {}
        notes: dict[bytes, str] = {}
        summary = self._summary
        summary.directories += 1
        summary.files += len(visit.names)
        for at, name in enumerate(visit.joined.split(b"\0")):
            watch = visit.watch or visit.watches[at]
            packed = visit.packed[STAT.size * at : STAT.size * (at + 1)]
            before = old.get(name)
            if before is not None and before[0] == packed and not reread and _suffices(before[1], watch):
                entry = before[1]
                looks[name] = (packed, entry and entry._replace(category=watch.category))
            else:
                look = self._one(visit, at, name, watch, packed, notes, reference.get(name))
                if look is not None:
                    looks[name] = look
            if name in looks and looks[name][1] is not None:
                summary.subjects += 1
        summary.bytes_read = self._eye.bytes_read
        return looks, notes

    def _one(
        self,
        visit: Visit,
        at: int,
        name: bytes,
        watch: Watch,
        packed: bytes,
        notes: dict[bytes, str],
        expected: Entry | None,
    ) -> tuple[bytes, Entry | None] | None:
        """None: it vanished."""
        stat = visit.stats[at]
        path = f"{visit.path}/{visit.names[at]}"
        if watch.only == "setid" and S_IFMT(stat.st_mode) != S_IFREG:
            return packed, None
        if watch.only == "setid" and not stat.st_mode & 0o6111:
            return packed, None  # neither set-id nor executable: capabilities would be without effect
        try:
            seen = self._look(visit, at, path, watch).judged(expected)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except CannotLook as why:
            # Its attributes are kept, so that the next look, or its end, is a change that is told.
            notes[name] = f"!{why}"
            self._summary.unreadable += 1
            self._summary.note(f"{path}: {why}")
            return _unsure(packed), Entry(stat.st_mode, stat.st_uid, stat.st_gid, 0, watch.category)
        if seen.note:
            notes[name] = seen.note
            self._summary.note(f"{path}: {seen.note}")
        if not seen.settled or stat.st_ctime_ns > self._clock_ns() - RACY_NS:
            packed = _unsure(packed)
        return packed, seen.entry if is_subject(seen.entry, watch) else None

    def _look(self, visit: Visit, at: int, path: str, watch: Watch) -> Seen:
        stat = visit.stats[at]
        if self._vault is not None and watch.protect and watch.content and S_IFMT(stat.st_mode) == S_IFREG:
            return self._vault.look(self._eye, visit.fd, visit.names[at], path, stat.st_size, watch)
        return self._eye.look(visit.fd, visit.names[at], watch, stat if S_IFMT(stat.st_mode) == S_IFREG else None)

    def close(self) -> None:
        if self._vault is None:
            return
        self._vault.sync()
        self._summary.protected = self._vault.bytes_written
        for path in self._vault.refused:
            self._summary.note(f"{path}: no protected copy, the vault is full")


class _Sweep:
    """One sweep: three streams merged."""

    def __init__(
        self,
        plan: Plan,
        root: str,
        manifest: codec.Reader | None,
        now: int,
        origin: Origin,
        emit: Emit,
        summary: Summary,
        start: str,
    ) -> None:
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
    ) -> None:
        summary, walker, references = self._summary, self._walker, self._references
        self._known = old is not None
        looker = _Looker(summary, hash_file_max, None, clock_ns, thorough=reread)
        plan = identity(self._plan)
        out = observed.Writer(out_file, plan, old_file) if out_file is not None else None
        anew = old is None or old.plan != plan  # other watches: what was carried over may lack what is asked for now
        if anew and out is not None:
            out.start(0)
        quick = not reread and not anew and references is None
        told = Progress(0, 0, 0, 0)
        for visit in walker:
            if quick and old is not None and old.current is not None and _unchanged(old.current, visit):
                summary.files += old.current.count
                summary.directories += 1
                if out is not None:
                    out.keep(old.current)
                old.advance()
                continue
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
        looker: _Looker,
        reread: bool,
    ) -> None:
        """One directory that is there now, against what was seen and what should be."""
        directory = _directory(visit)
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
        raw = _record(visit, looks) if looks else b""
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
            differs = self._references is not None and not same(expected, entry)
            unread = notes.get(name, "").startswith("!") and before.get(name, nothing)[0] != packed
            if changed or differs or unread:
                self._tell(_observation(visit, name, entry, notes, self._now, self._origin))
        for name in before.keys() | reference.keys():
            if name not in looks and (before.get(name, nothing)[1] is not None or name in reference):
                self._absent(_directory(visit), name)

    def _no_longer(self, visit: Visit, name: bytes) -> None:
        """It was a program with other rights and is none now: tell how it is, so that a finding can end."""
        at = visit.joined.split(b"\0").index(name)
        stat = visit.stats[at]
        watch = visit.watch or visit.watches[at]
        entry = Entry(stat.st_mode, stat.st_uid, stat.st_gid, 0, watch.category)
        self._tell(_observation(visit, name, entry, {}, self._now, self._origin))

    def _gone(self, old: observed.Reader, out: observed.Writer | None) -> None:
        """A directory that was there and was not visited now."""
        record = old.current
        assert record is not None
        path = os.fsdecode(record.directory)
        if not self._inside(path):
            if out is not None:
                out.keep(record)  # only another tree was asked for
        elif self._walker.is_blocked(path):
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
        if self._walker.is_blocked(os.fsdecode(block.directory)):
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

    def __init__(self, manifest: codec.Reader, start: str) -> None:
        self._blocks: Iterator[Block] = manifest.tree(os.fsencode(start)) if start else manifest.blocks()
        self._next = next(self._blocks, None)

    def until(self, key: bytes | None) -> Iterator[Block]:
        """All directories before `key`; None: all that are left."""
        while self._next is not None and (key is None or order(self._next.directory) < key):
            block, self._next = self._next, next(self._blocks, None)
            yield block

    def take(self, directory: bytes) -> dict[bytes, Entry]:
        block = self._next
        if block is None or block.directory != directory:
            return {}
        self._next = next(self._blocks, None)
        return dict(zip(block.names, block.entries, strict=True))


def _unchanged(record: Record, visit: Visit) -> bool:
    """Is everything in this directory exactly as it was seen? Three lengths and one comparison of bytes."""
    directory = os.fsencode(visit.path)
    if record.count != len(visit.names) or record.length != len(directory):
        return False
    return record.body.startswith(directory + visit.joined + visit.packed)


def _suffices(entry: Entry | None, watch: Watch) -> bool:
    """Does what was kept of an unchanged file answer what this watch asks? Else it was kept under another policy."""
    if entry is None:
        return watch.only == "setid"
    if watch.only == "setid" and not entry.setid:
        return False
    return entry.st_mode >> 12 != S_IFREG >> 12 or bool(entry.sha256) == watch.content


def _observation(
    visit: Visit, name: bytes, entry: Entry, notes: dict[bytes, str], now: int, origin: Origin
) -> Observation:
    path = f"{visit.path}/{os.fsdecode(name)}"
    note = notes.get(name, "")
    if note.startswith("!"):
        return unreadable(path, entry.category, note[1:], now, origin)
    return present(path, Seen(entry, note), now, origin)


def _record(visit: Visit, looks: Looks) -> bytes:
    subjects = {name: entry for name, (_, entry) in looks.items() if entry is not None}
    return observed.encode(_directory(visit), list(looks), b"".join(stat for stat, _ in looks.values()), subjects)


def _unsure(packed: bytes) -> bytes:
    inode, _, size = STAT.unpack(packed)
    return STAT.pack(inode, UNSURE, size)


def _due(summary: Summary, told: Progress) -> bool:
    return summary.files - told.files >= PROGRESS_FILES or summary.bytes_read - told.bytes >= PROGRESS_BYTES


def _conclude(walker: Walker, summary: Summary) -> None:
    summary.skipped = walker.skipped[:NOTES_MAX]


def _directory(visit: Visit) -> bytes:
    return os.fsencode(visit.path)
