"""Room: what goes first, that a signed word goes before, and that no kill, full disk or damage makes a hole of it."""

import errno
import os
import shutil
from hashlib import sha256

import pytest
from small_world import Device, finding, moment, state

from edgeguard.codec import cose
from edgeguard.collector import store
from edgeguard.collector.ingest import Ingest
from edgeguard.errors import DecodeError, SettingsError
from edgeguard.linux import durable
from edgeguard.model import Severity, Transition
from edgeguard.records import compose, evidence, holdings, losses, outbox, quota, registry, wire
from edgeguard.records.losses import DAMAGED, EVICTED, Losses
from edgeguard.records.outbox import Name
from edgeguard.records.quota import Disk
from edgeguard.records.receipts import Head, Receipt
from edgeguard.records.wire import Drop
from edgeguard.settings import parse

COLLECTOR = b"\x09" * 32
MIB = 1 << 20
BLOCK = quota.BLOCK


def names(device):
    return [tuple(name) for name in outbox.listing(device.outbox)]


def drops(device):
    """The drops of the newest segment, and those of the file."""
    # Of those that the clock of the file system cannot tell apart, the last in a sealer's order.
    newest = max(device.segments(), key=lambda file: (os.stat(os.path.join(device.outbox, file)).st_mtime_ns, file))
    segment = wire.decode_segment(cose.parse1(device.segments()[newest]).payload)
    return {(drop.stream, drop.first, drop.last) for drop in segment.drops if drop.reason == EVICTED}


def said(device):
    return {tuple(drop) for drop in losses.read(device.spool_directory, [device.public], device.id).drops}


def records(turn):
    """One of each stream, a block of the disk each."""
    return (
        state(f"{turn}"),
        compose.text(f"login {turn}", moment())._replace(stream=1),
        compose.metric({"rss_kib": turn}, moment()),
        compose.text(f"noise {turn}", moment()),
    )


def small(tmp_path, blocks):
    return Device(str(tmp_path / "device"), spool_bytes=blocks * BLOCK)


# --- how much ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "total", "free", "limit"),
    [
        (0, 1000, 900, 32),  # plenty
        (10, 1000, 110, 20),  # ten of them may still come
        (10, 1000, 100, 10),
        (10, 1000, 95, 5),
        (10, 1000, 0, 4),  # others have filled the disk: what is spared stays
        (0, 100_000, 100, 4),
    ],
)
def test_the_limit_is_the_quota_or_what_the_disk_leaves(used, total, free, limit):
    assert quota.limit(32 * MIB, 10, used * MIB, Disk(total * MIB, free * MIB)) == limit * MIB


def test_a_quota_below_what_is_spared_is_the_limit():
    assert quota.limit(MIB, 10, 0, Disk(100, 0)) == MIB


def test_small_segments_take_whole_blocks(device):
    device.record_and_seal(state("a"))
    (data,) = device.segments().values()
    assert len(data) < 400
    assert device.seal()["bytes"] == BLOCK == quota.blocks(len(data))


@pytest.mark.parametrize("value", ["0", "91", "-1", '"10"'])
def test_the_free_share_is_a_percentage(value):
    with pytest.raises(SettingsError, match="disk_free_percent"):
        parse(f"[budget]\ndisk_free_percent = {value}\n".encode())
    assert parse(b"[budget]\ndisk_free_percent = 90\n").budget.disk_free_percent == 90


# --- what ----------------------------------------------------------------------------------------------------------


def test_the_order_is_verbose_metrics_security_and_never_the_newest():
    sizes = {Name(stream, number): 10 for stream in range(4) for number in (1, 2, 3)}
    order = [(3, 1), (3, 2), (2, 1), (2, 2), (1, 1), (1, 2)]
    for count in range(8):
        assert quota.victims(sizes, count * 10) == order[:count]
    assert quota.findings(sizes, 10, {Name(0, 2)}) == [(0, 2)]
    assert quota.findings(sizes, 100, {Name(0, 2)}) == [(0, 2), (0, 1)]


