"""Every way of tampering with a log is found under its own name, and nothing is found in an honest one."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import BOOT_ID, Device, moment, state, statement

from edgeguard.codec import cbor, cose
from edgeguard.records import compose, epoch, evidence, outbox, receipts, wire
from edgeguard.records.defects import Name, Report
from edgeguard.records.outbox import Name as File
from edgeguard.records.receipts import Head, Receipt

TREE = Path(__file__).resolve().parents[3]
COLLECTOR = b"\x09" * 32
OTHER = b"\x02" * 32
LENGTH = 8  # segments of the stream of findings in the honest log


def grow(device, words, boot_id=BOOT_ID):
    """One segment of findings and one of verbose for each word, by the real spool and the real sealer."""
    for word in words:
        spool = device.spool(boot_id)
        spool.open()
        for record in (state(word), state(f"{word} again"), compose.text(word, moment())):
            spool.append(record)
        spool.rotate(10_000_000, force=True)
        spool.close()
        device.seal()
        keep_key(device)
    return device


def keep_key(device):
    """As a thief does who comes by in time."""
    device.keys = getattr(device, "keys", {})
    if os.path.exists(f"{device.settings.paths.runtime}/epoch.key"):
        device.keys[max(outbox.epochs(device.outbox))] = device.epoch_seed()


def confirm(device, upto, *, seed=COLLECTOR, owner=None, stream=0, place="inbox"):
    """A receipt for what lies in the outbox now."""
    data = device.segments()[File(stream, upto).file]
    payload = receipts.encode(Receipt(owner or device.id, 1, (Head(stream, upto, sha256(data).digest()),)))
    path = f"{device.inbox}/receipt.egr" if place == "inbox" else f"{device.spool_directory}/receipt.egr"
    Path(path).write_bytes(cose.sign1(payload, seed, cose.RECEIPT_AAD))
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A log of eight segments of findings, over two starts; the collector has confirmed them, none is let go yet."""
    device = Device(str(tmp_path_factory.mktemp("honest")))
    device.with_collector(cose.public_of(COLLECTOR))
    Path(f"{device.settings.paths.state}/keys/device.pub").write_text(device.public.hex() + "\n")
    grow(device, "abcd")
    grow(device, "efgh", b"second boot.....")
    confirm(device, LENGTH)
    return device


class Copy:
    """An honest log of which a copy may be spoiled."""

    def __init__(self, device, root):
        self.device = device
        self.root = Path(root)
        base = Path(device.settings.paths.state).parent
        if self.root.exists():
            shutil.rmtree(self.root)
        shutil.copytree(base, self.root)
        self.out = self.root / "exchange/outbox"

    def file(self, sequence, stream=0):
        return self.out / File(stream, sequence).file

    def own(self):
        return evidence.own(self._device())

    def _device(self):
        return evidence.Device(
            f"{self.root}/state", f"{self.root}/exchange", self.device.public, cose.public_of(COLLECTOR)
        )

    def directory(self):
        report = Report()
        source = f"{self.root}/exchange/inbox/receipt.egr"
        known = evidence.receipt(source, [cose.public_of(COLLECTOR)], self.device.id, "r", report)
        return evidence.directory(str(self.out), [self.device.public], known, report)

    def header(self, sequence, stream=0):
        return wire.decode_segment(cose.parse1(self.file(sequence, stream).read_bytes()).payload)

    def rewrite(self, sequence, seed=None, under=None, drops=(), records=None, **changes):
        """A segment made anew, as somebody can make it who has the key of the epoch."""
        stream = changes.get("stream", 0)
        segment = self.header(sequence, stream)
        header = segment.header._replace(**changes)
        payload = wire.encode_segment(header, records or segment.records, None, drops)
        data = cose.sign1(payload, seed or self.device.keys[header.epoch], cose.SEGMENT_AAD)
        self.file(under or sequence, stream).write_bytes(data)
        return sha256(data).digest()


def flip(copy, sequence=4, at=-20):
    data = bytearray(copy.file(sequence).read_bytes())
    data[at] ^= 1
    copy.file(sequence).write_bytes(data)


def delete(copy, *sequences):
    for sequence in sequences:
        copy.file(sequence).unlink()


def truncate(copy):
    os.truncate(copy.file(4), 90)


def swap(copy):
    one, two = copy.file(3).read_bytes(), copy.file(4).read_bytes()
    copy.file(3).write_bytes(two)
    copy.file(4).write_bytes(one)


