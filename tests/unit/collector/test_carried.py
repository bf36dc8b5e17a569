"""A device without a network: exported, encrypted, carried, taken in, and a receipt carried back."""

import json
import os
from pathlib import Path

import pytest
from small_world import moment, state
from world import collector, contents

from edgeguard.cli.main import main as edgeguard
from edgeguard.codec import cose, encrypt
from edgeguard.collector.main import main as collector_main
from edgeguard.records import carrying, compose


@pytest.fixture
def world(device, tmp_path):
    """A device with records, its settings on disk, a collector with an operator's key."""
    directory = collector(str(tmp_path / "c"), device)
    assert collector_main(["operator-key", directory]) == 0
    Path(device.settings.paths.state, "keys", "device.pub").write_text(device.public.hex() + "\n")
    paths = device.settings.paths
    (tmp_path / "agent.toml").write_text(
        f'[paths]\nstate = "{paths.state}"\nexchange = "{paths.exchange}"\nruntime = "{paths.runtime}"\n'
        f'[uplink]\ncollector_key = "{directory}/collector.pub"\nexport_key = "{directory}/operator.pub"\n'
    )
    from edgeguard.settings import load

    device.settings = load(str(tmp_path / "agent.toml"))
    for number in range(3):
        device.record_and_seal(state(f"{number}"), compose.text("noise", moment()))
    (tmp_path / "stick").mkdir()
    return directory


def log(tmp_path: Path, *words: str) -> int:
    return edgeguard(["log", *words, "--settings", str(tmp_path / "agent.toml")])


def test_there_and_back(device, world, tmp_path, capsys):
    stick = str(tmp_path / "stick")
    before = device.segments()
    assert log(tmp_path, "export", stick) == 0
    assert "6 segments, encrypted" in capsys.readouterr().out
    (name,) = os.listdir(stick)
    assert name.endswith(".egx")
    raw = Path(stick, name).read_bytes()
    assert not any(data[20:60] in raw for data in before.values())
    assert os.stat(f"{stick}/{name}").st_mode & 0o777 == 0o600
    assert device.segments() == before  # nothing leaves by being exported
    device.seal()
    assert device.segments() == before

    assert collector_main(["import", world, stick, "--receipts", stick]) == 0
    said = capsys.readouterr().out
    assert said.count(": stored") == 7  # six segments and a statement
    assert "pump-07.egr" in said
    assert {row[-1] for row in contents(world)["segments"]} == set(before.values())
    assert log(tmp_path, "import-receipt", f"{stick}/pump-07.egr") == 0
    assert "findings  complete to segment 3" in capsys.readouterr().out
    result = device.seal()
    assert (result["waiting"], result["problems"], len(device.segments())) == (0, [], 2)

    assert collector_main(["import", world, stick]) == 0  # the same stick once more
    assert capsys.readouterr().out.count(": duplicate") == 7


def test_many_files_where_one_would_be_too_large(device, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(carrying, "PART_MAX", 500)
    assert log(tmp_path, "export", str(tmp_path / "stick"), "-o", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["segments"] == 6
    assert len(document["files"]) > 2
    assert collector_main(["import", world, str(tmp_path / "stick")]) == 0
    assert len(contents(world)["segments"]) == 6


def test_plain_only_when_asked_for(device, world, tmp_path, capsys):
    os.unlink(f"{world}/operator.pub")
    assert log(tmp_path, "export", str(tmp_path / "stick")) == 64
    assert "--plain" in capsys.readouterr().err
    assert os.listdir(tmp_path / "stick") == []
    assert log(tmp_path, "export", str(tmp_path / "stick"), "--plain") == 0
    assert "readable by anybody" in capsys.readouterr().out
    assert collector_main(["import", world, str(tmp_path / "stick")]) == 0


def test_what_cannot_be_exported_is_named(device, world, tmp_path, capsys):
    os.symlink("/etc/shadow", f"{device.outbox}/0-0000000000000009.egs")
    Path(device.outbox, "1-0000000000000001.egs").write_bytes(b"\x1b[2J")
    assert log(tmp_path, "export", str(tmp_path / "stick")) == 1
    told = capsys.readouterr().err
    assert "0-0000000000000009.egs" in told
    assert "1-0000000000000001.egs: not a segment" in told


def test_an_export_is_never_overwritten_and_needs_a_directory(device, world, tmp_path, monkeypatch, capsys):
    import time

    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026, 1, 2, 3, 4, 5, 4, 2, 0)))
    assert log(tmp_path, "export", str(tmp_path / "stick")) == 0
    assert log(tmp_path, "export", str(tmp_path / "stick")) == 3
    assert log(tmp_path, "export", "/nowhere") == 3
    assert log(tmp_path, "export") == 64
    assert log(tmp_path, "verify", "x") == 64
    assert log(tmp_path, "import-receipt", "x", "--plain") == 64
    capsys.readouterr()


def test_a_receipt_of_somebody_else_is_not_taken(device, world, tmp_path, capsys):
    stick = tmp_path / "stick"
    assert log(tmp_path, "export", str(stick)) == 0
    assert collector_main(["import", world, str(stick), "--receipts", str(stick)]) == 0
    receipt = (stick / "pump-07.egr").read_bytes()
    wrong = {
        "stranger": cose.sign1(cose.parse1(receipt).payload, b"\x66" * 32, cose.RECEIPT_AAD),
        "flipped": receipt[:-1] + bytes([receipt[-1] ^ 1]),
        "cut": receipt[:50],
        "segment": next(iter(device.segments().values())),
        "giant": receipt + bytes(9000),
    }
    for name, data in wrong.items():
        (stick / name).write_bytes(data)
        assert log(tmp_path, "import-receipt", str(stick / name)) == 1, name
        assert not os.path.exists(f"{device.inbox}/receipt.egr")
    os.symlink(str(stick / "pump-07.egr"), str(stick / "link"))
    assert log(tmp_path, "import-receipt", str(stick / "link")) == 3
    capsys.readouterr()


def test_a_stick_that_was_tampered_with(device, world, tmp_path, capsys):
    stick = tmp_path / "stick"
    assert log(tmp_path, "export", str(stick)) == 0
    (path,) = stick.iterdir()
    good = path.read_bytes()
    for bad in (good[:-1], good[:100] + b"\0" + good[101:], good[:40], b"\xd8\x60\x80", b""):
        path.write_bytes(bad)
        code = collector_main(["import", world, str(path)])
        assert code == (1 if bad else 0)
    path.write_bytes(encrypt.encrypt(good, encrypt.public_of(b"\x01" * 32), encrypt.EXPORT_AAD))
    assert collector_main(["import", world, str(path)]) == 1
    assert "not ours" in capsys.readouterr().out
    os.unlink(f"{world}/operator.key")
    path.write_bytes(good)
    assert collector_main(["import", world, str(path)]) == 1
    assert "no operator's key" in capsys.readouterr().out
    assert contents(world)["segments"] == []


def test_an_operators_key_is_made_once(world, capsys):
    before = Path(world, "operator.key").read_bytes()
    assert collector_main(["operator-key", world]) == 64
    assert Path(world, "operator.key").read_bytes() == before
    assert os.stat(f"{world}/operator.key").st_mode & 0o777 == 0o600
    capsys.readouterr()
