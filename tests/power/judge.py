"""Is this state directory whole, and does it hold all that was answered? Asked with the product's own code.

`judge` returns what is wrong, in words. Only what the product itself calls whole passes; where it would quietly go
on with something torn, what it read is compared with what was written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from edgeguard.baseline.document import Baseline
from edgeguard.baseline.store import Store
from edgeguard.codec import cose
from edgeguard.daemon.keeping import ledger_path
from edgeguard.daemon.signing import check_manifest, trust_of
from edgeguard.daemon.sweeping import now_ms
from edgeguard.errors import DecodeError, EdgeGuardError
from edgeguard.evaluate.ledger import Ledger
from edgeguard.records import examine, outbox, receipts, seal, wire
from edgeguard.records.certify import Keys
from edgeguard.records.outbox import Name
from edgeguard.records.receipts import Receipt
from edgeguard.records.spool import Spool
from edgeguard.records.wire import Record
from edgeguard.remediations import carry
from edgeguard.remediations.undo import DONE, FAILED, REVERTED, UndoStore
from edgeguard.sensors.observed import Reader
from edgeguard.settings import Settings
from tests.power.busy import COLLECTOR_KEY, EVIL, Fact, Facts, act_world
from tests.power.guarded import Guarded

LAST_BOOT = b"the boot after..."


def judge(guarded: Guarded, facts: Facts, moment: int) -> list[str]:
    """Everything, in the order in which a start comes by it."""
    promised = facts.until(moment)
    settings = guarded.settings
    if not os.path.isdir(f"{settings.paths.state}/spool"):
        return [f"nothing is there, but {fact}" for fact in promised]
    return [
        *_keys(settings, promised),
        *_baselines(settings, promised),
        *_ledger(settings, promised),
        *_caches(settings),
        *_acts(guarded, promised),
        *_spool(settings, facts, promised),
    ]


def values(promised: list[Fact], what: str) -> list[Any]:
    return [fact.value for fact in promised if fact.what == what]


# -- keys and baselines


def _keys(settings: Settings, promised: list[Fact]) -> Iterator[str]:
    if not (keys := values(promised, "key")):
        return
    path = f"{settings.paths.state}/keys/device.key"
    try:
        public = cose.public_of(cose.load_seed([path]))
    except (OSError, DecodeError) as error:
        yield f"the device key: {error}"
        return
    if public != keys[0]:
        yield "another device key than was published"


def _baselines(settings: Settings, promised: list[Fact]) -> Iterator[str]:
    revision = max(values(promised, "revision"), default=0)
    shelf = Store(settings.paths.state)
    if not revision and not shelf._names(".egb"):
        return
    trust = trust_of(settings)
    loaded = shelf.load_verified(trust.trusted, trust.device, now_ms())
    for refused in loaded.refused:
        yield f"baseline {refused.name}: {refused.error}"
    if loaded.baseline is None or loaded.baseline.revision < revision:
        yield f"revision {revision} was in force, now it is {loaded.baseline and loaded.baseline.revision}"
    if loaded.baseline is not None:
        try:
            check_manifest(settings, loaded.baseline)
        except EdgeGuardError as error:
            yield f"baseline {loaded.baseline.revision}: {error}"
    for name, kept in shelf.history(trust.trusted):
        if not isinstance(kept, Baseline):
            yield f"history {name}: {kept}"


def _ledger(settings: Settings, promised: list[Fact]) -> Iterator[str]:
    words: dict[str, str] = {}
    for fact in promised:
        if fact.what in ("accepted", "retracted", "asked"):
            words[fact.value] = fact.what
    try:
        ledger = Ledger.from_cbor(Path(ledger_path(settings.paths)).read_bytes())
    except FileNotFoundError:
        ledger = Ledger()
    except DecodeError as error:
        yield f"ledger.cbor: {error}"
        return
    for finding, word in words.items():
        if word == "accepted" and not ledger.is_accepted(finding):
            yield f"{finding} was accepted, and is not any more"
        if word == "retracted" and ledger.is_accepted(finding):
            yield f"the acceptance of {finding} was taken back, and stands again"


def _caches(settings: Settings) -> Iterator[str]:
    """observed.db and the protected copies: each is whole or not there under its name."""
    state = settings.paths.state
    try:
        with open(f"{state}/observed.db", "rb") as file:
            reader = Reader(file)
            while reader.current is not None:
                reader.current.looks()
                reader.advance()
    except FileNotFoundError:
        pass
    except DecodeError as error:
        yield str(error)
    for entry in os.scandir(f"{state}/vault") if os.path.isdir(f"{state}/vault") else ():
        data = Path(entry.path).read_bytes()
        names = (sha256(data).hexdigest(), blake2b(data, digest_size=32).hexdigest())  # the processor decides
        if not entry.name.startswith(".") and entry.name not in names:
            yield f"the protected copy {entry.name} has other content"


# -- what was done


def _acts(guarded: Guarded, promised: list[Fact]) -> Iterator[str]:
    """Whatever a cut left half done is ended by `recover`, and no file is lost on the way."""
    world = act_world(guarded)
    if not os.path.isdir(world.undo):
        for value in values(promised, "act"):
            yield f"act {value} is not known any more"
        return
    undo = UndoStore(world.undo)
    names = [name for name in os.listdir(world.undo) if not name.startswith(".")]
    if len(undo.all()) != len(names):
        yield f"{len(names)} undo records, {len(undo.all())} of them readable"
    told = dict(values(promised, "act"))
    for record in undo.all():
        expected = told.pop(record.finding, "")
        if expected == REVERTED and record.state != REVERTED:
            yield f"{record.finding} was taken back, now it is {record.state}"
        if expected == DONE and record.state not in (DONE, "reverting", REVERTED):
            yield f"{record.finding} was done, now it is {record.state}"
    for finding, state in told.items():
        yield f"{finding} was {state}, its undo record is gone"
    carry.recover(world, undo, 1_900_000_000_000)
    states = {f"evil-{int(record.finding[2:])}": record for record in undo.all()}
    for name in values(promised, "evil"):
        yield from _evil(world.quarantine, f"{world.root}/etc/{name}", name, states.get(name))


def _evil(quarantine: str, path: str, name: str, record: Any) -> Iterator[str]:
    """It stands where it stood, or it is in the quarantine and a record says so."""
    content = EVIL + name.removeprefix("evil-").encode()
    if record is None or record.state in (FAILED, REVERTED):
        if not os.path.exists(path) or Path(path).read_bytes() != content:
            yield f"{name} should stand where it stood ({record and record.state})"
        return
    kept = Path(quarantine) / record.plan["before"]["kept"]
    if not (kept / "content").exists() or not (kept / "manifest.json").exists():
        yield f"{name} was taken away, and the quarantine does not have it"
        return
    if record.state != DONE or os.path.exists(path):
        yield f"{name} is {record.state} after recovery, and it is {'' if os.path.exists(path) else 'not '}there"
    elif (kept / "content").read_bytes() != content or not _described(kept / "manifest.json"):
        yield f"{name} in the quarantine is not what was taken away"


def _described(manifest: Path) -> bool:
    try:
        return "path" in json.loads(manifest.read_text())
    except ValueError:
        return False


# -- records


def _spool(settings: Settings, facts: Facts, promised: list[Fact]) -> Iterator[str]:
    """Opened, sealed to the last record, and then every record compared with what was written under its number."""
    exchange = settings.paths.exchange
    Path(f"{settings.paths.runtime}/epoch.key").unlink(missing_ok=True)  # memory; the power was cut
    spool = Spool(f"{settings.paths.state}/spool", f"{exchange}/outbox", LAST_BOOT[:16])
    spool.open()
    for name in spool.damaged:
        yield f"{name} was set aside"
    if not os.path.exists(f"{settings.paths.state}/keys/device.key"):
        spool.close()
        return
    for turn in (1, 2):  # what was closed already, and what was being written
        spool.rotate(turn * 10**9, force=True)
        done = seal.run(settings, audit=True, drop_privileges=False)
        for problem in (*done["quarantined"], *done["evicted"], *done["problems"]):
            yield f"sealer: {problem}"
        spool.refresh()
    spool.close()
    receipt = _receipt(settings)
    found: dict[tuple[int, int], Record] = {}
    for stream in range(4):
        yield from _chain(settings, stream, receipt, found)
    for key, record in found.items():
        if key in facts.records and not _same(record, facts.records[key]):
            yield f"record {key} is {record}, and was {facts.records[key]}"
    yield from _all_there(settings, facts, promised, receipt, found)


def _public(settings: Settings) -> bytes:
    """From the private key: between making that and publishing this a cut may come."""
    return cose.public_of(cose.load_seed([f"{settings.paths.state}/keys/device.key"]))


def _receipt(settings: Settings) -> Receipt | None:
    public = _public(settings)
    try:
        data = receipts.read(f"{settings.paths.state}/spool/receipt.egr")
    except FileNotFoundError:
        return None
    return receipts.verified(data, [COLLECTOR_KEY], cose.device_id(public))


def _chain(
    settings: Settings, stream: int, receipt: Receipt | None, found: dict[tuple[int, int], Record]
) -> Iterator[str]:
    """One stream's segments: signed, in one chain, their records without a hole."""
    directory = f"{settings.paths.exchange}/outbox"
    keys = Keys([_public(settings)])
    for number in outbox.epochs(directory):
        keys.admit(outbox.read_epoch(directory, number))
    names = [name for name in outbox.listing(directory) if name.stream == stream]
    previous, following = wire.NO_PREVIOUS, 1
    if names and names[0].sequence > 1:
        if receipt is None or not receipt.covers(Name(stream, names[0].sequence - 1)):
            yield f"{names[0].file} is the first, and no receipt covers what was before"
        previous, following = b"", 0
    for name in names:
        data = outbox.read(directory, name)
        segment = examine.opened(data, keys)
        header = segment.header
        if header.previous != previous and previous:
            yield f"{name.file} does not follow the one before it"
        if header.first != following and following:
            yield f"{name.file} begins with record {header.first}, expected {following}"
        previous, following = sha256(data).digest(), header.first + header.n
        found.update({(stream, header.first + at): record for at, record in enumerate(segment.records)})