def splice(copy):
    """Made anew with the device's own key, and joined to what was never there."""
    copy.rewrite(7, previous=b"\x66" * 32)
    delete(copy, 8)
    copy.root.joinpath("exchange/inbox/receipt.egr").unlink()


def pass_over(copy):
    """It names the one before the one before it, as after damage, but nobody said that 6 was damaged."""
    copy.rewrite(7, previous=sha256(copy.file(5).read_bytes()).digest())
    delete(copy, 8)
    copy.root.joinpath("exchange/inbox/receipt.egr").unlink()


def roll_back(copy):
    """The last is written again under a number that the collector confirmed."""
    copy.rewrite(8, records=[state("never happened")])


def foreign(copy):
    other = cose.device_id(cose.public_of(OTHER))
    copy.rewrite(4, seed=OTHER, device=other)


def for_another(copy):
    copy.rewrite(4, device=bytes(16))


def unconfirmed(copy):
    copy.root.joinpath("exchange/inbox/receipt.egr").unlink()


def old_epoch(copy):
    """The key of the first epoch was taken while it was in use, and signs in the second."""
    unconfirmed(copy)
    delete(copy, 8)
    copy.rewrite(7, epoch=1)


def later_key(copy):
    """Who has the key of the second epoch seals anew what was sealed in the first."""
    unconfirmed(copy)
    previous = sha256(copy.file(2).read_bytes()).digest()
    for sequence in range(3, LENGTH + 1):
        previous = copy.rewrite(sequence, epoch=2, boot=2, previous=previous)


def with_the_identity_key(copy):
    """It certifies keys; segments that it signs itself are nobody's."""
    copy.rewrite(4, seed=copy.device.seed)


def statement_file(copy, number=1):
    return copy.out / outbox.epoch_file(number)


def spoiled_statement(copy):
    data = bytearray(statement_file(copy, 2).read_bytes())
    data[-5] ^= 1
    statement_file(copy, 2).write_bytes(data)


def others_statement(copy):
    """Somebody without the identity key certifies his own."""
    other = statement(OTHER, 2)
    core = cose.parse1(other).payload.replace(cose.device_id(cose.public_of(OTHER)), copy.device.id)
    statement_file(copy, 2).write_bytes(cose.sign1(core, OTHER, cose.EPOCH_AAD))


def announced_by_another(copy):
    """Who has the identity key, but not the key of the epoch before, cannot announce an epoch in its name."""
    first = epoch.unverified(statement_file(copy, 1).read_bytes())
    made = statement(number=2, seed=OTHER, before=epoch.Before(1, first.public), announced_by=OTHER)
    statement_file(copy, 2).write_bytes(made)


def another_before(copy):
    """He names another key as that of the epoch before, and signs with it."""
    before = epoch.Before(1, cose.public_of(OTHER))
    seal_anew(copy, statement(number=2, seed=OTHER, before=before, announced_by=OTHER, boot=2, heads=heads(copy, 4)))


def twice_the_same_epoch(copy):
    """A clone begins an epoch of the same number."""
    (copy.out / "clone").mkdir()
    (copy.out / "clone" / outbox.epoch_file(2)).write_bytes(
        statement(number=2, seed=OTHER, boot=2, heads=heads(copy, 4))
    )


def heads(copy, sequence):
    """As after the fourth segment of both streams."""
    return tuple(
        epoch.Head(stream, sequence, sha256(copy.file(sequence, stream).read_bytes()).digest()[: epoch.HASH_SIZE])
        for stream in (0, 3)
    )


def seal_anew(copy, said):
    """All of the second epoch, with another key and its statement."""
    unconfirmed(copy)
    statement_file(copy, 2).write_bytes(said)
    for stream in (0, 3):
        previous = sha256(copy.file(4, stream).read_bytes()).digest()
        for sequence in range(5, LENGTH + 1):
            previous = copy.rewrite(sequence, seed=OTHER, previous=previous, stream=stream)


def tail_of_a_heartbeat(copy):
    """The last of the verbose is cut off; a sign of life among the findings had named it."""
    unconfirmed(copy)
    named = [(3, 8, sha256(copy.file(8, 3).read_bytes()).digest()[:8])]
    copy.rewrite(8, records=[compose.heartbeat(moment(), named, 3600), state("x")])
    copy.file(8, 3).unlink()


