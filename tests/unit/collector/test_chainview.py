"""`edgeguard-collector show` tells of one device what the collector knows of its chain, to people and to programs."""

import json

import pytest
from test_alertbook import World, change
from test_ingest import DEVICE, PUBLIC, chain, segment

from edgeguard.collector.main import main
from edgeguard.records.wire import Drop


@pytest.fixture
def world(tmp_path):
    return World(str(tmp_path / "collector.db"))


def test_a_chain_to_its_head(world, tmp_path, capsys):
    parts = chain(5)
    world.take(*parts)
    assert main(["show", str(tmp_path), "--device", "pump-07", "--segments", "2", "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["public"]) == (DEVICE.hex(), PUBLIC.hex())
    assert (shown["segments"], shown["records"], shown["bytes"]) == (5, 10, sum(map(len, parts)))
    findings, *others = shown["streams"]
    assert (findings["complete_to"], findings["newest"], findings["missing"]) == (5, 5, False)
    assert [item["seq"] for item in findings["segments"]] == [4, 5]
    assert findings["segments"][1]["previous"] == findings["segments"][0]["hash"]
    assert findings["hash"] == findings["segments"][1]["hash"]
    assert [stream["stored"] for stream in others] == [0, 0, 0]
    assert main(["show", str(tmp_path), "--device", "pump-07", "--segments", "2"]) == 0
    said = capsys.readouterr().out
    assert "stream 0 findings: to segment 5, complete" in said
    assert "3 earlier segments" in said


def test_a_gap_and_a_loss(world, tmp_path, capsys):
    first, _, third = chain(3)
    world.take(first, third)
    world.take(segment(1, bytes(32), stream=1, drops=(Drop(4, 9, 2, 2),)))
    assert main(["show", str(tmp_path), "--device", "pump-07"]) == 0
    said = capsys.readouterr().out
    assert "stream 0 findings: to segment 1, GAP, newest is 3" in said
    assert "lost 4-9: evicted" in said


def test_what_a_device_wrote_is_printed_without_control_characters(world, tmp_path, capsys):
    world.report(change(subject="/a\x1b[31m\nb"))
    assert main(["show", str(tmp_path), "--device", "pump-07"]) == 0
    said = capsys.readouterr().out
    assert "critical EG-FILE-002 /a\\x1b[31m\\nb (F-1)" in said


def test_who_is_not_there(world, tmp_path, capsys):
    assert main(["show", str(tmp_path), "--device", "nobody"]) == 64
    assert main(["show", str(tmp_path), "--device", "pump-07", "--segments", "-1"]) == 64
