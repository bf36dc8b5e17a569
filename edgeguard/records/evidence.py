"""Where a log lies: a directory of segment files, or a device's own outbox, spool and receipts. `chain` judges.

Whoever may write to such a directory may put anything there. Links are not followed, pipes and devices not opened to
wait, a file is read one segment at a time, and names are data. Nothing is written and nothing is locked: a sealer may
work meanwhile, and what it lets go or sets aside is looked for again at the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, EdgeGuardError, Incomplete, SignatureError
from edgeguard.records import epoch, examine, journal, losses, outbox, receipts, wire
from edgeguard.records.certify import Keys, Refused
from edgeguard.records.chain import Chain, Known
from edgeguard.records.defects import Defect, Name, Place, Report, reason_word
from edgeguard.records.examine import Link
from edgeguard.records.outbox import O_READ
from edgeguard.records.spool import JOURNALS

SEGMENTS_MAX = 200_000  # in one directory, 500 bytes of memory each; a device's quota holds a third of that
FILES_MAX = 400_000  # names read of one directory
DEPTH_MAX = 2  # folders below the directory: one for each device, one more to spare
_HEAD = b"\xd2\x84"


class TooMany(EdgeGuardError):
    """More than one run looks at."""


class Piece(NamedTuple):
    """One segment or statement as it was found: its bytes, or why there are none."""

    folder: str
    source: str
    named: outbox.Name | None  # what the file's name says, where it is one of an outbox
    data: bytes
    bad: tuple[Name, str] | None = None


# --- a directory -----------------------------------------------------------------------------------------------------


def directory(
    path: str,
    publics: Sequence[bytes],
    known: Sequence[Known] = (),
    report: Report | None = None,
    statements: Sequence[bytes] = (),
) -> Report:
    """All segments in *.egs below `path`, of the devices whose identity keys are `publics`.

    `statements` are known besides those that lie there. Raises OSError or TooMany.
    """
    report = report or Report()
    follower = Chain(report, known)
    keys = Keys(publics)
    for data in statements:
        with contextlib.suppress(Refused):
            keys.admit(data)
    _certify(path, keys, follower)
    _links(pieces(path, report), keys, follower, lambda: None)
    return follower.finish()


def _certify(path: str, keys: Keys, follower: Chain) -> None:
    """First all statements, wherever they lie: a segment may come before the one that it needs."""
    for piece in pieces(path, Report(), segments=False):
        try:
            if piece.bad:
                raise Refused(*piece.bad)
            number = keys.admit(piece.data).number
            if outbox.parse_epoch(os.path.basename(piece.source)) not in {None, number}:
                raise Refused(Name.REORDERED, f"it holds the statement of epoch {number}")
        except Refused as refused:
            follower.report.add(refused.defect(None, piece.source))
    for device, line in sorted(keys.lines.items()):
        follower.epochs(device, line, complete=False)


def _links(found: Iterator[Piece], keys: Keys, follower: Chain, refresh: Callable[[], None]) -> None:
    """Examine each piece, then follow the links in their order. `refresh` lets statements in that came meanwhile."""
    sole = next(iter(keys.devices)) if len(keys.devices) == 1 else None
    links: list[Link] = []
    folders: dict[str, dict[bytes, int]] = {}
    homes: dict[str, str] = {}  # of links under outbox names: their folder, where several devices may be meant
    for piece in found:
        if len(links) >= SEGMENTS_MAX:
            raise TooMany(f"more than {SEGMENTS_MAX:,} segments; verify a part, or the collector's database")
        named = Place(sole, *piece.named) if piece.named and sole else None
        try:
            if piece.bad:
                raise Refused(*piece.bad)
            segment = _opened(piece.data, keys, refresh)
        except Refused as refused:
            defect = refused.defect(named, piece.source)
            follower.report.add(defect)
            if defect.place:
                follower.occupied(defect.place)
            continue
        header = segment.header
        own = (header.stream, header.sequence)
        elsewhere = piece.named.sequence if piece.named and piece.named != own else 0
        links.append(examine.link(piece.data, segment, piece.source, elsewhere))
        follower.lost(header.device, examine.losses(segment))
        for head in examine.heads(segment):
            follower.claim(header.device, head, f"the heartbeat in findings {header.sequence}")
        if piece.named and sole is None:
            folders.setdefault(piece.folder, {}).setdefault(header.device, 0)
            folders[piece.folder][header.device] += 1
            homes[piece.source] = piece.folder
    links.sort()
    for link in links:
        devices = folders.get(homes.get(link.source, ""), {})
        if len(devices) > 1 and link.device != max(devices, key=devices.__getitem__):
            place = Place(max(devices, key=devices.__getitem__), link.stream, link.named or link.sequence)
            detail = f"it is of device {link.device.hex()}"
            follower.report.add(Defect(Name.FOREIGN, place, source=link.source, detail=detail))
            follower.occupied(place)
            continue
        follower.follow(link)


def _opened(data: bytes, keys: Keys, refresh: Callable[[], None]) -> wire.Segment:
    try:
        return examine.opened(data, keys)
    except Refused as refused:
        if refused.name is not Name.UNCERTIFIED:
            raise
    refresh()
    return examine.opened(data, keys)


def pieces(path: str, report: Report, *, segments: bool = True) -> Iterator[Piece]:
    """Every segment in *.egs below `path`, by name; or, the other way, every statement in *.ege and *.egs.

    Raises OSError for the directory itself, TooMany.
    """
    others = 0
    for folder, name in _files(path, report):
        if name.startswith(".") or not name.endswith((outbox.SUFFIX, outbox.EPOCH_SUFFIX)):
            others += 1
        elif segments and name.endswith(outbox.SUFFIX):
            yield from (piece for piece in _file(path, folder, name) if piece.named or not _is_statement(piece))
        elif not segments and name.endswith(outbox.EPOCH_SUFFIX):
            yield from _file(path, folder, name)
        elif not segments and outbox.parse_name(name) is None:
            yield from (piece for piece in _file(path, folder, name) if _is_statement(piece))
    if others:
        plural = "s were" if others > 1 else " was"
        report.note(f"{others:,} other file{plural} not looked at: only *.egs and *.ege are.")


def _is_statement(piece: Piece) -> bool:
    return not piece.bad and epoch.is_statement(piece.data)


def _files(path: str, report: Report) -> Iterator[tuple[str, str]]:
    """(folder below `path`, name) of everything that is no folder, sorted within its folder."""
    seen = 0
    folders = [("", 0)]
    while folders:
        folder, depth = folders.pop()
        try:
            with os.scandir(os.path.join(path, folder)) as found:
                entries = []
                for entry in found:
                    seen += 1
                    if seen > FILES_MAX:
                        raise TooMany(f"{path}: more than {FILES_MAX:,} files")
                    entries.append((entry.name, entry.is_dir(follow_symlinks=False)))
        except OSError as error:
            if not folder:
                raise
            report.add(Defect(Name.UNREADABLE, None, source=folder, detail=str(error.strerror)))
            continue
        for name, is_folder in sorted(entries):
            if not is_folder or name.endswith(outbox.SUFFIX):
                yield folder, name
            elif depth < DEPTH_MAX:
                folders.append((os.path.join(folder, name), depth + 1))
            else:
                report.note(f"The folder {os.path.join(folder, name)} was not looked into: too deep.")


def _file(path: str, folder: str, name: str) -> Iterator[Piece]:
    """The segments of one file: one under an outbox's name, a CBOR sequence under any other."""
    source = os.path.join(folder, name)
    named = outbox.parse_name(name)

    def bad(kind: Name, why: str) -> Piece:
        return Piece(folder, source, named, b"", (kind, why))

    try:
        file = _open(os.path.join(path, source))
    except FileNotFoundError:
        if named or outbox.parse_epoch(name) is None:  # a statement is let go after all of its segments
            yield bad(Name.UNREADABLE, "it vanished while we looked")
        return
    except OSError as error:
        link = error.errno in {errno.ELOOP, errno.ENXIO}
        yield bad(Name.NOT_A_FILE if link else Name.UNREADABLE, str(error.strerror))
        return
    except DecodeError as error:
        yield bad(Name.NOT_A_FILE, str(error))
        return
    with file:
        try:
            if named or name.endswith(outbox.EPOCH_SUFFIX):
                data = file.read(wire.SEGMENT_MAX + 1)
                large = len(data) > wire.SEGMENT_MAX
                yield (
                    bad(Name.NOT_A_FILE, f"larger than {wire.SEGMENT_MAX:,} bytes")
                    if large
                    else Piece(folder, source, named, data)
                )
                return
            for number, data in enumerate(_sequence(file), 1):
                yield Piece(folder, f"{source}, segment {number}", None, data)
        except OSError as error:
            yield bad(Name.UNREADABLE, str(error.strerror))


