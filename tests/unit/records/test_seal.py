"""The sealer: chains, receipts, damage, kills. Everything here is files; their signatures are checked."""

import json
import os
import shutil
import struct
import subprocess
import sys
from hashlib import sha256

import pytest
from small_world import Device, moment, state

from edgeguard.codec import cbor, cose
from edgeguard.linux import durable
from edgeguard.records import closed, compose, holdings, journal, outbox, receipts, registry, wire
from edgeguard.records.outbox import Name
from edgeguard.records.receipts import Head, Receipt

COLLECTOR = b"\x09" * 32


def opened(device):
    """All segments, verified and decoded, with the hash of each."""
    return [(device.opened(data), sha256(data).digest()) for data in device.segments().values()]


def give_receipt(device, heads, *, time=1, seed=COLLECTOR, owner=None, held=()):
    receipt = Receipt(owner or device.id, time, tuple(Head(*head) for head in heads), held)
    with open(os.path.join(device.inbox, "receipt.egr"), "wb") as file:
        file.write(cose.sign1(receipts.encode(receipt), seed, cose.RECEIPT_AAD))


def flip(device, name, place=-20):
    path = os.path.join(device.outbox, name)
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[place] ^= 1
        file.seek(0)
        file.write(data)


@pytest.fixture
def three(device):
    """Three findings segments, a collector known."""
    device.with_collector(cose.public_of(COLLECTOR))
    for word in "abc":
        device.record_and_seal(state(word))
    return device


def test_each_stream_is_a_chain_of_its_own(device):
    for turn in range(3):
        result = device.record_and_seal(state(f"{turn}"), compose.text("x", moment()), state("again"))
        assert [(item["stream"], item["seq"], item["n"]) for item in result["sealed"]] == [
            (0, turn + 1, 2),
            (3, turn + 1, 1),
        ]
    before = {0: wire.NO_PREVIOUS, 3: wire.NO_PREVIOUS}
    record = {0: 1, 3: 1}
    for segment, digest in opened(device):
        header = segment.header
        assert header.device == device.id
        assert header.previous == before[header.stream]
        assert header.first == record[header.stream]
        before[header.stream] = digest
        record[header.stream] += header.n
    assert oct(os.stat(os.path.join(device.outbox, "0-0000000000000001.egs")).st_mode)[-3:] == "640"


def test_nothing_to_do_is_nothing_done(device):
    device.record_and_seal(state())
    before = device.segments()
    result = device.seal()
    assert (result["sealed"], result["released"]) == ([], [])
    assert device.segments() == before


def test_a_batch_is_bounded_and_never_spans_boots_or_clock_steps(device):
    one = device.spool()
    one.open()
    for number in range(300):
        one.append(state("x", mono=1000 + number))
    one.append(state("stepped", mono=1400)._replace(wall=5_000))
    one.append(state("clock good", mono=1500)._replace(wall=5_100, clock=3))
    one.close()
    two = device.spool(b"second boot.....")
    two.open()
    two.append(state("y", mono=10))
    two.rotate(10**9, force=True)
    two.close()
    device.seal()
    assert [(s.header.boot, s.header.n, s.header.clock) for s, _ in opened(device)] == [
        (1, 256, 2),
        (1, 44, 2),
        (1, 1, 2),
        (1, 1, 3),
        (2, 1, 2),
    ]


def test_a_large_record_fits_a_segment(device):
    texts = {f"c{number}": "y" * 1000 for number in range(12)}
    result = device.record_and_seal(*(compose.state("policy", moment(), columns=texts) for _ in range(8)))
    assert sum(item["n"] for item in result["sealed"]) == 8
    assert len(result["sealed"]) > 1
    opened(device)


def test_a_receipt_lets_all_but_the_newest_go(three):
    digests = [digest for _, digest in opened(three)]
    give_receipt(three, [(0, 2, digests[1])])
    result = three.seal()
    assert list(three.segments()) == ["0-0000000000000003.egs"]
    assert result["waiting"] == 1
    give_receipt(three, [(0, 3, digests[2])], time=2)
    result = three.seal()
    assert list(three.segments()) == ["0-0000000000000003.egs"]
    assert (result["waiting"], result["receipt"]["heads"]) == (0, [[0, 3]])
    os.unlink(os.path.join(three.inbox, "receipt.egr"))
    assert three.record_and_seal(state("d"))["sealed"][0]["seq"] == 4
    assert opened(three)[-1][0].header.previous == digests[2]


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda device, digests: give_receipt(device, [(0, 2, digests[1])], seed=b"\x0a" * 32), "not trusted"),
        (lambda device, digests: give_receipt(device, [(0, 2, digests[1])], owner=bytes(16)), "another device"),
        (lambda device, digests: give_receipt(device, [(0, 2, b"\x55" * 32)]), "cloned"),
        (lambda device, digests: _write(device, b"\xd2garbage"), "receipt"),
        (lambda device, digests: _write(device, bytes(5000)), "more than 4096"),
        (lambda device, digests: os.symlink("/etc/passwd", f"{device.inbox}/receipt.egr"), "receipt"),
        (lambda device, digests: os.mkfifo(f"{device.inbox}/receipt.egr"), "not a file"),
        (lambda device, digests: os.mkdir(f"{device.inbox}/receipt.egr"), "receipt"),
    ],
)
def test_a_receipt_that_is_not_to_be_believed_deletes_nothing(three, spoil, word):
    before = three.segments()
    spoil(three, [digest for _, digest in opened(three)])
    result = three.seal()
    assert three.segments() == before
    assert word in " ".join(result["problems"])
    assert result["receipt"] is None