def test_findings_stay_and_the_oldest_of_the_rest_go_first(tmp_path):
    device = small(tmp_path, 14)
    for turn in range(1, 9):
        result = device.record_and_seal(*records(turn))
        assert result["bytes"] <= result["limit"] == 14 * BLOCK
        assert not result["full"]
    kept = names(device)
    assert [name for name in kept if name[0] == 0] == [(0, number) for number in range(1, 9)]
    assert [name for name in kept if name[0] in (2, 3)] == [
        (2, 7),
        (2, 8),
        (3, 7),
        (3, 8),
    ]
    assert [name for name in kept if name[0] == 1] == [(1, 7), (1, 8)]
    assert said(device) == {(1, 6, EVICTED, 1), (1, 6, EVICTED, 2), (1, 6, EVICTED, 3)}


def test_findings_alone_too_many_go_by_repeats_and_then_by_age(tmp_path):
    """And each is named before."""
    device = small(tmp_path, 6)
    changed = finding("/usr/bin/again", Severity.LOW, id="F-AAAA")
    for turn in range(12):
        again = compose.finding(changed._replace(transition=Transition.CHANGED), moment(1000 + turn))
        result = device.record_and_seal(again if turn in (2, 3, 4, 8) else state(f"{turn}", 1000 + turn))
        assert result["bytes"] <= result["limit"]
    evicted = [name for name in range(1, 13) if (0, name) not in names(device)]
    assert evicted == [1, 2, 3, 4, 5, 6]
    assert said(device) == {(1, 6, EVICTED, 0)}
    assert losses.read(device.spool_directory, [device.public], device.id).generation > 2


def test_repeats_are_told_again_later_and_states_of_the_moment_too(device):
    def told(identity, turn):
        change = finding("/usr/bin/again", Severity.LOW, id=identity)
        return compose.finding(change._replace(transition=Transition.CHANGED), moment(turn))

    batches = (
        [told("F-AAAA", 1)],
        [state("kept")],
        [told("F-AAAA", 2), compose.state("sweep", moment(3))],
        [told("F-AAAA", 4), state("kept too")],
        [told("F-BBBB", 5)],
        [told("F-AAAA", 6), compose.state("sweep", moment(6))],
    )
    for batch in batches:
        device.record_and_seal(*batch)
    assert quota.repeats(device.outbox, outbox.listing(device.outbox)) == {Name(0, 1), Name(0, 3)}


# --- the word before the deed -------------------------------------------------------------------------------------


def test_the_word_goes_with_every_segment_until_the_collector_has_passed_it(tmp_path):
    device = small(tmp_path, 12)
    device.with_collector(cose.public_of(COLLECTOR))
    for turn in range(1, 6):
        device.record_and_seal(*records(turn))
    assert said(device)
    assert drops(device) == {(stream, first, last) for first, last, _, stream in said(device)}
    heads = [Head(3, 5, sha256(device.segments()["3-0000000000000005.egs"]).digest())]
    payload = receipts_payload(device, heads)
    with open(os.path.join(device.inbox, "receipt.egr"), "wb") as file:
        file.write(cose.sign1(payload, COLLECTOR, cose.RECEIPT_AAD))
    device.record_and_seal(state("after"))
    assert {stream for stream, _, _ in drops(device)} == {stream for _, _, _, stream in said(device)} - {3}


def receipts_payload(device, heads):
    from edgeguard.records import receipts

    return receipts.encode(Receipt(device.id, 1, tuple(heads)))