def _open(path: str) -> IO[bytes]:
    """A plain file, without waiting for anything. OSError or DecodeError."""
    fd = os.open(path, O_READ)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DecodeError("not a plain file")
    return open(fd, "rb")


def _sequence(file: IO[bytes]) -> Iterator[bytes]:
    """Segments of a CBOR sequence of any length, one at a time. What is none ends it: the rest is one bad piece."""
    rest = file.read(2 * wire.SEGMENT_MAX)
    if not rest:
        yield b""
    while rest:
        end = _end(rest)
        if end is None:
            yield rest[: wire.SEGMENT_MAX]
            return
        yield rest[:end]
        rest = rest[end:]
        if len(rest) < wire.SEGMENT_MAX:
            rest += file.read(wire.SEGMENT_MAX)


def _end(data: bytes) -> int | None:
    """Where the segment at the beginning of `data` ends."""
    if data[: len(_HEAD)] != _HEAD:
        return None
    at = len(_HEAD)
    try:
        for _ in range(4):
            _, at = cbor.decode_prefix(data, at, depth=1, size=wire.SEGMENT_MAX)
    except (DecodeError, Incomplete):
        return None
    return at if at <= wire.SEGMENT_MAX else None


# --- receipts --------------------------------------------------------------------------------------------------------


