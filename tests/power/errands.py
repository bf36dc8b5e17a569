"""All that the product writes into its state directory, as a list of errands: small enough to be broken at every call.

    key, baselines, records, segments, accepted findings, undo records, what packages brought

An errand that fails says so and is tried again later; what it answered must be there whatever comes. A second life in
the same directory goes on with what was not answered in the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from edgeguard.baseline import keys
from edgeguard.baseline.document import compile_baseline, sign
from edgeguard.baseline.policy import Policy
from edgeguard.baseline.store import Store
from edgeguard.codec import cose
from edgeguard.codec.manifest import Block, Entry, Reader
from edgeguard.daemon.keeping import Keeping
from edgeguard.daemon.loop import Loop
from edgeguard.errors import EdgeGuardError
from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import Observation, Outcome, Result, Rule, Severity
from edgeguard.records import compose, outbox, seal, wire
from edgeguard.records.compose import Moment
from edgeguard.records.spool import Spool
from edgeguard.remediations.undo import DONE, INTENDED, Record, UndoStore
from edgeguard.settings import Paths, Settings
from edgeguard.upgrades import overlay

NOW = 1_790_000_000_000
BOOT = b"a boot of errands"[:16]
JOURNAL = 8 * 1024  # bytes: so that the errands turn from one to the other
TRIES = 3
BASE = b"a baseline's list of files"  # by its digest
Say = Callable[[str, Any], None]


def settings_of(base: str) -> Settings:
    return Settings(paths=Paths(state=f"{base}/state", runtime=f"{base}/run", exchange=f"{base}/exchange"))


class Errands:
    """One process's life in the state directory. `say` hears what was answered; `done` is what earlier lives did."""

    def __init__(self, base: str, say: Say, done: set[str]) -> None:
        self.settings = settings_of(base)
        self._say = say
        self._done = done
        self._state = self.settings.paths.state
        self._spool = Spool(f"{self._state}/spool", f"{self.settings.paths.exchange}/outbox", BOOT, size=JOURNAL)
        self._waiting: list[str] = []  # texts of records that were appended and not committed
        self._turns = 0
        self._opened = False

    def all(self) -> list[tuple[str, Callable[[], None]]]:
        listed: list[tuple[str, Callable[[], None]]] = [("key", self._key), ("spool", self._spool.open)]
        for part in (1, 2, 3, 4):
            listed += [
                (f"revision {part}", lambda part=part: self._revision(part)),
                *((f"record {part}.{n}", lambda part=part, n=n: self._record(f"{part}.{n}")) for n in range(6)),
                (f"accept {part}", lambda part=part: self._accept(part)),
                (f"act {part}", lambda part=part: self._act(part)),
                (f"packages {part}", lambda part=part: self._packages(part)),
                (f"seal {part}", self._seal),
            ]
        return listed

    def run(self) -> list[str]:
        """Try each once; those that failed are returned, after they said why."""
        failed = []
        for name, errand in self.all():
            if name in self._done and name != "spool":  # which every life opens for itself
                continue
            if name == "spool" and self._opened:
                continue
            try:
                errand()
            except (EdgeGuardError, OSError) as error:
                self._say("said", f"{name}: {error}")
                failed.append(name)
            else:
                self._opened = self._opened or name == "spool"
                self._done.add(name)
                self._say("done", name)
        return failed

    def _key(self) -> None:
        seed = keys.ensure_device_key(self._state)
        self._say("key", cose.public_of(seed).hex())

    def _revision(self, revision: int) -> None:
        seed = keys.ensure_device_key(self._state)
        shelf = Store(self._state)
        with shelf.alone():
            if shelf.floor() < revision:
                device = cose.device_id(cose.public_of(seed))
                baseline = compile_baseline(Policy(), {}, None, revision, NOW, device=device, parent=shelf.parent())
                shelf.install(sign(baseline, seed), baseline)
        self._say("revision", revision)

    def _record(self, name: str) -> None:
        """Answered when it is durable. SpoolError is all that a spool may raise."""
        try:
            if name not in self._waiting:
                self._waiting.append(name)
                record = compose.state("start", Moment(1000, NOW, 2), f"{name} {'x' * 600}")
                self._spool.append(record)
            self._spool.commit()
        except OSError as error:
            raise AssertionError("the spool let an OSError through") from error
        self._say("records", [self._spool.status.next[0] - 1, name])

    def _seal(self) -> None:
        try:
            self._spool.commit()
            self._turns += 1
            self._spool.rotate(self._turns * 10**9, force=True)
        finally:
            done = seal.run(self.settings, drop_privileges=False)
            self._spool.refresh()
        if done["key"]:
            self._say("said", f"seal: {done['key']}")
        if done["problems"] or done["quarantined"] or done["evicted"] or done["spoiled"]:
            raise AssertionError(done)
        directory = f"{self.settings.paths.exchange}/outbox"
        for name in outbox.listing(directory):
            self._say("segment", [name.file, sha256(outbox.read(directory, name)).hexdigest()])

    def _accept(self, number: int) -> None:
        keeping = Keeping(Loop(), self.settings)
        rule = Rule(id="r", kind="sysctl", code="EG-SYS-001", title="", severity=Severity.LOW)
        seen = Observation("sysctl", f"net.test{number}", {"value": "1"}, 1)
        keeping.ledger.apply([Result(rule, seen, Outcome.FAIL, (), {"value": "0"}, {"value": "1"})], 1)
        finding = next(one for one in keeping.ledger.all() if one.subject == seen.subject)
        keeping.ledger.accept(finding.id, "anna", "it is right", NOW)
        if not keeping.save(durable=True):
            raise OSError("the ledger was not saved")
        self._say("accepted", finding.id)

    def _act(self, number: int) -> None:
        undo = UndoStore(f"{self.settings.paths.state}-act/undo")
        record = Record(f"F-{number}-{NOW}", f"F-{number}", "set-sysctl", "net.test", NOW, INTENDED, {"was": "0"})
        for state in (INTENDED, DONE):
            undo.write(record._replace(state=state))
            self._say("act", [record.id, state])

    def _packages(self, number: int) -> None:
        """What a helper does after an upgrade."""
        seed = keys.ensure_device_key(self._state)
        os.makedirs(f"{self._state}/upgrades", exist_ok=True)
        entry = Entry(0o100755, 0, 0, number, "program", b"x" * 32)
        digest, size = overlay.write_manifest(self._state, [Block(b"/usr/bin", [b"tool"], [entry])])
        before = overlay.load(self._state, cose.public_of(seed), BASE)
        versions = {**(before.versions if before is not None else {}), f"tool{number}": "1"}
        found = overlay.Overlay(BASE, digest, size, versions, (), {})
        overlay.install(self._state, found, seed)
        self._say("packages", number)