def test_killed_between_any_two_steps_nothing_is_gone_without_a_word(tmp_path, monkeypatch):
    device = small(tmp_path, 12)
    for turn in range(1, 4):
        device.record_and_seal(*records(turn))
    one = device.spool()
    one.open()
    for record in records(4):
        one.append(record)
    one.rotate(10**9, force=True)
    one.close()

    class Killed(BaseException):
        pass

    left = 0
    real = {name: getattr(os, name) for name in ("pwrite", "fsync", "replace", "fdatasync", "unlink")}

    def counting(name):
        def call(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real[name](*arguments, **keywords)

        return call

    finished, steps, expected = False, 0, None
    while not finished:
        copy = Device(str(tmp_path / "copy"), spool_bytes=12 * BLOCK)
        shutil.rmtree(tmp_path / "copy")
        shutil.copytree(tmp_path / "device", tmp_path / "copy")
        left, steps = steps, steps + 1
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counting(name))
            try:
                copy.seal()
                finished = True
            except Killed:
                pass
        report = own(copy)
        assert report.clean, (steps, [tuple(defect) for defect in report.defects])
        copy.seal()
        report = own(copy)
        assert report.clean, (steps, [tuple(defect) for defect in report.defects])
        expected = expected or names(copy)
        assert {name[0] for name in names(copy)} == {0, 1, 2, 3}
        assert [name for name in names(copy) if name[0] == 0] == [(0, number) for number in range(1, 5)]
    assert steps > 25


def own(device):
    exchange = device.settings.paths.exchange
    return evidence.own(evidence.Device(device.settings.paths.state, exchange, device.public, None))


def test_a_full_disk_gives_up_the_least_and_takes_the_rest(tmp_path, monkeypatch):
    """The word needs no room: it is there already."""
    device = Device(str(tmp_path / "device"))
    for turn in range(1, 4):
        device.record_and_seal(*records(turn))
    room = sum(quota.blocks(len(data)) for data in device.segments().values())
    real = durable.put

    def write(path, data, mode):
        used = sum(quota.blocks(len(one)) for one in device.segments().values())
        if used + quota.blocks(len(data)) > room:
            raise OSError(errno.ENOSPC, "full")
        real(path, data, mode)

    monkeypatch.setattr(durable, "put", write)
    for turn in range(4, 9):
        assert not device.record_and_seal(*records(turn))["problems"]
    kept = names(device)
    assert [name for name in kept if name[0] == 0] == [(0, number) for number in range(1, 9)]
    assert [name for name in kept if name[0] == 3] == [(3, 7), (3, 8)]
    assert own(device).clean


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_makes_room_for_the_word_about_a_new_key_too(tmp_path, monkeypatch, full):
    """A start begins another epoch, and nothing is sealed before its statement is stored."""
    device = Device(str(tmp_path / "device"))
    for turn in range(1, 4):
        device.record_and_seal(*records(turn))
    room = _taken(device) + full * BLOCK  # without a block left for either, or with one for the statement only
    real = durable.put

    def write(path, data, mode):
        if _taken(device) + quota.blocks(len(data)) > room:
            raise OSError(errno.ENOSPC, "full")
        real(path, data, mode)

    monkeypatch.setattr(durable, "put", write)
    for turn in (4, 5):
        device.seal(started=True)
        assert not device.record_and_seal(*records(turn))["problems"]
    assert [name for name in names(device) if name[0] == 0] == [(0, number) for number in range(1, 6)]
    assert [name[1] for name in names(device) if name[0] == 3][-1] == 5
    assert own(device).clean


def _taken(device):
    """Bytes of the disk, statements about keys included."""
    return sum(quota.blocks(entry.stat().st_size) for entry in os.scandir(device.outbox))


def test_a_disk_full_of_other_things_keeps_findings_in_the_journal(tmp_path, monkeypatch):
    """Nothing of ours may go for it: the sealer says so, and the journal holds what it held."""
    device = Device(str(tmp_path / "device"))
    device.record_and_seal(state("a"))
    real = durable.put

    def write(path, data, mode):
        if path.endswith(".egs"):
            raise OSError(errno.ENOSPC, "full")
        real(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "put", write)
        with pytest.raises(OSError, match="full"):
            device.record_and_seal(state("b"))
    assert names(device) == [(0, 1)]
    device.seal()
    assert names(device) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("damage", ["flip", "garbage", "gone", "link", "other"])
