"""Paths as numbers of the baseline's manifest: only when the collector has it, and the events never show it."""

import hashlib
import io
import json
import os

import pytest
from small_world import EPOCH_SEED, Device, finding, moment, statement

from edgeguard.codec import cose
from edgeguard.codec.manifest import Entry, Writer
from edgeguard.collector import events, store
from edgeguard.collector.baselines import Baselines
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.main import main
from edgeguard.errors import DecodeError
from edgeguard.records import compose, seal, wire
from edgeguard.records.references import Places, manifest_id

COLLECTOR = b"\x09" * 32
TREE = {b"/etc": [b"passwd", b"shadow"], b"/usr/bin": [b"cp", b"\xff\nodd", b"z"], b"/usr/sbin": [b"sshd"]}
PATHS = [os.fsdecode(directory + b"/" + name) for directory, names in TREE.items() for name in names]


@pytest.fixture
def manifest(tmp_path):
    out = io.BytesIO()
    writer = Writer(out)
    for directory, names in TREE.items():
        writer.add(directory, names, [Entry(0o100755, 0, 0, 5, "program") for _ in names])
    writer.close()
    path = tmp_path / f"{hashlib.sha256(out.getvalue()).hexdigest()}.egm"
    path.write_bytes(out.getvalue())
    return str(path)


def test_every_path_has_a_number_and_every_number_its_path(manifest):
    places = Places(manifest)
    assert [places.reference(path) for path in PATHS] == list(range(len(PATHS)))
    assert [places.resolve(number) for number in range(len(PATHS))] == PATHS
    with open(manifest, "r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 60)
    places._names.clear()
    assert places.reference("/etc/passwd") is None
    assert places.resolve(0) is None
    for text in ("", "x", "/", "/etc", "/etc/", "/etc/none", "/usr", "passwd", "/etc/passwd/", "/\ud800"):
        assert places.reference(text) is None
    for number in (-1, len(PATHS), 2**63):
        assert places.resolve(number) is None
    places.close()


def test_a_file_that_is_no_manifest(tmp_path, manifest):
    assert manifest_id("/x/" + "ab" * 32 + ".egm") == b"\xab" * 8
    assert manifest_id("draft.egm") is None
    assert manifest_id("zz" * 32 + ".egm") is None
    broken = tmp_path / "broken.egm"
    broken.write_bytes(b"EGMANIF1" + bytes(200))
    with pytest.raises(DecodeError):
        Baselines(str(tmp_path / "b")).add(str(broken))


def test_from_the_first_receipt_on_paths_are_numbers_and_events_show_them(tmp_path, manifest):
    device = Device(str(tmp_path / "device"))
    device.with_collector(cose.public_of(COLLECTOR))
    baselines = Baselines(str(tmp_path / "baselines"))
    database = store.connect(str(tmp_path / "db"))
    ingest = Ingest(database, COLLECTOR, lambda: 5, baselines)
    known = ingest.add_device("d", device.public)
    wanted = manifest_id(manifest)
    references = []
    for turn in range(3):
        if turn == 1:
            assert baselines.add(manifest) == wanted
            assert baselines.ids() == (wanted,)
        spool = device.spool()
        spool.open()
        spool.append(compose.finding(finding("/usr/sbin/sshd"), moment()))
        spool.rotate(10**9, force=True)
        spool.close()
        result = seal.run(device.settings, drop_privileges=False, manifest=manifest)
        assert result["problems"] == []
        newest = list(device.segments().values())[-1]
        payload = cose.parse1(newest).payload
        assert wire.decode_header(payload).baseline == wanted
        references.append(wire.decode_segment(payload).records[0].fields[4])
        _, receipt = ingest.take(b"".join([newest, *device.statements().values()]), known)
        with open(f"{device.inbox}/receipt.egr", "wb") as file:
            file.write(receipt)
    assert references == ["/usr/sbin/sshd", "/usr/sbin/sshd", wire.Entry(5)]
    shown = [event["subject"] for event in events.listing(database, 10)]
    assert shown == ["/usr/sbin/sshd"] * 3
    os.truncate(manifest, 50)  # a damaged manifest on the device: written out again, and said
    spool = device.spool()
    spool.open()
    spool.append(compose.finding(finding("/usr/sbin/sshd"), moment()))
    spool.rotate(10**9, force=True)
    spool.close()
    assert "manifest" in seal.run(device.settings, drop_privileges=False, manifest=manifest)["problems"][0]
    payload = cose.parse1(list(device.segments().values())[-1]).payload
    assert wire.decode_segment(payload).records[0].fields[4] == "/usr/sbin/sshd"


def test_a_manifest_that_is_gone_leaves_numbers(tmp_path, manifest):
    device = Device(str(tmp_path / "device"))
    ingest = Ingest(store.connect(":memory:"), COLLECTOR, lambda: 5, Baselines(str(tmp_path / "none")))
    known = ingest.add_device("d", device.public)
    header = wire.Header(device.id, 0, 1, 1, 1, 1, 0, bytes(32), 0, None, 0, b"\x07" * 8, 0)
    payload = wire.encode_segment(header, [compose.finding(finding("/usr/sbin/sshd"), moment())], lambda _text: 5)
    ingest.take(statement() + cose.sign1(payload, EPOCH_SEED, cose.SEGMENT_AAD), known)
    assert next(iter(events.listing(ingest._db, 10)))["subject"] == "baseline:5"


def test_the_command(tmp_path, manifest, capsys):
    directory = str(tmp_path / "c")
    main(["init", directory])
    assert main(["add-baseline", directory, manifest]) == 0
    assert manifest_id(manifest).hex() in capsys.readouterr().out
    assert main(["add-baseline", directory, "/etc/hostname"]) == 1
    assert json.dumps(capsys.readouterr().err)
