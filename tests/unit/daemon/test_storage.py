"""Our own state on its disk: what is said of it, and that nothing is called durable that is not."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeguard.cli import render
from edgeguard.daemon import checkup
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.storage import Storage
from edgeguard.linux import storage as below
from edgeguard.linux.storage import Medium
from edgeguard.records import compose
from edgeguard.records.compose import Moment
from edgeguard.records.spool import BLOCK, Spool
from edgeguard.sensors.health import Reason
from edgeguard.settings import Paths, Settings

SEALED = {"bytes": 8192, "limit": 1 << 20, "written": 20480, "lost": [[1, 3, 3], [2, 2, 2]], "awaited": True}


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    for name in ("state", "run", "exchange"):
        (tmp_path / name).mkdir()
    paths = Paths(
        root=str(tmp_path), state=f"{tmp_path}/state", runtime=f"{tmp_path}/run", exchange=f"{tmp_path}/exchange"
    )
    return Guard(Loop(), Settings(paths=paths), "", lambda _line: None)


def a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medium: Medium) -> Storage:
    monkeypatch.setattr(below, "medium", lambda _path: medium)
    return Storage(str(tmp_path), Spool(str(tmp_path), str(tmp_path), b""))


@pytest.mark.parametrize(
    ("medium", "words"),
    [
        (Medium("disk", "ext4", (8, 1)), ""),
        (Medium("memory", "tmpfs", None), "in memory (tmpfs): a restart loses it"),
        (Medium("overlay", "overlay", None), "on an overlay: whether a restart loses it cannot be told from here"),
        (Medium("unknown", "", None), "where it lies cannot be told"),
    ],
)
def test_what_does_not_last_is_not_called_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medium: Medium, words: str
) -> None:
    found = a_storage(tmp_path, monkeypatch, medium)
    assert found.fleeting() == words
    assert found.document()["durable"] is (not words)


def test_a_read_only_disk_is_seen_whenever_it_becomes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = a_storage(tmp_path, monkeypatch, Medium("disk", "ext4", None))
    assert found.document()["durable"]
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_RDONLY, f_bavail=1, f_frsize=4096))
    assert "read-only" in found.fleeting()
    assert not found.document()["durable"]


def test_what_writing_costs_is_counted_in_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(below, "bytes_written", lambda _device: 1 << 20)
    found = a_storage(tmp_path, monkeypatch, Medium("disk", "ext4", (8, 1)))
    spool = found._spool
    spool.open()
    begin = found.written
    assert begin == spool._size + 2 * BLOCK  # a journal, and its header twice
    spool.append(compose.text("x", Moment(1, None)))
    spool.commit()
    assert found.written == begin + BLOCK
    for _ in range(9):  # some 9 KiB from the middle of the first block on: three blocks
        spool.append(compose.text("y" * 1000, Moment(1, None)))
    spool.commit()
    assert found.written == begin + 4 * BLOCK
    found.sealed(SEALED)
    assert found.written == begin + 4 * BLOCK + 20480
    assert found.disk_written == 1 << 20
    spool.close()


def test_without_a_device_there_is_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = a_storage(tmp_path, monkeypatch, Medium("memory", "tmpfs", None))
    assert found.disk_written is None
    assert found.document()["device_written"] is None


def problems(guard: Guard) -> list[str]:
    return [line for line in guard.health.problems() if line.startswith("spool room")]


def test_what_is_let_go_is_told_once_and_a_finding_where_it_matters(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(guard.trouble, "_record", lambda what, text, severity: told.append(f"{what}: {text}"))
    guard._sealed(SEALED)
    guard._sealed(SEALED)
    assert told == ["spool: sealed records have 1048576 bytes; segments let go undelivered: 1 of metrics, 3 of verbose"]
    assert not problems(guard)
    security = {**SEALED, "lost": [[1, 3, 3], [1, 2, 1]]}
    guard._sealed({**security, "awaited": False})  # without a collector it is a log that turns over
    assert not problems(guard)
    guard._sealed(security)
    assert problems(guard) == [
        "spool room: segments let go before they were delivered: 2 of security, 3 of verbose",
    ]
    assert guard.health.counts[Reason.RECORDS_LET_GO] == 1
    guard._sealed({"v": 1, "busy": True})
    assert problems(guard)
    guard._sealed({**SEALED, "lost": []})
    assert not problems(guard)
    assert len(told) == 2


def test_status_and_doctor_say_it(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(guard.telling), "failing", "")
    monkeypatch.setattr(guard.storage, "_medium", Medium("disk", "ext4", None))  # wherever these tests run
    guard._sealed(SEALED)
    document = guard.showing.status()
    log = document["areas"]["log"]
    assert (log["bytes"], log["limit"], log["let_go"]) == (8192, 1 << 20, {"metrics": 1, "verbose": 3})
    assert "let go: 1 metrics, 3 verbose" in render.status(document, 120, False, False, 40)
    row = checkup._records(guard)
    assert row["level"] == "WARN"
    assert "1 of metrics" in row["text"]
    monkeypatch.setattr(guard.storage, "_medium", Medium("memory", "tmpfs", None))
    document = guard.showing.status()
    assert document["areas"]["log"]["state"] == "WARN"
    assert not document["areas"]["log"]["durable"]
    assert "a restart loses it" in render.status(document, 120, False, False, 40)
    assert "unbroken" not in render.status(document, 120, False, False, 40)
    assert "a restart loses it" in checkup._records(guard)["text"]
    assert "the kernel counts nothing" in checkup._wear(guard)["text"]


def test_the_collector_hears_that_a_restart_may_take_records(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(guard.trouble, "_record", lambda what, text, severity: told.append(f"{what}: {text}"))
    guard.trouble.fleeting("")
    guard.trouble.fleeting("in memory (tmpfs): a restart loses it")
    assert told == ["spool: EdgeGuard's own state is in memory (tmpfs): a restart loses it"]


def test_the_disk_that_takes_nothing_does_not_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeguard.daemon import main

    real = os.makedirs

    def makedirs(path: str, *words: Any, **more: Any) -> None:
        if "state" in path:
            raise OSError(main.errno.EROFS, "Read-only file system", path)
        real(path, *words, **more)

    monkeypatch.setattr(os, "makedirs", makedirs)
    paths = Paths(state=f"{tmp_path}/state", runtime=f"{tmp_path}/run", exchange=f"{tmp_path}/exchange")
    before = os.umask(0o022)
    try:
        main.prepare(Settings(paths=paths))
        assert (tmp_path / "run").is_dir()
        with pytest.raises(OSError, match="Read-only"):
            main.prepare(Settings(paths=paths._replace(runtime=f"{tmp_path}/state/run")))
    finally:
        os.umask(before)