def other_than_the_heartbeat(copy):
    """The last of the verbose is another than the sign of life had named."""
    unconfirmed(copy)
    copy.rewrite(8, records=[compose.heartbeat(moment(), [(3, 7, b"\x55" * 8)], 3600), state("x")])


def tail_of_a_statement(copy):
    """The end of the first epoch is cut off; the second begins behind it."""
    unconfirmed(copy)
    delete(copy, 4, 5, 6, 7, 8)


def earlier_boot(copy):
    copy.root.joinpath("exchange/inbox/receipt.egr").unlink()
    delete(copy, 7, 8)
    copy.rewrite(6, boot=1)


def clone(copy):
    """The same number twice: the second lies in a folder of its own."""
    (copy.out / "clone").mkdir()
    data = copy.file(4).read_bytes()
    copy.rewrite(4, records=[state("elsewhere")])
    (copy.out / "clone" / File(0, 4).file).write_bytes(copy.file(4).read_bytes())
    copy.file(4).write_bytes(data)


def short_drop(copy):
    """4 and 5 are gone, a signed drop speaks of 4 only."""
    delete(copy, 4, 5, 8)
    copy.root.joinpath("exchange/inbox/receipt.egr").unlink()
    copy.rewrite(7, drops=[wire.Drop(4, 4, 1, 0)])


def edited_drop(copy):
    """An honest drop, widened in its bytes."""
    short_drop(copy)
    right = cose.parse1(copy.file(7).read_bytes())
    copy.rewrite(7, drops=[wire.Drop(4, 5, 1, 0)])
    wide = cose.parse1(copy.file(7).read_bytes())
    copy.file(7).write_bytes(b"\xd2" + cbor.encode([right.protected, {}, wide.payload, right.signature]))


def records_left_out(copy):
    copy.root.joinpath("exchange/inbox/receipt.egr").unlink()
    delete(copy, 6, 7, 8)
    copy.rewrite(5, first=12)


def records_again(copy):
    copy.root.joinpath("exchange/inbox/receipt.egr").unlink()
    delete(copy, 6, 7, 8)
    copy.rewrite(5, first=3)


def forged_receipt(copy):
    path = copy.root / "exchange/inbox/receipt.egr"
    payload = cose.parse1(path.read_bytes()).payload
    path.write_bytes(cose.sign1(payload, OTHER, cose.RECEIPT_AAD))


def replayed_receipt(copy):
    path = copy.root / "exchange/inbox/receipt.egr"
    payload = receipts.encode(Receipt(bytes(16), 1, ()))
    path.write_bytes(cose.sign1(payload, COLLECTOR, cose.RECEIPT_AAD))


def not_files(copy):
    copy.file(4).unlink()
    os.mkfifo(copy.file(4))
    copy.file(5).unlink()
    copy.file(5).symlink_to("/etc/passwd")
    copy.file(6).write_bytes(bytes(300 * 1024))
    copy.file(7).unlink()
    copy.file(7).mkdir()


def key_id(copy):
    data = copy.file(4).read_bytes()
    copy.file(4).write_bytes(data.replace(cose.kid_of(copy.device.public), b"\0" * 8, 1))