def test_a_segment_is_no_receipt(three):
    """The same key for both purposes would still not do: the external data differ."""
    payload = receipts.encode(Receipt(three.id, 1, (Head(0, 3, bytes(32)),)))
    _write(three, cose.sign1(payload, COLLECTOR, cose.SEGMENT_AAD))
    before = three.segments()
    assert "does not match" in " ".join(three.seal()["problems"])
    assert three.segments() == before


def test_an_old_receipt_sent_again_changes_nothing(three):
    digests = [digest for _, digest in opened(three)]
    give_receipt(three, [(0, 3, digests[2])], time=5)
    three.seal()
    give_receipt(three, [(0, 1, digests[0])], time=6)
    result = three.seal()
    assert "says less" in " ".join(result["problems"])
    assert result["receipt"]["heads"] == [[0, 3]]


def _write(device, data):
    with open(os.path.join(device.inbox, "receipt.egr"), "wb") as file:
        file.write(data)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap", "giant", "link"])
def test_a_damaged_newest_segment_is_set_aside_by_name_and_the_chain_goes_on(three, damage):
    digests = [digest for _, digest in opened(three)]
    name = "0-0000000000000003.egs"
    path = os.path.join(three.outbox, name)
    if damage == "flip":
        flip(three, name)
    elif damage == "truncate":
        os.truncate(path, 100)
    elif damage == "empty":
        os.truncate(path, 0)
    elif damage == "giant":
        os.truncate(path, 300 * 1024)
    elif damage == "swap":
        shutil.copy(os.path.join(three.outbox, "0-0000000000000002.egs"), path)
    else:
        os.unlink(path)
        os.symlink("/etc/passwd", path)
    result = three.record_and_seal(state("d"))
    assert [(item["name"], item["stream"], item["seq"]) for item in result["quarantined"]] == [(name, 0, 3)]
    assert result["quarantined"][0]["why"]
    assert os.path.lexists(os.path.join(three.spool_directory, "quarantine", name))
    last = opened(three)[-1][0]
    assert (last.header.sequence, last.header.previous) == (4, digests[1])
    assert [tuple(drop) for drop in last.drops] == [(3, 3, registry.REASONS.index("damaged"), 0)]
    assert last.records[-1].fields[1] == "d"
    assert three.seal()["quarantined"] == []


def test_a_damaged_segment_in_the_middle_is_found_too(three):
    flip(three, "0-0000000000000002.egs", 60)
    assert [item["seq"] for item in three.seal(audit=True)["quarantined"]] == [2]
    three.record_and_seal(state("d"))
    assert [drop.first for drop in opened(three)[-1][0].drops] == [2]
    assert opened(three)[-1][0].header.sequence == 4


def test_what_the_uplink_calls_refused_is_looked_at_even_among_many(three, monkeypatch):
    monkeypatch.setattr(holdings, "AUDIT_MAX", 0)
    flip(three, "0-0000000000000002.egs", 60)
    assert three.seal()["quarantined"] == []
    with open(os.path.join(three.inbox, "status.json"), "w") as file:
        json.dump({"refused": [{"name": "0-0000000000000002.egs"}, {"name": "0-0000000000000001.egs"}, 7]}, file)
    assert [item["seq"] for item in three.seal()["quarantined"]] == [2]


@pytest.mark.parametrize("words", [b"", b"[]", b"{", b'{"refused": 3}', b"[" * 4000, b'{"refused": [{"name": 5}]}'])
def test_whatever_the_uplink_writes_the_sealer_lives(three, words):
    with open(os.path.join(three.inbox, "status.json"), "wb") as file:
        file.write(words)
    assert three.seal()["quarantined"] == []


def test_damage_to_what_is_confirmed_needs_no_explaining(three):
    digests = [digest for _, digest in opened(three)]
    give_receipt(three, [(0, 3, digests[2])])
    three.seal()
    flip(three, "0-0000000000000003.egs")
    result = three.record_and_seal(state("d"))
    assert result["quarantined"][0]["delivered"]
    last = opened(three)[-1][0]
    assert (last.header.sequence, last.header.previous, last.drops) == (4, digests[2], ())


