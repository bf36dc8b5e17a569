"""One random life of a spool, and what must hold whatever happens in it.

The daemon's half, the sealer and the collector are the real ones, on real files. In between anything happens: a kill
before, in the middle of or after any call that changes the disk, a disk that is full or fails for a while, short
writes, flipped bits, lost and repeated messages. What is promised is kept as simple facts beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from small_world import Device, moment

from edgeguard.codec import cose
from edgeguard.collector import store
from edgeguard.collector.ingest import Ingest
from edgeguard.errors import SpoolError
from edgeguard.records import compose, delivery, evidence, outbox, receipts, registry, seal, wire
from edgeguard.records.spool import Spool

COLLECTOR = b"\x09" * 32
PUBLIC = cose.public_of(COLLECTOR)
BLOCK = 4096
ACTS = 30  # in one life
CALLS = ("pwrite", "fdatasync", "fsync", "replace", "unlink", "ftruncate", "mkdir")
DROP = registry.DROP.number
DAMAGED = registry.REASONS.index("damaged")


class Killed(BaseException):
    """The process ends here."""


class Chaos:
    """Around the calls that change a disk. `plan`: in how many of them what happens, and for how many."""

    def __init__(self) -> None:
        self.event = ""
        self.left = 0
        self.lasting = 0
        self.named: Callable[[str, str], None] = lambda _source, _target: None  # hears which segment gets its name

    def plan(self, event: str, left: int, lasting: int = 1) -> None:
        self.event, self.left, self.lasting = event, left, lasting

    def calm(self) -> None:
        self.event = ""

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in (*CALLS, "open")}

        def wrapped(name: str) -> Callable[..., Any]:
            def call(*words: Any, **more: Any) -> Any:
                if name == "open" and not words[1] & os.O_CREAT:
                    return real[name](*words, **more)
                return self._call(name, real[name], *words, **more)

            return call

        for name in real:
            setattr(os, name, wrapped(name))
        try:
            yield
        finally:
            for name, original in real.items():
                setattr(os, name, original)

    def _call(self, name: str, call: Callable[..., Any], *words: Any, **more: Any) -> Any:
        if name == "replace" and str(words[1]).endswith(".egs"):
            self.named(str(words[0]), str(words[1]))
        if not self.event:
            return call(*words, **more)
        self.left -= 1
        if self.left > 0:
            return call(*words, **more)
        event = self.event
        if event.startswith("kill"):
            self.calm()
            if event == "kill torn" and name == "pwrite":
                call(words[0], words[1][: len(words[1]) // 2], words[2])
            elif event == "kill after":
                call(*words, **more)
            raise Killed
        self.lasting -= 1
        if self.lasting <= 0:
            self.calm()
        if event == "short" and name == "pwrite" and len(words[1]) > 1:
            return call(words[0], words[1][: len(words[1]) // 2], words[2])
        number = {"full": errno.ENOSPC, "broken": errno.EIO}.get(event)
        takes_room = name in ("pwrite", "open", "mkdir", "fsync")
        if number is not None and (number == errno.EIO or takes_room):
            raise OSError(number, os.strerror(number))
        return call(*words, **more)


class Life:
    """`run` lives it; `check` says what is wrong at its end, in words."""

    def __init__(self, place: str, dice: random.Random, *, flips: bool) -> None:
        self.dice = dice
        self.chaos = Chaos()
        shutil.rmtree(place, ignore_errors=True)
        blocks = dice.choice((7, 9, 12, 40))
        self.device = Device(place, size=dice.choice((4096, 8192)), spool_bytes=blocks * BLOCK)
        self.device.with_collector(PUBLIC)
        self.database = store.connect(":memory:")
        self.ingest = Ingest(self.database, COLLECTOR, lambda: 1)
        self.known = self.ingest.add_device("d", self.device.public)
        self.boots = 1
        self.clock = 1000
        self.spool = self._new()
        self.count = 0
        self.appended: dict[str, int] = {}  # text -> stream, not said to be durable
        self.durable: dict[str, int] = {}
        self.last: set[str] = set()  # of the last commit: damage to it looks like a torn write
        self.excused: set[str] = set()
        self.seen: dict[outbox.Name, tuple[str, ...]] = {}  # what every segment held that ever was there
        self.words: dict[outbox.Name, int] = {}  # how many words each held in the place of a record that was damaged
        self.flips = 2 if flips else 0
        self.flipped = flips
        self.spoiled: Counter[str] = Counter()  # flipped bits, by the name of the segment
        self.log: list[str] = []
        self.chaos.named = self._named

    # --- acts ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        acts = [
            *[self.append] * 8, *[self.commit] * 4, *[self.seal] * 5, *[self.send] * 3, self.restart, self.reboot,
            *[self.trouble] * 4, self.flip,
        ]  # fmt: skip
        self.act(self.open)
        for _ in range(ACTS):
            self.act(self.dice.choice(acts))

    def act(self, what: Callable[[], None]) -> None:
        self.log.append(what.__name__)
        try:
            with self.chaos.around():
                what()
        except Killed:
            self.log.append("killed")
            self._die()
            self.act(self.open)
        except (SpoolError, OSError) as error:
            self.log.append(str(error))

    def open(self) -> None:
        self.spool.open()
        self._damaged()

    def append(self) -> None:
        for _ in range(self.dice.choice((1, 1, 3, 8))):
            self.count += 1
            self.clock += 1
            stream = self.dice.choice((0, 0, 1, 1, 2, 3))
            text = f"{stream}:{self.count}:" + "x" * self.dice.choice((1, 40, 400))
            self.appended[text] = stream
            with contextlib.suppress(SpoolError):
                self.spool.append(compose.text(text, moment(self.clock))._replace(stream=stream))

    def commit(self) -> None:
        self.spool.commit()
        self._committed()

    def seal(self) -> None:
        self.clock += 10**7
        self.spool.rotate(self.clock, force=True)
        try:
            self._after(seal.run(self.device.settings, audit=self.dice.random() < 0.3, drop_privileges=False))
        finally:
            self.spool.refresh()

    def send(self) -> None:
        """Some of what waits, in any order, perhaps twice; the receipt may be lost."""
        names = self._waiting()
        self.dice.shuffle(names)
        names = names[: self.dice.choice((1, 3, 100))]
        parts = [outbox.read(self.device.outbox, name) for name in names]
        parts += self.dice.sample(parts, min(len(parts), self.dice.choice((0, 0, 2))))
        receipt = b""
        for part in parts:
            body = b"".join([*self.device.statements().values(), part])
            _, receipt = self.ingest.take(body, self.known) if outbox.is_one(part) else ([], receipt)
        if receipt and self.dice.random() < 0.7:
            with open(os.path.join(self.device.inbox, "receipt.egr"), "wb") as file:
                file.write(receipt)

    def restart(self) -> None:
        try:
            self.spool.close()
            self._committed()
        finally:
            self._die()
        self.open()

    def reboot(self) -> None:
        self.boots += 1
        self._die()
        self.open()

    def trouble(self) -> None:
        event = self.dice.choice(("kill", "kill torn", "kill after", "full", "broken", "short"))
        self.chaos.plan(event, self.dice.randint(1, 12), self.dice.choice((1, 3, 20)))
        self.log.append(f"{event} in {self.chaos.left}")

    def flip(self) -> None:
        """One bit of one file."""
        if not self.flips:
            return
        files = [
            os.path.join(folder, name)
            for folder in (self.device.spool_directory, self.device.outbox)
            for name in sorted(os.listdir(folder))
            if name.startswith(("journal.", "losses", "receipt")) or name.endswith(".egs")
        ]
        path = self.dice.choice(files)
        with open(path, "r+b") as file:
            data = file.read()
            written = len(data.rstrip(b"\0"))
            if not written:
                return
            at = self.dice.randrange(written)
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << self.dice.randrange(8)]))
        self.flips -= 1
        self.spoiled[os.path.basename(path)] += path.endswith(".egs")
        self.log.append(f"flip {os.path.basename(path)} at {at}")
        if "journal" in path:
            self.excused |= self.last

    # --- beside ----------------------------------------------------------------------------------------------------

    def _new(self) -> Spool:
        return self.device.spool(b"boot %011d" % self.boots)

    def _die(self) -> None:
        if self.spool._fd >= 0:
            os.close(self.spool._fd)
        self.appended.clear()  # nobody was told that they are durable; they may be there or not
        self.spool = self._new()

    def _committed(self) -> None:
        if self.appended:
            self.last = set(self.appended)
        self.durable |= self.appended
        self.appended.clear()

    def _damaged(self) -> None:
        """As the daemon tells it."""
        for name in self.spool.damaged:
            self.clock += 1
            with contextlib.suppress(SpoolError):
                self.spool.append(compose.drop(0, "damaged", moment(self.clock), name=name))
        self.spool.told()

    def _after(self, result: dict[str, Any]) -> None:
        for row in result.get("quarantined", []):
            self.log.append(f"set aside {row['name']}: {row['why']}")
        if result.get("evicted"):
            self.log.append(f"let go {result['evicted']}")

    def _named(self, source: str, target: str) -> None:
        name = outbox.parse_name(os.path.basename(target))
        if name is not None and "quarantine" not in target:
            with open(source, "rb") as file:
                records = _records_of(file.read())
            self.seen[name] = tuple(map(_text, records))
            self.words[name] = sum(map(_in_place, records))

    def _waiting(self) -> list[outbox.Name]:
        try:
            receipt = receipts.unverified(receipts.read(os.path.join(self.device.inbox, "receipt.egr")))
        except OSError:
            receipt = None
        return delivery.in_order(
            [
                name
                for name in outbox.listing(self.device.outbox)
                if not outbox.is_held(self.device.outbox, name) and (receipt is None or not receipt.holds(name))
            ]
        )

    # --- the end -----------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """The disk works again, everything is sealed and sent; then every promise is looked at."""
        self.chaos.calm()
        self._die()
        self.spool.open()
        self._damaged()
        with contextlib.suppress(SpoolError):  # both journals may wait for the sealer; it is kept in memory then
            self.spool.append(compose.state("start", moment(self.clock + 1)))  # every start says so
        for turn in range(1, 5):
            self.spool.rotate(self.clock + turn * 10**9, force=True)
            with self.chaos.around():
                self._after(seal.run(self.device.settings, audit=True, drop_privileges=False))
            self.spool.refresh()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.device.inbox, "receipt.egr"))
            receipt = b""
            for name in self._waiting():
                body = b"".join([*self.device.statements().values(), outbox.read(self.device.outbox, name)])
                _, receipt = self.ingest.take(body, self.known)
            if receipt:
                with open(os.path.join(self.device.inbox, "receipt.egr"), "wb") as file:
                    file.write(receipt)
        self.spool.close()
        wrong = [*self._records(), *self._gaps(), *self._own()]
        self.database.close()
        return wrong

    def _records(self) -> Iterator[str]:
        """Nothing twice; nothing durable gone without a signed word for its very place."""
        rows = self.database.execute("SELECT bytes FROM segments ORDER BY stream, seq").fetchall()
        records = [record for (data,) in rows for record in _records_of(data)]
        texts = Counter(text for record in records if (text := _text(record)))
        yield from (f"{text[:12]} is there {count} times" for text, count in texts.items() if count > 1)
        drops = self.database.execute("SELECT stream, first, last FROM drops").fetchall()
        lost_in_place = Counter(record.fields[0] for record in records if _in_place(record))
        for name, count in self.words.items():  # the word itself may have been let go
            if any(row[0] == name.stream and row[1] <= name.sequence <= row[2] for row in drops):
                lost_in_place[name.stream] += count
        journals = any(record.type == DROP and str(record.fields[-1]).startswith("journal.") for record in records)
        homes = {text: name for name, held in self.seen.items() for text in held if text}
        for text, stream in self.durable.items():
            if text in texts or text in self.excused:
                continue
            name = homes.get(text)
            if name is not None and any(row[0] == stream and row[1] <= name.sequence <= row[2] for row in drops):
                continue
            if name is None and (journals or lost_in_place[stream]):
                lost_in_place[stream] -= not journals
                continue
            yield f"{text[:12]} was durable, sealed in {name}, and is gone; drops {drops}"

    def _gaps(self) -> Iterator[str]:
        rows = self.database.execute("SELECT name, stream, seq, detail FROM incidents WHERE resolved IS NULL")
        told = (
            "explained loss",
            "late",
            *(("altered", "re-sealed", "malformed") if self.flipped else ()),
            # Every statement goes with every segment here. One changed bit in a segment is in its key id, and then the
            # epoch that it names gives it away; or in that number, and then the key id does. It takes one in each.
            *(("unknown epoch",) if max(self.spoiled.values(), default=0) > 1 else ()),
        )
        yield from (f"incident {row}" for row in rows.fetchall() if row[0] not in told)
        for stream, name in outbox.newest(outbox.listing(self.device.outbox)).items():
            head = self.database.execute("SELECT seq FROM heads WHERE stream = ?", (stream,)).fetchone()
            if head is None or head[0] < name.sequence:
                yield f"the collector has {head} of stream {stream}, {name.file} is the newest"

    def _own(self) -> Iterator[str]:
        paths = self.device.settings.paths
        report = evidence.own(evidence.Device(paths.state, paths.exchange, self.device.public, PUBLIC))
        if not report.clean:
            yield f"verify: {[tuple(defect) for defect in report.defects]}"


def _text(record: wire.Record) -> str:
    return str(record.fields[0]) if record.type == registry.TEXT.number and ":" in str(record.fields[0])[:2] else ""


def _in_place(record: wire.Record) -> bool:
    return record.type == DROP and record.fields[3] == DAMAGED and record.fields[4] == 1


def _records_of(data: bytes) -> tuple[wire.Record, ...]:
    return wire.decode_segment(cose.parse1(data).payload).records