TAMPERING = {
    "a flipped bit": (flip, {Name.ALTERED}),
    "a flipped bit of the key's name": (key_id, {Name.ALTERED}),
    "deleted in the middle": (lambda copy: delete(copy, 4), {Name.MISSING}),
    "two holes": (lambda copy: delete(copy, 3, 5), {Name.MISSING}),
    "deleted at the end": (lambda copy: delete(copy, 7, 8), {Name.TAIL}),
    "all deleted": (lambda copy: delete(copy, *range(1, 9)), {Name.TAIL}),
    "a file cut off": (truncate, {Name.TRUNCATED}),
    "an empty file": (lambda copy: copy.file(4).write_bytes(b""), {Name.TRUNCATED}),
    "something behind it": (lambda copy: copy.file(4).write_bytes(copy.file(4).read_bytes() + b"x"), {Name.ALTERED}),
    "two exchanged": (swap, {Name.REORDERED}),
    "one under another number": (lambda copy: copy.file(8).rename(copy.file(9)), {Name.REORDERED}),
    "one twice": (lambda copy: shutil.copy(copy.file(3), copy.file(9)), {Name.INSERTED}),
    "one over another": (lambda copy: shutil.copy(copy.file(3), copy.file(4)), {Name.INSERTED, Name.MISSING}),
    "spliced": (splice, {Name.SPLICED}),
    "spliced around one": (pass_over, {Name.SPLICED}),
    "re-sealed with a later key": (lambda copy: copy.rewrite(4, seed=OTHER), {Name.RESEALED}),
    "numbers used again": (roll_back, {Name.ROLLED_BACK}),
    "another device's": (foreign, {Name.FOREIGN}),
    "signed for another device": (for_another, {Name.FOREIGN}),
    "an old epoch": (old_epoch, {Name.OLD_EPOCH}),
    "an earlier start": (earlier_boot, {Name.TIME_BACK}),
    "a cloned device": (clone, {Name.EQUIVOCATION}),
    "a drop that does not cover the gap": (short_drop, {Name.MISSING}),
    "an edited drop": (edited_drop, {Name.ALTERED, Name.MISSING}),
    "sealed anew with a later key": (later_key, {Name.SEALED_LATER, Name.ROLLED_BACK}),
    "signed with the identity key": (with_the_identity_key, {Name.RESEALED}),
    "a statement with a flipped bit": (spoiled_statement, {Name.ALTERED, Name.UNCERTIFIED}),
    "no statement": (lambda copy: statement_file(copy, 2).unlink(), {Name.UNCERTIFIED}),
    "another's statement": (others_statement, {Name.FORGED_EPOCH, Name.UNCERTIFIED}),
    "announced by another": (announced_by_another, {Name.FORGED_EPOCH, Name.UNCERTIFIED}),
    "another epoch before": (another_before, {Name.FORGED_EPOCH}),
    "two epochs with one number": (twice_the_same_epoch, {Name.EQUIVOCATION}),
    "the end cut off, after a sign of life": (tail_of_a_heartbeat, {Name.TAIL}),
    "another end than the sign of life named": (other_than_the_heartbeat, {Name.ROLLED_BACK}),
    "the end cut off, before another epoch": (tail_of_a_statement, {Name.TAIL}),
    "records left out": (records_left_out, {Name.RECORDS_MISSING}),
    "records numbered again": (records_again, {Name.RECORDS_TWICE}),
    "a forged receipt": (forged_receipt, {Name.FORGED_RECEIPT}),
    "another device's receipt": (replayed_receipt, {Name.FORGED_RECEIPT}),
    "no files": (not_files, {Name.NOT_A_FILE}),
}


@pytest.mark.parametrize("what", TAMPERING)
@pytest.mark.parametrize("look", ["own", "directory"])
def test_each_tampering_has_its_name(honest, tmp_path, what, look):
    tamper, names = TAMPERING[what]
    copy = Copy(honest, tmp_path / "copy")
    receipt = copy.root / "exchange/inbox/receipt.egr"
    assert getattr(copy, look)().clean
    tamper(copy)
    if not receipt.exists() and look == "directory":
        report = evidence.directory(str(copy.out), [honest.public])
    else:
        report = getattr(copy, look)()
    assert set(report.counts) == names, [tuple(defect) for defect in report.defects]


# --- honest logs ---------------------------------------------------------------------------------------------------


def verified(device):
    """What `edgeguard log verify` sees of a device of this test."""
    return evidence.own(
        evidence.Device(
            device.settings.paths.state, device.settings.paths.exchange, device.public, cose.public_of(COLLECTOR)
        )
    )


def clean(device):
    report = verified(device)
    assert report.clean, [tuple(defect) for defect in report.defects]
    return report


def spoil(device, sequence):
    path = f"{device.outbox}/{File(0, sequence).file}"
    data = bytearray(Path(path).read_bytes())
    data[-5] ^= 1
    Path(path).write_bytes(data)


def test_what_the_receipt_let_go_is_not_missing(device):
    device.with_collector(cose.public_of(COLLECTOR))
    grow(device, "abc")
    confirm(device, 2)
    grow(device, "d")
    assert File(0, 1).file not in device.segments()
    assert clean(device).segments == 2 + 4
    confirm(device, 4)
    grow(device, "")
    device.seal()
    assert clean(device).segments == 1 + 4
    os.unlink(f"{device.inbox}/receipt.egr")  # the sealer keeps its own copy
    clean(device)
    os.unlink(f"{device.spool_directory}/receipt.egr")
    assert set(verified(device).counts) == {Name.BEGINNING}