def test_killed_between_any_two_steps_the_next_run_ends_it_once(device, tmp_path, monkeypatch):
    """The sealer is stopped after each of its disk operations; a second run on what is left completes it."""
    one = device.spool()
    one.open()
    for number in range(300):
        one.append(state(f"{number}"))
    one.append(compose.text("x", moment()))
    one.rotate(10**9, force=True)
    one.close()

    class Killed(BaseException):
        pass

    monkeypatch.setattr(cose, "generate_seed", lambda: b"\x07" * 32)
    calls = {"left": 0}
    real = {name: getattr(os, name) for name in ("pwrite", "fsync", "replace", "fdatasync")}

    def counting(name):
        def call(*arguments, **keywords):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Killed
            return real[name](*arguments, **keywords)

        return call

    expected = None
    for steps in range(60):
        copy = Device(str(tmp_path / "copy"))
        shutil.rmtree(tmp_path / "copy")
        shutil.copytree(device.settings.paths.state, copy.settings.paths.state)
        os.makedirs(copy.settings.paths.runtime)
        calls["left"] = steps
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counting(name))
            try:
                copy.seal()
                finished = True
            except Killed:
                finished = False
        copy.seal()
        segments = copy.segments()
        expected = expected or segments
        assert segments == expected
        assert not [name for name in os.listdir(copy.outbox) if name.endswith(".tmp")]
        content = journal.parse(journal.read(os.path.join(copy.spool_directory, "journal.0")))
        assert content.header.state == journal.FREE
        if finished:
            break
    assert finished
    assert steps > 10
    sequences = [s.header.first + n for s, _ in opened(copy) for n in range(s.header.n) if s.header.stream == 0]
    assert sequences == list(range(1, 301))


def test_two_sealers_do_not_meet(device):
    import fcntl

    device.record_and_seal(state())
    with open(os.path.join(device.spool_directory, "seal.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert device.seal() == {"v": 1, "busy": True}


def test_the_program_answers_in_a_frame_and_has_no_capability(device, tmp_path):
    device.record_and_seal(state())
    path = tmp_path / "agent.toml"
    paths = device.settings.paths
    path.write_text(f'[paths]\nstate = "{paths.state}"\nexchange = "{paths.exchange}"\n')
    code = (
        "import sys; sys.path.insert(0, '.'); from edgeguard.records import seal; code = seal.main(sys.argv[1:]);"
        "sys.stderr.write(open('/proc/self/status').read()); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "seal", "--settings", str(path)],
        input=cbor.encode({"audit": True}), capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (length,) = struct.unpack_from("<I", done.stdout)
    answer = cbor.decode(done.stdout[4:])
    assert len(done.stdout) == 4 + length
    assert answer["v"] == 1
    status = dict(line.split(":\t", 1) for line in done.stderr.decode().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_the_program_says_when_it_is_the_disk(device, tmp_path):
    paths = device.settings.paths
    path = tmp_path / "agent.toml"
    path.write_text(f'[paths]\nstate = "{paths.state}/there-is-none"\nexchange = "{paths.exchange}"\n')
    code = "import sys; sys.path.insert(0, '.'); from edgeguard.records import seal; sys.exit(seal.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--settings", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    answer = cbor.decode(done.stdout[4:])
    assert answer["storage"] is True
    assert "No such file" in answer["error"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0-1.egs",
        "4-0000000000000001.egs",
        "0-000000000000000x.egs",
        "0-0000000000000001.egs.tmp",
        ".0-0000000000000001.egs.tmp",
        "0-\u0660000000000000001.egs",
        "00000000000000000001.egs",
    ],
)
def test_other_files_are_no_segments(name):
    assert outbox.parse_name(name) is None


def test_a_name_reads_as_it_is_written():
    assert outbox.parse_name(Name(2, 77).file) == Name(2, 77)


def test_a_journal_is_let_go_when_its_segments_have_durable_names(device, monkeypatch):
    """Also those that an earlier run made and, being killed, did not make durable."""
    device.record_and_seal(state("in this epoch, too"))
    spool = device.spool()
    spool.open()
    spool.append(state())
    spool.rotate(10_000_000, force=True)
    steps = []
    original, release = durable.sync, closed.Closed.release

    def killed(directory):
        if directory == device.outbox:
            raise KeyboardInterrupt
        original(directory)

    monkeypatch.setattr(durable, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        device.seal()
    assert len(device.segments()) == 2
    monkeypatch.setattr(durable, "sync", steps.append)
    monkeypatch.setattr(closed.Closed, "release", lambda one: (steps.append("release"), release(one))[1])
    assert device.seal()["sealed"] == []
    assert steps[-2:] == [device.outbox, "release"]
