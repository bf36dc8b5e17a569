"""The uplink's status file is written by the process that talks to the network: nothing in it may end the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.daemon.uplinks import Uplinks, UplinkStatus, read_status
from edgeguard.settings import Paths, Settings, Uplink


def test_what_the_uplink_says(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text('{"ok": false, "error": "no network", "retry_after": 60, "last_sent": 1700000000000}')
    assert read_status(str(path)) == UplinkStatus(False, "no network", 60, 1_700_000_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '"ok"',
        "9" * 5000,
        "[" * 4000,
        '{"ok": true, "retry_after": 1e999}',
        '{"ok":1,"retry_after":"x"}',
    ],
)
def test_nonsense_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text)
    assert read_status(str(path)) is None


def test_a_time_out_of_this_world_is_none(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text('{"ok": true, "last_sent": ' + "9" * 3000 + "}")
    assert read_status(str(path)) == UplinkStatus()


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("directory", "fifo", "link", "gone"):
        assert read_status(str(tmp_path / name)) is None


def test_the_collector_may_ask_for_rest(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    bell = tmp_path / "doorbell"
    settings = Settings(
        paths=Paths(runtime=str(tmp_path), exchange=str(tmp_path)), uplink=Uplink(url="https://collector.example")
    )
    loop, clock = Loop(), [0.0]
    loop._clock = lambda: clock[0]
    uplinks = Uplinks(loop, settings, None, "", lambda: None, lambda _detail: None)  # type: ignore[arg-type]
    (tmp_path / "inbox" / "status.json").write_text('{"ok": false, "error": "busy", "retry_after": 3600}')
    uplinks.open()
    uplinks.ring()
    assert not bell.exists()
    clock[0] = 3601.0
    loop._run_timers()
    assert bell.exists()
    uplinks.close()


def test_what_a_budget_holds_back_is_rung_for_later_and_findings_at_once(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    bell = tmp_path / "doorbell"
    settings = Settings(
        paths=Paths(runtime=str(tmp_path), exchange=str(tmp_path)), uplink=Uplink(url="https://collector.example")
    )
    loop, clock = Loop(), [0.0]
    loop._clock = lambda: clock[0]
    uplinks = Uplinks(loop, settings, None, "", lambda: None, lambda _detail: None)  # type: ignore[arg-type]
    (tmp_path / "inbox" / "status.json").write_text('{"ok": true, "error": "", "retry_after": 600}')
    uplinks.open()
    assert not bell.exists()
    clock[0] = 601.0
    loop._run_timers()
    assert bell.exists()
    bell.unlink()
    uplinks.ring()
    assert bell.exists()
    uplinks.close()


@pytest.mark.parametrize(
    ("answer", "rings"),
    [
        ({"v": 1, "sealed": [{"seq": 1}], "handed_out": 1}, True),
        ({"v": 1, "sealed": [], "handed_out": 2}, True),  # by a run that was killed before it could
        ({"error": "[Errno 28] No space left on device", "storage": True, "handed_out": 1}, True),
        ({"error": "[Errno 28] No space left on device", "storage": True, "handed_out": 0}, False),
        ({"v": 1, "sealed": [], "handed_out": 0}, False),
    ],
)
def test_it_rings_for_what_was_handed_out(tmp_path: Path, answer: dict[str, object], rings: bool) -> None:
    settings = Settings(
        paths=Paths(runtime=str(tmp_path), exchange=str(tmp_path)), uplink=Uplink(url="https://collector.example")
    )
    uplinks = Uplinks(Loop(), settings, None, "", lambda: None, lambda _detail: None)  # type: ignore[arg-type]
    uplinks.sealed(answer)
    assert (tmp_path / "doorbell").exists() == rings


def test_without_a_network_a_receipt_is_heard_and_an_old_status_is_not(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    key = tmp_path / "collector.pub"
    settings = Settings(
        paths=Paths(runtime=str(tmp_path), exchange=str(tmp_path)), uplink=Uplink(collector_key=str(key))
    )
    loop, heard, told = Loop(), [], []
    (tmp_path / "inbox" / "status.json").write_text('{"ok": false, "error": "long ago"}')
    for known in (False, True):
        if known:
            key.write_text("00" * 32)
        uplinks = Uplinks(loop, settings, None, "", lambda: heard.append(1), told.append)  # type: ignore[arg-type]
        uplinks.open()
        (tmp_path / "inbox" / "receipt.egr").write_bytes(b"x")
        if uplinks._events is not None:
            uplinks._arrived()
            uplinks._receipts()
        assert len(heard) == known
        uplinks.close()
    assert told == []