@pytest.mark.parametrize("spoiled", [[4], [2], [3, 4], [1, 2, 3, 4], [1, 3], [2, 3]])
def test_damage_that_the_device_tells_is_a_loss_and_no_defect(device, spoiled):
    """Before the sealer looks it is damage; afterwards it is set aside, and the next segment says so."""
    grow(device, "abcd")
    for sequence in spoiled:
        spoil(device, sequence)
    assert verified(device).counts == {Name.ALTERED: len(spoiled)}
    device.seal(audit=True)
    clean(device)
    grow(device, "ef")
    report = clean(device)
    assert {item.first for item in report.explained} >= set(spoiled)
    export = evidence.directory(device.outbox, [device.public])  # the quarantine stays on the device
    assert export.clean, [tuple(defect) for defect in export.defects]
    assert {item.reason for item in export.explained} == {"damaged"}


def test_damage_to_what_was_delivered(device):
    device.with_collector(cose.public_of(COLLECTOR))
    grow(device, "abc")
    confirm(device, 3)
    device.seal()
    spoil(device, 3)
    grow(device, "de")
    clean(device)


def test_at_the_quota_what_is_let_go_is_told(tmp_path):
    """Verbose segments do not fit: a signed word names them, here at once and for others with the next segment."""
    device = grow(Device(str(tmp_path)), "abcd")
    device.settings = device.settings._replace(budget=device.settings.budget._replace(spool_bytes=20_000))
    grow(device, "e")
    assert {(item.stream, item.first, item.last, item.reason) for item in clean(device).explained} == {
        (3, 1, 3, "evicted"),
        (0, 1, 1, "evicted"),
    }
    export = evidence.directory(device.outbox, [device.public])
    assert export.clean, [tuple(defect) for defect in export.defects]
    assert {item.reason for item in export.explained} == {"evicted"}


def test_a_segment_that_goes_missing_is_no_eviction(tmp_path):
    device = grow(Device(str(tmp_path)), "abcd")
    os.unlink(os.path.join(device.outbox, File(3, 2).file))
    device.settings = device.settings._replace(budget=device.settings.budget._replace(spool_bytes=24_000))
    grow(device, "e")
    report = verified(device)
    assert report.counts == {Name.BEGINNING: 1}
    assert {(item.stream, item.first, item.last) for item in report.explained} == {(3, 1, 1), (3, 3, 3)}


def test_clock_steps_and_restarts(device):
    for boot in range(3):
        spool = device.spool(f"boot {boot}".encode())
        spool.open()
        for wall in (5_000, 1_795_416_177_140, None, 7_000):
            spool.append(state("x", mono=100 + boot)._replace(wall=wall))
        spool.rotate(10**9, force=True)
        spool.close()
        device.seal()
    assert clean(device).segments == 12


def test_a_torn_journal_and_a_spoiled_one(device):
    """What a power cut leaves in the journal is no defect of the log."""
    spool = device.spool()
    spool.open()
    for word in "abc":
        spool.append(state(word))
    spool.commit()
    path = f"{device.spool_directory}/journal.0"
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: data.rindex(b"c")] + b"\0" * (len(data) - data.rindex(b"c")))
    grow(device, "d")
    assert "wait in the journal" not in " ".join(clean(device).notes)
    Path(f"{device.spool_directory}/journal.1").write_bytes(b"x" * 4096)
    assert verified(device).counts == {Name.ALTERED: 1}
    grow(device, "ef")
    clean(device)


def test_an_older_spool_put_back_is_seen_by_its_own_journal(device):
    grow(device, "ab")
    shutil.copytree(device.spool_directory, f"{device.spool_directory}.old")
    grow(device, "cd")
    shutil.rmtree(device.spool_directory)
    shutil.move(f"{device.spool_directory}.old", device.spool_directory)
    assert set(verified(device).counts) == {Name.ROLLED_BACK}


def test_what_the_sealer_lets_go_while_we_look(device, monkeypatch):
    device.with_collector(cose.public_of(COLLECTOR))
    grow(device, "abc")
    confirm(device, 2)
    real = evidence._files

    def slow(path, report):
        listed = list(real(path, report))
        device.seal()
        return listed

    monkeypatch.setattr(evidence, "_files", slow)
    assert clean(device).segments == 1 + 3


