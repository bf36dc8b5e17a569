"""Links of chains, in order, and what holds between them: gaps, joints, numbers, heads that a receipt vouches for.

Fed with one segment after the other in the order (device, stream, sequence); keeps a few hashes of each chain, the
gaps that wait for an explanation and the explanations, nothing else. A gap may be explained by a segment that comes
much later, so gaps are judged in `finish`. Pure: bytes are `examine`, files are `evidence`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple

from edgeguard.records import certify, wire
from edgeguard.records.certify import Line
from edgeguard.records.defects import Defect, Explained, Name, Place, Report, reason_word
from edgeguard.records.epoch import Head
from edgeguard.records.examine import Link, Losses

WINDOW = 80  # hashes kept of a chain: a sealer goes back over at most 64 damaged segments (holdings.QUARANTINE_MAX)
PENDING_MAX = 200_000  # gaps, joints and bad places that wait, about 40 MB; what is beyond is judged without waiting
CONFLICTS_MAX = 16  # different segments with one number, whose hashes the next may name

Key = tuple[bytes, int]  # device and stream


class Known(NamedTuple):
    """A head that somebody vouches for. `let_go`: the device may have deleted all up to it on this word."""

    device: bytes
    stream: int
    sequence: int
    hash: bytes
    source: str
    let_go: bool = True


class Chain:
    """One run over any number of devices."""

    def __init__(self, report: Report, known: Iterable[Known] = ()) -> None:
        self.report = report
        self._known: dict[Key, list[Known]] = defaultdict(list)
        for head in known:
            self._known[head.device, head.stream].append(head)
        self._drops: dict[Key, dict[tuple[int, int], str]] = defaultdict(dict)
        self._counted: dict[Key, int] = defaultdict(int)
        self._uncounted: set[bytes] = set()  # devices that lost a journal, with nobody knows how many records
        self._occupied: dict[Key, set[int]] = defaultdict(set)  # numbers under which something bad lies
        self._gaps: list[tuple[Key, int, int, Name]] = []
        self._joints: list[tuple[Link, int, int]] = []  # segments that were passed over and must be dropped
        self._unknown: list[tuple[Link, Known]] = []  # firsts that name another than a head that was perhaps let go
        self._short: dict[Key, list[tuple[Link, int]]] = defaultdict(list)  # records that are in no segment
        self._last: _Last | None = None
        self._newest: dict[Key, int] = {}
        self.records: dict[Key, int] = {}  # number of the record after the last, by chain
        self._gone: dict[Key, int] = defaultdict(int)
        self._lines: dict[bytes, Line] = {}
        self._claims: dict[Key, dict[int, dict[bytes, str]]] = defaultdict(dict)  # hashes of numbers, and who says so
        self._ends: dict[Key, tuple[int, str]] = {}  # the highest number that somebody names
        self._unlike_claims: list[tuple[Link, str]] = []
        self._merged: dict[Key, list[tuple[int, int]]] = {}

    # --- what is told ------------------------------------------------------------------------------------------------

    def occupied(self, place: Place) -> None:
        """Something lies there that is no good; it has its own defect, and its place is no gap."""
        if len(self._occupied[place.device, place.stream]) < PENDING_MAX:
            self._occupied[place.device, place.stream].add(place.sequence)

    def lost(self, device: bytes, told: Losses) -> None:
        """What a verified segment of this device says was lost."""
        for drop in told.drops:
            self.explain(device, drop.stream, drop.first, drop.last, reason_word(drop.reason))
        for stream, count in told.records:
            if count is None:
                self._uncounted.add(device)
            else:
                self._counted[device, stream] += count

    def explain(self, device: bytes, stream: int, first: int, last: int, reason: str) -> None:
        self._drops[device, stream].setdefault((first, last), reason)

    def gone(self, head: Known) -> None:
        """A receipt that came while we looked: all up to it may have been let go, but need not have been here."""
        key = (head.device, head.stream)
        self._gone[key] = max(self._gone[key], head.sequence)

    def epochs(self, device: bytes, line: Line, *, complete: bool, ends: bool = True) -> None:
        """The statements of a device: what they say against each other, and about segments. Before its segments.

        `complete`: there are no others. `ends`: what they name must be there.
        """
        self._lines[device] = line
        for name, detail in certify.contradictions(line):
            self.report.add(Defect(name, None, source=f"the statements of {device.hex()}", detail=detail))
        for statement in line:
            for head in statement.heads:
                if head.hash:
                    self.claim(device, head, f"the statement of epoch {statement.number}", ends=ends)
        began = certify.gaps(line, complete=complete)
        if began.starts:
            self.report.note(
                f"{began.starts:,} times a key was lost when the device went off. What was not delivered by then could"
                " have been cut off there unseen."
            )
        if began.others:
            self.report.note(
                f"{began.others:,} times a key was lost without a new start of the device: somebody emptied its"
                " runtime directory, restarted its container, or cut off what was not delivered by then."
            )

    def claim(self, device: bytes, head: Head, source: str, *, ends: bool = True) -> None:
        """Somebody who signs for the device names this segment. `ends`: there must be one with this number."""
        key = (device, head.stream)
        if len(self._claims[key]) < PENDING_MAX and head.hash:
            self._claims[key].setdefault(head.sequence, {}).setdefault(head.hash, source)
        if ends and head.sequence > self._ends.get(key, (0, ""))[0]:
            self._ends[key] = (head.sequence, source)

    def newest(self, device: bytes, stream: int) -> int:
        """The highest number that was followed."""
        return self._newest.get((device, stream), 0)

    def told(self, device: bytes, stream: int, first: int, last: int) -> bool:
        """Does a signed segment give this very explanation?"""
        return (first, last) in self._drops.get((device, stream), ())

    def follow(self, link: Link) -> None:
        """The next link in order; one that comes a second time is compared with the first."""
        last = self._last
        if last is not None and last.key == (link.device, link.stream) and link.sequence == last.link.sequence:
            self._again(link, last)
            return
        self._finish_one()
        self._count(link)
        if last is None or last.key != (link.device, link.stream):
            last = None
            if link.sequence > 1:
                self._gap((link.device, link.stream), 1, link.sequence - 1, Name.BEGINNING)
        self._last = self._joined(link, last)

    def finish(self) -> Report:
        """Nothing more comes: judge what waited."""
        self._finish_one()
        self._last = None
        for key, first, last, name in self._gaps:
            self._judge_gap(key, first, last, name)
        for link, first, last in self._joints:
            self._judge_joint(link, first, last)
        for link, head in self._unknown:
            self._judge_first(link, head)
        for key, short in self._short.items():
            self._judge_records(key, short)
        for link, source in self._unlike_claims:
            if uncovered(link.sequence, link.sequence, self._ranges((link.device, link.stream))):
                place = Place(link.device, link.stream, link.sequence)
                self._add(Name.ROLLED_BACK, place, link, f"{source} names another segment with this number")
        for key, heads in self._known.items():
            newest = max(heads, key=lambda head: head.sequence)
            if newest.sequence > self._ends.get(key, (0, ""))[0]:
                self._ends[key] = (newest.sequence, newest.source)
        for key, (sequence, source) in self._ends.items():
            self._judge_tail(key, sequence, source)
        return self.report

    # --- one link after the other ------------------------------------------------------------------------------------

    def _count(self, link: Link) -> None:
        report = self.report
        report.segments += 1
        report.records += link.n
        report.devices.add(link.device)
        report.streams.add((link.device, link.stream))
        self._newest[link.device, link.stream] = link.sequence
        self.records[link.device, link.stream] = max(
            self.records.get((link.device, link.stream), 1), link.first + link.n
        )
        for wall in (link.begin, link.end):
            if wall is not None:
                report.begin = wall if report.begin is None else min(report.begin, wall)
                report.end = wall if report.end is None else max(report.end, wall)

    def _joined(self, link: Link, last: _Last | None) -> _Last:
        key = (link.device, link.stream)
        place = Place(link.device, link.stream, link.sequence)
        number = last.link.sequence if last else 0
        beside = link.sequence == number + 1
        if wrong := self._misplaced(link):
            self._add(wrong[0], place, link, wrong[1])
        if last and not beside:
            self._gap(key, number + 1, link.sequence - 1, Name.MISSING)
        if last is None:
            self._first(link, place)
        elif link.previous not in [rival.hash for rival in last.rivals]:
            self._unlike(link, place, last, beside)
        if last:
            before = next((rival for rival in last.rivals if rival.hash == link.previous), last.link)
            self._numbers(link, place, before, beside)
        window = last.window if last else deque(maxlen=WINDOW)
        window.append((link.sequence, link.hash, link.previous))
        return _Last(link, key, [link], window, [link])

    def _first(self, link: Link, place: Place) -> None:
        """Its predecessor is nothing, or what a receipt names."""
        if link.sequence == 1:
            if link.previous != wire.NO_PREVIOUS:
                self._add(Name.SPLICED, place, link, "it is the first, and names one before it")
            if link.first != 1:
                self._short[link.device, link.stream].append((link, link.first - 1))
        for head in self._known.get((link.device, link.stream), ()):
            if head.sequence == link.sequence - 1 and head.hash != link.previous:
                self._unknown.append((link, head))

    def _unlike(self, link: Link, place: Place, last: _Last, beside: bool) -> None:
        """It does not name the one before it. After damage a sealer goes on from the last good one, and says so."""
        for number, digest, _ in reversed(last.window):
            if digest == link.previous:
                self._joint(link, number + 1, last.link.sequence)
                return
        if link.previous == wire.NO_PREVIOUS:  # all before it were damaged
            self._joint(link, 1, last.link.sequence)
        elif beside and (lost := _lost_before(link.previous, last)):
            self._joint(link, lost + 1, last.link.sequence)
        elif beside:
            detail = f"names {link.previous.hex()[:16]}, {last.link.hash.hex()[:16]} is"
            self._add(Name.SPLICED, place, link, detail)

    def _numbers(self, link: Link, place: Place, before: Link, beside: bool) -> None:
        expected = before.first + before.n
        if link.first < expected:
            self._add(Name.RECORDS_TWICE, place, link, f"begins with record {link.first}, expected {expected}")
        elif link.first > expected and beside:
            self._short[link.device, link.stream].append((link, link.first - expected))
        if link.epoch < before.epoch and not self._misplaced(link):
            self._add(Name.OLD_EPOCH, place, link, f"epoch {link.epoch} after {before.epoch}")
        if link.boot < before.boot:
            self._add(Name.TIME_BACK, place, link, f"start {link.boot} after {before.boot}")

    def _misplaced(self, link: Link) -> tuple[Name, str] | None:
        line = self._lines.get(link.device)
        if line is None:
            return None
        following = line.following(link.epoch)
        return certify.misplaced(link.stream, link.sequence, link.boot, line.get(link.epoch), following)

    def _again(self, link: Link, last: _Last) -> None:
        last.same.append(link)
        if link.hash in [rival.hash for rival in last.rivals]:
            self.report.duplicates += 1
            return
        place = Place(link.device, link.stream, link.sequence)
        self._add(Name.EQUIVOCATION, place, link, f"{link.hash.hex()[:16]} and {last.link.hash.hex()[:16]}")
        if len(last.rivals) < CONFLICTS_MAX:
            last.rivals.append(link)
            last.window.append((link.sequence, link.hash, link.previous))

    def _finish_one(self) -> None:
        """All copies of the last link are known: is one what others name, and which lay under another's number?"""
        if self._last is None:
            return
        link = self._last.link
        for head in self._known.get(self._last.key, ()):
            if head.sequence == link.sequence and all(other.hash != head.hash for other in self._last.same):
                detail = f"{head.source} names {head.hash.hex()[:16]}, this is {link.hash.hex()[:16]}"
                self._add(Name.ROLLED_BACK, Place(link.device, link.stream, link.sequence), link, detail)
        for digest, source in self._claims.get(self._last.key, {}).get(link.sequence, {}).items():
            unlike = not any(other.hash.startswith(digest) for other in self._last.same)
            if unlike and len(self._unlike_claims) < PENDING_MAX:
                self._unlike_claims.append((link, source))
        for link in self._last.same:
            if link.named:
                right = any(other.hash == link.hash and not other.named for other in self._last.same)
                place = Place(link.device, link.stream, link.sequence)
                name = Name.INSERTED if right else Name.REORDERED
                self._add(name, place, link, f"it lies under number {link.named}")
        del self._last.same[:]

    # --- what waited -------------------------------------------------------------------------------------------------

    def _gap(self, key: Key, first: int, last: int, name: Name) -> None:
        if len(self._gaps) < PENDING_MAX:
            self._gaps.append((key, first, last, name))
        else:
            self.report.add(Defect(name, Place(*key, first), last))

    def _joint(self, link: Link, first: int, last: int) -> None:
        if len(self._joints) < PENDING_MAX:
            self._joints.append((link, first, last))
        else:
            self._passed_over(link, first, last)

    def _judge_gap(self, key: Key, first: int, last: int, name: Name) -> None:
        device, stream = key
        if name is Name.BEGINNING:  # what was delivered may be gone, from the front
            first = max(
                first, self._gone[key] + 1, *(head.sequence + 1 for head in self._known.get(key, ()) if head.let_go)
            )
        ranges = self._ranges(key)
        for start, end in uncovered(first, last, ranges):
            self.report.add(Defect(name, Place(device, stream, start), end))
        for (start, end), reason in self._drops.get(key, {}).items():
            low, high = max(start, first), min(end, last)
            if low <= high:
                self.report.explain(Explained(device, stream, low, high, reason))

    def _judge_joint(self, link: Link, first: int, last: int) -> None:
        """It passed over first..last, which must all be said to be lost."""
        key = (link.device, link.stream)
        if uncovered(first, last, self._ranges(key)):
            self._passed_over(link, first, last)

    def _judge_first(self, link: Link, head: Known) -> None:
        """Nobody can name the hash of a segment that was let go undelivered; the receipt names an earlier one then."""
        if uncovered(head.sequence, head.sequence, self._ranges((link.device, link.stream))):
            detail = f"names {link.previous.hex()[:16]}, {head.source} names {head.hash.hex()[:16]}"
            self._add(Name.SPLICED, Place(link.device, link.stream, link.sequence), link, detail)

    def _passed_over(self, link: Link, first: int, last: int) -> None:
        place = Place(link.device, link.stream, link.sequence)
        self._add(Name.SPLICED, place, link, f"passes over {first} to {last}, which are not said to be damaged")

    def _judge_records(self, key: Key, short: list[tuple[Link, int]]) -> None:
        missing = sum(count for _, count in short)
        if key[0] in self._uncounted or missing <= self._counted.get(key, 0):
            self.report.lost_records += missing
            return
        for link, count in short:
            place = Place(link.device, link.stream, link.sequence)
            told = self._counted.get(key, 0)
            self._add(Name.RECORDS_MISSING, place, link, f"{count} before record {link.first}; {told} are explained")

    def _judge_tail(self, key: Key, sequence: int, source: str) -> None:
        newest = self._newest.get(key, 0)
        for head in self._known.get(key, ()):
            if head.let_go and not uncovered(head.sequence, head.sequence, self._ranges(key)):
                newest = max(newest, head.sequence)  # it is explained, and those before it were let go on its word
        for start, end in uncovered(newest + 1, sequence, self._ranges(key)):
            self.report.add(Defect(Name.TAIL, Place(*key, start), end, detail=f"{source} names {sequence}"))

    def _ranges(self, key: Key) -> list[tuple[int, int]]:
        """What needs no segment, merged and in order; asked only when all is told."""
        if key in self._merged:
            return self._merged[key]
        ranges = [*self._drops.get(key, {}), *((number, number) for number in self._occupied.get(key, ()))]
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        self._merged[key] = merged
        return merged

    def _add(self, name: Name, place: Place, link: Link, detail: str) -> None:
        self.report.add(Defect(name, place, source=link.source, detail=detail))


class _Last(NamedTuple):
    """The newest link of the chain at hand."""

    link: Link
    key: Key
    rivals: list[Link]  # itself, and others with its number: the next may name any of them
    window: deque[tuple[int, bytes, bytes]]  # number, hash, what it names as the one before it
    same: list[Link]  # all that have its number


def _lost_before(previous: bytes, last: _Last) -> int:
    """The newest number that is not here and may have had this hash: only the one after it could tell. 0: none."""
    here = {number: before for number, _, before in last.window}
    oldest = min(here) if len(last.window) == WINDOW else 1
    for number in range(last.link.sequence - 1, oldest - 1, -1):
        if number not in here and here.get(number + 1, previous) == previous:
            return number
    return 0


def uncovered(first: int, last: int, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of first..last no range holds. `ranges` are merged and in order."""
    found = []
    at = max(0, bisect_left(ranges, (first, 0)) - 1)
    while first <= last and at < len(ranges):
        low, high = ranges[at]
        if low > last:
            break
        if low > first:
            found.append((first, low - 1))
        first = max(first, high + 1)
        at += 1
    if first <= last:
        found.append((first, last))
    return found