def test_without_its_file_the_newest_segments_tell(tmp_path, damage):
    device = small(tmp_path, 12)
    for turn in range(1, 7):
        device.record_and_seal(*records(turn))
    device.record_and_seal(state("carries all"))
    before = said(device)
    path = os.path.join(device.spool_directory, losses.FILE)
    if damage == "flip":
        with open(path, "r+b") as file:
            for at in (60, losses.SLOT + 60):
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 1]))
    elif damage == "garbage":
        with open(path, "wb") as file:
            file.write(b"\xff" * 9000)
    elif damage == "gone":
        os.unlink(path)
    elif damage == "link":
        os.unlink(path)
        os.symlink("/etc/passwd", path)
    else:
        losses.write(
            device.spool_directory, Losses(99, (Drop(1, 99, EVICTED, 0),)), bytes(16),
            lambda payload: cose.sign1(payload, b"\x44" * 32, cose.LOSSES_AAD),
        )  # fmt: skip
        losses.write(
            device.spool_directory, Losses(100, (Drop(1, 99, EVICTED, 0),)), bytes(16),
            lambda payload: cose.sign1(payload, b"\x44" * 32, cose.LOSSES_AAD),
        )  # fmt: skip
    result = device.seal()
    assert bool(result["aside"]) == (damage != "gone")
    assert {(first, last, stream) for first, last, _, stream in before} == {tuple(row) for row in result["lost"]}
    device.record_and_seal(state("after"))
    assert drops(device) == {(stream, first, last) for first, last, _, stream in before}
    assert own(device).clean


def test_one_slot_torn_leaves_the_word_before(device):
    device.record_and_seal(state("a"))

    def sign(payload):
        return cose.sign1(payload, device.seed, cose.LOSSES_AAD)

    for number in (1, 2, 3):
        losses.write(device.spool_directory, Losses(number, (Drop(1, number, EVICTED, 3),)), device.id, sign)
    assert losses.read(device.spool_directory, [device.public], device.id).generation == 3
    with open(os.path.join(device.spool_directory, losses.FILE), "r+b") as file:
        file.seek(3 % 2 * losses.SLOT + 40)
        file.write(b"torn")
    found = losses.read(device.spool_directory, [device.public], device.id)
    assert found[:2] == (2, (Drop(1, 2, EVICTED, 3),))
    assert found.spoiled
    with pytest.raises(DecodeError):
        losses.read(device.spool_directory, [b"\x01" * 32], device.id)


def test_ranges_that_touch_are_one_and_their_number_is_bounded():
    assert losses.merged([Drop(1, 2, EVICTED, 3), Drop(3, 3, EVICTED, 3), Drop(5, 5, EVICTED, 3)]) == (
        Drop(1, 3, EVICTED, 3),
        Drop(5, 5, EVICTED, 3),
    )
    alternating = [Drop(number, number, EVICTED if number % 2 else DAMAGED, 1) for number in range(1, 301)]
    assert losses.merged(alternating) == (Drop(1, 300, DAMAGED, 1),)


def test_what_leaves_the_quarantine_keeps_its_explanation(device, monkeypatch):
    monkeypatch.setattr(holdings, "QUARANTINE_MAX", 2)
    for turn in range(6):
        device.record_and_seal(state(f"{turn}"))
    for number in (2, 3, 4, 5):
        os.truncate(os.path.join(device.outbox, Name(0, number).file), 50)
    device.seal(audit=True)
    device.record_and_seal(state("after"))
    device.record_and_seal(state("and after"))
    last = wire.decode_segment(cose.parse1(device.segments()[Name(0, 8).file]).payload)
    assert {number for drop in last.drops for number in range(drop.first, drop.last + 1)} == {2, 3, 4, 5}
    assert {drop.reason for drop in last.drops} == {DAMAGED}
    assert own(device).clean


