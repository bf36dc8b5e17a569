"""A busy life of one device, and what was answered in it: `Facts` know since which moment each answer was out.

The daemon, its helpers, the sealer and the uplink are the real ones; so is what edgeguard-act calls (`carry`), driven
beside the daemon. The collector is real too, but stands on a disk that no power cut reaches.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, NamedTuple

from edgeguard.codec import cose
from edgeguard.collector import store
from edgeguard.collector.ingest import Device, Ingest
from edgeguard.daemon.authority import world as world_of
from edgeguard.errors import ControlError
from edgeguard.records import epoch, outbox, transport, wire
from edgeguard.records.link import Reply
from edgeguard.records.uplink import Uplink
from edgeguard.records.wire import Record
from edgeguard.remediations import Order, World, carry
from edgeguard.remediations.undo import DONE, REVERTED, UndoStore
from tests.power.guarded import TOOLS, Guarded

COLLECTOR_SEED = b"\x09" * 32
COLLECTOR_KEY = cose.public_of(COLLECTOR_SEED)
ROUNDS = 16
EVIL = b"\x7fELF something that the baseline does not know\n" * 300


class Fact(NamedTuple):
    """From entry `at` of the disk's log on, `what` holds with `value`."""

    at: int
    what: str
    value: Any


class Facts:
    """`now` is the clock: on a logged disk the number of its entries, elsewhere any count that goes up."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self.noted: list[Fact] = []
        self.records: dict[tuple[int, int], Record] = {}  # (stream, sequence) -> what the device wrote under it
        self.signed: dict[str, bytes] = {}  # segment file -> its bytes, as first seen by somebody else

    def note(self, what: str, value: Any) -> None:
        self.noted.append(Fact(self._now(), what, value))

    def until(self, moment: int) -> list[Fact]:
        return [fact for fact in self.noted if fact.at <= moment]


class Receiver:
    """The real uplink, with a collector in the place of its connection."""

    def __init__(self, guarded: Guarded, facts: Facts, folder: Path) -> None:
        self._guarded = guarded
        self._facts = facts
        self._db = store.connect(str(folder / "collector.db"))
        self._ingest = Ingest(self._db, COLLECTOR_SEED, lambda: 1)
        self._device: Device | None = None

    def see(self) -> None:
        """Whatever was handed out in the outbox may be read, and is not taken back."""
        directory = f"{self._guarded.disk}/exchange/outbox"
        for name in outbox.listing(directory):
            if name.file not in self._facts.signed:
                with contextlib.suppress(FileNotFoundError):
                    if not outbox.is_held(directory, name):
                        self._keep(name.file, outbox.read(directory, name))

    def _keep(self, file: str, data: bytes) -> None:
        segment = wire.decode_segment(cose.parse1(data).payload)
        self._facts.signed[file] = data
        for number, record in enumerate(segment.records, segment.header.first):
            self._facts.records[record.stream, number] = record

    def send(self) -> None:
        """One run of the uplink."""
        settings = self._guarded.settings
        original = transport.Link
        transport.Link = lambda _target: self  # type: ignore[assignment, misc]
        try:
            assert Uplink(settings).run() == 0
        finally:
            transport.Link = original  # type: ignore[misc]

    def post(self, body: bytes) -> Reply:
        if self._device is None:
            public = bytes.fromhex(Path(f"{self._guarded.disk}/state/keys/device.pub").read_text())
            self._device = self._ingest.add_device("power", public)
        for data in wire.split(body):
            if epoch.is_statement(data):
                continue
            header = wire.decode_header(cose.parse1(data).payload)
            name = outbox.Name(header.stream, header.sequence).file
            if name not in self._facts.signed:
                self._keep(name, data)
            self._facts.note("sent", (name, sha256(data).digest()))
        verdicts, receipt = self._ingest.take(body, self._device)
        assert all(verdict.taken for verdict in verdicts), verdicts
        return Reply(200, receipt, None)

    def close(self) -> None:
        """A connection would be closed."""

    relayed, judged_at = False, 0

    def room(self, most: int) -> tuple[int, int]:
        """As much as a collector takes."""
        return most, most

    def spent(self) -> int:
        """There is no wire."""
        return 0

    def end(self) -> None:
        self._db.close()


class Acts:
    """What edgeguard-act does, on files of its own that lie on the same disk."""

    def __init__(self, guarded: Guarded, facts: Facts) -> None:
        self._facts = facts
        self._root = guarded.disk / "root"
        self.world = act_world(guarded)
        self._count = 0

    def evil(self, number: int) -> Path:
        """A file that will be taken away; it is on disk before anybody looks for it."""
        path = self._root / f"etc/evil-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(EVIL + b"%d" % number)
            file.flush()
            os.fsync(file.fileno())
        fd = os.open(path.parent, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        return path

    def one(self, dice: random.Random) -> None:
        number = self._count = self._count + 1
        path = self.evil(number)
        self._facts.note("evil", path.name)
        undo = UndoStore(self.world.undo)
        observed = {"type": "file", "sha256": sha256(path.read_bytes()).digest()}
        order = Order("quarantine-file", f"F-{number:04d}", "EG-FILE-001", "file", f"/etc/{path.name}", observed, None)
        reply = carry.carry_out(order, self.world, undo, 1_800_000_000_000 + number * 3_600_000)
        assert reply.ok, reply
        self._facts.note("act", (order.finding, DONE))
        if dice.random() < 0.4:
            assert carry.take_back(order.finding, self.world, undo, 1_800_000_000_000 + number * 3_600_000 + 1).ok
            self._facts.note("act", (order.finding, REVERTED))


def act_world(guarded: Guarded) -> World:
    return world_of(guarded.settings)._replace(root=str(guarded.disk / "root"))


class Life:
    """What happens to the device, in an order that the dice decide."""

    def __init__(self, guarded: Guarded, facts: Facts, folder: Path, dice: random.Random) -> None:
        self.guarded = guarded
        self.facts = facts
        self.dice = dice
        self.receiver = Receiver(guarded, facts, folder)
        self.acts = Acts(guarded, facts)
        self._severity = "high"
        self._accepted: dict[int, str] = {}  # tool -> finding that was accepted for a while

    def begin(self) -> None:
        """The first start: a key, a baseline that is learned."""
        self.guarded.start()
        self.guarded.until(self.guarded.settled)
        self.look()

    def look(self) -> None:
        """What anybody may see of it now."""
        status = self.guarded.status()
        self.facts.note("sequence", status["areas"]["log"]["sequence"])
        if status["policy"]:
            self.facts.note("revision", status["policy"]["revision"])
            key = Path(f"{self.guarded.disk}/state/keys/device.pub").read_text()
            self.facts.note("key", bytes.fromhex(key))
        self.receiver.see()

    def round(self, number: int) -> None:
        for act in self.dice.sample((self.change, self.accept, self.accept_for, self.reload, self.acts_once), 3):
            act()
            self.look()
        if number % 3 == 0:
            self.receiver.send()
        if number % 9 == 5:
            self.restart()

    def end(self) -> None:
        """An orderly stop, and all that is left sealed: now every record has been seen."""
        self.guarded.stop()
        seal_all(self.guarded)
        self.receiver.see()

    def change(self) -> None:
        """Some tools change, some are put back."""
        for number in self.dice.sample(range(TOOLS), 5):
            self._write(number, self.dice.randbytes(40))
        number = self.dice.randrange(TOOLS)
        self._write(number, b"as it should be\n" * (number + 1))

    def _write(self, number: int, content: bytes) -> Path:
        """Change a tool. What was accepted of it as it was is not accepted of what it is now."""
        if finding := self._accepted.pop(number, ""):
            self.facts.note("asked", finding)
        path = self.guarded.tool(number)
        path.write_bytes(content)
        return path

    def accept(self) -> None:
        """Into the next revision of the baseline."""
        _, finding = self._some_finding()
        answer = self.guarded.answered(lambda: self._accept(finding, None))
        if answer is not None:
            self.facts.note("revision", answer["revision"])

    def accept_for(self) -> None:
        """For a while: that is a word in the ledger. Sometimes it is taken back."""
        number, finding = self._some_finding()
        if self._accept(finding, time.time_ns() // 1_000_000 + 86_400_000) is None:
            return
        self.facts.note("accepted", finding["id"])
        self._accepted[number] = finding["id"]
        if self.dice.random() < 0.3:
            self.facts.note("asked", finding["id"])
            with contextlib.suppress(ControlError):  # it has changed again meanwhile: nothing is left to take back
                self.guarded.ask("Undo", id=finding["id"])
                self.facts.note("retracted", finding["id"])

    def _accept(self, finding: dict[str, Any], until: int | None) -> dict[str, Any] | None:
        self.facts.note("asked", finding["id"])  # until the answer, either may be true
        try:
            (answer,) = self.guarded.ask(
                "Accept", ids=[finding["id"]], marks=[finding["mark"]], reason="it is right", until=until
            )
        except ControlError as error:
            if error.name in ("Moved", "NoSuchFinding"):
                return None
            raise
        return answer

    def _some_finding(self) -> tuple[int, dict[str, Any]]:
        """A tool that is changed now, and the finding about it."""
        number = self.dice.randrange(TOOLS)
        path = self._write(number, content := self.dice.randbytes(50))
        digests = {sha256(content).hexdigest(), blake2b(content, digest_size=32).hexdigest()}  # the processor decides

        def seen() -> dict[str, Any] | None:
            finding = self.guarded.finding(path)
            found = {finding["observed"].get(name) for name in ("sha256", "blake2b")} if finding else set()
            return finding if found & digests else None

        return number, self.guarded.until(seen)

    def reload(self) -> None:
        """Another policy."""
        self._severity = {"high": "low", "low": "high"}[self._severity]
        self.guarded.write_policy(self._severity)
        (answer,) = self.guarded.answered(lambda: self.guarded.ask("Reload"))
        self.facts.note("revision", answer["revision"])

    def acts_once(self) -> None:
        self.acts.one(self.dice)

    def restart(self) -> None:
        self.guarded.stop()
        self.receiver.see()
        self.guarded.start()


def seal_all(guarded: Guarded) -> None:
    """Everything that the spool holds becomes segments, as at the next start."""
    from edgeguard.records import seal
    from edgeguard.records.spool import Spool

    settings = guarded.settings
    spool = Spool(f"{settings.paths.state}/spool", f"{settings.paths.exchange}/outbox", b"the last boot...")
    spool.open()
    for turn in range(1, 4):
        spool.rotate(turn * 10**9, force=True)
        seal.run(settings, drop_privileges=False)
        spool.refresh()
    spool.close()