def test_a_receipt_that_comes_between_two_of_our_looks(device, monkeypatch):
    """The sealer follows it before we list the outbox: the front is gone, and the receipt that we had is older."""
    device.with_collector(cose.public_of(COLLECTOR))
    grow(device, "abcde")
    confirm(device, 2)
    real = evidence._receipts

    def then_another(*given):
        found = real(*given)
        monkeypatch.setattr(evidence, "_receipts", real)
        confirm(device, 4)
        device.seal()
        return found

    monkeypatch.setattr(evidence, "_receipts", then_another)
    assert clean(device).segments == 1 + 5


# --- any tampering -------------------------------------------------------------------------------------------------

CHANGES = st.one_of(
    st.tuples(st.just("byte"), st.integers(1, LENGTH), st.integers(0, 10_000), st.integers(1, 255)),
    st.tuples(st.just("delete"), st.integers(1, LENGTH)),
    st.tuples(st.just("permute"), st.permutations(range(1, LENGTH + 1))),
    st.tuples(st.just("cut"), st.integers(1, LENGTH), st.integers(1, 300)),
    st.tuples(st.just("append"), st.integers(1, LENGTH), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("copy"), st.integers(1, LENGTH), st.integers(1, LENGTH + 3)),
)


def change(copy, what, *how):
    """One tampering. True if anything is another than it was."""
    if what == "permute":
        contents = [copy.file(number).read_bytes() for number in how[0]]
        for number, data in enumerate(contents, 1):
            copy.file(number).write_bytes(data)
        return list(how[0]) != sorted(how[0])
    path = copy.file(how[0])
    data = path.read_bytes()
    if what == "delete":
        path.unlink()
    elif what == "byte":
        at = how[1] % len(data)
        path.write_bytes(data[:at] + bytes([data[at] ^ how[2]]) + data[at + 1 :])
    elif what == "cut":
        path.write_bytes(data[: -min(how[1], len(data))])
    elif what == "append":
        path.write_bytes(data + how[1])
    else:
        copy.file(how[1]).write_bytes(data)
        return how[0] != how[1]
    return True


@given(change_=CHANGES)
@settings(max_examples=150, deadline=None)
def test_no_change_is_ever_called_clean(honest, tmp_path_factory, change_):
    copy = Copy(honest, tmp_path_factory.getbasetemp() / "changed")
    changed = change(copy, *change_)
    if change_ == ("delete", 1):  # what the receipt covers, a device lets go itself, from the front
        changed = False
    assert copy.directory().clean is not changed
    assert copy.own().clean is not changed