def check(base: str, told: list[tuple[str, Any]]) -> Iterator[str]:
    """What a new start finds: whole, and with all that was answered. Yields what is wrong."""
    settings = settings_of(base)
    state = settings.paths.state
    answers: dict[str, list[Any]] = {}
    for what, value in told:
        answers.setdefault(what, []).append(value)
    for key in answers.get("key", []):
        if cose.public_of(cose.load_seed([f"{state}/keys/device.key"])).hex() != key:
            yield "another key"
    if os.path.exists(f"{state}/keys/device.pub"):
        public = keys.device_public(state)
        loaded = Store(state).load_verified([public], cose.device_id(public), NOW)
        if loaded.refused or (loaded.baseline.revision if loaded.baseline else 0) < max(answers.get("revision", [0])):
            yield f"baselines: {loaded.refused}, in force {loaded.name}, answered {answers.get('revision')}"
    yield from _brought(state, answers)
    yield from _words(state, answers)
    yield from _records(base, settings, answers)


def _brought(state: str, answers: dict[str, list[Any]]) -> Iterator[str]:
    if not os.path.exists(overlay.place(state)):
        if "packages" in answers:
            yield "what packages brought is gone"
        return
    found = overlay.load(state, keys.device_public(state), BASE)
    if found is None or not {f"tool{number}" for number in answers.get("packages", [])} <= found.versions.keys():
        yield f"packages: {found}, answered {answers.get('packages')}"
        return
    with open(overlay.manifest_path(state, found.sha256), "rb") as file:
        if Reader(file.fileno()).lookup(b"/usr/bin/tool") is None:
            yield "what packages brought cannot be read"


def _words(state: str, answers: dict[str, list[Any]]) -> Iterator[str]:
    accepted = answers.get("accepted", [])
    if os.path.exists(f"{state}/ledger.cbor") or accepted:
        with open(f"{state}/ledger.cbor", "rb") as file:
            ledger = Ledger.from_cbor(file.read())
        for finding in accepted:
            if not ledger.is_accepted(finding):
                yield f"{finding} was accepted"
    acts = dict(answers.get("act", []))
    if os.path.isdir(f"{state}-act/undo"):
        undo = UndoStore(f"{state}-act/undo")
        known = {record.id: record.state for record in undo.all()}
        files = [name for name in os.listdir(f"{state}-act/undo") if not name.startswith(".")]
        if len(known) != len(files):
            yield f"undo records: {files}, readable {known}"
        for identity, written in acts.items():
            if known.get(identity) not in (written, DONE):
                yield f"act {identity} was {written}, is {known.get(identity)}"
    elif acts:
        yield "the undo records are gone"


def _records(base: str, settings: Settings, answers: dict[str, list[Any]]) -> Iterator[str]:
    """Sealed to the last; under each number what was answered, and no number without a record."""
    directory = f"{base}/exchange/outbox"
    if not os.path.exists(f"{settings.paths.state}/keys/device.key"):
        return
    spool = Spool(f"{settings.paths.state}/spool", directory, b"the next boot...", size=JOURNAL)
    spool.open()
    yield from spool.damaged
    for turn in range(1, 4):
        spool.rotate(turn * 10**10, force=True)
        done = seal.run(settings, audit=True, drop_privileges=False)
        yield from map(json.dumps, (*done["problems"], *done["quarantined"], *done["evicted"]))
        spool.refresh()
    spool.close()
    texts: list[str] = []
    for name in outbox.listing(directory):
        segment = wire.decode_segment(cose.parse1(outbox.read(directory, name)).payload)
        if segment.header.first != len(texts) + 1:
            yield f"{name.file} begins at {segment.header.first}, expected {len(texts) + 1}"
        texts += [str(record.fields[1]).split(" ", 1)[0] for record in segment.records]
    for sequence, text in answers.get("records", []):
        if sequence > len(texts) or text not in texts[:sequence]:
            yield f"record {sequence} was {text}; there are {len(texts)}"
    for file, digest in answers.get("segment", []):
        name = outbox.parse_name(file)
        if name is None or sha256(outbox.read(directory, name)).hexdigest() != digest:
            yield f"{file} is another than it was"