def receipt(path: str, publics: Sequence[bytes], device: bytes, source: str, report: Report) -> list[Known]:
    """What a receipt vouches for; one that is not the collector's word is a defect. Raises OSError but for links."""
    try:
        data = receipts.read(path)
        heads = receipts.verified(data, publics, device).heads
    except (DecodeError, SignatureError) as error:
        report.add(Defect(Name.FORGED_RECEIPT, Place(device, 0, 0), source=source, detail=str(error)))
        return []
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        report.add(Defect(Name.FORGED_RECEIPT, Place(device, 0, 0), source=source, detail="a link"))
        return []
    return [Known(device, *head, source) for head in heads]


# --- a device --------------------------------------------------------------------------------------------------------


class Device(NamedTuple):
    """A device's own log."""

    state: str  # spool/: journals, quarantine, the stored receipt
    exchange: str  # outbox/ and inbox/
    public: bytes
    collector: bytes | None  # the key that signs receipts, if it is known here


def own(device: Device, report: Report | None = None) -> Report:
    """A device's outbox, spool and receipts. Raises OSError (PermissionError among them) or TooMany."""
    report = report or Report()
    spool, out = os.path.join(device.state, "spool"), os.path.join(device.exchange, "outbox")
    identity = cose.device_id(device.public)
    follower = Chain(report, _receipts(device, identity, report))
    aside = set(outbox.listing(os.path.join(spool, "quarantine")))
    keys = Keys([device.public])
    _certify(out, keys, follower)
    found = (piece for piece in pieces(out, report) if not _let_go(device, piece, follower))
    _links(found, keys, follower, lambda: _refresh(out, keys))
    for head in _receipts(device, identity, Report()):
        follower.gone(head)
    for name in aside.union(outbox.listing(os.path.join(spool, "quarantine"))):
        follower.explain(identity, name.stream, name.sequence, name.sequence, "damaged, set aside on this device")
    _let_go_undelivered(spool, device.public, follower)
    follower.finish()
    _journals(spool, identity, follower)
    return report