def test_a_bit_of_each_byte_of_a_segment(honest, tmp_path):
    copy = Copy(honest, tmp_path / "copy")
    data = copy.file(4).read_bytes()
    for at in range(len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << at % 8
        copy.file(4).write_bytes(spoiled)
        names = set(copy.directory().counts)
        assert len(names) == 1
        assert names <= {Name.ALTERED, Name.TRUNCATED}, (at, names)  # a length that says more than there is


# --- any directory -------------------------------------------------------------------------------------------------


def test_hostile_names_and_shapes_end_in_a_list(honest, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(honest.outbox, out)
    for name in (b"\x1b[31mred.egs", b"\xff\xfe.egs", b"a\nb.egs", b".egs", b"-rf.egs", b"0-9999999999999999.egs"):
        Path(os.fsdecode(bytes(out) + b"/" + name)).write_bytes(b"x" * 10)
    (out / "deep/er/and/deeper").mkdir(parents=True)
    (out / "note.txt").write_text("x")
    (out / "link").symlink_to("/")
    report = evidence.directory(str(out), [honest.public])
    assert report.counts == {Name.ALTERED: 5}  # ".egs" is hidden, as a temporary file is
    assert any("too deep" in note for note in report.notes)
    assert any("other files" in note for note in report.notes)


def test_a_file_of_many_segments_and_its_broken_end(honest, tmp_path):
    parts = [*honest.segments().values(), *honest.statements().values()]  # a statement may come last
    (tmp_path / "export.egs").write_bytes(b"".join(parts))
    report = evidence.directory(str(tmp_path), [honest.public])
    assert (report.clean, report.segments) == (True, 2 * LENGTH)
    parts = [honest.statements()[outbox.epoch_file(1)], *parts[:4]]
    (tmp_path / "export.egs").write_bytes(b"".join(parts)[:-10])
    assert evidence.directory(str(tmp_path), [honest.public]).counts == {Name.TRUNCATED: 1}
    (tmp_path / "export.egs").write_bytes(b"".join(parts[:3]) + bytes(3 << 20))
    assert evidence.directory(str(tmp_path), [honest.public]).counts == {Name.ALTERED: 1}


def test_two_devices_each_in_a_folder(honest, tmp_path):
    other = Device(str(tmp_path / "other"))
    other.seed, other.public = OTHER, cose.public_of(OTHER)
    Path(f"{other.settings.paths.state}/keys/device.key").write_bytes(OTHER)
    grow(other, "abc")
    both = tmp_path / "both"
    shutil.copytree(honest.outbox, both / "one")
    shutil.copytree(other.outbox, both / "two")
    keys = [honest.public, other.public]
    report = evidence.directory(str(both), keys)
    assert (report.clean, len(report.devices)) == (True, 2)
    shutil.copy(both / "one" / File(0, 2).file, both / "two" / File(0, 2).file)
    assert evidence.directory(str(both), keys).counts == {Name.FOREIGN: 1}


def test_ten_thousand_segments_in_bounded_memory(tmp_path):
    """In a process of its own: what it holds at most, beyond the modules."""
    script = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from hashlib import sha256
from edgeguard.codec import cose
from edgeguard.records import compose, epoch, evidence, wire
from edgeguard.records.wire import Header
seed = b"\\x01" * 32
public = cose.public_of(seed)
key = b"\\x02" * 32
said = epoch.Statement(cose.device_id(public), 1, cose.public_of(key), 1, 1, 1, 0, ())
with open(f"{sys.argv[2]}/epoch-0000000000000001.ege", "wb") as file:
    file.write(epoch.issue(said, seed, None))
previous, record = wire.NO_PREVIOUS, compose.text("x" * 900, compose.Moment(1, 1, 1))
for number in range(1, 10_001):
    header = Header(cose.device_id(public), 3, number, 1, 1, number, 1, previous, 1, 1, 1, bytes(8), 0)
    data = cose.sign1(wire.encode_segment(header, [record]), key, cose.SEGMENT_AAD)
    previous = sha256(data).digest()
    with open(f"{sys.argv[2]}/3-{number:016d}.egs", "wb") as file:
        file.write(data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = evidence.directory(sys.argv[2], [public])
print(report.clean, report.segments, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(TREE), str(tmp_path)], capture_output=True, text=True, check=True
    )
    whole, segments, kilobytes = done.stdout.split()
    assert (whole, segments) == ("True", "10000")
    assert int(kilobytes) < 24 * 1024


# --- the command ---------------------------------------------------------------------------------------------------


def command(copy, *words):
    (copy.root / "agent.toml").write_text(
        f'[paths]\nstate = "{copy.root}/state"\nexchange = "{copy.root}/exchange"\nruntime = "{copy.root}/run"\n'
        f'[uplink]\nurl = "https://localhost:1"\ncollector_key = "{copy.root}/state/collector.pub"\n'
    )
    program = [sys.executable, "-c", "import sys; from edgeguard.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    return subprocess.run(
        [*program, "log", "verify", "--settings", str(copy.root / "agent.toml"), *words],
        capture_output=True, text=True, check=False, cwd=TREE,
    )  # fmt: skip


def test_the_command_says_what_it_found_and_what_it_cannot_see(honest, tmp_path):
    copy = Copy(honest, tmp_path / "copy")
    done = command(copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No defect.\n")
    assert "who holds this device's key" in " ".join(done.stdout.split())
    flip(copy)
    delete(copy, 6)
    done = command(copy)
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0] == "2 defects."
    assert lines[1].startswith("!  altered: findings 4 in 0-0000000000000004.egs")
    assert "!  segments missing: findings 6" in lines
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    answer = json.loads(command(copy, "-o", "json").stdout)
    assert (answer["v"], answer["clean"]) == (1, False)
    assert [(item["name"], item["first"]) for item in answer["defects"]] == [("altered", 4), ("segments missing", 6)]


def test_the_command_that_could_not_look_says_so(honest, tmp_path):
    copy = Copy(honest, tmp_path / "copy")
    assert command(copy, "-f").returncode == 64
    (copy.root / "state/keys/device.pub").unlink()
    assert command(copy).returncode == 3
    shutil.rmtree(copy.root / "state/spool")
    assert command(copy).returncode == 3
    assert json.loads(command(copy, "-o", "json").stdout)["clean"] is None


def test_names_are_unlike_each_other():
    assert len({name.word for name in Name}) == len(Name)
    for one, two in itertools.combinations(Name, 2):
        assert one.meaning != two.meaning