# --- the collector -------------------------------------------------------------------------------------------------


def collector(tmp_path, device):
    database = store.connect(str(tmp_path / "collector.db"))
    ingest = Ingest(database, COLLECTOR, lambda: 1)
    return database, ingest, ingest.add_device("d", device.public)


def everything(device):
    return b"".join([*device.statements().values(), *device.segments().values()])


def test_the_collector_takes_the_gap_as_explained_and_its_head_goes_on(tmp_path):
    device = small(tmp_path, 12)
    device.with_collector(cose.public_of(COLLECTOR))
    database, ingest, known = collector(tmp_path, device)
    ingest.take(
        b"".join([*device.statements().values(), *device.segments().values()]), known
    ) if device.segments() else None
    first = device.record_and_seal(*records(1))
    assert not first["evicted"]
    ingest.take(
        b"".join([*device.statements().values(), *device.segments().values()]), known
    )  # the receipt is lost on the way
    for turn in range(2, 9):
        device.record_and_seal(*records(turn))
    assert said(device)
    device.record_and_seal(state("last"))
    ingest.take(b"".join(device.statements().values()), known)
    for data in device.segments().values():
        verdicts, receipt = ingest.take(data, known)
        assert all(verdict.taken for verdict in verdicts)
    with open(os.path.join(device.inbox, "receipt.egr"), "wb") as file:
        file.write(receipt)
    incidents = {row[0] for row in database.execute("SELECT DISTINCT name FROM incidents WHERE resolved IS NULL")}
    assert incidents == {"explained loss"}
    count = database.execute("SELECT count(*) FROM incidents WHERE name = 'explained loss'").fetchone()[0]
    assert count == len(drops(device)) == 3  # one for each stream, however often it was said
    result = device.seal()
    assert result["lost"] == []
    assert result["waiting"] == 0
    assert dict(result["receipt"]["heads"]) == {0: 9, 1: 8, 2: 8, 3: 8}
    device.record_and_seal(*records(10))
    assert own_with_receipts(device).clean
    database.close()


def own_with_receipts(device):
    paths = device.settings.paths
    return evidence.own(evidence.Device(paths.state, paths.exchange, device.public, cose.public_of(COLLECTOR)))


def test_a_receipt_up_to_the_gap_is_no_splice(tmp_path):
    """The collector has passed what was let go before the next one came: its receipt names an older hash."""
    device = small(tmp_path, 12)
    device.with_collector(cose.public_of(COLLECTOR))
    database, ingest, known = collector(tmp_path, device)
    for turn in range(1, 7):
        device.record_and_seal(*records(turn))
    findings = [data for file, data in device.segments().items() if file.startswith("0-")]
    _, receipt = ingest.take(b"".join([*device.statements().values(), *findings]), known)
    with open(os.path.join(device.inbox, "receipt.egr"), "wb") as file:
        file.write(receipt)
    result = device.seal()
    assert result["problems"] == []
    assert own_with_receipts(device).clean
    database.close()


def test_a_hole_without_a_word_is_an_incident_still(tmp_path):
    device = small(tmp_path, 100)
    database, ingest, known = collector(tmp_path, device)
    for turn in range(1, 4):
        device.record_and_seal(*records(turn))
    os.unlink(os.path.join(device.outbox, Name(1, 2).file))
    device.record_and_seal(*records(4))
    ingest.take(everything(device), known)
    found = database.execute("SELECT name, stream, seq FROM incidents WHERE resolved IS NULL").fetchall()
    assert found == [("gap", 1, 2)]
    database.close()


def test_reasons_have_their_numbers():
    assert registry.REASONS[EVICTED] == "evicted"
    assert registry.REASONS[DAMAGED] == "damaged"