def _let_go_undelivered(spool: str, public: bytes, follower: Chain) -> None:
    """The signed word that no segment may carry yet."""
    identity = cose.device_id(public)
    try:
        for drop in losses.read(spool, [public], identity).drops:
            follower.explain(identity, drop.stream, drop.first, drop.last, reason_word(drop.reason))
    except (DecodeError, OSError) as error:
        follower.report.add(Defect(Name.ALTERED, None, source=losses.FILE, detail=str(error)))


def _receipts(device: Device, identity: bytes, report: Report) -> list[Known]:
    heads: list[Known] = []
    places = (
        (os.path.join(device.state, "spool", "receipt.egr"), "the stored receipt"),
        (os.path.join(device.exchange, "inbox", "receipt.egr"), "the receipt in the inbox"),
    )
    for path, source in places:
        if device.collector is None:
            if os.path.lexists(path):
                report.note(f"{source[:1].upper()}{source[1:]} was not checked: the collector's key is not here.")
            continue
        try:
            heads += receipt(path, [device.collector], identity, source, report)
        except FileNotFoundError:
            continue
    return heads


def _refresh(out: str, keys: Keys) -> None:
    """Statements that a sealer made since we looked. For their keys only: what they name may be newer than our list."""
    for piece in pieces(out, Report(), segments=False):
        with contextlib.suppress(Refused):
            keys.admit(piece.data)


def _let_go(device: Device, piece: Piece, follower: Chain) -> bool:
    """Did the sealer delete it, or set it aside, between our list and our look? Then it is no defect."""
    name = piece.named
    if name is None or piece.bad is None or os.path.lexists(os.path.join(device.exchange, "outbox", name.file)):
        return False
    if os.path.lexists(os.path.join(device.state, "spool", "quarantine", name.file)):
        return True
    identity = cose.device_id(device.public)
    fresh = _receipts(device, identity, Report())
    covered = any(head.stream == name.stream and name.sequence <= head.sequence for head in fresh)
    if covered:
        follower.occupied(Place(identity, *name))
    return covered


def _journals(spool: str, identity: bytes, follower: Chain) -> None:
    """Nobody signs a journal. It may be whole or not, and it cannot be older than what was sealed from it."""
    report, following, waiting = follower.report, [0] * journal.STREAMS, 0
    ends = [follower.records.get((identity, stream), 1) for stream in range(journal.STREAMS)]
    for file in JOURNALS:
        try:
            data = journal.read(os.path.join(spool, file))
        except FileNotFoundError:
            continue
        except OSError as error:
            report.add(Defect(Name.UNREADABLE, None, source=file, detail=str(error.strerror)))
            continue
        content = journal.parse(data)
        if content is None:
            if data.strip(b"\0"):
                report.add(Defect(Name.ALTERED, None, source=file, detail="no copy of the journal's header is whole"))
            continue
        following = [max(pair) for pair in zip(following, content.next, strict=True)]
        waiting += sum(frame.sequence >= ends[frame.stream] for frame in content.frames)
    for stream, end in enumerate(ends):
        if any(following) and following[stream] < end:
            detail = f"it goes on with record {following[stream]}, segments hold up to {end - 1}"
            report.add(Defect(Name.ROLLED_BACK, Place(identity, stream, 0), source="the journal", detail=detail))
    if waiting:
        report.note(f"{waiting:,} records wait in the journal to be sealed; nobody has signed them yet.")