def _same(one: Record, other: Record) -> bool:
    """Equal but for the label of time, which is the segment's."""
    return one._replace(wall=None) == other._replace(wall=None)


def _all_there(
    settings: Settings,
    facts: Facts,
    promised: list[Fact],
    receipt: Receipt | None,
    found: dict[tuple[int, int], Record],
) -> Iterator[str]:
    """What was shown as logged is here, or a receipt covers it; what was sent is what we have."""
    for sequence in range(1, max(values(promised, "sequence"), default=0) + 1):
        if (0, sequence) not in found and not _sent(facts, receipt, sequence):
            yield f"record {sequence} was shown as logged, and is gone"
    for file, digest in values(promised, "sent"):
        name = outbox.parse_name(file)
        assert name is not None
        try:
            own = sha256(outbox.read(f"{settings.paths.exchange}/outbox", name)).digest()
        except FileNotFoundError:
            if receipt is None or not receipt.covers(name):
                yield f"{file} was sent, there is no receipt, and it is gone"
            continue
        if own != digest:
            yield f"{file} is not what was sent under this name"


def _sent(facts: Facts, receipt: Receipt | None, sequence: int) -> bool:
    """Was this record of the findings in a segment that the receipt covers?"""
    head = receipt.head(0) if receipt else None
    if head is None:
        return False
    data = facts.signed[Name(0, head.sequence).file]
    header = wire.decode_header(cose.parse1(data).payload)
    return sequence < header.first + header.n
